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

_FASTER = 3.0  # than the field that makes it the slip is: steps of an optimiser would not take it as far in time
_REACH_CUBE = 0.12  # from the border, as far as the slip goes: 19 mm in a chest
_TURN_CUBE = 0.07  # distance from the border over which motion turns along it: 10 mm in a chest
_STEPS = 2  # of Newton's method, by which points come back to their distance from the border
_ROUNDS = 12  # of the inverse, at most
_TOLERANCE_CUBE = 2e-5  # of the inverse
_PICKED_ON = ("cpu",)  # where only what slips is computed: steps that a GPU replays have as many points each
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

    def _slips(self, points: Tensor) -> Tensor | None:
        """(n, 1) bool: which of points (n, d) do; None: all."""
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
        """Points (n, d) after the slip ``by``; ``within`` (n, 1): which of them slip, by default as the class says."""
        within = self._slips(points) if within is None else within
        if within is None:
            return self._slipped(points, by)
        if points.device.type not in _PICKED_ON:
            return torch.where(within, self._slipped(points, by), points)
        rows = within[:, 0].nonzero()[:, 0]
        return points.index_copy(0, rows, self._slipped(points[rows], by)) if len(rows) else points

    def _slipped(self, points: Tensor, by: PointMap) -> Tensor:
        """Points, shifted so that near the border they keep their distance from it."""
        shift, sought = _FASTER * (by(points) - points), torch.is_grad_enabled() and self._is_sought
        with torch.set_grad_enabled(torch.is_grad_enabled() and not sought):
            distance, slope = self.border.at(points)
            squared = slope.square().sum(-1, keepdim=True)
            near = torch.exp(-(distance / _TURN_CUBE).square())
            normal = slope / squared.clamp(min=1e-12).sqrt()
            # none where two parts of the border meet: to whose sides the distance leads there is not sure
            part = ((1 - (distance / _REACH_CUBE).square()).clamp(min=0) * squared.clamp(max=1)).square()
        shift = part * shift
        beside = points + shift - near * (shift * normal).sum(-1, keepdim=True) * normal
        with torch.set_grad_enabled(torch.is_grad_enabled() and not sought):
            moved = beside
            for _ in range(_STEPS):
                reached, there = self.border.at(moved)
                step = there / there.square().sum(-1, keepdim=True).clamp(min=_FLAT)
                moved = moved + near * (distance - reached) * step
        if not sought:
            return moved
        # the same value; its gradient is that of a step along the border, without that of how the border bends
        kept = (slope * (points - points.detach())).sum(-1, keepdim=True)
        free = beside - beside.detach()
        return moved + free + near * (kept - (there * free).sum(-1, keepdim=True)) * step

    @property
    def _is_sought(self) -> bool:
        """Whether an optimisation changes it."""
        return self.along.code.local_code.requires_grad

    @torch.no_grad()
    def _unslid(self, points: Tensor) -> Tensor:
        """Where the slip comes from: by the inverse displacements, then as exactly as some rounds make it.

        Steps as long as the inverse displacements make them, at the points where it is not good enough yet.
        """
        everywhere, within = Within(self.smooth, self.along, self.border), self._slips(points)
        left = torch.arange(len(points), device=points.device) if within is None else within[:, 0].nonzero()[:, 0]
        found = back = self._slid(points, self.along.inverse)
        for _ in range(_ROUNDS if len(left) else 0):
            reached = everywhere._slid(found[left], self.along.forward)
            missed = (reached - points[left]).abs().amax(-1) > _TOLERANCE_CUBE
            if not missed.any():
                break
            left, reached = left[missed], reached[missed]
            found = found.index_add(0, left, back[left] - everywhere._slid(reached, self.along.inverse))
        return found

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
        return self.border.at(points_cube.detach())[0] < 0

    def on_own_side(self, stencils: Tensor) -> tuple[Tensor, PointMap]:
        with torch.no_grad():
            fixed, moving = stencils[:, :, 0]
            within = torch.stack([self.is_within(fixed), self.is_within(self.smooth.inverse(moving))])
        within = within[:, :, None].expand(-1, -1, stencils.shape[2], -1).flatten(1, 2)
        smooth = self.smooth.bound()
        values = self._through(smooth, stencils.flatten(1, 2), within).reshape(stencils.shape)
        return values, partial(self._through, smooth, within=within.flip(0))

    def _slips(self, points: Tensor) -> Tensor:
        return self.is_within(points)


class Within(_Slipping):
    """The map as if all points lay within the border."""

    def _slips(self, points: Tensor) -> None:
        return None
