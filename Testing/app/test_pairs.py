"""A list of pairs: stopped, gone on with, a result opened."""

from __future__ import annotations


def test_a_list_of_pairs_is_stopped_gone_on_with_and_a_result_opened(app, folder, panel):
    """A pair that fails says why; a list that names a file elsewhere is refused."""
    page = panel.page
    page.click("#batch summary")
    panel.browse("batch_list")
    page.locator("dialog .path button").first.click()
    page.get_by_role("button", name="scans/", exact=True).click()
    page.get_by_role("button", name="pairs away.csv").click()
    page.locator("dialog [role=alert]", has_text="away.nii.gz is not in the served folder").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    panel.choose("batch_list", "scans/", "list/", "pairs.csv")
    assert page.input_value("#batch-folder") == "pairs results"
    page.select_option("#preset", "file")
    panel.choose("settings_file", "scans/", "endless.json")
    (folder / "scans" / "list" / "linked").symlink_to(folder.parent)
    page.fill("#batch-folder", "linked")
    page.click("#start-batch")
    page.locator(".message.error", has_text="leads out of the served folder").wait_for()
    page.fill("#batch-folder", "pairs results")
    page.click("#start-batch")
    page.wait_for_selector("#batch td:has-text('running')")
    assert page.locator("#register").is_disabled()
    page.click("#stop-batch")
    page.wait_for_selector("#batch td:has-text('stopped')")
    assert "the next start resumes" in page.inner_text("#batch [role=status]")
    panel.choose("settings_file", "scans/", "quick.json")
    page.click("#start-batch")
    page.wait_for_selector("text=1 of 2 pairs registered, 1 failed.")
    assert "damaged.nii.gz" in page.inner_text("#batch .why") and str(folder) not in page.inner_text("#batch .why")
    assert page.locator("#batch tr:has-text('whole')").inner_text().split("\t")[2] in ("PASS", "CHECK", "FAIL")
    page.get_by_role("button", name="Open whole", exact=True).click()
    page.wait_for_selector(".verdict")
    assert page.text_content("output >> nth=0") == "fixed.nii.gz"
    page.get_by_role("tab", name="Landmarks (").wait_for()
    page.wait_for_selector("#report")
