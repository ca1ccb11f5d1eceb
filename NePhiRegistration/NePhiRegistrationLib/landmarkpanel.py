"""The panel's table of landmark pairs: the error of each, which follows the points as they are moved."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer

from . import display
from .i18n import tr as _
from .pairs import Pair, add_pair, are_judged, pairs
from .parameters import Parameters

_FIXED_COLUMNS = 3  # from here on a click leads to the moving point


class LandmarkPanel:
    def __init__(self, ui, show_fixed: Callable[[], None]):
        """``show_fixed`` restores the views as they were before a moving point was shown."""
        self.ui, self._show_fixed = ui, show_fixed
        self._parameters: Parameters | None = None
        self._outputs = None
        self._pairs: list[Pair] = []
        self._filled = False
        ui.landmarksTable.connect("cellClicked(int,int)", self._jump)
        ui.addPairButton.connect("clicked(bool)", self._add)

    def update(self, p: Parameters, outputs) -> None:
        """Update the table if an error has changed. A markups node does not report when a point is moved."""
        self._parameters, self._outputs = p, outputs
        lists = (p.fixed_landmarks, p.moving_landmarks) if outputs is not None else (None, None)
        found = pairs(outputs, *lists) if None not in lists else []
        if found != self._pairs or not self._filled:
            self._pairs, self._filled = found, True
            self._fill()

    def forget(self) -> None:
        self._parameters = self._outputs = None
        self._pairs, self._filled = [], False

    def _fill(self) -> None:
        table = self.ui.landmarksTable
        titles = (_("Pair"), _("Before\n(mm)"), _("After\n(mm)"), _("Moving\npoint"))
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(list(titles))
        table.setRowCount(len(self._pairs))
        for row, pair in enumerate(self._pairs):
            errors = ["-" if mm is None else f"{mm:.1f}" for mm in (pair.before_mm, pair.after_mm)]
            for column, text in enumerate((pair.label, *errors, _("show"))):
                table.setItem(row, column, qt.QTableWidgetItem(text))
        table.resizeColumnsToContents()
        table.resizeRowsToContents()
        self.ui.landmarksHintLabel.text = self._hint()

    def _hint(self) -> str:
        measured = [pair for pair in self._pairs if pair.after_mm is not None]
        text = _(
            "A click shows the fixed point, or in the last column the moving one. Points can be dragged in the slice "
            "views. For a new pair hold Shift, move the mouse to a place in the fixed volume, and press Add; correct "
            "the moving point then."
        )
        if not measured:
            return text
        worst = max(measured, key=lambda pair: pair.after_mm)
        mean = sum(pair.after_mm for pair in measured) / len(measured)
        numbers = {"mean": f"{mean:.1f}", "most": f"{worst.after_mm:.1f}", "label": worst.label}
        found = _("Mean {mean} mm, largest {most} mm at {label}.").format(**numbers)
        if not are_judged(self._outputs, self._pairs):
            found += " " + _("The verdict does not count the points as they are now: register again for that.")
        return f"{found} {text}"

    def _jump(self, row: int, column: int) -> None:
        pair = self._pairs[row]
        moving = column >= _FIXED_COLUMNS
        point = pair.moving_ras_mm if moving else pair.fixed_ras_mm
        if point is None:
            return
        scene = self._outputs.forward.GetScene()
        if moving:  # its position in its own image
            display.show_comparison(self._outputs.moving, None, "")
        else:
            self._show_fixed()
        display.jump(scene, point)

    def _add(self, _checked: bool = False) -> None:
        p, scene, place = self._parameters, self._outputs.forward.GetScene(), [0.0] * 3
        crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None:
            place = list(crosshair.GetCrosshairRAS())
        try:
            made = add_pair(self._outputs, p.fixed_landmarks, p.moving_landmarks, place)
        except ValueError as error:
            slicer.util.errorDisplay(str(error))
            return
        p.fixed_landmarks, p.moving_landmarks = made
        self.update(p, self._outputs)
