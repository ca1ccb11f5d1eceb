"""The pictures of docs/app.md: python Testing/app/screenshots.py, in the environment of the browser application."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import SimpleITK as sitk
from browser import App, Browser, Panel, colourful
from PIL import Image

PLACE = Path(__file__).parents[2] / "Resources" / "Screenshots"


def main() -> int:
    browser = Browser()
    with tempfile.TemporaryDirectory() as scratch:
        folder, temporary = Path(scratch) / "scans", Path(scratch) / "temporary"
        for made in (folder, temporary):
            made.mkdir()
        write_files(folder)
        app = App(folder, temporary)
        panel = Panel(browser.context(), app.address)
        page = panel.page
        page.click("#phantom")
        page.wait_for_selector("#register:enabled")
        panel.view("ThreeD")
        _save(page, "app_scans")
        page.select_option("#window", "lung")
        page.click("#levels summary")
        page.wait_for_function("document.querySelector('#level').value === '-600'")
        panel.view("ThreeD")
        _save(page, "app_window")
        page.click("#levels summary")
        lung = panel.view("Red")
        page.select_option("#window", "wide")
        panel.until_changed(lung)
        panel.view("ThreeD")
        page.click("#guidance summary")
        page.locator("#register").scroll_into_view_if_needed()
        _save(page, "app_guidance")
        page.click("#guidance summary")
        panel.register()
        page.wait_for_function("document.querySelector('.running strong')?.innerText === 'Optimising'")
        begun = int(page.get_attribute(".running progress", "value"))
        page.wait_for_function("was => document.querySelector('.running progress')?.value > was + 8", arg=begun)
        _save(page, "app_running")
        panel.finish()
        panel.view("ThreeD")
        grey = colourful(panel.view("Green"))
        page.select_option("#view", "ERROR")
        _until_coloured(panel, grey)
        panel.view("ThreeD")
        _save(page, "app_error")
        page.click("summary >> text=Scans and settings")
        told = page.inner_text("#register + .hint")
        page.select_option("#preset", "balanced")
        page.wait_for_function("old => document.querySelector('#register + .hint').innerText !== old", arg=told)
        page.click("#register")
        page.wait_for_function("document.querySelectorAll('#result option').length === 2")
        before = panel.view("Green")
        page.select_option("#view", "DISPLACEMENT")
        panel.until_changed(before, "Green")
        page.get_by_role("tab", name="Compare").click()
        page.locator("[role=tabpanel] tr").last.scroll_into_view_if_needed()
        panel.view("ThreeD")
        _save(page, "app_compare")
        page.locator(".verdict").scroll_into_view_if_needed()
        page.get_by_role("tab", name="Numbers").click()
        page.select_option("#view", "FIXED")
        page.get_by_role("button", name="Light", exact=True).click()
        page.check("#grid")
        page.get_by_text("Cyan: 0 mm").wait_for()
        _until_coloured(panel, grey)
        panel.view("ThreeD")
        _save(page, "app_grid")
        take_apply(panel)
        take_pairs(panel)
        browser.close()
        app.end()
    return 0


def write_files(folder: Path) -> None:
    """A segmentation on the moving chest, and a list of pairs of which one is damaged."""
    from nephi.synthetic.phantom import make_phantom

    phantom = make_phantom()
    labels = sitk.GetArrayFromImage(phantom.moving_mask).astype("uint8")
    labels[:, :, labels.shape[2] // 2 :] *= 2
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(phantom.moving)
    for i, name in enumerate(("Right lung", "Left lung")):
        for key, value in {"ID": f"lung{i}", "Name": name, "LabelValue": str(i + 1), "Layer": "0"}.items():
            image.SetMetaData(f"Segment{i}_{key}", value)
    sitk.WriteImage(image, str(folder / "lungs.seg.nrrd"), True)
    small = make_phantom(size=(32, 28, 28), spacing_mm=10.0)
    for name in ("fixed", "moving"):
        sitk.WriteImage(getattr(small, name), str(folder / f"{name}.nii.gz"))
    (folder / "cut.nii.gz").write_bytes(b"")
    rows = ["name,fixed,moving", "patient 1,fixed.nii.gz,moving.nii.gz", "patient 2,moving.nii.gz,fixed.nii.gz"]
    (folder / "study.csv").write_text("\n".join([*rows, "patient 3,fixed.nii.gz,cut.nii.gz"]), encoding="utf-8")


def take_apply(panel: Panel) -> None:
    page = panel.page
    page.uncheck("#grid")
    page.select_option("#view", "FIXED")
    page.get_by_role("button", name="Dark", exact=True).click()
    grey = colourful(panel.view("Green"))
    page.click("#apply summary")
    panel.choose("apply_labels", "lungs.seg.nrrd")
    page.locator("#apply").scroll_into_view_if_needed()
    _until_coloured(panel, grey)
    panel.view("ThreeD")
    _save(page, "app_apply")
    page.click("#apply summary")


def take_pairs(panel: Panel) -> None:
    page = panel.page
    page.click("summary >> text=Scans and settings")
    page.select_option("#preset", "fast")
    page.click("summary >> text=Scans and settings")
    page.click("#batch summary")
    panel.choose("batch_list", "study.csv")
    page.click("#start-batch")
    page.wait_for_selector("text=2 of 3 pairs registered, 1 failed.")
    page.locator("#batch tr").last.scroll_into_view_if_needed()
    _save(page, "app_pairs")


def _until_coloured(panel: Panel, grey: float) -> None:
    panel.until(lambda pixels: colourful(pixels) > grey + 0.05, "Green")


def _save(page, name: str) -> None:
    path = PLACE / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)  # in all its colours: a palette would change the maps'
    print(path, path.stat().st_size // 1024, "kB")


if __name__ == "__main__":
    sys.exit(main())
