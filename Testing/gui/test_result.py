"""The result section: what the views show, in which words, numbers, tables, saving, other results, scenes reloaded."""

from __future__ import annotations

import gc
import json
import re
import typing
import weakref

import pytest
import slicer
from conftest import FOLDS, add_result
from NePhiRegistrationLib import deformation, display, resultpanel, review, theme
from NePhiRegistrationLib.choices import OVERLAYS, Alignment, GridMode, Preset, Similarity, View
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.parameters import Parameters
from PySide6.QtGui import QColor, QPalette
from saving import save_scene
from standin.pythonqt import send


def _layers() -> tuple:
    """Background, foreground and opacity, the same in all slice views."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    found = {(n.GetBackgroundVolumeID(), n.GetForegroundVolumeID(), n.GetForegroundOpacity()) for n in nodes}
    assert len(nodes) == 3 and len(found) == 1
    background, foreground, opacity = found.pop()
    node = slicer.mrmlScene.GetNodeByID
    return node(background), node(foreground) if foreground else None, opacity


def _jacobian():
    """The volume with the colours of the Jacobian determinant."""
    return display.find_masked_jacobian(slicer.mrmlScene)


def _drawn(view: View):
    """The volume that was made for a view, or None."""
    views = (View.JACOBIAN, View.ERROR, View.DISPLACEMENT, View.CONSISTENCY)
    return display.own_volume(slicer.mrmlScene, dict(zip(views, display.MADE_OVERLAYS, strict=True))[view])


def _legend(volume) -> bool:
    node = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)
    return node is not None and bool(node.GetVisibility())


def _show(panel, view: View) -> None:
    panel.ui.viewComboBox.setCurrentIndex(list(View).index(view))


def test_every_view_lays_its_volumes_over_each_other(finished):
    out, ui = finished.outputs, finished.ui
    ui.opacitySlider.value = 0.3
    _show(finished, View.FADE)
    assert _layers() == (out.fixed, out.warped, 0.3)
    _show(finished, View.FIXED)
    assert _layers()[:2] == (out.fixed, None)
    made = []
    for view in (View.CHECKERBOARD, View.DIFFERENCE):
        _show(finished, view)
        background, foreground, _opacity = _layers()
        assert background not in (out.fixed, out.warped) and foreground is None
        made.append(slicer.util.arrayFromVolume(background).copy())
    assert (made[0] != made[1]).any()
    for view in OVERLAYS:
        _show(finished, view)
        volume = _drawn(view)
        assert _layers() == (out.fixed, volume, 0.3) and _legend(volume)
        ui.legendCheckBox.click()
        assert not _legend(volume)
        ui.legendCheckBox.click()
        ui.opacitySlider.value = 0.8
        assert _layers()[2] == 0.8
        ui.opacitySlider.value = 0.3
    _show(finished, View.FADE)
    assert not any(map(_drawn, OVERLAYS))


def test_before_shows_the_moving_volume_instead(finished):
    _show(finished, View.FADE)
    finished.ui.beforeCheckBox.click()
    assert _layers()[1] is finished.outputs.moving
    _show(finished, View.DIFFERENCE)
    before = slicer.util.arrayFromVolume(_layers()[0]).copy()
    assert "moving" in finished.ui.meaningLabel.text and "warped" not in finished.ui.meaningLabel.text
    finished.ui.beforeCheckBox.click()
    assert (slicer.util.arrayFromVolume(_layers()[0]) != before).any()


def test_flicker_goes_on_only_while_it_is_watched(finished):
    timer = finished.widget.results._flicker
    _show(finished, View.FLICKER)
    assert timer.active and _layers() == (finished.outputs.fixed, finished.outputs.warped, 1.0)
    send(timer, "timeout")
    assert _layers()[2] == 0.0
    send(timer, "timeout")
    assert _layers()[2] == 1.0
    finished.leave()
    assert not timer.active
    finished.enter()
    assert timer.active
    _show(finished, View.FADE)
    assert not timer.active
    _show(finished, View.FLICKER)
    slicer.mrmlScene.Clear(0)
    assert not timer.active


@pytest.mark.parametrize("view", View)
def test_what_is_seen_is_said_in_words(finished, view):
    _show(finished, view)
    ui, text = finished.ui, finished.ui.meaningLabel.text
    assert ui.meaningLabel.visible == bool(text) == (view is not View.FIXED)
    overlay = view in OVERLAYS
    assert ui.beyondCheckBox.visible == (view is View.ERROR)
    assert ui.legendCheckBox.visible == overlay and ui.opacitySlider.visible == (overlay or view is View.FADE)
    assert ui.beforeCheckBox.visible == (not overlay and view is not View.FIXED)
    if view is View.JACOBIAN:
        assert "in percent" in text and "Yellow, -100 % or less" in text.replace("\u00a0", " ")
    if overlay and view is not View.JACOBIAN:
        assert " mm" in text
    if view is View.DIFFERENCE:
        assert "Bright: warped is denser than fixed" in text


def test_deformation_is_drawn_as_chosen(finished):
    out, ui = finished.outputs, finished.ui
    assert deformation.find(out.forward) is None and not ui.gridModeComboBox.visible
    ui.gridCheckBox.click()
    shown = deformation.find(out.forward).GetDisplayNode()
    assert (shown.GetVisibility(), shown.GetVisibility2D(), shown.GetVisibility3D()) == (1, 1, 0)
    assert ui.gridMeaningLabel.visible and "from fixed to moving" in ui.gridMeaningLabel.text
    ui.grid3dCheckBox.click()
    ui.grid2dCheckBox.click()
    assert (shown.GetVisibility2D(), shown.GetVisibility3D()) == (0, 1)
    ui.grid2dCheckBox.click()
    assert _legend(deformation.find(out.forward)) and ui.legendCheckBox.visible
    ui.legendCheckBox.click()
    assert not _legend(deformation.find(out.forward))
    ui.legendCheckBox.click()
    modes = (shown.VIS_MODE_GRID, shown.VIS_MODE_GLYPH, shown.VIS_MODE_CONTOUR)
    for mode, expected in zip(GridMode, modes, strict=True):
        ui.gridModeComboBox.setCurrentIndex(list(GridMode).index(mode))
        assert shown.GetVisualizationMode() == expected
        assert ("One contour every" in ui.gridMeaningLabel.text) == (mode is GridMode.CONTOURS)
    most_mm = shown.GetColorMap().GetRange()[1]
    assert f"red: {most_mm:.3g} mm" in ui.gridMeaningLabel.text
    ui.gridSpacingSlider.value = 25.0
    assert (shown.GetGridSpacingMm(), shown.GetGlyphSpacingMm()) == (25.0, 25.0)
    ui.gridCheckBox.click()
    assert not shown.GetVisibility() and not ui.gridMeaningLabel.visible


def test_a_click_on_a_fold_takes_all_slices_there(finished):
    table = finished.ui.foldsTable
    assert finished.ui.tablesTabWidget.tabText(1) == "Folds (2)" and table.rowCount == 2
    assert "Folded in 2 places" in finished.ui.summaryLabel.text
    for row, fold in enumerate(FOLDS):
        assert float(table.item(row, 0).text()) == fold["voxels"]
        send(table, "cellClicked", row, 0)
        x, y, z = fold["centre_lps_mm"]
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            place = [node.GetSliceToRAS().GetElement(i, 3) for i in range(3)]
            assert place == pytest.approx([-x, -y, z], abs=1e-6)


def test_without_folds_there_is_no_such_table(finished, engine_folder, tmp_path):
    add_result(finished, engine_folder, tmp_path / "none", [])
    tabs = finished.ui.tablesTabWidget
    assert tabs.tabText(1) == "No folds" and not tabs.isTabEnabled(1) and tabs.isTabEnabled(0)
    assert "No folds." in finished.ui.summaryLabel.text


def test_warnings_are_said_in_the_panels_words(finished):
    report = finished.outputs.report
    report["warnings"] = ["The fixed lung mask was found by a threshold; check it, or give one with --fixed-mask."]
    finished.outputs.report_text.SetText(json.dumps(report))
    finished.widget._update()
    assert "check it, or give one as fixed mask." in finished.ui.summaryLabel.text


def _cells(table) -> dict[str, str]:
    return {table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount)}


def test_numbers_and_lobes(finished):
    report, numbers = finished.outputs.report, _cells(finished.ui.numbersTable)
    assert float(numbers["Jacobian, min"]) == pytest.approx(report["jacobian"]["min"], abs=5e-4)
    litres, unit = numbers["Fixed volume"].split()
    assert float(litres) == pytest.approx(report["volume"]["fixed_ml"] / 1000, abs=5e-4) and unit == "L"
    error, unit = numbers["TRE after, mean"].split()
    assert float(error) == pytest.approx(report["tre_mm"]["after"]["mean"], abs=5e-3) and unit == "mm"
    lobes = _cells(finished.ui.lobesTable)
    assert list(lobes) == ["right lung", "left lung"]
    assert sum(map(float, lobes.values())) == pytest.approx(report["volume"]["fixed_ml"], rel=1e-3)
    tre = report["tre_mm"]
    words = f"mean {tre['before']['mean']:.1f} mm before, {tre['after']['mean']:.1f} mm after; largest"
    assert words in finished.ui.summaryLabel.text


def test_a_result_is_accepted_or_rejected(finished, app):
    ui, row = finished.ui, lambda: finished.ui.resultsTable.item(0, 2).text()
    assert "Nobody" in ui.reviewLabel.text and row() == "-"
    ui.acceptResultButton.click()
    assert "name" in app.said[-1] and "Nobody" in ui.reviewLabel.text
    ui.reviewerLineEdit.text = "Dr. Müller"
    ui.rejectResultButton.click()
    assert "why" in app.said[-1] and row() == "-"
    ui.acceptResultButton.click()
    assert ui.reviewLabel.text.startswith("Accepted by Dr. Müller") and row() == "Accepted"
    ui.reviewCommentLineEdit.text = "left base is off"
    ui.rejectResultButton.click()
    latest, former = ui.reviewLabel.text.splitlines()
    assert latest.startswith("Rejected") and latest.endswith("left base is off") and former.startswith("Accepted")
    assert row() == "Rejected" and ui.reviewCommentLineEdit.text == ""
    assert app.userSettings().value("NePhiRegistration/reviewer") == "Dr. Müller"
    assert [r.accepted for r in review.reviews(finished.outputs)] == [True, False]


def test_titles_of_all_tables_are_readable(finished):
    """At the width that a panel has at first."""
    bar = finished.ui.tablesTabWidget.tabBar()
    last = bar.tabRect(bar.count() - 1)
    assert last.right() <= bar.width() + 1 <= 440


def test_histogram_is_shown_in_the_layout(finished):
    finished.ui.histogramButton.click()
    assert slicer.modules.plots.shown is finished.outputs.histogram


def test_save(finished, app, monkeypatch, tmp_path):
    saved = str(tmp_path / "saved")
    answers = ["", saved, saved, str(tmp_path / "file" / "below")]
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(resultpanel.qt.QFileDialog, "getExistingDirectory", lambda *_: answers.pop(0))
    finished.ui.saveButton.click()
    assert app.said == []  # the user thought better of it
    finished.ui.saveButton.click()
    assert app.said == [f"Saved in {tmp_path / 'saved'}."]
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {
        "transform.h5",
        "registration.safetensors",
        "report.html",
        "folds.csv",
        "ventilation.csv",
        "warped.nii.gz",
    } <= names
    earlier = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    finished.ui.saveButton.click()
    assert app.said[-1] == f"Saved in {tmp_path / 'saved' / 'Inhale to exhale'}."
    assert {name: (tmp_path / "saved" / name).read_bytes() for name in earlier} == earlier
    finished.ui.saveButton.click()
    assert app.said[-1].startswith("The result could not be saved:")


def test_another_result_takes_the_views(finished, engine_folder, tmp_path):
    first = finished.outputs
    finished.ui.gridCheckBox.click()
    _show(finished, View.JACOBIAN)
    second = add_result(finished, engine_folder, tmp_path / "second", [])
    assert _layers()[1] is _jacobian() and second.jacobian.GetID() in _jacobian().GetAttribute("NePhi.MaskedJacobian")
    assert deformation.find(first.forward) is None and deformation.find(second.forward) is not None
    finished.ui.resultSelector.setCurrentNode(first.forward)
    assert (
        first.jacobian.GetID() in _jacobian().GetAttribute("NePhi.MaskedJacobian")
        and finished.ui.foldsTable.rowCount == 2
    )
    finished.ui.resultSelector.setCurrentNode(None)
    assert _layers()[:2] == (first.fixed, None)
    assert not finished.ui.qaWidget.visible and "After a registration" in finished.ui.summaryLabel.text


def test_removed_nodes_of_a_result(finished):
    finished.ui.gridCheckBox.click()
    slicer.mrmlScene.RemoveNode(finished.outputs.warped)
    finished.tick()
    finished.widget._update()
    assert "incomplete" in finished.ui.summaryLabel.text and not finished.ui.qaWidget.visible
    slicer.mrmlScene.RemoveNode(finished.outputs.forward)
    finished.widget._update()
    assert "After a registration" in finished.ui.summaryLabel.text
    drawn = slicer.util.getNodesByClass("vtkMRMLGridTransformNode")
    assert [node for node in drawn if node.GetDisplayNode() and node.GetDisplayNode().GetVisibility()] == []


class _Folder:
    """In the place of a run's folder: tells whether anything still refers to it."""


def test_result_is_let_go_with_its_nodes_or_its_scene(finished, engine_folder, tmp_path):
    """The engine's files, with patients' images, go with it, also while another module is open."""
    first, owners = finished.outputs, []
    second = add_result(finished, engine_folder, tmp_path / "second", [])
    third = add_result(finished, engine_folder, tmp_path / "third", [])
    for outputs in (first, second, third):
        outputs.owner = _Folder()
        owners.append(weakref.ref(outputs.owner))
    finished.leave()
    slicer.mrmlScene.RemoveNode(first.warped)  # not the one that is shown
    slicer.mrmlScene.RemoveNode(third.jacobian)  # the one that is shown
    del first, third, outputs, finished.outputs
    gc.collect()
    assert [owner() is not None for owner in owners] == [False, True, False]
    finished.enter()
    finished.tick()
    assert "incomplete" in finished.ui.summaryLabel.text
    del second
    slicer.mrmlScene.Clear(0)
    gc.collect()
    assert [owner() is not None for owner in owners] == [False] * 3


def test_maps_of_a_result_are_no_volumes_to_register(finished):
    """Nor is what is made for the views; the warped volume is an image like another."""
    out, ui = finished.outputs, finished.ui
    for view in (View.CHECKERBOARD, View.JACOBIAN):
        _show(finished, view)
    live = display.show_live(out.forward, out.fixed, out.moving)
    finished.tick()
    for selector in (ui.fixedSelector, ui.movingSelector):
        offered = {selector.nodeFromIndex(i) for i in range(selector.nodeCount())}
        assert offered == {out.fixed, out.moving, out.warped}
    display.hide_live(live)
    finished.p.fixed = out.jacobian  # by a script, or of a scene from before
    finished.tick()
    assert finished.p.fixed is out.jacobian


@pytest.mark.parametrize("ground", ["#323232", "#f0f0f0"])
def test_signs_are_readable_in_a_dark_theme(finished, ground):
    palette = finished.ui.summaryLabel.palette
    palette.setColor(QPalette.Window, QColor(ground))
    finished.ui.summaryLabel.setPalette(palette)
    finished.widget._update()
    colors = re.findall(r"color:(#\w{6})", finished.ui.summaryLabel.text)

    def rgb(text):
        return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))

    assert len(set(colors)) >= 2
    assert all(theme.contrast(rgb(color), rgb(ground)) >= 4.5 for color in colors)


def test_transform_removed_while_its_grid_is_drawn(finished):
    finished.ui.gridCheckBox.click()
    slicer.mrmlScene.RemoveNode(finished.outputs.forward)
    finished.widget._update()
    assert display.nodes.of_class(slicer.mrmlScene, "vtkMRMLGridTransformNode") == [finished.outputs.inverse]


_CHOSEN = {
    "auto_mask": False,
    "align": Alignment.MOMENTS,
    "preset": Preset.PAPER,
    "device": "cuda:0",
    "similarity": Similarity.MSE,
    "points": 777,
    "weight": 3.5,
    "iterations": 42,
    "seed": 7,
    "model": "lung",
    "live": False,
    "view": View.JACOBIAN,
    "before": True,
    "opacity": 0.7,
    "legend": False,
    "beyond": True,
    "grid": True,
    "grid_mode": GridMode.CONTOURS,
    "grid_spacing_mm": 8.0,
    "grid_2d": False,
    "grid_3d": True,
}


def test_everything_is_there_again_after_the_scene_was_saved_and_loaded(finished, phantom, tmp_path):
    p = finished.p
    for name, node in zip(
        ("fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks"), phantom[2:], strict=True
    ):
        setattr(p, name, node)
    p.regions = phantom[2]
    p.initial_transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "initial")
    for name, value in {"preset": Preset.PAPER, **_CHOSEN}.items():  # the preset first: it fills the expert fields
        setattr(p, name, value)
    finished.tick()
    nodes = ("fixed", "moving", "fixed_mask", "fixed_landmarks", "regions", "initial_transform", "result")
    names = {name: getattr(p, name).GetName() for name in nodes}
    plain = [name for name in typing.get_type_hints(Parameters) if not isinstance(getattr(p, name), slicer.vtkMRMLNode)]
    values = {name: getattr(p, name) for name in plain}
    assert {name: values[name] for name in _CHOSEN} == _CHOSEN
    numbers, summary = _cells(finished.ui.numbersTable), finished.ui.summaryLabel.text
    point = [10.0, -20.0, 30.0]
    moved = finished.outputs.forward.GetTransformFromParent().TransformPoint(point)

    file = tmp_path / "scene.mrml"
    save_scene(slicer.mrmlScene, file)
    slicer.mrmlScene.Clear(0)
    assert finished.p.preset is Preset.PAPER and not finished.ui.qaWidget.visible  # remembered
    slicer.mrmlScene.SetURL(str(file))
    assert slicer.mrmlScene.Connect()
    finished.tick()

    p = finished.p
    assert {name: getattr(p, name) for name in plain} == values
    assert {name: getattr(p, name).GetName() for name in nodes} == names
    assert finished.ui.iterationsSpinBox.value == 42 and finished.ui.deviceComboBox.currentText.startswith("Test GPU")
    assert finished.ui.fixedSelector.currentNode() is p.fixed
    assert (finished.ui.statusLabel.text, finished.ui.applyButton.enabled) == ("", True)
    out = Outputs.find(p.result)
    assert (_cells(finished.ui.numbersTable), finished.ui.summaryLabel.text) == (numbers, summary)
    assert _layers() == (out.fixed, _jacobian(), 0.7)
    assert deformation.find(p.result).GetDisplayNode().GetVisibility3D()
    assert p.result.GetTransformFromParent().TransformPoint(point) == pytest.approx(moved, abs=1e-3)
    send(finished.ui.foldsTable, "cellClicked", 1, 0)
    finished.ui.histogramButton.click()
    assert slicer.modules.plots.shown is out.histogram
