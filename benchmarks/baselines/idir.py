"""A sinusoidal network per pair, as an implicit neural representation of the displacement.

Follows Wolterink, Zwienenberg, Brune, Implicit Neural Representations for Deformable Image Registration (MIDL 2022;
"IDIR"): coordinates -> three hidden layers of 256 sines (Sitzmann et al., SIREN, 2020) -> displacement, optimised for
one pair at 10,000 random points per step with one of its three regularisers, the bending energy, in the forward
direction only. It differs in the similarity (nephi's MIND in place of global correlation, which loses breath-hold
motion), in the frequency, the learning rate and the steps (OMEGA, LEVELS; published: omega 32, 1e-5, 2,500 steps), in
half the points per step, and in that the regulariser's derivatives are finite differences, at fewer points.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from nephi.fitting.regularity import Bending
from nephi.settings import PRESETS, Sampling
from torch import Tensor, nn

from .harness import COARSE, FINE, Level, OneWay, forward_similarity, half_extents_cube, optimise, read_pair, write_maps

WIDTH, HIDDEN_LAYERS, OMEGA, RATE = 256, 3, 10.0, 3e-4
LEVELS = (Level(0.0, COARSE, 500, RATE), Level(0.0, FINE, 300, RATE / 2))
POINTS, REGULARITY_POINTS = 5_000, 250
WEIGHT = 1e-3
STEP_MM = 4.0  # of the finite differences


class Sines(OneWay):
    """points_cube -> displacement in the cube by layers of sin(omega * (W x + b)), the last one linear."""

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN_LAYERS, omega: float = OMEGA):
        super().__init__()
        sizes = [3, *[width] * hidden, 3]
        self.omega = omega
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        with torch.no_grad():
            for k, layer in enumerate(self.layers):
                bound = 1 / 3 if k == 0 else math.sqrt(6 / layer.in_features) / omega
                layer.weight.uniform_(-bound, bound)
            self.layers[-1].weight.mul_(1e-2)  # begin near the identity
            self.layers[-1].bias.zero_()

    def refine(self, spacing_mm: float) -> None:
        """There is no lattice."""

    def displacement(self, points_cube: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            points_cube = torch.sin(self.omega * layer(points_cube))
        return self.layers[-1](points_cube)


def run(job) -> None:
    settings = PRESETS["balanced"]
    pair = read_pair(job.prepared, settings.similarity)
    torch.manual_seed(job.seed)  # the layers start from it
    maps, upper = Sines(), half_extents_cube(pair)
    generator = torch.Generator().manual_seed(job.seed)
    similarity = replace(settings.similarity, points=Sampling(0.0, POINTS, POINTS))
    bending, step = Bending(), STEP_MM / pair.cube.unit_mm
    around = bending.stencil(3, step)

    def objective(level: Level, volumes):
        centres = (torch.rand((REGULARITY_POINTS, 3), generator=generator) * 2 - 1) * upper
        points = (centres[:, None] + around)[None]
        terms = {
            "similarity": forward_similarity(maps, volumes, similarity, generator),
            "regularity": bending.penalty(maps, points, maps(points), step),
        }
        return terms["similarity"] + WEIGHT * terms["regularity"], terms

    optimise(maps, pair, LEVELS, objective, job.quick)
    write_maps(maps, pair, job.out, inverse=False)
