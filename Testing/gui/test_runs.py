"""Apply, progress, live preview, Cancel, and all that may come in between; the engine is a real process."""

from __future__ import annotations

import importlib.util
import os
import sys
import types

import pytest
import slicer
from NePhiRegistrationLib import dependencies
from NePhiRegistrationLib.parameters import Preset


@pytest.fixture
def ready(panel, phantom):
    """A panel where Apply runs for a few seconds."""
    p = panel.p
    p.fixed, p.moving, p.fixed_mask, p.moving_mask = phantom[:4]
    p.fixed_landmarks, p.moving_landmarks = phantom[4:]
    p.preset, p.iterations, p.device = Preset.FAST, 100, "cpu"
    panel.tick()
    return panel


@pytest.fixture
def endless(ready):
    ready.p.iterations = 100_000
    ready.p.live = True
    return ready


def _nodes() -> set:
    return {slicer.mrmlScene.GetNthNode(i).GetID() for i in range(slicer.mrmlScene.GetNumberOfNodes())}


def _foregrounds() -> set:
    return {node.GetForegroundVolumeID() for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _optimising(panel) -> bool:
    return panel.widget.run.stage == "optimising" and panel.widget.run.fraction > 0


def _previewed(panel) -> bool:
    return panel.widget.run.forward.GetTransformFromParent().IsA("vtkOrientedGridTransform")


def test_run_to_the_result(ready):
    ui, p = ready.ui, ready.p
    ui.applyButton.click()
    assert ui.cancelButton.enabled and not ui.applyButton.enabled and ui.progressBar.visible
    assert ui.statusLabel.text.startswith("Starting")
    ready.wait(lambda: _optimising(ready))
    live = slicer.mrmlScene.GetNodeByID(next(iter(_foregrounds())))
    assert live.GetTransformNodeID() == ready.widget.run.forward.GetID() and live is not p.moving
    assert p.moving.GetTransformNodeID() is None
    assert ui.statusLabel.text.startswith("Optimising") and ui.progressBar.value > 0
    ready.wait(lambda: ready.widget.run.state != "running")
    assert ready.widget.run.state == "done", ui.statusLabel.text
    assert ui.statusLabel.text.startswith("Done in ") and not ui.progressBar.visible
    assert ui.applyButton.enabled and not ui.cancelButton.enabled
    assert p.result is ready.widget.run.forward is ui.resultSelector.currentNode()
    assert "optimising" in ui.logTextEdit.plainText
    assert _foregrounds() == {ready.widget.run.outputs.warped.GetID()}
    assert ui.inputsCollapsibleButton.collapsed and ui.qaWidget.visible
    assert "Landmark error (mean TRE)" in ui.summaryLabel.text and "Lung volume" in ui.summaryLabel.text


def test_cancel_leaves_the_scene_as_it_was(endless):
    before, foregrounds = _nodes(), _foregrounds()
    endless.ui.applyButton.click()
    endless.wait(lambda: _optimising(endless) and _previewed(endless))
    pid = endless.widget.run._process.pid
    assert _nodes() > before and _foregrounds() != foregrounds
    endless.ui.cancelButton.click()
    assert not _alive(pid)
    assert (_nodes(), _foregrounds()) == (before, foregrounds)
    assert endless.ui.statusLabel.text == "Cancelled. The scene is as it was before."
    assert endless.ui.applyButton.enabled and not endless.ui.cancelButton.enabled and endless.p.result is None


def test_live_preview_can_be_switched(endless):
    endless.p.live = False
    foregrounds = _foregrounds()
    endless.ui.applyButton.click()
    endless.tick(0.2)
    assert _foregrounds() == foregrounds
    endless.ui.liveCheckBox.click()
    assert _foregrounds() != foregrounds
    endless.ui.liveCheckBox.click()
    assert _foregrounds() == foregrounds
    endless.ui.cancelButton.click()


def test_engine_error_is_one_line_with_the_log_below(ready, tmp_path):
    engine = tmp_path / "python"
    engine.write_text("#!/bin/sh\necho 'some detail' >&2\necho 'nephi: the images do not overlap' >&2\nexit 2\n")
    engine.chmod(0o755)
    before, foregrounds = _nodes(), _foregrounds()
    ready.widget.logic.engine.python = str(engine)
    ready.ui.applyButton.click()
    ready.wait(lambda: not ready.widget._running())
    assert ready.ui.statusLabel.text == "the images do not overlap"
    assert "color" in ready.ui.statusLabel.styleSheet
    assert "some detail" in ready.ui.logTextEdit.plainText and not ready.ui.logGroupBox.collapsed
    assert (_nodes(), _foregrounds()) == (before, foregrounds)
    assert ready.ui.applyButton.enabled
    ready.widget.logic.engine.python = sys.executable
    ready.p.iterations = 1
    ready.ui.applyButton.click()  # the next run starts clean
    assert ready.ui.statusLabel.styleSheet == "" and ready.ui.logTextEdit.plainText == ""
    ready.ui.cancelButton.click()


def test_engine_that_does_not_exist(ready, tmp_path):
    ready.widget.logic.engine.python = str(tmp_path / "absent")
    before = _nodes()
    ready.ui.applyButton.click()
    assert ready.ui.statusLabel.text.startswith("The registration could not be started")
    assert _nodes() == before and ready.ui.applyButton.enabled


def test_run_goes_on_while_another_module_is_open(ready):
    ready.p.iterations = 5
    ready.ui.applyButton.click()
    ready.leave()
    ready.wait(lambda: not ready.widget._running())
    assert ready.widget.run.state == "done"
    ready.enter()
    assert ready.p.result is ready.widget.run.forward and ready.ui.qaWidget.visible


def test_scene_closed_during_a_run(endless):
    endless.ui.applyButton.click()
    endless.wait(lambda: _optimising(endless))
    pid = endless.widget.run._process.pid
    slicer.mrmlScene.Clear(0)
    assert not _alive(pid)
    endless.tick()
    assert endless.ui.statusLabel.text == "Choose the fixed volume." and not endless.ui.cancelButton.enabled
    assert endless.p.preset is Preset.BALANCED and not endless.ui.qaWidget.visible


def test_input_removed_during_a_run(endless):
    endless.ui.applyButton.click()
    pid = endless.widget.run._process.pid
    slicer.mrmlScene.RemoveNode(endless.p.moving)
    endless.tick()
    assert not _alive(pid)
    assert endless.ui.statusLabel.text.splitlines() == [
        "The moving volume was removed while the registration ran.",
        "Choose the moving volume.",
    ]


def test_cleanup_ends_the_run(endless):
    endless.ui.applyButton.click()
    pid = endless.widget.run._process.pid
    endless.widget.cleanup()
    assert not _alive(pid)


def test_missing_torch_is_offered_when_apply_is_pressed(ready, monkeypatch):
    find_spec, absent = importlib.util.find_spec, {"torch"}
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name in absent else find_spec(name))
    ready.ui.applyButton.click()
    assert "install the extension PyTorch" in ready.ui.statusLabel.text and ready.widget.run is None

    asked = []

    class PyTorchUtilsLogic:
        answer = None

        def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
            asked.append((askConfirmation, torchVersionRequirement))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    module = types.SimpleNamespace(PyTorchUtilsLogic=PyTorchUtilsLogic)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
    ready.ui.applyButton.click()
    assert ready.ui.statusLabel.text == "The registration needs PyTorch, which was not installed."
    PyTorchUtilsLogic.answer = OSError("no network")
    ready.ui.applyButton.click()
    assert ready.ui.statusLabel.text == "PyTorch could not be installed: no network"
    PyTorchUtilsLogic.answer = module
    ready.ui.applyButton.click()
    assert ready.widget._running() and asked == [(True, ">=2.4")] * 3
    ready.ui.cancelButton.click()


@pytest.mark.parametrize("modern", [True, False])
def test_missing_package_is_offered(ready, monkeypatch, modern):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == "safetensors" else find_spec(name))
    asked = []

    def install(requirements, **_):
        asked.append(requirements)
        if not slicer.app.answer:
            raise RuntimeError("declined")

    module = types.ModuleType("slicer.packaging")
    if modern:
        module.pip_ensure = install
    monkeypatch.setitem(sys.modules, "slicer.packaging", module)
    monkeypatch.setattr(slicer.util, "pip_install", install)
    slicer.app.answer = False
    ready.ui.applyButton.click()
    assert "safetensors" in ready.ui.statusLabel.text and ready.widget.run is None
    slicer.app.answer = True
    ready.ui.applyButton.click()
    assert ready.widget._running() and asked[-1] == ["safetensors>=0.4"]
    ready.ui.cancelButton.click()
