"""A registration job and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from nephi.errors import NephiError
from nephi.learning.shipped import find_model
from nephi.settings import ALIGNMENTS, Settings, from_dict, load, preset

from . import scene as nodes
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
    initial_transform: object = None  # linear, as one would put the moving volume under it: moving -> fixed
    align: str = "auto"  # where there is no initial transform; "auto" leaves what the settings file says
    preset: str = "balanced"
    settings_file: str = ""
    model: str = ""  # a shipped model's name or a model file; "": what the settings file says, else none
    overrides: dict = field(default_factory=dict)  # nested as in the settings file
    device: str = "auto"

    def settings(self) -> Settings:
        """Preset, then settings file, then overrides and alignment; raises NephiError for what makes no sense."""
        settings = preset(self.preset)
        if self.settings_file:
            settings = load(self.settings_file, settings)
        settings = from_dict(self.overrides, settings)
        given = {"model": self.model} if self.model else {}
        return replace(settings, **given, **({} if self.align == "auto" else {"align": self.align}))

    def measured_regions(self):
        """The node whose regions are measured one by one, or None: where none is chosen, a mask of several segments."""
        mask = self.fixed_mask
        if self.regions is not None or mask is None or self.fixed_segment or not mask.IsA("vtkMRMLSegmentationNode"):
            return self.regions
        return mask if mask.GetSegmentation().GetNumberOfSegments() > 1 else None

    def problem(self) -> str:
        """Why this can't be registered yet, in words; "" where it can."""
        return next((text for text in self._problems() if text), "")

    def _problems(self):
        for role, volume in ((_("fixed volume"), self.fixed), (_("moving volume"), self.moving)):
            yield _volume_problem(role, volume)
        if self.fixed is self.moving:
            yield _("The fixed and the moving volume are the same: choose two.")
        yield _mask_problem(_("fixed mask"), self.fixed_mask, self.fixed_segment)
        yield _mask_problem(_("moving mask"), self.moving_mask, self.moving_segment)
        yield _mask_problem(_("regions"), self.regions, "")
        yield self._landmark_problem()
        yield self._alignment_problem()
        if self.settings_file and not Path(self.settings_file).is_file():
            yield _("The settings file {file} does not exist.").format(file=self.settings_file)
        try:
            settings = self.settings()
            if settings.model:
                find_model(settings.model)
        except NephiError as error:
            yield str(error)

    def _landmark_problem(self) -> str:
        if self.fixed_landmarks is None and self.moving_landmarks is None:
            return ""
        if self.moving_landmarks is None:
            return _("Landmarks are needed in both volumes: choose a list for the moving volume too, or none.")
        if self.fixed_landmarks is None:
            return _("Landmarks are needed in both volumes: choose a list for the fixed volume too, or none.")
        for points in (self.fixed_landmarks, self.moving_landmarks):
            if points.GetNumberOfControlPoints() == 0:
                return _("The landmark list {name} is empty.").format(name=points.GetName())
            if points.GetNumberOfDefinedControlPoints() < points.GetNumberOfControlPoints():
                text = _("A landmark of {name} has no position yet: place it or delete it.")
                return text.format(name=points.GetName())
        fixed, moving = (p.GetNumberOfControlPoints() for p in (self.fixed_landmarks, self.moving_landmarks))
        if fixed != moving:
            text = _("There are {fixed} fixed and {moving} moving landmarks; they must match one by one.")
            return text.format(fixed=fixed, moving=moving)
        return ""

    def _alignment_problem(self) -> str:
        initial = self.initial_transform
        if initial is None:
            if self.align in ALIGNMENTS:
                return ""
            return _("'{name}' is not an alignment: {known}.").format(name=self.align, known=", ".join(ALIGNMENTS))
        if not initial.IsTransformToWorldLinear():
            text = _("The initial transform {name} is not linear: choose a rigid or affine one.")
            return text.format(name=initial.GetName())
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


def _volume_problem(role: str, volume) -> str:
    if volume is None:
        return _("Choose the {role}.").format(role=role)
    image = volume.GetImageData()
    if image is None:
        return _("The {role} {name} holds no image.").format(role=role, name=volume.GetName())
    if min(image.GetDimensions()) < nodes.FEWEST_VOXELS:
        size = " x ".join(map(str, image.GetDimensions()))
        text = _("The {role} has {size} voxels; at least {fewest} along each side are needed.")
        return text.format(role=role, size=size, fewest=nodes.FEWEST_VOXELS)
    if image.GetNumberOfScalarComponents() != 1:
        return _("The {role} is a colour or vector volume; choose a scalar one.").format(role=role)
    try:
        nodes.ijk_to_world(volume)
    except nodes.FrameError as error:
        return _("The {role} {reason}").format(role=role, reason=error)
    return ""


def _mask_problem(role: str, mask, segment: str) -> str:
    if mask is None:
        return ""
    if mask.IsA("vtkMRMLSegmentationNode"):
        segmentation = mask.GetSegmentation()
        if segmentation.GetNumberOfSegments() == 0:
            return _("The segmentation for the {role} has no segments.").format(role=role)
        if segment and segmentation.GetSegment(segment) is None:
            text = _("The segment chosen for the {role} is no longer in {name}.")
            return text.format(role=role, name=mask.GetName())
        return ""
    return "" if mask.GetImageData() is not None else _("The label map for the {role} is empty.").format(role=role)
