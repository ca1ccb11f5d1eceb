"""Measures a registration and writes its result folder, completely or not at all."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..device import peak_gpu_memory_mb, peak_memory_mb
from ..files.folder import ResultFolder
from ..files.image import write_image
from ..files.transform import displacement_transform, write_transform
from ..files.writing import write_text
from ..measure import quality
from ..measure.evaluate import measure
from ..measure.quality import region_statistics
from ..measure.report import Report
from ..result import Registration
from ..space.grid import Grid
from ..version import __version__
from .page import write_report

_ROUGH_VOXELS = 0.5  # a written transform that errs by more, on average, is none of the map
_CONSISTENCY_MM = 4.0  # between the voxels of the inverse-consistency map


def write_all(
    registration: Registration,
    fixed: sitk.Image,
    moving: sitk.Image,
    folder: Path,
    *,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    regions: sitk.Image | None = None,
    names: tuple[str, str] = ("fixed", "moving"),
    inputs: dict | None = None,
    started: tuple[float, float] | None = None,
    pictures: bool = True,
    progress=None,
) -> Report:
    """Measure the registration and write transforms, images, maps and report; returns the report.

    ``landmarks``: fixed and moving points (n, d) in LPS mm, row by row. ``regions``: labels on the fixed grid
    whose volume change is reported. ``inputs``: what the files were, kept in the report. ``started``: wall clock
    (``time.perf_counter``) and CPU time (``time.process_time``) at the start of the run.
    """
    tell = progress or (lambda stage, fraction, terms: None)
    wall, cpu = started or (time.perf_counter() - registration.seconds, time.process_time())
    r, grid = registration, registration.fixed_grid
    tell("transforms", 0.82, {})
    inverse_grid, inverse_displacement, inverse_error = r.sampled(r.moving_grid, inverse=True)
    coarse, displacement, error = r.sampled(grid)
    transform = displacement_transform(displacement, coarse)
    outside = float(sitk.GetArrayViewFromImage(moving).min())
    tell("warping", 0.88, {})
    warped = grid.resample(moving, transform, sitk.sitkLinear, outside)
    tell("Jacobian determinant", 0.9, {})
    jacobian, jacobian_error = r.jacobian_image(displacement, coarse, _united(r.fixed_mask, regions))

    measured = _measured(r, jacobian, transform, landmarks, regions)
    rough = [*_rough("transform.h5", error, grid), *_rough("inverse_transform.h5", inverse_error, r.moving_grid)]
    report = replace(
        measured,
        warnings=[*measured.warnings, *rough],
        files={"fixed": names[0], "moving": names[1]},
        inputs=inputs,
        transform_error_mm={"forward": error, "inverse": inverse_error},
        jacobian_error=jacobian_error,
    )
    with ResultFolder(folder).replaced() as scratch:
        tell("writing", 0.94, {})
        write_transform(transform, scratch.transform)
        inverse = displacement_transform(inverse_displacement, inverse_grid)
        write_transform(inverse, scratch.inverse_transform)
        write_image(warped, scratch.warped)
        jacobian_image = grid.image(jacobian)
        write_image(jacobian_image, scratch.jacobian)
        seen = grid.coarsened(_CONSISTENCY_MM * r.length_scale)
        consistency = seen.image(inverse_consistency(r, seen))
        write_image(consistency, scratch.inverse_consistency)
        r.save(scratch.registration)
        report = replace(
            report,
            time_s={
                "wall": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
                "registration_wall": r.seconds,
            },
            peak_memory_mb=peak_memory_mb(),
            peak_gpu_memory_mb=peak_gpu_memory_mb(r.device),
        )
        tell("report", 0.97, {})
        if pictures:
            write_report(
                scratch.path,
                report=report.to_dict(),
                fixed=fixed,
                warped=warped,
                moving_before=grid.resample(moving, r.affine.transform(), sitk.sitkLinear, outside),
                jacobian=jacobian_image,
                displacement=coarse.image(displacement, vector=True),
                fixed_mask=r.fixed_mask,
                history=r.history,
                landmark_errors=_landmark_errors(r, landmarks),
            )
        write_text(scratch.report, report.to_json())
    tell("done", 1.0, {})
    return report


def _measured(
    r: Registration,
    jacobian: np.ndarray,
    transform: sitk.Transform,
    landmarks: tuple[np.ndarray, np.ndarray] | None,
    regions: sitk.Image | None,
) -> Report:
    """What is measured of the result and what is known of its making; without what concerns its files."""
    grid = r.fixed_grid
    measured = measure(
        grid,
        jacobian,
        r.forward,
        transform,
        exact=r.fixed_mask is not None,  # outside the mask differences have to do
        inverse=r.inverse,
        alignment=r.affine,
        fixed_mask=r.fixed_mask,
        moving_mask=r.moving_mask,
        landmarks=landmarks,
    )
    by_region = None
    if regions is not None:
        by_region = region_statistics(jacobian, sitk.GetArrayViewFromImage(regions), grid.voxel_volume_mm3)
    return replace(measured, **_facts(r), warnings=[*_warnings(r), *measured.warnings], regions=by_region)


def _landmark_errors(r: Registration, landmarks: tuple[np.ndarray, np.ndarray] | None) -> dict | None:
    """(n,) mm of every landmark, after the alignment alone and after the registration."""
    if landmarks is None:
        return None
    fixed, moving = landmarks
    return {"before": quality.tre_mm(r.affine(fixed), moving), "after": quality.tre_mm(r.forward(fixed), moving)}


def inverse_consistency(registration: Registration, grid: Grid) -> np.ndarray:
    """|inverse(forward(x)) - x| in mm (z, y, x) float32 at the nodes of a grid that lie in the mask, 0 elsewhere."""
    inside = np.ones(grid.shape, bool)
    if registration.fixed_mask is not None:
        mask = grid.resample(registration.fixed_mask, interpolator=sitk.sitkNearestNeighbor)
        inside = sitk.GetArrayViewFromImage(mask) != 0
    out = np.zeros(grid.shape, np.float32)
    for z in range(len(out)):
        points = grid.slab_lps_mm(z, z + 1)[inside[z].reshape(-1)]
        if len(points):
            out[z][inside[z]] = quality.inverse_consistency_mm(registration.forward, registration.inverse, points)
    return out


def _united(mask: sitk.Image | None, regions: sitk.Image | None) -> sitk.Image | None:
    """Where the determinant is wanted exactly: in the mask and in the regions."""
    if mask is None or regions is None:
        return mask if regions is None else regions
    return sitk.Or(mask != 0, regions != 0)


def _warnings(r: Registration):
    yield from r.notes
    for name in r.found_masks:
        yield f"The {name} lung mask was found by a threshold; check it, or give one with --{name}-mask."


def _rough(name: str, error: dict, grid: Grid) -> Iterator[str]:
    if error["mean_mm"] > _ROUGH_VOXELS * min(grid.spacing_mm):
        yield (
            f"{name} differs from the registration's map by {error['mean_mm']:.2f} mm on average: the map changes too "
            "much from voxel to voxel to be written on a grid; look at the folds, and raise the weight of regularity."
        )


def _facts(r: Registration) -> dict[str, Any]:
    """Alignment, settings, device and versions of the run."""
    return {
        "alignment": {
            "method": r.alignment,
            "start": r.alignment_start,
            "score": r.alignment_score,
            "lead": r.alignment_lead,
            "matrix": r.affine.matrix.tolist(),
            "offset_mm": r.affine.offset_mm.tolist(),
        },
        "device": r.device,
        "settings": json.loads(r.settings.to_json()),  # lists for tuples, as they come back from the file
        "versions": {
            "nephi": __version__,
            "torch": torch.__version__,
            "simpleitk": sitk.Version.VersionString(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
