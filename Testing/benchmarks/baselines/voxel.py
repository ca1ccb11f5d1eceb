"""A displacement at every voxel, optimised for one pair under nephi's own loss.

Follows the voxel field of Tian et al., NePhi (ECCV 2024, Fig. 7): forward and backward displacements, similarity in
both directions and gradient inverse consistency. It differs in being optimised from coarse to fine and at more points
a step than nephi takes: a point moves only the voxels around it, so that, unlike a network, the finest grid alone
does not find a large motion.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from nephi.objective import Objective
from nephi.settings import PRESETS, RegularitySettings, Sampling
from torch import Tensor, nn
from torch.nn import functional as F

from .common import COARSE, FINE, Level, NoCode, lattice_shape, optimise, read_pair, upper_cube, write_maps

LEVELS = (
    Level(24.0, COARSE, 150, 8e-3),
    Level(12.0, COARSE, 150, 5e-3),
    Level(6.0, COARSE, 150, 3e-3),
    Level(3.0, FINE, 150, 1.5e-3),
)
POINTS, REGULARITY_POINTS = 10_000, 4_000
WEIGHT = 0.5  # of the regulariser, as the preset "balanced"


class VoxelFields(nn.Module):
    """Forward and backward displacement (2, 3, z, y, x) on a lattice over the cube, read by linear interpolation."""

    def __init__(self, shape: tuple[int, ...], upper_cube: Tensor):
        super().__init__()
        self.register_buffer("upper_cube", upper_cube)
        self.displacement = nn.Parameter(torch.zeros(2, len(shape), *shape))

    def forward(self, points_cube: Tensor, code: NoCode | None = None) -> Tensor:
        return self._run(points_cube, self.displacement)

    def one(self, points_cube: Tensor, code: NoCode, way: int) -> Tensor:
        return self._run(points_cube[None], self.displacement[way : way + 1])[0]

    def _run(self, points_cube: Tensor, displacement: Tensor) -> Tensor:
        d = points_cube.shape[-1]
        grid = (points_cube / self.upper_cube).reshape(len(points_cube), *[1] * (d - 1), -1, d)
        moved = F.grid_sample(displacement, grid, padding_mode="border", align_corners=True)
        return points_cube + moved.reshape(len(points_cube), d, -1).transpose(1, 2)


class _Refined(VoxelFields):
    """Begins with as many nodes as its cube needs at the first level's spacing."""

    def __init__(self, cube, upper_cube: Tensor):
        super().__init__((2,) * cube.dimension, upper_cube)
        self.cube = cube

    def refine(self, spacing_mm: float) -> None:
        shape = lattice_shape(self.cube, spacing_mm)
        finer = F.interpolate(self.displacement.detach(), shape, mode="trilinear", align_corners=True)
        self.displacement = nn.Parameter(finer)


def run(job) -> None:
    settings = PRESETS["balanced"]
    pair = read_pair(job.prepared, settings)
    fields, code = _Refined(pair.cube, upper_cube(pair)), NoCode(upper_cube(pair))
    generator = torch.Generator().manual_seed(job.seed)
    similarity = replace(settings.similarity, points=Sampling(0.0, POINTS, POINTS))

    def objective(level: Level, volumes):
        regularity = RegularitySettings(
            weight=WEIGHT, points=Sampling(0.0, REGULARITY_POINTS, REGULARITY_POINTS), step_mm=level.spacing_mm / 2
        )
        loss = Objective(fields, similarity, regularity, pair.cube.unit_mm, generator)
        return loss(code, [volumes])

    optimise(fields, pair, LEVELS, objective, job.quick)
    write_maps(fields, pair, job.out, inverse=True)
