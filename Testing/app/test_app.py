"""The browser application as its users have it: the real command, real runs, a real browser."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

VIEWS = {  # and words that explain them
    "CHECKERBOARD": "edges continue",
    "DIFFERENCE": "Grey: equal",
    "ERROR": "within the tolerance",
    "JACOBIAN": "expands",
    "CONSISTENCY": "map it to the moving volume and back",
}


def answer(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as reply:
            return reply.status, reply.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@pytest.fixture(scope="module")
def panel(app, browser):
    """The first user's page; the tests go on where the last one stopped."""
    from browser import Panel

    context = browser.context()
    yield Panel(context, app.address)
    context.close()


def test_a_stranger_gets_nothing(app, browser, panel):
    session = panel.page.url
    for url in (app.origin, f"{app.origin}/?token=wrong", session, session.replace("index.html", "report.html")):
        status, text = answer(url)
        assert status == 403 and "token" in text, url
    for name in ("evil.example", "127.0.0.1.evil.example"):
        assert answer(app.address, Host=name)[0] == 403  # a page elsewhere whose name leads here
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MTIzNDU2Nzg5MDEyMzQ1Ng==",
    }
    websocket = session.replace("index.html", "ws")
    assert answer(websocket, **upgrade)[0] == 403
    cookie = "; ".join(f"{c['name']}={c['value']}" for c in panel.page.context.cookies())
    assert answer(websocket, **upgrade, Cookie=cookie, Origin="http://evil.example")[0] == 403
    assert answer(session, Cookie=cookie)[0] == 200
    cookies = panel.page.context.cookies()
    assert all(c["httpOnly"] and c["sameSite"] == "Lax" for c in cookies) and cookies


def test_bad_input_is_told_in_one_line_and_nothing_outside_is_reached(panel):
    page = panel.page
    assert page.locator("#register").is_disabled() and "Choose the fixed" in page.inner_text(".hint")
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
        assert "does not exist in the folder" in told.inner_text(), path
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.inner_text("output >> nth=0") == "none"


def test_a_dicom_folder_is_a_scan(panel):
    from browser import THIS_FOLDER

    page = panel.page
    panel.choose("fixed", "dicom/", THIS_FOLDER)
    assert page.inner_text("output >> nth=0") == "dicom"
    panel.until(lambda pixels: pixels.std() > 20)
    page.click("#choose-fixed")
    page.locator(".path button").first.click()
    page.wait_for_selector("dialog .folder")
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


def test_cancelling_ends_the_engine_and_changes_nothing(app, panel):
    page = panel.page
    panel.open_pair()
    page.wait_for_function("document.querySelectorAll('#device option').length > 1")  # a process has told them
    before, processes = panel.until(lambda pixels: pixels.std() > 20, "Green"), set(app.processes())
    page.select_option("#preset", "accurate")
    page.wait_for_selector("#register:enabled")
    page.click("#register")
    page.wait_for_function("document.querySelector('.running progress')?.value > 1")
    assert set(app.processes()) > processes
    page.click("#cancel")
    page.wait_for_selector(".running", state="detached")
    assert "cancelled" in page.inner_text(".message")
    assert page.locator("#register").is_enabled() and page.locator(".verdict").count() == 0
    end = time.monotonic() + 30
    while set(app.processes()) - processes and time.monotonic() < end:
        time.sleep(0.2)
    assert not set(app.processes()) - processes
    panel.until(lambda pixels: np.abs(pixels - before).mean() < 0.5, "Green")


def test_a_registration_survives_a_closed_tab_and_is_seen_in_the_views(app, browser, panel):
    from browser import colourful, difference

    page = panel.page
    panel.open_pair()
    page.click("text=Landmarks, regions")
    for name in ("fixed", "moving"):
        panel.choose(f"{name}_landmarks", "scans/", f"{name}.csv")
    apart = panel.until(lambda pixels: pixels.std() > 20, "Green")
    panel.register()
    page.wait_for_selector("text=/about .* left/")
    session = page.url
    page.close()
    panel.open()  # leads to the session that this browser has
    page = panel.page
    assert page.url == session
    panel.finish()
    page.wait_for_function("document.querySelectorAll('#view option').length > 5")
    together = panel.until_changed(apart, "Green")
    assert page.inner_text(".verdict strong") in ("PASS", "CHECK")
    assert "TRE" in page.inner_text(".lines") and "mm" in page.inner_text(".table")
    shown, grey = together, colourful(together)
    for name, words in VIEWS.items():
        page.select_option("#view", name)
        page.get_by_text(words).wait_for()
        in_colour = name not in ("CHECKERBOARD", "DIFFERENCE")

        def as_it_should(pixels, was=shown, in_colour=in_colour) -> bool:
            return difference(was, pixels) > 0.5 and (colourful(pixels) > grey + 0.05) is in_colour

        shown = panel.until(as_it_should, "Green")
    page.select_option("#view", "FADE")
    shown = panel.until_changed(shown, "Green")
    page.check("#before")
    before = panel.until_changed(shown, "Green")
    assert difference(before, apart) < difference(together, apart)
    page.uncheck("#before")
    shown = panel.until_changed(before, "Green")
    page.select_option("#window", "custom")
    assert (page.input_value("#level"), page.input_value("#width")) == ("-350", "1300")
    page.fill("#level", "2000")
    panel.until(lambda pixels: pixels.mean() < 0.6 * shown.mean(), "Green")
    page.select_option("#window", "wide")
    shown = panel.until(lambda pixels: difference(shown, pixels) < 1, "Green")
    page.check("#grid")
    page.get_by_text("Cyan: 0 mm").wait_for()
    panel.until(lambda pixels: colourful(pixels) > grey + 0.05, "Green")
    page.uncheck("#grid")
    assert not panel.errors


def test_a_landmark_is_jumped_to_and_all_slices_follow(app, browser, panel):
    page = panel.page
    page.get_by_role("tab", name="Landmarks").click()
    errors = [float(text) for text in page.locator(".table tbody td:last-child").all_inner_texts()]
    assert len(errors) > 20 and errors == sorted(errors, reverse=True) and errors[0] < 10
    before = {name: page.input_value(f"#slice-{name}") for name in ("Red", "Green", "Yellow")}
    page.get_by_role("button", name="Show place 1", exact=True).click()
    for name, value in before.items():
        page.wait_for_function(
            "([name, old]) => document.querySelector(`#slice-${name}`).value !== old", arg=[name, value]
        )


def test_pairs_of_landmarks_are_corrected_and_added(panel):
    """Where the three slices meet: a point is placed there, and its pair's error is another."""
    page = panel.page
    fixed = panel.view("Red")
    page.get_by_role("button", name="Show moving point 1", exact=True).click()
    page.get_by_text("The moving scan with the moving point").wait_for()
    panel.until_changed(fixed, "Red")
    count = page.locator(".table tbody tr").count()
    error = page.inner_text(".table tr.chosen td:last-child")
    for _step in range(4):  # of 5 mm
        page.focus("#slice-Red")
        page.keyboard.press("ArrowRight")
    page.click("#place-point")
    page.wait_for_function(
        "old => document.querySelector('.table tr.chosen td:last-child').innerText !== old", arg=error
    )
    assert float(page.inner_text(".table tr.chosen td:last-child")) > float(error) + 5
    page.click("#add-pair")
    page.wait_for_function("n => document.querySelectorAll('.table tbody tr').length > n", arg=count)
    assert float(page.inner_text(".table tr.chosen td:last-child")) < 0.1  # where the registration takes it
    page.click("#remove-pair")
    page.wait_for_function("n => document.querySelectorAll('.table tbody tr').length === n", arg=count)
    page.get_by_role("button", name="Show place 1", exact=True).click()
    page.click("#to-result")
    page.wait_for_selector("#to-result", state="detached")


def test_a_result_is_applied_to_something_else_both_ways(folder, tmp_path, panel):
    """Labels and landmarks come to where the phantom says, a scan is seen, a file that is none is told in one line."""
    from browser import colourful
    from nephi.files.landmarks import read_landmarks

    page = panel.page
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
    assert not panel.errors


def test_a_result_is_saved_downloaded_and_reported(app, browser, folder, tmp_path, panel):
    page = panel.page
    page.click("#accept")
    page.get_by_text("Enter your name first").wait_for()
    page.fill("#reviewer", "Dr. Müller")
    page.fill("#review-comment", "bases checked")
    page.click("#accept")
    page.get_by_text("bases checked").wait_for()
    page.click("#save")
    page.fill("#save-name", "../away")
    page.click("#save-here")
    assert "special characters" in page.locator("dialog [role=alert]").inner_text()
    page.fill("#save-name", "result")
    page.click("#save-here")
    page.wait_for_selector("dialog", state="detached")
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


def test_a_second_result_with_settings_of_ones_own_is_compared_with_the_first(app, panel):
    page = panel.page
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
    assert not panel.errors


def test_a_choice_counts_for_what_is_pressed_right_after_it(app, panel, tmp_path):
    """Also while a call is under way, until whose answer the page's library keeps choices back."""
    page = panel.page
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
    assert not panel.errors


def test_a_list_of_pairs_is_stopped_gone_on_with_and_a_result_opened(app, folder, panel):
    """A pair that fails says why; a list that names a file elsewhere is refused."""
    page = panel.page
    page.click("#batch summary")
    panel.browse("batch_list")
    page.locator("dialog .path button").first.click()
    page.get_by_role("button", name="scans/", exact=True).click()
    page.get_by_role("button", name="pairs away.csv").click()
    page.locator("dialog [role=alert]", has_text="away.nii.gz does not lie in the folder").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    panel.choose("batch_list", "scans/", "list/", "pairs.csv")
    assert page.input_value("#batch-folder") == "pairs results"
    page.select_option("#preset", "file")
    panel.choose("settings_file", "scans/", "endless.json")
    (folder / "scans" / "list" / "linked").symlink_to(folder.parent)
    page.fill("#batch-folder", "linked")
    page.click("#start-batch")
    page.locator(".message.error", has_text="leads out of the folder").wait_for()
    page.fill("#batch-folder", "pairs results")
    page.click("#start-batch")
    page.wait_for_selector("#batch td:has-text('running')")
    assert page.locator("#register").is_disabled()
    page.click("#stop-batch")
    page.wait_for_selector("#batch td:has-text('stopped')")
    assert "the next start goes on" in page.inner_text("#batch [role=status]")
    page.select_option("#preset", "own/Quick look")
    page.click("#start-batch")
    page.wait_for_selector("text=1 of 2 pairs registered, 1 failed.")
    assert "damaged.nii.gz" in page.inner_text("#batch .why") and str(folder) not in page.inner_text("#batch .why")
    assert page.locator("#batch tr:has-text('whole')").inner_text().split("\t")[2] in ("PASS", "CHECK", "FAIL")
    results = page.locator("#result option").count()
    page.get_by_role("button", name="Open whole", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Open").click()
    page.wait_for_function("document.querySelectorAll('#result option').length === 0")
    assert results == 2
    page.wait_for_selector(".verdict")
    assert page.text_content("output >> nth=0") == "fixed.nii.gz"
    page.get_by_role("tab", name="Landmarks (").wait_for()
    page.wait_for_selector("#report")
    assert not panel.errors


def test_the_keyboard_is_enough(app, browser, panel):
    """Focus is visible; a slice is moved, a choice changed, a dialog opened and left without the mouse."""
    page = panel.page
    before = panel.view("Red")
    reached = []
    page.get_by_role("tab", name="Numbers").click()
    page.focus(".skip")
    for _step in range(90):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        if reached[-1] == "slice-Red":
            break
        page.keyboard.press("Tab")
    assert {"save", "download", "report", "view", "slice-Red"} <= set(reached), reached
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style != "none"
    page.focus(".skip")  # past a long table
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.closest('.toolbar')")
    page.focus("#slice-Red")
    for _step in range(3):
        page.keyboard.press("ArrowRight")
    panel.until_changed(before, "Red")
    page.focus("#save")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("document.activeElement.id") == "save"


@pytest.mark.parametrize("size", [(1280, 720), (3840, 2160)])
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_it_is_readable_on_small_and_large_screens(app, browser, panel, size, theme):
    page = panel.page
    page.set_viewport_size({"width": size[0], "height": size[1]})
    if page.get_attribute(".nephi", "data-theme") != theme:
        page.get_by_role("button", name="Light" if theme == "light" else "Dark", exact=True).click()
        page.wait_for_selector(f".nephi[data-theme={theme}]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for view in page.locator(".layout-grid-item").all():
        box = view.bounding_box()
        assert box["width"] > 0.25 * size[0] and box["height"] > 0.3 * size[1]
    assert contrast(page, ".verdict p") > 4.5 and contrast(page, ".verdict strong") > 4.5
    assert contrast(page, ".panel .hint, .lines li") > 4.5
    if size[0] > 2000:
        height = page.locator("#save").bounding_box()["height"]
        assert height > 36  # larger, as such screens are


def contrast(page, selector: str) -> float:
    """WCAG contrast of an element's text with what lies behind it."""
    from NePhiRegistrationLib.theme import contrast

    colors = page.evaluate(
        """selector => {
            const element = document.querySelector(selector);
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }""",
        selector,
    )
    rgb = [tuple(int(part) / 255 for part in text.split("(")[1].rstrip(")").split(",")[:3]) for text in colors]
    return contrast(*rgb)


def test_two_users_have_nothing_in_common(app, browser, panel):
    from browser import Panel

    context = browser.context()
    second = Panel(context, app.address)
    assert second.page.url != panel.page.url
    assert second.page.inner_text("output >> nth=0") == "none" and second.page.locator(".verdict").count() == 0
    second.choose("fixed", "scans/", "moving.nii.gz")
    assert panel.page.locator(".verdict").count() == 1
    second.page.goto(panel.page.url)  # of another's session: to one's own
    second.page.wait_for_selector("#phantom")
    assert second.page.url != panel.page.url
    second.page.get_by_role("button", name="End", exact=True).click()
    second.page.get_by_role("dialog").get_by_role("button", name="End").click()
    second.page.wait_for_selector("text=This session has ended")
    context.close()
    panel.page.reload()
    panel.page.wait_for_selector(".verdict")


def test_nothing_stays_behind(app, panel):
    """After Ctrl-C: no process, no temporary file, no half-written folder."""
    processes = {pid: Path(f"/proc/{pid}/cmdline") for pid in app.processes()}
    assert processes and any(app.temporary.iterdir())
    assert app.end() == 0
    assert not any(app.temporary.iterdir())
    end = time.monotonic() + 30  # a question for the devices may be under way
    while left := [path for path in processes.values() if path.exists()]:
        assert time.monotonic() < end, [path.read_text(encoding="utf-8") for path in left]
        time.sleep(0.2)
