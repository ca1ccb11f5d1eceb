"""A displacement at every voxel in the place of the neural fields: what nephi is compared with under the same loss.

Read by torch's own interpolation: the core's voxel fields, made for a coarse stage, copy their grid at each call.
"""

from __future__ import annotations

import torch
from nephi.maps.maps import Map
from torch import Tensor


class VoxelMaps(Map, torch.nn.Module):
    """Forward and backward displacement (2, d, (z,) y, x) in cube units, interpolated linearly, at first zero.

    ``shape`` is that of a grid that covers the cube: nodes between minus ``half_extents_cube`` (d,) and it; beyond the
    border its value holds.
    """

    to = torch.nn.Module.to

    def __init__(self, shape: tuple[int, ...], half_extents_cube: Tensor):
        super().__init__()
        self.register_buffer("half_extents", half_extents_cube)
        self.displacement = torch.nn.Parameter(torch.zeros(2, len(shape), *shape, device=half_extents_cube.device))

    @property
    def half_extents_cube(self) -> Tensor:
        return self.half_extents

    def __call__(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._read(self.displacement, points_cube)

    def forward(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._read(self.displacement[:1], points_cube[None])[0]

    def inverse(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._read(self.displacement[1:], points_cube[None])[0]

    def _read(self, displacement: Tensor, points_cube: Tensor) -> Tensor:
        fields, n, d = points_cube.shape
        grid = (points_cube / self.half_extents_cube).reshape(fields, *[1] * (d - 1), n, d)
        read = torch.nn.functional.grid_sample(displacement, grid, padding_mode="border", align_corners=True)
        return read.reshape(fields, d, n).transpose(1, 2)
