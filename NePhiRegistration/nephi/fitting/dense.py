"""Refinement of both maps of a pair voxel by voxel, for images that are full of detail, as brains are.

In each round every voxel asks for a small step (Lucas and Kanade 1981, the slopes of both images as in Vercauteren et
al. 2009), the steps are smoothed and composed with the map, and places that come near to folding are smoothed until
they no longer do. So neither weights nor a penalty have to keep the map from folding, and it may follow fine detail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.coarse import grown
from ..images.image_pair import ImagePair
from ..images.masks import signed_distance_mm
from ..images.volume import smoothed
from ..maps.code import LINEAR_CUBE, Code, nodes, points_between, steps_between
from ..maps.maps import FieldMap, Map
from ..maps.voxel import VoxelFields
from ..settings import DenseSettings, VoxelSettings
from ..space.determinant import determinant
from .brightness import Curve, Windows, as_bright, correlated, halved, slopes

_VOXELS_PER_NODE = 2  # of the finer of both scales; of the coarser one each is a node
_AROUND, _AROUND_CURVES = 1.0, 1.5  # nodes: deviation of the Gaussian over which steps are found
_STEP_SMOOTH = 1.0  # nodes: deviation under which each step is smoothed
# the same of the map after it: the most that leaves small windows lacking at most so much more of being correlated than
# the least does, as motion within a person is smoother than the differences between two
_MAP_SMOOTH, _LACKING = (0.35, 0.5, 0.7, 1.0), 1.045
_WORTH_OVER = 6.0  # nodes: deviation of the Gaussian over which it is asked what steps are worth
_BY_CHANCE = 0.2  # part of a step that may seem to be worth it where there is noise alone
_LONGER = 2.0  # by small windows, times as long as found: smoothing shortens steps
_STIFFER, _DOUBTED = 10.0, 0.25  # by wide ones: times as stiff; difference from which a voxel counts half
# where each voxel is a node steps are stiffer, or they follow noise; distances of those at every second one
_STIFFER_VOXELS, _AROUND_VOXELS, _STEP_SMOOTH_VOXELS = 50.0, 0.5, 0.5
_MOMENTUM = 0.5  # part of the step before that a round makes again: fewer rounds find as much (Polyak 1964)
_LONGEST = 1.0  # nodes that a round asks for at most
_SEEN = 2 * _VOXELS_PER_NODE  # voxels as far as steps see: what is excluded must not be nearer
_ENDS = 1  # the same of what lies beyond an image, which counts for nothing where steps are found: slopes and halves
_RELEASED = 4  # nodes from what is held, from which on steps are whole
_MARGIN = 6  # nodes around what is shown, where steps fade out if there are more
_EASED, _EASED_LAST = 2, 80  # times that places are smoothed after a round, and at the end, at most
_INVERSIONS, _LEAST_SLOPE = 6, 0.05
_REACHED = 0.02  # nodes: Newton's method squares what is left after a shorter step
_SLAB = 2**16  # places
_ROWS = 200_000


@torch.no_grad()
def refined_densely(
    pair: ImagePair,
    maps: Map,
    settings: DenseSettings,
    held: Sequence[Tensor] = (),
    tell: Callable[[float], None] = lambda part: None,
    guided: bool = False,
) -> FieldMap:
    """The maps of a pair, in its cube, as voxel fields; no corner of a cell below ``least_determinant``.

    ``held``: fixed points_cube (n, d) that stay where the maps take them, as what guided the maps does. ``tell`` hears
    which part of the rounds is done; an exception raised in it ends them. ``guided``: whether the maps hold motion that
    the images do not ask for, which much smoothing would undo.
    """
    device, cube = maps.device, pair.cube
    half = [float(side) for side in cube.half_sides_mm]
    size = first = nodes(half, _VOXELS_PER_NODE * max(settings.spacing_mm * pair.scale, pair.voxel_mm))
    fine = pair.cube_grid(_finer(size))
    seen = [torch.as_tensor(np.asarray(pair.seen_on(fine, way, 0.0)[0][:])).to(device, torch.float32) for way in (0, 1)]
    counts = [_within(torch.as_tensor(part)).to(device, torch.float32) for part in pair.counted_on(fine, _SEEN, _ENDS)]
    u = _displacements(maps.forward, maps.half_extents_cube, size)
    box = _box((seen[0] > seen[0].min()) | (seen[1] > seen[1].min()), _VOXELS_PER_NODE, _MARGIN)
    at_nodes = [slice(a, b) for a, b in box]
    at_voxels = [slice(_VOXELS_PER_NODE * a, _VOXELS_PER_NODE * (b - 1) + 1) for a, b in box]
    images, weights = ([one[tuple(at_voxels)].contiguous() for one in both] for both in (seen, counts))
    del seen, counts
    part, done, rounds = u[(slice(None), *at_nodes)].contiguous(), 0, settings.all_rounds
    for kind, many in zip(_KINDS, rounds, strict=True):
        if not many:
            continue
        if kind.each_voxel:
            u[(slice(None), *at_nodes)] = part
            size, at_nodes = _finer(size), at_voxels
            u = _enlarged(u * _VOXELS_PER_NODE, size[::-1])
            part = u[(slice(None), *at_nodes)].contiguous()
        free = _free(held, maps.half_extents_cube, size)
        free = None if free is None else free[tuple(at_nodes)].contiguous()
        shown = ([*map(halved, images)], [*map(halved, weights)]) if kind.halved else (images, weights)
        step = _Step(*shown, kind, settings, _fading(at_nodes, size[::-1], part), guided)
        for _ in range(many):
            tell(done / sum(rounds))
            moved = step(part)
            part = eased(moved if free is None else part + free * (moved - part), settings.least_determinant, _EASED)
            done += 1
    u[(slice(None), *at_nodes)] = part
    u = eased(u, settings.least_determinant, _EASED_LAST)
    # Newton's method starts from the maps' own inverse between the first nodes, which is near enough
    start = _displacements(maps.inverse, maps.half_extents_cube, first)
    if size != first:
        start = _enlarged(start * _VOXELS_PER_NODE, size[::-1])
    back = eased(_inverted(u, start), _LEAST_SLOPE, _EASED_LAST)
    d, per_node = len(size), steps_between(maps.half_extents_cube, size)
    own = VoxelSettings(local_code=2 * d, code_degree=1)
    local = torch.cat([u, back]) * per_node.repeat(2).reshape(-1, *[1] * d) / LINEAR_CUBE
    code = Code(torch.zeros(1, own.global_code, device=device), local[None], maps.half_extents_cube)
    return FieldMap(VoxelFields(own, d), code)


@dataclass(frozen=True)
class _Kind:
    """A kind of rounds: ``halved``: on images of half the voxels; ``each_voxel``: whose every voxel is a node."""

    halved: bool = False
    each_voxel: bool = False


_KINDS = (_Kind(halved=True), _Kind(), _Kind(each_voxel=True))  # in the order of ``DenseSettings.all_rounds``


class _Step:
    """What the images ask of a map: displacements (d, (z,) y, x) in nodes become those a round later.

    ``images``, ``weights``: of both, on a grid as the kind of rounds has it; ``fading`` ((z,) y, x): how much of a step
    each node makes. On images of half the voxels lines in wide windows make them comparable, which sees farther; on
    finer ones, and where the contrasts differ, those in small ones.
    """

    def __init__(
        self,
        images: list[Tensor],
        weights: list[Tensor],
        kind: _Kind,
        settings: DenseSettings,
        fading: Tensor,
        guided: bool,
    ):
        self.fixed, self.moving = images
        self.weight, self.beside = weights[0], weights[1] if float(weights[1].min()) < 1 else None
        self.factor = 1 if kind.halved or kind.each_voxel else _VOXELS_PER_NODE
        self.curve = Curve(self.fixed, self.moving, self.factor) if settings.curve else None
        self.wide = kind.halved and self.curve is None
        self.around = _AROUND_CURVES if settings.curve else _AROUND
        self.step_smooth, self.over = _STEP_SMOOTH, _WORTH_OVER
        self.stiffness, self.longer = settings.stiffness, 1.0 if self.wide else _LONGER
        if self.wide:
            self.stiffness *= _STIFFER
        elif kind.each_voxel:
            self.stiffness, self.around = _STIFFER_VOXELS * settings.stiffness, _AROUND_VOXELS
            self.step_smooth, self.over = _STEP_SMOOTH_VOXELS, _WORTH_OVER / 2
        self.places, self.at_nodes = _places(self.fixed.shape, self.fixed), _places(fading.shape, self.fixed)
        self.fading = fading
        # of finer images steps are found at every second voxel, which tells as much and takes an eighth of the time
        self.between = not kind.halved
        odd = _places(halved(self.fixed).shape if self.between else fading.shape, self.fixed).sum(0) % 2
        self.halves = [2 * odd, 2 * (1 - odd)]
        self.last: Tensor | None = None
        # between two contrasts it was not measured
        self.windows = None if guided or self.curve is not None else Windows(self.fixed, self.weight)

    def __call__(self, u: Tensor) -> Tensor:
        d, at = len(u), (self.factor * u if self.factor > 1 else u)
        if self.factor > 1:
            at = _enlarged(at, self.fixed.shape)
        at = at + self.places
        seen, wanted, weight = self._compared(at)
        difference = wanted - seen
        both = (slopes(wanted) + slopes(seen)) / 2
        equations = [weight * both[i] * both[j] for i in range(d) for j in range(i, d)]
        equations += [weight * both[i] * difference for i in range(d)]
        if self.between:
            equations = [halved(one) for one in equations]
        # two halves of the nodes, each of which says what the other one's steps are worth
        halves = [torch.stack([smoothed(half * one, self.around) for one in equations]) for half in self.halves]
        moves = [_in_slabs(lambda part: _solved(_rows(part[:-d], self.stiffness), part[-d:]), half) for half in halves]
        worth = sum(_worth(move, half, self.over) for move, half in zip(moves, reversed(halves), strict=True)) / 2
        move = self.longer * worth * (moves[0] + moves[1]) / (2 * self.factor)
        length = move.square().sum(0).sqrt()
        move = move * (_LONGEST / length.clamp(min=_LONGEST))
        move = torch.stack([smoothed(one, self.step_smooth) for one in move])
        if self.curve is None:  # between two contrasts it was not measured
            self.last = move = move if self.last is None else _going_on(move, self.last)
        move = self.fading * (_enlarged(move, u.shape[1:]) if move.shape != u.shape else move)
        u = move + _sampled(u, self.at_nodes + move)
        return self._smoothed(u)

    def _smoothed(self, u: Tensor) -> Tensor:
        """The map smoothed as far as small windows stay as correlated; as little as can be without windows."""
        maps = (torch.stack([smoothed(one, over) for one in u]) for over in _MAP_SMOOTH)
        best = next(maps)
        if self.windows is None or not len(self.windows.fixed):
            return best
        limit = _LACKING * self._lack(best, self.windows)
        for smoother in maps:
            if self._lack(smoother, self.windows) > limit:
                break
            best = smoother
        return best

    def _lack(self, u: Tensor, windows: Windows) -> float:
        at = windows.at.reshape(*windows.at.shape, *[1] * (len(u) - 2))  # as many axes as an image has
        seen = _sampled(self.moving[None], at + self.factor * _sampled(u, at / self.factor))
        return windows.lack(seen.reshape(windows.at.shape[1:]))

    def _compared(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The moving image as the map has it, what it should show there, and weights."""
        counts = self.weight if self.beside is None else self.weight * _sampled(self.beside[None], at)[0]
        if self.curve is not None:
            raw, shown = _sampled(torch.stack([self.moving, self.curve.shown[1]]), at)
            fixed, seen, weight = self.curve(raw, shown, counts)
            return seen, *correlated(fixed, seen, weight)
        seen = _sampled(self.moving[None], at)[0]
        if not self.wide:
            return seen, *correlated(self.fixed, seen, counts)
        seen = as_bright(seen, self.fixed, counts, self.factor)
        return seen, self.fixed, counts / (1 + ((self.fixed - seen) / _DOUBTED).square())


def _going_on(move: Tensor, last: Tensor) -> Tensor:
    """A move (d, ...) and a part of the one before it, at each place as far as it asks for the same way."""
    same = (move * last).sum(0) / last.square().sum(0).clamp(min=1e-12)
    return move + _MOMENTUM * same.clamp(0, 1) * last


def _rows(entries: Tensor, more: float = 0.0) -> list[list[Tensor]]:
    """Symmetric matrices at each place from their upper halves (k, ...), row by row, ``more`` on the diagonal."""
    d = 2 if len(entries) == 3 else 3
    number = {(i, j): k for k, (i, j) in enumerate((i, j) for i in range(d) for j in range(i, d))}
    rows = [[entries[number[min(i, j), max(i, j)]] for j in range(d)] for i in range(d)]
    for i in range(d if more else 0):
        rows[i][i] = rows[i][i] + more
    return rows


def _worth(move: Tensor, equations: Tensor, over: float) -> Tensor:
    """Part of a move (d, ...), 0 to 1, that equations ask for that it was not found from; regionally."""
    d = len(move)

    def agreed(move: Tensor, equations: Tensor) -> Tensor:
        """(2, ...): what is asked of a move along it, and what it makes of the equations."""
        rows, right = _rows(equations[:-d]), equations[-d:]
        asked = [move[i] * right[i] for i in range(d)]
        made = [move[i] * rows[i][j] * move[j] for i in range(d) for j in range(d)]
        return torch.stack([sum(asked[1:], asked[0]), sum(made[1:], made[0])])

    asked, made = _in_slabs(agreed, move, equations)
    part = smoothed(asked, over) / (smoothed(made, over) + 1e-12)
    return ((part - _BY_CHANCE) / (1 - _BY_CHANCE)).clamp(0, 1)


def eased(u: Tensor, least: float, rounds: int) -> Tensor:
    """Displacements (d, (z,) y, x) in nodes, smoothed where a determinant is below ``least``, until none is.

    After ``rounds`` it is left as it is.
    """
    for _ in range(rounds):
        low = least_determinants(u) < least
        if not low.any():
            break
        share = smoothed(_nodes_near(low).to(u), 1.0).clamp(max=1)
        u = torch.stack([one + share * (smoothed(one, 1.0) - one) for one in u])
    return u


def _nodes_near(cells: Tensor) -> Tensor:
    """Which nodes are corners of these cells (bool), or next to one."""
    corners = F.pad(cells, [1, 1] * cells.ndim)
    for axis, n in enumerate(cells.shape):
        corners = corners.narrow(axis, 0, n + 1) | corners.narrow(axis, 1, n + 1)
    return grown(corners, 1)


def least_determinants(u: Tensor) -> Tensor:
    """The least of the determinants at a cell's corners, of a map with displacements (d, (z,) y, x) in nodes.

    Returns a value for each cell between the nodes, one fewer along each axis.
    """
    d, cells = len(u), [n - 1 for n in u.shape[1:]]
    if (slab := _planes(u)) < cells[0]:
        parts = range(0, cells[0], slab)
        return torch.cat([least_determinants(u[:, first : first + slab + 1]) for first in parts])
    along = [u.diff(dim=d - j) for j in range(d)]  # along x first
    for j, slope in enumerate(along):
        slope[j] += 1.0  # of the map, no longer of its displacements
    least: Tensor | None = None
    for corner in product((0, 1), repeat=d):  # of axes z, y, x
        columns = []
        for j, slope in enumerate(along):
            for axis in range(d):
                if axis != d - 1 - j:
                    slope = slope.narrow(axis + 1, corner[axis], cells[axis])
            columns.append(slope)
        rows = [[columns[j][i] for j in range(d)] for i in range(d)]
        found = determinant(rows)
        least = found if least is None else torch.minimum(least, found)
    assert least is not None
    return least


def _inverted(u: Tensor, start: Tensor) -> Tensor:
    """The displacements of the inverse, by Newton's method from ``start``; places that are reached are left alone."""
    d, places = len(u), _places(u.shape[1:], u).flatten(1)
    both = torch.cat([u, *(slopes(one) for one in u)])  # the slopes (d * d, ...), row after row
    back = start.flatten(1).clone()
    left = torch.arange(back.shape[1], device=u.device)
    for _ in range(_INVERSIONS):
        now = back[:, left]
        at = (places[:, left] + now).reshape(d, *[1] * (d - 1), -1)
        moved = _sampled(both, at).flatten(1)
        gap = -(now + moved[:d])
        rows = [[moved[d + i * d + j] + 1.0 if i == j else moved[d + i * d + j] for j in range(d)] for i in range(d)]
        move = _solved(rows, gap, _LEAST_SLOPE)
        length = move.square().sum(0).sqrt()
        back[:, left] = now + move / length.clamp(min=1)
        left = left[length > _REACHED]
        if not len(left):
            break
    return back.reshape(u.shape)


def _planes(values: Tensor) -> int:
    """How many planes of values (c, (z,) y, x) are worked on at a time: on a CPU what is made of them stays in its
    cache, which is several times as fast."""
    return max(1, _SLAB // values[0, 0].numel()) if values.device.type == "cpu" else values.shape[1]


def _in_slabs(work: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """What ``work`` makes (k, (z,) y, x), place by place, of values (c, (z,) y, x), some planes at a time."""
    parts = zip(*(one.split(_planes(one), 1) for one in values), strict=True)
    return torch.cat([work(*part) for part in parts], 1)


def _solved(rows: list[list[Tensor]], right: Tensor, least: float = 0.0) -> Tensor:
    """Solutions (d, ...) of d equations at each place, by Cramer's rule with determinants of at least ``least``."""
    d, whole = len(rows), determinant(rows)
    if least:
        whole = whole.clamp(min=least)
    found = [determinant([[right[i] if j == k else rows[i][j] for j in range(d)] for i in range(d)]) for k in range(d)]
    return torch.stack(found) / whole


def _enlarged(u: Tensor, shape) -> Tensor:
    """Values (c, (z,) y, x) at nodes, linearly between them: on a grid of that shape with the same corners."""
    return F.interpolate(u[None], tuple(shape), mode="trilinear" if u.ndim == 4 else "bilinear", align_corners=True)[0]


def _finer(size: Sequence[int]) -> tuple[int, ...]:
    """Voxels along each axis of a grid of nodes."""
    return tuple(_VOXELS_PER_NODE * (n - 1) + 1 for n in size)


def _places(shape, like: Tensor) -> Tensor:
    """Indices (d, (z,) y, x), x first, of a grid's places."""
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) for n in shape]
    return torch.stack(list(reversed(torch.meshgrid(*axes, indexing="ij"))))


def _sampled(volume: Tensor, at: Tensor) -> Tensor:
    """Values (c, ...) of a volume (c, (z,) y, x) at indices (d, ...), linearly; the border's beyond it."""
    last = torch.tensor([n - 1 for n in reversed(volume.shape[1:])], device=at.device)
    unit = (at * (2 / last).reshape(-1, *[1] * len(last)) - 1).movedim(0, -1)
    return F.grid_sample(volume[None], unit[None], mode="bilinear", padding_mode="border", align_corners=True)[0]


def _displacements(map_: Callable[[Tensor], Tensor], half_extents_cube: Tensor, size: tuple[int, ...]) -> Tensor:
    """Displacements (d, (z,) y, x), in nodes, that a map has at ``size`` nodes over the cube."""
    at = points_between(half_extents_cube, size)
    moved = torch.cat([map_(rows) - rows for rows in at.split(_ROWS)])
    last = torch.tensor(size, device=at.device) - 1
    return (moved * (last / (2 * half_extents_cube))).T.reshape(-1, *reversed(size)).contiguous()


def _within(counts: Tensor) -> Tensor:
    """What counts ((z,) y, x), and nothing on the border: so nothing beyond it, where a map may lead, does."""
    return F.pad(counts[(slice(1, -1),) * counts.ndim], [1] * 2 * counts.ndim)


def _box(shown: Tensor, factor: int, margin: int) -> list[tuple[int, int]]:
    """First node and the one after the last, along each axis, around the voxels that show something."""
    found = []
    for axis, n in enumerate(shown.shape):
        other = [k for k in range(shown.ndim) if k != axis]
        where = torch.nonzero(shown.any(other[0]) if len(other) == 1 else shown.amax(other))[:, 0]
        first, last = (int(where[0]), int(where[-1])) if len(where) else (0, n - 1)
        found.append((max(0, first // factor - margin), min((n - 1) // factor, -(-last // factor) + margin) + 1))
    return found


def _free(held: Sequence[Tensor], half_extents_cube: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """((z,) y, x) at nodes: 0 around points that are held, 1 far from them; None where there are none."""
    if not held:
        return None
    last = torch.tensor(size, device=half_extents_cube.device) - 1
    below = ((torch.cat(list(held)) / half_extents_cube + 1) * last / 2).floor().long().clamp(min=0)
    mask = np.zeros(tuple(reversed(size)), np.uint8)
    for corner in product((0, 1), repeat=len(size)):
        index = torch.minimum(below + torch.tensor(corner, device=below.device), last).cpu().numpy()
        mask[tuple(index.T[::-1])] = 1
    distance = sitk.GetArrayFromImage(signed_distance_mm(sitk.GetImageFromArray(mask)))  # of a grid of 1 mm: in nodes
    share = torch.from_numpy(distance).to(half_extents_cube).clamp(0, _RELEASED) / _RELEASED
    return share.square() * (3 - 2 * share)


def _fading(part: Sequence[slice], whole: Sequence[int], like: Tensor) -> Tensor:
    """1 within a part of a whole grid, 0 on its border where more lies around, so that both meet there."""
    share = like.new_ones(())
    for side, n in zip(part, whole, strict=True):
        away = torch.arange(side.stop - side.start, device=like.device, dtype=like.dtype)
        along = torch.ones_like(away)
        if side.start > 0:
            along = torch.minimum(along, away / (_MARGIN / 2))
        if side.stop < n:
            along = torch.minimum(along, away.flip(0) / (_MARGIN / 2))
        share = share[..., None] * along
    return share
