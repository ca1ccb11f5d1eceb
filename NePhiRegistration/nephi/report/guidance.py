"""How far the result of a guided registration follows its guidance: for the report and as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..both import ROLES
from ..fitting.guidance import bodies_lps_mm
from ..fitting.initial import through
from ..measure import quality
from ..result import Registration
from ..space.rigid import rigidly_moved

_POINTS = 2000  # at which a region's change of volume is measured, at most
_RIGID_MM = 0.2  # from a body's best rigid motion, beyond which a warning is given
_SAME_MM = 1e-3  # landmarks nearer to each other than this are the same


def measured_guidance(r: Registration, transform: sitk.Transform) -> dict[str, Any] | None:
    """The report's entry ``guidance``: how far the result is from what was given; None without guidance.

    ``transform``: the forward map, as it is written. ``landmarks``: their residual in mm after the alignment and after
    the registration, and how many lie within their standard deviation. ``labels``: Dice of each. ``excluded``: the
    excluded volumes and the change that their surroundings gave them. ``rigid``: the distance of each body from its
    best rigid motion. ``volume_kept``: the change of each label. ``initial``: how far the refinement moved points.
    """
    g = r.guidance
    found: dict[str, Any] = {}
    if g.landmarks_lps_mm is not None:
        fixed, moving = g.landmarks_lps_mm
        sd_mm = np.full(len(fixed), r.settings.guidance.landmarks_sd_mm)
        sd_mm = sd_mm if g.landmarks_sd_mm is None else g.landmarks_sd_mm
        after = quality.tre_mm(r.forward(fixed), moving)
        found["landmarks"] = {
            "sd_mm": {"least": float(sd_mm.min()), "most": float(sd_mm.max())},
            "before": quality.summary(quality.tre_mm(r.affine(fixed), moving)),
            "after": quality.summary(after),
            "within": int((after <= sd_mm).sum()),
        }
    if g.labels is not None:
        found["labels"] = list(_overlaps(r, g.labels, transform))
    excluded = {role: _change(r, mask, role) for role, mask in zip(ROLES, g.excluded, strict=True) if mask is not None}
    if excluded:
        found["excluded"] = excluded
    if g.rigid is not None:
        found["rigid"] = [{"label": label, **_rigidity(r, points)} for label, points in bodies_lps_mm(g.rigid)]
    if g.volume_kept is not None:
        labels = [label for label in np.unique(sitk.GetArrayViewFromImage(g.volume_kept)).tolist() if label]
        found["volume_kept"] = [
            {"label": int(label), **_change(r, g.volume_kept == label, "fixed")} for label in labels
        ]
    if g.initial is not None:
        points = quality.random_points(r.fixed_grid, r.fixed_mask, _POINTS)
        refined_mm = quality.tre_mm(r.forward(points), through(g.initial, points))
        found["initial"] = {"refined_mm": quality.summary(refined_mm)}
    return found or None


def guided_landmarks(r: Registration, landmarks: list[dict] | None) -> tuple[list[dict] | None, list[str]]:
    """The rows of the evaluation landmarks, each marked if it ``guided`` the registration, and notes for the user.

    Unchanged where no landmarks guided it.
    """
    given = r.guidance.landmarks_lps_mm
    if given is None or not landmarks:
        return landmarks, []
    axes = "xyz"[: given[0].shape[1]]
    points_lps_mm = np.array([[row[f"{axis}_lps_mm"] for axis in axes] for row in landmarks])
    near = (np.linalg.norm(points_lps_mm[:, None] - given[0], axis=-1) < _SAME_MM).any(1)
    marked = [row | {"guided": bool(did)} for row, did in zip(landmarks, near, strict=True)]
    if not near.any():
        return marked, []
    return marked, [
        f"{near.sum()} of the {len(near)} landmarks at which the error is measured guided the registration: the "
        "error there is no independent measure, and the verdict leaves them out."
    ]


def bent_bodies(found: dict[str, Any] | None, scale: float) -> Iterator[str]:
    """A warning if bodies that were to stay rigid did not; ``scale``: of lengths, below 1 for small bodies."""
    rigid = [row["residual_mm"]["max"] for row in (found or {}).get("rigid", ())]
    bent = [residual_mm for residual_mm in rigid if residual_mm > _RIGID_MM * scale]
    if bent:
        yield (
            f"{len(bent)} of the {len(rigid)} bodies that were to stay rigid are bent by up to {max(bent):.2f} mm: "
            "check there for what obstructs them."
        )


def guidance_lines(found: dict[str, Any]) -> Iterator[str]:
    """One line for each kind of guidance, to be printed."""
    if landmarks := found.get("landmarks"):
        after = landmarks["after"]
        yield (
            f"{after['n']:g} landmarks end {after['mean']:.2f} mm away on average "
            f"({landmarks['before']['mean']:.2f} mm after alignment), {landmarks['within']} within their deviation"
        )
    if labels := found.get("labels"):
        before, after = (np.mean([row[when] for row in labels]) for when in ("dice_before", "dice_after"))
        yield f"{len(labels)} labels, mean Dice {before:.3f} -> {after:.3f}"
    for role, change in found.get("excluded", {}).items():
        yield f"{change['volume_ml']:.1f} ml of the {role} image left out, change {change['change_percent']:+.1f} %"
    if rigid := found.get("rigid"):
        yield f"{len(rigid)} rigid bodies, at most {max(row['residual_mm']['max'] for row in rigid):.2f} mm from rigid"
    if kept := found.get("volume_kept"):
        yield f"volume kept to {max(abs(row['change_percent']) for row in kept):.1f} %"
    if initial := found.get("initial"):
        yield f"initial transform refined by {initial['refined_mm']['mean']:.2f} mm on average"


def _overlaps(r: Registration, labels: tuple[sitk.Image, sitk.Image], transform: sitk.Transform) -> Iterator[dict]:
    fixed = sitk.GetArrayViewFromImage(labels[0])
    before, after = (
        sitk.GetArrayFromImage(r.fixed_grid.resample(labels[1], through, sitk.sitkNearestNeighbor))
        for through in (r.affine.transform(), transform)
    )
    for label in np.unique(fixed).tolist():
        if label:
            here = fixed == label
            dice = {
                "dice_before": quality.dice(before == label, here),
                "dice_after": quality.dice(after == label, here),
            }
            yield {"label": int(label), **dice}


def _change(r: Registration, mask: sitk.Image, role: str) -> dict[str, float]:
    """The volume of a region and its change, in percent, on the way to the other image."""
    grid = r.fixed_grid if role == "fixed" else r.moving_grid
    points = quality.random_points(grid, mask, _POINTS)
    ratio = r.jacobian_determinant(points) if role == "fixed" else 1 / r.jacobian_determinant(r.inverse(points))
    volume_ml = float((sitk.GetArrayViewFromImage(mask) != 0).sum()) * grid.voxel_volume_mm3 / 1000
    return {"volume_ml": volume_ml, "change_percent": 100 * (float(np.mean(ratio)) - 1)}


def _rigidity(r: Registration, points_lps_mm: np.ndarray) -> dict[str, Any]:
    end = r.forward(points_lps_mm)
    rigid = rigidly_moved(torch.from_numpy(points_lps_mm)[None], torch.from_numpy(end)[None])[0].numpy()
    return {
        "voxels": len(points_lps_mm),
        "residual_mm": quality.summary(np.linalg.norm(end - rigid, axis=-1)),
        "shift_mm": float(np.linalg.norm((end - points_lps_mm).mean(0))),
    }
