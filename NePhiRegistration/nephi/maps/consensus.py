"""The mean of what both fields of a pair say, as one invertible map."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .code import nodes
from .held import HeldShift, PointMap
from .maps import Map
from .sliding import Sliding

_SPACING_CUBE = 0.055  # of the nodes that hold the corrections: 8 mm in a chest; 4 mm give the same errors
_TOLERANCE_CUBE = 2e-5  # of the inverse: 3 micrometres in a chest
_ROUNDS = 8  # of the inverse, at most; one or two are enough where the maps do not fold


class Consensus(Map):
    """The mean of a forward map and of its partner's inverse, and the inverse of that mean.

    The two fields err apart from each other, so that their mean errs less (van Harten et al. 2023). With the fields f
    and b, b^-1 is found by a step of Newton's method from f, which b inverts nearly: 2 f - f(b(f)). The forward map
    is then f + c, c = (f - f(b(f))) / 2; the inverse, b + e, is found by iteration. Both corrections are small and
    smooth: they are found once at nodes and held as splines, so that a point costs what it costs in one field, in the
    inverse, which is exact, about four times that.
    """

    def __init__(self, of: Map):
        self.of = of

    @property
    def half_extents_cube(self) -> Tensor:
        return self.of.half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        return self.of.forward(points_cube) + self._to_mean(points_cube)

    def inverse(self, points_cube: Tensor) -> Tensor:
        back = self.of.inverse(points_cube)
        return self._solved(points_cube, back, back + self._to_inverse(points_cube))

    @cached_property
    def _to_mean(self) -> HeldShift:
        """c, from the forward field to the mean."""

        def correction(points_cube: Tensor) -> Tensor:
            mapped = self.of.forward(points_cube)
            return (mapped - self.of.forward(self.of.inverse(mapped))) / 2

        return self._held(correction)

    @cached_property
    def _to_inverse(self) -> HeldShift:
        """e, from the inverse field to the mean's inverse."""

        def correction(points_cube: Tensor) -> Tensor:
            y, back = points_cube, self.of.inverse(points_cube)
            # points b(z) go to (z + f(b(z))) / 2, nearly
            near = self.of.inverse(y + (y - self.of.forward(back)) / 2)
            return self._solved(y, back, near) - back

        return self._held(correction)

    def _held(self, correction: PointMap) -> HeldShift:
        return HeldShift(correction, self.half_extents_cube, nodes(self.half_extents_cube.tolist(), _SPACING_CUBE))

    def _solved(self, y: Tensor, back: Tensor, near: Tensor) -> Tensor:
        """The points that the mean takes to ``y``; ``back``: where the inverse field takes y, ``near``: a first guess.

        Steps as long as the inverse field makes them, at the points where it is not good enough yet.
        """
        found, left = near, torch.arange(len(y), device=y.device)
        for _ in range(_ROUNDS):
            reached = self.forward(found[left])
            missed = (reached - y[left]).abs().amax(-1) > _TOLERANCE_CUBE
            if not missed.any():
                break
            left, reached = left[missed], reached[missed]
            found = found.index_add(0, left, back[left] - self.of.inverse(reached))
        return found

    def to(self, device: torch.device | str) -> Consensus:
        return Consensus(self.of.to(device))


def consensus(of: Map) -> Map:
    """The consensus of a pair's maps; of maps that slide, of the smooth ones alone: the slip is exact both ways."""
    return Sliding(Consensus(of.smooth), of.along, of.border) if isinstance(of, Sliding) else Consensus(of)


def as_optimised(of: Map) -> Map:
    """The maps that a consensus is of, or the same where there is none."""
    if isinstance(of, Sliding):
        return Sliding(as_optimised(of.smooth), of.along, of.border) if isinstance(of.smooth, Consensus) else of
    return of.of if isinstance(of, Consensus) else of
