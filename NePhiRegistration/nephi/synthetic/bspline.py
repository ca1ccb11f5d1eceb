"""The exact map of a breathing pair: a rigid motion after a cubic B-spline, the same formula for voxels and points."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from ..errors import NephiError
from ..space.grid import Grid

_CHUNK = 2**14  # points evaluated at a time: 64 control points each


def box_grid(low_lps_mm, high_lps_mm, spacing_mm) -> Grid:
    """The grid along LPS, at least 8 voxels per axis, that covers a box with voxels of ``spacing_mm`` (1 or 3)."""
    low, spacing = np.asarray(low_lps_mm, float), np.broadcast_to(np.asarray(spacing_mm, float), 3)
    size = np.maximum(np.ceil((high_lps_mm - low) / spacing - 1e-6), 7).astype(int) + 1
    return Grid(tuple(map(int, size)), tuple(map(float, spacing)), tuple(map(float, low)), tuple(np.eye(3).ravel()))


@dataclass(frozen=True)
class Spline:
    """Displacement (..., c) in mm by a uniform cubic B-spline; constant beyond the lattice."""

    lattice: Grid  # axes along LPS
    control: np.ndarray  # (z, y, x, c)

    @classmethod
    def random(cls, low_lps_mm, high_lps_mm, knots_mm: float, rms_mm: float, rng) -> Spline:
        lattice = box_grid(low_lps_mm - 2 * knots_mm, high_lps_mm + 2 * knots_mm, knots_mm)
        control = rng.normal(size=(*lattice.shape, 3))
        return cls(lattice, control * rms_mm / 0.33)  # the basis' weights of white noise leave a third of it

    def _weights(self, index: np.ndarray, axis: int, slope: bool) -> tuple[np.ndarray, np.ndarray]:
        """First of 4 control points and their weights (n, 4), or the weights' derivative per mm, along an axis."""
        last = self.lattice.size[axis] - 2
        at = np.clip(index, 1, last)
        first = np.minimum(np.floor(at), last - 1).astype(int) - 1
        t = at - first - 1
        if slope:
            weights = np.stack([-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2], -1) / 2
            return first, weights * ((index == at) / self.lattice.spacing_mm[axis])[..., None]
        third = 1 + 3 * (t + t**2 - t**3)
        return first, np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, third, t**3], -1) / 6

    def __call__(self, points_lps_mm: np.ndarray, slope: int | None = None) -> np.ndarray:
        """(n, 3) -> (n, c), or its derivative along the axis ``slope`` of LPS."""
        result = np.empty((len(points_lps_mm), self.control.shape[-1]))
        for start in range(0, len(points_lps_mm), _CHUNK):
            index = self.lattice.to_index(points_lps_mm[start : start + _CHUNK])
            (i, x), (j, y), (k, z) = (self._weights(index[:, a], a, slope == a) for a in range(3))
            total = 0.0
            for c, b, a in product(range(4), repeat=3):
                total = total + self.control[k + c, j + b, i + a] * (z[:, c] * y[:, b] * x[:, a])[:, None]
            result[start : start + _CHUNK] = total
        return result

    def on_grid(self, grid: Grid, slope: int | None = None) -> np.ndarray:
        """The same at every voxel of a grid along LPS, (z, y, x, c) float32: one axis after the other."""
        result = self.control.astype(np.float32)
        shift = np.subtract(grid.origin_lps_mm, self.lattice.origin_lps_mm)
        for axis in (2, 1, 0):
            voxels = np.arange(grid.size[axis])
            index = (shift[axis] + voxels * grid.spacing_mm[axis]) / self.lattice.spacing_mm[axis]
            first, weights = self._weights(index, axis, slope == axis)
            matrix = np.zeros((len(voxels), self.lattice.size[axis]), np.float32)
            matrix[voxels[:, None], first[:, None] + np.arange(4)] = weights
            result = np.moveaxis(np.tensordot(matrix, result, (1, 2 - axis)), 0, 2 - axis)
        return result


@dataclass(frozen=True)
class Breath:
    """Points of the deformed image -> of the base: ``centre + matrix @ (y + u(y) - centre - offset)``, exactly."""

    spline: Spline
    matrix: np.ndarray
    centre_lps_mm: np.ndarray
    offset_mm: np.ndarray

    def _turn(self, points: np.ndarray) -> np.ndarray:
        still = self.centre_lps_mm + self.offset_mm
        return (points - still) @ self.matrix.T + self.centre_lps_mm

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(n, 3) points of the deformed image -> base."""
        points = np.asarray(points_lps_mm, float)
        return self._turn(points + self.spline(points))

    def inverse(self, points_lps_mm: np.ndarray, tolerance_mm: float = 1e-5) -> np.ndarray:
        """(n, 3) points of the base -> deformed image, by Newton's method with halved steps where it overshoots.

        Raises NephiError where it does not come to ``tolerance_mm``.
        """
        target = (np.asarray(points_lps_mm, float) - self.centre_lps_mm) @ np.linalg.inv(self.matrix).T
        target += self.centre_lps_mm + self.offset_mm
        y, u = target.copy(), self.spline(target)
        gap = y + u - target
        todo = np.arange(len(y))
        for _ in range(60):
            todo = todo[np.linalg.norm(gap[todo], axis=1) > tolerance_mm]
            if len(todo) == 0:
                return y
            slopes = np.stack([self.spline(y[todo], axis) for axis in range(3)], -1) + np.eye(3)
            step = np.linalg.solve(slopes, gap[todo][..., None])[..., 0]
            step *= np.minimum(1, 30 / np.linalg.norm(step, axis=1, keepdims=True))
            left = np.arange(len(todo))
            for _ in range(8):
                at = todo[left]
                trial = y[at] - step[left]
                error = trial + self.spline(trial) - target[at]
                better = np.linalg.norm(error, axis=1) < np.linalg.norm(gap[at], axis=1)
                y[at[better]], gap[at[better]] = trial[better], error[better]
                left = left[~better]
                if len(left) == 0:
                    break
                step[left] /= 2
        raise NephiError("The map could not be inverted there: choose points nearer to the lungs.")

    def determinant(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(n,) Jacobian determinant of ``forward`` at points (n, 3) of the deformed image."""
        points = np.asarray(points_lps_mm, float)
        slopes = np.stack([self.spline(points, axis) for axis in range(3)], -1) + np.eye(3)
        return np.linalg.det(self.matrix @ slopes)

    def on_grid(self, grid: Grid) -> np.ndarray:
        """``forward`` at every voxel, (z, y, x, 3) float32 in LPS mm relative to the centre, which keeps it exact."""
        still = self.centre_lps_mm + self.offset_mm
        moved = self.spline.on_grid(grid)
        for axis in range(3):
            shape = [-1 if a == 2 - axis else 1 for a in range(3)]
            along = grid.origin_lps_mm[axis] - still[axis] + np.arange(grid.size[axis]) * grid.spacing_mm[axis]
            moved[..., axis] += along.astype(np.float32).reshape(shape)
        return moved @ self.matrix.T.astype(np.float32)

    def jacobian(self, grid: Grid) -> np.ndarray:
        """Determinant of the derivative at every voxel (z, y, x): volume in the base by volume in the deformed."""
        (a, b, c), (d, e, f), (g, h, i) = (np.moveaxis(self.spline.on_grid(grid, axis), -1, 0) for axis in range(3))
        a, e, i = a + 1, e + 1, i + 1
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
