"""A map held on a grid: the form in which it is written, and what that costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..images.volume import sample_linear
from ..space.grid import Grid

_SPACINGS_MM = (6.0, 5.0, 4.0, 3.0, 2.0)  # at which the fields are evaluated; the written grid has half of it
_COARSE_MM = (24.0, 20.0, 16.0, 12.0, 10.0, 8.0)  # before those, where the error may be larger
_GOOD_MM = 0.025  # what linear interpolation between the nodes of the written transform may cost on average
_HOPEFUL = 1.15


def halved(grid: Grid, values: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Half the spacing: values (z, y, x, d) float32 at the nodes stay, those between come by cubic interpolation."""
    for axis in range(grid.dimension):
        v = np.moveaxis(values, axis, 0)
        between = (v[:-1] + v[1:]) / 2
        if len(v) > 3:  # the parabolas through the nodes at either side, averaged
            between[1:-1] += (v[1:-2] + v[2:-1] - v[:-3] - v[3:]) / 16
            between[0] += (2 * v[1] - v[0] - v[2]) / 8
            between[-1] += (2 * v[-2] - v[-1] - v[-3]) / 8
        finer = np.empty((2 * len(v) - 1, *v.shape[1:]), v.dtype)
        finer[::2], finer[1::2] = v, between
        values = np.moveaxis(finer, 0, axis)
    size = tuple(2 * n - 1 for n in grid.size)
    spacing = tuple(s / 2 for s in grid.spacing_mm)
    return Grid(size, spacing, grid.origin_lps_mm, grid.direction), np.ascontiguousarray(values)


def interpolate(displacement: np.ndarray, grid: Grid, points_lps_mm: np.ndarray) -> np.ndarray:
    """Linear interpolation of a displacement (z, y, x, d) at points (n, d), as the written transform does."""
    index = torch.from_numpy(grid.to_index(points_lps_mm))
    return sample_linear(torch.from_numpy(displacement).double(), index).numpy()


def nodes_around(grid: Grid, nodes: Grid, inside: np.ndarray) -> np.ndarray:
    """(z, y, x) bool: the nodes between which a voxel of ``inside`` (z, y, x) lies; ``nodes``: ``grid.coarsened``."""
    near = inside
    for axis, (voxels, many) in enumerate(zip(grid.shape, nodes.shape, strict=True)):
        cell = np.minimum(np.arange(voxels) * (many - 1) // max(voxels - 1, 1), max(many - 2, 0))
        starts = np.searchsorted(cell, np.arange(max(many - 1, 1)))
        cells = np.moveaxis(np.logical_or.reduceat(near, starts, axis), axis, 0)
        ends = np.zeros((many, *cells.shape[1:]), bool)
        ends[: len(cells)] |= cells
        ends[many - len(cells) :] |= cells
        near = np.moveaxis(ends, 0, axis)
    return near


def coarsest_displacement(
    displacement: Callable[[Grid], np.ndarray],
    grid: Grid,
    points_lps_mm: np.ndarray,
    mapped_lps_mm: np.ndarray,
    scale: float = 1.0,
    good_mm: float | None = None,
) -> tuple[Grid, np.ndarray, dict]:
    """The coarsest grid over ``grid`` from which linear interpolation gives a map to 0.025 mm on average.

    ``displacement(grid)`` (z, y, x, d) is evaluated at every second node; cubic interpolation gives those between.
    Returns the grid, the displacement on it and the error {mean_mm, max_mm, spacing_mm} measured at ``points_lps_mm``
    (n, d), which the map takes to ``mapped_lps_mm``. ``scale``: of all lengths, for small bodies. ``good_mm``: another
    error than 0.025 mm; then coarser grids are tried, too.
    """
    needed, good = np.inf, (_GOOD_MM if good_mm is None else good_mm) * scale
    for spacing in _SPACINGS_MM if good_mm is None else (*_COARSE_MM, *_SPACINGS_MM):
        if spacing > needed and spacing != _SPACINGS_MM[-1]:
            continue
        coarse = grid.coarsened(spacing * scale)
        values = displacement(coarse)
        native = coarse.size == grid.size
        if not native:
            coarse, values = halved(coarse, values)
        error = held_error(values, coarse, points_lps_mm, mapped_lps_mm)
        if error["mean_mm"] <= good or native:
            break
        # of what is smooth, linear interpolation errs by the square of the spacing: what will not do is not tried
        needed = _HOPEFUL * spacing * np.sqrt(good / error["mean_mm"])
    return coarse, values, error


def held_error(values: np.ndarray, grid: Grid, points_lps_mm: np.ndarray, mapped_lps_mm: np.ndarray) -> dict:
    """The error {mean_mm, max_mm, spacing_mm} of a displacement (z, y, x, d) held on a grid, at points (n, d)."""
    error = np.linalg.norm(points_lps_mm + interpolate(values, grid, points_lps_mm) - mapped_lps_mm, axis=-1)
    return {"mean_mm": float(error.mean()), "max_mm": float(error.max()), "spacing_mm": list(grid.spacing_mm)}


def grid_values(values: np.ndarray, grid: Grid, other: Grid) -> np.ndarray:
    """A displacement (z, y, x, d) that is held on a grid, at the nodes of another, float32."""
    out = np.empty((*other.shape, other.dimension), np.float32)
    for z in range(len(out)):
        out[z] = interpolate(values, grid, other.slab_lps_mm(z, z + 1)).reshape(out[z].shape)
    return out
