"""What a registration needs where motion may slide: the border, the outer side, and what ties it to the inner one.

The map within is found as if nothing slid; then the one around it, which takes the border where the inner one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..both import Both, complete
from ..images.bones import bones_aligned
from ..images.image_pair import ImagePair
from ..images.masks import inside, signed_distance_mm
from ..maps.border import Border
from ..maps.code import FORWARD, INVERSE, nodes, points_between
from ..maps.consensus import as_optimised
from ..maps.maps import Map
from ..maps.sliding import Sliding
from ..settings import Settings
from ..space.cube import Cube
from ..space.grid import Grid
from .bodies import kept_rigid
from .guidance import Guidance, bodies_lps_mm
from .guides import Guide, Landmarks, pull

if TYPE_CHECKING:
    from .optimise import Optimisation, Start

_NODES_MM = 3.0  # between which the distance from the border is held
_SMOOTH_MM = 2.0  # standard deviation: a border of voxels has steps
_FAR_MM = 20.0  # distances are told as far as that
_TIED = 200  # points of the border a step
_TIED_MM = 0.2  # standard deviation of how far they may be apart: nothing pulls within half of it
_WALL_MM = 4.0  # from where bones are taken to be, at first: nothing pulls within half of that
_FEWEST = 2.0  # times as far apart as at the last level: nodes of any level around, at most
_AROUND_MM = 20.0  # the masks, where walls are compared
_STEPS = 0.7  # of those within: bones and the border that is known take the place of the rest

PointMap = Callable[[Tensor], Tensor]  # points_cube (2, n, d) -> the same


@dataclass(frozen=True, eq=False)
class Side:
    """Of a border, the side whose map is optimised: the inner one, or the outer one beside the map ``within``.

    ``start``: what the map is known to be about, and ``bones``: points of the outer side and where they end about.
    """

    border: Border
    within: Map | None = None
    start: Map | None = None
    bones: Both[np.ndarray] | None = None

    @classmethod
    def around(cls, border: Border, within: Map, pair: ImagePair, settings: Settings) -> Side:
        """The outer side, which starts from the bones where they are seen, and where anything is optimised."""
        masks = complete(*pair.masks)
        assert masks is not None, "motion slides along masks"
        bones = bones_aligned(pair.images, masks, pair.affine, pair.scale) if settings.fit.iterations else None
        return cls(border, within, None if bones is None else _Moved.of(bones, pair, border.half_extents_cube), bones)

    @property
    def _fields_within(self) -> Map | None:
        """The inner map as it was optimised: it is evaluated without looking at the values, which a step needs."""
        return None if self.within is None else as_optimised(self.within)

    def whole(self, maps: Map) -> Map:
        """The map of both sides, as far as it is known."""
        within = self._fields_within
        return maps if within is None else Sliding(within, maps, self.border)

    def guides(self, given: Sequence[Guide], pair: ImagePair, device: torch.device) -> list[Guide]:
        """What guides this side: what was given for both; the outer one, its ties to the inner one and to bones."""
        guides: list[Guide] = [OnItsSide(guide, self.border, self._fields_within) for guide in given]
        if self.within is not None:
            guides.append(Tie(self.border, self.within, pair))
        return guides if self.bones is None else [*guides, Wall(self.bones, pair, device)]


class _Known(Protocol):
    """Where the maps of a registration are known while it is made."""

    maps: Map


def slid(
    known: _Known,
    optimise: Callable[..., Optimisation],
    border: Border,
    pair: ImagePair,
    settings: Settings,
    prediction: Start | None,
    record: Callable[[dict, int], None],
    rigid: sitk.Image | None = None,
) -> list[dict]:
    """Finds the map around a border beside the one within, which is ``known``; there are then the maps of both sides.

    ``optimise`` (pair, settings, prediction, side=side): an optimisation. ``record(entry, before)``: an entry of its
    history, and the steps that came before it. ``rigid``: the label map of bodies that are rigid around the border.
    Returns the history.
    """
    within = known.maps
    side = Side.around(border, within, pair, settings)
    around = optimise(
        pair_around(pair), settings_around(settings), prediction if side.start is None else None, side=side
    )
    known.maps = Sliding(within, around.maps, border)
    history = around.run(lambda entry: record(entry, settings.fit.iterations))
    found = around.consensus() if settings.consensus else around.maps
    bodies = None if rigid is None else kept_rigid(rigid, found, border, around.pair)
    known.maps = Sliding(within, found, border, bodies).meeting()
    return history


def pair_around(pair: ImagePair) -> ImagePair:
    """The pair as it is compared around its masks, farther away than where they show what is compared."""
    far_mm = max(pair.similarity.mask_margin_mm, _AROUND_MM)
    return replace(pair, around=True, similarity=replace(pair.similarity, mask_margin_mm=far_mm))


def steps(settings: Settings) -> int:
    """Of the optimisation, on both sides where motion slides."""
    both = settings.sliding * settings_around(settings).fit.iterations
    return settings.fit.iterations + both


def settings_around(settings: Settings) -> Settings:
    """Those of the outer side: it bends next to a wall that stays, with no fewer nodes than that takes."""
    levels = (replace(each, node_spacing_factor=min(each.node_spacing_factor, _FEWEST)) for each in settings.levels)
    return replace(
        settings,
        levels=tuple(levels),
        regularity=replace(settings.regularity, bending_mm=0.0),
        fit=replace(settings.fit, iterations=round(_STEPS * settings.fit.iterations)),
        smooth=0.0,
    )


class _Moved(Map):
    """Every point moves as some that correspond do, by the affine maps that fit these best both ways."""

    def __init__(self, matrices: tuple[Tensor, Tensor], half_extents_cube: Tensor):
        self.matrices, self._half_extents_cube = matrices, half_extents_cube

    @classmethod
    def of(cls, points_lps_mm: Both[np.ndarray], pair: ImagePair, half_extents_cube: Tensor) -> _Moved:
        fixed = pair.cube.to_cube(points_lps_mm.fixed)
        moving = pair.cube.to_cube(pair.affine.inverse()(points_lps_mm.moving))
        ways = ((fixed, moving), (moving, fixed))
        found = (np.linalg.lstsq(np.c_[a, np.ones(len(a))], b, rcond=None)[0] for a, b in ways)
        there, back = (torch.tensor(matrix).to(half_extents_cube) for matrix in found)
        return cls((there, back), half_extents_cube)

    @property
    def half_extents_cube(self) -> Tensor:
        return self._half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        *linear, shift = self.matrices[FORWARD]
        return points_cube @ torch.stack(linear) + shift

    def inverse(self, points_cube: Tensor) -> Tensor:
        *linear, shift = self.matrices[INVERSE]
        return points_cube @ torch.stack(linear) + shift

    def to(self, device: torch.device | str) -> _Moved:
        there, back = (matrix.to(device) for matrix in self.matrices)
        return _Moved((there, back), self._half_extents_cube.to(device))


class Wall(Landmarks):
    """What lies around moves about as the bones do: ribs are alike, and organs pull them onto the next ones.

    In the end the images know better.
    """

    name = "wall"
    early = True
    most = 200

    def __init__(self, bones: Both[np.ndarray], pair: ImagePair, device: torch.device):
        super().__init__(Guidance(landmarks_lps_mm=(bones.fixed, bones.moving)), pair, _WALL_MM * pair.scale, device)
        self.held = None


class Tie(Guide):
    """Both sides take the border to one place: what one map does to it, the other undoes up to a shift."""

    name = "sliding"

    def __init__(self, border: Border, within: Map, pair: ImagePair):
        points = points_between(border.half_extents_cube, border.size)
        distance, _ = border.at(points)
        near = points[(distance[:, 0].abs() < _NODES_MM * pair.scale / pair.cube.unit_mm)]
        points, self.border = border.brought(near), border
        self.within, self.fields = within, as_optimised(within)
        with torch.no_grad():
            self.points = torch.stack([points, within.forward(points)])
        self.unit_mm, self.sd_mm = pair.cube.unit_mm, _TIED_MM * pair.scale

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        which = torch.randint(self.points.shape[1], (steps, _TIED), generator=generator, device=self.points.device)
        return (self.points[:, which].transpose(0, 1),)

    def penalty(self, maps: PointMap, mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        back = self.fields.inverse(mapped[FORWARD])
        with torch.no_grad():  # a step of Newton's method more, as the field only nearly is the inner map's inverse
            missed = back - self.fields.inverse(self.within.forward(back))
        distance, _ = self.border.at(torch.cat([back + missed, mapped[INVERSE]]))
        return pull(distance.abs() * self.unit_mm, self.sd_mm)


class OnItsSide(Guide):
    """Guidance of the map of one side, which its points on the other side do not move.

    ``within``: the inner map where it is known, and the outer one is guided.
    """

    def __init__(self, of: Guide, border: Border, within: Map | None):
        self.of, self.border, self.name, self.held = of, border, of.name, of.held
        self.within = within

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.of.draw(steps, generator)

    def penalty(self, maps: PointMap, mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        def chosen(points: Tensor) -> Tensor:
            return self._chosen(points, maps(points))

        return self.of.penalty(chosen, self._chosen(points, mapped), points, *further)

    def _chosen(self, points: Tensor, mapped: Tensor) -> Tensor:
        """Where both maps take points (2, n, d), given where the one that is guided takes all of them."""
        inner, outer = mapped, mapped.detach()
        if self.within is not None:
            with torch.no_grad():
                inner, outer = self.within(points), mapped
        within = torch.stack([self.border.within(points[FORWARD]), self.border.within(inner[INVERSE])])
        return torch.where(within, inner, outer)


def guidance_within(guidance: Guidance, pair: ImagePair) -> Guidance:
    """The guidance of the map within: without rigid bodies of which most lies outside the fixed mask.

    Those outside altogether would not move it, but it is smoothed less beside guides; ribs, of which masks of lungs
    cover some voxels, would hold it to their own motion.
    """
    if guidance.rigid is None or pair.masks.fixed is None:
        return guidance
    mask, grid = inside(pair.masks.fixed), Grid.of(guidance.rigid)
    within = np.zeros_like(sitk.GetArrayViewFromImage(guidance.rigid))
    for label, voxels_lps_mm in bodies_lps_mm(guidance.rigid):
        index_zyx = tuple(np.rint(grid.to_index(voxels_lps_mm)).astype(int).T[::-1])
        if mask[index_zyx].mean() > 0.5:
            within[index_zyx] = label
    return replace(guidance, rigid=grid.image(within) if within.any() else None)


def border_of(pair: ImagePair, cube: Cube, device: torch.device) -> Border:
    """The border of the fixed mask, in a cube."""
    mask = pair.masks.fixed
    assert mask is not None, "sliding goes along a mask's border"
    distance = sitk.Clamp(signed_distance_mm(mask), sitk.sitkFloat32, -_FAR_MM * pair.scale, _FAR_MM * pair.scale)
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
