"""Spline maps on grids along the axes of the cube: evaluated axis by axis for all points at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..space.affine import Affine
from ..space.cube import Cube
from ..space.determinant import determinant
from ..space.grid import Grid
from .held import HeldShift
from .maps import Map

_TURNED = 1e-7  # of a grid's axes against the cube's, at most
_SLAB = 2**18  # voxels at a time


class OnGrids:
    """The forward map of a pair, with its alignment, on grids with the axes of the cube."""

    def __init__(self, shift: HeldShift, cube: Cube, affine: Affine):
        self.shift, self.cube, self.affine = shift, cube, affine

    @classmethod
    def of(cls, maps: Map, cube: Cube, affine: Affine, grid: Grid) -> OnGrids | None:
        """None if the map is not a spline, or the axes of the grid are not those of the cube."""
        straight = np.abs(cube.axes.T @ grid.axes - np.eye(grid.dimension)).max() < _TURNED
        return cls(maps.held_shift, cube, affine) if straight and maps.held_shift is not None else None

    def displacement(self, grid: Grid) -> np.ndarray:
        """(z, y, x, d) float32 in LPS mm at the grid's voxel centres, some slices at a time."""
        out = np.empty((*grid.shape, grid.dimension), np.float32)
        to_moving = torch.from_numpy(self.affine.matrix @ self.cube.axes * self.cube.unit_mm)
        steps = (self.affine.matrix - np.eye(grid.dimension)) @ grid.axes * np.asarray(grid.spacing_mm)
        for rows in grid.slabs(_SLAB):
            part = grid.slices(rows.start, rows.stop)
            shift = self.shift.along(self._axes_cube(part)).cpu().double()
            out[rows] = torch.tensordot(shift, to_moving, ([0], [1])).numpy()
            # the alignment is linear in the index
            origin = np.asarray(part.origin_lps_mm)
            out[rows] += self.affine(origin) - origin
            for axis, (n, step) in enumerate(zip(part.size, steps.T, strict=True)):
                out[rows] += (np.arange(n)[:, None] * step).reshape(n, *[1] * axis, -1)
        return out

    def determinants(self, grid: Grid) -> np.ndarray:
        """(z, y, x) float32: the exact Jacobian determinant at the grid's voxel centres."""
        axes = self._axes_cube(grid)
        columns = [self.shift.along(axes, slope) for slope in range(grid.dimension)]
        for axis, column in enumerate(columns):
            column[axis] += 1
        return determinant(columns).cpu().numpy() * np.float32(np.linalg.det(self.affine.matrix))

    def _axes_cube(self, grid: Grid) -> list[Tensor]:
        """Places of the voxel centres along x, y (, z)."""
        first, spacing = self.cube.to_cube(grid.origin_lps_mm), np.asarray(grid.spacing_mm) / self.cube.unit_mm
        device = self.shift.half_extents_cube.device
        return [
            torch.as_tensor(start + step * np.arange(n), dtype=torch.float32, device=device)
            for start, step, n in zip(first, spacing, grid.size, strict=True)
        ]
