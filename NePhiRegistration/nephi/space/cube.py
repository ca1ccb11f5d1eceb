"""The registration cube: an oriented box in LPS mm, scaled by one number for all axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grid import Grid


@dataclass(frozen=True)
class Cube:
    """The registration cube: an oriented box in LPS mm, scaled by one number for all axes."""

    centre_lps_mm: tuple[float, ...]
    half_sides_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def around(cls, points_lps_mm: np.ndarray, direction: tuple[float, ...], margin_mm: float = 0.0) -> Cube:
        """The smallest box along ``direction`` that contains the points (n, d), with a margin on every side."""
        d = points_lps_mm.shape[-1]
        axes = np.reshape(direction, (d, d))
        if np.abs(axes.T @ axes - np.eye(d)).max() > 1e-9:  # an image's may be off by rounding, a cube's is inverted
            u, _, v = np.linalg.svd(axes)
            axes = u @ v
            direction = tuple(axes.ravel().tolist())
        along = points_lps_mm @ axes
        low, high = along.min(0), along.max(0)
        half = np.maximum((high - low) / 2, 1e-3) + margin_mm
        return cls(tuple(axes @ ((low + high) / 2)), tuple(half), tuple(direction))

    @property
    def dimension(self) -> int:
        return len(self.half_sides_mm)

    @property
    def axes(self) -> np.ndarray:
        return np.reshape(np.asarray(self.direction, float), (self.dimension, self.dimension))

    @property
    def unit_mm(self) -> float:
        """Millimetres of one unit of the cube."""
        return max(self.half_sides_mm)

    @property
    def half_extents_cube(self) -> np.ndarray:
        """(d,): half of the sides; the box lies between minus these and these."""
        return np.asarray(self.half_sides_mm) / self.unit_mm

    def to_cube(self, points_lps_mm) -> np.ndarray:
        """(..., d) points_lps_mm -> (..., d) points_cube."""
        return (np.asarray(points_lps_mm, float) - np.asarray(self.centre_lps_mm)) @ self.axes / self.unit_mm

    def to_lps_mm(self, points_cube) -> np.ndarray:
        """(..., d) points_cube -> (..., d) points_lps_mm."""
        return np.asarray(points_cube, float) @ self.axes.T * self.unit_mm + np.asarray(self.centre_lps_mm)

    def grid(self, spacing_mm: float, lower_cube=None, upper_cube=None) -> Grid:
        """The grid of cubic voxels along the cube's axes that covers the box between the two corners."""
        upper = self.half_extents_cube if upper_cube is None else np.asarray(upper_cube)
        lower = -self.half_extents_cube if lower_cube is None else np.asarray(lower_cube)
        size = np.ceil((upper - lower) * self.unit_mm / spacing_mm - 1e-6).astype(int) + 1
        spacing = (float(spacing_mm),) * self.dimension
        return Grid(tuple(int(n) for n in size), spacing, tuple(self.to_lps_mm(lower)), self.direction)


def overlap(a_lps_mm: np.ndarray, b_lps_mm: np.ndarray, direction: tuple[float, ...]) -> bool:
    """Whether the boxes along ``direction`` around two sets of points (n, d) overlap."""
    axes = np.reshape(direction, (a_lps_mm.shape[-1],) * 2)
    a, b = a_lps_mm @ axes, b_lps_mm @ axes
    return bool(((a.min(0) < b.max(0)) & (b.min(0) < a.max(0))).all())
