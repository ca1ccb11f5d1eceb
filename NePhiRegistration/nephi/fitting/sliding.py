"""What a registration needs where motion may slide: the border, the slip at its start, and settings that see walls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..images.image_pair import ImagePair
from ..maps.code import FORWARD, Code, HybridCode, nodes, points_between, zero_code
from ..maps.maps import FieldMap, Map
from ..maps.sliding import Border, Sliding
from ..maps.voxel import VoxelFields
from ..settings import FieldSettings, Settings, VoxelSettings
from ..space.grid import Grid
from .guides import Guide, lengths, pull, to_mm

_NODES_MM = 3.0  # between which the distance from the border is held
_SMOOTH_MM = 2.0  # standard deviation: a border of voxels has steps
_FAR_MM = 20.0  # distances are told as far as that
_STEP_MM = 6.0  # between the three points of a line that leads inwards from the border
_ALIKE_MM = 1.0  # how much two of them may move apart: nothing pulls within half of that
_LINES = 150  # a step
_AROUND_MM = 20.0  # the masks, where walls are compared


def with_walls(settings: Settings) -> Settings:
    """The settings, with what lies around the masks compared, too, at twice as many points."""
    similarity, points = settings.similarity, settings.similarity.points
    twice = replace(points, fraction=2 * points.fraction, least=2 * points.least, most=2 * points.most)
    around_mm = max(similarity.mask_margin_mm, _AROUND_MM)
    return replace(settings, similarity=replace(similarity, mask_margin_mm=around_mm, points=twice))


def made_to_slide(smooth: Map, like: Code, field: FieldSettings, pair: ImagePair) -> tuple[Sliding, HybridCode]:
    """Maps of the pair that slide, and the code of their slip: it moves nothing yet, on the nodes of another code."""
    d = len(like.half_extents_cube)
    settings = VoxelSettings(local_code=2 * d, code_spacing_mm=field.code_spacing_mm, code_degree=2)
    code = HybridCode(zero_code(settings, like.half_extents_cube, like.size))
    return Sliding(smooth, FieldMap(VoxelFields(settings, d), code), border_of(pair, smooth.device)), code


class Continued(Guide):
    """Within the border, motion goes on towards it as it is farther from it: next to it there is little to compare.

    The slip alone yields: where the smooth map falls off towards a wall that stays, it must not drag the wall along.
    """

    name = "sliding"

    def __init__(self, sliding: Sliding, pair: ImagePair, device: torch.device):
        border = sliding.border
        step = _STEP_MM * pair.scale / pair.cube.unit_mm
        points = points_between(border.half_extents_cube, border.size)
        distance, slope = border.at(points)
        chosen = ((distance < 0) & (distance > -step))[:, 0]
        inwards = -step * slope[chosen] / lengths(slope[chosen])[:, None]
        lines = torch.stack([points[chosen] + number * inwards for number in range(3)], 1)
        farthest, _ = border.at(lines[:, 2])
        lower, upper = (torch.tensor(edge, dtype=torch.float32, device=device) for edge in pair.compared_cube)
        seen = ((lines[:, 2] >= lower) & (lines[:, 2] <= upper)).all(1)
        # where the border bends much, the line soon comes near another part of it
        kept = seen & (farthest < -1.5 * step)[:, 0]
        self.lines = lines[kept] if kept.any() else lines[:1, :1].expand(1, 3, -1)
        self.sliding, self.to_mm, self.sd_mm = sliding, to_mm(pair, device)[0], _ALIKE_MM * pair.scale

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        which = torch.randint(len(self.lines), (steps, _LINES), generator=generator, device=self.lines.device)
        points = self.lines[which].flatten(1, 2)
        return (points[:, None].expand(-1, 2, -1, -1),)

    def penalty(self, maps: Callable[[Tensor], Tensor], mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        slipped = self.sliding.slip(points[FORWARD])
        moved = slipped + (mapped[FORWARD] - slipped).detach()
        near, middle, far = ((moved - points[FORWARD]) @ self.to_mm).unflatten(0, (-1, 3)).unbind(1)
        return pull(lengths(torch.stack([near - middle, middle - far])), self.sd_mm)


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
