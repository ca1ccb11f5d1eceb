"""Pairs of other contrast or motion with known truth: nephi and its peers on the same pairs, each in its own process.

    python -m benchmarks.contrast --out DIR [--pairs brain_t2 ...] [--methods nephi greedy_nmi elastix_mi convexadam]

The moving image of a pair gets another contrast after the alignment; motion and landmarks stay those of the pair.
Those of the last two lines are of one contrast, with large motion and without masks.

- ``brain_t1``, ``brain_t1_shaded``, ``brain_t2``, ``brain_shaded``: a T1 brain of 2 mm voxels and a copy of it moved by
  4 mm by a known smooth map (error at 2,000 points of the brain): as T1, brighter and under a coil's weak shading, with
  the contrast of T2, and with that under a coil's shading.
- ``brain_t1_fine``, ``brain_t2_fine``: as ``brain_t1_shaded`` and ``brain_t2``, another brain moved by 3 mm by a map
  with finer detail; ``brain_t1_1mm``: the first brain likewise, in voxels of 1 mm.
- ``head_t1``: as ``brain_t1_fine``, within a made head, both images under noise of their own (error in the brain).
- ``lungs_mr``: the breath-hold CT ``breathhold_case01`` and its inhale with the contrast of an MR image.
- ``liver_mixed``: a liver MR pair, the moving intensities folded, so that two tissues share each.
- ``thorax_cbct``: phases 60 and 10 of ``popi_4dct``, the moving one with a cone beam's scatter, noise and offset.
- ``thorax_phases``: the same phases, the moving one with contrast agent, a CT enhanced in part of its soft tissue.
- ``liver_far_19``, ``liver_far_23``: liver MR pairs whose liver is moved on by a known smooth map, to 20 mm in all.
- ``lungs_mr_alone``: the breath-hold pair, both images with the contrast of an MR image, voxels of 3.7 mm.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.space.grid import Grid

from . import pairs, peers
from .appearances import around, as_cone_beam, as_enhanced, as_mr, as_t2, folded, noisy, shaded, smooth_noise

BRAIN_MM, POINTS = 2.0, 2000
# mm: smoothness, and deviation along each axis, of the noises that make a motion
SMOOTH: tuple[tuple[float, float], ...] = ((14.0, 2.5),)
FINE = ((14.0, 1.8), (6.0, 0.8))
FAR_MM, ORGAN_MM, FADING_MM = 20.0, 30.0, 45.0  # motion in all; where it is whole, and over which it fades
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Make = Callable[[Path, int], pairs.Prepared]  # writes a pair into a folder, as ``pairs.prepare`` does


def as_scanned_again(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brighter, and under a coil's weak shading."""
    return 1.1 * shaded(values, rng, 0.1)


def as_it_is(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values


METHODS = ("nephi", "greedy_nmi", "elastix_mi", "convexadam")


def prepare(case: str, folder: Path, seed: int = 1) -> pairs.Prepared:
    """Write a pair as ``pairs.prepare`` does, its moving image with another contrast."""
    make, change = CASES[case]
    prepared = make(folder, seed)
    moving = sitk.ReadImage(str(folder / "moving.nii.gz"), sitk.sitkFloat32)
    values = change(sitk.GetArrayFromImage(moving).astype(float), np.random.default_rng(seed))
    sitk.WriteImage(Grid.of(moving).image(values.astype(np.float32)), str(folder / "moving.nii.gz"))
    ends = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{role}.nii.gz"))) for role in ("fixed", "moving")]
    low, high = (float(np.mean([np.percentile(end, p) for end in ends])) for p in (0.5, 99.5))
    prepared.window = prepared.window if case.startswith("thorax") else [low, high]
    (folder / "prepared.json").write_text(json.dumps(asdict(prepared), indent=1))
    return prepared


def moved_brain(
    folder: Path,
    seed: int,
    name: str = "A",
    motion: tuple[tuple[float, float], ...] = SMOOTH,
    mm: float = BRAIN_MM,
    head: bool = False,
) -> pairs.Prepared:
    """A brain and its moved copy: moving(y) = fixed(y + u(y)), so that the points y and y + u(y) correspond.

    ``head``: within a made head, whose layers move with it; each image under noise of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = pairs.data_folder() / f"brain_mr/oasis_condlapirn_{name}.nii.gz"
    rng, whole = np.random.default_rng(seed), sitk.ReadImage(str(file), sitk.sitkFloat32)
    shrunk = [max(1, round(mm / side)) for side in whole.GetSpacing()]
    brain = sitk.BinShrink(whole, shrunk)
    fixed = sitk.BinShrink(around(whole, rng), shrunk) if head else brain
    grid = Grid.of(fixed)
    u = np.zeros((*grid.shape, 3))
    for smooth_mm, moved_mm in motion:
        u += moved_mm * np.stack([smooth_noise(grid.shape, smooth_mm / grid.spacing_mm[0], rng) for _ in range(3)], -1)
    field = sitk.DisplacementFieldTransform(sitk.Cast(grid.image(u, vector=True), sitk.sitkVectorFloat64))
    moving, seen = (sitk.Resample(one, fixed, field, sitk.sitkLinear, 0.0) for one in (fixed, brain))
    shown = np.argwhere(sitk.GetArrayFromImage(seen) > 0)
    at = grid.to_lps_mm(shown[rng.choice(len(shown), POINTS, replace=False)][:, ::-1].astype(float))
    partners = np.array([field.TransformPoint(point) for point in at.tolist()])
    for role, image, points in (("fixed", fixed, partners), ("moving", moving, at)):
        if head:
            values = sitk.GetArrayFromImage(image)
            image = grid.image(noisy(values, float(np.percentile(values, 99)), rng).astype(np.float32))
        sitk.WriteImage(image, str(folder / f"{role}.nii.gz"))
        np.savetxt(folder / f"{role}_landmarks.csv", points, delimiter=",", header="x,y,z", comments="")
    apart = float(np.linalg.norm(partners - at, axis=1).mean())
    return pairs.Prepared(
        [1.0] * 3, [0.0] * 3, [0.0, 1.0], False, POINTS, apart, apart, list(grid.size), list(grid.spacing_mm)
    )


def pair(name: str) -> Make:
    """A pair as it is."""
    return lambda folder, seed: pairs.prepare(name, folder)


def far(name: str) -> Make:
    """A pair that is moved on along its own mean motion, around its landmarks: moving'(y) = moving(y + u(y))."""

    def make(folder: Path, seed: int) -> pairs.Prepared:
        prepared = pairs.prepare(name, folder)
        moving = sitk.ReadImage(str(folder / "moving.nii.gz"), sitk.sitkFloat32)
        ends = [np.loadtxt(folder / f"{role}_landmarks.csv", delimiter=",", skiprows=1) for role in ("fixed", "moving")]
        motion = (ends[1] - ends[0]).mean(0)
        more = motion * (FAR_MM / np.linalg.norm(motion) - 1)
        grid = Grid.of(moving)
        away = np.linalg.norm(grid.points_lps_mm() - ends[1].mean(0) - more / 2, axis=-1)
        share = np.exp(-0.5 * (np.maximum(away - ORGAN_MM, 0) / FADING_MM) ** 2)
        u = -more * share.reshape(*grid.shape, 1)
        field = sitk.DisplacementFieldTransform(sitk.Cast(grid.image(u, vector=True), sitk.sitkVectorFloat64))
        at = ends[1]
        for _ in range(60):  # of the inverse: u shrinks distances
            at = at + ends[1] - np.array([field.TransformPoint(point) for point in at.tolist()])
        sitk.WriteImage(sitk.Resample(moving, moving, field, sitk.sitkLinear, 0.0), str(folder / "moving.nii.gz"))
        np.savetxt(folder / "moving_landmarks.csv", at, delimiter=",", header="x,y,z", comments="")
        prepared.tre_raw_mm = prepared.tre_aligned_mm = float(np.linalg.norm(at - ends[0], axis=1).mean())
        return prepared

    return make


def lungs_alone(folder: Path, seed: int) -> pairs.Prepared:
    """The breath-hold pair without its masks, coarse, its fixed image with the contrast of an MR image."""
    prepared = pairs.prepare("breathhold_case01", folder)
    for role in ("fixed", "moving"):
        image = sitk.BinShrink(sitk.ReadImage(str(folder / f"{role}.nii.gz"), sitk.sitkFloat32), [2] * 3)
        if role == "fixed":
            values = as_mr(sitk.GetArrayFromImage(image).astype(float), np.random.default_rng(seed + 1))
            image = Grid.of(image).image(values.astype(np.float32))
        sitk.WriteImage(image, str(folder / f"{role}.nii.gz"))
    prepared.masked = False
    return prepared


CASES: dict[str, tuple[Make, Change]] = {
    "brain_t1": (moved_brain, lambda values, rng: values + 0.01 * rng.standard_normal(values.shape) * (values > 0)),
    "brain_t1_shaded": (moved_brain, as_scanned_again),
    "brain_t1_fine": (partial(moved_brain, name="B", motion=FINE), as_scanned_again),
    "brain_t1_1mm": (partial(moved_brain, motion=FINE, mm=1.0), as_scanned_again),
    "head_t1": (partial(moved_brain, name="B", motion=FINE, head=True), as_scanned_again),
    "brain_t2": (moved_brain, as_t2),
    "brain_t2_fine": (partial(moved_brain, name="B", motion=FINE), as_t2),
    "brain_shaded": (moved_brain, lambda values, rng: shaded(as_t2(values, rng), rng, 0.25)),
    "lungs_mr": (pair("breathhold_case01"), as_mr),
    "liver_mixed": (pair("liver_mr_23_cyc_5_4"), folded),
    "thorax_cbct": (pair("popi_4dct"), as_cone_beam),
    "thorax_phases": (pair("popi_4dct"), as_enhanced),
    "liver_far_19": (far("liver_mr_19_cyc_1_6"), as_it_is),
    "liver_far_23": (far("liver_mr_23_cyc_1_4"), as_it_is),
    "lungs_mr_alone": (lungs_alone, as_mr),
}


if __name__ == "__main__":
    sys.exit(peers.made_pairs(__doc__, CASES, prepare, list(CASES), METHODS, ["balanced"]))
