"""A served folder with a small pair, the command that serves it, and a browser; skipped where there are none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

_CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_modifyitems(items):
    missing = [name for name in ("trame_slicer", "playwright") if find_spec(name) is None]
    missing += [] if _CHROMIUM.exists() else [str(_CHROMIUM)]
    if missing:
        skip = pytest.mark.skip(reason=f"{', '.join(missing)} not installed: see docs/app.md for this environment")
        for item in items:
            if item.path.parent == Path(__file__).parent and "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A served folder, as ``write_served`` says."""
    from served import write_served

    root = tmp_path_factory.mktemp("served")
    write_served(root, tmp_path_factory.mktemp("outside"))
    return root


@pytest.fixture(scope="session")
def app(folder, tmp_path_factory):
    from browser import App

    running = App(folder, tmp_path_factory.mktemp("temporary"))
    yield running
    running.end()


@pytest.fixture(scope="session")
def browser():
    from browser import Browser

    chromium = Browser()
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def panel(app, browser):
    """A page of its own for the tests of a file, which go on where the last one stopped."""
    from browser import Panel

    made = Panel(browser.context(), app.address)
    yield made
    assert not made.errors
    made.end()


@pytest.fixture(scope="session")
def registered(app, browser):
    """A page with a result and landmarks, whose tab was closed while it ran; tests leave the result as it is.

    ``apart``: pixels before, ``sessions``: the address when it was closed and when it was opened again.
    """
    from browser import Panel

    made = Panel(browser.context(), app.address)
    made.open_pair()
    made.page.click("text=Landmarks, regions")
    for name in ("fixed", "moving"):
        made.choose(f"{name}_landmarks", "scans/", f"{name}.csv")
    made.choose("regions", "scans/", "halves.seg.nrrd")
    made.choose("moving_regions", "scans/", "moving_halves.seg.nrrd")
    made.apart = made.until(lambda pixels: pixels.std() > 20, "Green")
    made.register()
    made.page.wait_for_selector("text=/about .* left/")
    before = made.page.url
    made.page.close()
    made.open()
    made.sessions = before, made.page.url
    made.finish()
    yield made
    assert not made.errors
    made.end()
