"""A displacement at every voxel, optimised for one pair under nephi's own loss.

Follows the voxel field of Tian et al., NePhi (ECCV 2024, Fig. 7): forward and backward displacements, similarity in
both directions and gradient inverse consistency. It differs in being optimised from coarse to fine and at more points
per step than nephi takes: a point moves only the voxels around it, so that, unlike a network, the finest grid alone
does not find a large motion.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from nephi.fitting.objective import Objective
from nephi.settings import PRESETS, RegularitySettings, Sampling
from torch import Tensor, nn
from torch.nn import functional as F

from ..voxel_maps import VoxelMaps
from .harness import COARSE, FINE, Level, half_extents_cube, lattice_shape, optimise, read_pair, write_maps

LEVELS = (
    Level(24.0, COARSE, 150, 8e-3),
    Level(12.0, COARSE, 150, 5e-3),
    Level(6.0, COARSE, 150, 3e-3),
    Level(3.0, FINE, 150, 1.5e-3),
)
POINTS, REGULARITY_POINTS = 10_000, 4_000
WEIGHT = 0.5  # of the regulariser, as the preset "balanced"


class _Refined(VoxelMaps):
    """Begins with as many nodes as its cube needs at the first level's spacing."""

    def __init__(self, cube, half_extents_cube: Tensor):
        super().__init__((2,) * cube.dimension, half_extents_cube)
        self.cube = cube

    def refine(self, spacing_mm: float) -> None:
        shape = lattice_shape(self.cube, spacing_mm)
        finer = F.interpolate(self.displacement.detach(), shape, mode="trilinear", align_corners=True)
        self.displacement = nn.Parameter(finer)


def run(job) -> None:
    settings = PRESETS["balanced"]
    pair = read_pair(job.prepared, settings.similarity)
    maps = _Refined(pair.cube, half_extents_cube(pair))
    generator = torch.Generator().manual_seed(job.seed)
    similarity = replace(settings.similarity, points=Sampling(0.0, POINTS, POINTS))

    def objective(level: Level, volumes):
        regularity = RegularitySettings(
            weight=WEIGHT, points=Sampling(0.0, REGULARITY_POINTS, REGULARITY_POINTS), step_mm=level.spacing_mm / 2
        )
        return Objective(similarity, regularity, pair.cube.unit_mm, generator)(maps, [volumes])

    optimise(maps, pair, LEVELS, objective, job.quick)
    write_maps(maps, pair, job.out, inverse=True)
