"""Small DICOM and NIfTI files, written byte by byte or tag by tag, with whatever is wrong with them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import SimpleITK as sitk

CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "c8": 32, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024}


def textured(size=(14, 12, 10), spacing_mm=(0.8, 0.9, 2.5), origin=(-30.0, 12.0, -200.0), seed=0) -> sitk.Image:
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-1000, 500, size[::-1]).astype(np.int16))
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin)
    return image


def write_dicom(image, folder: Path, slices=None, *, uid="1.2.826.0.1.3680043.2.1125.1", first=1, move=None, tags=None):
    """One file per slice. ``move(k, p) -> p``: another place; ``tags``: {tag: value}, or a function of k giving it."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    axes = np.reshape(image.GetDirection(), (3, 3))
    for k in range(image.GetDepth()) if slices is None else slices:
        part = image[:, :, k]
        place = np.array(image.TransformIndexToPhysicalPoint((0, 0, k)))
        place = place if move is None else move(k, place)
        known = {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{uid}.{first + k}",
            "0020|000d": "1.2.3", "0020|000e": uid, "0020|0013": str(first + k),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place),
            "0020|0037": "\\".join(f"{v:.6f}" for v in [*axes[:, 0], *axes[:, 1]]),
        }  # fmt: skip
        for key, value in (known | (tags(k) if callable(tags) else tags or {})).items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{first + k:04d}.dcm"))
        writer.Execute(part)


def write_nifti(path: Path, array, matrix, *, order="<", pixdim=None, quaternion=(0, 0, 1), qfac=1.0, sform=1, qform=1,
                slope=1.0, intercept=0.0, units=2, size=None, intent=0, raw=None):  # fmt: skip
    """NIfTI-1 of an array (z, y, x); ``matrix`` (3, 4) index -> RAS is the sform, the qform is the quaternion's."""
    array = np.asarray(array)
    kind = array.dtype.str[1:]
    dim = list(size or array.shape[::-1])
    dim = [len(dim), *dim] + [1] * (7 - len(dim))
    spacing = np.linalg.norm(np.asarray(matrix)[:, :3], axis=0)
    pix = [qfac, *(spacing if pixdim is None else pixdim), 1, 1, 1, 1]
    head = bytearray(352)
    for at, form, values in (
        (0, "i", [348]), (40, "8h", dim), (68, "h", [intent]), (70, "hh", [CODES[kind], array.dtype.itemsize * 8]),
        (76, "8f", pix), (108, "f", [352]), (112, "ff", [slope, intercept]), (123, "b", [units]),
        (252, "hh", [qform, sform]), (256, "6f", [*quaternion, *np.asarray(matrix)[:, 3]]),
        (280, "12f", np.asarray(matrix).ravel()),
    ):  # fmt: skip
        struct.pack_into(order + form, head, at, *values)
    head[344:348] = b"n+1\0"
    data = bytes(head) + (array.astype(order + kind).tobytes() if raw is None else raw)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


def write_frames(image, path: Path, *, order=None, move=None, slopes=None, turn=None):
    """A multi-frame CT by pydicom, a frame for each slice in ``order``; ``move(k, p) -> p``, ``turn(k) -> cosines``."""
    import pydicom

    def group(name, **values):
        data, item = pydicom.Dataset(), pydicom.Dataset()
        for key, value in values.items():
            setattr(item, key, [f"{v:.6f}" for v in np.ravel(value)])
        setattr(data, name, [item])
        return data

    data, array = pydicom.Dataset(), sitk.GetArrayFromImage(image)
    order, spacing = list(range(len(array)) if order is None else order), image.GetSpacing()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = data.SeriesInstanceUID = "1.2.3.4"
    data.Modality, data.NumberOfFrames, data.PixelData = "CT", len(order), array[order].tobytes()
    _, data.Rows, data.Columns = array.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    shared = group("PixelMeasuresSequence", PixelSpacing=spacing[1::-1])
    each = []
    for k in order:
        place = np.array(image.TransformIndexToPhysicalPoint((0, 0, k)))
        cosines = np.reshape(image.GetDirection(), (3, 3)).T[:2] if turn is None else turn(k)
        frame = group("PlanePositionSequence", ImagePositionPatient=place if move is None else move(k, place))
        frame.update(group("PlaneOrientationSequence", ImageOrientationPatient=cosines))
        scale = {"RescaleSlope": 1 if slopes is None else slopes[k], "RescaleIntercept": 0}
        frame.update(group("PixelValueTransformationSequence", **scale))
        each.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], each
    data.save_as(path, enforce_file_format=True)


ENCODINGS = ("explicit, closed", "explicit, open", "implicit, closed", "implicit, open", "deflated, open")


def encoded(path: Path, encoding: str) -> bytes:
    """A DICOM object, written again by pydicom: its sequences with their lengths (closed) or with marks (open)."""
    import pydicom

    data = pydicom.dcmread(path)
    syntax, sequences = encoding.split(", ")

    def mark(dataset, element) -> None:
        if element.VR == "SQ":
            element.is_undefined_length = sequences == "open"
            for item in element.value:
                item.is_undefined_length_sequence_item = sequences == "open"

    data.walk(mark)
    uids = {"implicit": "ImplicitVRLittleEndian", "deflated": "DeflatedExplicitVRLittleEndian"}
    data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, uids.get(syntax, "ExplicitVRLittleEndian"))
    pydicom.dcmwrite(path, data, enforce_file_format=True, implicit_vr=syntax == "implicit", little_endian=True)
    return path.read_bytes()


def cuts(whole: bytes) -> list[int]:
    """Lengths at which to cut a DICOM file: anywhere after its kind, many near its end."""
    anywhere = np.linspace(350, len(whole) - 80, 25).astype(int).tolist()
    return [*anywhere, *range(len(whole) - 76, len(whole), 4), len(whole) - 1]
