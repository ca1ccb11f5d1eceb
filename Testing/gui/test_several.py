"""What lasts beyond one pair: presets of one's own, and a list of pairs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import slicer
from conftest import _made_phantom
from NePhiRegistrationLib import parameters, sample
from NePhiRegistrationLib.choices import Preset


def _iterations(settings_file: str) -> int:
    return json.loads(Path(settings_file).read_text(encoding="utf-8"))["fit"]["iterations"]


def _engines(folder: Path) -> list[str]:
    """Processes whose command names the folder."""
    found = [file.read_bytes().decode(errors="replace") for file in _command_lines()]
    return [line for line in found if str(folder) in line]


def _command_lines():
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (process / "cmdline").exists():
            yield process / "cmdline"


def test_own_presets_are_saved_chosen_replaced_and_removed(panel, app):
    ui, p = panel.ui, panel.p
    box = ui.ownPresetComboBox
    assert box.count == 0 and not ui.removePresetButton.enabled
    p.preset, p.iterations, p.weight = Preset.FAST, 77, 1.5
    for bad in ("", "a/b", "..", "x" * 200):
        box.setEditText(bad)
        ui.savePresetButton.click()
        assert "Enter a name" in app.said[-1] and box.count == 0, bad
    box.setEditText("Kids' lungs ä")
    ui.savePresetButton.click()
    panel.tick()
    assert p.preset is Preset.FILE and ui.removePresetButton.enabled and box.currentText == "Kids' lungs ä"
    p.preset = Preset.ACCURATE
    panel.tick()
    assert p.iterations != 77 and box.currentText == "" and not ui.removePresetButton.enabled
    panel.leave()
    slicer.mrmlScene.Clear(True)
    panel.enter()  # another scene knows them too
    p = panel.p
    panel.choose(box, "Kids")
    panel.tick()
    assert (p.preset, p.iterations, p.weight) == (Preset.FILE, 77, 1.5)
    assert parameters.job(p).settings().fit.iterations == 77
    p.iterations = 88
    app.answer = False
    ui.savePresetButton.click()
    assert "Replace" in app.said[-1] and _iterations(p.settings_file) == 77
    app.answer = True
    ui.savePresetButton.click()
    assert _iterations(p.settings_file) == 88
    ui.removePresetButton.click()
    panel.tick()
    assert box.count == 0 and p.preset is Preset.BALANCED and p.settings_file == ""


@pytest.fixture
def listed(panel, tmp_path):
    """A list with a pair, and settings that are quick."""
    _made_phantom().write(tmp_path)
    rows = "name,fixed,moving\nin,fixed.nii.gz,moving.nii.gz"
    (tmp_path / "pairs.csv").write_text(rows, encoding="utf-8")
    panel.p.preset, panel.p.iterations, panel.p.device = Preset.FAST, 20, "cpu"
    panel.ui.batchListPathLineEdit.currentPath = str(tmp_path / "pairs.csv")
    panel.ui.batchOutputPathLineEdit.currentPath = str(tmp_path / "results")
    return panel


def test_a_pair_that_fails_says_why(listed, app, tmp_path):
    ui, nodes = listed.ui, slicer.mrmlScene.GetNumberOfNodes()
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\ngone,fixed.nii.gz,none.nii.gz", encoding="utf-8")
    ui.batchStartButton.click()
    assert not ui.batchStartButton.enabled and ui.batchStopButton.enabled
    listed.wait(lambda: not listed.widget.batch.running)
    assert ui.batchStatusLabel.text.startswith("0 of 1 pairs registered, 1 failed")
    name, verdict = (ui.batchTable.item(0, column) for column in (0, 1))
    assert (name.text(), verdict.text()) == ("gone", "failed") and "none.nii.gz" in verdict.toolTip()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes and ui.batchStartButton.enabled


@pytest.mark.slow
def test_the_phases_of_a_sequence_are_registered_to_one_of_them(listed, app, tmp_path):
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "4D CT")
    for i, volume in enumerate(sample.add_phantom(slicer.mrmlScene)[:2]):
        sequence.SetDataNodeAtValue(volume, str(i))
    ui = listed.ui
    ui.batchSequenceSelector.setCurrentNode(sequence)
    ui.batchReferenceSpinBox.value = 3
    ui.batchStartButton.click()
    assert "2 phases" in app.said[-1] and not listed.widget.batch.running
    ui.batchReferenceSpinBox.value = 1
    ui.batchStartButton.click()
    listed.wait(lambda: not listed.widget.batch.running)
    assert ui.batchStatusLabel.text.startswith("1 of 1 pairs registered, 0 failed"), ui.batchStatusLabel.text
    cells = [ui.batchTable.item(0, column).text() for column in range(3)]
    assert cells[0] == "phase_002" and cells[1] in ("PASS", "CHECK", "FAIL") and float(cells[2]) > 0
    report = json.loads((tmp_path / "results" / "phase_002" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["fit"]["iterations"] == 20  # as the panel says
    made = slicer.util.getNodesByClass("vtkMRMLSequenceNode")[-1]
    assert made.GetName() == "4D CT to phase 1" and made.GetNumberOfDataNodes() == 2
    moved = [made.GetNthDataNode(i).GetTransformFromParent().TransformPoint((0.0, 0.0, 60.0)) for i in (0, 1)]
    assert moved[0] == (0.0, 0.0, 60.0) and moved[1] != moved[0]


@pytest.mark.slow
def test_a_list_is_stopped_and_what_cannot_begin_is_said(listed, app, tmp_path):
    ui = listed.ui
    listed.p.iterations = 100_000
    ui.batchStartButton.click()
    listed.wait(lambda: ui.batchTable.rowCount > 0 and ui.batchTable.item(0, 1).text() == "running")
    assert len(_engines(tmp_path)) > 1  # of the list and of the pair
    ui.batchStopButton.click()
    assert "Stopped" in ui.batchStatusLabel.text and ui.batchStartButton.enabled
    end = time.monotonic() + 30
    while _engines(tmp_path):
        assert time.monotonic() < end, _engines(tmp_path)
        time.sleep(0.1)
    for path, words in (("", "Choose a list"), (str(tmp_path / "none.csv"), "none.csv")):
        ui.batchListPathLineEdit.currentPath = path
        ui.batchStartButton.click()
        assert words in app.said[-1] and len(app.said[-1].splitlines()) == 1
        assert not listed.widget.batch.running
