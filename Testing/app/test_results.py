"""A result applied to something else, signed, saved, reported and compared with another."""

from __future__ import annotations

import json
import zipfile

import numpy as np


def test_regions_are_listed_by_name_with_ventilation_and_how_well_they_meet(registered):
    page = registered.page
    page.get_by_role("tab", name="Regions").click()
    panel = page.get_by_role("tabpanel", name="Regions")
    rows: dict[str, dict[str, str]] = {}
    for table in panel.locator("table").all():
        titles = table.locator("th").all_inner_texts()
        for tr in table.locator("tbody tr").all():
            name, *cells = tr.locator("td").all_inner_texts()
            rows.setdefault(name, {}).update(zip(titles[1:], cells, strict=True))
    assert list(rows) == ["Right half", "Left half"]
    for row in rows.values():
        assert len(row) == 8 and float(row["Dice"]) > 0.9 and float(row["Change (%)"]) > 0
        assert float(row["Ventilation by density (%)"]) > 0
    assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth"), "the table scrolls sideways"
    page.get_by_role("tab", name="Numbers").click()


def test_a_result_is_applied_to_something_else_both_ways(folder, tmp_path, registered):
    """Labels and landmarks come to where the phantom says, a scan is seen, a file that is none is told in one line."""
    from browser import colourful
    from nephi.files.landmarks import read_landmarks

    panel, page = registered, registered.page
    before = panel.view("Green")
    page.click("#apply summary")
    panel.choose("apply_scan", "scans/", "moving.nii.gz")
    scan = page.get_by_label("moving on fixed", exact=True)
    assert scan.is_checked()
    scan.uncheck()
    panel.browse("apply_points")
    page.get_by_role("button", name="quick.json", exact=True).click()
    page.locator("dialog [role=alert]").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    panel.choose("apply_points", "scans/", "moving.csv")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download moving on fixed_1", exact=True).click()
    download.value.save_as(tmp_path / "points.csv")
    points, truth = read_landmarks(tmp_path / "points.csv"), read_landmarks(folder / "scans" / "fixed.csv")
    apart = read_landmarks(folder / "scans" / "moving.csv") - truth
    assert np.linalg.norm(points - truth, axis=1).mean() < 0.5 * np.linalg.norm(apart, axis=1).mean()
    page.select_option("#apply-to", "moving")
    panel.choose("apply_labels", "scans/", "halves.seg.nrrd")
    panel.until(lambda pixels: colourful(pixels) > colourful(before) + 0.05, "Green")
    page.get_by_role("button", name="Save halves on moving", exact=True).click()
    page.click("#save-here")
    page.wait_for_selector("dialog", state="detached")
    assert (folder / "scans" / "halves on moving.seg.nrrd").is_file()
    page.get_by_role("button", name="Remove moving on fixed", exact=True).click()
    page.get_by_label("moving on fixed", exact=True).wait_for(state="detached")
    page.get_by_label("halves on moving", exact=True).uncheck()
    page.click("#apply summary")
    panel.until(lambda pixels: colourful(pixels) < colourful(before) + 0.02, "Green")


def test_a_result_is_saved_downloaded_and_reported(folder, tmp_path, registered):
    page = registered.page
    page.click("#accept")
    page.get_by_text("Enter your name first").wait_for()
    page.fill("#reviewer", "Dr. Müller")
    page.fill("#review-comment", "bases checked")
    page.dblclick("#accept")  # counts once
    page.get_by_text("bases checked").wait_for()
    page.get_by_role("tab", name="Landmarks").click()
    page.click("#add-pair")
    page.click("#to-result")
    page.click("#save")
    page.fill("#save-name", "../away")
    page.click("#save-here")
    assert "special characters" in page.locator("dialog [role=alert]").inner_text()
    page.fill("#save-name", "result")
    page.click("#save-here")
    page.wait_for_selector("dialog", state="detached")
    assert page.locator(".message").bounding_box()["y"] >= 0  # wherever the panel is scrolled to
    place = folder / page.inner_text(".message").split("Saved in ")[1].split("\n")[0].rstrip(". ✕")
    names = {file.name for file in place.iterdir()}
    assert {"fixed_landmarks.csv", "moving_landmarks.csv"} <= names  # as they were corrected
    applied = {file.name for file in (place / "applied").iterdir()}
    assert applied == {"halves on moving.seg.nrrd", "moving on fixed_1.csv"}
    assert names >= {"transform.h5", "inverse_transform.h5", "warped.nii.gz", "jacobian.nii.gz", "report.json"}
    (signed,) = json.loads((place / "review.json").read_text(encoding="utf-8"))["reviews"]
    assert (signed["verdict"], signed["name"], signed["comment"]) == ("accepted", "Dr. Müller", "bases checked")
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    assert report["tre_mm"]["after"]["mean"] < report["tre_mm"]["before"]["mean"]
    with page.expect_download() as download:
        page.click("#download")
    archive = tmp_path / "result.zip"
    download.value.save_as(archive)
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None and set(packed.namelist()) >= names - {"report.html", "applied"}
    with page.context.expect_page() as opened:
        page.click("#report")
    opened.value.wait_for_load_state()
    assert report["verdict"]["outcome"] in opened.value.inner_text("body")
    opened.value.close()


def test_a_second_result_with_settings_of_ones_own_is_compared_with_the_first(app, registered):
    panel, page = registered, registered.page
    page.click("summary >> text=Scans and settings")
    page.select_option("#preset", "file")
    panel.choose("settings_file", "scans/", "quick.json")
    page.click("#own-presets summary")
    page.fill("#own-preset", "Quick look")
    page.click("#save-preset")
    page.wait_for_function("document.querySelector('#preset').value === 'own/Quick look'")
    assert [file.name for file in app.settings.rglob("*.json")] == ["Quick look.json"]
    page.click("#register")
    page.wait_for_function("document.querySelectorAll('#result option').length === 2")
    page.get_by_role("tab", name="Compare").click()
    rows = {row[0]: row[1:] for row in (text.split("\t") for text in page.locator(".table tbody tr").all_inner_texts())}
    first, second = map(float, rows["TRE (mm)"])
    assert first != second and len(rows["Verdict"]) == 2
    page.select_option("#view", "DISPLACEMENT")
    chosen, shown = page.input_value("#result"), panel.view("Green")
    page.click("#other-result")
    page.wait_for_function("old => document.querySelector('#result').value !== old", arg=chosen)
    other = panel.until_changed(shown, "Green")
    assert page.input_value("#view") == "DISPLACEMENT"
    page.click("#other-result")
    panel.until_changed(other, "Green")
    assert page.input_value("#result") == chosen
    page.click("#other-result")
    page.select_option("#view", "FADE")


def test_a_choice_counts_for_what_is_pressed_right_after_it(app, registered, tmp_path):
    """Also while a call is under way, until whose answer the page's library keeps choices back."""
    page = registered.page
    page.click("summary >> text=Scans and settings")
    page.evaluate("trame.client.beginBusy()")
    page.select_option("#preset", "accurate")
    page.fill("#own-preset", "Slow look")
    page.click("#save-preset")
    page.wait_for_function("document.querySelector('#preset').value === 'own/Slow look'")
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in app.settings.rglob("Slow look.json")]
    assert [settings["preset"] for settings in kept] == ["accurate"]
    former = page.input_value("#result")
    page.select_option("#result", index=1)
    assert page.input_value("#result") != former
    with page.expect_download() as download:
        page.click("#download")
    page.evaluate("trame.client.endBusy()")
    download.value.save_as(archive := tmp_path / "second.zip")
    with zipfile.ZipFile(archive) as packed:
        assert json.loads(packed.read("report.json"))["settings"]["fit"]["iterations"] == 20


def test_what_is_not_saved_is_not_lost_without_a_question(registered):
    page = registered.page
    registered.browse("fixed")
    page.locator("dialog .path button").first.click()
    page.get_by_role("button", name="dicom/", exact=True).click()
    registered.wait_for_folder("dicom")
    page.get_by_role("button", name="Open this folder (DICOM)").click()
    page.get_by_text("discards the result that has not been saved").wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.wait_for_selector("dialog", state="detached")
    assert page.text_content("output >> nth=0") == "fixed.nii.gz" and page.locator("#result option").count() == 2
