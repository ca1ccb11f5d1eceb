"""Functions of points, represented by splines on nodes of the cube: cheap to evaluate, differentiate and save."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..device import in_threads
from ..settings import VoxelSettings
from ..space.interpolate import PointWeights, along_axes, interpolate
from .code import LINEAR_CUBE, HybridCode, points_between, position_between, zero_code
from .maps import FieldMap
from .voxel import VoxelFields

_PARTS = 4096  # points processed at a time, so that intermediate values stay in the cache
_ROUNDS = 40  # of the inversion, at most
_SPLINE_ROUNDS = 12  # each at least halves the error of the spline at its nodes
_DEVIATIONS = 4  # beyond which a Gaussian is 0
_WEIGHTS = 1 / 8, 3 / 4  # of a quadratic spline's neighbours and its own node, at a node

PointMap = Callable[[Tensor], Tensor]  # points_cube (n, d) -> the same


class HeldShift:
    """A small displacement in the cube, as a quadratic spline through its values at nodes, constant beyond the border.

    ``shift``: points_cube (n, d) -> displacement (n, d), evaluated once at ``size`` nodes along x, y (, z).
    """

    @torch.no_grad()
    def __init__(self, shift: PointMap, half_extents_cube: Tensor, size: Sequence[int]):
        nodes = points_between(half_extents_cube, size).to(half_extents_cube.dtype)
        self.half_extents_cube, self.size = half_extents_cube, tuple(size)
        values = torch.cat(list(in_threads(shift, nodes.split(_PARTS), nodes.device)))
        self.values = values.T.reshape(-1, *reversed(self.size))
        self.table = _table(self.values)

    @torch.no_grad()
    def smoothed(self, nodes: Sequence[float]) -> HeldShift:
        """The values smoothed over a number of nodes along x, y (, z); 0: not along this axis."""
        other = copy.copy(self)
        other.values = _smoothed(self.values, nodes)
        other.table = _table(other.values)
        return other

    def __call__(self, points_cube: Tensor) -> Tensor:
        """The displacement (n, d) at points (n, d)."""
        return interpolate([self.table], self._position(points_cube)[None], self.size, 2)[0]

    def weights(self, points_cube: Tensor) -> PointWeights:
        """The weights of the nodes at points (n, d), for repeated evaluation with other values at the nodes."""
        return PointWeights(self._position(points_cube), self.size, 2)

    def at(self, weights: PointWeights) -> Tensor:
        """The displacement (n, d) at points with known weights."""
        return weights.at(self.table)

    def along(self, axes_cube: Sequence[Tensor], slope: int | None = None) -> Tensor:
        """The displacement (d, (z,) y, x) on a grid along the cube's axes, or its slope along one of them, x first.

        ``axes_cube``: the grid's places along x, y (, z).
        """
        half = [(n - 1) / 2 for n in self.size]
        extents = self.half_extents_cube.tolist()
        positions = [axis * (h / u) + h for axis, h, u in zip(axes_cube, half, extents, strict=True)]
        coefficients = self.table.T.reshape(-1, *reversed(self.size))
        found = along_axes(coefficients, positions, 2, slope)
        return found if slope is None else found * (half[slope] / extents[slope])

    def _position(self, points_cube: Tensor) -> Tensor:
        return position_between(points_cube, self.half_extents_cube, self.size)


@torch.no_grad()
def held(
    forward: PointMap, inverse: PointMap | None, half_extents_cube: Tensor, size: tuple[int, ...], good: float
) -> FieldMap:
    """The two maps as splines of degree 2 with ``size`` nodes along x, y (, z) of the cube.

    ``inverse``: None if unknown; the spline of the forward map is then inverted numerically until the error at every
    node is below ``good`` cube units, or for 40 rounds.
    """
    d = len(half_extents_cube)
    settings = VoxelSettings(local_code=2 * d, code_degree=2)
    code = HybridCode(zero_code(settings, half_extents_cube, size)).requires_grad_(False)
    maps, nodes = FieldMap(VoxelFields(settings, d), code), points_between(half_extents_cube, size)

    def keep(first: int, moved: list[Tensor]) -> None:
        displacement = (torch.cat(moved) - nodes).T.reshape(d, *reversed(size))
        code.local_code[0, first : first + d] = _spline(displacement) / LINEAR_CUBE

    keep(0, [forward(part) for part in nodes.split(_PARTS)])
    keep(d, [inverse(part) if inverse else _inverted(maps.forward, part, good) for part in nodes.split(_PARTS)])
    return maps


def _inverted(forward: PointMap, points: Tensor, good: float) -> Tensor:
    """The points that the map takes to these, by fixed-point iteration."""
    found = points
    for _ in range(_ROUNDS):
        gap = points - forward(found)
        found = found + gap
        if gap.abs().max() < good:
            break
    return found


def _smoothed(values: Tensor, nodes: Sequence[float]) -> Tensor:
    """Values (c, (z,) y, x) smoothed by a Gaussian of a number of nodes along x, y (, z), with twicing.

    Twicing smooths the residual again and adds it. Polynomials of degree 3 are unchanged, and structures wider than six
    times the Gaussian lose little.
    """
    low = _gaussian(values, nodes)
    return low + _gaussian(values - low, nodes)


def _gaussian(values: Tensor, nodes: Sequence[float]) -> Tensor:
    """Beyond the border values are extrapolated by point reflection, which preserves slopes."""
    for axis, over in enumerate(reversed(nodes), 1):
        if over:
            values = _along(values, axis, _gaussian_matrix(values.shape[axis], over))
    return values


def _along(values: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Values multiplied by a matrix (n, n) along an axis of n nodes."""
    return torch.tensordot(matrix.to(values), values, ([1], [axis])).movedim(0, axis)


@lru_cache(maxsize=64)
def _gaussian_matrix(n: int, nodes: float) -> Tensor:
    reach = math.ceil(_DEVIATIONS * nodes)
    steps = torch.arange(-reach, reach + 1, dtype=torch.double)
    weights = torch.exp(-(steps / nodes).square() / 2)
    lines = torch.eye(n, dtype=torch.double)
    inner = [min(k, n - 1) for k in range(reach, 0, -1)]
    before = 2 * lines[:, :1] - lines[:, inner]
    after = 2 * lines[:, -1:] - lines[:, [n - 1 - k for k in reversed(inner)]]
    parts = torch.cat([before, lines, after], -1).unfold(-1, 2 * reach + 1, 1)
    return (parts @ (weights / weights.sum())).T.contiguous()


def spline_table(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Values (n, c) at nodes, x fastest -> coefficients of their spline in the same layout."""
    return _table(values.T.reshape(-1, *reversed(size)))


def _table(values: Tensor) -> Tensor:
    return _spline(values).flatten(1).T.contiguous()


def _spline(values: Tensor) -> Tensor:
    """Coefficients of the quadratic spline with values (c, (z,) y, x) at its nodes, constant beyond the border.

    Axis by axis, by iteration: a spline whose coefficients are the values has an error of at most half of them.
    """
    for axis in range(1, values.ndim):
        values = _along(values, axis, _spline_matrix(values.shape[axis]))
    return values


@lru_cache(maxsize=64)
def _spline_matrix(n: int) -> Tensor:
    beside, own = _WEIGHTS
    wanted = found = torch.eye(n, dtype=torch.double)
    for _ in range(_SPLINE_ROUNDS):
        padded = torch.cat([found[:, :1], found, found[:, -1:]], -1)
        found = found + wanted - (beside * (padded[:, :-2] + padded[:, 2:]) + own * found)
    return found.T.contiguous()
