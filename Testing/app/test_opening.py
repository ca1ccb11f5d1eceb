"""What is opened: scans, DICOM series, and what is neither."""

from __future__ import annotations


def test_bad_input_is_told_in_one_line_and_nothing_outside_is_reached(panel):
    page = panel.page
    assert page.locator("#register").is_disabled()
    page.get_by_text("Choose the fixed").wait_for()
    panel.browse("fixed")
    names = page.locator(".listing button").all_inner_texts()
    assert names == ["dicom/", "scans/", "visit/", "damaged.nii.gz"]  # no links that lead out
    page.get_by_role("button", name="damaged.nii.gz").click()
    told = page.locator("dialog [role=alert]")
    told.wait_for()
    assert "damaged.nii.gz" in told.inner_text() and len(told.inner_text().splitlines()) == 1
    assert "/damaged.nii.gz" not in told.inner_text()  # named from the served folder on
    for path in ("../outside0/secret.nii.gz", "/etc/passwd", "away.nii.gz", "scans/../../x"):
        before = told.inner_text()
        page.evaluate("path => window.trame.trigger('choose', [path])", path)
        page.wait_for_function("text => document.querySelector('dialog [role=alert]').innerText !== text", arg=before)
        assert "does not exist in the served folder" in told.inner_text(), path
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.inner_text("output >> nth=0") == "none"


def test_a_dicom_folder_is_a_scan(panel):
    from browser import THIS_FOLDER

    page = panel.page
    panel.browse("fixed")
    page.get_by_role("button", name="dicom/", exact=True).click()
    page.get_by_text("If these are the files of a DICOM series, open the folder.").wait_for()
    page.keyboard.press("Escape")
    panel.choose("fixed", "dicom/", THIS_FOLDER)
    assert page.inner_text("output >> nth=0") == "dicom"
    panel.until(lambda pixels: pixels.std() > 20)
    page.click("#choose-fixed")
    page.wait_for_selector("dialog .folder >> text=dicom/")  # beside the series, not among its files
    page.keyboard.press("Escape")


def test_a_series_is_chosen_where_a_folder_holds_several(panel):
    page = panel.page
    panel.browse("moving")
    page.locator("dialog .path button").first.click()
    page.get_by_role("button", name="visit/").click()
    panel.wait_for_folder("visit/")
    page.get_by_role("button", name="Open this folder").click()
    one = page.get_by_role("button", name="Thorax 2.0, 36 images")
    one.wait_for()
    assert len(page.get_by_label("Series").get_by_role("button").all()) == 2
    one.click()
    page.wait_for_selector("dialog", state="detached")
    assert page.inner_text("output >> nth=1") == "visit, Thorax 2.0"


def test_level_and_width_are_chosen_by_name_by_hand_and_on_the_histogram(panel):
    page = panel.page
    panel.choose("fixed", "scans/", "fixed.nii.gz")
    shown = panel.until(lambda pixels: pixels.std() > 20)
    page.click("#levels summary")
    assert (page.input_value("#level"), page.input_value("#width")) == ("-350", "1300")
    outline = page.get_attribute(".histogram polygon", "points").split()
    heights = [100 - float(point.split(",")[1]) for point in outline]
    assert len(outline) > 100 and max(heights) == 100 and min(heights) == 0
    page.fill("#level", "2000")
    panel.until(lambda pixels: pixels.mean() < 0.6 * shown.mean(), "Red")
    assert page.input_value("#window") == "custom"
    page.select_option("#window", "lung")
    page.wait_for_function("document.querySelector('#level').value === '-600'")
    lungs = panel.until(lambda pixels: pixels.mean() > shown.mean(), "Red")
    page.get_by_label("Level, on the histogram").hover(position={"x": 20, "y": 20})
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("Number(document.querySelector('#level').value) < -800")
    panel.until_changed(lungs, "Red")
    page.mouse.wheel(0, -300)
    page.wait_for_function("Number(document.querySelector('#width').value) < 1500")
    page.keyboard.press("Escape")
    page.select_option("#window", "wide")
    panel.until(lambda pixels: abs(pixels.mean() - shown.mean()) < 1, "Red")


def test_files_are_looked_for_and_opened_while_the_views_are_being_started(app, browser):
    from browser import Panel

    early = Panel(browser.context(), app.address)  # goes on as soon as the page is there
    early.choose("fixed", "scans/", "fixed.nii.gz")
    early.until(lambda pixels: pixels.std() > 20)
    assert not early.errors
    early.end()
