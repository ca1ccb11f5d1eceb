"""Maps sampled on a grid, as they are written, and the error of doing so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..images.sampling import interpolated
from ..images.volume import sample_linear
from ..space.grid import Grid

_LARGEST_MM, _LEAST_MM = 6.0, 2.0  # between the nodes that a map is evaluated at; the written grid has half of it
_LARGEST_VOXELS = 2.0  # or in voxels, where these are large: what they show is written no finer than they are at first
_COARSEST_MM = 24.0  # where the error may be larger
_GOOD_MM = 0.025  # mean error of linear interpolation between the nodes of the written transform
_SURELY = 0.94  # of that, expected from a few points
_TRIED = 250  # points
_FINER = 0.96  # times the spacing predicted from the error, so that the next one is likely to suffice


def halved(grid: Grid, values: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Half the spacing: values (z, y, x, d) float32 at the nodes stay, those between come by cubic interpolation."""
    for axis in reversed(range(grid.dimension)):  # along the rows first: it takes longest, and there is least of it
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


def _expected_error(
    displacement_at: Callable[[np.ndarray], np.ndarray], nodes: Grid, points_lps_mm: np.ndarray, moved_mm: np.ndarray
) -> float:
    """Mean error in mm at points (n, d), displaced by (n, d), of the interpolation that ``halved`` makes there."""
    d, index = nodes.dimension, nodes.to_index(points_lps_mm)
    cell = np.floor(index).astype(int)
    inner = ((cell >= 1) & (cell <= np.array(nodes.size) - 3)).all(1)  # otherwise interpolation is not cubic
    if not inner.any():
        return 0.0
    index, cell = index[inner], cell[inner]
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 3)] * d, indexing="ij"), -1).reshape(-1, d)  # x slowest
    around = nodes.to_lps_mm((cell[:, None] + offsets).reshape(-1, d))
    values = displacement_at(around).reshape(len(cell), *[4] * d, d)
    for part in (index - cell).T:  # x first
        weights = _halved_weights(part)
        values = np.einsum("nk...,nk->n...", values, weights)
    return float(np.linalg.norm(values - moved_mm[inner], axis=-1).mean())


def _halved_weights(part: np.ndarray) -> np.ndarray:
    """(n, 4) weights of the nodes around a cell, at a fraction (n,) of the way through it."""
    first, second, middle = np.eye(4)[1], np.eye(4)[2], np.array([-1, 9, 9, -1]) / 16
    near = np.where(part[:, None] < 0.5, first, second)
    to_middle = 1 - np.abs(2 * part - 1)[:, None]
    return near + to_middle * (middle - near)


def coarsest_displacement(
    displacement: Callable[[Grid], np.ndarray],
    displacement_at: Callable[[np.ndarray], np.ndarray],
    grid: Grid,
    points_lps_mm: np.ndarray,
    mapped_lps_mm: np.ndarray,
    scale: float = 1.0,
    good_mm: float | None = None,
) -> tuple[Grid, np.ndarray, dict]:
    """A grid over ``grid``, as coarse as linear interpolation of the map with a mean error of 0.025 mm allows.

    ``displacement(grid)`` (z, y, x, d) is evaluated at every second node; cubic interpolation gives the others.
    ``displacement_at(points_lps_mm)`` (n, d) is the same at points: a few of them show beforehand which spacing is too
    coarse. Returns the grid, the displacement on it and the error {mean_mm, max_mm, spacing_mm} at ``points_lps_mm``
    (n, d), which the map takes to ``mapped_lps_mm``. ``scale``: of all lengths, for small bodies. ``good_mm``: another
    error than 0.025 mm; coarser grids are then tried, too.
    """
    moved_mm, good = mapped_lps_mm - points_lps_mm, (_GOOD_MM if good_mm is None else good_mm) * scale
    voxel_mm = grid.voxel_volume_mm3 ** (1 / grid.dimension) / scale
    spacing = max(_LARGEST_MM, _LARGEST_VOXELS * voxel_mm) if good_mm is None else _COARSEST_MM
    while True:
        coarse = grid.coarsened(spacing * scale)
        native = coarse.size == grid.size
        last = native or spacing <= _LEAST_MM
        # a few points show which spacing is too coarse, before the map is evaluated at all nodes
        mean = 0.0 if last else _expected_error(displacement_at, coarse, points_lps_mm[:_TRIED], moved_mm[:_TRIED])
        if mean <= _SURELY * good:
            values = displacement(coarse)
            if not native:
                coarse, values = halved(coarse, values)
            error = held_error(values, coarse, points_lps_mm, mapped_lps_mm)
            mean = error["mean_mm"]
            if last or mean <= good:
                break
        # the error of linear interpolation grows with the square of the spacing
        spacing = max(_LEAST_MM, spacing * min(_FINER, _FINER * np.sqrt(good / mean)))
    return coarse, values, error


def held_error(values: np.ndarray, grid: Grid, points_lps_mm: np.ndarray, mapped_lps_mm: np.ndarray) -> dict:
    """The error {mean_mm, max_mm, spacing_mm} of a displacement (z, y, x, d) on a grid, at points (n, d)."""
    error = np.linalg.norm(points_lps_mm + interpolate(values, grid, points_lps_mm) - mapped_lps_mm, axis=-1)
    return {"mean_mm": float(error.mean()), "max_mm": float(error.max()), "spacing_mm": list(grid.spacing_mm)}


def joined(
    within: tuple[Grid, np.ndarray],
    around: tuple[Grid, np.ndarray],
    grid: Grid,
    is_outside: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Two displacements (z, y, x, d) on grids with the same axes, combined on another such grid.

    ``is_outside``: points (n, d) in LPS mm and where the inner displacement takes them -> (n,) bool, where the outer
    one is used.
    """
    out = np.empty((*grid.shape, grid.dimension), np.float32)
    for z, (inner, outer) in enumerate(zip(_read_on(*within, grid), _read_on(*around, grid), strict=True)):
        at = grid.slab_lps_mm(z, z + 1)
        outside = is_outside(at, at + inner.reshape(at.shape)).reshape(grid.shape[1:])
        out[z] = np.where(outside[..., None], outer, inner)
    return out


def _read_on(grid: Grid, values: np.ndarray, other: Grid) -> Iterator[np.ndarray]:
    """A displacement (z, y, x, d) on a grid, interpolated on another one with the same axes: slices (y, x, d)."""
    for slices in zip(*(interpolated(part, grid, other) for part in np.moveaxis(values, -1, 0)), strict=True):
        yield np.stack(slices, -1)
