"""The panel's own presets: chosen, saved under a name, removed."""

from __future__ import annotations

from pathlib import Path

import slicer
from nephi.errors import NephiError

from . import parameters
from .choices import Preset
from .i18n import tr as _
from .ownpresets import OwnPresets
from .parameters import Parameters


class PresetPanel:
    """Choosing one is choosing its settings file."""

    def __init__(self, ui):
        self.ui = ui
        self.parameters: Parameters | None = None
        self.presets = OwnPresets(Path(slicer.app.slicerUserSettingsFilePath).parent / "NePhiPresets")
        self._offered: list[str] | None = None
        self._shown = ""
        ui.ownPresetComboBox.connect("activated(int)", self._choose)
        ui.savePresetButton.connect("clicked(bool)", self._save)
        ui.removePresetButton.connect("clicked(bool)", self._remove)

    def show(self) -> None:
        """What is there and chosen; a name that is being typed is left alone."""
        box, names, p = self.ui.ownPresetComboBox, self.presets.names(), self.parameters
        chosen = self.presets.name_of(p.settings_file) if p.preset is Preset.FILE else ""
        if names != self._offered:
            text = box.currentText
            box.clear()
            for name in names:
                box.addItem(name, name)
            box.setEditText(text)
            self._offered = names
        if chosen != self._shown:
            box.setEditText(chosen)
            self._shown = chosen
        self.ui.removePresetButton.enabled = bool(chosen)
        self.ui.removePresetButton.toolTip = (
            _("Remove the preset {name}.").format(name=chosen)
            if chosen
            else _("Choose one of your own presets first; NePhi's cannot be removed.")
        )

    def _choose(self, index: int) -> None:
        self._use(self.presets.path(self.ui.ownPresetComboBox.itemText(index)))

    def _use(self, path: Path) -> None:
        p = self.parameters
        with slicer.util.NodeModify(p):
            p.settings_file, p.preset = str(path), Preset.FILE
        parameters.adopt_preset(p, again=True)

    def _save(self, _checked: bool = False) -> None:
        name = self.ui.ownPresetComboBox.currentText
        try:
            settings = parameters.job(self.parameters).settings()
            if name.strip() in self.presets.names() and not slicer.util.confirmOkCancelDisplay(
                _("Replace the preset {name}?").format(name=name.strip())
            ):
                return
            path = self.presets.save(name, settings)
        except (NephiError, OSError, ValueError) as error:
            slicer.util.errorDisplay(str(error))
            return
        self._use(path)

    def _remove(self, _checked: bool = False) -> None:
        name = self.presets.name_of(self.parameters.settings_file)
        if not slicer.util.confirmOkCancelDisplay(_("Remove the preset {name}?").format(name=name)):
            return
        try:
            self.presets.remove(name)
        except OSError as error:
            slicer.util.errorDisplay(str(error))
            return
        with slicer.util.NodeModify(self.parameters):
            self.parameters.preset, self.parameters.settings_file = Preset.BALANCED, ""
