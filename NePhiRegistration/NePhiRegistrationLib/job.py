"""A registration job and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from nephi.errors import NephiError
from nephi.learning.shipped import find_model, shipped_models
from nephi.measure.verdict import read_tolerances
from nephi.settings import ALIGNMENTS, Settings, from_dict, load, preset

from .checks import landmark_problem, mask_problem, volume_problem
from .guides import Guides
from .i18n import tr as _


class LogicError(Exception):
    """One line for the user."""


@dataclass
class Job:
    """Inputs as MRML nodes (or None) and how to register them; ``Logic.problem`` reports what is missing."""

    fixed: object = None  # vtkMRMLScalarVolumeNode
    moving: object = None
    fixed_mask: object = None  # vtkMRMLLabelMapVolumeNode or vtkMRMLSegmentationNode
    moving_mask: object = None
    fixed_segment: str = ""  # segment ID; "": all segments together
    moving_segment: str = ""
    auto_mask: bool = True
    fixed_landmarks: object = None  # vtkMRMLMarkupsFiducialNode
    moving_landmarks: object = None
    regions: object = None  # segmentation or label map over the fixed volume, such as lobes; None: the mask's segments
    moving_regions: object = None  # the same over the moving volume, to be compared, matched by their names
    guides: Guides = field(default_factory=Guides)
    sliding: bool = False  # motion may slide along the border of the masks; False: as in the settings file
    initial_transform: object = None  # of any kind, as one would put the moving volume under it: moving -> fixed
    align: str = "auto"  # without an initial transform; "auto": as in the settings file
    preset: str = "balanced"
    settings_file: str = ""
    model: str = ""  # name of a shipped model or a model file; "": as in the settings file, else none
    overrides: dict = field(default_factory=dict)  # nested as in the settings file
    device: str = "auto"
    tolerances_file: str = ""  # of the site, for the verdict
    page: bool = False  # whether the report with pictures, report.html, is written too
    label: str = ""  # distinguishes the result from others of the same pair, in its name

    def settings(self) -> Settings:
        """Preset, then settings file, then overrides and alignment. Raises NephiError for invalid settings."""
        settings = preset(self.preset)
        if self.settings_file:
            settings = _beside(Path(self.settings_file), load(self.settings_file, settings))
        settings = from_dict(self.overrides, settings)
        given: dict = {"model": self.model} if self.model else {}
        if self.initial_is_bent():
            given["align"] = "auto"  # the settings that it replaces
        elif self.align != "auto":
            given["align"] = self.align
        if self.sliding:
            given["sliding"] = True
        if self.guides.fixed_landmarks is not None:
            deviation = {"guidance": {"landmarks_sd_mm": self.guides.landmarks_sd_mm}}
            settings = from_dict(deviation, settings)
        return replace(settings, **given)

    def files(self) -> list[Path]:
        """What the settings name: the file of a model that is not shipped, a transform; raises NephiError."""
        return list(_named(self.settings()).values())

    def initial_is_bent(self) -> bool:
        """Whether there is a nonlinear initial transform, which is refined rather than kept."""
        initial = self.initial_transform
        return initial is not None and not initial.IsTransformToWorldLinear()

    def measured_regions(self):
        """The node whose regions are measured: the chosen one, or a mask with several segments, or None."""
        mask = self.fixed_mask
        if self.regions is not None or mask is None or self.fixed_segment or not mask.IsA("vtkMRMLSegmentationNode"):
            return self.regions
        return mask if mask.GetSegmentation().GetNumberOfSegments() > 1 else None

    def problem(self) -> str:
        """Why this can't be registered yet, in words; "" where it can."""
        return next((text for text in self._problems() if text), "")

    def _problems(self):
        for role, volume in ((_("fixed volume"), self.fixed), (_("moving volume"), self.moving)):
            yield volume_problem(role, volume)
        if self.fixed is self.moving:
            yield _("The fixed and the moving volume are the same: choose two.")
        yield mask_problem(_("fixed mask"), self.fixed_mask, self.fixed_segment)
        yield mask_problem(_("moving mask"), self.moving_mask, self.moving_segment)
        yield mask_problem(_("regions"), self.regions, "")
        yield mask_problem(_("moving regions"), self.moving_regions, "")
        if self.moving_regions is not None and self.measured_regions() is None:
            yield _("The moving regions are compared with those of the fixed volume: also choose these.")
        yield landmark_problem(self.fixed_landmarks, self.moving_landmarks)
        yield from self.guides.problems()
        yield self._alignment_problem()
        if self.settings_file and not Path(self.settings_file).is_file():
            yield _("The settings file {file} does not exist.").format(file=self.settings_file)
        try:
            if self.tolerances_file:
                read_tolerances(self.tolerances_file)
            settings = self.settings()
            if settings.sliding and not self.auto_mask and None in (self.fixed_mask, self.moving_mask):
                yield _("For lungs that slide along the chest wall, choose a mask of the lungs in both volumes.")
            if (transform := _named(settings).get("align")) is not None and not transform.is_file():
                yield _("The transform {file} named in the settings does not exist.").format(file=transform)
            if settings.model:
                find_model(settings.model)
                if self.initial_is_bent():
                    yield _("A trained model and a nonlinear initial transform both define the start: choose only one.")
        except NephiError as error:
            yield str(error)

    def _alignment_problem(self) -> str:
        initial = self.initial_transform
        if initial is None:
            if self.align in ALIGNMENTS:
                return ""
            return _("'{name}' is not an alignment: {known}.").format(name=self.align, known=", ".join(ALIGNMENTS))
        parent = self.moving.GetParentTransformNode()
        while parent is not None:
            if parent is initial:
                text = _(
                    "The moving volume already lies under {name}, which would then count twice: "
                    "use it as initial transform or as parent, not both."
                )
                return text.format(name=initial.GetName())
            parent = parent.GetParentTransformNode()
        return ""


def _named(settings: Settings) -> dict[str, Path]:
    """The files that settings name, by their entries."""
    found = {} if settings.align in ALIGNMENTS else {"align": Path(settings.align)}
    if settings.model and settings.model not in shipped_models():
        found["model"] = Path(settings.model)
    return found


def _beside(file: Path, settings: Settings) -> Settings:
    """With absolute paths of the files named in a settings file: the engine runs in another folder."""
    named = {entry: str(file.parent.absolute() / path) for entry, path in _named(settings).items()}
    return replace(settings, **named)
