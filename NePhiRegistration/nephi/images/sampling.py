"""Where the voxels of one grid lie in another, the nearest ones, and linear interpolation between like grids.

Works slice by slice, without ITK, which takes several times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from ..space.grid import Grid

_STRAIGHT = 1e-6  # largest deviation between the axes of two grids over their whole length, in voxels
# of a grid, in indices of another: its first voxel and its steps, each (d,), x first
Places = tuple[np.ndarray, np.ndarray]


class _Slices(Protocol):
    """Values (z, y, x) that are indexed by slice."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> np.ndarray: ...


_Along = tuple[np.ndarray, np.ndarray, np.ndarray]


def interpolated(values: np.ndarray, coarse: Grid, fine: Grid, outside: float = 0.0) -> Iterator[np.ndarray]:
    """``values`` (z, y, x) of ``coarse``, interpolated linearly at the voxel centres of ``fine``.

    Yields slices (y, x), of a 2D grid rows, as float32. Up to half a voxel beyond the outermost centres their values
    are extended, as in ITK; farther away the value is ``outside``. The grids must have the same direction.
    """
    places = coarse.to_index(fine.origin_lps_mm), np.divide(fine.spacing_mm, coarse.spacing_mm)
    return interpolated_at(values, places, fine.size, outside)


def aligned_places(coarse: Grid, fine: Grid, transform: sitk.Transform | None = None) -> Places | None:
    """Where ``transform`` takes the voxels of ``fine`` in ``coarse``; None if its axes are not those of ``coarse``."""
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


def interpolated_at(
    values: _Slices | np.ndarray, places: Places, size: tuple[int, ...], outside: float
) -> Iterator[np.ndarray]:
    """As ``interpolated``, for ``size`` voxels (x first) at these places."""
    ways = [
        neighbours(start + by * np.arange(n), many)
        for start, by, n, many in zip(*places, size, reversed(values.shape), strict=True)
    ]
    *across, along = ways
    # only the part of each slice that is needed
    box = tuple(slice(below.min(), below.max() + 2) for below, *_ in reversed(across))
    across = [(below - below.min(), part, seen) for below, part, seen in across]
    last, made = len(values) - 1, dict[int, np.ndarray]()
    nothing = np.full(size[-2::-1], outside, np.float32)
    for below, part, seen in zip(*along, strict=True):
        if not seen:
            yield nothing
            continue
        ends = int(below), min(int(below) + 1, last)
        made = {k: made[k] if k in made else _finer(values[k][box], across, outside) for k in ends}  # keeps two slices
        yield _lerp(made[ends[0]], made[ends[1]], part)


def _finer(values: np.ndarray, ways: list[_Along], outside: float) -> np.ndarray:
    """One coarse slice (y, x) or row, interpolated along its axes, which are given x first."""
    out = np.asarray(values, np.float32)
    for number, (below, part, seen) in enumerate(ways):
        axis, shape = out.ndim - 1 - number, (-1, *[1] * number)
        low, high = (out.take(below + k, axis, mode="clip") for k in (0, 1))
        out = _lerp(low, high, part.reshape(shape))
        if not seen.all():
            out = np.where(seen.reshape(shape), out, np.float32(outside))
    return out


def _lerp(low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    out = high - low
    out *= part
    out += low
    return out


def neighbours(index: np.ndarray, size: int) -> _Along:
    """For indices along an axis (n,): the voxel below, the fraction to the next one, and whether it is inside."""
    place = index.clip(0, size - 1)
    below = np.floor(place).clip(max=max(size - 2, 0))
    return below.astype(int), (place - below).astype(np.float32), (index >= -0.5) & (index < size - 0.5)


def displaced_places(transform: sitk.Transform | None, grid: Grid, other: Grid) -> Iterator[list[np.ndarray]] | None:
    """For each slice of ``grid``: where a displacement field takes its voxels in ``other``.

    Indices, float32 (y, x), along x, y (, z). None for other transforms, and for a field whose axes are not those of
    ``grid``. Points beyond the field are not moved, as in ITK.
    """
    if transform is None or transform.GetTransformEnum() != sitk.sitkDisplacementField:
        return None
    field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
    nodes = Grid.of(field)
    along = aligned_places(nodes, grid)
    if along is None:
        return None
    d = grid.dimension
    to_index = other.to_index(np.eye(d)) - other.to_index(np.zeros(d))
    shifts = zip(*(interpolated_at(_Component(field, way), along, grid.size, 0.0) for way in to_index.T), strict=True)
    first = other.to_index(grid.to_lps_mm(np.zeros(d)))
    steps = other.to_index(grid.to_lps_mm(np.eye(d))) - first  # row: along one axis of the grid

    def indices() -> Iterator[list[np.ndarray]]:
        across = [np.arange(n)[(..., *[None] * k)] for k, n in enumerate(grid.size[:-1])]
        for place, moved in enumerate(shifts):
            index = []
            for axis, part in enumerate(moved):
                start = first[axis] + place * steps[-1, axis]
                # sums in double precision of rows and of columns, then of both in single precision
                rest = [(by * steps[k, axis]).astype(np.float32) for k, by in enumerate(across)]
                rest[-1] = (across[-1] * steps[len(across) - 1, axis] + start).astype(np.float32)
                total = part
                for one in rest:
                    total = total + one
                index.append(total)
            yield index

    return indices()


class _Component:
    """The component of a field's vectors along one direction (d,), read a slice at a time."""

    def __init__(self, field: sitk.Image, direction: np.ndarray):
        self._field, self._vectors = field, sitk.GetArrayViewFromImage(field)  # a view of its memory
        self._direction, self.shape = direction, self._vectors.shape[:-1]

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, place: int) -> np.ndarray:
        return self._vectors[place] @ self._direction


def nearest_through(image: sitk.Image, grid: Grid, transform: sitk.Transform | None, outside: float) -> np.ndarray:
    """An image (z, y, x) on ``grid`` through ``transform``: its nearest voxels, as in ITK.

    ``outside``: the value beyond the image. A displacement field is evaluated in single precision, with an error below
    a ten-thousandth of a voxel.
    """
    places = aligned_places(Grid.of(image), grid, transform)
    array = sitk.GetArrayViewFromImage(image)
    if places is not None:
        return _nearest_along(array, places, grid, outside)
    found = displaced_places(transform, grid, Grid.of(image))
    if found is None:
        return sitk.GetArrayFromImage(grid.resample(image, transform, sitk.sitkNearestNeighbor, outside))
    size, flat = array.shape[::-1], array.reshape(-1)

    out = np.empty(grid.shape, array.dtype)
    for row, index in zip(out, found, strict=True):
        seen, at = np.ones(row.shape, bool), np.zeros(row.shape, np.intp)
        for along, n in zip(reversed(index), reversed(size), strict=True):
            along += np.float32(0.5)
            seen &= (along >= 0) & (along < n)
            at *= n
            at += along.astype(np.intp)  # floor, where it is seen
        row[...] = np.where(seen, flat.take(at, mode="clip"), array.dtype.type(outside))
    return out


def _nearest_along(array: np.ndarray, places: Places, grid: Grid, outside: float) -> np.ndarray:
    index = [np.floor(start + by * np.arange(n) + 0.5) for start, by, n in zip(*places, grid.size, strict=True)][::-1]
    seen = [(along >= 0) & (along < n) for along, n in zip(index, array.shape, strict=True)]
    out = np.full(grid.shape, outside, array.dtype)
    kept = [along[inside].astype(np.intp) for along, inside in zip(index, seen, strict=True)]
    out[np.ix_(*seen)] = array[np.ix_(*kept)]
    return out
