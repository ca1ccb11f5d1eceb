"""What a registration leaves on disk: measured, then written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from . import __version__, quality
from .errors import NephiError
from .image import write_image
from .result import Registration
from .space import Grid

REPORT = "report.json"
_SPACINGS_MM = (6.0, 5.0, 4.0, 3.0, 2.0)  # at which the fields are evaluated; the written grid has half of it
_CONSISTENCY_MM = 4.0  # between the voxels of the inverse-consistency map
_GOOD_MM = 0.025  # what linear interpolation between the nodes of the written transform may cost on average


def prepare_folder(folder: str | Path) -> Path:
    """The output folder, made if need be; raises NephiError before any work where it can't be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NephiError(f"cannot write to output folder {folder}: {error.strerror}") from None
    return folder


@contextmanager
def whole(folder: Path):
    """A scratch folder whose files move into ``folder`` together at the end; an exception leaves nothing."""
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".nephi-"))
    try:
        yield scratch
        files = sorted(scratch.iterdir(), key=lambda file: file.name == REPORT)
        (folder / REPORT).unlink(missing_ok=True)  # where there is a report, the result beside it is whole
        for file in files:
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Preview:
    """Where the optimisation is, for a viewer: now and then the displacement on a coarse grid over the fixed image.

    ``folder/preview.nrrd`` (LPS mm, fixed -> moving, alignment included) is replaced at once, at most every
    ``seconds``; leaving the ``with`` block removes it.
    """

    _SPACING_MM = 10.0

    def __init__(self, folder: Path, seconds: float, progress: Callable[[str, float, dict], None]):
        self.path = (folder / "preview.nrrd").resolve()
        self.seconds, self.tell, self.next = seconds, progress, 0.0

    def __call__(self, stage: str, fraction: float, registration: Registration) -> None:
        if time.perf_counter() < self.next:
            return
        grid = coarser(registration.fixed_grid, self._SPACING_MM * registration.length_scale)
        try:
            write_image(grid.image(registration.displacement(grid), vector=True), self.path)
        except PermissionError:
            return  # on Windows a reader may hold the last one; the next will do
        self.tell(stage, fraction, {"preview": str(self.path)})
        self.next = time.perf_counter() + self.seconds

    def __enter__(self) -> Preview:
        return self

    def __exit__(self, *_) -> None:
        self.path.unlink(missing_ok=True)


def transform_grid(registration: Registration, grid: Grid, inverse: bool = False) -> tuple[Grid, np.ndarray, dict]:
    """The coarsest grid over an image from which linear interpolation gives the map to 0.025 mm on average.

    The fields are evaluated at every second node; cubic interpolation gives those between. Returns the grid, the
    displacement on it and the measured error {mean_mm, max_mm, spacing_mm}, found at 2,000 random points of the
    image (of the mask, where there is one).
    """
    mask = registration.moving_mask if inverse else registration.fixed_mask
    points = random_points(grid, mask, 2000)
    truth = (registration.inverse if inverse else registration.forward)(points)
    scale = registration.length_scale
    tolerance = _GOOD_MM * scale
    for spacing in _SPACINGS_MM:
        coarse = coarser(grid, spacing * scale)
        displacement = registration.displacement(coarse, inverse)
        whole = coarse.size == grid.size
        if not whole:
            coarse, displacement = halved(coarse, displacement)
        error = np.linalg.norm(points + interpolate(displacement, coarse, points) - truth, axis=-1)
        if error.mean() <= tolerance or whole:
            break
    measured = {
        "mean_mm": float(error.mean()),
        "max_mm": float(error.max()),
        "spacing_mm": list(coarse.spacing_mm),
    }
    return coarse, displacement, measured


def halved(grid: Grid, values: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Half the spacing: values (z, y, x, d) float32 at the nodes stay, those between come by cubic interpolation."""
    for axis in range(grid.dimension):
        v = np.moveaxis(values, axis, 0)
        between = (v[:-1] + v[1:]) / 2
        if len(v) > 3:  # the parabolas through the nodes at either side, averaged
            between[1:-1] += (v[1:-2] + v[2:-1] - v[:-3] - v[3:]) / 16
            between[0] += (2 * v[1] - v[0] - v[2]) / 8
            between[-1] += (2 * v[-2] - v[-1] - v[-3]) / 8
        finer = np.empty((2 * len(v) - 1, *v.shape[1:]), v.dtype)
        finer[::2], finer[1::2] = v, between
        values = np.moveaxis(finer, 0, axis)
    size = tuple(2 * n - 1 for n in grid.size)
    spacing = tuple(s / 2 for s in grid.spacing_mm)
    return Grid(size, spacing, grid.origin_lps_mm, grid.direction), np.ascontiguousarray(values)


def random_points(grid: Grid, mask: sitk.Image | None, count: int) -> np.ndarray:
    """The same (n, d) points_lps_mm at every call: voxel centres of the mask, or anywhere in the grid."""
    rng = np.random.default_rng(0)
    if mask is None:
        return grid.to_lps_mm(rng.uniform(0, 1, (count, grid.dimension)) * (np.array(grid.size) - 1))
    inside = np.flatnonzero(sitk.GetArrayViewFromImage(mask))
    index_zyx = np.unravel_index(rng.choice(inside, min(count, len(inside)), replace=False), grid.shape)
    return grid.to_lps_mm(np.stack(index_zyx[::-1], -1))


def coarser(grid: Grid, spacing_mm: float) -> Grid:
    """A grid over the same voxel centres' box with about this spacing, never finer than the grid itself."""
    old = np.array(grid.size) - 1
    wanted = np.ceil(old * np.array(grid.spacing_mm) / spacing_mm).astype(int)
    nodes = np.minimum(np.maximum(wanted, 1), np.maximum(old, 1)) + 1
    spacing = old * np.array(grid.spacing_mm) / (nodes - 1)
    return Grid(tuple(int(n) for n in nodes), tuple(map(float, spacing)), grid.origin_lps_mm, grid.direction)


def interpolate(displacement: np.ndarray, grid: Grid, points_lps_mm: np.ndarray) -> np.ndarray:
    """Linear interpolation of a displacement (z, y, x, d) at points (n, d), as the written transform does."""
    from .features import sample_linear

    index = torch.from_numpy(grid.to_index(points_lps_mm))
    return sample_linear(torch.from_numpy(displacement).double(), index).numpy()


def displacement_transform(displacement: np.ndarray, grid: Grid) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(grid.image(displacement.astype(np.float64), vector=True))


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
) -> dict:
    """Measure the registration and write transforms, images, model and report; returns the report's numbers.

    ``landmarks``: fixed and moving points (n, d) in LPS mm, row by row. ``regions``: labels on the fixed grid
    whose volume change is reported. ``inputs``: what the files were, kept in the report. ``started``: wall clock
    (``time.perf_counter``) and processor time (``time.process_time``) at the start of the run.
    """
    tell = progress or (lambda stage, fraction, terms: None)
    wall, cpu = started or (time.perf_counter() - registration.seconds, time.process_time())
    r, grid = registration, registration.fixed_grid
    tell("transforms", 0.82, {})
    inverse_grid, inverse_displacement, inverse_error = transform_grid(r, r.moving_grid, inverse=True)
    coarse, displacement, error = transform_grid(r, grid)
    transform = displacement_transform(displacement, coarse)
    outside = float(sitk.GetArrayViewFromImage(moving).min())
    tell("warping", 0.88, {})
    warped = grid.resample(moving, transform, sitk.sitkLinear, outside)
    tell("Jacobian determinant", 0.9, {})
    jacobian = r.jacobian_image(displacement, coarse, _united(r.fixed_mask, regions))

    report = _measure(r, fixed, moving, transform, jacobian, landmarks)
    if regions is not None:
        labels = sitk.GetArrayViewFromImage(regions)
        report["regions"] = quality.region_statistics(jacobian, labels, grid.voxel_volume_mm3)
    report["files"] = {"fixed": names[0], "moving": names[1]}
    if inputs is not None:
        report["inputs"] = inputs
    report["transform_error_mm"] = {"forward": error, "inverse": inverse_error}
    with whole(folder) as scratch:
        tell("writing", 0.94, {})
        sitk.WriteTransform(transform, str(scratch / "transform.h5"))
        inverse = displacement_transform(inverse_displacement, inverse_grid)
        sitk.WriteTransform(inverse, str(scratch / "inverse_transform.h5"))
        sitk.WriteImage(warped, str(scratch / "warped.nii.gz"), True, 1)
        jacobian_image = grid.image(jacobian)
        sitk.WriteImage(jacobian_image, str(scratch / "jacobian.nii.gz"), True, 1)
        seen = coarser(grid, _CONSISTENCY_MM * r.length_scale)
        consistency = seen.image(inverse_consistency(r, seen))
        sitk.WriteImage(consistency, str(scratch / "inverse_consistency.nii.gz"), True, 1)
        r.save_model(scratch / "model.safetensors")
        report["time_s"] = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "registration_wall": r.seconds,
        }
        report["peak_memory_mb"] = peak_memory_mb()
        if r.device.startswith("cuda"):
            report["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(r.device) / 1e6
        tell("report", 0.97, {})
        if pictures:
            from .report import write_report

            errors = None
            if landmarks is not None:
                errors = {
                    "before": quality.tre_mm(r.affine(landmarks[0]), landmarks[1]),
                    "after": quality.tre_mm(r.forward(landmarks[0]), landmarks[1]),
                }
            write_report(
                scratch,
                report=report,
                fixed=fixed,
                warped=warped,
                moving_before=grid.resample(moving, r.affine.transform(), sitk.sitkLinear, outside),
                jacobian=jacobian_image,
                displacement=coarse.image(displacement, vector=True),
                fixed_mask=r.fixed_mask,
                history=r.history,
                landmark_errors=errors,
            )
        (scratch / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    tell("done", 1.0, {})
    return report


def _measure(r: Registration, fixed, moving, transform, jacobian: np.ndarray, landmarks) -> dict:
    """Every number of the report that does not depend on the clock."""
    report: dict = {"warnings": list(_warnings(r))}
    mask = None if r.fixed_mask is None else sitk.GetArrayViewFromImage(r.fixed_mask) != 0
    if landmarks is not None:
        a, b = landmarks
        report["tre_mm"] = {
            "unaligned": quality.summary(quality.tre_mm(a, b)),
            "before": quality.summary(quality.tre_mm(r.affine(a), b)),
            "after": quality.summary(quality.tre_mm(r.forward(a), b)),
        }
    report["folds"] = quality.fold_summary(jacobian, mask)
    report["folds"]["where"] = "image" if mask is None else "mask, exact at every voxel centre"
    report["folds"]["regions"] = quality.fold_regions(jacobian, r.fixed_grid, mask)
    report["jacobian"] = quality.jacobian_statistics(jacobian, mask)
    report["jacobian"]["histogram"] = quality.jacobian_histogram(jacobian, mask)
    report["inverse_consistency_mm"] = _inverse_consistency(r)
    if mask is not None:
        report["volume"] = quality.volume_change(jacobian, mask, r.fixed_grid.voxel_volume_mm3)
        if r.moving_mask is not None:
            moved = r.fixed_grid.resample(r.moving_mask, transform, sitk.sitkNearestNeighbor)
            before = r.fixed_grid.resample(r.moving_mask, r.affine.transform(), sitk.sitkNearestNeighbor)
            report["dice"] = {
                "before": quality.dice(sitk.GetArrayViewFromImage(before) != 0, mask),
                "after": quality.dice(sitk.GetArrayViewFromImage(moved) != 0, mask),
            }
    report["alignment"] = {
        "method": r.alignment,
        "matrix": r.affine.matrix.tolist(),
        "offset_mm": r.affine.offset_mm.tolist(),
    }
    report["device"] = r.device
    report["settings"] = r.settings.to_dict()
    report["versions"] = {
        "nephi": __version__,
        "torch": torch.__version__,
        "simpleitk": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return report


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


def _inverse_consistency(r: Registration) -> dict:
    """|inverse(forward(x)) - x| at 20,000 random voxel centres of the mask (of the image)."""
    points = random_points(r.fixed_grid, r.fixed_mask, 20000)
    return quality.summary(quality.inverse_consistency_mm(r.forward, r.inverse, points))


def _warnings(r: Registration):
    yield from r.notes
    for name in r.found_masks:
        yield f"The {name} lung mask was found by a threshold; check it, or give one with --{name}-mask."


def peak_memory_mb() -> float | None:
    """The process's largest resident size so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
