"""Means of blocks of an image's voxels, in a box of it, a few slices at a time: no second image of its size is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK as sitk

from ..space.grid import Box, Grid

_SUMMED = {np.dtype(kind): np.int32 for kind in (np.int8, np.uint8, np.int16, np.uint16)}  # exact below 2^15 voxels
_MARGIN = 2  # blocks around what is seen
_MOST_SUMMED = 2**15


def shrink_factors(grid: Grid, spacing_mm: float) -> list[int]:
    """Voxels of a grid, x first, that one block of at most ``spacing_mm`` holds along each axis; at least one."""
    return [max(1, min(int(spacing_mm / s), n)) for s, n in zip(grid.spacing_mm, grid.size, strict=True)]


def seen_box(grid: Grid, points_lps_mm: np.ndarray, factor: Sequence[int]) -> Box | None:
    """The box of whole blocks of ``factor`` (x first) voxels that holds points (n, d), with a margin.

    None where the grid has less than one block of it.
    """
    index, step, size = grid.to_index(points_lps_mm), np.array(factor), np.array(grid.size)
    low = (np.floor(index.min(0) / step) - _MARGIN) * step
    high = (np.ceil(index.max(0) / step) + _MARGIN + 1) * step
    low, high = (np.clip(end, 0, size).astype(int) for end in (low, high))
    if (high - low < step).any():
        return None
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))[::-1]


def block_means(
    image: sitk.Image,
    factor: Sequence[int],
    box: Box | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> sitk.Image:
    """Means of blocks of ``factor`` voxels (x first) in a box of the image; incomplete blocks are cut off.

    For integers they are rounded to the image's type, as in ITK. ``prepare(values)``: converts slices to the float32
    values that are averaged.
    """
    array, grid, steps = sitk.GetArrayViewFromImage(image), Grid.of(image), tuple(reversed(factor))
    box = tuple(slice(0, n) for n in grid.shape) if box is None else box
    part = grid.part(box)
    shape = tuple(n // step for n, step in zip(part.shape, steps, strict=True))
    kept = tuple(slice(b.start, b.start + n * step) for b, n, step in zip(box, shape, steps, strict=True))
    count, rounded = int(np.prod(steps)), prepare is None and np.issubdtype(array.dtype, np.integer)
    out = np.empty(shape, array.dtype if rounded else np.float32)
    for number in range(shape[0]):
        start = kept[0].start + number * steps[0]
        values = array[(slice(start, start + steps[0]), *kept[1:])]
        values = values if prepare is None else prepare(values)
        kind = _SUMMED.get(values.dtype, np.float64) if count < _MOST_SUMMED else np.float64
        means = _sums(values, steps, kind)[0] * (1 / count)  # as ITK, to the last bit
        out[number] = np.floor(means + 0.5) if rounded else means
    spacing = tuple(s * f for s, f in zip(grid.spacing_mm, factor, strict=True))
    origin = part.to_lps_mm((np.array(factor) - 1) / 2)
    return Grid(out.shape[::-1], spacing, tuple(map(float, origin)), grid.direction).image(out)


def _sums(values: np.ndarray, steps: Sequence[int], kind) -> np.ndarray:
    """Sums over blocks, the largest strides first, so that the last sums are small."""
    for axis, step in enumerate(steps):
        along = (slice(None),) * axis
        total = values[(*along, slice(0, None, step))].astype(kind)
        for first in range(1, step):
            total += values[(*along, slice(first, None, step))]
        values = total
    return values
