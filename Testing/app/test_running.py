"""A registration under way: cancelled, and looked at again after its tab was closed."""

from __future__ import annotations

import time

import numpy as np


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
    assert page.evaluate("document.activeElement.matches('.running')")  # Register cannot keep the focus
    page.click("#cancel")
    page.wait_for_selector(".running", state="detached")
    assert "cancelled" in page.inner_text(".message")
    assert page.locator("#register").is_enabled() and page.locator(".verdict").count() == 0
    end = time.monotonic() + 30
    while set(app.processes()) - processes and time.monotonic() < end:
        time.sleep(0.2)
    assert not set(app.processes()) - processes
    panel.until(lambda pixels: np.abs(pixels - before).mean() < 0.5, "Green")


def test_a_registration_survives_a_closed_tab(registered):
    before, after = registered.sessions
    assert before == after and registered.page.inner_text(".verdict strong") in ("PASS", "CHECK")
    assert "TRE" in registered.page.inner_text(".lines")
