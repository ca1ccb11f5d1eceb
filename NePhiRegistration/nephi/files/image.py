"""Reading, checking and writing images; masks; the intensity window."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..space.grid import Grid

_HIGHEST_LABEL = 1000  # beyond it an image was taken for a label map
_NOT_FINITE = "{role}: the image holds NaN or infinite values; replace them first"
_SMALLEST = 8  # voxels per axis; below this there is nothing to register


def read_image(path: str | Path, role: str = "image") -> sitk.Image:
    """A scalar 2D or 3D image from NIfTI, NRRD, MetaImage, ... or a folder with one DICOM series.

    Raises NephiError if the file is missing, unreadable, 4D, colour, tiny, constant or not finite.
    """
    path = Path(path)
    if not path.exists():
        raise NephiError(f"{role}: no such file or folder: {path}")
    try:
        with _quiet():
            image = _read_dicom(path, role) if path.is_dir() else sitk.ReadImage(str(path))
    except RuntimeError:
        raise NephiError(f"{role}: cannot read {path} as an image (NIfTI, NRRD, MetaImage or a DICOM folder)") from None
    if path.name.endswith((".nii", ".nii.gz")) and _nifti_not_finite(path):
        raise NephiError(_NOT_FINITE.format(role=role))
    return check_image(image, role)


def _nifti_not_finite(path: Path) -> bool:
    """Whether a NIfTI-1 file holds NaN or infinite values, which ITK silently reads as 0."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rb") as file:
        header = file.read(352)
        order = "<" if header[:4] == (348).to_bytes(4, "little") else ">"
        kind = {16: "f4", 64: "f8"}.get(int(np.frombuffer(header, f"{order}i2", 1, 70)[0]))
        if kind is None or len(header) < 352:
            return False
        file.seek(int(np.frombuffer(header, f"{order}f4", 1, 108)[0]))
        while part := file.read(2**24):
            values = np.frombuffer(part[: len(part) // 8 * 8], order + kind)
            if not np.isfinite(values).all():
                return True
    return False


def _read_dicom(folder: Path, role: str) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise NephiError(f"{role}: no DICOM series in folder {folder}")
    if len(series) > 1:
        raise NephiError(f"{role}: {len(series)} DICOM series in {folder}; put the one to use in a folder of its own")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    return reader.Execute()


@contextmanager
def _quiet() -> Iterator[None]:
    """SimpleITK's own warnings off: errors are raised as one line."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def check_image(image: sitk.Image, role: str) -> sitk.Image:
    """The image, unchanged; raises NephiError if it cannot be registered."""
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise NephiError(
            f"{role}: a colour or vector image ({image.GetNumberOfComponentsPerPixel()} components per "
            "voxel); give a scalar one"
        )
    if image.GetDimension() not in (2, 3):
        raise NephiError(f"{role}: the image is {image.GetDimension()}D; give one 2D or 3D volume")
    if min(image.GetSize()) < _SMALLEST:
        raise NephiError(
            f"{role}: {'x'.join(map(str, image.GetSize()))} voxels is too small; {_SMALLEST} per axis are needed"
        )
    array = sitk.GetArrayViewFromImage(image)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise NephiError(_NOT_FINITE.format(role=role))
    if low == high:
        raise NephiError(f"{role}: every voxel has the same value {low:g}; there is nothing to register")
    return image


def check_mask(mask: sitk.Image, image: sitk.Image, role: str) -> sitk.Image:
    """The mask as bytes, 0 or 1; raises NephiError if it is empty or lies on another grid."""
    if mask.GetDimension() != image.GetDimension() or not Grid.of(mask).same_as(Grid.of(image)):
        raise NephiError(
            f"{role}: the mask does not lie on its image's grid (size, spacing, origin, direction); "
            "resample it to the image first"
        )
    if mask.GetNumberOfComponentsPerPixel() != 1:
        raise NephiError(f"{role}: the mask has several components per voxel; give a scalar one")
    if mask.GetPixelID() != sitk.sitkUInt8 or sitk.GetArrayViewFromImage(mask).max() > 1:
        mask = sitk.Cast(mask != 0, sitk.sitkUInt8)
    if not sitk.GetArrayViewFromImage(mask).any():
        raise NephiError(f"{role}: the mask is empty")
    return mask


def read_mask(path: str | Path, image: sitk.Image, role: str) -> sitk.Image:
    return check_mask(_read_file(path, role), image, role)


def read_regions(path: str | Path, image: sitk.Image, role: str = "regions") -> sitk.Image:
    """A label map (0: no region) on the image's grid, as integers; raises NephiError if it is not one."""
    labels = _read_file(path, role)
    check_mask(labels, image, role)
    array = sitk.GetArrayViewFromImage(labels)
    if array.min() < 0 or array.max() > _HIGHEST_LABEL or (array != np.floor(array)).any():
        raise NephiError(f"{role}: {path} is no label map: whole numbers from 0 to {_HIGHEST_LABEL} are expected")
    return sitk.Cast(labels, sitk.sitkUInt16)


def _read_file(path: str | Path, role: str) -> sitk.Image:
    path = Path(path)
    if not path.exists():
        raise NephiError(f"{role}: no such file: {path}")
    try:
        with _quiet():
            return sitk.ReadImage(str(path))
    except RuntimeError:
        raise NephiError(f"{role}: cannot read {path} as an image") from None


def write_image(image: sitk.Image, path: Path) -> None:
    """Write to a scratch file beside ``path`` and rename it, so that no partial file appears."""
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".nephi-", suffix=suffix)
    os.close(handle)
    try:
        sitk.WriteImage(image, name, True, 1)
        os.replace(name, path)
    except RuntimeError:
        raise NephiError(f"cannot write {path}: use a known image type such as .nii.gz, .nrrd or .mha") from None
    finally:
        Path(name).unlink(missing_ok=True)
