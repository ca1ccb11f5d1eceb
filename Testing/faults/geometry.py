"""Randomly drawn geometry: what is written comes back, and SimpleITK agrees on every place and value."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nephi
import numpy as np
import SimpleITK as sitk
from nephi.errors import NephiError
from nephi.files.image import read_volume, write_image
from nephi.files.landmarks import read_landmarks, write_landmarks
from nephi.files.transform import displacement_transform, read_transform
from nephi.space.grid import Grid

from . import samples
from .pool import RIGHT, WRONG, Outcome


class _Differs(AssertionError):
    pass


def _drawn(rng: np.random.Generator, low: int = 2, high: int = 24) -> Grid:
    d = int(rng.choice([2, 3]))
    axes, _ = np.linalg.qr(rng.normal(size=(d, d)))
    if rng.random() < 0.3:
        axes = np.eye(d)[rng.permutation(d)] * rng.choice([-1, 1], d)
    if d == 2 and np.linalg.det(axes) < 0:  # NIfTI has no place for a mirrored plane but its third axis
        axes[:, 0] *= -1
    spacing = np.exp(rng.uniform(np.log(0.02), np.log(5), d))
    origin = rng.normal(0, 10 ** rng.uniform(-1, 3), d)
    size = tuple(int(n) for n in rng.integers(low, high, d))
    return Grid(size, tuple(spacing.tolist()), tuple(origin.tolist()), tuple(axes.ravel().tolist()))


def _image(grid: Grid, rng: np.random.Generator, kind: str = "f4") -> sitk.Image:
    return grid.image(rng.normal(0, 300, grid.shape).astype(kind))


def _close(a, b, tolerance: float, what: str) -> None:
    off = float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())
    if not off <= tolerance:
        raise _Differs(f"{what} differs by {off:.3g}, above {tolerance:.3g}")


def _places(grid: Grid, rng: np.random.Generator, n: int = 20) -> np.ndarray:
    return grid.to_lps_mm(rng.uniform(0, 1, (n, grid.dimension)) * (np.array(grid.size) - 1))


def _written(rng: np.random.Generator, folder: Path) -> None:
    grid = _drawn(rng)
    kind = str(rng.choice(["u1", "i2", "u2", "i4", "f4", "f8"]))
    image = grid.image(np.abs(rng.normal(0, 60, grid.shape)).astype(kind))
    suffix = str(rng.choice([".nii", ".nii.gz", ".nrrd", ".mha", ".nhdr", ".mhd", ".hdr"]))
    write_image(image, path := folder / f"image{suffix}")
    found = read_volume(path)
    # NIfTI holds the geometry in single precision
    rounding = 1e-6 * (np.abs(grid.origin_lps_mm).max() + np.dot(grid.spacing_mm, grid.size)) + 1e-9
    _close(Grid.of(found).corners_lps_mm(), grid.corners_lps_mm(), rounding, f"a corner in {suffix}")
    if not np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image)):
        raise _Differs(f"voxels in {suffix}")


def _converted(rng: np.random.Generator, folder: Path) -> None:
    """ITK's writers note in a file what its readers found in another."""
    image = _image(_drawn(rng), rng, str(rng.choice(["u1", "i2", "f4"])))
    image.SetMetaData("Acquisition [1]", "a")
    source, target = rng.choice([".nii.gz", ".nrrd", ".mha", ".mhd", ".nhdr", ".hdr"], 2)
    sitk.WriteImage(image, str(folder / f"a{source}"))
    path, packed = folder / f"b{target}", bool(rng.random() < 0.5)
    sitk.WriteImage(sitk.ReadImage(str(folder / f"a{source}")), str(path), packed)
    found, wanted = read_volume(path), sitk.ReadImage(str(path))
    _close(Grid.of(found).corners_lps_mm(), Grid.of(wanted).corners_lps_mm(), 1e-3, f"a corner in {source} as {target}")
    if not np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted)):
        raise _Differs(f"voxels in {source} as {target}")


def _kept(rng: np.random.Generator, folder: Path) -> None:
    """A format that does not hold an image is refused."""
    grid = _drawn(rng)
    if rng.random() < 0.5:
        grid = replace(grid, direction=tuple(np.eye(grid.dimension).ravel().tolist()))
    image = grid.image(np.abs(rng.normal(0, 60, grid.shape)).astype(str(rng.choice(["u1", "i2", "f4"]))))
    path = folder / f"image{rng.choice(['.tif', '.png', '.vtk', '.gipl', '.mnc', '.bmp', '.jpg'])}"
    try:
        write_image(image, path)
    except NephiError:
        if path.exists():
            raise _Differs(f"{path.name} was written, though refused") from None
        return
    found = sitk.ReadImage(str(path))
    if not Grid.of(found).same_as(grid) or not np.array_equal(*map(sitk.GetArrayViewFromImage, (found, image))):
        raise _Differs(f"what is in {path.name}")


def _points(rng: np.random.Generator, folder: Path) -> None:
    grid = _drawn(rng)
    points = _places(grid, rng)
    path = folder / f"points{rng.choice(['.csv', '.fcsv', '.mrk.json'])}"
    write_landmarks(path, points)
    _close(read_landmarks(path, grid), points, 1e-9, f"points in {path.suffix}")
    image = grid.image(np.zeros(grid.shape, "u1"))
    itk = [image.TransformPhysicalPointToContinuousIndex(p) for p in points.tolist()]
    _close(grid.to_index(points), itk, 1e-6 * max(1, np.abs(points).max() / min(grid.spacing_mm)), "an index")


def _resampled(rng: np.random.Generator, folder: Path) -> None:
    grid = _drawn(rng)
    image, size = _image(grid, rng), tuple(int(n) for n in rng.integers(2, 20, grid.dimension))
    spacing = tuple((np.array(grid.spacing_mm) * np.array(grid.size) / size * rng.uniform(0.5, 1)).tolist())
    turned = _drawn(rng)
    while turned.dimension != grid.dimension:
        turned = _drawn(rng)
    origin = tuple(_places(grid, rng, 1)[0].tolist())
    wanted = Grid(size, spacing, origin, turned.direction)
    found = wanted.resample(image, interpolator=sitk.sitkLinear, outside=-7.0)
    itk = sitk.Resample(image, wanted.image(np.zeros(wanted.shape, "u1")), sitk.Transform(grid.dimension,
    sitk.sitkIdentity),
                        sitk.sitkLinear, -7.0, sitk.sitkFloat32)  # fmt: skip
    off = np.abs(sitk.GetArrayFromImage(found) - sitk.GetArrayFromImage(itk))
    _close(np.quantile(off, 0.98), 0.0, 0.5, "a resampled value")  # at the very border either may be outside
    _close(
        Grid.of(found).corners_lps_mm(), wanted.corners_lps_mm(), 1e-6 * np.abs(wanted.corners_lps_mm()).max(), "grid"
    )


def _transformed(rng: np.random.Generator, folder: Path) -> None:
    grid = _drawn(rng)
    field = rng.normal(0, 0.1 * min(grid.spacing_mm), (*grid.shape, grid.dimension))
    made = displacement_transform(field, grid)
    suffix = str(rng.choice([".h5", ".tfm", ".nrrd", ".mha", ".nii.gz"]))
    path = folder / f"transform{suffix}"
    if suffix in (".h5", ".tfm"):
        sitk.WriteTransform(made, str(path))
    else:
        write_image(made.GetDisplacementField(), path)
    points = _places(grid, rng)
    found = read_transform(path, grid.dimension)
    there, itk = ([t.TransformPoint(p) for p in points.tolist()] for t in (found, made))
    _close(there, itk, 1e-3 * min(grid.spacing_mm) + 1e-6 * np.abs(grid.corners_lps_mm()).max(), f"a point by {suffix}")


def _registered(rng: np.random.Generator, folder: Path) -> None:
    """Short registrations: the exported transforms are the maps, and the warped image is what SimpleITK resamples."""
    grid = _drawn(rng, 12, 24)
    smooth = sitk.SmoothingRecursiveGaussian
    fixed, moving = (smooth(_image(grid, rng), [1.5 * s for s in grid.spacing_mm]) for _ in range(2))
    settings = replace(samples.SHORT, align=str(rng.choice(["none", "centres", "affine"])),
                       fit=replace(samples.SHORT.fit, iterations=8, learning_rate=0.02))  # fmt: skip
    try:
        result = nephi.register(fixed, moving, settings=settings, auto_mask=bool(rng.random() < 0.5), device="cpu")
    except NephiError as error:
        if "affine" in str(error) or "overlap" in str(error):  # noise on noise
            return
        raise
    points = _places(grid, rng)
    for inverse in (False, True):
        onto, way = (result.moving_grid, result.inverse) if inverse else (result.fixed_grid, result.forward)
        transform, error = result.transform(inverse=inverse), result.sampled(onto, inverse)[2]
        points_in = _places(onto, rng)
        there = [transform.TransformPoint(p) for p in points_in.tolist()]
        # what the result says of its own transform, at other points than these
        _close(there, way(points_in), 1.5 * error["max_mm"] + 1e-4, "a point by the exported transform")
    result.save(path := folder / "registration.safetensors")
    loaded = nephi.Registration.load(path)
    _close(
        loaded.forward(points), result.forward(points), 1e-6 * np.abs(points).max() + 1e-9, "a point by the saved maps"
    )
    itk = sitk.Resample(moving, fixed, result.transform(), sitk.sitkLinear, float(sitk.GetArrayFromImage(moving).min()))
    off = np.abs(sitk.GetArrayFromImage(result.warp(moving)) - sitk.GetArrayFromImage(itk))
    _close(np.quantile(off, 0.98), 0.0, 1e-2 * float(np.ptp(sitk.GetArrayFromImage(moving))), "a warped value")


PROPERTIES: dict[str, Callable[[np.random.Generator, Path], None]] = {
    "images written and read": _written,
    "images converted by ITK": _converted,
    "images in other formats": _kept,
    "points and indices": _points,
    "resampling": _resampled,
    "transforms written and read": _transformed,
    "registration, export and warp": _registered,
}


def check_property(kind: str, seed: int) -> Outcome:
    """One draw of a property."""
    folder = Path(tempfile.mkdtemp(prefix="nephi-faults-"))
    try:
        PROPERTIES[kind](np.random.default_rng([seed, *kind.encode()]), folder)
        return Outcome("property", kind, seed, RIGHT)
    except Exception as error:
        return Outcome("property", kind, seed, WRONG, said=f"{type(error).__name__}: {str(error)[:300]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
