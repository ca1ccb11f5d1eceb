"""Maps that slide: what lies within a border moves by a map of its own, along what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..errors import NephiError
from ..space.interpolate import constant, interpolate
from .code import FORWARD, INVERSE, nodes
from .held import HeldShift, spline_table
from .maps import Composed, FieldMap, Map, iterated_inverse

_REACH_CUBE = 0.12  # from the border, as far as a map is changed to meet another there: 19 mm in a chest
_SPACING_CUBE = 0.03  # of the nodes that hold the changed map: 5 mm in a chest
_BACK_SPACING_CUBE = 0.055  # of those that nearly hold its inverse
_STEPS = 3  # of Newton's method, by which points come to a distance from the border
_ROUNDS = 12  # of an inverse, at most
_NEAR_CUBE = 1e-4  # what the inverse is missed by less, one step mends
_FLAT = 0.25  # squared slope of the distance, below which steps are not longer
OUTER, WITHIN = "outer.", "within."  # of what both sides are composed with, and of the inner side's own

PointMap = Callable[[Tensor], Tensor]  # points_cube (n, d) -> the same


class Border:
    """A closed border in the cube, by the distance to it, negative within.

    ``distance`` ((z,) y, x) float16 in cube units, at nodes that are evenly spread over the cube, border included.
    """

    def __init__(self, distance: Tensor, half_extents_cube: Tensor):
        self.distance, self.half_extents_cube = distance, half_extents_cube
        self.size = tuple(reversed(distance.shape))
        values = distance.to(half_extents_cube)
        steps = (2 * half_extents_cube / (torch.tensor(self.size, device=values.device) - 1)).flip(0).tolist()
        slopes = torch.gradient(values, spacing=steps)
        self.between_nodes = sum(step**2 for step in steps) ** 0.5  # next to each other, at most
        self._table = spline_table(torch.stack([values, *reversed(slopes)], -1).flatten(0, -2), self.size)

    def at(self, points_cube: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (n, 1) from the border at points (n, d), and its slope (n, d)."""
        half = constant([(n - 1) / 2 for n in self.size], points_cube.device, points_cube.dtype)
        position = torch.addcmul(half, points_cube / self.half_extents_cube, half)
        values = interpolate([self._table], position[None], self.size, 2)[0]
        return values[:, :1], values[:, 1:]

    def within(self, points_cube: Tensor) -> Tensor:
        """(n, 1) bool: which points (n, d) lie within it."""
        return self.at(points_cube.detach())[0] < 0

    def nearest(self, points_cube: Tensor) -> Tensor:
        """Distance (n, 1) of the nodes that are nearest to points (n, d)."""
        half = constant([(n - 1) / 2 for n in self.size], points_cube.device, points_cube.dtype)
        node = torch.addcmul(half, points_cube / self.half_extents_cube, half).round().long()
        row = torch.zeros_like(node[:, 0])
        for axis in reversed(range(len(self.size))):
            row = row * self.size[axis] + node[:, axis].clamp(0, self.size[axis] - 1)
        return self.distance.flatten()[row][:, None].to(points_cube)

    def brought(self, points_cube: Tensor, distance: Tensor | float = 0.0) -> Tensor:
        """Points (n, d), brought to a distance (n, 1) from it along its slope; where that is flat, only near it."""
        for _ in range(_STEPS):
            found, slope = self.at(points_cube)
            squared = slope.square().sum(-1, keepdim=True).clamp(min=_FLAT)
            points_cube = points_cube + (distance - found) * slope / squared
        return points_cube

    def to(self, device: torch.device | str) -> Border:
        return Border(self.distance.to(device), self.half_extents_cube.to(device))


class Sliding(Map):
    """A map within a border and another one around it; on which side a moving point lies, the former says.

    Where both take the border to the same place, as ``meeting`` makes them, the two sides neither part nor overlap.
    """

    def __init__(self, within: Map, around: Map, border: Border):
        self.within, self.around, self.border = within, around, border

    @property
    def half_extents_cube(self) -> Tensor:
        return self.around.half_extents_cube

    def is_within(self, points_cube: Tensor) -> Tensor:
        """(n, 1) bool: which fixed points (n, d) lie within the border."""
        roughly = self.border.nearest(points_cube)
        near = roughly.abs() < self.border.between_nodes  # else the nearest node lies on the same side
        return _replaced(roughly < 0, near, points_cube, self.border.within)

    def forward(self, points_cube: Tensor) -> Tensor:
        return _replaced(
            self.within.forward(points_cube), ~self.is_within(points_cube), points_cube, self.around.forward
        )

    def inverse(self, points_cube: Tensor) -> Tensor:
        back = self.within.inverse(points_cube)
        return _replaced(back, ~self.is_within(back), points_cube, self.around.inverse)

    def on_own_side(self, stencils: Tensor) -> Tensor:
        points = stencils.flatten(1, 2)
        inside, outside = (side(points).reshape(stencils.shape) for side in (self.within, self.around))
        centres = torch.stack([stencils[FORWARD, :, 0], inside[INVERSE, :, 0]])
        within = torch.stack([self.is_within(centre) for centre in centres])
        return torch.where(within[:, :, None], inside, outside)

    def meeting(self) -> Sliding:
        """The same, its outer map changed near the border so that both sides meet: images tell more of the inner."""
        return Sliding(self.within, Meeting(self.around, self.within, self.border), self.border)

    def apart(self) -> Sliding:
        """The same before that."""
        around = self.around.of if isinstance(self.around, Meeting) else self.around
        return Sliding(self.within, around, self.border)

    def to(self, device: torch.device | str) -> Sliding:
        return Sliding(self.within.to(device), self.around.to(device), self.border.to(device))


class Meeting(Map):
    """A map, changed near a border so that it takes the border where another map takes it.

    forward(x) = of.forward(x) + near(x) * c(foot(x)): c moves a point of the border onto the other map's border, at
    right angles to it. All of it is smooth, found once at nodes and held as a spline; nearly its inverse, too, which is
    iterated until it is exact: a point costs less than in a field.
    """

    def __init__(self, of: Map, other: Map, border: Border):
        self.of, self.other, self.border = of, other, border

    @property
    def half_extents_cube(self) -> Tensor:
        return self.of.half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._shift(points_cube)

    @torch.no_grad()
    def inverse(self, points_cube: Tensor) -> Tensor:
        return iterated_inverse(self.forward, self.nearly_back, points_cube, _ROUNDS, near=_NEAR_CUBE)

    def nearly_back(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._shift_back(points_cube)

    @cached_property
    def _shift(self) -> HeldShift:
        shift = self._held(lambda x: self.of.forward(x) - x, _SPACING_CUBE)
        return self._held(lambda x: shift(x) + self._missing(x, shift), _SPACING_CUBE)

    @cached_property
    def _shift_back(self) -> HeldShift:
        return self._held(
            lambda y: iterated_inverse(self.forward, self.of.nearly_back, y, _ROUNDS) - y, _BACK_SPACING_CUBE
        )

    def _held(self, shift: PointMap, spacing_cube: float) -> HeldShift:
        half_extents = self.half_extents_cube
        return HeldShift(shift, half_extents, nodes(half_extents.tolist(), spacing_cube))

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


def _replaced(values: Tensor, where: Tensor, points: Tensor, by: PointMap) -> Tensor:
    """Values (n, d), where (n, 1) says so those of points (n, d)."""
    rows = where[:, 0].nonzero()[:, 0]
    return values.index_copy(0, rows, by(points[rows])) if len(rows) else values


def field_maps(maps: Map) -> dict[str, FieldMap]:
    """The maps that others are made of, by the prefix of their tensors in a file; what ``of_field_maps`` puts together.

    Raises NephiError for maps that others than fields make.
    """
    maps = maps.apart() if isinstance(maps, Sliding) else maps
    sides = {"": maps.around, WITHIN: maps.within} if isinstance(maps, Sliding) else {"": maps}
    parts: dict[str, Map] = {}
    for prefix, side in sides.items():
        if isinstance(side, Composed):  # that of both sides is one
            parts[OUTER] = side.outer
        parts[prefix] = side.inner if isinstance(side, Composed) else side
    found = {prefix: part for prefix, part in parts.items() if isinstance(part, FieldMap)}
    if len(found) < len(parts):
        raise NephiError(
            "only maps that fields make, the composition of two, such maps that slide, or their consensus, can be saved"
        )
    return found


def of_field_maps(parts: dict[str, FieldMap], border: Border | None) -> Map:
    """The maps made of such parts."""
    sides = [parts[OUTER] @ parts[name] if OUTER in parts else parts[name] for name in ("", WITHIN) if name in parts]
    return sides[0] if border is None else Sliding(sides[1], sides[0], border)
