"""A volume on a coarse grid, read on a finer one along the same axes, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..space.grid import Grid


def between(values: np.ndarray, coarse: Grid, fine: Grid, outside: float = 0.0) -> Iterator[np.ndarray]:
    """``values`` (z, y, x) of ``coarse`` at the voxel centres of ``fine``, interpolated linearly: slices (y, x) as
    float32; of a 2D grid rows.

    As ITK resamples: up to half a voxel beyond the last centres their values hold, farther away ``outside``. The grids
    must have the same direction.
    """
    first, step = coarse.to_index(fine.origin_lps_mm), np.divide(fine.spacing_mm, coarse.spacing_mm)
    places = zip(first, step, fine.size, coarse.size, strict=True)
    ways = [_along(start + by * np.arange(n), many) for start, by, n, many in places]
    volume = np.asarray(values, np.float32)
    for number, (below, part, seen) in enumerate(ways[:-1]):  # x first, the last axis of the array
        axis, shape = volume.ndim - 1 - number, (-1, *[1] * number)
        last = volume.shape[axis] - 1
        low, high = (volume.take(np.minimum(below + k, last), axis) for k in (0, 1))
        volume = _between(low, high, part.reshape(shape))
        if not seen.all():
            volume = np.where(seen.reshape(shape), volume, np.float32(outside))
    nothing = np.full_like(volume[0], outside)
    for below, part, seen in zip(*ways[-1], strict=True):
        yield _between(volume[below], volume[min(below + 1, len(volume) - 1)], part) if seen else nothing


def _between(low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    out = high - low
    out *= part
    out += low
    return out


def _along(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of indices along an axis (n,): the voxel below, the part of the way to the next one, and whether it is seen."""
    place = index.clip(0, size - 1)
    below = np.floor(place).clip(max=max(size - 2, 0))
    return below.astype(int), (place - below).astype(np.float32), (index >= -0.5) & (index < size - 0.5)
