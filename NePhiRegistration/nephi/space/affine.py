"""Affine maps of points in LPS mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class Affine:
    """``moving = matrix @ fixed + offset`` on points (..., d) in LPS mm."""

    matrix: np.ndarray
    offset_mm: np.ndarray

    @classmethod
    def identity(cls, dimension: int) -> Affine:
        return cls(np.eye(dimension), np.zeros(dimension))

    def __call__(self, points_lps_mm) -> np.ndarray:
        return np.asarray(points_lps_mm, float) @ self.matrix.T + self.offset_mm

    def scales(self) -> np.ndarray:
        """(d,): how many times as long a line along each axis of the fixed frame becomes."""
        return np.linalg.norm(self.matrix, axis=0)

    def inverse(self) -> Affine:
        back = np.linalg.inv(self.matrix)
        return Affine(back, -back @ self.offset_mm)

    def transform(self) -> sitk.AffineTransform:
        transform = sitk.AffineTransform(len(self.offset_mm))
        transform.SetMatrix(self.matrix.ravel())
        transform.SetTranslation(self.offset_mm)
        return transform
