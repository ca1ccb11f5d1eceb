"""A closed border in the cube, by the distance to it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..space.interpolate import interpolate
from .code import position_between, steps_between
from .held import spline_table

_STEPS = 3  # of Newton's method, by which points come to a distance from the border
_FLAT = 0.25  # squared slope of the distance, below which steps are not longer


class Border:
    """A closed border in the cube, by the distance to it, negative within.

    ``distance`` ((z,) y, x) float16 in cube units, at nodes that are evenly spread over the cube, border included.
    Raises ValueError for values of another type or shape.
    """

    def __init__(self, distance: Tensor, half_extents_cube: Tensor):
        if distance.dtype != torch.float16 or distance.ndim != len(half_extents_cube) or min(distance.shape) < 2:
            raise ValueError(f"distances from a border of shape {tuple(distance.shape)}")
        self.distance, self.half_extents_cube = distance, half_extents_cube
        self.size = tuple(reversed(distance.shape))
        values = distance.to(half_extents_cube)
        steps = steps_between(half_extents_cube, self.size).flip(0).tolist()
        slopes = torch.gradient(values, spacing=steps)
        self.between_nodes = sum(step**2 for step in steps) ** 0.5  # next to each other, at most
        self._table = spline_table(torch.stack([values, *reversed(slopes)], -1).flatten(0, -2), self.size)

    def at(self, points_cube: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (n, 1) from the border at points (n, d), and its slope (n, d)."""
        position = position_between(points_cube, self.half_extents_cube, self.size)
        values = interpolate([self._table], position[None], self.size, 2)[0]
        return values[:, :1], values[:, 1:]

    def within(self, points_cube: Tensor) -> Tensor:
        """(n, 1) bool: which points (n, d) lie within it."""
        return self.at(points_cube.detach())[0] < 0

    def nearest(self, points_cube: Tensor) -> Tensor:
        """Distance (n, 1) of the nodes that are nearest to points (n, d)."""
        node = position_between(points_cube, self.half_extents_cube, self.size).round().long()
        row = torch.zeros_like(node[:, 0])
        for axis in reversed(range(len(self.size))):
            row = row * self.size[axis] + node[:, axis].clamp(0, self.size[axis] - 1)
        return self.distance.flatten()[row][:, None].to(points_cube)

    def brought(self, points_cube: Tensor, distance: Tensor | float = 0.0) -> Tensor:
        """Points (n, d), brought to a distance (n, 1) from it along its slope; where that is flat, only near it."""
        for _ in range(_STEPS):
            found, slope = self.at(points_cube)
            squared = slope.square().sum(-1, keepdim=True).clamp(min=_FLAT)
            points_cube = points_cube + (distance - found) * slope / squared
        return points_cube

    def to(self, device: torch.device | str) -> Border:
        return Border(self.distance.to(device), self.half_extents_cube.to(device))
