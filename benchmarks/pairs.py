"""The pairs of the benchmark and the untimed preparation that gives every method the same input.

The moving image is aligned by a diagonal affine y = scale * x + offset (LPS mm, fixed -> moving) that
matches mean and standard deviation of the two masks' voxel coordinates, and resampled on the grid of the
fixed image, extended so that the aligned moving mask lies inside. Points of that common grid are in the
*aligned* frame; errors are measured in original moving millimetres, after the affine.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from . import ROOT

CT_WINDOW_HU = (-1000.0, 200.0)
MARGIN_MM = 10.0


@dataclass(frozen=True)
class PairFiles:
    """Files of one pair, relative to the data folder; ``masks`` is given, threshold or none."""

    fixed: str
    moving: str
    fixed_landmarks: str
    moving_landmarks: str
    fixed_mask: str | None = None
    moving_mask: str | None = None
    modality: str = "ct"
    masks: str = "given"
    dropped_landmarks: int = 0  # at the end of the list, excluded by the authors of the data


def _breath_hold(case: str) -> PairFiles:
    f, m = f"breathhold_{case}/exhale", f"breathhold_{case}/inhale"
    return PairFiles(
        f"{f}.nii.gz",
        f"{m}.nii.gz",
        f"{f}_landmarks_lps_mm.csv",
        f"{m}_landmarks_lps_mm.csv",
        f"{f}_mask.nii.gz",
        f"{m}_mask.nii.gz",
    )


def _liver(dataset: str, state: str) -> PairFiles:
    folder = f"liver_mr/dataset{dataset}"
    return PairFiles(
        f"{folder}/exhMaster_unmasked.force_direction.mha",
        f"{folder}/{state}.force_direction.mha",
        f"{folder}/exhMasterLMliver.vtk",
        f"{folder}/{state}LMliver.vtk",
        modality="mr",
        masks="none",
    )


PAIRS = {
    "breathhold_case01": _breath_hold("case01"),
    "breathhold_case02": _breath_hold("case02"),
    "lung_ct_followup": PairFiles(
        "lung_ct_followup/baseline.mha", "lung_ct_followup/followup.mha",
        "lung_ct_followup/baseline_landmarks_lps_mm.csv", "lung_ct_followup/followup_landmarks_lps_mm.csv",
        "lung_ct_followup/baseline_mask.mha", "lung_ct_followup/followup_mask.mha"),
    "popi_4dct": PairFiles(
        "popi_4dct/phase60_5x5x6mm.nii.gz", "popi_4dct/phase10_5x5x6mm.nii.gz",
        "popi_4dct/phase60_landmarks_lps_mm.csv", "popi_4dct/phase10_landmarks_lps_mm.csv",
        masks="threshold", dropped_landmarks=1),
    "liver_mr_19_cyc_1_6": _liver("19", "cyc_1_6"),
    "liver_mr_19_cyc_1_9": _liver("19", "cyc_1_9"),
    "liver_mr_23_cyc_1_4": _liver("23", "cyc_1_4"),
    "liver_mr_23_cyc_5_4": _liver("23", "cyc_5_4"),
}  # fmt: skip
GROUPS = {
    "main": ["breathhold_case01", "breathhold_case02", "lung_ct_followup"],
    "liver_mr": [name for name in PAIRS if name.startswith("liver_mr")],
    "all": list(PAIRS),
}


def data_folder() -> Path:
    """NEPHI_DATA, else ../shared/data beside the project."""
    default = ROOT.parent / "shared" / "data"
    return Path(os.environ.get("NEPHI_DATA", default))


def read_landmarks(path: Path) -> np.ndarray:
    """CSV with header x,y,z or ASCII VTK points -> (n, 3) points_lps_mm."""
    if path.suffix == ".vtk":
        text = path.read_text()
        head = re.search(r"POINTS\s+(\d+)\s+\w+", text)
        values = text[head.end() :].split()[: 3 * int(head[1])]
        return np.array(values, float).reshape(-1, 3)
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)


def lung_mask(ct: sitk.Image) -> sitk.Image:
    """Air below -300 HU that does not touch the sides of the volume: its two largest parts, closed.

    The first and last slice may be touched: that is where the trachea leaves the field of view.
    """
    parts = sitk.ConnectedComponent(ct < -300)
    labels = sitk.GetArrayViewFromImage(parts)
    sides = np.unique(np.concatenate([labels[:, [0, -1], :].ravel(), labels[:, :, [0, -1]].ravel()]))
    parts = sitk.ChangeLabel(parts, {int(label): 0 for label in sides if label})
    parts = sitk.RelabelComponent(parts, sortByObjectSize=True)
    mask = sitk.BinaryThreshold(parts, 1, 2)
    return sitk.Cast(sitk.BinaryMorphologicalClosing(mask, [1] * 3), sitk.sitkUInt8)


def mask_points(mask: sitk.Image) -> np.ndarray:
    """Centres of the voxels in the mask, (n, 3) points_lps_mm."""
    index = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0)[:, ::-1]
    step = np.reshape(mask.GetDirection(), (3, 3)) * np.array(mask.GetSpacing())
    return index @ step.T + np.array(mask.GetOrigin())


def common_grid(fixed: sitk.Image, boxes: list, region: str, spacing_mm: float | None) -> sitk.Image:
    """Empty image along the fixed image's axes that covers the boxes of points_lps_mm.

    region "full" also covers the whole fixed image (and, at native spacing, keeps its voxels where they
    are); "lungs" crops to the boxes.
    """
    spacing = np.array([spacing_mm] * 3 if spacing_mm else fixed.GetSpacing())
    axes = np.reshape(fixed.GetDirection(), (3, 3))
    along = [(points - np.array(fixed.GetOrigin())) @ axes / spacing for points in boxes]
    margin = MARGIN_MM / spacing
    low = np.min([a.min(0) - margin for a in along], axis=0) if along else np.zeros(3)
    high = np.max([a.max(0) + margin for a in along], axis=0) if along else np.zeros(3)
    if region == "full" or not along:
        extent = (np.array(fixed.GetSize()) - 1) * np.array(fixed.GetSpacing()) / spacing
        low, high = np.minimum(low, 0.0), np.maximum(high, extent)
    low, high = np.floor(low + 1e-6), np.ceil(high - 1e-6)
    grid = sitk.Image([int(n) for n in high - low + 1], sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection(fixed.GetDirection())
    grid.SetOrigin((np.array(fixed.GetOrigin()) + axes @ (low * spacing)).tolist())
    return grid


@dataclass
class Prepared:
    """What was written for one pair; ``scale`` and ``offset`` are the affine aligned -> moving, LPS mm."""

    scale: list[float]
    offset: list[float]
    window: list[float]
    masked: bool
    landmarks: int
    tre_raw_mm: float
    tre_aligned_mm: float
    size: list[int]
    spacing_mm: list[float]


def prepare(name: str, folder: Path, region: str = "full", spacing_mm: float | None = None) -> Prepared:
    """Write fixed, moving, masks, landmarks and prepared.json of a pair into the folder."""
    pair, data = PAIRS[name], data_folder()
    fixed = sitk.ReadImage(str(data / pair.fixed), sitk.sitkFloat32)
    moving = sitk.ReadImage(str(data / pair.moving), sitk.sitkFloat32)
    points = [read_landmarks(data / f) for f in (pair.fixed_landmarks, pair.moving_landmarks)]
    fixed_lm, moving_lm = (p[: len(p) - pair.dropped_landmarks] for p in points)
    if pair.masks == "given":
        masks = [sitk.ReadImage(str(data / f), sitk.sitkUInt8) for f in (pair.fixed_mask, pair.moving_mask)]
    else:
        masks = [lung_mask(i) for i in (fixed, moving)] if pair.masks == "threshold" else []
    landmarks = fixed_lm, moving_lm
    return write_prepared(folder, fixed, moving, masks, landmarks, pair.modality == "ct", region, spacing_mm)


def write_prepared(
    folder: Path,
    fixed: sitk.Image,
    moving: sitk.Image,
    masks: list[sitk.Image],
    landmarks: tuple[np.ndarray, np.ndarray],
    ct: bool,
    region: str = "full",
    spacing_mm: float | None = None,
) -> Prepared:
    """The same of images (float32), both masks or none, and landmarks (n, 3) in LPS mm."""
    fixed_lm, moving_lm = landmarks
    scale, offset, boxes = np.ones(3), np.zeros(3), []
    if masks:
        f, m = (mask_points(mask) for mask in masks)
        scale = m.std(0) / f.std(0)
        offset = m.mean(0) - scale * f.mean(0)
        boxes = [f, (m - offset) / scale]
    grid = common_grid(fixed, boxes, region, spacing_mm)
    affine = sitk.AffineTransform(np.diag(scale).ravel().tolist(), offset.tolist())
    values = np.concatenate([sitk.GetArrayViewFromImage(i).ravel()[::7] for i in (fixed, moving)])
    window = CT_WINDOW_HU if ct else tuple(np.percentile(values, (0.5, 99.5)))
    outside = -1000.0 if ct else float(values.min())

    folder.mkdir(parents=True, exist_ok=True)
    identity, nearest = sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor
    for label, image, transform in (("fixed", fixed, identity), ("moving", moving, affine)):
        out = sitk.Resample(image, grid, transform, sitk.sitkLinear, outside)
        sitk.WriteImage(out, str(folder / f"{label}.nii.gz"))
    for label, mask, transform in zip(("fixed", "moving"), masks, (identity, affine), strict=False):
        out = sitk.Resample(mask, grid, transform, nearest, 0.0, sitk.sitkUInt8)
        sitk.WriteImage(out, str(folder / f"{label}_mask.nii.gz"))
        sitk.WriteImage(mask, str(folder / f"{label}_mask_original.nii.gz"))
    np.savetxt(folder / "fixed_landmarks.csv", fixed_lm, delimiter=",", header="x,y,z", comments="")
    np.savetxt(folder / "moving_landmarks.csv", moving_lm, delimiter=",", header="x,y,z", comments="")
    aligned = (moving_lm - offset) / scale
    np.savetxt(folder / "aligned_landmarks.csv", aligned, delimiter=",", header="x,y,z", comments="")
    prepared = Prepared(
        scale=scale.tolist(), offset=offset.tolist(), window=[float(w) for w in window], masked=bool(masks),
        landmarks=len(fixed_lm),
        tre_raw_mm=float(np.linalg.norm(fixed_lm - moving_lm, axis=1).mean()),
        tre_aligned_mm=float(np.linalg.norm(scale * fixed_lm + offset - moving_lm, axis=1).mean()),
        size=list(grid.GetSize()), spacing_mm=list(grid.GetSpacing()))  # fmt: skip
    (folder / "prepared.json").write_text(json.dumps(asdict(prepared), indent=1))
    return prepared
