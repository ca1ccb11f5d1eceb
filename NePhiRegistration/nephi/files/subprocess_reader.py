"""Reads files on which ITK may crash in a subprocess, so that a crash becomes an ordinary error.

    python -m nephi.files.subprocess_reader image FILE COPY
    python -m nephi.files.subprocess_reader transform FILE
    python -m nephi.files.subprocess_reader x5 FILE

An image is copied to an NRRD file, which the parent reads. A transform is only tried: HDF5, too, crashes or hangs on
some damaged files.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import SimpleITK as sitk

from .. import process
from ..errors import NephiError
from .dicom_elements import lengths_fit
from .geometry import check_geometry
from .writing import reserve

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_BASE_BYTES, _TIMES = 3 * 2**30, 20  # address space of the process: this, and this many times the file
_HEADER = 1 << 16
_BASE_S, _BYTES_PER_S = 40, 5_000_000


def read_image_in_subprocess(path: Path, role: str) -> sitk.Image:
    """An image in any format that ITK knows; raises NephiError."""
    with _room(path), tempfile.TemporaryDirectory(prefix="nephi-") as folder:
        copy = Path(folder) / "copy.nrrd"
        _run(["image", str(path), str(copy)], path, f"{role}: cannot read {path} as an image")
        return sitk.ReadImage(str(copy))


def try_transform(path: Path, kind: str = "transform") -> bool:
    """Whether ITK (for ``x5`` nitransforms) can read a transform file.

    Raises NephiError if it crashes, hangs or runs out of memory on it.
    """
    try:
        with _room(path):
            _run([kind, str(path)], path, "")
    except _Unreadable:
        return False
    return True


def several_transforms(path: Path) -> str:
    """The message for a file of several transforms without a composite one."""
    return f"{path} contains several transforms without a composite one, of which ITK would use the first: keep one"


class _Unreadable(NephiError):
    """ITK itself refused the file."""


@contextlib.contextmanager
def _room(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        if error.errno == errno.EAGAIN:  # of the number of processes
            raise NephiError(f"cannot start a subprocess to read {path}: {why}") from None
        raise NephiError(f"no space for temporary files while reading {path}: {why}") from None


def _run(arguments: list[str], path: Path, message: str) -> None:
    size = path.stat().st_size
    command = [sys.executable, "-m", __spec__.name, *arguments]
    with tempfile.TemporaryFile() as out:
        child = process.start(command, stdout=out, stderr=out)
        try:
            code = child.wait(_BASE_S + size / _BYTES_PER_S)
        except subprocess.TimeoutExpired:
            raise NephiError(f"reading {path} takes too long; the file is damaged") from None
        finally:
            process.end(child)
    if code == _REFUSED:
        raise _Unreadable(message)
    if code == _FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code == _SEVERAL:
        raise NephiError(several_transforms(path))
    if code:
        raise NephiError(f"{path} is damaged: its reader stopped without a result")


_REFUSED, _FULL, _SEVERAL = 3, 4, 5


_OF_X5 = (OSError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def _main(what: str, path: str, *copy: str) -> int:
    if resource is not None:
        most = _BASE_BYTES + _TIMES * Path(path).stat().st_size
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        if what == "image":
            if _cut(path):
                return _REFUSED
            image = sitk.ReadImage(path)
            # NRRD can't store what is not finite
            check_geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), path)
        elif what == "x5":
            importlib.import_module("nitransforms.io.x5").from_filename(path)
            return 0
        else:
            return _one_transform(path)
    except (RuntimeError, MemoryError, NephiError, *_OF_X5):
        return _REFUSED
    try:
        size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
        reserve(Path(copy[0]), size + _HEADER)  # ITK does not always report a full disk
        sitk.WriteImage(image, copy[0])
    except (RuntimeError, OSError):
        return _FULL
    return 0


class _Warnings(sitk.LoggerBase):
    """Collects ITK's warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def DisplayWarningText(self, text: str) -> None:
        self.texts.append(text)


def _one_transform(path: str) -> int:
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    warnings = _Warnings()
    warnings.SetAsGlobalITKLogger()
    sitk.ReadTransform(path)
    return _SEVERAL if any("more than one transform" in text for text in warnings.texts) else 0


_UNPACKED = ("VTKImageIO", "GiplImageIO", "BMPImageIO", "StimulateImageIO", "BioRadImageIO")


def _cut(path: str) -> bool:
    """Whether a file lacks voxels or (VTK) its geometry, which ITK does not report; in formats without compression."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    kind = reader.GetImageIOFromFileName(path)
    if kind == "GDCMImageIO":
        return not lengths_fit(Path(path))
    if kind not in _UNPACKED or path.lower().endswith(".gz"):
        return False
    with open(path, "rb") as file:
        head = file.read(1024)
    if head.startswith(b"# vtk"):
        start = head[: head.find(b"LOOKUP_TABLE")]
        numbers = rb"[ \t]+([-+]?[\d.]+(?:[eE][-+]?\d+)?)" * 3 + rb"[ \t\r]*\n"
        places = [re.findall(rb"\n" + word + numbers, start) for word in (b"DIMENSIONS", b"SPACING", b"ORIGIN")]
        if b"\0" in start or [len(place) for place in places] != [1, 1, 1]:
            return True  # ITK takes what it cannot read for 1 or 0
        if any(number.count(b".") > 1 for place in places for number in place[0]):
            return True
    text = b"\nASCII" in head
    width = 2 if text else sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    count = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    before = 0 if text else head.find(b"\n", head.find(b"LOOKUP_TABLE")) + 1  # a VTK file's header
    return Path(path).stat().st_size - before < width * count


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
