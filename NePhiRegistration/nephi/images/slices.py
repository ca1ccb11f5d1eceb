"""Images resampled on a working grid a few slices at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import SimpleITK as sitk

from ..space.grid import Grid
from .blocks import block_means, seen_box
from .sampling import aligned_places, interpolated_at

Values = TypeVar("Values")


def averaging(grid: Grid, spacing_mm: Sequence[float], size: Sequence[int]) -> tuple[int, ...]:
    """Voxels along x, y (, z) of such an image to average before it is resampled on a coarser grid; all, at most."""
    factors = (int(min(grid.spacing_mm) / s + 0.1) for s in spacing_mm)
    return tuple(max(1, min(factor, n)) for factor, n in zip(factors, size, strict=True))


class GridSlices(ABC, Generic[Values]):
    """Read by slices of the first axis, ``slices[start:stop]``, with steps that are applied as they are read."""

    def __init__(self, grid: Grid):
        self.shape = grid.shape
        self._steps: list[Callable[[Values, slice], Values]] = []

    def then(self, step: Callable):
        """Adds ``step(values, rows) -> values``, applied to slices as they are read; returns itself."""
        self._steps.append(step)
        return self

    def __getitem__(self, rows: slice) -> Values:
        start, stop, _ = rows.indices(self.shape[0])
        values = self._resampled(start, stop)
        for step in self._steps:
            values = step(values, rows)
        return values

    @abstractmethod
    def _resampled(self, start: int, stop: int) -> Values:
        """The slices start..stop, before any step."""


class Slices(GridSlices[np.ndarray]):
    """An image on a working grid, resampled a few slices at a time: ``slices[start:stop]`` is float32 (z, y, x).

    The image is averaged first where the grid is coarser. ``transform`` takes points of the grid to points of the
    image; ``outside`` is the value beyond it. So no second image of the grid's size is ever held in memory.
    """

    def __init__(self, image: sitk.Image, grid: Grid, transform: sitk.Transform | None = None, outside: float = 0.0):
        super().__init__(grid)
        factor = averaging(grid, image.GetSpacing(), image.GetSize())
        if max(factor) > 1:
            image = _averaged(image, grid, transform, factor)
        self._image = image
        self._grid, self._transform, self._outside = grid, transform, outside
        self._places = aligned_places(Grid.of(image), grid, transform)

    def _resampled(self, start: int, stop: int) -> np.ndarray:
        part = self._grid.slices(start, stop)
        if self._places is not None:  # a quarter of what ITK takes
            first, step = self._places
            places = first + step * np.eye(len(step))[-1] * start, step
            values, out = sitk.GetArrayViewFromImage(self._image), np.empty(part.shape, np.float32)
            for place, row in enumerate(interpolated_at(values, places, part.size, self._outside)):
                out[place] = row
            return out
        return sitk.GetArrayFromImage(
            part.resample(self._image, self._transform, sitk.sitkLinear, self._outside, sitk.sitkFloat32)
        )


def _averaged(image: sitk.Image, grid: Grid, transform: sitk.Transform | None, factor: Sequence[int]) -> sitk.Image:
    """Means of blocks of voxels, where a grid sees the image through a linear transform."""
    corners = grid.corners_lps_mm()
    if transform is not None:
        if not transform.IsLinear():
            return block_means(image, factor)
        corners = np.array([transform.TransformPoint(corner.tolist()) for corner in corners])
    return block_means(image, factor, seen_box(Grid.of(image), corners, factor))
