"""Transforms in the formats of other programs: ANTs, NIfTI displacement fields, FSL, X5 and BIDS names.

All of them, as ITK, map points of the fixed image to the moving one, which resamples the moving image onto the fixed.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..journal import step
from ..space.affine import Affine
from ..space.grid import Grid
from .geometry import check_geometry
from .image import write_image
from .nifti import read_nifti
from .subprocess_reader import try_transform
from .transform import check_transform, displacement_transform, write_transform
from .writing import by_library, replaced, write_text

_RAS = np.array([-1.0, -1.0, 1.0])
_DISPLACEMENTS, _FSL_DISPLACEMENTS = 1006, 2006  # intent codes of NIfTI
_PACKAGES = {"compact": ("h5py", "h5py"), "x5": ("nitransforms.io.x5", "nitransforms")}  # module and package
_STEP_MM = 2.0**-9  # rounding of compact files: zeros in the last bits compress well


@dataclass(frozen=True)
class Sampled:
    """A map of points on a grid: ``displacement`` (z, y, x, d) in LPS mm from ``grid`` to the image on ``target``.

    ``affine`` is the linear part that it ends with, known to the formats that keep it apart.
    """

    grid: Grid
    displacement: np.ndarray
    affine: Affine
    target: Grid

    def before_affine(self) -> np.ndarray:
        """Displacement (z, y, x, d) of the map without its linear part."""
        points = self.grid.points_lps_mm()
        return self.affine.inverse()(points + self.displacement) - points


@dataclass(frozen=True)
class Pair:
    """What is written: forward (fixed -> moving points) and, where it is known, inverse on the moving image's grid.

    ``inverse_before``: the inverse after the linear part was undone, displacement on ``forward.grid``.
    """

    forward: Sampled
    inverse: Sampled | None = None
    inverse_before: np.ndarray | None = None


def write_format(name: str, pair: Pair, stem: Path) -> list[Path]:
    """Write a transform in a format; the files' names begin with that of ``stem``. Returns the files.

    They appear together or not at all. Raises NephiError for an unknown format, where a package is missing, or a file
    cannot be written.
    """
    check_format(name, pair.forward.grid.dimension)
    with replaced(stem.parent) as scratch:
        written = FORMATS[name](pair, scratch / stem.name)
        return [stem.parent / path.relative_to(scratch) for path in written]


def check_format(name: str, dimension: int) -> None:
    """Raises NephiError for an unknown format, one that is for 3D alone, or where its package is missing."""
    if name not in FORMATS:
        raise NephiError(f"unknown format '{name}': choose one of {', '.join(FORMATS)}")
    if dimension != 3 and name not in ("itk", "compact", "ants", "bids"):
        raise NephiError(f"the format {name} is for 3D transforms")
    if name in _PACKAGES:
        _package(*_PACKAGES[name])


def _both(pair: Pair) -> list[tuple[str, Sampled]]:
    return [("", pair.forward), *([("_inverse", pair.inverse)] if pair.inverse else [])]


def _beside(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _itk(pair: Pair, stem: Path) -> list[Path]:
    written = []
    for ending, sampled in _both(pair):
        written.append(_beside(stem, f"{ending}.h5"))
        write_transform(displacement_transform(sampled.displacement, sampled.grid), written[-1])
    return written


def _compact(pair: Pair, stem: Path) -> list[Path]:
    """ITK's .h5 with float32 rounded to 1/512 mm and compressed, which SimpleITK itself cannot write."""
    h5py = _package(*_PACKAGES["compact"])
    written = []
    for ending, sampled in _both(pair):
        path = _beside(stem, f"{ending}.h5")
        grid = sampled.grid
        fixed = [*grid.size, *grid.origin_lps_mm, *grid.spacing_mm, *grid.direction]
        values = (np.round(sampled.displacement / _STEP_MM) * _STEP_MM).astype(np.float32).ravel()
        with _by_hdf5(path, values.nbytes), h5py.File(path, "w") as file:
            text = h5py.string_dtype("ascii")
            for name, value in (("ITKVersion", "5.4.0"), ("HDFVersion", "1.12"), ("OSName", ""), ("OSVersion", "")):
                file.create_dataset(name, data=[value], dtype=text)
            group = file.create_group("TransformGroup/0")
            kind = f"DisplacementFieldTransform_float_{grid.dimension}_{grid.dimension}"
            group.create_dataset("TransformType", data=[kind], dtype=text)
            group.create_dataset("TransformFixedParameters", data=np.array(fixed, float))
            chunk = (min(len(values), 1 << 18),)
            group.create_dataset(
                "TransformParameters", data=values, chunks=chunk, compression="gzip", compression_opts=9, shuffle=True
            )
        written.append(path)
    return written


def _ants(pair: Pair, stem: Path) -> list[Path]:
    """``0GenericAffine.mat``, ``1Warp.nii.gz`` and ``1InverseWarp.nii.gz``, as antsRegistration names them."""
    forward = pair.forward
    written = [_beside(stem, "0GenericAffine.mat"), _beside(stem, "1Warp.nii.gz")]
    write_transform(forward.affine.transform(), written[0])
    fields = [(written[1], forward.before_affine())]
    if pair.inverse_before is not None:
        written.append(_beside(stem, "1InverseWarp.nii.gz"))
        fields.append((written[2], pair.inverse_before))
    for path, field in fields:
        write_image(forward.grid.image(field.astype(np.float32), vector=True), path)
    return written


def _nifti(pair: Pair, stem: Path) -> list[Path]:
    """Displacements in RAS mm with the intent that says so (1006), fixed points to moving points."""
    written = []
    for ending, sampled in _both(pair):
        written.append(_beside(stem, f"{ending}.nii.gz"))
        image = sampled.grid.image((sampled.displacement * _RAS).astype(np.float32), vector=True)
        _write_nifti(image, written[-1], _DISPLACEMENTS)
    return written


def _fsl(pair: Pair, stem: Path) -> list[Path]:
    """A relative warp of FSL: from the fixed image's FSL coordinates to the moving image's, for ``applywarp``."""
    written = []
    for ending, sampled in _both(pair):
        points = sampled.grid.points_lps_mm()
        ended = _to_fsl(sampled.target, points + sampled.displacement)
        field = (ended - _to_fsl(sampled.grid, points)).astype(np.float32)
        grid = sampled.grid
        image = sitk.JoinSeries([grid.image(np.ascontiguousarray(field[..., axis])) for axis in range(3)])
        written.append(_beside(stem, f"{ending}_warp.nii.gz"))
        _write_nifti(image, written[-1], _FSL_DISPLACEMENTS)
    return written


def _to_fsl(grid: Grid, points_lps_mm: np.ndarray) -> np.ndarray:
    """FSL's coordinates in an image: voxel indices times voxel sizes, x from the other end of right-handed axes."""
    index = grid.to_index(points_lps_mm)
    if np.linalg.det(grid.axes) > 0:  # RAS and LPS differ by half a turn, so that both have the same hand
        index[..., 0] = grid.size[0] - 1 - index[..., 0]
    return index * np.asarray(grid.spacing_mm)


def _write_nifti(image: sitk.Image, path: Path, intent: int) -> None:
    """SimpleITK writes no intent but its own."""
    plain = path.with_name(f"plain_{path.name.removesuffix('.gz')}")
    write_image(image, plain)
    data = bytearray(plain.read_bytes())
    plain.unlink()
    step("write", path)
    order = "little" if int.from_bytes(data[:4], "little") == 348 else "big"
    data[68:70] = intent.to_bytes(2, order)  # type: ignore[arg-type]
    with open(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(data)


def _x5(pair: Pair, stem: Path) -> list[Path]:
    x5 = _package(*_PACKAGES["x5"])
    written = []
    for ending, sampled in _both(pair):
        path = _beside(stem, f"{ending}.x5")
        mapping = np.eye(4)
        mapping[:3, :3] = _RAS[:, None] * sampled.grid.axes * np.asarray(sampled.grid.spacing_mm)
        mapping[:3, 3] = _RAS * np.asarray(sampled.grid.origin_lps_mm)
        node = x5.X5Transform(
            type="nonlinear",
            subtype="densefield",
            representation="displacements",
            transform=np.transpose(sampled.displacement * _RAS, (2, 1, 0, 3)).astype(np.float32),
            dimension_kinds=("space", "space", "space", "vector"),
            domain=x5.X5Domain(grid=True, size=sampled.grid.size, mapping=mapping, coordinates="cartesian"),
        )
        with _by_hdf5(path, node.transform.nbytes):
            x5.to_filename(path, [node])
        written.append(path)
    return written


def _bids(pair: Pair, stem: Path) -> list[Path]:
    """``sub-NAME_from-moving_to-fixed_mode-image_xfm.h5`` with its sidecar, and the inverse.

    ``from`` and ``to`` refer to *images*: the file takes fixed points to moving points.
    """
    subject = re.sub("[^0-9A-Za-z]", "", stem.name.removeprefix("sub-")) or "unknown"
    written = []
    ways = zip((("moving", "fixed"), ("fixed", "moving")), _both(pair), strict=False)
    for (start, end), (_, sampled) in ways:
        path = stem.with_name(f"sub-{subject}_from-{start}_to-{end}_mode-image_xfm.h5")
        write_transform(displacement_transform(sampled.displacement, sampled.grid), path)
        sidecar = {
            "Description": f"Resamples the {start} image onto the {end} one; maps {end} points to {start} points.",
            "GeneratedBy": [{"Name": "NePhi"}],
            "SpatialReference": end,
            "TransformFile": path.name,
            "Units": "mm",
            "CoordinateSystem": "LPS",
        }
        side = path.with_suffix(".json")
        write_text(side, json.dumps(sidecar, indent=2) + "\n")
        written += [path, side]
    return written


def _by_hdf5(path: Path, size: int) -> AbstractContextManager[None]:
    return by_library(path, size, f"cannot write {path.name} as an HDF5 file", crashes=True)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise NephiError(f'this format needs the package {package}; install it: pip install "nephi[formats]"') from None


def read_x5(path: Path) -> sitk.DisplacementFieldTransform:
    """The displacement field of an X5 file with one transform; raises NephiError for anything else."""
    x5 = _package(*_PACKAGES["x5"])
    try:
        if not try_transform(path, "x5"):
            raise ValueError
        (node,) = x5.from_filename(path)
        field, mapping = np.asarray(node.transform, float), np.asarray(node.domain.mapping, float)
        if node.representation != "displacements" or field.shape != (*node.domain.size, 3) or mapping.shape != (4, 4):
            raise ValueError
        if not np.allclose(mapping[3], (0, 0, 0, 1)):
            raise ValueError
        matrix = _RAS[:, None] * mapping[:3, :3]
        spacing = np.linalg.norm(matrix, axis=0)
        origin, direction = _RAS * mapping[:3, 3], (matrix / np.maximum(spacing, 1e-30)).ravel()
        check_geometry(spacing, origin, direction, str(path))
        grid = Grid(field.shape[:3], tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.tolist()))
    except (OSError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError):
        raise NephiError(f"cannot read {path} as an X5 file with one displacement field") from None
    return _checked(np.transpose(field, (2, 1, 0, 3)) * _RAS, grid, path)


def _checked(displacement: np.ndarray, grid: Grid, path: Path) -> sitk.DisplacementFieldTransform:
    transform = displacement_transform(displacement, grid)
    check_transform(transform, path)
    return transform


def is_fsl(path: Path) -> bool:
    """Whether a NIfTI file is marked as a displacement field of FSL."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
            head = file.read(70)
    except (OSError, EOFError, zlib.error):
        return False
    order = "<" if head[:4] == (348).to_bytes(4, "little") else ">"
    return len(head) == 70 and int(np.frombuffer(head, f"{order}i2", 1, 68)[0]) == _FSL_DISPLACEMENTS


def read_fsl(path: Path, moving: Grid) -> sitk.DisplacementFieldTransform:
    """A relative warp of FSL to a moving image on the grid ``moving``; raises NephiError where it cannot be read."""
    image = read_nifti(path, "transform", joined=True)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise NephiError(
            f"cannot read {path} as a displacement field of FSL: it does not have three components per voxel"
        )
    grid = Grid.of(image)
    points = grid.points_lps_mm()
    ended = _to_fsl(grid, points) + sitk.GetArrayFromImage(image)
    index = ended / np.asarray(moving.spacing_mm)
    if np.linalg.det(moving.axes) > 0:
        index[..., 0] = moving.size[0] - 1 - index[..., 0]
    return _checked(moving.to_lps_mm(index) - points, grid, path)


FORMATS: dict[str, Callable[[Pair, Path], list[Path]]] = {
    "itk": _itk,
    "compact": _compact,
    "ants": _ants,
    "nifti": _nifti,
    "fsl": _fsl,
    "x5": _x5,
    "bids": _bids,
}
