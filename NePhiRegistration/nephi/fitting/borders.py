"""Distances to the borders of any number of labels: of each in a box of its own, all in one table."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..images.image_pair import ImagePair
from ..images.masks import mask_box, signed_distance_mm
from ..space.affine import Affine
from ..space.grid import Grid

_REACH_MM = 15.0  # around a label, within which its border has an effect
_NODES = 48  # along the longest side of a label's box
_COARSEST_MM = 3.0  # between two of them
_POOL = 4000  # points near the border of a label, of which a step draws some


class Borders:
    """Borders of the labels of one image: points near each border, and distances to it anywhere.

    ``points`` (l * p, d) in the cube and ``there_mm`` (l * p,): points near each of the l borders, and their signed
    distances, negative inside. Distances are stored at nodes in the cube: ``table`` (n,) float16, one box of nodes
    after the other.
    """

    def __init__(self, parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]], device: torch.device):
        points, there, tables, lower, spacing = zip(*parts, strict=True)
        self.labels = len(parts)
        self.points, self.there_mm = (torch.stack(values).to(device) for values in (points, there))
        sizes = torch.tensor([list(reversed(table.shape)) for table in tables])
        self._table = torch.cat([table.flatten() for table in tables]).to(device)
        self._lower, self._spacing = (torch.stack(values).to(device)[:, None] for values in (lower, spacing))
        self._last = (sizes - 1).float().to(device)[:, None]
        strides = torch.cat([torch.ones(len(sizes), 1, dtype=torch.long), sizes[:, :-1].cumprod(1)], 1)
        first = torch.cat([torch.zeros(1, dtype=torch.long), sizes.prod(1).cumsum(0)[:-1]])
        d = sizes.shape[1]
        corners = torch.tensor([[(corner >> axis) & 1 for axis in range(d)] for corner in range(2**d)])
        self._corners = corners.bool().to(device)
        self._strides = strides.to(device)[:, None]
        self._rows = (first[:, None] + strides @ corners.T).to(device)[:, None]  # of the corners of the first cell

    @classmethod
    def of(
        cls, labels: tuple[sitk.Image, sitk.Image], pair: ImagePair, device: torch.device
    ) -> tuple[Borders, Borders]:
        """Those of the fixed and of the moving image, the latter seen through the alignment."""
        numbers = sorted(set(np.unique(sitk.GetArrayViewFromImage(labels[0])).tolist()) - {0})
        affines = Affine.identity(pair.cube.dimension), pair.affine
        fixed, moving = (
            cls([_part(one == number, affine, pair) for number in numbers], device)
            for one, affine in zip(labels, affines, strict=True)
        )
        return fixed, moving

    def draw(self, steps: int, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points (steps, l * each, d) near the borders, label after label, and their distances (steps, l * each)."""
        labels, pool = self.there_mm.shape
        device = self.points.device
        chosen = torch.randint(pool, (steps, labels, each), generator=generator, device=device)
        chosen = (chosen + torch.arange(labels, device=device)[:, None] * pool).flatten(1)
        return self.points.flatten(0, 1)[chosen], self.there_mm.flatten()[chosen]

    def distances_mm(self, points_cube: Tensor) -> Tensor:
        """Signed distance of points (l * n, d), label after label, to their borders: (l * n,), linear between nodes."""
        points = points_cube.reshape(self.labels, -1, points_cube.shape[-1])
        position = torch.minimum(((points - self._lower) / self._spacing).clamp(min=0), self._last)
        below = torch.minimum(position.detach().floor(), self._last - 1)
        part = (position - below)[:, :, None]  # (l, n, 1, d)
        rows = (below.long() * self._strides).sum(-1, keepdim=True) + self._rows
        weights = torch.where(self._corners, part, 1 - part).prod(-1)
        values = self._table[rows.flatten()].float().reshape(rows.shape)
        return (weights * values).sum(-1).flatten()


def _part(mask: sitk.Image, affine: Affine, pair: ImagePair) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For one label: points near its border with distances, and distances at nodes (z, y, x) with their position."""
    reach_mm, spacing, cube = _REACH_MM * pair.scale, mask.GetSpacing(), pair.cube
    box = _cropped(mask, reach_mm)
    distance = signed_distance_mm(box)
    # distances are from the outermost voxel centres; the border lies half a voxel beyond them
    stretch = abs(float(np.linalg.det(affine.matrix))) ** (1 / cube.dimension)
    values = (sitk.GetArrayFromImage(distance) - float(np.mean(spacing)) / 2) / stretch
    grid, back = Grid.of(distance), affine.inverse()
    near = np.argwhere(np.abs(values) <= max(2.0 * pair.scale, *spacing))
    near = near[np.random.default_rng(0).integers(len(near), size=_POOL)]
    points = cube.to_cube(back(grid.to_lps_mm(near[:, ::-1])))
    corners = cube.to_cube(back(grid.corners_lps_mm()))
    lower, upper = corners.min(0), corners.max(0)
    longest_mm = float((upper - lower).max()) * cube.unit_mm
    nodes = cube.grid(min(max(longest_mm / _NODES, pair.voxel_mm), _COARSEST_MM * pair.scale), lower, upper)
    nodes = replace(nodes, size=tuple(max(2, n) for n in nodes.size))
    seen = sitk.Resample(
        grid.image(values.astype(np.float32)), nodes.size, affine.transform(), sitk.sitkLinear, nodes.origin_lps_mm,
        nodes.spacing_mm, nodes.direction, 0.0, sitk.sitkFloat32, useNearestNeighborExtrapolator=True,
    )  # fmt: skip
    as_tensor = partial(torch.tensor, dtype=torch.float32)
    return (
        as_tensor(points),
        as_tensor(values[tuple(near.T)]),
        torch.from_numpy(sitk.GetArrayFromImage(seen)).clamp(-reach_mm, reach_mm).half(),
        as_tensor(lower),
        as_tensor([nodes.spacing_mm[0] / cube.unit_mm] * cube.dimension),
    )


def _cropped(mask: sitk.Image, reach_mm: float) -> sitk.Image:
    """The part of a mask's image with its nonzero voxels and this margin."""
    low, size = [], []
    for part, many, spacing in zip(reversed(mask_box(mask)), mask.GetSize(), mask.GetSpacing(), strict=True):
        margin = math.ceil(reach_mm / spacing) + 1
        low.append(max(0, part.start - margin))
        size.append(min(many, part.stop + margin) - low[-1])
    return sitk.RegionOfInterest(mask, size, low)
