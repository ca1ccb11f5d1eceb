"""Frames, and where the voxels of an image lie.

- ``index_xyz``: continuous voxel index of an image, x first; arrays and tensors are indexed z, y, x.
- ``points_lps_mm``: physical space of ITK, millimetres, x to the patient's Left, y Posterior, z Superior.
- ``points_cube``: the registration cube: origin at the centre of what is registered, axes along the
  fixed image's axes, one unit = half of the longest side, so that it is isotropic in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk

Box = tuple[slice, ...]  # of an array, z first, each with its start and stop


def slabs(shape: Sequence[int], voxels: int, least: int = 1) -> Iterator[slice]:
    """Consecutive slabs along the first axis of an array, of at most ``voxels`` voxels or ``least`` thick."""
    depth = max(least, voxels // math.prod(shape[1:]))
    for start in range(0, shape[0], depth):
        yield slice(start, min(start + depth, shape[0]))


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie: size (x, y, z), spacing, origin and direction, as in ITK.

    ``direction`` is the row-major d x d matrix whose columns are the directions of the image axes.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_lps_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def dimension(self) -> int:
        return len(self.size)

    @property
    def axes(self) -> np.ndarray:
        """Direction matrix (d, d)."""
        return np.reshape(np.asarray(self.direction, float), (self.dimension, self.dimension))

    @cached_property
    def _step(self) -> np.ndarray:
        return self.axes * np.asarray(self.spacing_mm)

    @cached_property
    def _inverse_step(self) -> np.ndarray:
        return np.linalg.inv(self._step)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array: z, y, x."""
        return tuple(reversed(self.size))

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing_mm))

    @property
    def longest_side_mm(self) -> float:
        return max(n * s for n, s in zip(self.size, self.spacing_mm, strict=True))

    def to_lps_mm(self, index_xyz) -> np.ndarray:
        """(..., d) continuous voxel indices, x first -> (..., d) points_lps_mm."""
        return np.asarray(index_xyz, float) @ self._step.T + np.asarray(self.origin_lps_mm)

    def to_index(self, points_lps_mm) -> np.ndarray:
        """(..., d) points_lps_mm -> (..., d) continuous voxel indices, x first."""
        return (np.asarray(points_lps_mm, float) - np.asarray(self.origin_lps_mm)) @ self._inverse_step.T

    def holds(self, points_lps_mm) -> np.ndarray:
        """(...) bool: whether points (..., d) lie in a voxel of the grid."""
        index_xyz = self.to_index(points_lps_mm)
        return np.all((index_xyz >= -0.5) & (index_xyz < np.array(self.size) - 0.5), axis=-1)

    def meets(self, other: Grid) -> bool:
        """Whether one of about 16 voxels along each axis of either grid lies in the other."""

        def some(grid: Grid) -> np.ndarray:
            return grid.every(tuple(max(1, n // 16) for n in grid.size)).points_lps_mm()

        return bool(self.holds(some(other)).any() or other.holds(some(self)).any())

    def corners_lps_mm(self) -> np.ndarray:
        """(2^d, d) centres of the corner voxels."""
        index = np.stack(np.meshgrid(*[(0, n - 1) for n in self.size], indexing="ij"), -1)
        return self.to_lps_mm(index.reshape(-1, self.dimension))

    def points_lps_mm(self) -> np.ndarray:
        """(z, y, x, d) centres of all voxels."""
        return self.slab_lps_mm(0, self.shape[0]).reshape(*self.shape, self.dimension)

    def slab_lps_mm(self, start: int, stop: int) -> np.ndarray:
        """Points of the slices start..stop of the last axis (first of the array): (n, d)."""
        axes = [np.arange(start, stop), *[np.arange(n) for n in self.shape[1:]]]
        index_zyx = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        return self.to_lps_mm(index_zyx[..., ::-1].reshape(-1, self.dimension))

    def slabs(self, voxels: int) -> Iterator[slice]:
        """Consecutive slabs of the array, each of at most ``voxels`` voxels or of one slice."""
        return slabs(self.shape, voxels)

    def slices(self, start: int, stop: int) -> Grid:
        """The part of the grid with the slices start..stop of the last axis (first of the array)."""
        origin = self.to_lps_mm([0] * (self.dimension - 1) + [start])
        return Grid((*self.size[:-1], stop - start), self.spacing_mm, tuple(map(float, origin)), self.direction)

    def part(self, box: Box) -> Grid:
        """The part of the grid in a box of its array."""
        origin = self.to_lps_mm([along.start for along in reversed(box)])
        size = tuple(along.stop - along.start for along in reversed(box))
        return Grid(size, self.spacing_mm, tuple(map(float, origin)), self.direction)

    def every(self, steps_xyz: tuple[int, ...]) -> Grid:
        """Every n-th voxel along each axis, from the first one."""
        size = tuple(-(-n // step) for n, step in zip(self.size, steps_xyz, strict=True))
        spacing = tuple(s * step for s, step in zip(self.spacing_mm, steps_xyz, strict=True))
        return Grid(size, spacing, self.origin_lps_mm, self.direction)

    def coarsened(self, spacing_mm: float) -> Grid:
        """A grid over the same voxel centres' box with about this spacing, never finer than the grid itself."""
        old = np.array(self.size) - 1
        wanted = np.ceil(old * np.array(self.spacing_mm) / spacing_mm).astype(int)
        nodes = np.minimum(np.maximum(wanted, 1), np.maximum(old, 1)) + 1
        spacing = old * np.array(self.spacing_mm) / (nodes - 1)
        return Grid(tuple(int(n) for n in nodes), tuple(map(float, spacing)), self.origin_lps_mm, self.direction)

    def same_as(self, other: Grid) -> bool:
        """Same voxels up to rounding (a thousandth of a voxel at the far corner)."""
        if self.size != other.size:
            return False
        gap = np.abs(self.corners_lps_mm() - other.corners_lps_mm()).max()
        return bool(gap < 1e-3 * min(self.spacing_mm))

    def resample(self, image: sitk.Image, transform=None, interpolator=sitk.sitkLinear, outside=0.0, pixel=None):
        """``image`` seen on this grid through ``transform`` (points of this grid -> points of the image)."""
        transform = sitk.Transform(self.dimension, sitk.sitkIdentity) if transform is None else transform
        pixel = image.GetPixelID() if pixel is None else pixel
        frame = (self.size, transform, interpolator, self.origin_lps_mm, self.spacing_mm, self.direction)
        return sitk.Resample(image, *frame, float(outside), pixel)

    def image(self, array: np.ndarray, vector: bool = False) -> sitk.Image:
        """A SimpleITK image of ``array`` (z, y, x[, d]) that lies on this grid."""
        image = sitk.GetImageFromArray(array, isVector=vector)
        image.SetOrigin(self.origin_lps_mm)
        image.SetSpacing(self.spacing_mm)
        image.SetDirection(self.direction)
        return image
