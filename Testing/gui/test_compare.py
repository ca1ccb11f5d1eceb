"""Several settings for the same pair, one after the other. The engine is a script that brings a result made before."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import slicer
from nephi.settings import PRESETS
from NePhiRegistrationLib.choices import Preset, View
from PySide6.QtCore import Qt

FAILS, WAITS = 13, 14  # iterations at which the script does

_SCRIPT = """#!/bin/sh
iterations=$(sed -n 's/.*"iterations": \\([0-9]*\\).*/\\1/p' settings.json)
cp settings.json "{kept}/$$.json"
[ "$iterations" = {fails} ] && echo 'nephi: the images do not overlap' >&2 && exit 2
[ "$iterations" = {waits} ] && sleep 600
cp -r "{result}" result
"""


@pytest.fixture
def quick(ready, engine_folder, tmp_path):
    """A panel whose engine answers at once; ``ready.settings()`` are those that it got, in their order."""
    kept, engine = tmp_path / "kept", tmp_path / "engine"
    kept.mkdir()
    engine.write_text(_SCRIPT.format(kept=kept, result=engine_folder, fails=FAILS, waits=WAITS), encoding="utf-8")
    engine.chmod(0o755)
    ready.widget.logic.engine.python = str(engine)
    ready.settings = lambda: [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(kept.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    ]
    return ready


def _save_preset(panel, name: str, iterations: int) -> None:
    p = panel.p
    p.preset, p.iterations = Preset.BALANCED, iterations
    panel.ui.ownPresetComboBox.setEditText(name)
    panel.ui.savePresetButton.click()
    p.preset = Preset.FAST
    panel.tick()


def _items(panel) -> dict:
    box = panel.ui.severalListWidget
    return {box.item(i).text(): box.item(i) for i in range(box.count)}


def _tick(panel, *names: str) -> None:
    """As by hand; all others are without a tick then."""
    for name, item in _items(panel).items():
        item.setCheckState(Qt.Checked if name in names else Qt.Unchecked)
    panel.tick()


def _ticked(panel) -> list[str]:
    return [name for name, item in _items(panel).items() if item.checkState() == Qt.Checked]


def _results() -> list:
    found = slicer.util.getNodesByClass("vtkMRMLGridTransformNode")
    return [node for node in found if node.GetAttribute("NePhi.Result")]


def _ended(panel) -> bool:
    return not panel.widget.runs.busy


def test_each_ticked_setting_gives_a_result_and_one_that_fails_stops_none(quick):
    ui, p = quick.ui, quick.p
    _save_preset(quick, "Bad luck", FAILS)
    p.weight = 2.5
    assert list(_items(quick)) == ["As set above", "Fast", "Balanced", "Accurate", "As in the publication", "Bad luck"]
    quick.tick()
    once = ui.estimateLabel.text
    _tick(quick, "As set above", "Bad luck", "Balanced")
    assert ui.applyButton.text == "Apply all" and "3 registrations" in ui.estimateLabel.text != once
    ui.applyButton.click()
    assert "(1 of 3)" in ui.statusLabel.text and ui.statusLabel.text.startswith("Fast, changed")
    quick.wait(lambda: _ended(quick))
    assert [node.GetName() for node in _results()] == [
        "Inhale (phantom) to Exhale (phantom) (Fast, changed)",
        "Inhale (phantom) to Exhale (phantom) (Balanced)",
    ]
    used = [(s["preset"], s["regularity"]["weight"], s["fit"]["iterations"]) for s in quick.settings()]
    assert (used[0][:2], used[1], used[2][2]) == (
        ("fast", 2.5),
        ("balanced", 0.5, PRESETS["balanced"].fit.iterations),
        FAILS,
    )
    assert ui.noteLabel.text.startswith("2 of 3 done in ") and ui.noteLabel.styleSheet
    assert ui.noteLabel.text.endswith("Bad luck: the images do not overlap")
    assert p.result is _results()[-1] and ui.tablesTabWidget.currentWidget() is ui.resultsTab
    assert [ui.resultsTable.item(i, 0).text() for i in range(ui.resultsTable.rowCount)] == [
        node.GetName() for node in _results()
    ]
    assert (p.preset, p.weight) == (Preset.FAST, 2.5) and ui.applyButton.enabled


def test_cancel_ends_the_rest_and_keeps_what_is_done(quick):
    ui = quick.ui
    _save_preset(quick, "Slow", WAITS)
    _tick(quick, "Fast", "Accurate", "Slow")
    ui.applyButton.click()
    quick.wait(lambda: len(quick.settings()) == 3 and len(_results()) == 2)
    before = quick.p.result
    assert "(3 of 3)" in ui.statusLabel.text and ui.progressBar.value >= 66
    assert before is _results()[0]  # the first is shown at once, the others leave the views alone
    ui.cancelButton.click()
    assert _ended(quick) and ui.noteLabel.text == "Cancelled; 2 of 3 were done before and are kept."
    quick.tick()
    assert len(_results()) == 2 and quick.p.result is before and ui.applyButton.enabled


def test_it_goes_on_while_another_module_is_open_but_not_in_another_scene(quick):
    _save_preset(quick, "Slow", WAITS)
    _tick(quick, "Fast", "Balanced", "Slow")
    quick.ui.applyButton.click()
    quick.leave()
    quick.wait(lambda: len(quick.settings()) == 3)
    assert len(_results()) == 2
    quick.enter()
    assert _ticked(quick) == ["Fast", "Balanced", "Slow"]
    slicer.mrmlScene.Clear(0)
    quick.tick()
    assert _ended(quick) and len(quick.settings()) == 3 and _ticked(quick) == []
    assert quick.ui.applyButton.text == "Apply"


def _nodes() -> set:
    """All but colour tables, which other volumes may use too, by ID with the parent transform's."""
    found = (slicer.mrmlScene.GetNthNode(i) for i in range(slicer.mrmlScene.GetNumberOfNodes()))
    return {
        (node.GetID(), node.GetTransformNodeID() if node.IsA("vtkMRMLTransformableNode") else None)
        for node in found
        if not node.IsA("vtkMRMLColorNode")
    }


def _layers() -> set:
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return {(n.GetBackgroundVolumeID(), n.GetForegroundVolumeID(), n.GetForegroundOpacity()) for n in nodes}


def _items_in_the_hierarchy() -> int:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return hierarchy.GetNumberOfItems()


def test_results_are_taken_back_and_all_is_as_before(quick):
    ui, p = quick.ui, quick.p
    slicer.util.setSliceViewerLayers(background=p.moving, foreground=p.fixed, foregroundOpacity=0.25, fit=False)
    items, before, layers = _items_in_the_hierarchy(), _nodes(), _layers()
    assert len(layers) == 1
    for _time in range(2):
        ui.applyButton.click()
        quick.wait(lambda: _ended(quick))
    first, second = _results()
    for view in (View.JACOBIAN, View.ERROR, View.DISPLACEMENT):
        p.view = view
    p.grid = True
    p.moving.SetAndObserveTransformNodeID(second.GetID())  # as users do
    slicer.app.answer = False
    ui.removeResultButton.click()
    assert second.GetName() in slicer.app.said[-1] and f"own place: {p.moving.GetName()}." in slicer.app.said[-1]
    assert _results() == [first, second] and p.moving.GetTransformNodeID() == second.GetID()
    slicer.app.answer = True
    ui.removeResultButton.click()
    assert _results() == [first] and p.result is first and p.moving.GetTransformNodeID() is None
    assert ui.resultsTable.rowCount == 1 and ui.verdictLabel.visible
    ui.removeResultButton.click()
    assert p.result is None and "After a registration" in ui.summaryLabel.text and not ui.qaWidget.visible
    assert _nodes() ^ before == set()
    assert (_layers(), _items_in_the_hierarchy()) == (layers, items)
    gc.collect()
    assert list(Path(slicer.app.temporaryPath).glob("nephi-run-*")) == []


def test_what_was_made_of_a_result_stays_in_its_folder(quick, phantom):
    ui = quick.ui
    ui.applyButton.click()
    quick.wait(lambda: _ended(quick))
    ui.applySelector.setCurrentNode(phantom[5])
    ui.ontoFixedButton.click()
    made = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")[-1]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    name = hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(made)))
    assert name.startswith("Registration ")
    ui.removeResultButton.click()
    assert made.GetScene() is not None and _results() == []
    assert hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(made))) == name


def test_what_cannot_begin_is_said_before(quick):
    _save_preset(quick, "Bad file", 5)
    _tick(quick, "Fast", "Bad file")
    path = quick.p.settings_file or next(iter(json.loads(quick.p.several)[1:]))
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
    quick.tick()
    assert not quick.ui.applyButton.enabled and quick.ui.statusLabel.text.startswith("Bad file: ")
    quick.widget.inputs._presets.presets.remove("Bad file")
    quick.tick()
    assert quick.ui.applyButton.enabled and _ticked(quick) == ["Fast"]
