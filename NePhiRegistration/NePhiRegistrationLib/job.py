"""What is to be registered to what, and why it may not be possible yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from nephi.errors import NephiError
from nephi.learning.shipped import find_model
from nephi.settings import ALIGNMENTS, Settings, from_dict, load, preset

from . import scene as nodes


class LogicError(Exception):
    """One line for the user."""


@dataclass
class Job:
    """Inputs as MRML nodes (or None) and how to register them; ``Logic.problem`` tells what is missing."""

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
        for role, volume in (("fixed", self.fixed), ("moving", self.moving)):
            yield _volume_problem(role, volume)
        if self.fixed is self.moving:
            yield "The fixed and the moving volume are the same: choose two."
        masks = ("fixed", self.fixed_mask, self.fixed_segment), ("moving", self.moving_mask, self.moving_segment)
        for role, mask, segment in masks:
            yield _mask_problem(f"{role} mask", mask, segment)
        yield _mask_problem("regions", self.regions, "")
        yield self._landmark_problem()
        yield self._alignment_problem()
        if self.settings_file and not Path(self.settings_file).is_file():
            yield f"The settings file {self.settings_file} is not there."
        try:
            settings = self.settings()
            if settings.model:
                find_model(settings.model)
        except NephiError as error:
            yield str(error)

    def _landmark_problem(self) -> str:
        lists = {"fixed": self.fixed_landmarks, "moving": self.moving_landmarks}
        given = {role: points for role, points in lists.items() if points is not None}
        if len(given) == 1:
            missing = "moving" if "fixed" in given else "fixed"
            return f"Landmarks are needed in both volumes: choose a list for the {missing} volume too, or none."
        for role, points in given.items():
            if points.GetNumberOfControlPoints() == 0:
                return f"The list of {role} landmarks is empty."
            if points.GetNumberOfDefinedControlPoints() < points.GetNumberOfControlPoints():
                return f"A landmark of the {role} list has no position yet: place it or delete it."
        counts = [points.GetNumberOfControlPoints() for points in given.values()]
        if counts and counts[0] != counts[1]:
            return f"There are {counts[0]} fixed and {counts[1]} moving landmarks; they must match one by one."
        return ""

    def _alignment_problem(self) -> str:
        initial = self.initial_transform
        if initial is None:
            return "" if self.align in ALIGNMENTS else f"'{self.align}' is no alignment: {', '.join(ALIGNMENTS)}."
        if not initial.IsTransformToWorldLinear():
            return f"The initial transform {initial.GetName()} is not linear: choose a rigid or affine one."
        parent = self.moving.GetParentTransformNode()
        while parent is not None:
            if parent is initial:
                return (
                    f"The moving volume already lies under {initial.GetName()}, which would then count twice: "
                    "take it as initial transform or as parent, not both."
                )
            parent = parent.GetParentTransformNode()
        return ""


def _volume_problem(role: str, volume) -> str:
    if volume is None:
        return f"Choose the {role} volume."
    image = volume.GetImageData()
    if image is None:
        return f"The {role} volume {volume.GetName()} holds no image."
    if min(image.GetDimensions()) < nodes.FEWEST_VOXELS:
        size = " x ".join(map(str, image.GetDimensions()))
        return f"The {role} volume has {size} voxels; at least {nodes.FEWEST_VOXELS} along each side are needed."
    if image.GetNumberOfScalarComponents() != 1:
        return f"The {role} volume is a colour or vector volume; choose a scalar one."
    try:
        nodes.ijk_to_world(volume)
    except nodes.FrameError as error:
        return f"The {role} volume {error}"
    return ""


def _mask_problem(role: str, mask, segment: str) -> str:
    if mask is None:
        return ""
    if mask.IsA("vtkMRMLSegmentationNode"):
        segmentation = mask.GetSegmentation()
        if segmentation.GetNumberOfSegments() == 0:
            return f"The segmentation for the {role} has no segments."
        if segment and segmentation.GetSegment(segment) is None:
            return f"The segment chosen for the {role} is no longer in {mask.GetName()}."
        return ""
    return "" if mask.GetImageData() is not None else f"The label map for the {role} is empty."
