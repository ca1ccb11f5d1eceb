"""The panel on the stand-in; with SLICER_SOURCE_DIR set, on Slicer's own Python classes."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

_TESTING = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTING / "gui"), str(_TESTING.parent / "NePhiRegistration")]
sys.path.append(str(_TESTING / "slicer"))  # saving.py

import pytest
import SimpleITK as sitk
import slicer
from nephi.synthetic.phantom import make_phantom
from standin.application import install
from standin.pythonqt import send
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
    APP.userSettings().clear()
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
            assert time.monotonic() < end, (
                f"{self.ui.noteLabel.text}\n{self.ui.statusLabel.text}\n{self.ui.logTextEdit.plainText}"
            )
            self.tick(0.1)

    def choose(self, box, text: str) -> None:
        """As by hand: the entry that begins with this text."""
        index = next(i for i in range(box.count) if box.itemText(i).startswith(text))
        box.setCurrentIndex(index)
        send(box, "activated", index)

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
    shutil.rmtree(Path(slicer.app.slicerUserSettingsFilePath).parent, ignore_errors=True)  # presets of the test's own


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
    monkeypatch.setattr("nephi.synthetic.phantom.make_phantom", lambda *_: made)
    from NePhiRegistrationLib.sample import add_phantom

    return add_phantom(slicer.mrmlScene)


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory) -> Path:
    """What the engine writes for that phantom, with the two lungs as regions."""
    from nephi.files.segments import with_names
    from nephi.process import engine_environment

    folder, made = tmp_path_factory.mktemp("engine"), _made_phantom()
    made.write(folder)
    lungs = sitk.GetArrayFromImage(made.fixed_mask)
    lungs[..., lungs.shape[2] // 2 :] *= 2
    regions = sitk.GetImageFromArray(lungs)
    regions.CopyInformation(made.fixed_mask)
    sitk.WriteImage(with_names(regions, {1: "right lung", 2: "left lung"}), str(folder / "regions.seg.nrrd"))
    command = [sys.executable, "-m", "nephi", "register", "fixed.nii.gz", "moving.nii.gz", "--output", "result"]
    command += ["--fixed-mask", "fixed_mask.nii.gz", "--moving-mask", "moving_mask.nii.gz"]
    command += ["--fixed-landmarks", "fixed_landmarks.csv", "--moving-landmarks", "moving_landmarks.csv"]
    command += ["--regions", "regions.seg.nrrd", "--preset", "fast", "--iterations", "30", "--progress", "none"]
    subprocess.run(command, cwd=folder, env=engine_environment(), check=True, capture_output=True, timeout=120)
    return folder / "result"


@pytest.fixture
def ready(panel, phantom):
    """A panel where Apply runs for a few seconds."""
    from NePhiRegistrationLib.choices import Preset

    p = panel.p
    p.fixed, p.moving, p.fixed_mask, p.moving_mask = phantom[:4]
    p.fixed_landmarks, p.moving_landmarks = phantom[4:]
    p.preset, p.iterations, p.device = Preset.FAST, 100, "cpu"
    panel.tick()
    return panel


FOLDS = [
    {"voxels": 12, "volume_mm3": 96.0, "centre_lps_mm": [10.0, -20.0, 30.0], "min_jacobian": -0.4},
    {"voxels": 1, "volume_mm3": 8.0, "centre_lps_mm": [-40.0, 5.0, -25.0], "min_jacobian": -0.1},
]


@pytest.fixture
def finished(panel, phantom, engine_folder, tmp_path):
    """A panel with a result as after a registration, in which two folds are planted."""
    panel.p.fixed, panel.p.moving = phantom[:2]
    panel.outputs = add_result(panel, engine_folder, tmp_path / "planted", FOLDS)
    return panel


def add_result(panel, engine_folder: Path, folder: Path, folds: list[dict]):
    """One more result of the phantom, shown by the panel."""
    from NePhiRegistrationLib.outputs import Outputs

    shutil.copytree(engine_folder, folder)
    report = json.loads((folder / "report.json").read_text())
    voxels = sum(fold["voxels"] for fold in folds)
    report["folds"] |= {"count": voxels, "percent": voxels / 1000, "regions": folds}
    (folder / "report.json").write_text(json.dumps(report))
    forward = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "Inhale to exhale")
    outputs = Outputs.read(folder, forward, panel.p.fixed, panel.p.moving)
    panel.widget.results.add(outputs)
    panel.p.result = forward
    return outputs
