"""The display of one result in the views of a scene; for Slicer's panel and for the browser page."""

from __future__ import annotations

from . import display, maps
from .choices import COMPARISONS, OVERLAYS, View
from .i18n import tr as _
from .outputs import Outputs

_MEANING = {
    View.FIXED: "",
    View.FADE: _("Where both agree, edges are single."),
    View.FLICKER: _("Where both agree, nothing jumps."),
    View.CHECKERBOARD: _("Where both agree, edges continue across the squares."),
    View.DIFFERENCE: _(
        "Grey: equal. Bright: {other} is denser than fixed; dark: it is less dense. "
        "A lung with more air differs throughout."
    ),
    View.ERROR: "",  # as the result is
    View.JACOBIAN: display.JACOBIAN_TEXT,
    View.CONSISTENCY: _(
        "The registration is computed in both directions. Distance in mm between a point and where it lands when one "
        "takes it to the moving volume and the other back: where it is large, do not trust the match. "
        "Only what was compared is coloured."
    ),
    View.DISPLACEMENT: _(
        "How far the tissue moved in mm, without translation and rotation of the patient. "
        "Only what was compared is coloured."
    ),
}
_MAPS = {
    View.ERROR: maps.show_error,
    View.JACOBIAN: display.show_jacobian,
    View.CONSISTENCY: maps.show_fields_disagreement,
    View.DISPLACEMENT: maps.show_displacement,
}


def meaning(view: View, before: bool, outputs: Outputs | None) -> str:
    """What to look for in the views, in words."""
    if view is View.ERROR and outputs is not None:
        return maps.error_text(outputs)
    return _MEANING[view].format(other=_("moving") if before else _("warped"))


class Shown:
    """Updates what has changed since the last call; the rest is left as the user may have arranged it."""

    def __init__(self, outputs: Outputs):
        self.outputs: Outputs | None = outputs
        self._scene, self._fixed_id = outputs.forward.GetScene(), outputs.fixed.GetID()
        self._told: dict[str, tuple] = {}  # by topic

    def show(self, view: View, before: bool, opacity: float, legend: bool, beyond_only: bool = False) -> None:
        """``before``: compare with the moving volume as it was; ``beyond_only``: as in ``maps.show_error``."""
        out, before = self.outputs, before and view in COMPARISONS
        looks = {"opacity": opacity, "legend": legend} | ({"beyond_only": beyond_only} if view is View.ERROR else {})
        fade = (opacity,) if view is View.FADE else ()
        if not self._is_new("view", view, before, *(looks.values() if view in OVERLAYS else fade)):
            return
        for other_view in OVERLAYS:
            if other_view is not view:
                _MAPS[other_view](out, False)
        other = out.moving if before else out.warped
        shown_opacity = 1.0 if view is View.FLICKER else opacity
        display.show_comparison(out.fixed, other, view.term if view in COMPARISONS else "", shown_opacity)
        if view in OVERLAYS:
            _MAPS[view](out, True, **looks)

    def show_grid(
        self, on: bool, mode: str, spacing_mm: float, in_2d: bool = True, in_3d: bool = False, legend: bool = True
    ) -> None:
        """The deformation, as in ``display.show_grid``."""
        if self._is_new("grid", on, mode, spacing_mm, in_2d, in_3d, legend):
            display.show_grid(self.outputs.forward, self.outputs.fixed, on, mode, spacing_mm, in_2d, in_3d, legend)

    def forget(self) -> None:
        """Something else has changed the views: the next call updates everything."""
        self._told.clear()

    def let_go(self) -> None:
        """The result is no longer whole and must not be kept; only ``leave`` may follow."""
        self.outputs = None

    def leave(self) -> None:
        """Take the result out of the views, which show its fixed volume alone, if that is still there."""
        if self._told:
            display.clear(self._scene, self._scene.GetNodeByID(self._fixed_id))
        self._told.clear()

    def _is_new(self, topic: str, *wanted) -> bool:
        was, self._told[topic] = self._told.get(topic), wanted
        return was != wanted
