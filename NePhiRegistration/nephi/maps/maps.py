"""Maps: a forward and an inverse map of the registration cube that belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..settings import FIELDS, FieldSettings
from .code import FORWARD, INVERSE, LINEAR_CUBE, Code, points_between, zero_code
from .fields import Fields, check_local_code
from .voxel import VoxelFields as VoxelFields  # known by its name once this module is imported

if TYPE_CHECKING:
    from .held import HeldShift

_TOLERANCE_CUBE = 2e-5  # of an inverse: 3 micrometres in a chest


class Map(ABC):
    """A forward and an inverse map of a pair, or of a batch of pairs, each nearly the inverse of the other.

    ``outer @ inner`` is their composition; ``map.inverted()`` exchanges the two. Points lie in the cube, (n, d), x
    first. Subclasses define ``forward``, ``inverse``, ``to`` and ``half_extents_cube``.
    """

    @property
    @abstractmethod
    def half_extents_cube(self) -> Tensor:
        """(d,): half the sides of the cube, which is centred at 0."""

    @abstractmethod
    def forward(self, points_cube: Tensor) -> Tensor:
        """Fixed points (n, d) of one pair -> moving points."""

    @abstractmethod
    def inverse(self, points_cube: Tensor) -> Tensor:
        """Moving points (n, d) of one pair -> fixed points."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Map:
        """The same on a device."""

    @property
    def device(self) -> torch.device:
        return self.half_extents_cube.device

    def __call__(self, points_cube: Tensor) -> Tensor:
        """(2, b * n, d), pair after pair: entry 0 through the forward maps, entry 1 through the inverse ones."""
        return torch.stack([self.forward(points_cube[FORWARD]), self.inverse(points_cube[INVERSE])])

    def bound(self) -> Callable[[Tensor], Tensor]:
        """The same function, for several calls between which nothing changes."""
        return self

    def on_own_side(self, stencils: Tensor) -> Tensor | None:
        """Values at stencils (2, m, k, d) of a discontinuous map, each on its centre's side of the jump.

        None for other maps.
        """
        return None

    @property
    def held_shift(self) -> HeldShift | None:
        """The displacement of the forward map if it is a spline, which is read fast on grids; else None."""
        return None

    def __matmul__(self, inner: Map) -> Composed:
        return Composed(self, inner)

    def inverted(self) -> Map:
        """The inverse map as the forward one, and the other way round."""
        return _Inverted(self)

    def nearly_back(self, points_cube: Tensor) -> Tensor:
        """Where the inverse map takes points (n, d), as accurately as an iteration step needs it."""
        return self.inverse(points_cube)

    @torch.no_grad()
    def solve(self, points_cube: Tensor, rounds: int = 5, near: Tensor | None = None) -> Tensor:
        """The points that the forward map takes to these (n, d): more accurate than the inverse map.

        ``near``: the result of the inverse map, if known.
        """
        found = self.inverse(points_cube) if near is None else near
        for _ in range(rounds):
            found = found + points_cube - self.forward(found)
        return found


def iterated_inverse(
    forward: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
    points_cube: Tensor,
    rounds: int,
    correction: Callable[[Tensor], Tensor] | None = None,
    near: float = 0.0,
) -> Tensor:
    """The points that ``forward`` takes to these (n, d), to 2e-5 of the cube, in at most ``rounds`` rounds.

    ``inverse``: its approximate inverse, to which a correction may be known. Iterates at the points that are not
    accurate yet; errors below ``near`` are corrected by one more step.
    """
    back = inverse(points_cube)
    found = back if correction is None else back + correction(points_cube)
    left = torch.arange(len(points_cube), device=points_cube.device)
    for _ in range(rounds):
        reached = forward(found[left])
        off = (reached - points_cube[left]).abs().amax(-1)
        missed = off > _TOLERANCE_CUBE
        if not missed.any():
            break
        left, reached, off = left[missed], reached[missed], off[missed]
        found = found.index_add(0, left, back[left] - inverse(reached))
        left = left[off > near]
        if not len(left):
            break
    return found


class FieldMap(Map):
    """The maps of a batch of pairs, given by fields and the codes of the pairs."""

    def __init__(self, fields: Fields, code: Code):
        self.fields, self.code = fields, code

    @property
    def half_extents_cube(self) -> Tensor:
        return self.code.half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        return self.fields.one(points_cube, self.code, FORWARD)

    def inverse(self, points_cube: Tensor) -> Tensor:
        return self.fields.one(points_cube, self.code, INVERSE)

    def __call__(self, points_cube: Tensor) -> Tensor:
        return self.fields(points_cube, self.code)

    def bound(self) -> Callable[[Tensor], Tensor]:
        return self.fields.bound(self.code)

    def to(self, device: torch.device | str) -> FieldMap:
        return FieldMap(self.fields.to(device), self.code.to(device))


class Composed(Map):
    """``inner``, then ``outer``; the inverse in reverse order.

    forward(x) = outer.forward(inner.forward(x)), inverse(y) = inner.inverse(outer.inverse(y)): if both parts are
    inverses of each other, so are the two.
    """

    def __init__(self, outer: Map, inner: Map):
        self.outer, self.inner = outer, inner

    @property
    def half_extents_cube(self) -> Tensor:
        return self.inner.half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(points_cube))

    def inverse(self, points_cube: Tensor) -> Tensor:
        return self.inner.inverse(self.outer.inverse(points_cube))

    def __call__(self, points_cube: Tensor) -> Tensor:
        return self._through(self.inner, points_cube)

    def bound(self) -> Callable[[Tensor], Tensor]:
        return partial(self._through, self.inner.bound())

    def _through(self, inner: Callable[[Tensor], Tensor], points_cube: Tensor) -> Tensor:
        moved = inner(torch.stack([points_cube[FORWARD], self.outer.inverse(points_cube[INVERSE])]))
        return torch.stack([self.outer.forward(moved[FORWARD]), moved[INVERSE]])

    def to(self, device: torch.device | str) -> Composed:
        return Composed(self.outer.to(device), self.inner.to(device))


class MapOf(Map):
    """A map derived from another one, ``of``, in the same cube."""

    def __init__(self, of: Map):
        self.of = of

    @property
    def half_extents_cube(self) -> Tensor:
        return self.of.half_extents_cube


class _Inverted(MapOf):
    def forward(self, points_cube: Tensor) -> Tensor:
        return self.of.inverse(points_cube)

    def inverse(self, points_cube: Tensor) -> Tensor:
        return self.of.forward(points_cube)

    def inverted(self) -> Map:
        return self.of

    def to(self, device: torch.device | str) -> Map:
        return _Inverted(self.of.to(device))


def make_fields(
    settings: FieldSettings, half_size_mm: float, dimension: int, generator: torch.Generator | None = None
) -> Fields:
    """The fields that the settings ask for; raises NephiError as ``check_local_code``."""
    check_local_code(settings, dimension)
    return FIELDS.make(settings.kind, settings, half_size_mm, dimension, generator)


@torch.no_grad()
def code_like(maps: Map, settings: FieldSettings, size: tuple[int, ...]) -> Code:
    """A code whose linear term alone approximates the maps of one pair, by their displacement at its nodes."""
    code = zero_code(settings, maps.half_extents_cube, size)
    nodes = points_between(code.half_extents_cube, size)
    moved = torch.cat([maps.forward(nodes) - nodes, maps.inverse(nodes) - nodes], 1)
    code.local_code[0, : moved.shape[1]] = moved.T.reshape(-1, *reversed(size)) / LINEAR_CUBE
    return code
