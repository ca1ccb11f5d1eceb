"""Sliding maps: the inside of a border moves by a map of its own, along its surroundings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NephiError
from .bodies import Bodies, Rigid
from .border import Border
from .code import FORWARD, INVERSE
from .maps import Composed, FieldMap, Map
from .meeting import Meeting, MeetingBesideBodies, replaced

OUTER, WITHIN = "outer.", "within."  # of the map that both sides are composed with, and of the inner side's own


class Sliding(Map):
    """A map within a border and another one around it; the inner map decides on which side a moving point lies.

    If both take the border to the same place, as ``meeting`` ensures, the two sides neither separate nor overlap.
    ``bodies``: rigid bodies in the outer map.
    """

    def __init__(
        self, within: Map, around: Map, border: Border, bodies: Bodies | None = None, apart: Sliding | None = None
    ):
        self.within, self.around, self.border, self.bodies, self._apart = within, around, border, bodies, apart

    @property
    def half_extents_cube(self) -> Tensor:
        return self.around.half_extents_cube

    def is_within(self, points_cube: Tensor) -> Tensor:
        """(n, 1) bool: whether fixed points (n, d) lie within the border."""
        roughly = self.border.nearest(points_cube)
        near = roughly.abs() < self.border.between_nodes  # otherwise the nearest node lies on the same side
        return replaced(roughly < 0, near, points_cube, self.border.within)

    def forward(self, points_cube: Tensor) -> Tensor:
        return replaced(
            self.within.forward(points_cube), ~self.is_within(points_cube), points_cube, self.around.forward
        )

    def inverse(self, points_cube: Tensor) -> Tensor:
        back = self.within.inverse(points_cube)
        return replaced(back, ~self.is_within(back), points_cube, self.around.inverse)

    def on_own_side(self, stencils: Tensor) -> Tensor:
        points = stencils.flatten(1, 2)
        inside, outside = (side(points).reshape(stencils.shape) for side in (self.within, self.around))
        centres = torch.stack([stencils[FORWARD, :, 0], inside[INVERSE, :, 0]])
        within = torch.stack([self.is_within(centre) for centre in centres])
        return torch.where(within[:, :, None], inside, outside)

    def between(self, points_cube: Tensor) -> Tensor:
        """How far (n, 1) from the border the map around starts from where the one within takes points (n, d) of it."""
        return self.border.at(self.around.inverse(self.within.forward(points_cube)))[0]

    def meeting(self) -> Sliding:
        """The same, changed near the border so that both sides meet.

        The outer map is changed, as images constrain the inner one better, except where rigid bodies leave no room.
        """
        border, bodies = self.border, self.bodies
        if bodies is None:
            return Sliding(self.within, Meeting(self.around, self.within, border), border, None, self)
        around = MeetingBesideBodies(Rigid(self.around, bodies, border), self.within, border, bodies)
        within = MeetingBesideBodies(self.within, around, border, bodies, within=True)
        return Sliding(within, around, border, bodies, self)

    def apart(self) -> Sliding:
        """The same before that."""
        return self if self._apart is None else self._apart

    def to(self, device: torch.device | str) -> Sliding:
        apart = self.apart()
        bodies = None if self.bodies is None else self.bodies.to(device)
        moved = Sliding(apart.within.to(device), apart.around.to(device), apart.border.to(device), bodies)
        return moved if apart is self else moved.meeting()


def field_maps(maps: Map) -> dict[str, FieldMap]:
    """The component maps by the prefix of their tensors in a file, for ``of_field_maps``.

    Raises NephiError for maps that are not made of fields.
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
            "only maps of fields, compositions of two, sliding maps of these, and their consensus can be saved"
        )
    return found


def border_tensors(maps: Map) -> dict[str, Tensor]:
    """The entries of a file for the border along which maps slide, and the bodies near it."""
    if not isinstance(maps, Sliding):
        return {}
    return {"border": maps.border.distance} | ({} if maps.bodies is None else {"bodies": maps.bodies.values})


def of_field_maps(parts: dict[str, FieldMap], border: Border | None, bodies: Bodies | None = None) -> Map:
    """The maps composed of such parts."""
    sides = [parts[OUTER] @ parts[name] if OUTER in parts else parts[name] for name in ("", WITHIN) if name in parts]
    return sides[0] if border is None else Sliding(sides[1], sides[0], border, bodies)
