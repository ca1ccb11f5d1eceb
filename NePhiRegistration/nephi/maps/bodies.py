"""Rigid bodies near a sliding border: the map on the outer side of the border is exactly rigid in them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..space.interpolate import interpolate
from .code import nodes, position_between
from .held import HeldShift, PointMap, spline_table
from .maps import Map, MapOf, iterated_inverse

if TYPE_CHECKING:
    from .border import Border

_SPACING_CUBE = 0.03  # between the nodes of the map: 5 mm in a chest
_BACK_SPACING_CUBE = 0.055  # between the nodes of its approximate inverse
_ROUNDS = 12  # of an inverse, at most
_NEAR_CUBE = 1e-4  # smaller errors of the inverse are corrected by one step
_ROOM_TAKEN = 1.0  # by a change across the border, times that: less of it folds
_THIN_CUBE = 0.006  # 1 mm in a chest: where bodies are as near to the border as that, it yields


class Bodies:
    """Rigid bodies in the cube, as the distance to them and the displacement that makes a map rigid there.

    ``values`` (1 + d, (z,) y, x) float16 in cube units, at nodes evenly spread over the cube, border included: the
    distance to the nearest body, 0 or less within one, and the displacement from the map's own values to those of the
    body's rigid motion. Raises ValueError for values of another type or shape.
    """

    def __init__(self, values: Tensor, half_extents_cube: Tensor):
        channels = 1 + len(half_extents_cube)
        if values.dtype != torch.float16 or values.ndim != channels or len(values) != channels or min(values.shape) < 2:
            raise ValueError(f"bodies of shape {tuple(values.shape)}")
        self.values, self.half_extents_cube = values, half_extents_cube
        self.size = tuple(reversed(values.shape[1:]))
        self._table = spline_table(values.to(half_extents_cube).flatten(1).T, self.size)

    def at(self, points_cube: Tensor) -> tuple[Tensor, Tensor]:
        """Room (n, 1) between points (n, d) and the nearest body, and the displacement (n, d)."""
        position = position_between(points_cube, self.half_extents_cube, self.size)
        values = interpolate([self._table], position[None], self.size, 2)[0]
        return values[:, :1].clamp(min=0), values[:, 1:]

    def share(self, room: Tensor, distance: Tensor, across: Tensor | float = 0.0) -> Tensor:
        """Weight of the bodies (n, 1): 1 within one, close to 0 at a border at the given distance (n, 1).

        ``across``: the change (n, 1) across the border; the weight is larger where it uses up the room.
        """
        beside = distance.clamp(min=0).square() + _THIN_CUBE**2 + (_ROOM_TAKEN * across) ** 2
        return beside / (beside + room.square())

    def to(self, device: torch.device | str) -> Bodies:
        return Bodies(self.values.to(device), self.half_extents_cube.to(device))


class Held(MapOf):
    """A map represented by a spline, with its inverse iterated until it is exact: faster than a field."""

    def forward(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._shift(points_cube)

    @torch.no_grad()
    def inverse(self, points_cube: Tensor) -> Tensor:
        return iterated_inverse(self.forward, self.nearly_back, points_cube, _ROUNDS, near=_NEAR_CUBE)

    def nearly_back(self, points_cube: Tensor) -> Tensor:
        return points_cube + self._shift_back(points_cube)

    @cached_property
    def _shift(self) -> HeldShift:
        return self._held(lambda x: self.of.forward(x) - x)

    @cached_property
    def _shift_back(self) -> HeldShift:
        return self._held(
            lambda y: iterated_inverse(self.forward, self.of.nearly_back, y, _ROUNDS) - y, _BACK_SPACING_CUBE
        )

    def _held(self, shift: PointMap, spacing_cube: float = _SPACING_CUBE) -> HeldShift:
        half_extents = self.half_extents_cube
        return HeldShift(shift, half_extents, nodes(half_extents.tolist(), spacing_cube))

    def beside(self, bodies: Bodies, border: Border) -> Rigid:
        """The same map, rigid in bodies; its spline is reused."""
        rigid = Rigid(self.of, bodies, border)
        rigid.__dict__["_shift"] = self._shift
        return rigid

    def to(self, device: torch.device | str) -> Held:
        return type(self)(self.of.to(device))


class Rigid(Held):
    """A map, changed so that it is rigid in bodies; near a border it stays as it is where there is room."""

    def __init__(self, of: Map, bodies: Bodies, border: Border):
        super().__init__(of)
        self.bodies, self.border = bodies, border

    def forward(self, points_cube: Tensor) -> Tensor:
        room, change = self.bodies.at(points_cube)
        distance, slope = self.border.at(points_cube)
        share = self.bodies.share(room, distance, (change * slope).sum(-1, keepdim=True))
        return super().forward(points_cube) + share * change

    def to(self, device: torch.device | str) -> Rigid:
        return Rigid(self.of.to(device), self.bodies.to(device), self.border.to(device))
