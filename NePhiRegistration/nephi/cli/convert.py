"""``nephi convert`` and ``--also``: registrations and transform files in the formats of other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..files.dicom_objects import read_series, write_registration
from ..files.formats import Pair, Sampled, is_fsl, read_fsl, read_x5, write_format
from ..files.image import read_volume
from ..files.transform import as_affine, read_transform, through
from ..images.warp import warn_of_blank, warn_of_labels
from ..paths import check_file
from ..result import Registration, lowest
from ..space.affine import Affine
from ..space.grid import Grid

DICOM = "dicom"  # not among the formats that need a transform alone
_COMPACT_MM = 0.05  # mean error that the format compact may have


def convert_command(options) -> int:
    if options.error is not None and not options.error > 0:
        raise NephiError(f"--error {options.error:g}: must be a number of millimetres above 0")
    stem = Path(options.output)
    if not stem.parent.is_dir():
        raise NephiError(f"output folder {stem.parent} does not exist")
    pair = _pair(options)
    for path in (
        _registration_objects(options, pair, stem) if options.to == DICOM else write_format(options.to, pair, stem)
    ):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _registration_objects(options, pair: Pair, stem: Path) -> list[Path]:
    if not (options.reference and options.moving):
        raise NephiError("dicom needs the folders of both series: give --reference and --moving")
    if pair.forward.grid.dimension != 3:
        raise NephiError("the format dicom is for 3D transforms")
    fixed, moving = (read_series(Path(f), tuple(options.series)) for f in (options.reference, options.moving))
    ways = [(pair.forward, "", fixed, moving), *([(pair.inverse, "_inverse", moving, fixed)] if pair.inverse else [])]
    written = []
    for sampled, ending, registered, source in ways:
        written.append(stem.with_name(f"{stem.name}{ending}.dcm"))
        write_registration(written[-1], sampled.grid, sampled.before_affine(), sampled.affine, registered, source)
    return written


def export(registration: Registration, formats: list[str], folder: Path) -> None:
    """Write a registration in further formats into a folder; the files' names begin with ``transform``.

    Raises NephiError as ``write_format``.
    """
    for name in dict.fromkeys(formats):
        write_format(name, pair_of(registration, _good_mm(name)), folder / _stem(name))


def _stem(name: str) -> str:
    return {"ants": "ants_", "compact": "compact", "itk": "itk"}.get(name, "transform")


def pair_of(registration: Registration, good_mm: float | None = None) -> Pair:
    """Both maps on the coarsest grids that represent them to ``good_mm`` on average (default 0.025 mm)."""
    r = registration
    grid, displacement, _ = r.sampled(r.fixed_grid, good_mm=good_mm)
    forward = Sampled(grid, displacement, r.affine, r.moving_grid)
    inverse_grid, inverse, _ = r.sampled(r.moving_grid, True, good_mm)
    before = np.empty((*grid.shape, grid.dimension), np.float32)
    for z in range(grid.shape[0]):
        points = grid.slab_lps_mm(z, z + 1)
        before[z] = (r.inverse(r.affine(points)) - points).reshape(before[z].shape)
    return Pair(forward, Sampled(inverse_grid, inverse, r.affine.inverse(), r.fixed_grid), before)


def _good_mm(name: str) -> float | None:
    return _COMPACT_MM if name == "compact" else None


def _pair(options) -> Pair:
    first = Path(options.transform[0])
    if len(options.transform) == 1 and (first.is_dir() or first.suffix == ".safetensors"):
        return pair_of(Registration.load(first), options.error or _good_mm(options.to))
    series = tuple(options.series)
    given = options.moving if options.to != DICOM else None
    moving = Grid.of(read_volume(given, "moving image", series)) if given else None
    given = options.reference if options.to != DICOM else None  # there, the series that it is about
    reference = Grid.of(read_volume(given, "reference image", series)) if given else None
    parts = [_part(Path(path), moving, 3 if reference is None else reference.dimension) for path in options.transform]
    if reference is not None:
        grid = reference
    else:
        fields = [part for part in parts if part.GetTransformEnum() == sitk.sitkDisplacementField]
        if not fields:
            raise NephiError("give --reference: the transform itself has no grid")
        grid = Grid.of(sitk.DisplacementFieldTransform(fields[0]).GetDisplacementField())
    # applied last to first
    composite = sitk.CompositeTransform(parts[::-1])
    frame = (grid.size, grid.origin_lps_mm, grid.spacing_mm, grid.direction)
    field = sitk.TransformToDisplacementField(composite, sitk.sitkVectorFloat64, *frame)
    last = as_affine(parts[-1]) if len(parts) > 1 and parts[-1].IsLinear() else Affine.identity(grid.dimension)
    return Pair(Sampled(grid, sitk.GetArrayFromImage(field), last, moving or grid))


def _part(path: Path, moving: Grid | None, dimension: int) -> sitk.Transform:
    check_file(path, "transform")
    if path.suffix == ".x5":
        return read_x5(path)
    if path.name.endswith((".nii", ".nii.gz")) and is_fsl(path):
        if moving is None:
            raise NephiError(f"{path} is an FSL transform: give --moving, whose voxels it refers to")
        return read_fsl(path, moving)
    return read_transform(path, dimension)


class TransformFile:
    """A transform file in the place of a registration, to warp by; it has one direction, fixed -> moving points."""

    def __init__(self, path: Path, grid: Grid | None, inverse: bool):
        """``grid``: that of the fixed image, for images. Raises NephiError if the inverse is requested."""
        if inverse:
            raise NephiError(
                f"{path} is a single transform without an inverse: give the file of the inverse, without --inverse"
            )
        self.fixed_grid = self.moving_grid = grid
        self._transform = read_transform(path, 3 if grid is None else grid.dimension)

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        return through(self._transform, points_lps_mm)

    inverse = forward

    def warp(self, image: sitk.Image, grid: Grid | None, *, labels: bool, inverse: bool) -> sitk.Image:
        """As ``Registration.warp``."""
        if grid is None:
            raise NephiError("give --reference: the file of the transform does not define the output grid")
        if image.GetDimension() != grid.dimension:
            raise NephiError(f"the input image is {image.GetDimension()}D, but the reference is {grid.dimension}D")
        interpolator = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
        if not labels:
            warn_of_labels(image)
        warped = grid.resample(image, self._transform, interpolator, 0.0 if labels else lowest(image))
        warn_of_blank(image, warped)
        return warped
