"""Reading, checking and writing images."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..paths import check_file
from ..space.grid import Grid
from .dicom import read_dicom, read_dicom_file
from .dicom_objects import STRUCTURES, is_dicom
from .geometry import check_geometry
from .headers import META, NRRD, check_header
from .nifti import SUFFIXES as NIFTI
from .nifti import read_nifti
from .subprocess_reader import read_image_in_subprocess
from .writing import by_library, reserve, whole

_HEAD = 4096  # bytes that identify a DICOM file
_LARGEST, _LEAST_RANGE = 1e15, 1e-30  # values whose squares fit single precision
_LEAST_PART = 2**-16  # of the largest value by which values have to differ: single precision has 24 bits
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_SMALLEST = 8  # voxels per axis; smaller images can't be registered


def read_image(path: str | Path, role: str = "image", series: tuple[str, ...] = ()) -> sitk.Image:
    """A scalar 2D or 3D image from NIfTI, NRRD, MetaImage, ... or a folder of DICOM files.

    ``series``: UIDs of DICOM series; if a folder contains several, one of these is read. Raises NephiError if the file
    is missing, unreadable, 4D, colour, tiny, constant, not finite or has an implausible geometry.
    """
    return check_image(open_image(path, role, series), role)


def read_volume(path: str | Path, role: str = "image", series: tuple[str, ...] = ()) -> sitk.Image:
    """As ``read_image``, but of any size and values: to be warped or measured, or for its grid."""
    return check_volume(open_image(path, role, series), role)


def open_image(path: str | Path, role: str, series: tuple[str, ...] = ()) -> sitk.Image:
    """Any image in a file or DICOM folder; NePhi reads every image through this function.

    Raises NephiError for an image that is missing, damaged, contradictory or too large for the memory.
    """
    path = check_file(path, role, "file or folder")
    name = path.name.lower()
    with _quiet():
        try:
            if path.is_dir():
                return read_dicom(path, role, series)
            if name.endswith(NIFTI):
                return read_nifti(path, role)
            if _holds_contours(path):
                raise NephiError(
                    f"{role}: {path} contains contours (RT structure set); convert them to a label map first"
                )
            if is_dicom(path):
                return read_dicom_file(path, role)
            if not name.endswith((*NRRD, *META)) or not check_header(path, role):
                image = read_image_in_subprocess(path, role)
                if name.endswith(_PICTURES):
                    size = " x ".join(f"{mm:g}" for mm in image.GetSpacing())
                    notice(
                        f"{role}: {path.name} does not say where the image lies; a voxel size of {size} mm is assumed."
                    )
                return image
            return sitk.ReadImage(str(path))
        except RuntimeError:
            raise NephiError(
                f"{role}: cannot read {path} as an image (NIfTI, NRRD, MetaImage or a DICOM folder)"
            ) from None
        except MemoryError:
            raise NephiError(f"{role}: there is too little memory to read {path}") from None


def _holds_contours(path: Path) -> bool:
    with open(path, "rb") as file:
        return is_dicom(path) and STRUCTURES.encode() in file.read(_HEAD)


@contextmanager
def _quiet() -> Iterator[None]:
    """SimpleITK's own warnings off: errors are raised as one line."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def check_volume(image: sitk.Image, role: str) -> sitk.Image:
    """The image, unchanged. Raises NephiError unless it is scalar, 2D or 3D, and its voxels lie on a sane grid."""
    components, kind = image.GetNumberOfComponentsPerPixel(), image.GetPixelIDTypeAsString()
    if components != 1:
        raise NephiError(
            f"{role}: this is a colour or vector image ({components} components per voxel); give a scalar image"
        )
    if "complex" in kind or "label" in kind:
        raise NephiError(f"{role}: the voxels are of type '{kind}'; give a scalar image, such as the magnitude")
    if image.GetDimension() not in (2, 3):
        raise NephiError(f"{role}: the image is {image.GetDimension()}D; give one 2D or 3D volume")
    if min(image.GetSize()) < 1:
        raise NephiError(f"{role}: the image has no voxels")
    check_geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), role)
    return image


def check_image(image: sitk.Image, role: str) -> sitk.Image:
    """The image, unchanged; raises NephiError if it cannot be registered."""
    check_volume(image, role)
    if image.GetDimension() == 3 and image.GetDepth() == 1:
        raise NephiError(f"{role}: the image is a single slice of a volume; save it as a 2D image, or give the volume")
    if min(image.GetSize()) < _SMALLEST:
        raise NephiError(
            f"{role}: {'x'.join(map(str, image.GetSize()))} voxels is too small; {_SMALLEST} per axis are needed"
        )
    array = sitk.GetArrayViewFromImage(image)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise NephiError(f"{role}: the image contains NaN or infinite values; replace them first")
    if low == high:
        raise NephiError(f"{role}: every voxel has the same value {low:g}; there is nothing to register")
    if (largest := max(abs(low), abs(high))) > _LARGEST:
        raise NephiError(
            f"{role}: the image contains values up to {largest:.3g}; first replace those that mark missing data"
        )
    if high - low < max(_LEAST_RANGE, _LEAST_PART * largest):
        raise NephiError(
            f"{role}: the values differ by {high - low:.3g} next to {largest:.3g}, too little for single precision; "
            "shift and scale them first"
        )
    return image


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Write an image in the format of the file's name; raises NephiError where that is not possible."""
    with whole(path) as scratch, _quiet():
        refused = f"cannot write {path}: use a known image type such as .nii.gz, .nrrd or .mha"
        with by_library(scratch, _bytes(image), refused):
            sitk.WriteImage(image, str(scratch), True, 1)
        for file in scratch.parent.glob(f"{scratch.name.split('.')[0]}.*"):
            _check_written(file, image)
        if not scratch.name.lower().endswith((*NIFTI, *NRRD, *META)) and not _keeps(scratch, image):
            raise NephiError(
                f"cannot write {path}: this file type cannot store the image's geometry or voxel type; "
                "use .nii.gz, .nrrd or .mha"
            )


def _bytes(image: sitk.Image) -> int:
    return image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()


def _keeps(path: Path, image: sitk.Image) -> bool:
    """Whether a written file has kept the geometry and the voxel type; not every format does."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    held = Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    return reader.GetPixelID() == image.GetPixelID() and held.same_as(Grid.of(image))


def _check_written(path: Path, image: sitk.Image) -> None:
    """Raises OSError if the file is truncated: ITK does not always report a full disk."""
    name, least = path.name.lower(), _bytes(image)
    if not name.endswith((*NIFTI, *NRRD, *META)):
        return
    if name.endswith((*NRRD, *META)):
        try:
            check_header(path, "written")
            return
        except NephiError:
            found = 0
    elif name.endswith(".gz"):
        try:
            with gzip.open(path) as file:
                found = sum(len(part) for part in iter(lambda: file.read(1 << 20), b""))
        except (EOFError, OSError, zlib.error):
            found = 0
    else:
        found = path.stat().st_size
    if name.endswith((".hdr", ".hdr.gz")):
        least = 348
    if found < least:
        path.unlink()
        reserve(path, least)
        raise OSError(None, "the file was truncated; the disk may be full", str(path))
