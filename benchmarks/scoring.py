"""The one evaluation every method gets, from its map fixed -> moving (aligned frame, LPS mm)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

CONSISTENCY_POINTS = 20_000


def read_map(folder: Path, inverse: bool = False) -> sitk.Transform | None:
    """transform.h5 (nephi) or displacement.mha (peers) as a transform; None if there is none."""
    prefix = "inverse_" if inverse else ""
    saved, field = folder / f"{prefix}transform.h5", folder / f"{prefix}displacement.mha"
    if saved.exists():
        return sitk.ReadTransform(str(saved))
    if field.exists():
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    return None


def move(transform: sitk.Transform, points_lps_mm: np.ndarray) -> np.ndarray:
    """(n, 3) points_lps_mm through the transform."""
    return np.array([transform.TransformPoint(p) for p in np.asarray(points_lps_mm, float).tolist()])


def jacobian_determinant(field: sitk.Image) -> np.ndarray:
    """det of d(x + u)/dx of a displacement field (LPS mm), central differences; array (z, y, x)."""
    u = sitk.GetArrayViewFromImage(field)
    inverse_step = np.linalg.inv(np.reshape(field.GetDirection(), (3, 3)) * np.array(field.GetSpacing()))
    by_index = np.stack(np.gradient(u, axis=(2, 1, 0)), -1)  # (z, y, x, component, index axis)
    return np.linalg.det(by_index @ inverse_step.astype(u.dtype) + np.eye(3, dtype=u.dtype))


def _dice(transform: sitk.Transform, prepared: dict, moving: sitk.Image, fixed: sitk.Image) -> float:
    """Mean over the labels of the fixed image."""
    affine = sitk.AffineTransform(np.diag(prepared["scale"]).ravel().tolist(), prepared["offset"])
    both = sitk.CompositeTransform([affine, transform])  # the last one is applied first
    warped = sitk.Resample(moving, fixed, both, sitk.sitkNearestNeighbor, 0.0)
    a, b = map(sitk.GetArrayViewFromImage, (warped, fixed))
    parts = [(a == label, b == label) for label in np.unique(b) if label]
    return float(np.mean([2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in parts]))


def evaluate(prepared_folder: Path, result_folder: Path) -> dict:
    """Scores of a result: TRE in original moving mm, folds and inverse consistency in the mask or the labels (without
    either: in the whole image), Dice of the warped moving mask or labels. None where it cannot be measured."""
    prepared = json.loads((prepared_folder / "prepared.json").read_text())
    transform, inverse = read_map(result_folder), read_map(result_folder, inverse=True)
    if transform is None:
        raise FileNotFoundError(f"neither transform.h5 nor displacement.mha in {result_folder}")
    fixed = sitk.ReadImage(str(prepared_folder / "fixed.nii.gz"))
    scores = dict.fromkeys(("tre_mean", "tre_median", "tre_p95", "dice"))
    if (prepared_folder / "fixed_landmarks.csv").exists():
        points = [np.loadtxt(prepared_folder / f"{i}_landmarks.csv", delimiter=",", skiprows=1, ndmin=2)
                  for i in ("fixed", "moving")]  # fmt: skip
        found = move(transform, points[0]) * prepared["scale"] + prepared["offset"]
        error = np.linalg.norm(found - points[1], axis=1)
        measured = {"tre_mean": error.mean(), "tre_median": np.median(error), "tre_p95": np.percentile(error, 95)}
        scores |= {key: float(value) for key, value in measured.items()}

    region, given = np.ones(fixed.GetSize()[::-1], bool), None
    if prepared["masked"]:
        names = "moving_mask_original", "fixed_mask"
        given = [sitk.ReadImage(str(prepared_folder / f"{name}.nii.gz"), sitk.sitkUInt8) > 0 for name in names]
    elif (prepared_folder / "fixed_labels.nii.gz").exists():
        names = "moving_labels", "fixed_labels"
        given = [sitk.ReadImage(str(prepared_folder / f"{name}.nii.gz"), sitk.sitkUInt8) for name in names]
    if given is not None:
        region, scores["dice"] = sitk.GetArrayViewFromImage(given[1]) > 0, _dice(transform, prepared, *given)

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(),
        fixed.GetDirection())  # fmt: skip
    determinant = jacobian_determinant(field)[region]
    scores |= {"folds": int((determinant <= 0).sum()), "folds_percent": 100 * float((determinant <= 0).mean()),
               "jacobian_min": float(determinant.min()),
               "jacobian_max": float(determinant.max()),
               "log_jacobian_sd": float(np.log(np.maximum(determinant, 1e-3)).std())}  # fmt: skip

    scores["inverse_consistency"] = None
    if inverse is not None:
        index = np.argwhere(region)[:, ::-1]
        count = min(CONSISTENCY_POINTS, len(index))
        index = index[np.random.default_rng(0).choice(len(index), count, replace=False)]
        step = np.reshape(fixed.GetDirection(), (3, 3)) * np.array(fixed.GetSpacing())
        start = index @ step.T + np.array(fixed.GetOrigin())
        back = move(inverse, move(transform, start))
        scores["inverse_consistency"] = float(np.linalg.norm(back - start, axis=1).mean())

    report = result_folder / "report.json"
    own = json.loads(report.read_text())["folds"]["count"] if report.exists() else None
    scores["folds_own"] = own  # nephi counts the folds of its exact field
    return scores
