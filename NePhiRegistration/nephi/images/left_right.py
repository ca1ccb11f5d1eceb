"""Splits a mask of the lungs into the right and the left lung."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..settings import BODY_MM
from ..space.grid import Grid
from .blocks import block_means, shrink_factors
from .masks import inside, signed_distance_mm

RIGHT, LEFT, UNDIVIDED = 1, 2, 3
_STEP_MM, _DEEPEST_MM = 1.5, 10.0  # erosion of the mask until the lungs separate: they touch where they are thin
_LEAST_SHARE = 0.2  # of the smaller core in the larger one
_LEAST_APART = 1 / 3  # of the lungs' width, along x: lobes of one lung lie above or in front of each other


def right_and_left(lungs: sitk.Image) -> sitk.Image:
    """A 3D mask of lungs as labels: RIGHT and LEFT of the patient, or UNDIVIDED where they can't be separated.

    The mask is eroded until it falls into two parts of comparable size that lie side by side. A watershed of the
    distance to its border then assigns its voxels to these parts. A trachea left in the mask goes to either lung.
    Works at about 3 mm (less in bodies below ``BODY_MM``); every voxel of the mask gets a label.
    """
    grid = Grid.of(lungs)
    scale = min(1.0, grid.longest_side_mm / BODY_MM)
    shrink = shrink_factors(grid, 3.0 * scale)
    small = block_means(lungs, shrink, prepare=lambda values: (values != 0).astype(np.float32)) > 0.5
    thickness = signed_distance_mm(small, positive_inside=True)
    width_mm = _width_mm(small)
    for depth in np.arange(0.0, _DEEPEST_MM, _STEP_MM):
        cores = _cores(thickness > float(scale * depth), width_mm)
        if cores is not None:
            nearest = sitk.MorphologicalWatershedFromMarkers(-thickness, cores, markWatershedLine=False)
            break
    else:
        nearest = sitk.Image(small.GetSize(), sitk.sitkUInt8) + UNDIVIDED
        nearest.CopyInformation(small)
    labels = sitk.Resample(
        sitk.Cast(nearest, sitk.sitkUInt8), lungs, sitk.Transform(), sitk.sitkNearestNeighbor,
        useNearestNeighborExtrapolator=True,
    )  # fmt: skip
    return grid.image(np.where(inside(lungs), sitk.GetArrayViewFromImage(labels), np.uint8(0)))


def _cores(part: sitk.Image, width_mm: float) -> sitk.Image | None:
    """The two largest parts as RIGHT and LEFT, if they are comparable and lie side by side in lungs of this width."""
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(part), sortByObjectSize=True)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(parts)
    if not shape.HasLabel(2) or shape.GetNumberOfPixels(2) < _LEAST_SHARE * shape.GetNumberOfPixels(1):
        return None
    apart_mm = shape.GetCentroid(2)[0] - shape.GetCentroid(1)[0]  # LPS: the patient's left is at larger x
    if abs(apart_mm) < _LEAST_APART * width_mm:
        return None
    right, left = (1, 2) if apart_mm > 0 else (2, 1)
    return sitk.Cast(parts == right, sitk.sitkUInt8) * RIGHT + sitk.Cast(parts == left, sitk.sitkUInt8) * LEFT


def _width_mm(mask: sitk.Image) -> float:
    """The extent of a mask from the patient's right to the left."""
    index = np.argwhere(inside(mask))[:, ::-1]
    return float(np.ptp(Grid.of(mask).to_lps_mm(index)[:, 0])) if len(index) else 0.0
