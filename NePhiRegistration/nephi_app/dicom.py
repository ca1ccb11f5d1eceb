"""What of a session is written as DICOM objects: series that were opened from folders are what the objects refer to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nephi.errors import NephiError
from NePhiRegistrationLib import dicom_export
from NePhiRegistrationLib.outputs import Outputs

from .files import plain

if TYPE_CHECKING:
    from nephi.files.dicom_objects import Series

    from .applied import Made

_SERIES = "NePhi.Series"  # attribute of scans: folder and UIDs, of which one is that of their series
_FOLDER = "dicom"  # in that of a saved result


def remember(node: Any, path: Path, series: tuple[str, ...]) -> None:
    """Where a scan was opened from, if it was a DICOM folder."""
    if path.is_dir():
        node.SetAttribute(_SERIES, json.dumps([str(path), series]))


def carry(source: Any, made: Any) -> None:
    """What was remembered of a node, and of its segments, to the one that was made of it."""
    for name in (_SERIES, dicom_export.SEGMENTS):
        if source.GetAttribute(name):
            made.SetAttribute(name, source.GetAttribute(name))


def check_frame(path: Path, scan: Any) -> None:
    """Raises NephiError where a DICOM object is in another frame of reference than the scan, if that is known."""
    from nephi.files.dicom_objects import is_dicom, read_header

    if not scan.GetAttribute(_SERIES) or not is_dicom(path):
        return
    header = read_header(path)
    regions = header.get("StructureSetROISequence") or []
    frames = {str(item.get("ReferencedFrameOfReferenceUID", "") or "") for item in regions}
    frames.add(str(header.get("FrameOfReferenceUID", "") or ""))
    if frames - {"", series_of(scan).frame}:
        raise NephiError(f"{path.name} is in another frame of reference than {scan.GetName()}")


def problem(outputs: Outputs) -> str:
    """Why no DICOM objects can be written of a result, in words; "" where they can."""
    for volume in (outputs.fixed, outputs.moving):
        if not volume.GetAttribute(_SERIES):
            return f"{volume.GetName()} was not opened from a DICOM folder."
    return ""


def series_of(node: Any) -> Series:
    """Raises NephiError where its files are no longer what they were."""
    from nephi.files.dicom_objects import read_series

    folder, uids = json.loads(node.GetAttribute(_SERIES))
    return read_series(Path(folder), tuple(uids))


class DicomFiles:
    """The objects of a result; making this reads what they refer to, so that it fails before anything is written."""

    def __init__(self, outputs: Outputs, made: list[Made]):
        if reason := problem(outputs):
            raise NephiError(reason)
        self.outputs, self.made = outputs, made
        self.fixed, self.moving = series_of(outputs.fixed), series_of(outputs.moving)

    def write(self, folder: Path) -> None:
        """Into a folder of their own in this one. Raises NephiError and OSError, with none of them left."""
        place = folder / _FOLDER
        place.mkdir()
        try:
            self._write(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _write(self, place: Path) -> None:
        out = self.outputs
        dicom_export.export(out, place, lambda volume: self.fixed if volume is out.fixed else self.moving)
        dicom_export.write_scan(out.warped, place / "warped", self.fixed, self.moving, "Warped")
        for made in self.made:
            reference, target = (out.moving, self.moving) if made.backwards else (out.fixed, self.fixed)
            if made.is_scan and made.node.GetAttribute(_SERIES):
                dicom_export.write_scan(made.node, place / plain(made.name), target, series_of(made.node), "Warped")
            elif made.has_segments:
                dicom_export.write_segments(made.node, reference, place / f"{plain(made.name)}.dcm", target)
