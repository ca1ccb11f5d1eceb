"""The choices of the panel that are not bound to a parameter automatically: files, segments, models, devices."""

from __future__ import annotations

import slicer

from . import scene as nodes
from .choices import MODEL_FILE, Preset, models
from .i18n import tr as _
from .parameters import Parameters
from .presetpanel import PresetPanel
from .severalpanel import SeveralPanel

_SIDES = ("fixed", "moving")
_SEGMENTS = {  # the box of a mask's segments, and the mask
    "fixedSegmentComboBox": "fixed_mask",
    "movingSegmentComboBox": "moving_mask",
    "fixedExcludedSegmentComboBox": "fixed_excluded",
    "movingExcludedSegmentComboBox": "moving_excluded",
    "rigidSegmentComboBox": "rigid",
    "volumeKeptSegmentComboBox": "volume_kept",
}


class InputPanel:
    def __init__(self, ui):
        self.ui = ui
        self.parameters: Parameters | None = None  # while the module is open
        self._files = {
            "settings_file": ui.settingsFilePathLineEdit,
            "model_file": ui.modelFilePathLineEdit,
            "tolerances_file": ui.tolerancesFilePathLineEdit,
        }
        self._presets = PresetPanel(ui)
        self._several = SeveralPanel(ui, self._presets.presets)
        ui.deviceComboBox.connect("activated(int)", lambda index: self._choose("device", ui.deviceComboBox, index))
        ui.modelComboBox.connect("activated(int)", lambda index: self._choose("model", ui.modelComboBox, index))
        for box_name, mask in _SEGMENTS.items():
            box, name = getattr(ui, box_name), _segment_of(mask)
            box.connect("activated(int)", lambda index, box=box, name=name: self._choose(name, box, index))
        for name, line in self._files.items():
            line.connect("currentPathChanged(QString)", lambda path, name=name: self._on_file(name, path))

    def show(self, devices: list[dict]) -> None:
        """Show the parameters; ``devices`` as in ``Logic.devices``."""
        ui, p = self.ui, self.parameters
        ui.settingsFileLabel.visible = ui.settingsFilePathLineEdit.visible = p.preset is Preset.FILE
        ui.modelFileLabel.visible = ui.modelFilePathLineEdit.visible = p.model == MODEL_FILE
        self._presets.parameters = self._several.parameters = p
        self._presets.show()
        self._several.show()
        for name, line in self._files.items():
            if line.currentPath != getattr(p, name):
                line.currentPath = getattr(p, name)
        _fill_combo(ui.modelComboBox, models(), p.model, _("{name} (not found here)"))
        ui.alignComboBox.enabled = p.initial_transform is None
        for box_name, mask in _SEGMENTS.items():
            self._show_segments(getattr(ui, box_name), mask)
        for side in _SIDES:
            self._offer_no_results(getattr(ui, f"{side}Selector"), getattr(p, side))
        known = [("auto", _("Automatic")), *((device["name"], device["label"]) for device in devices)]
        _fill_combo(ui.deviceComboBox, known, p.device, _("{name} (not found here)"))

    def _show_segments(self, box, mask_name: str) -> None:
        mask = getattr(self.parameters, mask_name)
        has_segments = mask is not None and mask.IsA("vtkMRMLSegmentationNode")
        box.visible = has_segments
        if has_segments:
            segmentation = mask.GetSegmentation()
            known = [("", _("All segments"))]
            known += [(key, segmentation.GetSegment(key).GetName()) for key in segmentation.GetSegmentIDs()]
            _fill_combo(box, known, getattr(self.parameters, _segment_of(mask_name)), _("(removed)"))

    def _offer_no_results(self, selector, chosen) -> None:
        """Jacobian and error maps are volumes, but not to be registered."""
        volumes = nodes.of_class(slicer.mrmlScene, "vtkMRMLScalarVolumeNode")
        hidden = [volume.GetID() for volume in volumes if volume is not chosen and nodes.is_map(volume)]
        model = selector.sortFilterProxyModel()
        if list(model.hiddenNodeIDs) != hidden:
            model.hiddenNodeIDs = hidden

    def _choose(self, name: str, box, index: int) -> None:
        setattr(self.parameters, name, box.itemData(index))

    def _on_file(self, name: str, path: str) -> None:
        if self.parameters is not None and getattr(self.parameters, name) != path:
            setattr(self.parameters, name, path)


def _segment_of(mask_name: str) -> str:
    """The parameter that names the mask's segment."""
    return f"{mask_name.removesuffix('_mask')}_segment"


def _fill_combo(box, items: list[tuple[str, str]], chosen: str, unknown: str) -> None:
    """Data and text of the entries, left alone where nothing changes (the user may have it open).

    ``unknown``: how a choice that is not among them is called.
    """
    if chosen not in [data for data, _text in items]:
        items = [*items, (chosen, unknown.format(name=chosen))]
    if [(box.itemData(i), box.itemText(i)) for i in range(box.count)] != items:
        box.clear()
        for data, text in items:
            box.addItem(text, data)
    index = [data for data, _text in items].index(chosen)
    if box.currentIndex != index:
        box.currentIndex = index
