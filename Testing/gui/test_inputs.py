"""Choosing what to register and how: selectors, presets, expert settings, devices, and why Apply is not possible."""

from __future__ import annotations

import json
import typing
from enum import Enum

import pytest
import slicer
from nephi.learning.shipped import shipped_models
from nephi.settings import PRESETS
from NePhiRegistrationLib import parameters
from NePhiRegistrationLib.choices import Alignment, Preset, Similarity
from NePhiRegistrationLib.parameters import Parameters

_HINTS = typing.get_type_hints(Parameters, include_extras=True)


def _bound(panel) -> dict:
    return {w.property("SlicerParameterName"): w for w in vars(panel.ui).values() if w.property("SlicerParameterName")}


def _other(value, kind):
    """A valid value that is not this one."""
    if isinstance(value, Enum):
        return next(v for v in type(value) if v is not value)
    if isinstance(value, bool):
        return not value
    low, high = kind.__metadata__[0].minimum, kind.__metadata__[0].maximum
    return type(value)(low + (high - low) / 2) if isinstance(value, int) else round(low + (high - low) / 2, 1)


_DEFAULTS = Parameters(slicer.vtkMRMLScriptedModuleNode())
_PLAIN = [name for name in _HINTS if isinstance(getattr(_DEFAULTS, name), (Enum, bool, int, float))]


@pytest.mark.parametrize("name", _PLAIN)
def test_plain_parameter_goes_both_ways(panel, name):
    widget, start = _bound(panel)[name], getattr(_DEFAULTS, name)
    there = _other(start, _HINTS[name])
    setattr(panel.p, name, there)
    if isinstance(start, Enum):
        assert widget.currentText == there.label()
        widget.setCurrentIndex(list(type(start)).index(start))
    elif isinstance(start, bool):
        assert widget.checked is there
        widget.click()
    else:
        assert widget.value == there
        widget.value = start
    assert getattr(panel.p, name) == start


@pytest.mark.parametrize("name", parameters._NODES)
def test_node_selector_goes_both_ways(panel, phantom, name):
    for class_name in ("vtkMRMLSegmentationNode", "vtkMRMLLinearTransformNode"):
        slicer.mrmlScene.AddNewNodeByClass(class_name)
    widget = _bound(panel)[name]
    nodes = [widget.nodeFromIndex(i) for i in range(widget.nodeCount())]
    assert nodes, name
    for node in nodes:
        widget.setCurrentNode(node)
        assert getattr(panel.p, name) is node
    widget.setCurrentNode(None)
    assert getattr(panel.p, name) is None
    setattr(panel.p, name, nodes[-1])
    assert widget.currentNode() is nodes[-1]
    slicer.mrmlScene.RemoveNode(nodes[-1])
    panel.tick()
    assert getattr(panel.p, name) is None and widget.currentNode() is None


def test_label_maps_are_no_volumes_to_register(panel, phantom):
    assert panel.ui.fixedSelector.nodeCount() == panel.ui.movingSelector.nodeCount() == 2
    assert panel.ui.fixedMaskSelector.nodeCount() == 2


def test_the_only_pair_is_chosen(panel, phantom):
    assert panel.p.fixed is None
    panel.leave()
    panel.enter()
    assert (panel.p.fixed, panel.p.moving) == tuple(phantom[:2])


def test_nothing_is_chosen_among_three(panel, phantom):
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    panel.leave()
    panel.enter()
    assert panel.p.fixed is None and panel.p.moving is None


def _why_not(panel) -> str:
    panel.tick()
    assert panel.ui.applyButton.enabled == (panel.ui.statusLabel.text == "")
    if panel.ui.statusLabel.text:
        assert panel.ui.applyButton.toolTip == panel.ui.statusLabel.text
    return panel.ui.statusLabel.text


def test_reasons_are_said_until_nothing_is_missing(panel, phantom):
    p = panel.p
    fixed, moving, _, _, fixed_points, moving_points = phantom
    assert _why_not(panel) == "Choose the fixed volume."
    assert panel.ui.estimateLabel.text == "-"
    p.fixed = fixed
    assert _why_not(panel) == "Choose the moving volume."
    p.moving = fixed
    assert "same" in _why_not(panel)
    p.moving = moving
    assert _why_not(panel) == ""
    assert "GB of memory" in panel.ui.estimateLabel.text
    p.fixed_landmarks = fixed_points
    assert "both volumes" in _why_not(panel)
    p.moving_landmarks = empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    assert "empty" in _why_not(panel)
    empty.AddControlPoint((0.0, 0.0, 0.0))  # the user places points, the panel notices
    assert "must match" in _why_not(panel)
    p.moving_landmarks = moving_points
    assert _why_not(panel) == ""
    p.fixed_mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert "no segments" in _why_not(panel)


def test_apply_without_inputs_does_nothing(panel):
    panel.ui.applyButton.click()
    panel.ui.cancelButton.click()
    assert panel.widget.runs.run is None and panel.ui.statusLabel.text == "Choose the fixed volume."


def test_preset_fills_the_expert_settings(panel):
    for choice in (Preset.FAST, Preset.PAPER, Preset.ACCURATE, Preset.BALANCED):
        panel.ui.presetComboBox.setCurrentIndex(list(Preset).index(choice))
        settings, p = PRESETS[choice.term], panel.p
        assert (p.similarity.term, p.points) == (settings.similarity.name, settings.similarity.points.most)
        assert (p.weight, p.iterations, p.seed) == (settings.regularity.weight, settings.fit.iterations, 0)
        assert parameters.job(p).settings() == settings


def test_expert_changes_are_said_and_can_be_taken_back(panel, phantom):
    panel.p.fixed, panel.p.moving = phantom[:2]
    assert "expert" not in panel.ui.estimateLabel.text
    panel.ui.iterationsSpinBox.value = 7
    panel.ui.similarityComboBox.setCurrentIndex(list(Similarity).index(Similarity.LNCC))
    assert panel.ui.estimateLabel.text.endswith("expert settings changed: similarity, iterations")
    settings = parameters.job(panel.p).settings()
    assert (settings.fit.iterations, settings.similarity.name) == (7, "lncc")
    assert settings.levels == PRESETS["balanced"].levels
    panel.ui.resetButton.click()
    assert parameters.job(panel.p).settings() == PRESETS["balanced"]
    assert "expert" not in panel.ui.estimateLabel.text


def test_settings_file(panel, phantom, tmp_path):
    panel.p.fixed, panel.p.moving = phantom[:2]
    assert not panel.ui.settingsFilePathLineEdit.visible
    panel.ui.presetComboBox.setCurrentIndex(list(Preset).index(Preset.FILE))
    assert panel.ui.settingsFilePathLineEdit.visible
    assert _why_not(panel) == "Choose a settings file, or another preset."
    line = panel.ui.settingsFilePathLineEdit
    line.currentPath = str(tmp_path / "absent.json")
    assert "does not exist" in _why_not(panel)
    (tmp_path / "broken.json").write_text("{")
    line.currentPath = str(tmp_path / "broken.json")
    assert "not valid JSON" in _why_not(panel)
    (tmp_path / "odd.json").write_text('{"fit": {"iterations": -4}}')
    line.currentPath = str(tmp_path / "odd.json")
    assert "iterations" in _why_not(panel)
    (tmp_path / "mine.json").write_text(json.dumps({"preset": "fast", "fit": {"iterations": 33}}))
    line.currentPath = str(tmp_path / "mine.json")
    assert _why_not(panel) == ""
    assert panel.p.settings_file == str(tmp_path / "mine.json") and panel.p.iterations == 33
    assert parameters.job(panel.p).settings().similarity == PRESETS["fast"].similarity
    panel.ui.presetComboBox.setCurrentIndex(list(Preset).index(Preset.BALANCED))
    assert parameters.job(panel.p).settings() == PRESETS["balanced"]


def test_initial_transform_takes_the_place_of_the_alignment(panel, phantom):
    panel.p.fixed, panel.p.moving = phantom[:2]
    panel.p.align = Alignment.NONE
    assert panel.ui.alignComboBox.enabled and parameters.job(panel.p).align == "none"
    panel.p.initial_transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    assert not panel.ui.alignComboBox.enabled and _why_not(panel) == ""
    panel.p.initial_transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    assert _why_not(panel) == "" and parameters.job(panel.p).initial_is_bent()
    assert parameters.job(panel.p).settings().align == "auto"  # what it takes the place of


def test_segments(panel, phantom):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    for name in ("left lung", "right lung"):
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.AddRepresentation("Binary labelmap", slicer.vtkOrientedImageData())
        node.GetSegmentation().AddSegment(segment, name)
    for side in ("fixed", "moving"):
        box = getattr(panel.ui, f"{side}SegmentComboBox")
        assert not box.visible
        setattr(panel.p, f"{side}_mask", node)
        assert box.visible and [box.itemText(i) for i in range(box.count)] == [
            "All segments",
            "left lung",
            "right lung",
        ]
        panel.choose(box, "right lung")
        assert getattr(panel.p, f"{side}_segment") == "right lung"
        assert getattr(parameters.job(panel.p), f"{side}_segment") == "right lung"
    node.GetSegmentation().RemoveSegment("right lung")
    panel.tick()
    assert panel.ui.fixedSegmentComboBox.currentText == "(removed)"
    panel.p.fixed, panel.p.moving = phantom[:2]
    assert "no longer" in _why_not(panel)
    panel.choose(panel.ui.fixedSegmentComboBox, "All")
    panel.choose(panel.ui.movingSegmentComboBox, "All")
    assert _why_not(panel) == ""
    panel.p.fixed_mask = phantom[2]
    assert not panel.ui.fixedSegmentComboBox.visible


def test_devices(panel, phantom):
    panel.p.fixed, panel.p.moving = phantom[:2]
    panel.wait(lambda: panel.ui.deviceComboBox.count == 3)
    box = panel.ui.deviceComboBox
    assert [box.itemText(i) for i in range(3)] == ["Automatic", "CPU (2 cores)", "Test GPU (24 GB)"]
    panel.choose(box, "CPU")
    assert panel.p.device == parameters.job(panel.p).device == "cpu"
    on_cpu = panel.ui.estimateLabel.text
    panel.choose(box, "Test GPU")
    assert panel.p.device == "cuda:0" and panel.ui.estimateLabel.text != on_cpu
    panel.widget.logic.devices[1]["memory_mb"] = 1
    panel.tick()
    assert "more than Test GPU (24 GB) has" in panel.ui.estimateLabel.text
    panel.p.device = "cuda:7"  # of the machine that the scene was saved on
    assert box.currentText == "cuda:7 (not found here)" and panel.p.device == "cuda:7"


def test_devices_of_an_engine_that_can_not_start(app, monkeypatch):
    from conftest import Panel
    from NePhiRegistrationLib.job import LogicError

    def fails(_self):
        raise LogicError("no torch")

    monkeypatch.setattr("NePhiRegistrationLib.logic.Logic.devices", fails)
    panel = Panel()
    panel.wait(lambda: panel.widget._devices is None)
    assert [panel.ui.deviceComboBox.itemText(i) for i in range(panel.ui.deviceComboBox.count)] == ["Automatic", "CPU"]
    panel.close()


def test_trained_model(panel, phantom, tmp_path):
    panel.p.fixed, panel.p.moving = phantom[:2]
    box, line = panel.ui.modelComboBox, panel.ui.modelFilePathLineEdit
    assert box.currentText.startswith("None") and not line.visible
    assert parameters.job(panel.p).settings().model is None
    assert not any("2d" in box.itemText(i) for i in range(box.count))  # volumes are 3D
    for name in (name for name in shipped_models() if "2d" not in name):
        panel.choose(box, name)
        assert _why_not(panel) == "" and parameters.job(panel.p).settings().model == name
    panel.choose(box, "Model file")
    assert line.visible and _why_not(panel) == "Choose a model file, or no trained model."
    line.currentPath = str(tmp_path / "absent.safetensors")
    assert "no model" in _why_not(panel)
    (tmp_path / "mine.safetensors").write_bytes(b"read by the engine")
    line.currentPath = str(tmp_path / "mine.safetensors")
    assert _why_not(panel) == ""
    assert parameters.job(panel.p).settings().model == str(tmp_path / "mine.safetensors")


def test_tolerances_of_the_site(panel, phantom, tmp_path):
    panel.p.fixed, panel.p.moving = phantom[:2]
    line, file = panel.ui.tolerancesFilePathLineEdit, tmp_path / "clinic.json"
    line.currentPath = str(tmp_path / "absent.json")
    assert "absent.json" in _why_not(panel)
    file.write_text('{"mean_mm": -1}')
    line.currentPath = str(file)
    assert "mean_mm" in _why_not(panel)
    file.write_text('{"mean_mm": 1.5}')
    panel.tick()
    assert _why_not(panel) == "" and parameters.job(panel.p).tolerances_file == str(file)


def test_lungs_that_are_found_become_the_mask_that_is_missing(ready):
    ui, p = ready.ui, ready.p
    assert not ui.findLungsButton.enabled and "are skipped" in ui.findLungsButton.toolTip
    p.fixed_mask = None
    ready.tick()
    assert ui.findLungsButton.enabled and not ui.lungsLabel.visible
    ui.findLungsButton.click()
    assert ui.lungsLabel.text == "Looking for the lungs ..." and not ui.findLungsButton.enabled
    ready.leave()  # it goes on
    ready.wait(lambda: not ready.widget.lungs.running)
    ready.enter()
    assert p.fixed_mask.GetName() == "Lungs of Exhale (phantom)" and p.fixed_segment == ""
    assert p.moving_mask.IsA("vtkMRMLLabelMapVolumeNode")  # that was chosen
    assert ui.lungsLabel.visible and "Segment Editor" in ui.lungsLabel.text and not ui.findLungsButton.enabled
    assert parameters.job(p).measured_regions() is p.fixed_mask and ui.applyButton.enabled


def test_search_for_lungs_ends_with_the_scene(ready):
    ready.p.fixed_mask = None
    ready.tick()
    ready.ui.findLungsButton.click()
    slicer.mrmlScene.Clear(0)
    ready.tick()
    assert not ready.widget.lungs.running and not ready.ui.lungsLabel.visible
    assert "Choose a volume first" in ready.ui.findLungsButton.toolTip
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == []
