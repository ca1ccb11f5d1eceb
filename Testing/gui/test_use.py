"""The result used: pairs of landmarks, other nodes, other results, papers, DICOM; and what is remembered."""

from __future__ import annotations

import types

import pytest
import slicer
from conftest import Panel, add_result
from NePhiRegistrationLib.choices import GridMode, Preset
from standin.pythonqt import send


@pytest.fixture
def landmarks(finished, phantom):
    finished.p.fixed_landmarks, finished.p.moving_landmarks = phantom[4:]
    finished.tick()
    return finished


def _place() -> list:
    """Where all slice views are."""
    places = {tuple(n.GetSliceToRAS().GetElement(i, 3) for i in range(3)) for n in _slices()}
    assert len(places) == 1
    return list(places.pop())


def _slices() -> list:
    return slicer.util.getNodesByClass("vtkMRMLSliceNode")


def _rows(table) -> list[list[str]]:
    return [[table.item(i, j).text() for j in range(table.columnCount)] for i in range(table.rowCount)]


def test_each_landmark_has_its_error_which_follows_it(landmarks):
    ui, fixed = landmarks.ui, landmarks.p.fixed_landmarks
    rows, count = _rows(ui.landmarksTable), fixed.GetNumberOfControlPoints()
    assert len(rows) == count
    mean = sum(float(row[2]) for row in rows) / count
    assert mean == pytest.approx(landmarks.outputs.report["tre_mm"]["after"]["mean"], abs=0.06)
    assert f"Mean {mean:.1f} mm" in ui.landmarksHintLabel.text and "verdict" not in ui.landmarksHintLabel.text
    place = [0.0] * 3
    fixed.GetNthControlPointPosition(4, place)
    fixed.SetNthControlPointPosition(4, place[0] + 30, place[1], place[2])  # dragged
    landmarks.tick()
    assert float(_rows(ui.landmarksTable)[4][2]) > float(rows[4][2]) + 10
    assert f"at {rows[4][0]}." in ui.landmarksHintLabel.text
    assert "verdict does not count the points as they are now" in ui.landmarksHintLabel.text


def test_click_on_a_landmark_shows_it(landmarks):
    ui, p, place = landmarks.ui, landmarks.p, [0.0] * 3
    for column, points in ((0, p.fixed_landmarks), (3, p.moving_landmarks)):
        send(ui.landmarksTable, "cellClicked", 2, column)
        points.GetNthControlPointPositionWorld(2, place)
        assert _place() == pytest.approx(place, abs=1e-6)
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert {node.GetBackgroundVolumeID() for node in composites} == {p.moving.GetID()}
    send(ui.landmarksTable, "cellClicked", 1, 0)
    shown = {(node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()) for node in composites}
    assert shown == {(p.fixed.GetID(), landmarks.outputs.warped.GetID())}


def test_pair_is_added_at_the_crosshair(finished):
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairRAS(5.0, -10.0, 20.0)
    slicer.mrmlScene.AddNode(crosshair)
    finished.p.fixed_landmarks = finished.p.moving_landmarks = None
    finished.ui.addPairButton.click()
    finished.ui.addPairButton.click()
    fixed = finished.p.fixed_landmarks
    assert tuple(fixed.GetNthControlPointPositionWorld(0)) == (5.0, -10.0, 20.0)
    assert [row[2] for row in _rows(finished.ui.landmarksTable)] == ["0.0", "0.0"]
    fixed.RemoveNthControlPoint(0)
    finished.ui.addPairButton.click()
    assert "must match one by one" in slicer.app.said[-1] and fixed.GetNumberOfControlPoints() == 1


def test_results_are_compared_and_chosen(finished, engine_folder, tmp_path):
    ui, first = finished.ui, finished.outputs
    second = add_result(finished, engine_folder, tmp_path / "second", [])
    rows = _rows(ui.resultsTable)
    assert [row[0] for row in rows] == [first.forward.GetName(), second.forward.GetName()]
    assert rows[0][5] == "0.013" and rows[1][5] == "0" and all(row[6] == "fast" for row in rows)
    send(ui.resultsTable, "cellClicked", 0, 0)
    assert finished.p.result is first.forward and "Folded in 2 places" in ui.summaryLabel.text
    slicer.mrmlScene.RemoveNode(second.forward)
    finished.widget._update()
    assert len(_rows(ui.resultsTable)) == 1


def test_result_is_applied_to_what_is_chosen(finished, phantom):
    ui, scene = finished.ui, slicer.mrmlScene
    nodes = scene.GetNumberOfNodes()
    ui.ontoFixedButton.click()
    assert slicer.app.said[-1].startswith("Choose what") and scene.GetNumberOfNodes() == nodes
    ui.applySelector.setCurrentNode(phantom[5])
    ui.ontoFixedButton.click()
    (made,) = [n for n in slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode") if n not in phantom]
    assert made.GetNumberOfControlPoints() == phantom[5].GetNumberOfControlPoints()
    assert slicer.app.said[-1] == f"Made {made.GetName()}."
    ui.applySelector.setCurrentNode(phantom[0])
    ui.ontoMovingButton.click()
    volume = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
    assert volume.GetImageData().GetDimensions() == phantom[1].GetImageData().GetDimensions()
    assert volume.GetName().startswith(phantom[0].GetName())
    volume.SetAndObserveTransformNodeID(finished.outputs.forward.GetID())
    ui.applySelector.setCurrentNode(volume)
    ui.ontoFixedButton.click()
    assert "nonlinear transform" in slicer.app.said[-1]


def test_report_is_opened_where_there_is_one(finished, monkeypatch):
    opened = []
    monkeypatch.setattr("qt.QDesktopServices.openUrl", lambda url: opened.append(url.toLocalFile()))
    page = finished.outputs.folder / "report.html"
    page.unlink(missing_ok=True)
    finished.widget._update()
    assert not finished.ui.reportButton.enabled and "tick it above Apply" in finished.ui.reportButton.toolTip
    page.write_text("<html></html>", encoding="utf-8")
    finished.widget._update()
    finished.ui.reportButton.click()
    assert opened == [str(page)]


def test_the_pointer_tells_to_wait_while_views_are_made(finished, monkeypatch):
    shapes = []

    def show(*_arguments):
        cursor = slicer.app.qt.overrideCursor()
        shapes.append(cursor and cursor.shape().name)
        raise RuntimeError("stopped")

    monkeypatch.setattr("NePhiRegistrationLib.display.show_comparison", show)
    with pytest.raises(RuntimeError):
        finished.widget.results._show_again()
    assert shapes == ["WaitCursor"] and slicer.app.qt.overrideCursor() is None


def test_methods_text_goes_to_the_clipboard(finished):
    finished.ui.methodsButton.click()
    assert slicer.app.clipboard().text().startswith("Image pairs were registered with NePhi")


def test_dicom_is_offered_for_dicom_only(finished, monkeypatch, tmp_path):
    ui = finished.ui
    assert not ui.dicomButton.enabled and "not loaded by the module DICOM" in ui.dicomButton.toolTip
    for volume in (finished.outputs.fixed, finished.outputs.moving):
        volume.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    finished.widget._update()
    assert ui.dicomButton.enabled
    database = types.SimpleNamespace(fileForInstance=lambda uid: "")
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    monkeypatch.setattr("qt.QFileDialog.getExistingDirectory", lambda *_: str(tmp_path))
    ui.dicomButton.click()
    assert "no longer in the database" in slicer.app.said[-1] and list(tmp_path.glob("*.dcm")) == []


def test_choices_are_remembered_for_the_next_scene_and_the_next_start(panel):
    p = panel.p
    p.preset, p.opacity, p.live, p.grid_mode, p.device = Preset.FAST, 0.25, False, GridMode.GLYPHS, "cuda:0"
    slicer.mrmlScene.Clear(0)
    p = panel.p
    remembered = (p.preset, p.opacity, p.live, p.grid_mode, p.device)
    assert remembered == (Preset.FAST, 0.25, False, GridMode.GLYPHS, "cuda:0")
    assert p.expert_of == "fast"
    p.preset, p.settings_file = Preset.FILE, "gone.json"  # that belongs to its scene
    panel.leave()
    slicer.app.userSettings().setValue("NePhiRegistration/opacity", "much")
    slicer.mrmlScene.Clear(0)
    other = Panel()
    assert other.p.preset is Preset.FAST and other.p.opacity == 0.5 and not other.p.live
    other.close()
