"""``nephi app`` as a process and its page in a headless Chromium: what tests, pictures and figures share."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import BrowserContext, sync_playwright

CHROMIUM = "/usr/bin/chromium"
THIS_FOLDER = "Open this folder (DICOM)"
PATIENCE_MS = 240_000  # on a busy machine
CORE = Path(__file__).parents[2] / "NePhiRegistration"


class App:
    """The command, serving a folder; its temporary files go into ``temporary``."""

    def __init__(self, folder: Path, temporary: Path, *options: str):
        self.temporary, self.log = temporary, temporary.with_suffix(".log")
        self.settings = temporary.with_suffix(".settings")  # of the user
        environment = {**os.environ, "TMPDIR": str(temporary), "XDG_CONFIG_HOME": str(self.settings)}
        environment |= {"PYTHONPATH": str(CORE), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nephi", "app", "--no-browser", "--port", "0", *options, str(folder)],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://\S+", line):
                self.address = found[0]
                break
        self.origin, self.token = self.address.split("/?token=")

    def end(self) -> int:
        """As Ctrl-C ends it; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def processes(self) -> list[int]:
        """All processes that it started, and those that they started."""
        found = [self.process.pid]
        for parent in found:
            found += [int(pid) for pid in _children(parent)]
        return found[1:]


def _children(pid: int) -> list[str]:
    children = Path(f"/proc/{pid}/task")
    try:
        return [c for task in children.iterdir() for c in (task / "children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


class Browser:
    """Chromium; ``context()`` is a browser of somebody else, with cookies of its own."""

    def __init__(self):
        self._playwright = sync_playwright().start()
        self._chromium = self._playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

    def context(self, size: tuple[int, int] = (1280, 720), **options):
        context = self._chromium.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(PATIENCE_MS)
        return context

    def close(self) -> None:
        self._chromium.close()
        self._playwright.stop()


class Panel:
    """What a user does on the page."""

    def __init__(self, context: BrowserContext, address: str):
        self.context, self.address, self.errors = context, address, []
        self.open()

    def open(self) -> None:
        """The address in a new tab."""
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(self.address)
        self.page.wait_for_selector("#phantom")

    def end(self) -> None:
        """The session, as a user ends it."""
        self.page.get_by_role("button", name="End", exact=True).click()
        self.page.get_by_role("dialog").get_by_role("button", name="End").click()
        self.page.wait_for_selector("text=This session has ended")
        self.context.close()

    def browse(self, role: str) -> None:
        self.page.click(f"#choose-{role}")
        self.page.wait_for_selector("dialog[open] .path button")

    def choose(self, role: str, *path: str) -> None:
        """Through the dialog, folder by folder from the one that is served; it opens where it was last."""
        self.browse(role)
        self.page.locator("dialog .path button").first.click()
        for part in path:
            self.page.get_by_role("button", name=part, exact=True).click()
            if part.endswith("/"):
                self.wait_for_folder(part)
        self.page.wait_for_selector("dialog", state="detached")

    def wait_for_folder(self, folder: str) -> None:
        """Until the dialog lists this folder: what is pressed before that is pressed in the former one."""
        self.page.locator("dialog .path button").get_by_text(folder.rstrip("/"), exact=True).wait_for()

    def open_pair(self, dicom: bool = False) -> None:
        self.choose("fixed", *(("dicom/", THIS_FOLDER) if dicom else ("scans/", "fixed.nii.gz")))
        self.choose("moving", "scans/", *(("moving/", THIS_FOLDER) if dicom else ("moving.nii.gz",)))
        self.page.get_by_label("From files").check()
        for role in ("fixed_mask", "moving_mask"):
            self.choose(role, "scans/", f"{role}.nii.gz")

    def register(self, preset: str = "fast") -> None:
        self.page.select_option("#preset", preset)
        self.page.wait_for_selector("#register:enabled")
        self.page.click("#register")
        self.page.wait_for_selector("#cancel")

    def finish(self) -> None:
        self.page.wait_for_selector(".verdict, .message.error")
        assert not (told := self.page.locator(".message.error")).count(), told.inner_text()

    def view(self, name: str = "Red") -> np.ndarray:
        """The pixels of a view (rows, columns, 3), after they have come to rest."""
        box = self.page.locator(".layout-grid-item").nth(["Red", "Green", "Yellow", "ThreeD"].index(name))
        before, end = None, time.monotonic() + 60
        while time.monotonic() < end:
            shot = box.screenshot()
            pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
            if before is not None and before.shape == pixels.shape and np.abs(before - pixels).max() < 4:
                return pixels
            before = pixels
            time.sleep(0.7)
        raise AssertionError(f"the view {name} does not come to rest")

    def until(self, condition: Callable[[np.ndarray], bool], name: str = "Red", seconds: float = 90) -> np.ndarray:
        """The pixels of a view as soon as it is at rest and they fulfil the condition."""
        end = time.monotonic() + seconds
        while not condition(pixels := self.view(name)):
            assert time.monotonic() < end, f"the view {name} does not show what it should"
        return pixels

    def until_changed(self, before: np.ndarray, name: str = "Red") -> np.ndarray:
        """The pixels of a view as soon as they differ from those before."""
        return self.until(lambda pixels: difference(before, pixels) > 0.5, name)


def colourful(pixels: np.ndarray) -> float:
    """The share of a view that is not grey."""
    return float(((pixels.max(2) - pixels.min(2)) > 40).mean())


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of pixels, of 255, about the middle of the view, which stays where it is."""
    rows, columns = (min(one.shape[i], other.shape[i]) for i in (0, 1))
    return float(np.abs(_middle(one, rows, columns) - _middle(other, rows, columns)).mean())


def _middle(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    top, left = (pixels.shape[0] - rows) // 2, (pixels.shape[1] - columns) // 2
    return pixels[top : top + rows, left : left + columns]
