"""Reasons why a node can't be used, as text; empty if it can be."""

from __future__ import annotations

from . import scene as nodes
from .i18n import tr as _


def volume_problem(role: str, volume) -> str:
    if volume is None:
        return _("Choose the {role}.").format(role=role)
    image = volume.GetImageData()
    if image is None:
        return _("The {role} {name} contains no image.").format(role=role, name=volume.GetName())
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


def mask_problem(role: str, mask, segment: str) -> str:
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


def landmark_problem(fixed_points, moving_points) -> str:
    """A problem of two lists that must match one by one."""
    if fixed_points is None and moving_points is None:
        return ""
    if moving_points is None:
        return _("Landmarks are needed in both volumes: choose a list for the moving volume too, or none.")
    if fixed_points is None:
        return _("Landmarks are needed in both volumes: choose a list for the fixed volume too, or none.")
    for points in (fixed_points, moving_points):
        if points.GetNumberOfControlPoints() == 0:
            return _("The landmark list {name} is empty.").format(name=points.GetName())
        if points.GetNumberOfDefinedControlPoints() < points.GetNumberOfControlPoints():
            text = _("A landmark of {name} has no position yet: place it or delete it.")
            return text.format(name=points.GetName())
    fixed, moving = (p.GetNumberOfControlPoints() for p in (fixed_points, moving_points))
    if fixed != moving:
        text = _("There are {fixed} fixed and {moving} moving landmarks; they must match one by one.")
        return text.format(fixed=fixed, moving=moving)
    return ""
