"""RT structure sets: contours of regions to masks and back, and points; all in points_lps_mm.

Contours of a region within each other in one plane cut holes, as many programs write them. When writing, a contour
reaches its holes by a channel of no width, which every program understands. A contour represents the space half-way to
the next plane of its region.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..space.grid import Grid
from .dicom_objects import (
    STRUCTURES,
    Series,
    complete_object,
    new_object,
    object_class,
    pydicom_module,
    quiet,
    read_header,
    reference,
    save_object,
)
from .writing import replaced

_CLOSED, _POINT = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"), "POINT"
_FLAT_MM = 0.1  # largest distance of a contour's points from their plane
_SAME_PLANE_MM = 0.05
_PIXEL_MM, _PIXELS = 1.0, 32  # of the grid that a region is filled on; a small one is that many pixels wide
_OVER = 4  # samples along each side of a pixel
_INSIDE = 255  # value of a voxel entirely within
_SMOOTH = 0.05  # voxels by which omitted points deviate from a contour


@dataclass(frozen=True)
class Structure:
    """A region by its contours, each (n, 3) points_lps_mm in a plane, or points (n, 3), under a name."""

    name: str
    contours: list[np.ndarray] = field(default_factory=list)
    points_lps_mm: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    interpreted: str = ""  # RT ROI interpreted type, such as ORGAN
    colour: tuple[int, ...] = ()
    frame: str = ""  # UID of the frame of reference


def is_structure_set(path: Path) -> bool:
    """Whether a file is an RT structure set; raises NephiError for a DICOM file where pydicom is not installed."""
    return object_class(path) == STRUCTURES


def read_structures(path: Path) -> list[Structure]:
    """The regions and points of an RT structure set, in its order. Raises NephiError for a damaged file.

    Open and non-planar contours, and regions without any others, are skipped with a notice.
    """
    with complete_object(path, "structure set"):
        data = read_header(path)
        observed = {int(item.ReferencedROINumber): item for item in data.RTROIObservationsSequence}
        drawn = {int(item.ReferencedROINumber): item for item in data.ROIContourSequence}
        found = [
            _structure(item, drawn.get(int(item.ROINumber)), observed.get(int(item.ROINumber)))
            for item in data.StructureSetROISequence
        ]
    if empty := [structure.name for structure in found if not structure.contours and not len(structure.points_lps_mm)]:
        notice(f"Of {path}, {', '.join(empty)}: no closed contour and no point; skipped.")
    return [structure for structure in found if structure.contours or len(structure.points_lps_mm)]


def structure_points(path: Path) -> np.ndarray:
    """All points (n, 3) of an RT structure set, as points_lps_mm, in its order. Raises NephiError without any."""
    if not is_structure_set(path):
        raise NephiError(f"{path} is not an RT structure set, the only DICOM object from which points are read")
    found = np.concatenate([structure.points_lps_mm for structure in read_structures(path)] or [np.empty((0, 3))])
    if not len(found):
        raise NephiError(f"{path} contains contours, but no points")
    return found


def _structure(item: Any, drawn: Any, observed: Any) -> Structure:
    contours, points = [], []
    for contour in (drawn.get("ContourSequence") if drawn is not None else None) or []:
        kind, values = str(contour.ContourGeometricType), np.array(contour.ContourData, float)
        if len(values) != 3 * int(contour.NumberOfContourPoints) or not np.isfinite(values).all():
            raise ValueError(f"a contour of {item.ROIName} lacks points")
        values = values.reshape(-1, 3)
        if kind == _POINT:
            points.append(values[:1])
        elif kind in _CLOSED and len(values) > 2:
            contours.append(values)
    return Structure(
        str(item.get("ROIName", "") or f"ROI {item.ROINumber}"),
        contours,
        np.concatenate([np.empty((0, 3)), *points]),
        str(observed.get("RTROIInterpretedType", "") or "") if observed is not None else "",
        tuple(int(v) for v in drawn.get("ROIDisplayColor") or ()) if drawn is not None else (),
        str(item.get("ReferencedFrameOfReferenceUID", "") or ""),
    )


# ---- contours to masks ----------------------------------------------------------------------------------


def filled(structure: Structure) -> sitk.Image:
    """The share of each voxel in a region, 0 to 255, on a grid of its own in the planes of its contours.

    Raises NephiError for contours that are not flat or not parallel.
    """
    axes = _axes(structure)
    contours = [contour @ axes for contour in structure.contours]  # along the grid's axes; mm
    heights = np.array([contour[:, 2].mean() for contour in contours])
    off = max(np.abs(contour[:, 2] - z).max() for contour, z in zip(contours, heights, strict=True))
    if off > _FLAT_MM:
        raise NephiError(f"{structure.name}: its contours do not lie in parallel planes")
    planes = np.unique(np.round(heights / _SAME_PLANE_MM)) * _SAME_PLANE_MM
    apart = np.diff(planes)
    usual, step = (float(np.median(apart)), float(apart.min())) if len(apart) else (1.0, 1.0)
    everything = np.concatenate(contours)
    low, high = everything[:, :2].min(0), everything[:, :2].max(0)
    pixel = max(min(_PIXEL_MM, float((high - low).max()) / _PIXELS), 0.01)
    corner = low - 2 * pixel
    width, height = (int(n) for n in np.ceil((high - corner) / pixel) + 3)
    count = int(np.round((planes[-1] - planes[0]) / step)) + 1
    array = np.zeros((count + 2, height, width), np.uint8)  # an empty slice on either side
    in_plane = np.abs(heights[:, None] - planes).argmin(1)
    shares = [
        _share([(contours[i][:, :2] - corner) / pixel for i in np.flatnonzero(in_plane == k)], (height, width))
        for k in range(len(planes))
    ]
    for k in range(count):
        z = planes[0] + k * step
        nearest = int(np.argmin(np.abs(planes - z)))
        if abs(planes[nearest] - z) <= max(usual, step) / 2 + _SAME_PLANE_MM:
            array[k + 1] = shares[nearest]
    origin = axes @ [*corner, planes[0] - step]
    grid = Grid((width, height, count + 2), (pixel, pixel, step), tuple(origin.tolist()), tuple(axes.ravel().tolist()))
    return grid.image(array)


def _axes(structure: Structure) -> np.ndarray:
    """Two axes in the planes of the contours and their normal, as columns."""
    largest = max(structure.contours, key=lambda contour: np.linalg.norm(_area(contour)))
    normal = _area(largest)
    length = np.linalg.norm(normal)
    if length < 1e-6:
        raise NephiError(f"{structure.name}: its contours enclose nothing")
    normal = normal / length
    normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
    across = np.eye(3)[0 if abs(normal[0]) < 0.9 else 1]
    first = across - (across @ normal) * normal
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first), normal], 1)


def _area(contour: np.ndarray) -> np.ndarray:
    """The vector area of a closed contour."""
    from_first = contour - contour[0]
    return np.cross(from_first, np.roll(from_first, -1, 0)).sum(0) / 2


def _share(polygons_xy: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The share of each pixel within polygons, which cut holes in each other, 0 to 255.

    Row by row, a sample is inside if the number of borders to its left is odd: all polygons at once, in a thirtieth of
    the time of scikit-image's test of each sample against each edge.
    """
    starts = np.concatenate([(polygon + 0.5) * _OVER - 0.5 for polygon in polygons_xy])  # in samples
    ends = np.concatenate([(np.roll(polygon, -1, 0) + 0.5) * _OVER - 0.5 for polygon in polygons_xy])
    first, stop = (np.ceil(y).astype(int) for y in np.sort([starts[:, 1], ends[:, 1]], 0))
    edge = np.repeat(np.arange(len(starts)), stop - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    (x, y), (run, rise) = starts[edge].T, (ends - starts)[edge].T
    column = np.ceil(x + (row - y) * run / rise).astype(int)
    borders = np.zeros((shape[0] * _OVER, shape[1] * _OVER), np.uint8)
    np.add.at(borders, (row, column), 1)
    inside = np.cumsum(borders, 1, dtype=np.uint8) % 2
    return np.round(inside.reshape(shape[0], _OVER, shape[1], _OVER).mean((1, 3)) * _INSIDE).astype(np.uint8)


def _skimage(name: str) -> Any:
    try:
        return importlib.import_module(f"skimage.{name}")
    except ModuleNotFoundError:
        raise NephiError('this needs the package scikit-image; install it: pip install "nephi[dicom]"') from None


# ---- masks to contours, and files -----------------------------------------------------------------------


def outlined(share: sitk.Image) -> list[np.ndarray]:
    """The contours (n, 3) points_lps_mm, in the slices of an image of shares (see ``filled``), at their half."""
    measure = _skimage("measure")
    grid, found = Grid.of(share), []
    for k, plane in enumerate(sitk.GetArrayViewFromImage(share)):
        if plane.max() < _INSIDE / 2:
            continue
        # an empty border closes contours at the border of the image
        contours = measure.find_contours(np.pad(plane.astype(np.float32), 1), _INSIDE / 2)
        contours = [measure.approximate_polygon(contour, _SMOOTH)[:-1, ::-1] - 1 for contour in contours]
        for contour in _with_holes([contour for contour in contours if len(contour) > 2]):
            found.append(grid.to_lps_mm(np.column_stack([contour, np.full(len(contour), k)])))
    return found


def _with_holes(contours: list[np.ndarray]) -> list[np.ndarray]:
    """Outer contours (n, 2), each joined with its holes, which turn the other way round."""
    inside = _skimage("measure").points_in_poly
    area = [float((c[:, 0] * np.roll(c[:, 1], -1) - np.roll(c[:, 0], -1) * c[:, 1]).sum()) for c in contours]
    # outer ones turn so that theirs is above 0
    outer = sorted((k for k in range(len(area)) if area[k] > 0), key=lambda k: area[k])
    holes: dict[int, list[np.ndarray]] = {k: [] for k in outer}
    for k in range(len(area)):
        around = [j for j in outer if area[k] < 0 and inside(contours[k][:1], contours[j])[0]]
        if around:
            holes[around[0]].append(contours[k])
    return [_joined(contours[k], holes[k]) for k in outer]


def _joined(contour: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """A contour that includes its holes, the nearest first, so that the channels to them do not cross."""
    holes = list(holes)
    while holes:
        gaps = [np.linalg.norm(contour[:, None] - hole, axis=-1) for hole in holes]
        nearest = int(np.argmin([gap.min() for gap in gaps]))
        i, j = np.unravel_index(int(np.argmin(gaps[nearest])), gaps[nearest].shape)
        hole = np.roll(holes.pop(nearest), -int(j), 0)
        contour = np.concatenate([contour[: i + 1], hole, hole[:1], contour[i:]])
    return contour


@quiet()
def write_structures(structures: list[Structure], path: Path, of: Series) -> None:
    """An RT structure set in the frame of reference of a series. Raises NephiError where it cannot be written."""
    pydicom = pydicom_module()
    if not structures:
        raise NephiError("no structure lies within the image: there is nothing to write")
    data = new_object(STRUCTURES, of, "RTSTRUCT")
    del data.Laterality  # of images
    data.OperatorsName = ""
    data.FrameOfReferenceUID = of.frame
    data.PositionReferenceIndicator = str(of.first.get("PositionReferenceIndicator", "") or "")
    data.StructureSetLabel, data.StructureSetName = "Warped", "Warped structures"
    data.StructureSetDate, data.StructureSetTime = data.ContentDate, data.ContentTime
    data.ReferencedFrameOfReferenceSequence = [_frame_of(of)]
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
    for number, structure in enumerate(structures, 1):
        roi, drawn, observation = (pydicom.Dataset() for _ in range(3))
        roi.ROINumber, roi.ReferencedFrameOfReferenceUID, roi.ROIName = number, of.frame, structure.name
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        drawn.ReferencedROINumber = observation.ReferencedROINumber = observation.ObservationNumber = number
        if len(structure.colour) == 3:
            drawn.ROIDisplayColor = list(structure.colour)
        drawn.ContourSequence = [_contour(c, _CLOSED[0], of) for c in structure.contours]
        drawn.ContourSequence += [_contour(p[None], _POINT, of) for p in structure.points_lps_mm]
        observation.RTROIInterpretedType, observation.ROIInterpreter = structure.interpreted, ""
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
        data.RTROIObservationsSequence.append(observation)
    with replaced(path.parent) as scratch:
        # explicit lengths of 16 bits are too short for long contours
        save_object(data, scratch / path.name, implicit=True)


def _contour(points_lps_mm: np.ndarray, kind: str, of: Series) -> Any:
    contour = pydicom_module().Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points_lps_mm)
    contour.ContourData = [f"{value:.4f}" for value in points_lps_mm.ravel()]
    slice_ = _slice_of(points_lps_mm, of)
    if slice_ is not None:
        contour.ContourImageSequence = [reference(slice_)]
    return contour


def _slice_of(points_lps_mm: np.ndarray, of: Series) -> Any:
    """The image that a contour was drawn on."""
    row, column = np.array(of.first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([header.ImagePositionPatient for header in of.headers], float) @ normal
    off = np.abs(places - (points_lps_mm @ normal).mean())
    return of.headers[int(np.argmin(off))] if off.min() < _FLAT_MM else None


def _frame_of(of: Series) -> Any:
    pydicom = pydicom_module()
    frame, study, series = (pydicom.Dataset() for _ in range(3))
    frame.FrameOfReferenceUID = of.frame
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # of a study, as the standard has it
    study.ReferencedSOPInstanceUID = of.first.StudyInstanceUID
    series.SeriesInstanceUID = of.first.SeriesInstanceUID
    series.ContourImageSequence = [reference(header) for header in of.headers]
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    return frame
