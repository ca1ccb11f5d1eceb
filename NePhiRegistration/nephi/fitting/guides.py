"""Terms of the objective that guide a registration: landmarks, labels, rigid and volume-preserving regions.

Each measures the distance of the maps from what was given. Within half of its standard deviation there is no penalty;
beyond, the loss is quadratic, and linear at large distances, so that no guide outweighs the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..images.image_pair import ImagePair
from ..images.masks import inside
from ..maps.code import FORWARD, INVERSE
from ..maps.jacobian import finite_jacobian
from ..maps.maps import Map
from ..settings import GuidanceSettings
from ..space.determinant import determinant
from ..space.grid import Grid
from ..space.rigid import lengths, rigidly_moved
from .borders import Borders
from .guidance import Guidance, bodies_lps_mm

_FREE = 0.5  # standard deviations within which there is no penalty
_LANDMARKS, _BORDER, _RIGID, _VOLUME = 1000, 1500, 2000, 200  # points per step, at most
_FEWEST, _MOST = 24, 128  # of them in a rigid body; with more bodies than that makes, some take part in each step
_STIFF, _LEAST_STIFFNESS = 11.0, 0.4  # pull of rigid bodies per part of the compared volume that they fill; the least


class Guide(ABC):
    """A term of the objective. ``draw`` and ``penalty`` work on the device alone, so that steps can be replayed."""

    name: str
    held: Tensor | None = None  # points_cube (n, d) of the fixed image that a refinement must not move any more
    early = False  # whether it counts until the last level only

    def spoilt(self, before: Map, after: Map) -> Tensor | None:
        """points_cube (n, d) of the fixed image that a refinement, which knew nothing of them, moved away from what was
        given, so that it has to hold them, too; None where there are none."""
        return None

    @abstractmethod
    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """points_cube (steps, 2, n, d), those of the inverse map second, and other inputs of a step (steps, ...)."""

    @abstractmethod
    def penalty(self, maps: Callable[[Tensor], Tensor], mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        """A scalar, of points (2, n, d) of a step and where the maps take them; ``further``: as drawn."""


def make_guides(
    guidance: Guidance, pair: ImagePair, maps: Map, settings: GuidanceSettings, step_cube: float, device: torch.device
) -> list[Guide]:
    """The terms for all that is given, of the maps. ``step_cube``: of finite differences, in units of the cube."""
    guides: list[Guide] = []
    if guidance.landmarks_lps_mm is not None:
        guides.append(Landmarks(guidance, pair, settings.landmarks_sd_mm, device))
    if guidance.labels is not None:
        guides.append(Labels(guidance.labels, pair, settings.labels_sd_mm, device))
    if guidance.rigid is not None:
        guides.append(Rigid(guidance.rigid, pair, settings.rigid_mm, device))
    if guidance.volume_kept is not None:
        guides.append(VolumeKept(guidance.volume_kept, pair, maps, settings.volume, step_cube, device))
    return guides


def pull(distances: Tensor, sd: Tensor | float) -> Tensor:
    """The loss of distances (...), not negative: 0 below half of ``sd``, then quadratic, then linear."""
    excess = (distances / sd - _FREE).clamp(min=0)
    return (((1 + excess.square()).sqrt() - 1) * sd).mean()


def to_mm(pair: ImagePair, device: torch.device) -> Tensor:
    """(2, d, d): rows of differences in the cube times these are in mm, on the moving image's side, then the fixed."""
    axes, unit = pair.cube.axes, pair.cube.unit_mm
    both = np.stack([(pair.affine.matrix @ axes).T, axes.T]) * unit
    return torch.tensor(both, dtype=torch.float32, device=device)


class Landmarks(Guide):
    """Points that correspond, in both directions."""

    name = "landmarks"
    most = _LANDMARKS  # a step

    def __init__(self, guidance: Guidance, pair: ImagePair, sd_mm: float, device: torch.device):
        assert guidance.landmarks_lps_mm is not None, "landmarks are given"
        fixed, moving = guidance.landmarks_lps_mm
        points = np.stack([pair.cube.to_cube(fixed), pair.cube.to_cube(pair.affine.inverse()(moving))])
        self.points = torch.tensor(points, dtype=torch.float32, device=device)
        self.held = self.points[FORWARD]
        given = np.full(len(fixed), sd_mm) if guidance.landmarks_sd_mm is None else guidance.landmarks_sd_mm
        self.sd_mm = torch.tensor(given, dtype=torch.float32, device=device)
        self.to_mm = to_mm(pair, device)

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        count = len(self.sd_mm)
        if count <= self.most:
            return self.points.expand(steps, *self.points.shape), self.sd_mm.expand(steps, count)
        which = torch.randint(count, (steps, self.most), generator=generator, device=self.points.device)
        return self.points[:, which].transpose(0, 1), self.sd_mm[which]

    def penalty(self, maps: Callable[[Tensor], Tensor], mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        return pull(lengths((mapped - points.flip(0)) @ self.to_mm), further[0])


class Labels(Guide):
    """The borders of labels: points near a border in one image should have the same distance to it in the other.

    A border that continues beyond the other image is unknown there: points nearer to the side of the image than to the
    visible border may be as near to a border as to that side.
    """

    name = "labels"

    def __init__(self, labels: tuple[sitk.Image, sitk.Image], pair: ImagePair, sd_mm: float, device: torch.device):
        self.borders, self.sd_mm = Borders.of(labels, pair, device), sd_mm
        self.each = max(8, min(200, _BORDER // self.borders[0].labels))
        self.views = [tuple(part.to(device) for part in view) for view in pair.views]
        self.spacing_mm = [torch.tensor(image.GetSpacing(), device=device) for image in pair.images]

    @torch.no_grad()
    def spoilt(self, before: Map, after: Map) -> Tensor | None:
        """The borders of labels that a refinement moved beyond their standard deviation and farther from those of the
        other image, each as a whole: where the images hold enough detail, they say more than borders of that accuracy.
        """
        points, wanted_mm = self.borders[FORWARD].points, self.borders[FORWARD].there_mm.flatten()
        first, second = (
            self._apart_mm(INVERSE, maps.forward(points.flatten(0, 1)), wanted_mm).reshape(len(points), -1).mean(1)
            for maps in (before, after)
        )
        worse = second > first.clamp(min=self.sd_mm)  # within it the images decide
        return points[worse].flatten(0, 1) if worse.any() else None

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        drawn = [borders.draw(steps, self.each, generator) for borders in self.borders]
        points, distances = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
        return points, distances

    def penalty(self, maps: Callable[[Tensor], Tensor], mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        apart_mm = [self._apart_mm(1 - way, mapped[way], further[0][way]) for way in (FORWARD, INVERSE)]
        return pull(torch.stack(apart_mm), self.sd_mm)

    def _apart_mm(self, way: int, points: Tensor, wanted_mm: Tensor) -> Tensor:
        """Least difference of the distances of points (n, d) from the borders of an image to those wanted (n,)."""
        found = self.borders[way].distances_mm(points)
        matrix, offset, size = self.views[way]
        index = points @ matrix.T + offset
        to_side_mm = (torch.minimum(index, size - 1 - index) * self.spacing_mm[way]).amin(-1)
        least = torch.minimum(found.abs(), to_side_mm.clamp(min=0)) * found.sign()
        possible = torch.minimum(torch.maximum(wanted_mm, torch.minimum(found, least)), torch.maximum(found, least))
        return (possible - wanted_mm).abs()


class Rigid(Guide):
    """Bodies that move rigidly, each by its own motion: the best fit to where the map takes its points.

    Small bodies are hardly driven by the images: a larger stiffness than necessary would keep them, and their
    surroundings, in place.
    """

    name = "rigid"

    def __init__(self, labels: sitk.Image, pair: ImagePair, tolerance_mm: float, device: torch.device):
        self.pool = _Pool([body for _, body in bodies_lps_mm(labels)], labels, pair, device)
        self.held, mask = self.pool.points, pair.masks.fixed
        voxels = pair.images.fixed.GetNumberOfPixels() if mask is None else int(inside(mask).sum())
        self.stiffness = min(1.0, max(_LEAST_STIFFNESS, _STIFF * len(self.held) / max(1, voxels)))
        self.each = max(_FEWEST, min(_MOST, _RIGID // self.pool.parts))
        self.bodies = min(self.pool.parts, _RIGID // self.each)  # a step
        self.to_mm, self.tolerance_mm = to_mm(pair, device), tolerance_mm
        self.from_moving_mm = torch.linalg.inv(self.to_mm[FORWARD].cpu().double()).float().to(device)

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        points = self.pool.draw(steps, self.each, generator, self.bodies)
        return (points[:, None].expand(-1, 2, -1, -1),)

    def penalty(self, maps: Callable[[Tensor], Tensor], mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        to_moving_mm, to_fixed_mm = self.to_mm
        bodies = self.bodies, self.each, points.shape[-1]
        start_mm = (points[FORWARD] @ to_fixed_mm).reshape(bodies)
        end_mm = (mapped[FORWARD] @ to_moving_mm).reshape(bodies)
        # with its gradient: otherwise the many points of a body would follow the few that organs drag along
        rigid_mm = rigidly_moved(start_mm, end_mm)
        with torch.no_grad():  # where the rigid motion ends, from where the inverse map leads back
            moved = mapped[FORWARD] + (rigid_mm - end_mm).flatten(0, 1) @ self.from_moving_mm
        returned_mm = (maps(torch.stack([moved, moved]))[INVERSE] - points[FORWARD]) @ to_fixed_mm
        apart_mm = torch.stack([lengths(end_mm - rigid_mm).flatten(), lengths(returned_mm)])
        return self.stiffness * pull(apart_mm, self.tolerance_mm)


class VolumeKept(Guide):
    """Places whose volume does not change: both maps have the determinant 1 there."""

    name = "volume"

    def __init__(
        self,
        labels: sitk.Image,
        pair: ImagePair,
        maps: Map,
        tolerance: float,
        step_cube: float,
        device: torch.device,
    ):
        index_xyz = np.argwhere(inside(labels))[:, ::-1]
        self.pool = _Pool([Grid.of(labels).to_lps_mm(index_xyz)], labels, pair, device)
        self.held, self.maps, d = self.pool.points, maps, pair.cube.dimension
        offsets = torch.cat([torch.zeros(1, d), step_cube * torch.eye(d)])
        self.offsets, self.step, self.tolerance = offsets.to(device), step_cube, tolerance
        of_alignment = float(np.log(abs(np.linalg.det(pair.affine.matrix))))
        self.log_of_alignment = torch.tensor([[of_alignment], [-of_alignment]], device=device)  # and of its inverse

    def draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        points = self.pool.draw(steps, _VOLUME, generator, 1)
        stencils = (points[:, :, None] + self.offsets).flatten(1, 2)
        return (stencils[:, None].expand(-1, 2, -1, -1),)

    def penalty(self, maps: Callable[[Tensor], Tensor], mapped: Tensor, points: Tensor, *further: Tensor) -> Tensor:
        many, d = len(self.offsets), mapped.shape[-1]
        there = mapped[FORWARD].reshape(-1, many, d)
        stencils = there[:, :1].detach() + self.offsets  # around where the centres end
        values = self.maps.on_own_side(torch.stack([points[FORWARD].reshape(there.shape), stencils]))
        if values is None:  # else no volume is what lies between both sides
            back = maps(torch.stack([stencils, stencils]).flatten(1, 2))[INVERSE].reshape(there.shape)
            values = torch.stack([there, back])
        volumes = determinant(finite_jacobian(values, self.step).movedim((-2, -1), (0, 1)))
        change = volumes.clamp(min=0.05).log() + self.log_of_alignment
        return pull(change.abs(), self.tolerance)


class _Pool:
    """Voxels of parts of the fixed image, from which points are drawn, as many of each part."""

    def __init__(self, parts_lps_mm: list[np.ndarray], labels: sitk.Image, pair: ImagePair, device: torch.device):
        counts = [len(part) for part in parts_lps_mm]
        self.parts = len(parts_lps_mm)
        as_tensor = partial(torch.tensor, dtype=torch.float32, device=device)
        self.points = as_tensor(pair.cube.to_cube(np.concatenate(parts_lps_mm)))
        self.first = as_tensor(np.cumsum([0, *counts[:-1]]))[:, None]
        self.counts = as_tensor(counts)[:, None]
        voxel = Grid.of(labels)
        steps_cube = (voxel.axes * np.asarray(voxel.spacing_mm)).T @ pair.cube.axes / pair.cube.unit_mm
        self.voxel = as_tensor(steps_cube)  # rows: along each axis of the image

    def draw(self, steps: int, each: int, generator: torch.Generator, parts: int) -> Tensor:
        """points_cube (steps, parts * each, d), anywhere in the voxels, part after part, of so many parts each step."""
        device, d = self.points.device, self.points.shape[-1]
        first, counts = self.first, self.counts
        if parts < self.parts:
            which = torch.rand((steps, self.parts), generator=generator, device=device).argsort(1)[:, :parts]
            first, counts = first[which], counts[which]
        share = torch.rand((steps, parts, each), generator=generator, device=device)
        chosen = (first + (share * counts).floor().clamp(max=counts - 1)).long().flatten(1)
        within = torch.rand((*chosen.shape, d), generator=generator, device=device) - 0.5
        return self.points[chosen] + within @ self.voxel
