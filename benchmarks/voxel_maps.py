"""A displacement at every voxel in the place of the neural fields: what nephi is compared with under the same loss.

Read by torch's own interpolation: the core's voxel fields, made for a coarse stage, copy their grid at each call.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NoCode:
    """What is asked of a latent code, for maps that have none."""

    def __init__(self, upper_cube: Tensor):
        self.upper_cube, self.global_code = upper_cube, upper_cube.new_zeros(1, 0)


class VoxelMaps(torch.nn.Module):
    """Forward and backward displacement (2, d, (z,) y, x) in cube units, interpolated linearly, at first zero.

    Called as ``nephi.maps.fields.Maps``. ``shape`` is that of a grid that covers the cube: nodes between minus
    ``upper_cube`` (d,) and it; beyond the border its value holds.
    """

    def __init__(self, shape: tuple[int, ...], upper_cube: Tensor):
        super().__init__()
        self.register_buffer("upper_cube", upper_cube)
        self.displacement = torch.nn.Parameter(torch.zeros(2, len(shape), *shape, device=upper_cube.device))

    @property
    def code(self) -> NoCode:
        return NoCode(self.upper_cube)

    def forward(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._read(self.displacement, points_cube)

    def bound(self) -> VoxelMaps:
        """Nothing depends on a code: the maps themselves."""
        return self

    def one(self, points_cube: Tensor, way: int) -> Tensor:
        return points_cube + self._read(self.displacement[way : way + 1], points_cube[None])[0]

    def _read(self, displacement: Tensor, points_cube: Tensor) -> Tensor:
        fields, n, d = points_cube.shape
        grid = (points_cube / self.upper_cube).reshape(fields, *[1] * (d - 1), n, d)
        read = torch.nn.functional.grid_sample(displacement, grid, padding_mode="border", align_corners=True)
        return read.reshape(fields, d, n).transpose(1, 2)
