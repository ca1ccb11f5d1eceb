"""Where an image is read on a grid through a transform, and its nearest voxels there: without ITK, which takes several
times as long, where grids and fields go along the same axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk

from ..space.grid import Grid
from .between import Places, places_along, read_between


def nearest_through(image: sitk.Image, grid: Grid, transform: sitk.Transform | None, outside: float) -> np.ndarray:
    """The nearest voxels (z, y, x) of an image, which ``transform`` takes the points of ``grid`` to, as ITK reads them.

    ``outside``: beyond the image. A displacement field is evaluated in single precision: to a ten-thousandth of a
    voxel.
    """
    places = places_along(Grid.of(image), grid, transform)
    array = sitk.GetArrayViewFromImage(image)
    if places is not None:
        return _nearest_along(array, places, grid, outside)
    found = places_through(transform, grid, Grid.of(image))
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


class _Component:
    """Of a field's vectors, read a slice at a time, the parts along one direction (d,)."""

    def __init__(self, field: sitk.Image, direction: np.ndarray):
        self._field, self._vectors = field, sitk.GetArrayViewFromImage(field)  # of whose memory it is
        self._direction, self.shape = direction, self._vectors.shape[:-1]

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, place: int) -> np.ndarray:
        return self._vectors[place] @ self._direction


def _nearest_along(array: np.ndarray, places: Places, grid: Grid, outside: float) -> np.ndarray:
    index = [np.floor(start + by * np.arange(n) + 0.5) for start, by, n in zip(*places, grid.size, strict=True)][::-1]
    seen = [(along >= 0) & (along < n) for along, n in zip(index, array.shape, strict=True)]
    out = np.full(grid.shape, outside, array.dtype)
    kept = [along[inside].astype(np.intp) for along, inside in zip(index, seen, strict=True)]
    out[np.ix_(*seen)] = array[np.ix_(*kept)]
    return out


def places_through(transform: sitk.Transform | None, grid: Grid, other: Grid) -> Iterator[list[np.ndarray]] | None:
    """Indices in ``other``, float32 (y, x) along x, y (, z), of the points of each slice of ``grid`` through a
    displacement field whose axes are the grid's; None for other transforms. Beyond the field points stay, as in ITK.
    """
    if transform is None or transform.GetTransformEnum() != sitk.sitkDisplacementField:
        return None
    field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
    nodes = Grid.of(field)
    along = places_along(nodes, grid)
    if along is None:
        return None
    d = grid.dimension
    to_index = other.to_index(np.eye(d)) - other.to_index(np.zeros(d))
    shifts = zip(*(read_between(_Component(field, way), along, grid.size, 0.0) for way in to_index.T), strict=True)
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
