"""Landmark pairs of the result that is shown: their errors, where they are placed, and the files they are saved as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from NePhiRegistrationLib import display
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.pairs import Pair, add_pair, are_judged, pairs

from .views import Views

_SIDES = ("fixed", "moving")


class Landmarks:
    """A pair is known by its place in its two lists; points are placed where the three slices meet."""

    def __init__(self, server: Any, views: Views):
        self.state, self.views = server.state, views
        self.outputs: Outputs | None = None
        self._lists: dict[str, tuple[Any, Any]] = {}  # of the results, by the ID of the forward transform
        self._edited: set[str] = set()
        for name in ("add_pair", "look_at_point", "place_point", "remove_pair"):
            server.trigger(name)(getattr(self, name))

    @property
    def _key(self) -> str:
        return "" if self.outputs is None else self.outputs.forward.GetID()

    @property
    def _points(self) -> tuple[Any, Any]:
        return self._lists.get(self._key, (None, None))

    def keep(self, outputs: Outputs, lists: tuple[Any, Any] | None) -> None:
        """What was marked when this result was made; copied, as each result's pairs can be corrected."""
        if lists is not None:
            self._lists[outputs.forward.GetID()] = tuple(_copy(points) for points in lists)

    def show(self, outputs: Outputs | None) -> None:
        for points in filter(None, self._points):
            points.GetDisplayNode().SetVisibility(False)
        self.outputs = outputs
        self._tell()

    def forget(self) -> None:
        for points in (one for lists in self._lists.values() for one in lists):
            nodes.remove(self.views.scene, points)
        self._lists.clear()
        self._edited.clear()

    def write(self, folder: Path) -> None:
        """Lists that were changed here, beside the result."""
        if self._key in self._edited:
            for side, points in zip(_SIDES, self._points, strict=True):
                nodes.write_points(points, folder / f"{side}_landmarks.csv")

    # what the user does

    def add_pair(self) -> None:
        """A fixed point where the slices meet, and a moving one where the registration takes it, to be corrected."""
        if self.outputs is None:
            return
        made = add_pair(self.outputs, *self._points, self.views.crossing_ras_mm())
        for points in made:
            points.GetDisplayNode().SetVisibility(False)
        self._lists[self._key] = made
        self.look_at_point(made[0].GetNumberOfControlPoints() - 1, "moving", edited=True)

    def look_at_point(self, row: int, side: str, edited: bool = False) -> None:
        """Its scan alone, with the point in all slices."""
        found = self._pairs()
        if side not in _SIDES or not 0 <= row < len(found):
            return
        for points, name in zip(self._points, _SIDES, strict=True):
            points.GetDisplayNode().SetVisibility(name == side)
        display.show_comparison(getattr(self.outputs, side), None, "")
        display.jump(self.views.scene, getattr(found[row], f"{side}_ras_mm"))
        self._tell({"row": row, "side": side, "label": found[row].label}, edited)
        with self.state:
            self.state.meaning = f"The {side} scan alone, with its landmarks."

    def place_point(self) -> None:
        """The point that is looked at, to where the slices meet now."""
        at = self.state.landmark
        if at and self._points[0] is not None:
            points = self._points[_SIDES.index(at["side"])]
            points.SetNthControlPointPositionWorld(at["row"], *self.views.crossing_ras_mm())
            self._tell(at, edited=True)

    def remove_pair(self) -> None:
        """The pair that is looked at."""
        at = self.state.landmark
        if at and self._points[0] is not None:
            for points in self._points:
                points.RemoveNthControlPoint(at["row"])
                points.GetDisplayNode().SetVisibility(False)
            self._tell(edited=True)

    def _tell(self, at: dict | None = None, edited: bool = False) -> None:
        if edited:
            self._edited.add(self._key)
        all_of_them = self._pairs()
        found = list(enumerate(all_of_them))
        found.sort(key=lambda one: -(one[1].after_mm or 0.0))
        with self.state:
            self.state.landmark = at or {}
            self.state.landmarks_judged = not found or are_judged(self.outputs, all_of_them)
            self.state.landmarks = [
                {"row": row, "label": pair.label, "before": f"{pair.before_mm:.2f}", "after": f"{pair.after_mm:.2f}"}
                for row, pair in found
            ]
        self.views.render()

    def _pairs(self) -> list[Pair]:
        return [] if self._points[0] is None else pairs(self.outputs, *self._points)


def _copy(points: Any) -> Any:
    made = nodes.add(points.GetScene(), "vtkMRMLMarkupsFiducialNode", points.GetName(), displayed=True)
    made.GetDisplayNode().SetVisibility(False)
    place = [0.0] * 3
    for i in range(points.GetNumberOfControlPoints()):
        points.GetNthControlPointPositionWorld(i, place)
        made.AddControlPointWorld(place, points.GetNthControlPointLabel(i))
    return made
