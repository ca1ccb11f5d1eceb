"""What can be chosen in the panel: the term that the engine or the display knows, and the text that the user reads."""

from __future__ import annotations

from enum import Enum

from nephi.learning.shipped import shipped_models

from .i18n import tr as _


class Choice(Enum):
    def __init__(self, term: str, text: str):
        self.term, self.text = term, text

    def label(self) -> str:
        return self.text


class Preset(Choice):
    FAST = "fast", _("Fast: a first look")
    BALANCED = "balanced", _("Balanced")
    ACCURATE = "accurate", _("Accurate: takes longer")
    PAPER = "paper", _("As in the publication")
    FILE = "file", _("Settings file (JSON)")

    @property
    def name_only(self) -> str:
        """Without what describes it."""
        return self.text.partition(":")[0]


class Alignment(Choice):
    AUTO = "auto", _("Automatic")
    NONE = "none", _("None: the volumes already overlap roughly")
    CENTRES = "centres", _("Centre to centre")
    MOMENTS = "moments", _("Centre and size of the masks")
    AFFINE = "affine", _("Affine, by image content")


class Similarity(Choice):
    MIND = "mind", _("MIND: local structure")
    LNCC = "lncc", _("Local correlation (LNCC)")
    NCC = "ncc", _("Global correlation (NCC)")
    MSE = "mse", _("Intensity difference (same scanner)")
    MI = "mi", _("Mutual information: other contrast (MI)")
    NGF = "ngf", _("Edges: other contrast (NGF)")


class View(Choice):
    FIXED = "", _("Fixed volume only")
    FADE = "fade", _("Blend of fixed and warped")
    FLICKER = "flicker", _("Flicker between fixed and warped")
    CHECKERBOARD = "checkerboard", _("Checkerboard of fixed and warped")
    DIFFERENCE = "difference", _("Difference, warped minus fixed")
    ERROR = "error", _("Expected error")
    JACOBIAN = "jacobian", _("Volume change (Jacobian)")
    CONSISTENCY = "consistency", _("Forward-backward difference")
    DISPLACEMENT = "displacement", _("Displacement in mm")


class GridMode(Choice):
    GRID = "grid", _("Grid")
    GLYPHS = "glyphs", _("Arrows")
    CONTOURS = "contours", _("Contours of equal displacement")


COMPARISONS = (View.FADE, View.FLICKER, View.CHECKERBOARD, View.DIFFERENCE)
OVERLAYS = (View.ERROR, View.JACOBIAN, View.CONSISTENCY, View.DISPLACEMENT)
MODEL_FILE = "file"  # means the file chosen next to it


def models() -> list[tuple[str, str]]:
    """Terms and texts of trained models: none, the shipped ones except those for pictures, and a file."""
    shipped = [name for name in shipped_models() if "2d" not in name]
    return [("", _("None: start from scratch")), *((name, name) for name in shipped), (MODEL_FILE, _("Model file"))]
