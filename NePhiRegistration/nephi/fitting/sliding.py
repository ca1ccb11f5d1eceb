"""What a registration needs where motion may slide: the border, the two sides, and what ties them to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..both import Both
from ..images.image_pair import ImagePair
from ..maps.code import FORWARD, INVERSE, LINEAR_CUBE, Code, nodes, points_between
from ..maps.sliding import Border
from ..settings import FieldSettings, Level
from ..space.grid import Grid
from .guidance import Guidance
from .guides import Guide, Landmarks, pull

_NODES_MM = 3.0  # between which the distance from the border is held
_SMOOTH_MM = 2.0  # standard deviation: a border of voxels has steps
_FAR_MM = 20.0  # distances are told as far as that
_TIED = 200  # points of the border a step
_TIED_MM = 0.2  # standard deviation of how far they may be apart: nothing pulls within half of it
_WALL_MM = 4.0  # from where bones are taken to be, at first: nothing pulls within half of that
_FEWEST = 2.0  # times as far apart as at the last level: nodes of any level, at most
_AROUND_MM = 20.0  # the masks, where walls are compared

PointMap = Callable[[Tensor], Tensor]  # points_cube (2, n, d) -> the same


def with_near_nodes(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels with no fewer nodes than it takes to bend next to a wall that stays."""
    return tuple(replace(level, node_spacing_factor=min(level.node_spacing_factor, _FEWEST)) for level in levels)


def sides(pair: ImagePair) -> tuple[ImagePair, ImagePair]:
    """The pair as it is compared within its masks' border, and around it, where it is compared farther away."""
    far_mm = max(pair.similarity.mask_margin_mm, _AROUND_MM)
    similarity = replace(pair.similarity, mask_margin_mm=far_mm)
    return replace(pair, side="within"), replace(pair, side="around", similarity=similarity)


def of_both_sides(code: Code, pair: ImagePair, field: FieldSettings, bones: Both[np.ndarray] | None) -> Code:
    """The code that both sides start from: within as given, around as the bones moved, where they are seen."""
    within, around = code.local_code, code.local_code
    if bones is not None and field.moves_points:
        around, d = code.local_code.detach().clone(), pair.cube.dimension
        at = points_between(code.half_extents_cube, code.size)
        fixed, moving = pair.cube.to_cube(bones.fixed), pair.cube.to_cube(pair.affine.inverse()(bones.moving))
        for way, (start, end) in enumerate(((fixed, moving), (moving, fixed))):
            matrix, *_ = np.linalg.lstsq(np.c_[start, np.ones(len(start))], end, rcond=None)
            shift = torch.from_numpy(np.c_[at.numpy(), np.ones(len(at))] @ matrix).to(at) - at
            around[0, way * d : (way + 1) * d] = shift.T.reshape(-1, *reversed(code.size)) / LINEAR_CUBE
    return Code(code.global_code.repeat(2, 1), torch.cat([within, around]), code.half_extents_cube)


class Wall(Landmarks):
    """What lies around moves about as the bones do: ribs are alike, and organs pull them onto the next ones."""

    name = "wall"

    def __init__(self, bones: Both[np.ndarray], pair: ImagePair, device: torch.device):
        super().__init__(Guidance(landmarks_lps_mm=(bones.fixed, bones.moving)), pair, _WALL_MM * pair.scale, device)
        self.held = None

    def penalty(self, maps: PointMap, mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        return super().penalty(maps, mapped[:, 1], points[:, 1], *further)


class OneSide(Code):
    """The code of one side, of a code that is being optimised."""

    def __init__(self, of: Code, number: int):
        self.of, self.number = of, number

    @property
    def half_extents_cube(self) -> Tensor:  # type: ignore[override]
        return self.of.half_extents_cube

    @property
    def global_code(self) -> Tensor:  # type: ignore[override]
        return self.of.global_code[self.number : self.number + 1]

    @property
    def local_code(self) -> Tensor:  # type: ignore[override]
        return self.of.local_code[self.number : self.number + 1]


class Tie(Guide):
    """Both sides take the border to the same place: what the inner map does to it, the outer one undoes up to a shift.

    The outer map gives way, and in the last level alone: held by what it slides along, a lung that moves far was lost.
    Where the maps are guided, both give way: what closes the gap that is left would move the inner one afterwards.
    """

    name = "sliding"

    def __init__(self, border: Border, pair: ImagePair, guided: bool):
        self.guided = guided
        points = points_between(border.half_extents_cube, border.size)
        distance, _ = border.at(points)
        near = points[(distance[:, 0].abs() < _NODES_MM * pair.scale / pair.cube.unit_mm)]
        self.points, self.border = border.brought(near), border
        self.unit_mm, self.sd_mm = pair.cube.unit_mm, _TIED_MM * pair.scale

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        which = torch.randint(len(self.points), (steps, _TIED), generator=generator, device=self.points.device)
        return (self.points[which][:, None].expand(-1, 2, -1, -1),)

    def penalty(self, maps: PointMap, mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        if self.guided:
            there = mapped[FORWARD].flip(0).flatten(0, 1)  # where the other side's map takes them
            back = maps(torch.stack([there, there]))[INVERSE]
        else:
            there = mapped[FORWARD, 0].detach().repeat(2, 1)  # as many points for either side
            _, back = maps(torch.stack([there, there]))[INVERSE].chunk(2)
        distance, _ = self.border.at(back)
        return pull(distance.abs() * self.unit_mm, self.sd_mm)


class OnItsSide(Guide):
    """Guidance of maps with two sides, each point by that of its own side."""

    def __init__(self, of: Guide, border: Border):
        self.of, self.border, self.name, self.held = of, border, of.name, of.held

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.of.draw(steps, generator)

    def penalty(self, maps: PointMap, mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        def chosen(points: Tensor) -> Tensor:
            both = maps(points[:, None].expand(-1, 2, -1, -1).flatten(1, 2))
            return self._chosen(points, both.unflatten(1, (2, -1)))

        own = points[:, 0]
        return self.of.penalty(chosen, self._chosen(own, mapped), own, *further)

    def _chosen(self, points: Tensor, both: Tensor) -> Tensor:
        """Of values (2, sides, n, d) at points (2, n, d), those of each point's side."""
        inside, outside = both.unbind(1)
        sides = torch.stack([self.border.within(points[FORWARD]), self.border.within(outside[INVERSE])])
        return torch.where(sides, inside, outside)


def border_of(pair: ImagePair, device: torch.device) -> Border:
    """The border of the fixed mask, in the pair's cube."""
    mask, cube = pair.masks.fixed, pair.cube
    assert mask is not None, "sliding goes along a mask's border"
    distance = sitk.SignedMaurerDistanceMap(mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    distance = sitk.Clamp(distance, sitk.sitkFloat32, -_FAR_MM * pair.scale, _FAR_MM * pair.scale)
    # it counts from the centres of the outermost voxels inside; the border lies half a voxel beyond them
    half_voxel_mm = float(np.mean(mask.GetSpacing())) / 2
    distance = sitk.SmoothingRecursiveGaussian(distance - half_voxel_mm, _SMOOTH_MM * pair.scale)
    size = nodes(cube.half_sides_mm, _NODES_MM * pair.scale)
    spacing_mm = 2 * np.asarray(cube.half_sides_mm) / (np.array(size) - 1)
    grid = Grid(size, tuple(spacing_mm), tuple(cube.to_lps_mm(-cube.half_extents_cube)), cube.direction)
    seen = sitk.Resample(
        distance, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin_lps_mm, grid.spacing_mm, grid.direction,
        _FAR_MM * pair.scale, sitk.sitkFloat32, useNearestNeighborExtrapolator=True,
    )  # fmt: skip
    values = torch.from_numpy(sitk.GetArrayFromImage(seen)) / cube.unit_mm
    return Border(values.half(), torch.tensor(cube.half_extents_cube, dtype=torch.float32)).to(device)
