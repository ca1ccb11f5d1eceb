"""Frames and the only place that flips, orders or scales axes.

- ``index_xyz``: continuous voxel index of an image, x first; arrays and tensors are indexed z, y, x.
- ``points_lps_mm``: physical space of ITK, millimetres, x to the patient's Left, y Posterior, z Superior.
- ``points_cube``: the registration cube: origin at the centre of what is registered, axes along the
  fixed image's axes, one unit = half of the longest side, so that it is isotropic in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk


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

    def to_lps_mm(self, index_xyz) -> np.ndarray:
        """(..., d) continuous voxel indices, x first -> (..., d) points_lps_mm."""
        return np.asarray(index_xyz, float) @ self._step.T + np.asarray(self.origin_lps_mm)

    def to_index(self, points_lps_mm) -> np.ndarray:
        """(..., d) points_lps_mm -> (..., d) continuous voxel indices, x first."""
        return (np.asarray(points_lps_mm, float) - np.asarray(self.origin_lps_mm)) @ self._inverse_step.T

    def corners_lps_mm(self) -> np.ndarray:
        """(2^d, d) centres of the corner voxels."""
        index = np.stack(np.meshgrid(*[(0, n - 1) for n in self.size], indexing="ij"), -1)
        return self.to_lps_mm(index.reshape(-1, self.dimension))

    def slab_lps_mm(self, start: int, stop: int) -> np.ndarray:
        """Points of the slices start..stop of the last axis (first of the array): (n, d)."""
        axes = [np.arange(start, stop), *[np.arange(n) for n in self.shape[1:]]]
        index_zyx = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        return self.to_lps_mm(index_zyx[..., ::-1].reshape(-1, self.dimension))

    def slices(self, start: int, stop: int) -> Grid:
        """The part of the grid that holds the slices start..stop of the last axis (first of the array)."""
        origin = self.to_lps_mm([0] * (self.dimension - 1) + [start])
        return Grid((*self.size[:-1], stop - start), self.spacing_mm, tuple(map(float, origin)), self.direction)

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


@dataclass(frozen=True)
class Cube:
    """The registration cube: an oriented box in LPS mm, scaled by one number for all axes."""

    centre_lps_mm: tuple[float, ...]
    half_sides_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def around(cls, points_lps_mm: np.ndarray, direction: tuple[float, ...], margin_mm: float = 0.0) -> Cube:
        """The smallest box along ``direction`` that holds the points (n, d), and a margin on every side."""
        d = points_lps_mm.shape[-1]
        axes = np.reshape(direction, (d, d))
        along = points_lps_mm @ axes
        low, high = along.min(0), along.max(0)
        half = np.maximum((high - low) / 2, 1e-3) + margin_mm
        return cls(tuple(axes @ ((low + high) / 2)), tuple(half), tuple(direction))

    @property
    def dimension(self) -> int:
        return len(self.half_sides_mm)

    @property
    def axes(self) -> np.ndarray:
        return np.reshape(np.asarray(self.direction, float), (self.dimension, self.dimension))

    @property
    def unit_mm(self) -> float:
        """Millimetres of one unit of the cube."""
        return max(self.half_sides_mm)

    @property
    def upper_cube(self) -> np.ndarray:
        """The box's upper corner in its own frame; the lower one is minus it."""
        return np.asarray(self.half_sides_mm) / self.unit_mm

    def to_cube(self, points_lps_mm) -> np.ndarray:
        """(..., d) points_lps_mm -> (..., d) points_cube."""
        return (np.asarray(points_lps_mm, float) - np.asarray(self.centre_lps_mm)) @ self.axes / self.unit_mm

    def to_lps_mm(self, points_cube) -> np.ndarray:
        """(..., d) points_cube -> (..., d) points_lps_mm."""
        return np.asarray(points_cube, float) @ self.axes.T * self.unit_mm + np.asarray(self.centre_lps_mm)

    def grid(self, spacing_mm: float, lower_cube=None, upper_cube=None) -> Grid:
        """The grid of cubic voxels along the cube's axes that covers the box between the two corners."""
        upper = self.upper_cube if upper_cube is None else np.asarray(upper_cube)
        lower = -self.upper_cube if lower_cube is None else np.asarray(lower_cube)
        size = np.ceil((upper - lower) * self.unit_mm / spacing_mm - 1e-6).astype(int) + 1
        spacing = (float(spacing_mm),) * self.dimension
        return Grid(tuple(int(n) for n in size), spacing, tuple(self.to_lps_mm(lower)), self.direction)
