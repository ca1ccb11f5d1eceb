"""How bright values are drawn: windows of a CT by their names, or level and width as they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
from NePhiRegistrationLib import scene as nodes

from .inputs import Inputs
from .results import Results

_OF_CT = {  # name and lowest and highest HU
    "wide": ("Chest, wide", -1000, 300),
    "lung": ("Lung", -1350, 150),
    "soft": ("Mediastinum", -160, 240),
    "bone": ("Bone", -450, 1050),
    "liver": ("Liver", -20, 140),
    "brain": ("Brain", 0, 80),
}
_AUTOMATIC, _CUSTOM = "automatic", "custom"
_BINS, _HEIGHT = 128, 100  # of the histogram
_MOST_VOXELS = 1_000_000  # that it counts
_MADE_WITH_IT = ("CHECKERBOARD", "DIFFERENCE")  # views that are made anew


class Windows:
    """``render()`` draws anew. Where there is no CT, level and width are of the fixed image, which others follow.

    Beside a CT, images of other kinds keep what fits their values.
    """

    def __init__(self, state: Any, inputs: Inputs, results: Results, render: Callable[[], None]):
        self.state, self.inputs, self.results, self._render = state, inputs, results, render
        state.change("window")(self._choose)
        state.change("level", "width")(self._take)

    @property
    def _scans(self) -> list[Any]:
        found = (self.inputs.nodes.get(role) for role in ("fixed", "moving"))
        return [volume for volume in found if volume is not None]

    @property
    def _of_ct(self) -> bool:
        return any(map(nodes.in_hounsfield, self._scans))

    def offer(self) -> None:
        """What can be chosen for the scans that are open, which are then drawn so."""
        of_ct = {name: f"{text} ({(low + high) // 2}/{high - low})" for name, (text, low, high) in _OF_CT.items()}
        known = of_ct if self._of_ct else {_AUTOMATIC: "Automatic"}
        known[_CUSTOM] = "By hand"
        with self.state:
            self.state.histogram = histogram(self._scans[0]) if self._scans else {}
            self.state.windows = [{"value": value, "text": text} for value, text in known.items()]
            if self.state.window not in known or self.state.window == _CUSTOM:
                self.state.window = next(iter(known))
        self._choose()

    def draw(self) -> None:
        """All images as chosen, those of a new result too."""
        if not self._scans:
            return
        chosen = self.state.level - self.state.width / 2, self.state.level + self.state.width / 2
        parts = (0.0, 1.0) if self._of_ct else _parts(chosen, _automatic(self._scans[0]))
        for volume in [*self._scans, *self.results.applied.scans]:
            if self._of_ct and nodes.in_hounsfield(volume):
                _set(volume, *chosen)
            else:
                low, high = _automatic(volume)
                _set(volume, *(low + part * (high - low) for part in parts))
        for outputs in self.results.found.values():
            nodes.show_like(outputs.warped, outputs.moving)
        if self.state.has_result and self.state.view in _MADE_WITH_IT and not self.results.applied.takes_the_views:
            self.results.show(again=True)
        self._render()

    def _choose(self, **_: Any) -> None:
        if self.state.window == _CUSTOM:
            self._take()  # numbers that came before it
            return
        if not self._scans:
            return
        low, high = _OF_CT.get(self.state.window, ("", *_automatic(self._scans[0])))[1:]
        with self.state:
            self.state.level, self.state.width = round((low + high) / 2, 1), round(high - low, 1)
        self.draw()

    def _take(self, **_: Any) -> None:
        """Level and width as a user enters them, as soon as both are numbers."""
        numbers = all(isinstance(value, int | float) for value in (self.state.level, self.state.width))
        if self.state.window == _CUSTOM and numbers and self.state.width > 0:
            self.draw()


def histogram(volume: Any) -> dict:
    """How often values occur, on a logarithmic scale, as an outline ``_BINS`` wide and ``_HEIGHT`` high.

    ``low``, ``high``: what its sides stand for, which leave out the very brightest, as of metal.
    """
    array = slicer.util.arrayFromVolume(volume)
    step = max(1, round((array.size / _MOST_VOXELS) ** (1 / 3)))
    values = array[::step, ::step, ::step].ravel()
    low, high = float(values.min()), float(np.quantile(values, 0.9999))
    high = high if high > low else low + 1
    counts = np.log1p(np.histogram(values, _BINS, (low, high))[0])
    heights = _HEIGHT * (1 - counts / max(counts.max(), 1e-6))
    outline = [f"0,{_HEIGHT}", *(f"{i + 0.5},{y:.1f}" for i, y in enumerate(heights)), f"{_BINS},{_HEIGHT}"]
    unit = "HU" if nodes.in_hounsfield(volume) else ""
    return {"name": volume.GetName(), "low": low, "high": high, "unit": unit, "outline": " ".join(outline)}


def _parts(values: tuple[float, float], between: tuple[float, float]) -> tuple[float, ...]:
    """Where values lie between two others, from 0 to 1."""
    low, high = between
    return tuple((value - low) / max(high - low, 1e-6) for value in values)


def _automatic(volume: Any) -> tuple[float, float]:
    """What fits the values."""
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(True)
    found = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    display.SetAutoWindowLevel(False)
    return found


def _set(volume: Any, low: float, high: float) -> None:
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevelMinMax(low, high)
