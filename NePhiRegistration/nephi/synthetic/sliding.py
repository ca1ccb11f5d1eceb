"""The motion of a phantom with sliding: the inside of the rib cage moves along it; the chest wall does not move."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..space.grid import Grid
from .anatomy import KNOTS_MM, Motion, cage, on_grid

_STEPS = 8  # of the flow, by Runge and Kutta's method of order 4
_DEPTH_MM = 12.0  # from the cage, over which the motion turns along it
_CAGE_MM = 84.0  # its radius, about


class _Body(Motion):
    """The motion within the cage, continued smoothly beyond it: a flow that does not cross the cage."""

    def velocity(self, a: np.ndarray) -> np.ndarray:
        """(..., 3) mm at anatomy points (..., 3)."""
        x, y, z = np.moveaxis(a, -1, 0)
        v = np.sin(a @ self.wave_vectors.T + self.wave_phases) @ self.wave_amplitudes
        v[..., 2] -= 14 * (1 - np.tanh((z - 5) / 64)) / 2 * (1 + 0.15 * np.tanh(y / 60))
        flat = np.array([1.0, float(self.dimension == 3), 1.0])  # the 2D phantom stays in its plane
        steps = 0.01 * np.eye(3)
        ahead, behind = (np.stack([cage(*np.moveaxis(a + s * h, -1, 0)) for h in steps], -1) for s in (1, -1))
        normal = (ahead - behind) * flat
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        near = np.exp(-(((1 - cage(x, y, z)) * _CAGE_MM / _DEPTH_MM) ** 2))[..., None]
        return (v - near * (v * normal).sum(-1, keepdims=True) * normal) * flat

    def flow(self, points_lps_mm: np.ndarray, time: float) -> np.ndarray:
        """(..., d) points of the fixed image after a time in 0..1, or before it where that is below 0."""
        a, h = self.to_anatomy(points_lps_mm), time / _STEPS
        for _ in range(_STEPS):
            k1 = self.velocity(a)
            k2 = self.velocity(a + h / 2 * k1)
            k3 = self.velocity(a + h / 2 * k2)
            a = a + h / 6 * (k1 + 2 * k2 + 2 * k3 + self.velocity(a + h * k3))
        return self.from_anatomy(a)

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        return self.flow(points_lps_mm, 1.0) + (self.moving_centre_lps_mm - self.fixed_centre_lps_mm)

    def inverse(self, points_lps_mm: np.ndarray, tolerance_mm: float = 1e-6) -> np.ndarray:
        target = np.asarray(points_lps_mm, float)
        x = self.flow(target - (self.moving_centre_lps_mm - self.fixed_centre_lps_mm), -1.0)
        for _ in range(4):  # the flow back errs a little, by its steps
            gap = target - self.forward(x)
            if np.abs(gap).max(initial=0.0) < tolerance_mm:
                break
            x = x + gap
        return x


class _Wall(Motion):
    """Only the whole patient moves."""

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        return np.asarray(points_lps_mm, float) + (self.moving_centre_lps_mm - self.fixed_centre_lps_mm)

    def inverse(self, points_lps_mm: np.ndarray, tolerance_mm: float = 1e-6) -> np.ndarray:
        return np.asarray(points_lps_mm, float) - (self.moving_centre_lps_mm - self.fixed_centre_lps_mm)


class SlidingMotion(Motion):
    """Exhale to inhale: lungs, heart and abdomen slide along the inside of the rib cage by up to 15 mm.

    The map jumps there along the cage, and only along it: the cage's inside is mapped onto itself.
    """

    @property
    def _parts(self) -> tuple[Motion, Motion]:
        given = [getattr(self, name) for name in self.__dataclass_fields__]
        return _Body(*given), _Wall(*given)

    def within(self, points_lps_mm: np.ndarray, inhale: bool = False) -> np.ndarray:
        """(...) bool: whether points (..., d) of the fixed image, or of the moving one, lie within the cage."""
        shift = self.moving_centre_lps_mm - self.fixed_centre_lps_mm if inhale else 0.0
        return cage(*np.moveaxis(self.to_anatomy(points_lps_mm - shift), -1, 0)) < 1

    def _chosen(self, points_lps_mm: np.ndarray, way: str, inhale: bool, **further) -> np.ndarray:
        points = np.asarray(points_lps_mm, float)
        within = self.within(points, inhale)
        body, wall = self._parts
        out = getattr(wall, way)(points, **further)
        out[within] = getattr(body, way)(points[within], **further)
        return out

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        return self._chosen(points_lps_mm, "forward", False)

    def derivative(self, points_lps_mm: np.ndarray, step_mm: float = 1e-3) -> np.ndarray:
        return self._chosen(points_lps_mm, "derivative", False, step_mm=step_mm)

    def inverse(self, points_lps_mm: np.ndarray, tolerance_mm: float = 1e-6) -> np.ndarray:
        return self._chosen(points_lps_mm, "inverse", True, tolerance_mm=tolerance_mm)

    def on_grid(self, grid: Grid, function: Callable, inhale: bool) -> np.ndarray:
        body, wall = (on_grid(grid, partial(function, part), KNOTS_MM * self.scale) for part in self._parts)
        for z in range(grid.shape[0]):
            within = self.within(grid.slab_lps_mm(z, z + 1), inhale).reshape(wall[z].shape[:-1])
            wall[z][within] = body[z][within]
        return wall
