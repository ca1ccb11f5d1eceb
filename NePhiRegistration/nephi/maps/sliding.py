"""Maps that slide: what lies within a border moves along it, past what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..space.interpolate import constant, interpolate
from .code import FORWARD, INVERSE
from .held import spline_table
from .maps import FieldMap, Map

_TURN_CUBE = 0.07  # distance from the border over which motion turns along it: 10 mm in a chest
_STEPS = 2  # of Newton's method, by which points come back to their distance from the border
_ROUNDS = 12  # of the inverse, at most
_TOLERANCE_CUBE = 2e-5  # of the inverse
_FLAT = 0.25  # squared slope of the distance, below which steps are not longer

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
        self._table = spline_table(torch.stack([values, *reversed(slopes)], -1).flatten(0, -2), self.size)

    def at(self, points_cube: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (n, 1) from the border at points (n, d), and its slope (n, d)."""
        half = constant([(n - 1) / 2 for n in self.size], points_cube.device, points_cube.dtype)
        position = torch.addcmul(half, points_cube / self.half_extents_cube, half)
        values = interpolate([self._table], position[None], self.size, 2)[0]
        return values[:, :1], values[:, 1:]

    def to(self, device: torch.device | str) -> Border:
        return Border(self.distance.to(device), self.half_extents_cube.to(device))


class _Slipping(Map):
    """A smooth map after a slip; whether all points slip, or those within the border, subclasses say."""

    def __init__(self, smooth: Map, along: FieldMap, border: Border):
        self.smooth, self.along, self.border = smooth, along, border

    def _chosen(self, distance: Tensor, slid: Tensor, points: Tensor) -> Tensor:
        """(n, d): of points at distances (n, 1) from the border, slid or as they are."""
        raise NotImplementedError

    @property
    def half_extents_cube(self) -> Tensor:
        return self.smooth.half_extents_cube

    def slip(self, points_cube: Tensor) -> Tensor:
        """Where fixed points (n, d) slip to, before the smooth map takes them on."""
        return self._slid(points_cube, self.along.forward)

    def forward(self, points_cube: Tensor) -> Tensor:
        return self.smooth.forward(self.slip(points_cube))

    def inverse(self, points_cube: Tensor) -> Tensor:
        return self._unslid(self.smooth.inverse(points_cube))

    def __call__(self, points_cube: Tensor) -> Tensor:
        return self._through(self.smooth, points_cube)

    def bound(self) -> PointMap:
        return partial(self._through, self.smooth.bound())

    def _through(self, smooth: PointMap, points_cube: Tensor, within: Tensor | None = None) -> Tensor:
        """As a call; ``within`` (2, n, 1): which points count as such."""
        forward, inverse = (None, None) if within is None else within
        slid = self._slid(points_cube[FORWARD], self.along.forward, forward)
        moved = smooth(torch.stack([slid, points_cube[INVERSE]]))
        return torch.stack([moved[FORWARD], self._slid(moved[INVERSE], self.along.inverse, inverse)])

    def _slid(self, points: Tensor, by: PointMap, within: Tensor | None = None) -> Tensor:
        distance, slope = self.border.at(points)
        slid = self._along_border(points, by(points) - points, distance, slope)
        return self._chosen(distance, slid, points) if within is None else torch.where(within, slid, points)

    def _along_border(self, points: Tensor, shift: Tensor, distance: Tensor, slope: Tensor) -> Tensor:
        """Points, shifted so that near the border they keep their distance from it."""
        near = torch.exp(-(distance / _TURN_CUBE).square())
        normal = slope / slope.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
        moved = points + shift - near * (shift * normal).sum(-1, keepdim=True) * normal
        for _ in range(_STEPS):
            reached, slope = self.border.at(moved)
            step = slope / slope.square().sum(-1, keepdim=True).clamp(min=_FLAT)
            moved = moved + near * (distance - reached) * step
        return moved

    @torch.no_grad()
    def _unslid(self, points: Tensor) -> Tensor:
        """Where the slip comes from: at first by the inverse displacements, then as exactly as some rounds make it."""
        everywhere = Within(self.smooth, self.along, self.border)
        found = everywhere._slid(points, self.along.inverse)
        for _ in range(_ROUNDS):
            gap = points - everywhere._slid(found, self.along.forward)
            found = found + gap
            if not (gap.abs() > _TOLERANCE_CUBE).any():
                break
        return self._chosen(self.border.at(points)[0], found, points)

    def to(self, device: torch.device | str) -> Map:
        return type(self)(self.smooth.to(device), self.along.to(device), self.border.to(device))


class Sliding(_Slipping):
    """A smooth map after a slip within the border, which takes the border onto itself.

    forward(x) = smooth(slip(x)) within the border, smooth(x) outside. As the slip only moves points of the border along
    it, the two sides neither part nor overlap. ``along``: displacements, of which the slip takes what leads along the
    border near it, and all of it far within.
    """

    @property
    def within(self) -> Map:
        """The map within the border, continued beyond it."""
        return Within(self.smooth, self.along, self.border)

    def is_within(self, points_cube: Tensor) -> Tensor:
        """(n, 1) bool: which fixed points (n, d) lie within the border."""
        return self.border.at(points_cube)[0] < 0

    def on_own_side(self, stencils: Tensor) -> tuple[Tensor, PointMap]:
        with torch.no_grad():
            fixed, moving = stencils[:, :, 0]
            within = torch.stack([self.is_within(fixed), self.is_within(self.smooth.inverse(moving))])
        within = within[:, :, None].expand(-1, -1, stencils.shape[2], -1).flatten(1, 2)
        smooth = self.smooth.bound()
        values = self._through(smooth, stencils.flatten(1, 2), within).reshape(stencils.shape)
        return values, partial(self._through, smooth, within=within.flip(0))

    def _chosen(self, distance: Tensor, slid: Tensor, points: Tensor) -> Tensor:
        return torch.where(distance < 0, slid, points)


class Within(_Slipping):
    """The map as if all points lay within the border."""

    def _chosen(self, distance: Tensor, slid: Tensor, points: Tensor) -> Tensor:
        return slid
