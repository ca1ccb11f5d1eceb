"""The mean of both fields of a pair, as one invertible map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .code import nodes
from .held import HeldShift, PointMap
from .maps import Map, MapOf, iterated_inverse
from .sliding import Sliding

_SPACING_CUBE = 0.055  # between the nodes of the corrections: 8 mm in a chest; 4 mm give the same errors
_SMOOTH_SPACING_CUBE = 0.04  # between the nodes of a smoothed mean: 6 mm in a chest
_NEAR_CUBE = 4e-4  # smaller errors are corrected by one step, to about a five-hundredth, an eighth at worst
_SMOOTH_NEAR_CUBE = 1e-4  # the same for a smoothed mean, where a fifth is left beyond the cube
_ROUNDS = 8  # of the inverse, at most; one or two are enough where the maps do not fold


class Consensus(MapOf):
    """The mean of a forward map and the inverse of its partner, and the inverse of that mean.

    The errors of the two fields are partly independent, so that the mean has a smaller error (van Harten et al. 2023).
    With the fields f and b, b^-1 is found by a step of Newton's method from f, which b nearly inverts: 2 f - f(b(f)).
    The forward map is then f + c, c = (f - f(b(f))) / 2; the inverse, b + e, is found by iteration. Both corrections
    are small and smooth: they are evaluated once at nodes and represented by splines, so that a point costs as much as
    in one field, and in the exact inverse about four times that.

    ``smooth``: the distances in the cube along x, y (, z) over which the mean is smoothed, as fields follow the noise
    between the nodes of their code. The mean is then a spline itself; its inverse is approximated by a spline and
    iterated until it is exact. None, or 0 along each axis: no smoothing.
    """

    def __init__(self, of: Map, smooth: Sequence[float] = ()):
        super().__init__(of)
        self.smooth = tuple(smooth) if any(smooth) else ()

    def forward(self, points_cube: Tensor) -> Tensor:
        if self.smooth:
            return points_cube + self.shift(points_cube)
        return self._mean(points_cube)

    def inverse(self, points_cube: Tensor) -> Tensor:
        if self.smooth:
            return self._solved(points_cube, self.nearly_back, near=_SMOOTH_NEAR_CUBE)
        return self._solved(points_cube, self.of.inverse, self._to_inverse)

    def nearly_back(self, points_cube: Tensor) -> Tensor:
        if self.smooth:  # in a quarter of the time of a field
            return points_cube + self._smoothed_back(points_cube)
        return self.of.inverse(points_cube) + self._to_inverse(points_cube)

    def _mean(self, points_cube: Tensor) -> Tensor:
        return self.of.forward(points_cube) + self._to_mean(points_cube)

    def smoothed(self, smooth: Sequence[float]) -> Consensus:
        """The same mean, smoothed over other distances; previous evaluations are reused."""
        other = Consensus(self.of, smooth)
        other.__dict__["_to_mean"], other.__dict__["_held_mean"] = self._to_mean, self._held_mean
        return other

    @cached_property
    def shift(self) -> HeldShift:
        """The displacement of the mean as a spline, smoothed if requested."""
        return self._held_mean.smoothed([distance / _SMOOTH_SPACING_CUBE for distance in self.smooth])

    @property
    def held_shift(self) -> HeldShift | None:
        return self.shift if self.smooth else None

    @cached_property
    def _held_mean(self) -> HeldShift:
        """The mean's displacement as a spline, not smoothed."""
        size = nodes(self.half_extents_cube.tolist(), _SMOOTH_SPACING_CUBE)
        return HeldShift(lambda x: self._mean(x) - x, self.half_extents_cube, size)

    @cached_property
    def _to_mean(self) -> HeldShift:
        """c, from the forward field to the mean."""

        def correction(points_cube: Tensor) -> Tensor:
            mapped = self.of.forward(points_cube)
            return (mapped - self.of.forward(self.of.inverse(mapped))) / 2

        return self._held(correction)

    @cached_property
    def _to_inverse(self) -> HeldShift:
        """e, from the inverse field to the mean's inverse, nearly."""

        def correction(points_cube: Tensor) -> Tensor:
            y, back = points_cube, self.of.inverse(points_cube)
            # points b(z) go to (z + f(b(z))) / 2, nearly
            return self.of.inverse(y + (y - self.of.forward(back)) / 2) - back

        return self._held(correction)

    @cached_property
    def _smoothed_back(self) -> HeldShift:
        """The displacement of the smoothed mean's inverse."""
        return self._held(lambda y: self._solved(y, self.of.inverse) - y)

    def _held(self, correction: PointMap) -> HeldShift:
        return HeldShift(correction, self.half_extents_cube, nodes(self.half_extents_cube.tolist(), _SPACING_CUBE))

    def _solved(
        self, y: Tensor, inverse: PointMap, correction: PointMap | None = None, near: float = _NEAR_CUBE
    ) -> Tensor:
        """The points that the mean takes to ``y``, see ``iterated_inverse``."""
        return iterated_inverse(self.forward, inverse, y, _ROUNDS, correction, near)

    def to(self, device: torch.device | str) -> Consensus:
        return Consensus(self.of.to(device), self.smooth)


def consensus(of: Map, smooth: Sequence[float] = ()) -> Map:
    """The consensus of a pair's maps; for sliding maps that of each side, made to meet, smoothed within."""
    if isinstance(of, Sliding):
        return Sliding(Consensus(of.within, smooth), Consensus(of.around), of.border, of.bodies).meeting()
    return Consensus(of, smooth)


def consensus_in(maps: Map) -> Consensus | None:
    """The consensus that maps are, or that their inner side is if they slide; else None."""
    if isinstance(maps, Sliding):
        maps = maps.apart().within
    return maps if isinstance(maps, Consensus) else None


def as_optimised(maps: Map) -> Map:
    """The maps whose consensus these are, or the same maps if they are no consensus."""
    if isinstance(maps, Sliding):
        parts = maps.apart()
        sides = as_optimised(parts.within), as_optimised(parts.around)
        return Sliding(*sides, parts.border, parts.bodies).meeting()
    return maps.of if isinstance(maps, Consensus) else maps
