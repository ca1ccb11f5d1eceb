"""The panel's part in which the lungs that would be detected are shown as segmentations, to be corrected."""

from __future__ import annotations

from .i18n import tr as _
from .job import LogicError
from .lungs import LungSearch
from .parameters import Parameters
from .waiting import wait_cursor

_SIDES = ("fixed", "moving")


class LungPanel:
    def __init__(self, ui, logic):
        """``logic``: the module's."""
        self.ui, self._logic = ui, logic
        self.parameters: Parameters | None = None  # while the module is open
        self._search: LungSearch | None = None
        self._note = ""
        ui.findLungsButton.connect("clicked(bool)", self._start)

    @property
    def running(self) -> bool:
        return self._search is not None and self._search.running

    def forget(self) -> None:
        """The scene or the application is being closed."""
        if self._search is not None:
            self._search.cancel()
        self._search, self._note = None, ""

    def show(self) -> None:
        ui, wanted = self.ui, self._without_mask()
        ui.findLungsButton.enabled = bool(wanted) and not self.running
        ui.findLungsButton.toolTip = (
            _(
                "Segment the right and the left lung in the volumes without a mask. The segmentations become the "
                "masks: check them, and correct them in the Segment Editor, before the registration."
            )
            if wanted
            else _("Choose a volume first; volumes with a mask are skipped.")
        )
        text = _("Looking for the lungs ...") if self.running else self._note
        if ui.lungsLabel.text != text:
            ui.lungsLabel.text = text
        ui.lungsLabel.visible = bool(text)

    def tick(self) -> None:
        if self.running and not self._search.poll():
            self._end()

    def _without_mask(self) -> list:
        p = self.parameters
        found = [getattr(p, side) for side in _SIDES if getattr(p, f"{side}_mask") is None]
        return [volume for volume in dict.fromkeys(found) if volume is not None]

    def _start(self, _checked: bool = False) -> None:
        try:
            with wait_cursor():  # a volume is written
                self._search, self._note = LungSearch(self._logic.engine, self._without_mask()), ""
        except LogicError as error:
            self._note = str(error)
        self.show()

    def _end(self) -> None:
        search, self._search = self._search, None
        p = self.parameters or self._logic.getParameterNode()
        for volume, segmentation in search.made:
            for side in _SIDES:
                if getattr(p, side) is volume and getattr(p, f"{side}_mask") is None:
                    setattr(p, f"{side}_mask", segmentation)
        names = ", ".join(segmentation.GetName() for _volume, segmentation in search.made)
        made = _("{names}: check them, and correct them in the Segment Editor.").format(names=names) if names else ""
        self._note = " ".join(filter(None, (made, *search.errors)))
