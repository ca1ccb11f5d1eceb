"""What is known beyond the images, and the DICOM objects of the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_what_is_known_beyond_the_images_takes_part(app, browser, folder):
    """Segments as masks, guidance, a settings file and a model are what the engine is given."""
    from browser import Panel

    panel = Panel(browser.context(), f"{app.address}&new=1")
    page = panel.page
    panel.open_pair(dicom=True)
    panel.choose("fixed_mask", "scans/", "halves.seg.nrrd")
    assert page.locator("#segment-fixed_mask option").all_inner_texts() == ["All segments", "Right half", "Left half"]
    panel.choose("fixed_mask", "scans/", "labels.nii.gz")
    assert len(page.locator("#segment-fixed_mask option").all()) == 4
    page.click("#guidance summary")
    for side in ("fixed", "moving"):
        panel.choose(f"{side}_guide_points", "scans/", f"{side}.csv")
    page.fill("#guide-sd", "2.5")
    panel.choose("rigid", "scans/", "halves.seg.nrrd")
    page.select_option("#segment-rigid", "half0")
    panel.choose("fixed_excluded", "scans/", "labels.nii.gz")
    page.select_option("#segment-fixed_excluded", label="label 3")
    page.select_option("#model", "file")
    page.wait_for_function("document.querySelector('.panel .hint[role=status]').innerText.includes('model file')")
    page.select_option("#model", "")
    page.select_option("#preset", "file")
    page.get_by_text("Choose a settings file").wait_for()
    panel.choose("settings_file", "scans/", "quick.json")
    page.click("text=Landmarks, regions")
    panel.choose("initial_transform", "scans/", "shift.tfm")
    page.wait_for_selector("#register:enabled")
    page.click("#register")
    panel.finish()
    page.click("#apply summary")
    page.select_option("#apply-to", "moving")
    panel.choose("apply_labels", "scans/", "organs.dcm")
    page.check("#with-dicom")
    page.click("#save")
    page.fill("#save-name", "guided")
    page.click("#save-here")
    page.wait_for_selector("dialog", state="detached")
    (place,) = folder.rglob("guided")
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    _check_dicom_objects(place / "dicom", folder)
    assert report["settings"]["fit"]["iterations"] == 20
    assert report["settings"]["guidance"]["landmarks_sd_mm"] == 2.5
    assert report["alignment"]["offset_mm"] == pytest.approx([1, 2, 3])
    assert set(report["guidance"]) >= {"landmarks", "rigid", "excluded"}
    page.get_by_role("button", name="End", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="End").click()
    page.wait_for_selector("text=This session has ended")
    panel.context.close()
    assert not panel.errors


def _check_dicom_objects(place: Path, folder: Path) -> None:
    """They refer to the series that were opened, and hold the warped scan and segments."""
    import pydicom
    from nephi.files.image import read_volume

    assert {file.name for file in place.iterdir()} == {
        "organs on moving.dcm", "registration.dcm", "registration_inverse.dcm", "warped"
    }  # fmt: skip
    read = {file.stem: pydicom.dcmread(file) for file in place.glob("*.dcm")}
    assert read["registration"].ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    assert read["organs on moving"].ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.4"
    names = [segment.SegmentLabel for segment in read["organs on moving"].SegmentSequence]
    assert names == ["Target", "Margin"]
    assert read_volume(place / "warped", "warped").GetSize() == (64, 56, 56)
