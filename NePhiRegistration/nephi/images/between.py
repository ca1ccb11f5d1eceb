"""A volume on a coarse grid, read on a finer one along the same axes, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

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
    volume = torch.from_numpy(np.asarray(values, np.float32))
    for number, (below, part, seen) in enumerate(ways[:-1]):  # x first, the last axis of the array
        axis, shape = volume.ndim - 1 - number, (-1, *[1] * number)
        last = volume.shape[axis] - 1
        low, high = (volume.index_select(axis, (below + k).clamp(max=last)) for k in (0, 1))
        volume = torch.lerp(low, high, part.reshape(shape))
        if not seen.all():
            volume = torch.where(seen.reshape(shape), volume, outside)
    nothing = torch.full_like(volume[0], outside)
    for below, part, seen in zip(*ways[-1], strict=True):
        above = min(int(below) + 1, len(volume) - 1)
        yield (torch.lerp(volume[int(below)], volume[above], part) if seen else nothing).numpy()


def _along(index: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of indices along an axis (n,): the voxel below, the part of the way to the next one, and whether it is seen."""
    place = index.clip(0, size - 1)
    below = np.floor(place).clip(max=max(size - 2, 0))
    seen = (index >= -0.5) & (index < size - 0.5)
    part = (place - below).astype(np.float32)
    return torch.from_numpy(below.astype(int)), torch.from_numpy(part), torch.from_numpy(seen)
