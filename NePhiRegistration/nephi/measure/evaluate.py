"""The report of a registration, from its maps or from the transform of any method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..both import Both
from ..files.transform import field_grid, read_transform, through
from ..files.writing import write_csv
from ..images.masks import binary, inside
from ..images.sampling import nearest_through
from ..space.affine import Affine
from ..space.grid import Box, Grid
from . import quality
from .quality import PointMap
from .report import Folds, LandmarkError, Overlap, Report, Summary, VolumeChange
from .surfaces import label_agreement, surface_distance

_CONSISTENCY_POINTS = 20_000
_NOT_SHOWN = 255  # beyond the moving image
_LEAST_COVERED = 0.5  # of the fixed image by a field, below which there is a warning
_OVERLAP_MM = 2.0
_WITHIN_MM = 2.0  # a landmark error that counts as small
_WORSE, _WORSE_MM = (
    1.1,
    1.0,
)  # a mean error this much above the unaligned one is suspicious
_AS_MIXED_UP = 0.7  # of the mean error of shuffled rows: a larger mean error is suspicious
_SEVERAL = 5  # least number of landmarks, and number of shuffled orders


def measure(
    grid: Grid,
    jacobian: np.ndarray,
    forward: PointMap,
    transform: sitk.Transform,
    *,
    exact: bool,
    box: Box | None = None,
    consistent: tuple[PointMap, PointMap] | None = None,
    moving_grid: Grid | None = None,
    fields: tuple[PointMap, PointMap] | None = None,
    alignment: Affine | None = None,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    labels: Both[sitk.Image] | None = None,
) -> Report:
    """Everything that follows from the maps.

    ``jacobian`` (z, y, x): determinant of the forward map on the fixed image's ``grid``, or in a ``box`` of it that
    holds the mask, ``exact`` or by central differences. ``forward`` and ``transform`` are the same map, for points
    and to resample the moving mask by. ``landmarks``: fixed and moving points (n, d) in LPS mm, row by row.
    ``consistent``: the forward and the inverse transform, whose inverse consistency is measured where the first takes
    points into ``moving_grid``, in which the second is known; ``fields``: the two fields that they come from, whose
    disagreement is; both at 20,000 random points of the fixed mask (without one, of the image), the same at every call.
    Overlap is measured at every voxel, of finer images at every n-th, so that these are about 2 mm apart.
    """
    box = tuple(slice(0, n) for n in grid.shape) if box is None else box
    mask, values = None if fixed_mask is None else inside(fixed_mask)[box], jacobian
    tre = dice = surface = volume = one_by_one = None
    if landmarks is not None:
        errors = _landmark_errors(*landmarks, forward, alignment)
        tre, one_by_one = _landmark_summary(errors, grid), _one_by_one(landmarks[0], errors)
        tre = replace(tre, doubt=_landmark_doubt(tre, forward, landmarks))
    if mask is not None and fixed_mask is not None:
        values = jacobian[mask]
        volume = VolumeChange(**quality.volume_change(values, None, grid.voxel_volume_mm3))
        if moving_mask is not None:
            steps = tuple(max(1, round(_OVERLAP_MM / s)) for s in grid.spacing_mm)
            seen = grid.every(steps)
            whole = sitk.GetArrayViewFromImage(fixed_mask)[tuple(slice(None, None, step) for step in reversed(steps))]

            def both(through: sitk.Transform) -> tuple[np.ndarray, np.ndarray]:
                return shown_masks(seen, whole, moving_mask, through)

            here, after = both(transform)
            before = None if alignment is None else _dice(*both(alignment.transform()))
            dice = Overlap(_dice(here, after), before)
            surface = surface_distance(here, after, seen.spacing_mm)
    points = quality.random_points(grid, fixed_mask, _CONSISTENCY_POINTS)
    consistency, disagreement = (
        None if maps is None else _summary_of_any(quality.inverse_consistency_mm(*maps, points, where))
        for maps, where in ((consistent, moving_grid), (fields, None))
    )
    counted = quality.fold_summary(values)
    return Report(
        warnings=[] if tre is None or tre.doubt is None else [tre.doubt],
        folds=Folds(
            percent=float(counted["percent"]),
            count=int(counted["count"]),
            where="image" if mask is None else "mask",
            exact=exact,
            regions=quality.fold_regions(jacobian, grid.part(box), mask),
        ),
        jacobian=quality.jacobian_statistics(values) | {"histogram": quality.jacobian_histogram(values)},
        tre_mm=tre,
        landmarks=one_by_one,
        dice=dice,
        surface_mm=surface,
        labels=None
        if labels is None
        else label_agreement(*labels, transform, None if alignment is None else alignment.transform()),
        inverse_consistency_mm=consistency,
        fields_disagreement_mm=disagreement,
        volume=volume,
    )


def shown_masks(
    grid: Grid, fixed_mask: np.ndarray, moving_mask: sitk.Image, transform: sitk.Transform
) -> tuple[np.ndarray, np.ndarray]:
    """(z, y, x) bool on a grid: the fixed mask where the moving image shows anything, and the warped moving mask.

    The fixed mask is given on the grid; values other than 0 are inside.
    """
    there = nearest_through(binary(moving_mask), grid, transform, _NOT_SHOWN)
    return (fixed_mask != 0) & (there != _NOT_SHOWN), there == 1


def _dice(here: np.ndarray, there: np.ndarray) -> float:
    """0 where neither holds anything: the moving image shows nothing of the fixed mask."""
    return quality.dice(here, there) if here.any() or there.any() else 0.0


def evaluate(
    transform: sitk.Transform | str | Path,
    fixed: sitk.Image,
    inverse: sitk.Transform | str | Path | None = None,
    *,
    alignment: Affine | None = None,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    labels: Both[sitk.Image] | None = None,
) -> Report:
    """The report of a transform of points, fixed -> moving: an ITK transform, its file, or a displacement image's.

    Folds and determinants are by central differences on the fixed image's grid; the non-diffeomorphic volume comes in
    addition. ``inverse``: moving -> fixed, for the inverse consistency. ``alignment``: the affine map that the method
    began with, fixed -> moving; without it nothing is said of *before*. ``landmarks``: fixed and moving points (n, d)
    in LPS mm. ``labels``: label maps of both images. Raises NephiError for files that are no transforms of the images'
    dimension.
    """
    grid = Grid.of(fixed)
    forward = _transform(transform, grid.dimension)
    back = None if inverse is None else _transform(inverse, grid.dimension)
    to_field = sitk.TransformToDisplacementFieldFilter()
    to_field.SetReferenceImage(fixed)
    to_field.SetOutputPixelType(sitk.sitkVectorFloat32)
    displacement = sitk.GetArrayFromImage(to_field.Execute(forward))
    report = measure(
        grid,
        quality.displacement_jacobian(displacement, grid),
        partial(through, forward),
        forward,
        exact=False,
        consistent=None if back is None else (partial(through, forward), partial(through, back)),
        moving_grid=None if back is None else field_grid(back),
        alignment=alignment,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        landmarks=landmarks,
        labels=labels,
    )
    mask = None if fixed_mask is None else sitk.GetArrayViewFromImage(fixed_mask) != 0
    if (field := field_grid(forward)) is not None:
        share = field.holds(quality.random_points(grid, fixed_mask, _CONSISTENCY_POINTS)).mean()
        if share < _LEAST_COVERED:
            report.warnings.append(
                f"The transform's field covers {100 * share:.0f} % of the fixed {'image' if mask is None else 'mask'}, "
                "and moves nothing beyond: look whether they belong together."
            )
    return replace(report, non_diffeomorphic=quality.non_diffeomorphic_volume(displacement, grid, mask))


def _transform(transform: sitk.Transform | str | Path, dimension: int) -> sitk.Transform:
    return transform if isinstance(transform, sitk.Transform) else read_transform(transform, dimension)


def _summary_of_any(values: np.ndarray) -> Summary | None:
    return _summary(values) if len(values) else None


def _summary(values: np.ndarray) -> Summary:
    return Summary(**quality.summary(values))


def write_landmark_errors(path: str | Path, landmarks: list[dict]) -> None:
    """``Report.landmarks`` as a table (CSV)."""
    write_csv(path, [list(landmarks[0]) if landmarks else [], *(list(row.values()) for row in landmarks)])


def _landmark_errors(
    fixed: np.ndarray, moving: np.ndarray, forward: PointMap, alignment: Affine | None
) -> dict[str, np.ndarray]:
    """(n,) mm of every landmark: unaligned, before (after the alignment only, if it is known) and after."""
    states = {"unaligned": fixed} | ({} if alignment is None else {"before": alignment(fixed)})
    return {name: quality.tre_mm(there, moving) for name, there in (states | {"after": forward(fixed)}).items()}


def _landmark_summary(errors: dict[str, np.ndarray], grid: Grid) -> LandmarkError:
    after, diagonal = errors["after"], float(np.linalg.norm(grid.spacing_mm))
    states = {name: _summary(values) for name, values in errors.items()}
    return LandmarkError(
        after=states["after"],
        unaligned=states["unaligned"],
        before=states.get("before"),
        within_2_mm=float((after <= _WITHIN_MM).mean()),
        within_voxel=float((after <= diagonal).mean()),
        voxel_diagonal_mm=diagonal,
    )


def _landmark_doubt(tre: LandmarkError, forward: PointMap, landmarks: tuple[np.ndarray, np.ndarray]) -> str | None:
    """A warning if the errors look like those of wrong or shuffled landmarks; None otherwise."""
    if tre.unaligned is not None and tre.after.mean > _WORSE * tre.unaligned.mean + _WORSE_MM:
        return (
            f"The landmarks lie farther apart after the registration ({tre.after.mean:.2f} mm) than before "
            f"({tre.unaligned.mean:.2f} mm): check that they belong to these images and are in their frame."
        )
    fixed, moving = landmarks
    if len(fixed) < _SEVERAL:
        return None
    there, shifts = forward(fixed), np.unique(np.linspace(1, len(fixed) - 1, _SEVERAL).astype(int))
    mixed_up_mm = float(np.mean([quality.tre_mm(there, np.roll(moving, shift, 0)).mean() for shift in shifts]))
    if tre.after.mean > _AS_MIXED_UP * mixed_up_mm:
        return (
            f"The landmarks lie {tre.after.mean:.0f} mm apart on average, about as far as if their rows were shuffled "
            f"({mixed_up_mm:.0f} mm): check that row i of one file corresponds to row i of the other."
        )
    return None


def _one_by_one(fixed_lps_mm: np.ndarray, errors: dict[str, np.ndarray]) -> list[dict]:
    """A dict for every landmark: its number, counted from 1, its fixed place, and its error in mm at each state."""
    columns = {f"{axis}_lps_mm": fixed_lps_mm[:, k] for k, axis in enumerate("xyz"[: fixed_lps_mm.shape[1]])}
    columns |= {f"{name}_mm": values for name, values in errors.items()}
    rows = zip(*(np.asarray(values, float).tolist() for values in columns.values()), strict=True)
    return [{"number": k} | dict(zip(columns, row, strict=True)) for k, row in enumerate(rows, 1)]
