"""Maps without a network: displacements at the nodes of the local code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..settings import FIELDS, VoxelSettings
from .code import FORWARD, INVERSE, LINEAR_CUBE, Code, points_between
from .fields import Fields


class VoxelFields(Fields):
    """Displacements at voxels: the local code itself, channels 0 to d - 1 forward, d to 2 d - 1 inverse.

    In the place of ``NeuralFields``; has no weights. Its values, in units of 0.06 of the cube, are spline coefficients.
    """

    def __init__(self, settings: VoxelSettings, dimension: int = 3):
        super().__init__(settings)
        self.dimension = dimension

    def one(self, points_cube: Tensor, code: Code, way: int) -> Tensor:
        d = self.dimension
        local = code.local_code[:, way * d : (way + 1) * d]
        if self.settings.code_degree == 1 and code.batch == 1 and not torch.is_grad_enabled():
            # as below, but it reads the code where it lies: a copy of all nodes would take longer than some points
            unit = (points_cube / code.half_extents_cube)[(None,) * d]
            found = F.grid_sample(local, unit, mode="bilinear", padding_mode="border", align_corners=True)
            return points_cube + LINEAR_CUBE * found.reshape(d, -1).T
        own = Code(code.global_code, local, code.half_extents_cube)
        return points_cube + LINEAR_CUBE * own.at(points_cube[None], self.settings.code_degree)[0]

    def forward(self, points_cube: Tensor, code: Code) -> Tensor:
        values, d = LINEAR_CUBE * code.at(points_cube, self.settings.code_degree), self.dimension
        return points_cube + torch.stack([values[FORWARD, :, :d], values[INVERSE, :, d:]])

    @torch.no_grad()
    def with_inverse(self, code: Code, rounds: int = 8) -> Code:
        """The code of one pair with another inverse part: the forward map undoes it, nearly, at the nodes."""
        d, local, nodes = self.dimension, code.local_code.clone(), points_between(code.half_extents_cube, code.size)
        code = Code(code.global_code, local, code.half_extents_cube)
        for _ in range(rounds):
            gap = nodes - self.one(self.one(nodes, code, INVERSE), code, FORWARD)
            local[:, d:] += gap.T.reshape(1, d, *local.shape[2:]) / LINEAR_CUBE
        return code


FIELDS.add("voxel", lambda settings, half_size_mm, dimension, generator: VoxelFields(settings, dimension))
