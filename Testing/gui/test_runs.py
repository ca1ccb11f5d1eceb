"""Apply, progress, live preview, Cancel, and all that may come in between; the engine is a real process."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import slicer
from conftest import DEVICES, Panel
from NePhiRegistrationLib.job import LogicError


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
    return panel.widget.runs.run.stage == "optimising" and panel.widget.runs.run.fraction > 0


def _previewed(panel) -> bool:
    return panel.widget.runs.run.forward.GetTransformFromParent().IsA("vtkOrientedGridTransform")


def test_run_to_the_result(ready):
    ui, p = ready.ui, ready.p
    ui.applyButton.click()
    run = ready.widget.runs.run
    assert ui.cancelButton.enabled and not ui.applyButton.enabled and ui.progressBar.visible
    assert ui.statusLabel.text.startswith("Starting")
    ready.wait(lambda: _optimising(ready))
    live = slicer.mrmlScene.GetNodeByID(next(iter(_foregrounds())))
    assert live.GetTransformNodeID() == ready.widget.runs.run.forward.GetID() and live is not p.moving
    assert p.moving.GetTransformNodeID() is None
    assert ui.statusLabel.text.startswith("Optimising") and ui.progressBar.value > 0
    ready.wait(lambda: run.state != "running")
    assert run.state == "done", ui.noteLabel.text
    assert ui.noteLabel.text.startswith("Done in ") and not ui.statusLabel.text and not ui.progressBar.visible
    assert ui.applyButton.enabled and not ui.cancelButton.enabled
    assert p.result is run.forward is ui.resultSelector.currentNode() and ready.widget.runs.run is None
    assert "Optimising" in ui.logTextEdit.plainText
    assert _foregrounds() == {run.outputs.warped.GetID()}
    assert ui.inputsCollapsibleButton.collapsed and ui.qaWidget.visible
    assert "Landmark error (TRE)" in ui.summaryLabel.text and "Volume of the mask" in ui.summaryLabel.text


def test_cancel_leaves_the_scene_as_it_was(endless):
    before, foregrounds = _nodes(), _foregrounds()
    endless.ui.applyButton.click()
    endless.wait(lambda: _optimising(endless) and _previewed(endless))
    pid = endless.widget.runs.run._process.pid
    assert _nodes() > before and _foregrounds() != foregrounds
    endless.ui.cancelButton.click()
    assert not _alive(pid)
    assert (_nodes(), _foregrounds()) == (before, foregrounds)
    assert endless.ui.noteLabel.text == "Cancelled. The scene is as it was before."
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
    ready.wait(lambda: not ready.widget.runs.running)
    assert ready.ui.noteLabel.text == "the images do not overlap"
    assert "color" in ready.ui.noteLabel.styleSheet and ready.ui.statusLabel.styleSheet == ""
    assert "some detail" in ready.ui.logTextEdit.plainText and not ready.ui.logGroupBox.collapsed
    assert (_nodes(), _foregrounds()) == (before, foregrounds)
    assert ready.ui.applyButton.enabled
    ready.widget.logic.engine.python = sys.executable
    ready.p.iterations = 1
    ready.ui.applyButton.click()  # the next run starts clean
    assert ready.ui.noteLabel.text == ready.ui.noteLabel.styleSheet == "" and ready.ui.logTextEdit.plainText == ""
    ready.ui.cancelButton.click()


def test_engine_that_does_not_exist(ready, tmp_path):
    ready.widget.logic.engine.python = str(tmp_path / "absent")
    before = _nodes()
    ready.ui.applyButton.click()
    assert ready.ui.noteLabel.text.startswith("The registration could not be started")
    assert _nodes() == before and ready.ui.applyButton.enabled


def test_run_goes_on_while_another_module_is_open(ready):
    ready.p.iterations = 5
    ready.ui.applyButton.click()
    run = ready.widget.runs.run
    ready.leave()
    ready.wait(lambda: not ready.widget.runs.running)
    assert run.state == "done"
    ready.enter()
    assert ready.p.result is run.forward and ready.ui.qaWidget.visible


def test_scene_closed_during_a_run(endless):
    endless.ui.applyButton.click()
    endless.wait(lambda: _optimising(endless))
    pid = endless.widget.runs.run._process.pid
    slicer.mrmlScene.Clear(0)
    assert not _alive(pid)
    endless.tick()
    assert (endless.ui.noteLabel.text, endless.ui.statusLabel.text) == (
        "",
        "Choose the fixed volume.",
    ) and not endless.ui.cancelButton.enabled
    assert endless.p.fixed is None and endless.p.iterations < 100_000 and not endless.ui.qaWidget.visible


def test_scene_closed_after_a_run_or_a_failure(ready, tmp_path):
    """Nothing of the old scene is said of the new one."""
    for python in (sys.executable, str(tmp_path / "absent")):
        ready.widget.logic.engine.python = python
        ready.p.iterations = 1
        ready.ui.applyButton.click()
        ready.wait(lambda: not ready.widget.runs.running)
        assert ready.ui.noteLabel.text
        slicer.mrmlScene.Clear(0)
        ready.tick()
        assert (ready.ui.noteLabel.text, ready.ui.noteLabel.styleSheet) == ("", "")
        assert ready.ui.statusLabel.text == "Choose the fixed volume."
        module_inputs = importlib.import_module("NePhiRegistrationLib.sample").add_phantom(slicer.mrmlScene)
        ready.p.fixed, ready.p.moving = module_inputs[:2]


def test_runs_use_slicers_folder_for_temporary_files_and_leave_nothing(ready):
    folder = Path(slicer.app.temporaryPath)
    assert list(folder.iterdir()) == []
    ready.p.iterations = 1
    ready.ui.applyButton.click()
    (made,) = folder.iterdir()
    assert (made / "fixed.nrrd").is_file()
    ready.wait(lambda: not ready.widget.runs.running)
    assert [file.name for file in made.iterdir() if file.suffix == ".nrrd"] == []
    assert (made / "result" / "transform.h5").is_file()  # to be saved
    slicer.mrmlScene.Clear(0)
    gc.collect()
    assert list(folder.iterdir()) == []


def test_folder_vanishing_during_a_run(endless):
    before = _nodes()
    endless.ui.applyButton.click()
    endless.wait(lambda: _optimising(endless))
    while os.path.exists(slicer.app.temporaryPath):  # the run makes and removes files in it meanwhile
        shutil.rmtree(slicer.app.temporaryPath, ignore_errors=True)
    endless.wait(lambda: not endless.widget.runs.running)
    assert "folder of the registration was removed" in endless.ui.noteLabel.text
    assert _nodes() == before and endless.ui.applyButton.enabled


def test_input_removed_during_a_run(endless):
    endless.ui.applyButton.click()
    pid = endless.widget.runs.run._process.pid
    slicer.mrmlScene.RemoveNode(endless.p.moving)
    endless.tick()
    assert not _alive(pid)
    assert endless.ui.noteLabel.text == "The moving volume was removed while the registration ran."
    assert endless.ui.statusLabel.text == "Choose the moving volume."


def test_cleanup_ends_the_run(endless):
    endless.ui.applyButton.click()
    pid = endless.widget.runs.run._process.pid
    endless.widget.cleanup()
    assert not _alive(pid)


def test_devices_are_asked_for_again_after_torch_was_installed(app, monkeypatch, phantom):
    """The module stays open; its list had the CPU only."""
    found = []

    def devices(_self):
        if not found:
            raise LogicError("no torch")
        return found

    monkeypatch.setattr("NePhiRegistrationLib.logic.Logic.devices", devices)
    panel = Panel()
    panel.p.fixed, panel.p.moving = phantom[:2]
    panel.wait(lambda: panel.widget._devices is None)
    assert panel.ui.deviceComboBox.count == 2
    found[:] = DEVICES
    panel.tick()
    panel.ui.applyButton.click()
    panel.wait(lambda: panel.ui.deviceComboBox.count == 3)
    panel.ui.cancelButton.click()
    panel.close()
