"""DICOM series and objects, in every encoding of DICOM, as the samples; what they state is read by pydicom."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from nephi.errors import NephiError
from nephi.files.dicom_objects import read_series, write_registration
from nephi.files.dicom_segmentations import is_segmentation, read_segmentation, write_segmentation
from nephi.files.dicom_structures import Structure, filled, is_structure_set, read_structures, write_structures
from nephi.space.affine import Affine

from Testing.core.files import ENCODINGS, encoded, write_frames

from . import samples
from .exchanged import FIELD, sampled, through_field
from .pool import kept_folder
from .stated import by_itk, dicom


def series(folder: Path, rng: np.random.Generator) -> Path:
    """The file in the middle of a series with a frame of reference."""
    path = samples.dicom(folder, rng)
    for file in path.parent.iterdir():
        data = pydicom.dcmread(file)
        data.FrameOfReferenceUID, data.PatientName, data.PatientBirthDate = "1.2.3.4", "Doe^Jane", "19500101"
        data.save_as(file)
    return path


def encoded_series(folder: Path, rng: np.random.Generator) -> Path:
    """A series with a sequence in each header, in one of the encodings of DICOM."""
    path, encoding = samples.dicom(folder, rng), str(rng.choice(ENCODINGS))
    for file in path.parent.iterdir():
        data, item = pydicom.dcmread(file), pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = data.SOPClassUID, "1.2.3"
        data.ReferencedImageSequence = [item, item]
        data.save_as(file)
        encoded(file, encoding)
    return path


def read_slices(path: Path) -> Any:
    """The headers that a registration object refers to, once it is written."""
    found = read_series(path.parent)
    write_registration(
        path.parent.parent / "made.dcm", FIELD, np.zeros((*FIELD.shape, 3)), Affine.identity(3), found, found
    )
    return sorted(
        [str(one.SOPInstanceUID), str(one.SeriesInstanceUID), str(one.FrameOfReferenceUID)] for one in found.headers
    )


def slices(path: Path) -> Any:
    found = []
    for file in filter(Path.is_file, path.parent.iterdir()):
        try:
            data = pydicom.dcmread(file, stop_before_pixels=True)
            assert len(data.ImagePositionPatient) == 3
            found.append([str(data.SOPInstanceUID), str(data.SeriesInstanceUID), str(data.FrameOfReferenceUID)])
        except Exception:
            assert file == path
    return sorted(found)


def multi_frame(folder: Path, rng: np.random.Generator) -> Path:
    """A file of ten frames in any order, in one of the encodings of DICOM."""
    write_frames(samples.textured(rng), folder / "frames.dcm", order=rng.permutation(10).tolist())
    encoded(folder / "frames.dcm", str(rng.choice(ENCODINGS)))
    return folder / "frames.dcm"


def frames(path: Path) -> Any:
    """Frame by frame, from the lowest to the highest, at the nearest even places; no DICOM is read by ITK."""
    if path.read_bytes()[128:132] != b"DICM":
        return by_itk(path)
    data = pydicom.dcmread(path)
    shared, each = data.SharedFunctionalGroupsSequence[0], data.PerFrameFunctionalGroupsSequence
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    cosines = np.array([f.PlaneOrientationSequence[0].ImageOrientationPatient for f in each], float)
    assert np.ptp(cosines, axis=0).max() < 0.002
    row, column = cosines[0].reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([f.PlanePositionSequence[0].ImagePositionPatient for f in each], float)
    order = np.argsort(places @ normal)
    step, first = np.polyfit(np.arange(len(order)), (places @ normal)[order], 1)
    places = places[order]
    assert np.abs(places - places[0] - np.outer((places - places[0]) @ normal, normal)).max() < 0.11
    scales = set()
    for frame in each:
        (item,) = frame.get("PixelValueTransformationSequence", [pydicom.Dataset()])
        scales.add((float(item.get("RescaleSlope", 1)), float(item.get("RescaleIntercept", 0))))
    (scale,) = scales
    origin = places[0] + (first - places[0] @ normal) * normal
    return {"spacing_mm": np.array([spacing[1], spacing[0], step]), "origin_lps_mm": origin,
            "direction": np.stack([row, column, normal], 1).ravel(),
            "voxels": data.pixel_array[order].astype(float) * scale[0] + scale[1]}  # fmt: skip


@functools.cache
def _series_of_object() -> Any:
    folder = kept_folder()
    return read_series(series(folder, np.random.default_rng(1)).parent)


def deformable(folder: Path, rng: np.random.Generator) -> Path:
    own = _series_of_object()
    affine = Affine(np.eye(3) + rng.normal(0, 0.05, (3, 3)), rng.normal(0, 5, 3))
    write_registration(folder / "object.dcm", FIELD, sampled(rng).displacement, affine, own, own)
    encoded(folder / "object.dcm", str(rng.choice(ENCODINGS)))
    return folder / "object.dcm"


def rigid(folder: Path, rng: np.random.Generator) -> Path:
    """A Spatial Registration of two frames of reference."""
    data = pydicom.dcmread(deformable(folder, rng))
    del data.DeformableRegistrationSequence
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.1"
    items = []
    for frame, shift in (("1.2.3.4", np.zeros(3)), ("1.2.3.5", rng.normal(0, 5, 3))):
        item, matrices, one = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        matrix = np.eye(4)
        matrix[:3, 3] = shift
        one.FrameOfReferenceTransformationMatrix = [f"{v:.6f}" for v in matrix.ravel()]
        one.FrameOfReferenceTransformationMatrixType = "RIGID"
        matrices.MatrixSequence = [one]
        item.FrameOfReferenceUID, item.MatrixRegistrationSequence = frame, [matrices]
        items.append(item)
    data.RegistrationSequence = items
    data.save_as(folder / "object.dcm")
    encoded(folder / "object.dcm", str(rng.choice(ENCODINGS)))
    return folder / "object.dcm"


def registration_object(path: Path) -> Any:
    """PS3.3, C.20.3.1.1: matrix before, the grid's offsets, matrix after; or the inverse of the source's matrix."""
    data = pydicom.dcmread(path)

    def matrix(values: Any) -> np.ndarray:
        return np.array(values, float).reshape(4, 4)

    if "RegistrationSequence" in data:
        whole = {
            str(item.FrameOfReferenceUID): matrix(
                item.MatrixRegistrationSequence[0].MatrixSequence[0].FrameOfReferenceTransformationMatrix
            )
            for item in data.RegistrationSequence
        }
        own = whole.pop(str(data.FrameOfReferenceUID), np.eye(4))
        (source,) = whole.values()
        back = np.linalg.inv(source) @ own
        return samples._PROBES @ back[:3, :3].T + back[:3, 3]
    (item,) = data.DeformableRegistrationSequence
    (grid,) = item.DeformableRegistrationGridSequence
    size = [int(n) for n in grid.GridDimensions]
    offsets = np.frombuffer(grid.VectorGridData, "<f4").astype(float).reshape(*size[::-1], 3)
    row, column = np.array(grid.ImageOrientationPatient, float).reshape(2, 3)
    step = np.stack([row, column, np.cross(row, column)], 1) * np.array(grid.GridResolution)
    origin = np.array(grid.ImagePositionPatient, float)
    index = np.stack(np.meshgrid(*map(np.arange, size[::-1]), indexing="ij"), -1)[..., ::-1]
    points = index @ step.T + origin
    parts = [np.eye(4), np.eye(4)]
    for k, name in enumerate(("PreDeformationMatrixRegistrationSequence", "PostDeformationMatrixRegistrationSequence")):
        if name in item:
            parts[k] = matrix(item[name].value[0].FrameOfReferenceTransformationMatrix)
    moved = points @ parts[0][:3, :3].T + parts[0][:3, 3] + offsets
    return through_field(moved @ parts[1][:3, :3].T + parts[1][:3, 3] - points, step, origin)


def segmentation(folder: Path, rng: np.random.Generator) -> Path:
    """A SEG of two segments, in one of the encodings of DICOM."""
    array = np.zeros(FIELD.shape, np.uint8)
    array[:3], array[3:] = 1, 2
    array[rng.random(array.shape) < 0.5] = 0
    segments = []
    for number in (1, 2):
        item = pydicom.Dataset()
        item.SegmentNumber, item.SegmentLabel, item.SegmentAlgorithmType = number, f"part {number}", "MANUAL"
        segments.append(item)
    write_segmentation(FIELD.image(array), segments, folder / "seg.dcm", _series_of_object())
    encoded(folder / "seg.dcm", str(rng.choice(ENCODINGS)))
    return folder / "seg.dcm"


def read_segments(path: Path) -> Any:
    """As ``nephi warp`` does; what is no SEG is read as an image, by another door."""
    if not is_segmentation(path):
        raise NephiError("no SEG")
    found = read_segmentation(path)
    named = [[int(item.SegmentNumber), str(item.get("SegmentLabel", ""))] for item in found.segments]
    return {**samples.plain(found.labels), "segments": named}


def segments(path: Path) -> Any:
    """Frame by frame; the stack from the lowest frame to the highest."""
    data = pydicom.dcmread(path)
    shared, frames = data.SharedFunctionalGroupsSequence[0], data.PerFrameFunctionalGroupsSequence
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([f.PlanePositionSequence[0].ImagePositionPatient for f in frames], float)
    along = places @ normal
    step = np.diff(np.unique(np.round(along, 4))).min()
    slices = np.round((along - along.min()) / step).astype(int)
    labels = np.zeros((slices.max() + 1, data.Rows, data.Columns))
    for plane, k, frame in zip(data.pixel_array, slices, frames, strict=True):
        labels[k][plane != 0] = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    named = [[int(item.SegmentNumber), str(item.get("SegmentLabel", ""))] for item in data.SegmentSequence]
    return {"spacing_mm": np.array([spacing[1], spacing[0], step]), "origin_lps_mm": places[np.argmin(along)],
            "direction": np.stack([row, column, normal], 1).ravel(), "voxels": labels, "segments": named}  # fmt: skip


def structures(folder: Path, rng: np.random.Generator) -> Path:
    """A structure set of a region in three planes and a point, in one of the encodings of DICOM."""
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    ring = np.stack([2.5 + 2 * np.cos(turn), 3 + 2 * np.sin(turn), 0 * turn], 1)
    planes = [np.round(ring + (0, 0, 2 * k) + rng.uniform(0, 0.3, 3), 3) for k in range(3)]
    region = Structure("region", planes, interpreted="ORGAN", colour=(255, 0, 0))
    point = Structure("point", points_lps_mm=np.round(rng.uniform(1, 8, (1, 3)), 3))
    write_structures([region, point], folder / "set.dcm", _series_of_object())
    encoded(folder / "set.dcm", str(rng.choice(ENCODINGS)))
    return folder / "set.dcm"


def read_structure_set(path: Path) -> Any:
    """Names and places; regions are filled, too."""
    if not is_structure_set(path):
        raise NephiError("no structure set")
    found = read_structures(path)
    for one in found:
        if one.contours:
            filled(one)
    return [[one.name, one.contours, one.points_lps_mm] for one in found]


def structures_stated(path: Path) -> Any:
    data = pydicom.dcmread(path)
    drawn = {int(item.ReferencedROINumber): item for item in data.ROIContourSequence}
    found = []
    for item in data.StructureSetROISequence:
        parts = [(str(part.ContourGeometricType), np.array(part.ContourData, float).reshape(-1, 3))
                 for part in getattr(drawn.get(int(item.ROINumber)), "ContourSequence", [])]  # fmt: skip
        closed = [places for kind, places in parts if kind in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR") and len(places) > 2]
        points = np.concatenate([np.empty((0, 3)), *(places[:1] for kind, places in parts if kind == "POINT")])
        if closed or len(points):
            found.append([str(item.get("ROIName", "") or f"ROI {item.ROINumber}"), closed, points])
    return found


READ = {
    "DICOM deformable registration": (deformable, samples.read_transform, registration_object, 3000),
    "DICOM spatial registration": (rigid, samples.read_transform, registration_object, 0),
    "DICOM segmentation": (segmentation, read_segments, segments, 0),
    "DICOM structure set": (structures, read_structure_set, structures_stated, 0),
    "DICOM folder, encoded": (encoded_series, samples.read_image_beside, dicom, 1500),
    "DICOM multi-frame": (multi_frame, samples.read_volume, frames, 3000),
    "DICOM headers": (series, read_slices, slices, 1500),
}
