"""The battery: pairs of generated chests with exactly known maps, registered like any two scans, without masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import collected_notices
from ..files.folder import ResultFolder
from ..files.transform import read_transform, through
from ..measure.quality import random_points, summary, tre_mm
from ..measure.report import Report
from ..measure.verdict import PASS, Tolerances
from ..registration import register
from ..report.write import write_all
from ..result import Registration
from ..settings import Settings
from ..synthetic.breathing import BreathingPair, BreathingSettings, breathe
from ..synthetic.chest import procedural

_POINTS = 2000  # of the lungs, at which the error is known
_NOISE_MM = 2.0  # side of the voxels whose noise the cases say
_WHOLE = BreathingSettings(one_lung=0.0, cut=0.0, tidal=0.0, still=0.0, rotation_deg=2.0, noise_hu=(15.0, 15.0))
_RIGHT_MM = 2.0  # mean error in mm up to which a result is right, or the longest side of a voxel


@dataclass(frozen=True)
class Case:
    """A pair to register; ``other``: the moving image is of another person, so that no result can be right."""

    name: str
    about: str
    seed: int
    settings: BreathingSettings
    other: int | None = None  # seed of the other person

    def made(self, spacing_mm: float) -> tuple[BreathingPair, sitk.Image]:
        """The pair, and the moving image."""
        pair = self._pair(self.seed, spacing_mm)
        return pair, pair.moving if self.other is None else self._pair(self.other, spacing_mm).moving

    def _pair(self, seed: int, spacing_mm: float) -> BreathingPair:
        x, y, z = (float(factor) * spacing_mm for factor in np.ravel(self.settings.spacing_mm) * np.ones(3))
        low, high = self.settings.noise_hu
        less = (_NOISE_MM / spacing_mm) ** 1.5  # at the same dose: the variance goes with 1 / volume of a voxel
        settings = replace(self.settings, spacing_mm=(x, y, z), noise_hu=(less * low, less * high))
        return breathe(*procedural(seed, spacing_mm), seed, settings)


CASES = (
    Case(
        "quiet-breathing",
        "Quiet breathing: the diaphragm moves by about 10 mm.",
        11,
        replace(_WHOLE, spacing_mm=1.0, tidal=1.0, tidal_mm=(8.0, 12.0)),
    ),
    Case(
        "deep-breathing",
        "Exhale and inhale: the diaphragm moves by about 40 mm.",
        12,
        replace(_WHOLE, spacing_mm=1.0, breath_hold_mm=(38.0, 42.0)),
    ),
    Case(
        "turned",
        "The patient lies turned, by up to 20 degrees about each axis, on another table.",
        13,
        replace(_WHOLE, spacing_mm=1.0, rotation_deg=20.0, breath_hold_mm=(15.0, 25.0)),
    ),
    Case(
        "noisy",
        "Both images at a low dose: noise of 80 HU in voxels of 2 mm, and of 44 HU in voxels of 3 mm.",
        14,
        replace(_WHOLE, spacing_mm=1.0, noise_hu=(80.0, 80.0), breath_hold_mm=(15.0, 25.0)),
    ),
    Case(
        "thick-slices",
        "Slices 2.5 times as thick as the voxels are wide.",
        15,
        replace(_WHOLE, spacing_mm=(1.0, 1.0, 2.5), breath_hold_mm=(15.0, 25.0)),
    ),
    Case(
        "wrong-patient",
        "The scans of two persons: nothing corresponds, and the verdict must not be PASS.",
        16,
        replace(_WHOLE, spacing_mm=1.0, breath_hold_mm=(15.0, 25.0)),
        other=17,
    ),
)  # spacing_mm: in units of the battery's voxels


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case: its measures, and the pair and result they were measured on."""

    case: Case
    measured: dict
    pair: BreathingPair
    result: Registration


def run(
    case: Case,
    folder: Path,
    spacing_mm: float,
    settings: Settings,
    device: str = "auto",
    tolerances: Tolerances | None = None,
    progress: Callable[[str, float, dict], None] | None = None,
) -> Outcome:
    """Register a case, write its result folder and measure it against the truth."""
    pair, moving = case.made(spacing_mm)
    started = time.perf_counter(), time.process_time()
    with collected_notices() as notices:  # they are in the report of the result
        result = register(pair.fixed, moving, settings=settings, device=device, progress=progress)
        result.notes = (*notices, *result.notes)
        report = write_all(
            result,
            pair.fixed,
            moving,
            folder,
            names=(f"{case.name}, fixed", f"{case.name}, moving"),
            started=started,
            outputs=("report",),
            tolerances=tolerances,
        )
    measured = {
        "name": case.name,
        "about": case.about,
        "seed": case.seed,
        "size": list(pair.fixed.GetSize()),
        "spacing_mm": list(pair.fixed.GetSpacing()),
        **(_against_truth(pair, result, folder) if case.other is None else {}),
        "folds": report.folds.count,
        "folds_percent": report.folds.percent,
        **_undone(pair, result),
        **_judged(report),
        "cpu_s": time.process_time() - started[1],
    }
    measured["verdict_right"] = (measured["verdict"] == PASS) == _right(case, measured)
    return Outcome(case, measured, pair, result)


def _right(case: Case, measured: dict) -> bool:
    return case.other is None and measured["tre_mm"]["mean"] <= max(_RIGHT_MM, *measured["spacing_mm"])


def _against_truth(pair: BreathingPair, result: Registration, folder: Path) -> dict:
    """Errors at random points of the fixed lungs: of the maps, the transform file and the determinant."""
    points = random_points(result.fixed_grid, pair.fixed_mask, _POINTS, between=True)
    truth = pair.forward(points)
    file = read_transform(ResultFolder(folder).transform, 3)
    found, true = result.jacobian_determinant(points).astype(float), pair.jacobian(points)
    return {
        "aligned_tre_mm": summary(tre_mm(result.affine(points), truth)),
        "tre_mm": summary(tre_mm(result.forward(points), truth)),
        "file_tre_mm": summary(tre_mm(through(file, points), truth)),
        "inverse_tre_mm": summary(tre_mm(result.inverse(truth), points)),
        "jacobian": {
            "rmse": float(np.sqrt(np.mean((found - true) ** 2))),
            "bias": float(np.mean(found - true)),
            "correlation": float(np.corrcoef(found, true)[0, 1]),
            "true_mean": float(true.mean()),
            "true_sd": float(true.std()),
        },
    }


def _undone(pair: BreathingPair, result: Registration) -> dict:
    """Inverse consistency: how far points of the lungs end from themselves after both maps."""
    points = random_points(result.fixed_grid, pair.fixed_mask, _POINTS)
    return {"inverse_mm": summary(tre_mm(result.inverse(result.forward(points)), points))}


def _judged(report: Report) -> dict:
    verdict, estimate = report.verdict, report.error_estimate_mm
    assert verdict is not None and estimate is not None, "the images are at hand"
    return {
        "verdict": verdict.outcome,
        "reasons": verdict.reasons,
        "expected_error_mm": estimate.mean,
        "bound_mm": estimate.bound_mean,
    }
