"""The mean of what both fields of a pair say, as one invertible map."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import Map

_TOLERANCE_CUBE = 2e-5  # of the inverse: 3 micrometres in a chest
_ROUNDS = 8  # of the inverse, at most; two or three are enough where the maps do not fold


class Consensus(Map):
    """The mean of a forward map and of its partner's inverse, and the inverse of that mean.

    The two fields err apart from each other, so that their mean errs less (van Harten et al. 2023). With the fields f
    and b, b^-1 is found by a step of Newton's method from f, which b inverts nearly: 2 f - f(b(f)). The forward map
    is then f + (f - f(b(f))) / 2, smooth and differentiable as the fields are; the inverse is found by iteration.
    """

    def __init__(self, of: Map):
        self.of = of

    @property
    def half_extents_cube(self) -> Tensor:
        return self.of.half_extents_cube

    def forward(self, points_cube: Tensor) -> Tensor:
        mapped = self.of.forward(points_cube)
        return mapped + (mapped - self._there_and_back(mapped)) / 2

    def inverse(self, points_cube: Tensor) -> Tensor:
        y = points_cube
        # points b(z) go to (z + f(b(z))) / 2, nearly
        found, back = self.of.inverse(y + (y - self._there_and_back(y)) / 2), self.of.inverse(y)
        for _ in range(_ROUNDS):
            reached = self.forward(found)
            if (reached - y).abs().amax() <= _TOLERANCE_CUBE:
                break
            found = found + back - self.of.inverse(reached)
        return found

    def _there_and_back(self, points_cube: Tensor) -> Tensor:
        """Moving points -> moving points, by the two fields: themselves, but for what these disagree on."""
        return self.of.forward(self.of.inverse(points_cube))

    def to(self, device: torch.device | str) -> Consensus:
        return Consensus(self.of.to(device))
