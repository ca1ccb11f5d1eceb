"""ITK transforms of points, from transform files and displacement images."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..journal import complete_moves
from ..paths import check_file
from ..settings import ALIGNMENTS
from ..space.affine import Affine
from ..space.grid import Grid
from .dicom_objects import is_dicom, read_registration
from .geometry import FARTHEST_MM, check_geometry
from .headers import META, NRRD
from .image import open_image
from .nifti import SUFFIXES as NIFTI
from .parameters import check_mat, check_text
from .subprocess_reader import try_transform
from .writing import by_library, whole

_LETTERS = 26  # of a number as text, at most
_ABSOLUTE = (0.7, 1.3)  # slope of vectors over places in which they are places and no displacements


def displacement_transform(displacement: np.ndarray, grid: Grid) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(grid.image(displacement.astype(np.float64), vector=True))


def field_grid(transform: sitk.Transform) -> Grid | None:
    """The grid of a displacement field, beyond which points are not moved; None for other transforms."""
    if transform.GetTransformEnum() != sitk.sitkDisplacementField:
        return None
    return Grid.of(sitk.DisplacementFieldTransform(transform).GetDisplacementField())


def write_transform(transform: sitk.Transform, path: str | Path) -> None:
    """Write a transform in the format of the file's name; raises NephiError where that is not possible."""
    path = Path(path)
    _refuse_minc(path)
    if transform.GetTransformEnum() == sitk.sitkDisplacementField:
        field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        count = field.GetNumberOfPixels() * field.GetNumberOfComponentsPerPixel()
    else:
        count = len(transform.GetParameters()) + len(transform.GetFixedParameters())
    size = count * (_LETTERS if path.suffix.lower() in (".tfm", ".txt") else 8)
    with whole(path) as scratch:
        refused = f"cannot write {path}: use a known transform type such as .h5 or .tfm"
        with by_library(scratch, size, refused, crashes=True):
            sitk.WriteTransform(transform, str(scratch))


def read_transform(path: str | Path, dimension: int) -> sitk.Transform:
    """A transform of points (fixed -> moving): an ITK transform file or a displacement image in LPS mm.

    Raises NephiError for a file that is truncated, damaged, not finite or of another dimension, or that contains the
    positions of mapped points instead of displacements.
    """
    path = check_file(path, "transform")
    if path.is_dir():
        raise NephiError(f"transform: {path} is a folder")
    is_image = path.name.lower().endswith((*NIFTI, *NRRD, *META))
    transform = _of_image(path) if is_image else open_transform(path)
    if transform is None:
        try:
            transform = _of_image(path)  # an image by another name
        except NephiError:
            raise NephiError(f"cannot read {path} as a transform or a displacement image") from None
    if transform.GetDimension() != dimension:
        raise NephiError(f"{path} is {transform.GetDimension()}D, but the fixed image is {dimension}D")
    return transform


def open_transform(path: Path) -> sitk.Transform | None:
    """The transform in an ITK transform file or a DICOM object; None for other files.

    Raises NephiError if it is damaged. ITK reads a truncated text as another transform, and crashes on some damaged
    files: text is checked before, and other files are tried in a subprocess.
    """
    if is_dicom(path):
        made = read_registration(path)
        if made is not None:
            check_transform(made, path)
        return made
    name = path.name.lower()
    _refuse_minc(path)
    known = False
    if name.endswith((".tfm", ".txt")):
        known = check_text(path)
    elif name.endswith(".mat"):
        check_mat(path)
    if not known and not try_transform(path):
        return None
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        return None
    check_transform(transform, path)
    return transform


def _refuse_minc(path: Path) -> None:
    if path.suffix.lower() == ".xfm":
        raise NephiError(f"{path}: MINC transforms (.xfm) are in RAS, which ITK does not convert; use .h5 or .tfm")


def check_transform(transform: sitk.Transform, path: Path) -> None:
    """Raise NephiError if a transform has values that are not finite, or positions instead of displacements."""
    kind = transform.GetTransformEnum()
    if kind == sitk.sitkComposite:
        parts = sitk.CompositeTransform(transform)
        for i in range(parts.GetNumberOfTransforms()):
            check_transform(parts.GetNthTransform(i), path)
    elif kind == sitk.sitkDisplacementField:
        _check_field(sitk.DisplacementFieldTransform(transform).GetDisplacementField(), path)
    else:
        _check_numbers(np.array([*transform.GetParameters(), *transform.GetFixedParameters()]), path, "parameters")


def _of_image(path: Path) -> sitk.DisplacementFieldTransform:
    image = open_image(path, "transform")
    if image.GetNumberOfComponentsPerPixel() != image.GetDimension():
        raise NephiError(f"{path} is neither a transform nor a displacement image")
    _check_field(image, path)
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def _check_field(field: sitk.Image, path: Path) -> None:
    grid = Grid.of(field)
    check_geometry(grid.spacing_mm, grid.origin_lps_mm, grid.direction, str(path))
    vectors = sitk.GetArrayViewFromImage(field)
    _check_numbers(vectors, path, "displacements")
    step = tuple(slice(None, None, max(1, n // 24)) for n in grid.shape)
    index_zyx = np.stack(np.meshgrid(*[np.arange(n)[s] for n, s in zip(grid.shape, step, strict=True)], indexing="ij"))
    places = grid.to_lps_mm(np.moveaxis(index_zyx, 0, -1)[..., ::-1]).reshape(-1, grid.dimension)
    seen = vectors[step].reshape(places.shape).astype(float)
    spread = places.std(0)
    if (spread > 0).all():
        off = places - places.mean(0)
        slopes = (off * (seen - seen.mean(0))).mean(0) / spread**2
        if ((slopes > _ABSOLUTE[0]) & (slopes < _ABSOLUTE[1])).all():
            raise NephiError(
                f"{path} seems to contain the positions of mapped points, not their displacements (an absolute "
                "deformation field): its vectors grow with the coordinates; subtract the positions of the voxels"
            )


def _check_numbers(values: np.ndarray, path: Path, what: str) -> None:
    if not np.isfinite(values).all():
        raise NephiError(f"{path} has {what} that are NaN or infinite")
    if values.size and max(values.max(), -values.min()) > FARTHEST_MM:
        raise NephiError(f"{path} has {what} above {FARTHEST_MM:g} (a kilometre); it is damaged")


def through(transform: sitk.Transform, points_lps_mm: np.ndarray) -> np.ndarray:
    """Where a transform takes points (n, d)."""
    points = np.asarray(points_lps_mm, float)
    if transform.GetTransformEnum() == sitk.sitkDisplacementField and len(points):  # point by point takes long
        return points + _displacements(sitk.DisplacementFieldTransform(transform).GetDisplacementField(), points)
    return np.array([transform.TransformPoint(p) for p in points.tolist()])


def _displacements(field: sitk.Image, points_lps_mm: np.ndarray) -> np.ndarray:
    """Displacements (n, d) of a field, linear between its voxels, constant for half a voxel beyond them, then 0."""
    vectors, size = sitk.GetArrayViewFromImage(field), np.array(field.GetSize())
    index = Grid.of(field).to_index(points_lps_mm)
    seen = np.all((index >= -0.5) & (index < size - 0.5), axis=1)
    place = np.clip(np.where(np.expand_dims(seen, 1), index, 0.0), 0, size - 1)  # also for values that are not finite
    below = np.minimum(place.astype(int), np.maximum(size - 2, 0))
    part, out = place - below, np.zeros_like(points_lps_mm)
    for corner in product((0, 1), repeat=len(size)):
        at = np.minimum(below + corner, size - 1)
        weight = np.where(corner, part, 1 - part).prod(1)
        out += np.expand_dims(weight * seen, 1) * vectors[tuple(at.T[::-1])]
    return out


def read_affine(path: str, dimension: int) -> Affine:
    """A linear transform file as an affine map; raises NephiError if it is not linear or not invertible."""
    complete_moves(Path(path))
    if not Path(path).exists():
        raise NephiError(f"alignment '{path}' is neither one of {', '.join(ALIGNMENTS)} nor a transform file")
    file = check_file(path, "alignment")
    transform = None if file.is_dir() else open_transform(file)
    if transform is None:
        raise NephiError(f"cannot read {path} as a transform")
    if transform.GetDimension() != dimension:
        raise NephiError(f"alignment {path} is {transform.GetDimension()}D, but the images are {dimension}D")
    if not transform.IsLinear():
        raise NephiError(f"alignment {path} is not linear; give a rigid or affine transform")
    affine = as_affine(transform)
    if abs(np.linalg.det(affine.matrix)) < 1e-6:
        raise NephiError(f"alignment {path} cannot be inverted")
    return affine


def as_affine(transform: sitk.Transform) -> Affine:
    """A linear ITK transform as an affine map."""
    d = transform.GetDimension()
    offset = np.array(transform.TransformPoint([0.0] * d))
    columns = [np.array(transform.TransformPoint([float(i == j) for j in range(d)])) - offset for i in range(d)]
    return Affine(np.stack(columns, 1), offset)
