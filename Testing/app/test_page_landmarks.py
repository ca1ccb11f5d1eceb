"""Landmark pairs of a result: looked at, corrected, added."""

from __future__ import annotations


def test_a_landmark_is_jumped_to_and_all_slices_follow(registered):
    page = registered.page
    page.get_by_role("tab", name="Landmarks").click()
    errors = [float(text) for text in page.locator(".table tbody td:last-child").all_inner_texts()]
    assert len(errors) > 20 and errors == sorted(errors, reverse=True) and errors[0] < 10
    assert page.get_by_text("verdict does not count").count() == 0
    before = {name: page.input_value(f"#slice-{name}") for name in ("Red", "Green", "Yellow")}
    page.get_by_role("button", name="Show place 1", exact=True).click()
    for name, value in before.items():
        page.wait_for_function(
            "([name, old]) => document.querySelector(`#slice-${name}`).value !== old", arg=[name, value]
        )


def test_pairs_of_landmarks_are_corrected_and_added(registered):
    """Where the three slices meet: a point is placed there, and its pair's error is another."""
    panel, page = registered, registered.page
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
    page.get_by_text("The verdict does not count the landmarks as they are now").wait_for()
    page.click("#add-pair")
    page.wait_for_function("n => document.querySelectorAll('.table tbody tr').length > n", arg=count)
    assert float(page.inner_text(".table tr.chosen td:last-child")) < 0.1  # where the registration takes it
    page.click("#remove-pair")
    page.wait_for_function("n => document.querySelectorAll('.table tbody tr').length === n", arg=count)
    page.get_by_role("button", name="Show place 1", exact=True).click()
    page.click("#to-result")
    page.wait_for_selector("#to-result", state="detached")
