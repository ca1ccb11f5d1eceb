"""Measures a registration and writes its result folder, completely or not at all."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..both import ROLES, Both
from ..device import peak_gpu_memory_mb, peak_memory_mb, release_freed_memory, versions
from ..files.dicom_stack import SERIES
from ..files.folder import DEFAULT_OUTPUTS, OUTPUTS, ResultFolder, check_outputs
from ..files.image import write_image
from ..files.nifti_writing import write_slices
from ..files.transform import displacement_transform, through, write_transform
from ..files.writing import write_text
from ..images.sampling import nearest_through
from ..images.warp import warped_slices
from ..measure import quality
from ..measure.estimate import beginning, stages
from ..measure.evaluate import measure, write_landmark_errors
from ..measure.report import Report
from ..measure.timetable import Tell, in_stages
from ..measure.verdict import Tolerances, judged
from ..result import Registration, lowest
from ..space.grid import Box, Grid
from .guidance import bent_bodies, guided_landmarks, measured_guidance
from .page import write_report
from .regions import measured_regions
from .ventilation import Ventilation, further_maps

_ROUGH_VOXELS = 0.5  # a written transform that errs by more, on average, is none of the map
_DISAGREEMENT_MM = 4.0  # between the voxels of its map


def write_all(
    registration: Registration,
    fixed: sitk.Image,
    moving: sitk.Image,
    folder: Path,
    *,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    labels: Both[sitk.Image] | None = None,
    regions: sitk.Image | None = None,
    moving_regions: sitk.Image | None = None,
    names: tuple[str, str] = ("fixed", "moving"),
    inputs: dict | None = None,
    hashes: dict[str, dict] | None = None,
    started: tuple[float, float] | None = None,
    outputs: Collection[str] = DEFAULT_OUTPUTS,
    tolerances: Tolerances | None = None,
    progress: Callable[[str, float, dict], None] | None = None,
) -> Report:
    """Measure the registration and write its transforms, report.json and the other ``outputs``; returns the report.

    The transforms and the registration come first: where the folder holds no complete result, they can be used while
    the rest is made. An older result stays until the new one is complete. ``landmarks``: fixed and moving points
    (n, d) in LPS mm, row by row. ``labels``: label maps of both images, whose agreement is measured. ``regions``:
    labels on the fixed grid that are measured one by one, ``moving_regions``: the same on the moving grid, see
    ``measured_regions``. ``inputs``, ``hashes``: what the files were, kept in the report. ``tolerances``: what the
    verdict goes by. ``started``: wall clock (``time.perf_counter``) and CPU time (``time.process_time``) at the start
    of the run. ``progress(stage, fraction, terms)``: as in ``register``.
    Raises NephiError for unknown outputs, and where files cannot be written.
    """
    check_outputs(outputs)
    r, grid, target, images = registration, registration.fixed_grid, ResultFolder(folder), Both(fixed, moving)
    wall, cpu = started or (time.perf_counter() - r.seconds, time.process_time())
    tell = _timetable(r, images, outputs, progress)
    begin = partial(_begin, tell)
    with target.replaced() as scratch:
        begin("transforms")
        maps = _write_transforms(r, scratch, tell)
        forward = maps.transforms.fixed
        r.save(scratch.registration)
        with target.shown_ahead([scratch.transform, scratch.inverse_transform, scratch.registration]):
            begin("Jacobian determinant")
            where, exact = _united(r.fixed_mask, regions), "exact-jacobian" in outputs
            box, jacobian, jacobian_error = r.jacobian_image(maps.displacement, maps.grid, where, exact)
            begin("measures")
            measured = _measured(r, jacobian, box, maps.transforms, landmarks, labels)
            ventilation = None
            if where is not None and (regions is not None or "ventilation" in outputs):
                ventilation = Ventilation.of(images, forward, box, where, r.length_scale)
            rows = measured_regions(Both(regions, moving_regions), jacobian, box, ventilation, forward, r.affine)
            measured = replace(measured, regions=rows)
            _write_jacobian(jacobian, box, grid, ventilation, outputs, scratch, tell)
            determinant = grid.part(box).image(jacobian) if "report" in outputs else None
            del jacobian, ventilation  # the largest arrays
            begin("expected error")
            trust = r.trust(fixed, moving, forward)
            measured = judged(measured, trust.estimate(), trust.share_above, _voxel_mm(r), tolerances)
            if "error-map" in outputs:
                write_image(trust.expected, scratch.error_map)
                write_image(trust.bound, scratch.error_bound)
            begin("warping")
            warped = _write_warped(moving, grid, maps, outputs, scratch, tell)
            if "disagreement" in outputs:
                begin("forward-backward difference")
                seen = grid.coarsened(_DISAGREEMENT_MM * r.length_scale)
                write_image(seen.image(fields_disagreement(r, seen)), scratch.fields_disagreement)
            if measured.landmarks is not None:
                write_landmark_errors(scratch.landmark_errors, measured.landmarks)
            report = replace(
                measured,
                warnings=[*measured.warnings, *maps.rough(r)],
                files={"fixed": names[0], "moving": names[1]},
                inputs=inputs,
                provenance=_provenance(r, images, hashes),
                outputs=[name for name in OUTPUTS if name in outputs],
                transform_error_mm={"forward": maps.errors.fixed, "inverse": maps.errors.moving},
                jacobian_error=jacobian_error,
                time_s={
                    "wall": time.perf_counter() - wall,
                    "cpu": time.process_time() - cpu,
                    "registration_wall": r.seconds,
                },
                peak_memory_mb=peak_memory_mb(),
                peak_gpu_memory_mb=peak_gpu_memory_mb(r.device),
            )
            if warped is not None and determinant is not None:
                begin("report")
                write_report(
                    scratch.path,
                    report=report.to_dict(),
                    fixed=fixed,
                    warped=warped,
                    moving=moving,
                    alignment=r.affine.transform(),
                    jacobian=determinant,
                    displacement=maps.grid.image(maps.displacement, vector=True),
                    fixed_mask=r.fixed_mask,
                    expected_error=trust.expected,
                    history=r.history,
                )
            write_text(scratch.report, report.to_json())
    tell("done", 1.0, {})
    return report


def _timetable(
    r: Registration,
    images: Both[sitk.Image],
    outputs: Collection[str],
    progress: Callable[[str, float, dict], None] | None,
) -> Tell:
    """Progress of the stages after the registration."""
    sizes = images.fixed.GetSize(), images.fixed.GetSpacing(), images.moving.GetSize()
    expected = stages(r.settings, *sizes, r.device, outputs)
    done = beginning(expected)
    return in_stages(progress, {name: seconds for name, seconds in expected.items() if name not in done})


def _begin(tell: Tell, stage: str) -> None:
    release_freed_memory()  # of the stage before: those of large images need much, each of another kind
    tell(stage, 0.0, {})


@dataclass(frozen=True)
class _Maps:
    """Both maps as written, from the fixed and from the moving image, and the error of writing them.

    ``displacement``: of the forward one in LPS mm (z, y, x, d) on a coarse ``grid`` over the fixed image.
    """

    transforms: Both[sitk.Transform]
    errors: Both[dict]
    displacement: np.ndarray
    grid: Grid

    def rough(self, r: Registration) -> Iterator[str]:
        """Warnings about transforms that do not represent their map."""
        names, grids = ("transform.h5", "inverse_transform.h5"), (r.fixed_grid, r.moving_grid)
        for name, error, grid in zip(names, self.errors, grids, strict=True):
            if error["mean_mm"] > _ROUGH_VOXELS * min(grid.spacing_mm):
                yield (
                    f"{name} differs from the registration's map by {error['mean_mm']:.2f} mm on average: the map "
                    "changes too much from voxel to voxel to be written on a grid; look at the folds, and raise the "
                    "weight of regularity."
                )


def _write_transforms(r: Registration, scratch: ResultFolder, tell: Tell) -> _Maps:
    def written(image_grid: Grid, inverse: bool, path: Path) -> tuple[sitk.Transform, dict, np.ndarray, Grid]:
        grid, displacement, error = r.sampled(image_grid, inverse=inverse)
        transform = displacement_transform(displacement, grid)
        write_transform(transform, path)
        return transform, error, displacement, grid

    transform, error, displacement, grid = written(r.fixed_grid, False, scratch.transform)
    tell("transforms", 0.5, {})
    inverse, inverse_error, *_ = written(r.moving_grid, True, scratch.inverse_transform)
    return _Maps(Both(transform, inverse), Both(error, inverse_error), displacement, grid)


def _write_jacobian(
    jacobian: np.ndarray,
    box: Box,
    grid: Grid,
    ventilation: Ventilation | None,
    outputs: Collection[str],
    scratch: ResultFolder,
    tell: Tell,
) -> None:
    """Writes the determinant and the maps derived from it, given in a box of the grid, if requested."""
    if not {"jacobian", "exact-jacobian"}.isdisjoint(outputs):
        _begin(tell, "writing")
        spread = _told(_spread(jacobian, box, grid), grid.shape[0], "writing", tell)
        write_slices(spread, np.float32, grid, scratch.jacobian)
    for values, path in further_maps(jacobian, ventilation, outputs, scratch):
        write_slices(_spread(values, box, grid, 0.0), np.float32, grid, path)


def _write_warped(
    moving: sitk.Image, grid: Grid, maps: _Maps, outputs: Collection[str], scratch: ResultFolder, tell: Tell
) -> sitk.Image | None:
    """Slice by slice if possible; the pictures of the report need the whole image."""
    slices = warped_slices(moving, grid, maps.displacement, maps.grid, lowest(moving))
    warped = None
    if "report" in outputs:
        warped = np.stack(list(slices))
        slices = iter(warped)
    if "warped" in outputs:
        kind = sitk.GetArrayViewFromImage(moving).dtype
        write_slices(_told(slices, grid.shape[0], "warping", tell), kind, grid, scratch.warped)
    return None if warped is None else grid.image(warped)


def _voxel_mm(r: Registration) -> float:
    """The longest side of a voxel of either image."""
    return max(*r.fixed_grid.spacing_mm, *r.moving_grid.spacing_mm)


def _told(slices: Iterator[np.ndarray], many: int, stage: str, tell: Tell) -> Iterator[np.ndarray]:
    for number, values in enumerate(slices):
        yield values
        tell(stage, (number + 1) / many, {})


def _spread(values: np.ndarray, box: Box, grid: Grid, around: float = 1.0) -> Iterator[np.ndarray]:
    """Values in a box as slices of the whole grid, with a constant around it."""
    empty = np.full(grid.shape[1:], around, values.dtype)
    for place in range(grid.shape[0]):
        if not box[0].start <= place < box[0].stop:
            yield empty
            continue
        part = empty.copy()
        part[box[1:]] = values[place - box[0].start]
        yield part


def _measured(
    r: Registration,
    jacobian: np.ndarray,
    box: Box,
    transforms: Both[sitk.Transform],
    landmarks: tuple[np.ndarray, np.ndarray] | None,
    labels: Both[sitk.Image] | None,
) -> Report:
    """The measures of the result and how it was made, except what concerns its files.

    ``transforms``: as they were written, from the fixed and from the moving image.
    """
    grid = r.fixed_grid
    measured = measure(
        grid,
        jacobian,
        r.forward,
        transforms.fixed,
        exact=r.fixed_mask is not None,  # outside the mask differences have to do
        box=box,
        consistent=(partial(through, transforms.fixed), partial(through, transforms.moving)),
        moving_grid=r.moving_grid,
        fields=(r.fields.forward, r.fields.inverse),
        alignment=r.affine,
        fixed_mask=r.fixed_mask,
        moving_mask=r.moving_mask,
        landmarks=landmarks,
        labels=labels,
    )
    each, told = guided_landmarks(r, measured.landmarks)
    guidance = measured_guidance(r, transforms.fixed)
    warnings = [*_warnings(r), *measured.warnings, *told, *bent_bodies(guidance, r.length_scale)]
    return replace(measured, **_facts(r), warnings=warnings, landmarks=each, guidance=guidance)


def fields_disagreement(registration: Registration, grid: Grid) -> np.ndarray:
    """|inverse(forward(x)) - x| of the two fields, in mm (z, y, x) at a grid's nodes in the mask, 0 elsewhere."""
    inside = np.ones(grid.shape, bool)
    if registration.fixed_mask is not None:
        inside = nearest_through(registration.fixed_mask, grid, None, 0.0) != 0
    out, fields = np.zeros(grid.shape, np.float32), registration.fields
    for z in range(len(out)):
        points = grid.slab_lps_mm(z, z + 1)[inside[z].reshape(-1)]
        if len(points):
            out[z][inside[z]] = quality.inverse_consistency_mm(fields.forward, fields.inverse, points)
    return out


def _united(mask: sitk.Image | None, regions: sitk.Image | None) -> sitk.Image | None:
    """Where the determinant is needed exactly: in the mask and in the regions."""
    if mask is None or regions is None:
        return mask if regions is None else regions
    return sitk.Or(mask != 0, regions != 0)


def _warnings(r: Registration):
    yield from r.notes
    for name in r.found_masks:
        yield f"The {name} lung mask was found by a threshold; check it, or give one with --{name}-mask."


def _facts(r: Registration) -> dict[str, Any]:
    """Alignment, settings, device and versions of the run."""
    return {
        "alignment": {
            "method": r.alignment.method,
            "start": r.alignment.start,
            "score": r.alignment.score,
            "lead": r.alignment.lead,
            "matrix": r.affine.matrix.tolist(),
            "offset_mm": r.affine.offset_mm.tolist(),
        },
        "device": r.device,
        "configured": list(r.configured),
        "settings": json.loads(r.settings.to_json()),  # lists for tuples, as they come back from the file
        "versions": versions(),
    }


def _provenance(r: Registration, images: Both[sitk.Image], hashes: dict[str, dict] | None) -> dict[str, Any]:
    """Provenance of the result: files with their SHA-256, DICOM series, seed, date and machine."""
    series = {
        role: image.GetMetaData(SERIES)
        for role, image in zip(ROLES, images, strict=True)
        if image.HasMetaDataKey(SERIES)
    }
    return {
        "files": hashes or {},
        "series": series,
        "seed": r.settings.fit.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
