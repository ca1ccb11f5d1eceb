"""Cubic B-splines with isotropic total variation, optimised for one pair.

Follows Vishnevskiy et al., Isotropic Total Variation Regularization of Displacements in Parametric Image
Registration (IEEE TMI 2017; "pTVreg"): control points from coarse to fine, and the total variation of the displacement,
which lets neighbouring tissue slide, with the norm taken over all components and axes together, so that no direction is
preferred. It differs in the similarity (nephi's MIND at random points, in place of local correlation at all voxels),
in the optimiser (Adam, in place of L-BFGS or ADMM; the norm is rounded off at zero to be differentiated) and in that
the variation is that of the control points. One direction only, as published.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from nephi.settings import PRESETS, Sampling
from nephi.space.cube import Cube
from torch import Tensor, nn

from .harness import (
    COARSE,
    FINE,
    Level,
    OneWay,
    forward_similarity,
    half_extents_cube,
    lattice_shape,
    optimise,
    read_pair,
    write_maps,
)

COARSEST_MM = 40.0
LEVELS = (
    Level(40.0, COARSE, 150, 8e-3),
    Level(20.0, COARSE, 150, 5e-3),
    Level(10.0, COARSE, 200, 3e-3),
    Level(5.0, FINE, 200, 1.5e-3),
)
POINTS = 5_000
WEIGHT = 0.1  # of the mean norm of the displacement's gradient
ROUND = 0.02  # the norm is rounded off below this gradient


class BSpline(OneWay):
    """Displacement by a uniform cubic B-spline; control (3, z, y, x), one node beyond the cube on every side."""

    def __init__(self, cube: Cube, spacing_mm: float, half_extents_cube: Tensor):
        super().__init__()
        self.register_buffer("half_extents", half_extents_cube)
        cells = [n - 1 for n in lattice_shape(cube, spacing_mm)]
        self.finest_mm = spacing_mm
        self.control = nn.Parameter(torch.zeros(3, *(n + 3 for n in cells)))

    @property
    def cells(self) -> Tensor:
        """Between the sides of the cube, along x, y, z."""
        return torch.tensor(self.control.shape[:0:-1]) - 3

    def refine(self, spacing_mm: float) -> None:
        """Halve the spacing until it is this or less: the same displacement by more control points."""
        while self.finest_mm > spacing_mm * (1 + 1e-6):
            control = self.control.detach()
            for axis in (1, 2, 3):
                c = control.movedim(axis, 0)
                finer = c.new_empty(2 * len(c) - 3, *c.shape[1:])
                finer[0::2] = (c[:-1] + c[1:]) / 2
                finer[1::2] = (c[:-2] + 6 * c[1:-1] + c[2:]) / 8
                control = finer.movedim(0, axis)
            self.control, self.finest_mm = nn.Parameter(control.contiguous()), self.finest_mm / 2

    def displacement(self, points_cube: Tensor) -> Tensor:
        at = (points_cube / self.half_extents + 1) / 2 * self.cells  # 0 at the cube's lower side
        at = torch.minimum(at.clamp(min=0), self.cells.to(at))
        first = torch.minimum(at.detach().floor().long(), self.cells - 1)
        t = at - first
        basis = torch.stack(
            [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * (t + t**2 - t**3), t**3], -1
        ) / 6  # fmt: skip
        x, y, z = basis.unbind(1)  # (n, 4) each
        weights = torch.einsum("nc,nb,na->ncba", z, y, x).reshape(len(at), 64)
        reach = torch.arange(4)
        _, depth, height, width = self.control.shape
        i, j, k = (first[:, axis, None] + reach for axis in range(3))
        index = (k[:, :, None, None] * height + j[:, None, :, None]) * width + i[:, None, None, :]
        nodes = self.control.reshape(3, -1).T[index.reshape(-1)].reshape(len(at), 64, 3)
        return torch.bmm(weights[:, None], nodes)[:, 0]

    def total_variation(self) -> Tensor:
        """Mean over the nodes of |grad u|_F, by differences to the next node (no unit: displacement by length)."""
        squares = 0.0
        for axis in (1, 2, 3):
            step = 2 * self.half_extents[3 - axis] / self.cells[3 - axis]
            ahead = (self.control.narrow(axis, 1, self.control.shape[axis] - 1)
                     - self.control.narrow(axis, 0, self.control.shape[axis] - 1))  # fmt: skip
            for other in (1, 2, 3):
                if other != axis:
                    ahead = ahead.narrow(other, 0, self.control.shape[other] - 1)
            squares = squares + (ahead / step).square().sum(0)
        return ((squares + ROUND**2).sqrt() - ROUND).mean()


def run(job) -> None:
    settings = PRESETS["balanced"]
    pair = read_pair(job.prepared, settings.similarity)
    maps = BSpline(pair.cube, COARSEST_MM, half_extents_cube(pair))
    generator = torch.Generator().manual_seed(job.seed)
    similarity = replace(settings.similarity, points=Sampling(0.0, POINTS, POINTS))

    def objective(level: Level, volumes):
        terms = {
            "similarity": forward_similarity(maps, volumes, similarity, generator),
            "regularity": maps.total_variation(),
        }
        return terms["similarity"] + WEIGHT * terms["regularity"], terms

    optimise(maps, pair, LEVELS, objective, job.quick)
    write_maps(maps, pair, job.out, inverse=False)
