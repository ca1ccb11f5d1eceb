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
    *across, along = ways
    last, made = len(values) - 1, dict[int, np.ndarray]()
    nothing = np.full(fine.shape[1:], outside, np.float32)
    for below, part, seen in zip(*along, strict=True):
        if not seen:
            yield nothing
            continue
        ends = int(below), min(int(below) + 1, last)
        made = {k: made[k] if k in made else _finer(values[k], across, outside) for k in ends}  # two at a time
        yield _between(made[ends[0]], made[ends[1]], part)


def _finer(values: np.ndarray, ways: list[tuple[np.ndarray, np.ndarray, np.ndarray]], outside: float) -> np.ndarray:
    """One coarse slice (y, x) or row at the places along its axes, given x first, the last axis of the array."""
    out = np.asarray(values, np.float32)
    for number, (below, part, seen) in enumerate(ways):
        axis, shape = out.ndim - 1 - number, (-1, *[1] * number)
        end = out.shape[axis] - 1
        low, high = (out.take(np.minimum(below + k, end), axis) for k in (0, 1))
        out = _between(low, high, part.reshape(shape))
        if not seen.all():
            out = np.where(seen.reshape(shape), out, np.float32(outside))
    return out


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
