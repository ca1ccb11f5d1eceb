"""The panel on the stand-in; with SLICER_SOURCE_DIR set, on Slicer's own Python classes."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "NePhiRegistration")]

import pytest
import slicer
from nephi.phantom import make_phantom
from standin.application import install
from standin.widgets import qSlicerScriptedLoadableModuleWidget

SOURCE = os.environ.get("SLICER_SOURCE_DIR")
APP = install(SOURCE)
ENGINE_SECONDS = 120


@pytest.fixture
def app():
    """``slicer.app`` of the stand-in, with an empty scene."""
    slicer.mrmlScene.Clear(True)
    APP.add_views()
    APP.said, APP.answer = [], True
    slicer.modules.plots.shown = None
    return APP


class Panel:
    """The module's widget as a user has it: its .ui (as attributes), and time that goes by."""

    def __init__(self):
        module = importlib.import_module("NePhiRegistration")
        self.parent = qSlicerScriptedLoadableModuleWidget()
        import qt

        self.parent.setLayout(qt.QVBoxLayout())
        self.parent.setMRMLScene(slicer.mrmlScene)
        self.parent._entered = True
        self.widget = module.NePhiRegistrationWidget(self.parent)
        self.widget.setup()
        self.widget._timer.stop()  # tests say when time goes by
        self.parent.resize(440, 1000)
        self.parent.show()

    @property
    def ui(self):
        return self.widget.ui

    @property
    def p(self):
        return self.widget._parameters

    def tick(self, seconds: float = 0.0) -> None:
        time.sleep(seconds)
        self.widget._tick()
        APP.processEvents()

    def wait(self, done, seconds: float = ENGINE_SECONDS) -> None:
        """Ticks until ``done()``."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{self.ui.statusLabel.text}\n{self.ui.logTextEdit.plainText}"
            self.tick(0.1)

    def choose(self, box, text: str) -> None:
        """As by hand: the entry that begins with this text."""
        index = next(i for i in range(box.count) if box.itemText(i).startswith(text))
        box.setCurrentIndex(index)
        box.activated.emit(index)

    def leave(self) -> None:
        self.parent._entered = False
        self.widget.exit()

    def enter(self) -> None:
        self.parent._entered = True
        self.widget.enter()
        self.widget._timer.stop()

    def close(self) -> None:
        self.widget.cleanup()
        self.widget.panel.setMRMLScene(None)
        self.parent.close()
        self.parent.deleteLater()
        APP.processEvents()
        gc.collect()


@pytest.fixture
def panel(app, monkeypatch):
    monkeypatch.setattr("NePhiRegistrationLib.logic.Logic.devices", lambda self: DEVICES)
    panel = Panel()
    yield panel
    panel.close()


@functools.cache
def _made_phantom():
    return make_phantom((48, 42, 42), 6.5)


DEVICES = [
    {"name": "cpu", "label": "CPU (2 cores)"},
    {"name": "cuda:0", "label": "Test GPU (24 GB)", "memory_mb": 24000},
]


@pytest.fixture
def phantom(app, monkeypatch) -> list:
    """Fixed, moving, masks and landmarks of a small phantom in the scene."""
    made = _made_phantom()
    monkeypatch.setattr("nephi.phantom.make_phantom", lambda *_: made)
    from NePhiRegistrationLib.sample import add_phantom

    return add_phantom(slicer.mrmlScene)
