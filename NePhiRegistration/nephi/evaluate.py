"""Measures of a transform file, whichever method wrote it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from . import quality
from .errors import NephiError
from .space import Grid


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


def evaluate(
    transform: str | Path,
    fixed: sitk.Image,
    inverse: str | Path | None = None,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict:
    """TRE, folds by central differences, non-diffeomorphic volume, |J| statistics, inverse consistency, Dice."""
    grid = Grid.of(fixed)
    forward = read_transform(transform, grid.dimension)
    to_field = sitk.TransformToDisplacementFieldFilter()
    to_field.SetReferenceImage(fixed)
    to_field.SetOutputPixelType(sitk.sitkVectorFloat32)
    displacement = sitk.GetArrayFromImage(to_field.Execute(forward))
    mask = None if fixed_mask is None else sitk.GetArrayViewFromImage(fixed_mask) != 0
    jacobian = quality.displacement_jacobian(displacement, grid)
    report = {
        "folds": quality.fold_summary(jacobian, mask),
        "non_diffeomorphic": quality.non_diffeomorphic_volume(displacement, grid, mask),
        "jacobian": quality.jacobian_statistics(jacobian, mask),
        "fold_regions": quality.fold_regions(jacobian, grid, mask),
    }
    if mask is not None:
        report["volume"] = quality.volume_change(jacobian, mask, grid.voxel_volume_mm3)
        if moving_mask is not None:
            warped = grid.resample(moving_mask, forward, sitk.sitkNearestNeighbor)
            report["dice"] = quality.dice(sitk.GetArrayViewFromImage(warped) != 0, mask)
    if landmarks is not None:
        a, b = landmarks
        report["tre_mm"] = {
            "before": quality.summary(quality.tre_mm(a, b)),
            "after": quality.summary(quality.tre_mm(through(forward, a), b)),
        }
    if inverse is not None:
        back = read_transform(inverse, grid.dimension)
        rng = np.random.default_rng(0)
        inside = np.flatnonzero(np.ones(grid.shape, bool) if mask is None else mask)
        index_zyx = np.unravel_index(rng.choice(inside, min(5000, len(inside)), replace=False), grid.shape)
        points = grid.to_lps_mm(np.stack(index_zyx[::-1], -1))
        errors = quality.inverse_consistency_mm(lambda p: through(forward, p), lambda p: through(back, p), points)
        report["inverse_consistency_mm"] = quality.summary(errors)
    return report
