"""ITK transforms of points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..space.grid import Grid


def displacement_transform(displacement: np.ndarray, grid: Grid) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(grid.image(displacement.astype(np.float64), vector=True))


def read_transform(path: str | Path, dimension: int) -> sitk.Transform:
    """A transform of points (fixed -> moving): an ITK transform file or a displacement image in LPS mm."""
    path = Path(path)
    if not path.is_file():
        raise NephiError(f"no such transform: {path}")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        try:
            image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
            if image.GetNumberOfComponentsPerPixel() != image.GetDimension():
                raise NephiError(f"{path} is neither a transform nor a displacement image")
            transform = sitk.DisplacementFieldTransform(image)
        except RuntimeError:
            raise NephiError(f"cannot read {path} as a transform or a displacement image") from None
    if transform.GetDimension() != dimension:
        raise NephiError(f"{path} is {transform.GetDimension()}D, the fixed image {dimension}D")
    return transform


def through(transform: sitk.Transform, points_lps_mm: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(p) for p in np.asarray(points_lps_mm, float).tolist()])
