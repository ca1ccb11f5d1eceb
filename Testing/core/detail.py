"""A slice full of detail, and the same moved by a smooth map."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from nephi.space.grid import Grid

SIDE, MM = 64, 2.0
GRID = Grid((SIDE, SIDE), (MM, MM), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))


def smooth(values: np.ndarray, deviation: float) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(values), deviation))


def moved_slice(
    smooth_over: float = 7.0, detail_of: float = 1.5, moved_mm: float = 1.5 * MM
) -> tuple[sitk.Image, sitk.Image, np.ndarray, np.ndarray]:
    """The slice, the same moved by about 1.5 voxels, and points of both that correspond.

    ``smooth_over``, ``detail_of``: voxels over which motion and intensities are smooth.
    """
    rng = np.random.default_rng(0)
    shape = (SIDE, SIDE)
    detail = smooth(rng.standard_normal(shape), detail_of)
    away = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2))
    fixed = GRID.image(np.where(away < 0.8, 0.5 + 0.15 * detail / detail.std(), 0).clip(0, 1).astype(np.float32))
    u = np.stack([smooth(rng.standard_normal(shape), smooth_over) for _ in range(2)], -1)
    u *= moved_mm / np.linalg.norm(u, axis=-1)[away < 0.7].mean()
    field = sitk.DisplacementFieldTransform(GRID.image(u.astype(np.float64), vector=True))
    moving = sitk.Resample(fixed, fixed, field, sitk.sitkLinear, 0.0)
    at = np.argwhere(away < 0.7)[::5, ::-1] * MM
    return fixed, moving, np.array([field.TransformPoint(point) for point in at.tolist()]), at
