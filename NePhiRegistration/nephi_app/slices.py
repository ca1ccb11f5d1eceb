"""The sliders over the slice views: what they say follows the views, and the views follow them."""

from __future__ import annotations

from typing import Any

from . import texts
from .state import SLICES
from .views import Views


class Slices:
    def __init__(self, state: Any, views: Views):
        self.state, self.views = state, views
        self._moved: dict[str, float] = {}  # where each slice is, as last told
        state.change(*(f"slice_{name}" for name in SLICES))(self._scroll)
        views.on_moved(self._say)

    def fit(self) -> None:
        """All of the background volume in every view, with the directions of the patient at their sides."""
        self.views.fit()
        nodes = {name: self.views.slice_view(name).get_view_node() for name in SLICES}
        with self.state:
            self.state.letters = {name: texts.letters(node) for name, node in nodes.items()}
        for name in SLICES:
            self._say(name)

    def _say(self, name: str) -> None:
        view = self.views.slice_view(name)
        low, high = view.get_slice_range()
        self._moved[name] = view.get_slice_value()
        with self.state:
            self.state[f"range_{name}"] = [low, high, view.get_slice_step()]
            self.state[f"slice_{name}"] = self._moved[name]

    def _scroll(self, **_: Any) -> None:
        for name in SLICES if self.views.made else ():
            wanted = self.state[f"slice_{name}"]
            if wanted is not None and wanted != self._moved.get(name):
                self._moved[name] = wanted
                self.views.take_in_hand(name)
                self.views.slice_view(name).set_slice_value(wanted)
