"""What changes the maps of both sides of a border so that they take it to the same place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..device import in_threads
from ..space.interpolate import interpolate
from .bodies import Bodies, Held
from .border import Border
from .code import nodes, points_between, position_between, steps_between
from .held import HeldShift, PointMap, spline_table
from .maps import Map, iterated_inverse

_REACH_CUBE = 0.12  # from the border, as far as a map is changed to meet another there: 19 mm in a chest
_FINE_SPACING_CUBE = 0.02  # of the nodes that hold a shift beside bodies: 3 mm in a chest
_PARTS = 4096  # points at a time
_ROUNDS = 12  # of an inverse, at most
_SHIFT_ROUNDS = 30  # of a shift's inverse, at most
_SECANTS = 8  # steps to where both sides meet, at most
_STEP_CUBE = 0.02  # of such a step, at most
_MOST_CUBE = 0.07  # of a shift: what fades within the reach folds from 0.078 on
_RATES = 0.15, 3.0  # by which the sides come nearer per shift
_MET_CUBE = 1e-4  # 0.02 mm in a chest
_ON_BORDER_CUBE = 1e-3
_PART_OF_ROOM = 0.5  # between the border and a body, that a shift takes
_PART_OF_DEPTH = 4.0  # of the depth of what lies within, that it gives way: without a limit, thin edges fold
_DEEP_CUBE = 0.05  # as far inwards depth is looked for: 8 mm in a chest
_BESIDE, _BESIDE_CUBE = 3.0, 0.08  # the inner side gives way up to 13 mm from bodies in a chest, wholly up to 8 mm


class Meeting(Held):
    """A map, changed near a border so that it takes the border where another map takes it.

    forward(x) = of.forward(x) + near(x) * c(foot(x)): c moves a point of the border onto the other map's border, at
    right angles to it. All of it is smooth, found once at nodes and held as a spline.
    """

    def __init__(self, of: Map, other: Map, border: Border):
        super().__init__(of)
        self.other, self.border = other, border

    @cached_property
    def _shift(self) -> HeldShift:
        shift = self._held(lambda x: self.of.forward(x) - x)
        return self._held(lambda x: shift(x) + self._missing(x, shift))

    def _missing(self, points_cube: Tensor, shift: PointMap) -> Tensor:
        """near(x) * c(foot(x)) at points (n, d) that are shifted so."""
        distance, _ = self.border.at(points_cube)
        rows = (distance[:, 0].abs() < _REACH_CUBE).nonzero()[:, 0]
        if not len(rows):
            return torch.zeros_like(points_cube)
        foot = self.border.brought(points_cube[rows])
        moved = foot + shift(foot)
        beside = iterated_inverse(self.other.forward, self.other.nearly_back, moved, _ROUNDS)
        change = self.other.forward(self.border.brought(beside, self.border.at(foot)[0])) - moved
        near = (1 - (distance[rows] / _REACH_CUBE).square()).square()
        return torch.zeros_like(points_cube).index_copy(0, rows, near * change)

    def to(self, device: torch.device | str) -> Meeting:
        return Meeting(self.of.to(device), self.other.to(device), self.border.to(device))


class MeetingBesideBodies(Map):
    """A map after a shift across a border that lets it take the border where another map takes it.

    forward(x) = of.forward(x + q(x) * slope(x)), slope that of the distance from the border. On the border q is such
    that the shifted point ends on the other map's border; from there it fades along the slope, and towards
    ``bodies``, which takes room: the shift is no more than a part of what there is. What bodies leave apart, the map
    ``within`` gives way to, near them alone. q is found once at nodes and held as a spline.
    """

    def __init__(self, of: Map, other: Map, border: Border, bodies: Bodies, within: bool = False):
        self.of, self.other, self.border, self.bodies, self.is_inner = of, other, border, bodies, within

    @property
    def half_extents_cube(self) -> Tensor:
        return self.of.half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        return self.of.forward(self._shifted(points_cube))

    @torch.no_grad()
    def inverse(self, points_cube: Tensor) -> Tensor:
        return self._unshifted(self.of.inverse(points_cube))

    def nearly_back(self, points_cube: Tensor) -> Tensor:
        back = self.of.nearly_back(points_cube)
        return 2 * back - self._shifted(back)

    def _unshifted(self, points_cube: Tensor) -> Tensor:
        return iterated_inverse(self._shifted, lambda x: 2 * x - self._shifted(x), points_cube, _SHIFT_ROUNDS)

    def _shifted(self, points_cube: Tensor) -> Tensor:
        near = self.border.nearest(points_cube).abs() < _REACH_CUBE + self.border.between_nodes
        return replaced(points_cube, near, points_cube, self._shifted_near)

    def _shifted_near(self, points_cube: Tensor) -> Tensor:
        distance, slope = self._distance(points_cube)
        shift = interpolate([self._table], self._position(points_cube)[None], self._size, 2)[0]
        if self.is_inner:
            shift = shift * self._beside_bodies(points_cube)
        else:
            shift = shift * (1 - self.bodies.share(self.bodies.at(points_cube)[0], distance))
        return points_cube + shift * slope

    def _distance(self, points_cube: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (n, 1) from the border and its slope (n, d), at most 1."""
        distance, slope = self.border.at(points_cube)
        return distance, slope / slope.norm(dim=1, keepdim=True).clamp(min=1)

    @property
    def _size(self) -> tuple[int, ...]:
        return nodes(self.half_extents_cube.tolist(), _FINE_SPACING_CUBE)

    @cached_property
    @torch.no_grad()
    def _table(self) -> Tensor:
        """q at nodes: found next to the border, and from there carried along the slope."""
        points = points_between(self.half_extents_cube, self._size)
        step = float(steps_between(self.half_extents_cube, self._size).norm())
        found = self._at_feet(points, self._found, 1.1 * step)

        def carried(foot: Tensor) -> Tensor:
            return interpolate([found], self._position(foot)[None], self._size)[0]

        return spline_table(self._at_feet(points, carried, _REACH_CUBE, fading=True), self._size)

    def _at_feet(self, points_cube: Tensor, values: PointMap, reach: float, fading: bool = False) -> Tensor:
        """Values (n, 1) of the points of the border that are nearest to points (n, d), as far as that from it."""

        def feet_of(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Which of them count, their weights and the points of the border."""
            distance, _ = self.border.at(points)
            weight = (1 - (distance / reach).square()).clamp(min=0).square()
            counts = weight * self._beside_bodies(points) if self.is_inner else weight
            rows = (counts[:, 0] > 0).nonzero()[:, 0]
            foot = self.border.brought(points[rows])
            on_it = (self.border.at(foot)[0].abs() < _ON_BORDER_CUBE)[:, 0]  # else the distance is flat there
            return rows[on_it], weight[rows[on_it]], foot[on_it]

        def in_parts(function: Callable, points: Tensor) -> Iterator:
            return in_threads(function, points.split(_PARTS), points.device)

        each = list(in_parts(feet_of, points_cube))
        rows = torch.cat([part + number * _PARTS for number, (part, *_) in enumerate(each)])
        weights, feet = (torch.cat([part[which] for part in each]) for which in (1, 2))
        out = torch.zeros_like(points_cube[:, :1])
        if not len(rows):
            return out
        of_feet = torch.cat(list(in_parts(values, feet)))  # together: a few at a time take many times as long
        return out.index_copy(0, rows, weights * of_feet if fading else of_feet)

    def _position(self, points_cube: Tensor) -> Tensor:
        return position_between(points_cube, self.half_extents_cube, self._size)

    def _beside_bodies(self, points_cube: Tensor) -> Tensor:
        """(n, 1): 1 near bodies, 0 far from them."""
        part = (_BESIDE * (1 - self.bodies.at(points_cube)[0] / _BESIDE_CUBE)).clamp(0, 1)
        return part.square() * (3 - 2 * part)

    def _found(self, foot: Tensor) -> Tensor:
        """The shift (n, 1) of points (n, d) of the border along its slope, by the secant method."""
        _, slope = self._distance(foot)
        found, apart = torch.zeros_like(foot[:, :1]), self._apart(foot)
        best, rate = apart.clone(), torch.ones_like(found)
        shift, left = found.clone(), torch.arange(len(foot), device=foot.device)
        for _ in range(_SECANTS):
            open_ = best[left, 0].abs() > _MET_CUBE
            left, shift, apart, rate = left[open_], shift[open_], apart[open_], rate[open_]
            if not len(left):
                break
            further = (shift - (apart / rate).clamp(-_STEP_CUBE, _STEP_CUBE)).clamp(-_MOST_CUBE, _MOST_CUBE)
            now = self._apart(foot[left] + further * slope[left])
            step = further - shift
            rate = torch.where(step.abs() > _MET_CUBE / 10, (now - apart) / step, rate).clamp(*_RATES)
            shift, apart = further, now
            better = now.abs() < best[left].abs()
            found = found.index_copy(0, left, torch.where(better, shift, found[left]))
            best = best.index_copy(0, left, torch.where(better, now, best[left]))
        room = _PART_OF_DEPTH * self._depth(foot, slope) if self.is_inner else _PART_OF_ROOM * self.bodies.at(foot)[0]
        return found * room / (room.square() + found.square()).sqrt().clamp(min=_MET_CUBE)

    def _depth(self, foot: Tensor, slope: Tensor) -> Tensor:
        """How far (n, 1) it goes inwards at points (n, d) of the border, where parts of it meet less than elsewhere."""
        return -self.border.at(foot - _DEEP_CUBE * slope)[0].clamp(max=0)

    def _apart(self, points_cube: Tensor) -> Tensor:
        """How far (n, 1) from the border the other map starts from where this map takes points (n, d)."""
        moved = self.of.forward(points_cube)
        return self.border.at(iterated_inverse(self.other.forward, self.other.nearly_back, moved, _ROUNDS))[0]

    def to(self, device: torch.device | str) -> MeetingBesideBodies:
        of, other = self.of.to(device), self.other.to(device)
        return MeetingBesideBodies(of, other, self.border.to(device), self.bodies.to(device), self.is_inner)


def replaced(values: Tensor, where: Tensor, points: Tensor, by: PointMap) -> Tensor:
    """Values (n, d), where (n, 1) says so those of points (n, d)."""
    rows = where[:, 0].nonzero()[:, 0]
    return values.index_copy(0, rows, by(points[rows])) if len(rows) else values
