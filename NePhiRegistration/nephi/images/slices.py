"""Images resampled on a working grid a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk

from ..space.grid import Grid


class Slices:
    """An image on a working grid, resampled a few slices at a time: ``slices[start:stop]`` is float32 (z, y, x).

    The image is averaged first where the grid is coarser. ``transform`` takes points of the grid to points of the
    image; ``outside`` is the value beyond it. So no second image of the grid's size is ever held in memory.
    """

    def __init__(self, image: sitk.Image, grid: Grid, transform: sitk.Transform | None = None, outside: float = 0.0):
        factor = [max(1, int(min(grid.spacing_mm) / s + 0.1)) for s in image.GetSpacing()]
        self._image = sitk.BinShrink(image, factor) if max(factor) > 1 else image
        self._grid, self._transform, self._outside = grid, transform, outside
        self._steps: list[Callable[[np.ndarray, slice], np.ndarray]] = []
        self.shape = grid.shape

    def then(self, step) -> Slices:
        """Adds ``step(values, rows) -> values``, applied to slices as they are read."""
        self._steps.append(step)
        return self

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        part = self._grid.slices(start, stop)
        values = sitk.GetArrayFromImage(
            part.resample(self._image, self._transform, sitk.sitkLinear, self._outside, sitk.sitkFloat32)
        )
        for step in self._steps:
            values = step(values, rows)
        return values
