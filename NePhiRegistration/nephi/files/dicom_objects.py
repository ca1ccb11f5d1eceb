"""DICOM objects of a registration: Deformable Spatial Registration, read and written, and derived image series.

The direction, about which programs disagree: an object takes points of its *own* frame of reference (the registered
one, of the fixed image) to the *source* frame of reference (of the moving image), by the matrix before the grid, the
grid's offsets, and the matrix after it. A Spatial Registration (without a grid) goes the other way: its matrices take
points of the images they refer to into the object's frame.
"""

from __future__ import annotations

import datetime
import importlib
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..journal import step
from ..space.affine import Affine
from ..space.grid import Grid
from ..version import __version__
from .dicom_elements import is_complete, lengths_fit
from .geometry import check_geometry
from .writing import replaced

DEFORMABLE, RIGID = "1.2.840.10008.5.1.4.1.1.66.3", "1.2.840.10008.5.1.4.1.1.66.1"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_REFERENCED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
               "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")  # fmt: skip

_NEEDED = ("ImagePositionPatient", "FrameOfReferenceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


@dataclass(frozen=True)
class Series:
    """Headers of a series' slices, without pixels."""

    headers: list[Any]

    @property
    def first(self) -> Any:
        return self.headers[0]

    @property
    def frame(self) -> str:
        return str(self.first.FrameOfReferenceUID)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings of values that the standard does not allow off."""
    with warnings.catch_warnings(action="ignore"):
        yield


def pydicom_module() -> Any:
    """The package pydicom; raises NephiError where it is not installed."""
    try:
        return importlib.import_module("pydicom")
    except ModuleNotFoundError:
        raise NephiError('this needs the package pydicom; install it: pip install "nephi[dicom]"') from None


def read_series(folder: Path, uids: tuple[str, ...] = ()) -> Series:
    """The headers of the one series in a folder, or of that one of ``uids``. Raises NephiError where it is not one."""
    if not folder.is_dir():
        raise NephiError(f"{folder} is not a folder of a DICOM series")
    found: dict[str, list[Any]] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        header = read_header(path) if is_dicom(path) else None
        if header is None or any(not header.get(name) for name in _NEEDED):
            notice(f"{path} is not a DICOM image in a frame of reference; it was skipped.")
        else:
            found.setdefault(str(header.SeriesInstanceUID), []).append(header)
    named = [uid for uid in found if uid in uids] if len(found) > 1 else list(found)
    if len(named) != 1:
        raise NephiError(
            f"{folder} contains {len(found)} DICOM series with a frame of reference; choose one with --series"
        )
    return Series(found[named[0]])


_FAILURES = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    struct.error,
)  # fmt: skip


def damaged() -> tuple[type[Exception], ...]:
    """What pydicom raises for invalid bytes."""
    errors = pydicom_module().errors
    return (*_FAILURES, errors.InvalidDicomError, errors.BytesLengthException)


@quiet()
def read_header(path: Path) -> Any:
    """All of a DICOM file but its pixels; raises NephiError."""
    pydicom = pydicom_module()
    try:
        if not lengths_fit(path):
            raise ValueError
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for name in (*_NEEDED, *_REFERENCED):  # values are decoded when accessed
            header.get(name)
        return header
    except damaged():
        raise NephiError(f"{path} is damaged: its DICOM header cannot be read") from None


@contextmanager
def complete_object(path: Path, what: str) -> Iterator[None]:
    """While ``what`` is read from a DICOM file: raises NephiError if it is truncated or has unusable values."""
    try:
        if not is_complete(path):
            raise ValueError("it is cut off or damaged")
        with quiet():
            yield
    except damaged() as error:
        raise NephiError(f"{path} is not a complete DICOM {what}: {' '.join(str(error).split())}") from None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def object_class(path: Path) -> str:
    """The SOP class of a DICOM file, "" for other files. Raises NephiError where pydicom is not installed."""
    return str(read_header(path).get("SOPClassUID", "")) if is_dicom(path) else ""


# ---- registration objects -------------------------------------------------------------------------------


def read_registration(path: Path) -> sitk.Transform | None:
    """A (Deformable) Spatial Registration as a transform of points of its frame to the source; None for other objects.

    Raises NephiError for an object that is damaged, or registers several sources.
    """
    data = read_header(path)
    kind = str(data.get("SOPClassUID", ""))
    if kind not in (DEFORMABLE, RIGID):
        return None
    with complete_object(path, "registration object"):
        if not data.original_encoding[1]:
            raise ValueError("it is big-endian")
        if kind == RIGID:
            return _rigid(data, path)
        items = [item for item in data.DeformableRegistrationSequence if _grids(item)]
        if len(items) != 1:
            raise NephiError(f"{path} contains {len(items)} deformations; only one is supported")
        return _deformable(items[0], path)


def _grids(item: Any) -> list[Any]:
    return list(item.get("DeformableRegistrationGridSequence") or [])


def _matrix(item: Any, name: str) -> Affine:
    return _affine(item[name][0].FrameOfReferenceTransformationMatrix) if name in item else Affine.identity(3)


def _affine(values: Any) -> Affine:
    matrix = np.array(values, float).reshape(4, 4)
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
        raise ValueError("its matrix is not affine")
    return Affine(matrix[:3, :3], matrix[:3, 3])


def _deformable(item: Any, path: Path) -> sitk.DisplacementFieldTransform:
    described = _grids(item)[0]
    row, column = np.array(described.ImageOrientationPatient, float).reshape(2, 3)
    axes = np.stack([row, column, np.cross(row, column)], 1)
    size = tuple(int(n) for n in described.GridDimensions)
    spacing, origin = (tuple(map(float, v)) for v in (described.GridResolution, described.ImagePositionPatient))
    check_geometry(spacing, origin, axes.ravel(), str(path))
    grid = Grid(size, spacing, origin, tuple(axes.ravel().tolist()))
    offsets = np.frombuffer(described.VectorGridData, "<f4").astype(float).reshape(*grid.shape, 3)
    if not np.isfinite(offsets).all():
        raise ValueError("its grid is partly undefined")
    before = _matrix(item, "PreDeformationMatrixRegistrationSequence")
    after = _matrix(item, "PostDeformationMatrixRegistrationSequence")
    points = grid.slab_lps_mm(0, grid.shape[0]).reshape(*grid.shape, 3)
    return sitk.DisplacementFieldTransform(grid.image(after(before(points) + offsets) - points, vector=True))


def _rigid(data: Any, path: Path) -> sitk.AffineTransform:
    matrices = {}
    for item in data.RegistrationSequence:
        whole = Affine.identity(3)
        for part in item.MatrixRegistrationSequence[0].MatrixSequence:
            one = _affine(part.FrameOfReferenceTransformationMatrix)
            whole = Affine(one.matrix @ whole.matrix, one(whole.offset_mm))
        matrices[str(item.FrameOfReferenceUID)] = whole
    own = matrices.pop(str(data.FrameOfReferenceUID), Affine.identity(3))
    if len(matrices) != 1:
        raise NephiError(f"{path} registers {len(matrices)} other frames of reference; only one is supported")
    (source,) = matrices.values()
    back = source.inverse()
    return Affine(back.matrix @ own.matrix, back(own.offset_mm)).transform()


@quiet()
def write_registration(
    path: Path, grid: Grid, offsets: np.ndarray, after: Affine, registered: Series, source: Series
) -> None:
    """A Deformable Spatial Registration: points of ``registered`` -> + offsets -> ``after`` -> points of ``source``.

    ``offsets`` (z, y, x, 3) in LPS mm on ``grid``. Raises NephiError where the file cannot be written.
    """
    pydicom = pydicom_module()
    if np.linalg.det(grid.axes) < 0:  # the third axis of DICOM is the product of the others
        grid, offsets = _flipped(grid), offsets[::-1]
    data = new_object(DEFORMABLE, registered, "REG")
    data.FrameOfReferenceUID = registered.frame
    data.PositionReferenceIndicator = str(registered.first.get("PositionReferenceIndicator", "") or "")
    data.ContentLabel, data.ContentDescription = "REGISTRATION", "Deformation of the source into this frame"
    data.ContentCreatorName = ""
    item, described = pydicom.Dataset(), pydicom.Dataset()
    item.SourceFrameOfReferenceUID = source.frame
    item.ReferencedImageSequence = [reference(header) for header in source.headers]
    item.RegistrationTypeCodeSequence = [coded("125024", "DCM", "Image Content-based Alignment")]
    item.PreDeformationMatrixRegistrationSequence = [_matrix_item(Affine.identity(3))]
    item.PostDeformationMatrixRegistrationSequence = [_matrix_item(after)]
    described.ImagePositionPatient = [decimal(v) for v in grid.origin_lps_mm]
    described.ImageOrientationPatient = [decimal(v) for v in (*grid.axes[:, 0], *grid.axes[:, 1])]
    described.GridDimensions = list(grid.size)
    described.GridResolution = list(map(float, grid.spacing_mm))
    described.VectorGridData = np.ascontiguousarray(offsets, "<f4").tobytes()
    item.DeformableRegistrationGridSequence = [described]
    data.DeformableRegistrationSequence = [item]
    own, others = series_reference(registered), series_reference(source)
    if registered.first.StudyInstanceUID == source.first.StudyInstanceUID:
        data.ReferencedSeriesSequence = [own, others]
    else:
        data.ReferencedSeriesSequence = [own]
        study = pydicom.Dataset()
        study.StudyInstanceUID, study.ReferencedSeriesSequence = source.first.StudyInstanceUID, [others]
        data.StudiesContainingOtherReferencedInstancesSequence = [study]
    with replaced(path.parent) as scratch:
        save_object(data, scratch / path.name)


def _flipped(grid: Grid) -> Grid:
    axes = grid.axes * np.array([1.0, 1.0, -1.0])
    origin = grid.to_lps_mm([0, 0, grid.size[2] - 1])
    return Grid(grid.size, grid.spacing_mm, tuple(origin.tolist()), tuple(axes.ravel().tolist()))


def _matrix_item(affine: Affine) -> Any:
    item = pydicom_module().Dataset()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = affine.matrix, affine.offset_mm
    item.FrameOfReferenceTransformationMatrix = [decimal(v) for v in matrix.ravel()]
    rigid = np.allclose(affine.matrix @ affine.matrix.T, np.eye(3), atol=1e-6)
    item.FrameOfReferenceTransformationMatrixType = "RIGID" if rigid else "AFFINE"
    return item


def decimal(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return pydicom_module().valuerep.format_number_as_ds(float(value))


def coded(value: str, scheme: str, meaning: str) -> Any:
    """An item of a code sequence."""
    code = pydicom_module().Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def reference(header: Any) -> Any:
    """An item that names a slice."""
    item = pydicom_module().Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def series_reference(series: Series) -> Any:
    """An item that names a series with its slices."""
    item = pydicom_module().Dataset()
    item.ReferencedInstanceSequence = [reference(header) for header in series.headers]
    item.SeriesInstanceUID = series.first.SeriesInstanceUID
    return item


# ---- derived images -------------------------------------------------------------------------------------


@quiet()
def write_series(image: sitk.Image, folder: Path, fixed: Series, moving: Series, description: str) -> list[Path]:
    """A warped image as slices in the fixed image's frame of reference, derived from the moving series.

    Values are stored as int16, with the slope that they need. Raises NephiError where files cannot be written.
    """
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise NephiError("a DICOM series needs a 3D image with one component")
    array = sitk.GetArrayFromImage(image).astype(float)
    low, high = float(array.min()), float(array.max())
    whole = np.array_equal(array, np.round(array)) and low >= -32768 and high <= 32767
    slope = 1.0 if whole else max((high - low) / 65535, 1e-10)
    shift = 0.0 if whole else low + 32768 * slope
    slope, shift = float(decimal(slope)), float(decimal(shift))
    stored = np.clip(np.round((array - shift) / slope), -32768, 32767).astype("<i2")
    grid = Grid.of(image)
    uid = pydicom_module().uid.generate_uid()
    with replaced(folder) as scratch:
        for k, slice_ in enumerate(stored):
            data = _slice(grid, k, slice_, fixed, moving)
            data.SeriesInstanceUID, data.SeriesDescription = uid, description
            data.RescaleSlope, data.RescaleIntercept = decimal(slope), decimal(shift)
            save_object(data, scratch / f"{k + 1:04d}.dcm")
    return [folder / f"{k + 1:04d}.dcm" for k in range(len(stored))]


def _slice(grid: Grid, k: int, stored: np.ndarray, fixed: Series, moving: Series) -> Any:
    data = new_object(str(moving.first.SOPClassUID), fixed, str(moving.first.Modality))
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    data.DerivationDescription = "Deformable registration to the frame of reference of another series"
    data.SourceImageSequence = [reference(header) for header in moving.headers]
    data.FrameOfReferenceUID = fixed.frame
    data.PositionReferenceIndicator = str(fixed.first.get("PositionReferenceIndicator", "") or "")
    data.InstanceNumber = k + 1
    data.ImagePositionPatient = [decimal(v) for v in grid.to_lps_mm([0, 0, k])]
    data.ImageOrientationPatient = [decimal(v) for v in (*grid.axes[:, 0], *grid.axes[:, 1])]
    data.PixelSpacing = [decimal(grid.spacing_mm[1]), decimal(grid.spacing_mm[0])]
    data.SliceThickness = decimal(grid.spacing_mm[2])
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleType = "HU" if data.Modality == "CT" else "US"
    for name in ("KVP", "AcquisitionNumber"):
        setattr(data, name, moving.first.get(name, None))
    data.PatientPosition = fixed.first.get("PatientPosition", "") or ""
    data.PixelData = stored.tobytes()
    return data


def new_object(kind: str, of: Series, modality: str) -> Any:
    """A new object of the patient and study of a series, in a series of its own."""
    pydicom = pydicom_module()
    data, now = pydicom.Dataset(), datetime.datetime.now()
    for name in _REFERENCED:
        setattr(data, name, of.first.get(name, "") or "")
    data.SOPClassUID, data.SOPInstanceUID = kind, pydicom.uid.generate_uid()
    data.SeriesInstanceUID, data.Modality = pydicom.uid.generate_uid(), modality
    data.SeriesNumber, data.InstanceNumber = 9000, 1
    data.Manufacturer = data.ManufacturerModelName = "NePhi"
    data.DeviceSerialNumber, data.SoftwareVersions = "1", __version__
    data.Laterality = of.first.get("Laterality", "") or ""
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.SeriesDate = data.ContentDate = data.InstanceCreationDate = date
    data.SeriesTime = data.ContentTime = data.InstanceCreationTime = time
    return data


def save_object(data: Any, path: Path, implicit: bool = False) -> None:
    """Write an object with the header that a file of it has; ``implicit``: values may be longer than 64 KiB."""
    pydicom = pydicom_module()
    step("write", path)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    syntaxes = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian
    data.file_meta.TransferSyntaxUID = syntaxes[implicit]
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    try:
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    except OSError:
        raise
    except damaged() as error:  # attributes copied from the series
        raise NephiError(f"cannot write {path.name}: {' '.join(str(error).split())}") from None
