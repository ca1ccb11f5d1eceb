"""A volume on a coarse grid, read on another one along the same axes, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from ..space.grid import Grid

_STRAIGHT = 1e-6  # voxels that the axes of one grid may leave those of the other over its whole length
# of a grid in another's index: its first voxel and its steps, each (d,), x first
Places = tuple[np.ndarray, np.ndarray]


class _Slices(Protocol):
    """Values (z, y, x) that are read a slice at a time."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> np.ndarray: ...


_Along = tuple[np.ndarray, np.ndarray, np.ndarray]


def between(values: np.ndarray, coarse: Grid, fine: Grid, outside: float = 0.0) -> Iterator[np.ndarray]:
    """``values`` (z, y, x) of ``coarse`` at the voxel centres of ``fine``, interpolated linearly: slices (y, x) as
    float32; of a 2D grid rows.

    As ITK resamples: up to half a voxel beyond the last centres their values hold, farther away ``outside``. The grids
    must have the same direction.
    """
    places = coarse.to_index(fine.origin_lps_mm), np.divide(fine.spacing_mm, coarse.spacing_mm)
    return read_between(values, places, fine.size, outside)


def places_along(coarse: Grid, fine: Grid, transform: sitk.Transform | None = None) -> Places | None:
    """Where the voxels of ``fine`` lie in ``coarse``, if along its axes; ``transform`` takes their points there."""
    if transform is not None and not transform.IsLinear():
        return None
    last = np.array(fine.size) - 1
    ends = fine.to_lps_mm(np.vstack([np.zeros(fine.dimension), np.diag(last)]))
    if transform is not None:
        ends = np.array([transform.TransformPoint(end.tolist()) for end in ends])
    first, *far = coarse.to_index(ends)
    ways = np.array(far) - first
    if np.abs(ways - np.diag(np.diag(ways))).max() > _STRAIGHT:
        return None
    return first, np.diag(ways) / np.maximum(last, 1)


def read_between(
    values: _Slices | np.ndarray, places: Places, size: tuple[int, ...], outside: float
) -> Iterator[np.ndarray]:
    """As ``between``, of so many voxels (x first) at these places."""
    ways = [
        neighbours(start + by * np.arange(n), many)
        for start, by, n, many in zip(*places, size, reversed(values.shape), strict=True)
    ]
    *across, along = ways
    # of a slice only what is read
    box = tuple(slice(below.min(), below.max() + 2) for below, *_ in reversed(across))
    across = [(below - below.min(), part, seen) for below, part, seen in across]
    last, made = len(values) - 1, dict[int, np.ndarray]()
    nothing = np.full(size[-2::-1], outside, np.float32)
    for below, part, seen in zip(*along, strict=True):
        if not seen:
            yield nothing
            continue
        ends = int(below), min(int(below) + 1, last)
        made = {k: made[k] if k in made else _finer(values[k][box], across, outside) for k in ends}  # two at a time
        yield _between(made[ends[0]], made[ends[1]], part)


def _finer(values: np.ndarray, ways: list[_Along], outside: float) -> np.ndarray:
    """One coarse slice (y, x) or row at the places along its axes, given x first, the last axis of the array."""
    out = np.asarray(values, np.float32)
    for number, (below, part, seen) in enumerate(ways):
        axis, shape = out.ndim - 1 - number, (-1, *[1] * number)
        low, high = (out.take(below + k, axis, mode="clip") for k in (0, 1))
        out = _between(low, high, part.reshape(shape))
        if not seen.all():
            out = np.where(seen.reshape(shape), out, np.float32(outside))
    return out


def _between(low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    out = high - low
    out *= part
    out += low
    return out


def neighbours(index: np.ndarray, size: int) -> _Along:
    """Of indices along an axis (n,): the voxel below, the part of the way to the next one, and whether it is seen."""
    place = index.clip(0, size - 1)
    below = np.floor(place).clip(max=max(size - 2, 0))
    return below.astype(int), (place - below).astype(np.float32), (index >= -0.5) & (index < size - 0.5)
