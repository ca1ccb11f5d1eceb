"""The image series in a folder of DICOM files, to choose from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import NephiError
from .dicom import image_files


@dataclass(frozen=True)
class Series:
    """``images``: number of slices, or of files with several each; ``description``: as the scanner wrote it."""

    uid: str
    description: str
    images: int


def dicom_series(folder: Path, role: str) -> list[Series]:
    """The series of images in a folder, those with most images first; empty without DICOM images.

    Raises NephiError for files that can't be read.
    """
    found = defaultdict(list)
    try:
        for file in image_files(folder, role):
            found[file.series].append(file)
    except OSError as error:
        raise NephiError(f"{role}: {folder} cannot be read: {error.strerror}") from None
    series = [Series(uid, files[0].tags["0008|103e"], len(files)) for uid, files in found.items()]
    return sorted(series, key=lambda one: -one.images)
