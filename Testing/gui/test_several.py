"""What lasts beyond one pair: presets of one's own, and a list of pairs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import slicer
from conftest import _made_phantom
from NePhiRegistrationLib import parameters
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
    """A list with a pair, the same the other way, and one whose moving image is missing."""
    _made_phantom().write(tmp_path)
    rows = ["name,fixed,moving,fixed_mask,moving_mask"]
    rows += [f"{n},{a}.nii.gz,{b}.nii.gz,{a}_mask.nii.gz,{b}_mask.nii.gz" for n, a, b in (("in", "fixed", "moving"),)]
    rows += ["gone,fixed.nii.gz,none.nii.gz,,"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    panel.p.preset, panel.p.iterations, panel.p.device = Preset.FAST, 20, "cpu"
    panel.ui.batchListPathLineEdit.currentPath = str(tmp_path / "pairs.csv")
    panel.ui.batchOutputPathLineEdit.currentPath = str(tmp_path / "results")
    return panel


def test_a_list_of_pairs_is_registered_with_the_panels_settings(listed, app, tmp_path):
    ui, nodes = listed.ui, slicer.mrmlScene.GetNumberOfNodes()
    ui.batchStartButton.click()
    assert not ui.batchStartButton.enabled and ui.batchStopButton.enabled
    listed.wait(lambda: not listed.widget.batch.running)
    assert ui.batchStatusLabel.text.startswith("1 of 2 pairs registered, 1 failed")
    cell = lambda row, column: ui.batchTable.item(row, column)  # noqa: E731
    assert [cell(row, 0).text() for row in (0, 1)] == ["in", "gone"]
    assert cell(0, 1).text() in ("PASS", "CHECK", "FAIL") and float(cell(0, 2).text()) > 0
    assert cell(1, 1).text() == "failed" and "none.nii.gz" in cell(1, 1).toolTip()
    report = json.loads((tmp_path / "results" / "in" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["fit"]["iterations"] == 20
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes and ui.batchStartButton.enabled


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
    for path, words in (("", "Choose the list"), (str(tmp_path / "none.csv"), "none.csv")):
        ui.batchListPathLineEdit.currentPath = path
        ui.batchStartButton.click()
        assert words in app.said[-1] and len(app.said[-1].splitlines()) == 1
        assert not listed.widget.batch.running
