"""Reading and checking masks and label maps, which belong to an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..space.grid import Grid
from .geometry import numbers
from .image import check_volume, open_image
from .segments import in_one_layer, is_segmentation_of_slicer, region_names, with_names

_HIGHEST_LABEL = 65535
_MOST_REGIONS = 1000  # with more, it must be an image instead of a label map
_MOST_LABELS = 256  # the same, for masks
_SAME = 1e-3  # voxels by which one on the same lattice may be off
_BESIDE = 0.5  # largest offset between the boxes of mask and image, in voxels, for which the mask is resampled


def read_mask(path: str | Path, image: sitk.Image, role: str) -> sitk.Image:
    return check_mask(open_image(path, role), image, role)


def check_regions(labels: sitk.Image, image: sitk.Image, role: str) -> sitk.Image:
    """A label map (0: no region) on the image's grid, as integers; raises NephiError if it is not one.

    The names of its labels stay in its header.
    """
    labels = in_one_layer(labels, role)
    names = region_names(labels)
    labels = _whole_segmentation(check_volume(labels, role), image, role)
    _check_place(labels, image, role)
    labels = _on_grid(_without_nan(labels, role), image, role, labels=True)
    array = sitk.GetArrayViewFromImage(labels)
    if array.min() < 0 or array.max() > _HIGHEST_LABEL or (array != np.floor(array)).any():
        raise NephiError(f"{role}: this is not a label map: whole numbers from 0 to {_HIGHEST_LABEL} are expected")
    if not array.any():
        raise NephiError(f"{role}: the label map is empty")
    labels = sitk.Cast(labels, sitk.sitkUInt16)
    held = np.zeros(_HIGHEST_LABEL + 1, bool)
    for row in sitk.GetArrayViewFromImage(labels):
        held[row] = True
    if held[1:].sum() > _MOST_REGIONS:
        raise NephiError(f"{role}: the label map has {held[1:].sum()} labels; it seems to be an image")
    return with_names(labels, names)


def check_mask(mask: sitk.Image, image: sitk.Image, role: str) -> sitk.Image:
    """The mask on the image's grid as bytes, 0 or 1.

    Probabilities of 0.5 or more are inside, several labels are united, NaN is outside. A mask whose box differs from
    the image's by less than half a voxel is resampled, and a segmentation of Slicer may cover only a part of the image,
    each with a notice. Raises NephiError if the mask is empty, has invalid values, or lies elsewhere.
    """
    mask = _whole_segmentation(check_volume(in_one_layer(mask, role), role), image, role)
    _check_place(mask, image, role)
    if mask.GetPixelID() != sitk.sitkUInt8 or sitk.GetArrayViewFromImage(mask).max() > 1:
        mask = _binary(_without_nan(mask, role), role)
    mask = _on_grid(mask, image, role)
    if not sitk.GetArrayViewFromImage(mask).any():
        raise NephiError(f"{role}: the mask is empty")
    return mask


def _whole_segmentation(mask: sitk.Image, image: sitk.Image, role: str) -> sitk.Image:
    """Extends a segmentation of Slicer that covers a part of its image to the whole; returns other images unchanged.

    Slicer may leave out the surroundings of the segments. For any other file a smaller size is a sign that it belongs
    to another image.
    """
    if mask.GetDimension() != image.GetDimension():
        return mask
    own, wanted = Grid.of(mask), Grid.of(image)
    if own.same_as(wanted) or not is_segmentation_of_slicer(mask):
        return mask
    corners = wanted.to_index(own.corners_lps_mm())
    steps = np.abs(wanted.to_index(own.to_lps_mm(np.eye(own.dimension))) - wanted.to_index(own.origin_lps_mm))
    one_each = bool((np.rint(steps).sum(0) == 1).all() and (np.rint(steps).sum(1) == 1).all())
    apart = max(np.abs(corners - np.rint(corners)).max(), np.abs(steps - np.rint(steps)).max())
    if not (one_each and apart < _SAME and wanted.holds(own.corners_lps_mm()).all()):
        return mask
    notice(f"{role}: it covers only a part of its image, as Slicer writes segmentations; the rest counts as outside.")
    return wanted.resample(mask, interpolator=sitk.sitkNearestNeighbor)


def _without_nan(mask: sitk.Image, role: str) -> sitk.Image:
    array = sitk.GetArrayViewFromImage(mask)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return mask
    if np.isinf(array).any():
        raise NephiError(f"{role}: the mask contains infinite values")
    notice(f"{role}: NaN in {int(np.isnan(array).sum())} voxels; they count as outside.")
    made = sitk.GetImageFromArray(np.nan_to_num(array))
    made.CopyInformation(mask)
    return made


def _binary(mask: sitk.Image, role: str) -> sitk.Image:
    array = sitk.GetArrayViewFromImage(mask)
    low, high = float(array.min()), float(array.max())
    fractional = array.dtype.kind == "f" and bool((array != np.floor(array)).any())
    if fractional:
        # interpolation may overshoot a little; a constant mask of another height than 1 is a mask still
        if low < -0.5 or high > 1.5:
            values = np.unique(array[array != 0])
            if len(values) > 1 or values[0] < 0:
                raise NephiError(
                    f"{role}: the mask has fractions from {low:g} to {high:g}; give 0 and 1, or probabilities"
                )
            return sitk.Cast(mask != 0, sitk.sitkUInt8)
        if high < 0.5:
            raise NephiError(f"{role}: the mask is empty: its highest value is {high:g}, and 0.5 counts as inside")
        notice(f"{role}: it has fractions; values of 0.5 and more count as inside.")
        return sitk.Cast(mask >= 0.5, sitk.sitkUInt8)
    values = np.unique(array)
    labels = values[values != 0]
    if len(labels) > _MOST_LABELS:
        raise NephiError(f"{role}: the mask has {len(values)} different values; it seems to be an image")
    if len(labels) > 1 or low < 0:
        some = ", ".join(f"{v:g}" for v in labels[:6].tolist()) + (", ..." if len(labels) > 6 else "")
        notice(f"{role}: {len(labels)} labels ({some}); all but 0 count as inside.")
    return sitk.Cast(mask != 0, sitk.sitkUInt8)


def _check_place(mask: sitk.Image, image: sitk.Image, role: str) -> None:
    """Raise NephiError unless the mask covers the box of the image, with the differences."""
    if mask.GetDimension() != image.GetDimension():
        raise NephiError(f"{role}: the mask is {mask.GetDimension()}D, but its image is {image.GetDimension()}D")
    own, wanted = Grid.of(mask), Grid.of(image)
    if not own.same_as(wanted) and _apart(own, wanted) > _BESIDE * max(*own.spacing_mm, *wanted.spacing_mm):
        raise NephiError(
            f"{role}: the grid of the mask is not that of its image: {_differences(own, wanted)}; "
            "resample it to the image first"
        )


def _on_grid(mask: sitk.Image, image: sitk.Image, role: str, labels: bool = False) -> sitk.Image:
    """The mask on the image's grid, resampled where it is another one over the same box; see ``_check_place``."""
    own, wanted = Grid.of(mask), Grid.of(image)
    if own.same_as(wanted):
        if own == wanted:
            return mask
        mask = sitk.Image(mask)  # where formats round the place, which ITK does not take for the same
        mask.CopyInformation(image)
        return mask
    notice(f"{role}: resampled, as its grid is not that of its image ({_differences(own, wanted)}).")
    edge = sitk.sitkNearestNeighbor if labels or own.size == wanted.size else sitk.sitkLinear
    if edge == sitk.sitkNearestNeighbor:
        return wanted.resample(mask, interpolator=edge)
    half = wanted.resample(sitk.Cast(mask, sitk.sitkFloat32), interpolator=edge)
    return sitk.Cast(half >= 0.5, sitk.sitkUInt8)


def _apart(own: Grid, wanted: Grid) -> float:
    """Largest distance of a corner from the other box's nearest: the axes may run the other way."""
    distances = np.linalg.norm(_box(own)[:, None] - _box(wanted), axis=-1)
    return float(max(distances.min(0).max(), distances.min(1).max()))


def _box(grid: Grid) -> np.ndarray:
    """(2^d, d) outer corners of the corner voxels in LPS mm."""
    ends = np.meshgrid(*[(-0.5, n - 0.5) for n in grid.size], indexing="ij")
    return grid.to_lps_mm(np.stack(ends, -1).reshape(-1, grid.dimension))


def _differences(own: Grid, wanted: Grid) -> str:
    found = []
    if own.size != wanted.size:
        found.append(f"size {numbers(own.size)} instead of {numbers(wanted.size)}")
    if not np.allclose(own.spacing_mm, wanted.spacing_mm, rtol=1e-4):
        found.append(f"spacing {numbers(own.spacing_mm)} instead of {numbers(wanted.spacing_mm)} mm")
    origin = float(np.linalg.norm(np.subtract(own.origin_lps_mm, wanted.origin_lps_mm)))
    if origin > 1e-3 * min(wanted.spacing_mm):
        found.append(f"origin {origin:.4g} mm off")
    turn = np.degrees(np.arccos(np.clip((own.axes * wanted.axes).sum(0), -1, 1))).max()
    if turn > 0.01:
        found.append(f"direction {turn:.3g} degrees off")
    return ", ".join([*found, f"corners up to {_apart(own, wanted):.4g} mm apart"])
