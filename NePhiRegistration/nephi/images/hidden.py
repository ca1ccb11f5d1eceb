"""What must not count of an image on a working grid: what is excluded, and what lies beyond the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import NephiError
from ..space.affine import Affine
from ..space.grid import Grid
from .coarse import grown

_LEAST_LEFT = 0.25  # of the places to compare, where features do not see beyond the image
_LEAST_SHARE = 1e-6  # of a weighted mean that counts
_ROUNDED = 1e-3  # voxels that a place may seem to lie beyond an image


@dataclass(frozen=True)
class Hidden:
    """Of one image on a grid, (z, y, x) bool: what is ``excluded`` and what lies ``beyond``; None where nothing does.

    ``role``: which image it is, in words.
    """

    role: str
    excluded: Tensor | None
    beyond: Tensor | None

    @property
    def parts(self) -> list[Tensor]:
        return [part for part in (self.excluded, self.beyond) if part is not None]

    def __bool__(self) -> bool:
        return bool(self.parts)

    def seen_over(self, reach: int, ends: int) -> Tensor | None:
        """(z, y, x) bool: what sees anything excluded over ``reach`` voxels, or beyond the image over ``ends``, and one
        voxel more, as it is read between two."""
        both = ((self.excluded, reach), (self.beyond, ends))
        return _any([grown(part, voxels + 1) for part, voxels in both if part is not None])

    def features(self, make: Callable[[Any], Tensor], scaled: Any, device: torch.device) -> Tensor:
        """Features (z, y, x, c) that are weighted means of an image (z, y, x), of what counts alone.

        A mean over a part of the weights (Knutsson and Westin, Normalized and differential convolution, 1993).
        """
        counts = (~torch.stack(self.parts).any(0)).to(device, torch.float32)
        return make(torch.as_tensor(scaled[:]).to(device) * counts) / make(counts).clamp(min=_LEAST_SHARE)

    def without(self, drawn: Tensor | None, grid: Grid, reach: int) -> tuple[Tensor | None, Tensor | None]:
        """Where points are drawn (z, y, x), and what does not count, of features that look over ``reach`` voxels.

        Raises NephiError where what is excluded leaves nothing. On coarse grids features may look too far beyond an
        image; then they do so where little else is left.
        """
        if not self:
            return drawn, None
        drawn = torch.ones(grid.shape, dtype=torch.bool) if drawn is None else drawn
        excluded = None if self.excluded is None else grown(self.excluded, reach + 1)
        if excluded is not None:
            drawn = drawn & ~excluded
            if not drawn.any():
                raise NephiError(
                    f"nothing of the {self.role} image is left to compare: what is excluded, and {reach + 1} "
                    f"voxel{'s' * (reach > 0)} of {grid.spacing_mm[0]:.3g} mm around it, covers all of it"
                )
        if self.beyond is None:
            return drawn, excluded
        for voxels in (reach + 1, 1, 0):
            beyond = grown(self.beyond, voxels)
            left = drawn & ~beyond
            if left.sum() >= _LEAST_LEFT * drawn.sum():
                return left, _any([part for part in (excluded, beyond) if part is not None])
        return drawn, excluded


def beyond(own: Grid, grid: Grid, affine: Affine | None) -> Tensor | None:
    """(z, y, x) bool: which voxels of a grid lie beyond an image's outermost voxel centres, ``affine`` taking them
    there; None where none does."""
    out = torch.zeros(grid.shape, dtype=torch.bool)

    def outside(points: np.ndarray) -> np.ndarray:
        index = own.to_index(points if affine is None else affine(points))
        return np.any((index < -_ROUNDED) | (index > np.array(own.size) - 1 + _ROUNDED), axis=1)

    ends = [[0, n - 1] for n in grid.size[:-1]]
    for z in range(grid.shape[0]):
        corners = grid.to_lps_mm(np.array([[*corner, z] for corner in product(*ends)], float))
        if outside(corners).any():  # else none of the plane is, as the image is convex
            out[z] = torch.from_numpy(outside(grid.slab_lps_mm(z, z + 1)).reshape(grid.shape[1:]))
    return out if out.any() else None


def _any(parts: list[Tensor]) -> Tensor | None:
    return torch.stack(parts).any(0) if parts else None
