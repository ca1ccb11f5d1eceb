"""The lungs of a CT in any units: by their Hounsfield units, or by their shape.

A CT may be stored in 8 bits of a window, from 0 to 1, in 1/cm or inverted. Its values are then mapped as if to
Hounsfield units, only for this purpose, and the result must look like two lungs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import SimpleITK as sitk

from ..space.grid import Grid
from .hounsfield import far_padding, looks_like_ct, sparse
from .left_right import LEFT, RIGHT, right_and_left
from .masks import (
    BLOCKS_MM,
    LUNG_THRESHOLD_HU,
    inside,
    lung_blocks,
    lung_mask,
    lungs_of_blocks,
    on_grid,
    signed_distance_mm,
)

_ROOM_HU, _LUNG_HU, _SOFT_HU = -1000.0, -850.0, 40.0
_FIRST_MM = 5.0  # blocks in which a mapping is tried
_BINS = 128
_RANGE = (0.1, 99.9)  # percentiles
_AROUND_SOFT = (0.8, 1.25)  # of the way from air to soft tissue: where fat, soft tissue and blood are
_LEAST_SOFT = 0.7  # of values nearer to soft tissue than to air
_LEAST_CLIPPED = 0.05  # of an image, at the dark end of a window that shows no lungs
_LEAST_DARK = 0.87  # of lungs with their vessels
_LEAST_OF_BODY = 0.025
# least share of lungs after an opening, and least mean depth, in radii of a ball of half their volume
_OPENED, _LEAST_LEFT, _LEAST_DEPTH = 0.25, 0.6, 0.06


@dataclass(frozen=True)
class _Mapping:
    """Hounsfield units are ``slope`` times the blocks' means of the (prepared) values, plus ``offset``."""

    slope: float
    offset: float
    prepare: Callable[[np.ndarray], np.ndarray] | None = None

    def lungs(self, image: sitk.Image, mm: float) -> tuple[sitk.Image, sitk.Image | None]:
        """Blocks of about ``mm`` in Hounsfield units, and the lungs that are found in them."""
        blocks = lung_blocks(image, self.prepare, mm)
        blocks = sitk.ShiftScale(blocks, self.offset / self.slope, self.slope)
        return blocks, lungs_of_blocks(blocks, Grid.of(image))


def find_lungs(image: sitk.Image) -> sitk.Image | None:
    """The lungs of a 3D image; None if there are none, or if the image is not like a CT.

    For a CT in Hounsfield units the result of ``lung_mask``; otherwise that of the first of several mappings of the
    values with which two lungs are found. A single lung is only found in Hounsfield units.
    """
    if looks_like_ct(image):
        return lung_mask(image)
    for mapping in _mappings(image):
        # where lungs are as black as the room, coarse blocks join them
        first_mm = BLOCKS_MM if mapping.prepare else _FIRST_MM
        blocks, lungs = mapping.lungs(image, first_mm)
        if _like_lungs(blocks, lungs):
            lungs = lungs if first_mm == BLOCKS_MM else mapping.lungs(image, BLOCKS_MM)[1]
            return None if lungs is None else on_grid(lungs, Grid.of(image))
    return None


def _like_lungs(blocks: sitk.Image, lungs: sitk.Image | None) -> bool:
    """Whether a mask of some blocks is dark, compact, a good part of the body, and of two sides of comparable size."""
    if lungs is None:
        return False
    grid, part = Grid.of(lungs), inside(lungs)
    dark = sitk.GetArrayFromImage(grid.resample(blocks, None, sitk.sitkNearestNeighbor)) < LUNG_THRESHOLD_HU
    body = part.sum() + (sitk.GetArrayViewFromImage(blocks) >= LUNG_THRESHOLD_HU).sum()
    if dark[part].mean() < _LEAST_DARK or part.sum() < _LEAST_OF_BODY * body:
        return False
    radius_mm = (part.sum() * grid.voxel_volume_mm3 / 2 * 3 / (4 * np.pi)) ** (1 / 3)
    opened = sitk.BinaryMorphologicalOpening(lungs, [max(1, round(_OPENED * radius_mm / s)) for s in grid.spacing_mm])
    depth_mm = sitk.GetArrayFromImage(signed_distance_mm(lungs, positive_inside=True))
    if inside(opened).sum() < _LEAST_LEFT * part.sum() or depth_mm[part].mean() < _LEAST_DEPTH * radius_mm:
        return False
    labels = sitk.GetArrayFromImage(right_and_left(lungs))
    return bool((labels == RIGHT).any() and (labels == LEFT).any())


def _mappings(image: sitk.Image) -> Iterator[_Mapping]:
    """What the values may be: dark air first, then inverted."""
    sample = np.sort(sparse(image).astype(float), axis=None)
    sample = sample[~np.isin(sample, far_padding(image))]
    for sign, values in ((1.0, sample), (-1.0, -sample[::-1])):
        peaks = _air_and_soft(values)
        if peaks is not None:
            air, soft = peaks
            for hu in (_ROOM_HU, _LUNG_HU):  # the peak of air may be of either
                slope = (_SOFT_HU - hu) / (soft - air)
                yield _Mapping(sign * slope, hu - slope * air)
        end = sign * values[0]
        if _LEAST_CLIPPED < (sample == end).mean() < 1:  # where a window shows no lungs, they are as black as the room
            yield _Mapping(_LUNG_HU - _SOFT_HU, _SOFT_HU, partial(_equal, value=end))


def _equal(array: np.ndarray, value: float) -> np.ndarray:
    return (array == value).astype(np.float32)


def _air_and_soft(values: np.ndarray) -> tuple[float, float] | None:
    """The peaks of air and of soft tissue in sorted values, dark air first; None if these are not like a CT's.

    The peaks lie on both sides of the threshold that separates the values best (Otsu, IEEE Trans. SMC 1979). In a CT
    few bright values are far from soft tissue; in MR tissues differ more.
    """
    low, high = np.percentile(values, _RANGE)
    if not low < high:
        return None
    counts, edges = np.histogram(np.clip(values, low, high), _BINS, (low, high))
    places = (edges[1:] + edges[:-1]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * places)
    between = (sums[-1] * below / counts.sum() - sums[:-1]) ** 2 / (below * (counts.sum() - below)).clip(1)
    parted = int(between.argmax()) + 1
    smooth = np.convolve(counts, (1, 2, 3, 2, 1), "same")
    air, soft = places[smooth[:parted].argmax()], places[parted + smooth[parted:].argmax()]
    way = (values - air) / (soft - air)
    bright = way[way > 0.5]
    like = (_AROUND_SOFT[0] < bright) & (bright < _AROUND_SOFT[1])
    return (float(air), float(soft)) if like.mean() > _LEAST_SOFT else None
