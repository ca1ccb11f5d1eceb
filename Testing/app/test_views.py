"""What the views show of a result, on small and large screens, and without a mouse."""

from __future__ import annotations

import pytest

VIEWS = {  # and words that explain them
    "CHECKERBOARD": "edges continue",
    "DIFFERENCE": "Grey: equal",
    "ERROR": "within the tolerance",
    "JACOBIAN": "expands",
    "CONSISTENCY": "do not trust the match",
}


def test_the_views_show_what_is_chosen(registered):
    from browser import colourful, difference

    page, apart = registered.page, registered.apart
    page.get_by_role("button", name="Reset views").click()
    page.select_option("#view", "FADE")
    panel = registered
    together = panel.until_changed(apart, "Green")
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
    page.check("#grid")
    page.get_by_text("Cyan: 0 mm").wait_for()
    panel.until(lambda pixels: colourful(pixels) > grey + 0.05, "Green")
    page.uncheck("#grid")
    shown = panel.until(lambda pixels: colourful(pixels) < grey + 0.02, "Green")
    page.check("#outline")
    panel.until(lambda pixels: difference(shown, pixels) > 0.2, "Green")
    page.uncheck("#outline")
    panel.until(lambda pixels: difference(shown, pixels) < 0.1, "Green")


def test_the_other_views_follow_a_slice(registered):
    """They wait for the one that is moved, and then show where it is."""
    panel, page = registered, registered.page
    before = {name: panel.view(name) for name in ("Red", "Green", "ThreeD")}
    page.focus("#slice-Red")
    for _step in range(6):
        page.keyboard.press("ArrowRight")
    for name, pixels in before.items():
        panel.until(lambda now, pixels=pixels: (abs(now - pixels).max(2) > 60).sum() > 100, name)


def test_the_keyboard_is_enough(registered):
    """Focus is visible; a slice is moved, a choice changed, a dialog opened and left without the mouse."""
    panel, page = registered, registered.page
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
    areas = page.locator(".remote-controlled-area")
    assert areas.evaluate_all("areas => areas.map(area => area.tabIndex)") == [-1] * 4
    names = areas.evaluate_all("areas => areas.map(area => area.ariaLabel)")
    assert names == ["Axial view", "Coronal view", "Sagittal view", "3D view"]
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
def test_it_is_readable_on_small_and_large_screens(registered, size, theme):
    page = registered.page
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


def test_two_tabs_show_the_same_each_in_its_size(registered):
    """What one chooses, the other shows; the one that is looked at has the views in its own size; one may be closed."""
    page = registered.page
    page.set_viewport_size({"width": 1280, "height": 720})  # on larger screens pictures are enlarged
    images = "[...document.querySelectorAll('.layout-grid-item img')]"
    fits = f"{images}.every(i => Math.abs(i.naturalHeight - i.parentElement.clientHeight) < 2)"
    page.wait_for_function(fits)
    other = registered.context.new_page()
    other.set_viewport_size({"width": 1000, "height": 700})
    other.goto(page.url)
    other.wait_for_selector(".verdict")
    other.wait_for_function(fits)
    page.wait_for_function(f"!({fits})")
    other.select_option("#view", "CHECKERBOARD")
    page.wait_for_function("document.querySelector('#view').value === 'CHECKERBOARD'")
    page.evaluate("window.dispatchEvent(new Event('focus'))")  # as a browser tells it
    page.wait_for_function(fits)
    other.close()
    page.select_option("#view", "FADE")
    page.get_by_text("edges are single").wait_for()


def test_enlarged_twice_everything_can_be_scrolled_to(registered):
    """A window of 1280 x 720 at 200 % has room for 640 x 360."""
    page = registered.page
    page.set_viewport_size({"width": 640, "height": 360})
    page.wait_for_function("getComputedStyle(document.querySelector('.nephi')).overflow === 'visible'")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector in ("#save", "#view", "#slice-Yellow"):
        page.locator(selector).scroll_into_view_if_needed()
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 360 and box["x"] + box["width"] <= 640
    meaning, views = (page.locator(part).bounding_box() for part in (".meaning", ".views"))
    assert meaning["y"] + meaning["height"] <= views["y"]
    page.set_viewport_size({"width": 1280, "height": 720})


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
