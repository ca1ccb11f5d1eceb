"""The engine's verdict on a registration in the panel's words, with where to look."""

from __future__ import annotations

from dataclasses import dataclass

from . import theme
from .choices import View
from .i18n import tr as _

# places to look at that are tables, named as the report's entries; all others are terms of ``View``
FOLDS, LANDMARKS, REGIONS = TABLES = ("folds", "landmarks", "regions")
_OUTCOMES = {  # sign, words and ground
    "PASS": ("\u2714", _("Reliable"), theme.GOOD_GROUND),
    "CHECK": ("\u26a0", _("Check"), theme.CHECK_GROUND),
    "FAIL": ("\u2716", _("Not reliable"), theme.BAD_GROUND),
}
_SHOWN_BY = {  # words in the engine's reasons, and the display that shows them
    "expected error is": View.ERROR,
    "calibrated on 3D CTs": View.FLICKER,
    "fit each other": View.CHECKERBOARD,
    "does not show": View.CHECKERBOARD,
    "masks overlap": View.FADE,
    "map folds": FOLDS,
    "volume changes": View.JACOBIAN,
    "inverse field differ": View.CONSISTENCY,
    "do not undo each other": View.CONSISTENCY,
    "landmark": LANDMARKS,
    "surfaces of": REGIONS,
    "regions hardly overlap": REGIONS,
}
_NAMES = {
    View.ERROR: _("expected error"),
    View.FLICKER: _("flicker"),
    View.CHECKERBOARD: _("checkerboard"),
    View.FADE: _("blend"),
    FOLDS: _("folds"),
    View.JACOBIAN: _("volume change"),
    View.CONSISTENCY: _("forward-backward difference"),
    LANDMARKS: _("landmarks"),
    REGIONS: _("regions"),
}


@dataclass(frozen=True)
class Judgement:
    """``outcome``: PASS, CHECK or FAIL; ``places``: terms of ``View``, or ``TABLES``, where its reasons can be seen."""

    outcome: str
    reasons: list[str]
    places: list[str]

    @property
    def sign(self) -> str:
        return _OUTCOMES[self.outcome][0]

    @property
    def title(self) -> str:
        return _OUTCOMES[self.outcome][1]

    @property
    def ground_rgb(self) -> tuple:
        """The background colour of the text; ``theme.on`` gives that of the text."""
        return _OUTCOMES[self.outcome][2]

    def place_name(self, place: str) -> str:
        return next(name for key, name in _NAMES.items() if _term(key) == place)


def judgement(report: dict) -> Judgement | None:
    """None for a report of a time before there were verdicts."""
    if "verdict" not in report:
        return None
    reasons = report["verdict"]["reasons"]
    said = [reason.lower() for reason in reasons]
    found = [_term(place) for reason in said for words, place in _SHOWN_BY.items() if words.lower() in reason]
    found = [place for place in found if place not in TABLES or report.get(place)]
    return Judgement(report["verdict"]["outcome"], reasons, list(dict.fromkeys(found)))


def tolerated_mm(report: dict, *spacings_mm: tuple[float, ...]) -> float:
    """The expected error that the site tolerates on average: where a voxel of either image is longer, its side."""
    set_mm = report.get("verdict", {}).get("tolerances", {}).get("mean_mm", 2.0)
    return max(set_mm, *(max(spacing_mm) for spacing_mm in spacings_mm))


def _term(place: View | str) -> str:
    return place if isinstance(place, str) else place.term
