"""DICOM Segmentation objects (SEG) as label maps, read and written: label k is the segment with the number k.

Segments are binary and do not overlap, as in a label map. Names, codes and colours of the segments are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..space.grid import Grid
from .dicom_objects import (
    Series,
    coded,
    complete_object,
    decimal,
    new_object,
    object_class,
    pydicom_module,
    quiet,
    reference,
    save_object,
    series_reference,
)
from .geometry import check_geometry
from .writing import replaced

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_MOST_SLICES = 4000
_OFF = 0.1  # largest deviation of a frame from its position, relative to the distance between slices


@dataclass(frozen=True)
class Segmentation:
    """A label map (z, y, x), and the items of the Segment Sequence that its labels are numbers of."""

    labels: sitk.Image
    segments: list[Any]

    @property
    def names(self) -> dict[int, str]:
        """What the labels are called."""
        return {int(one.SegmentNumber): str(one.SegmentLabel) for one in self.segments}


def is_segmentation(path: Path) -> bool:
    """Whether a file is a SEG; raises NephiError for a DICOM file where pydicom is not installed."""
    return object_class(path) == SEGMENTATION


def read_segmentation(path: Path) -> Segmentation:
    """The label map of a SEG; slices of the stack without a frame contain no segment.

    Raises NephiError for fractional or overlapping segments, and for frames that form no regular stack.
    """
    with complete_object(path, "segmentation"):
        data = pydicom_module().dcmread(path)
        if data.SegmentationType != "BINARY":
            raise NephiError(
                f"{path} is a {str(data.SegmentationType).lower()} segmentation; only binary ones are supported"
            )
        array = np.atleast_3d(data.pixel_array) if int(data.NumberOfFrames) > 1 else data.pixel_array[None]
        frames = data.PerFrameFunctionalGroupsSequence
        positions = np.array([_group(data, f, "PlanePosition").ImagePositionPatient for f in frames], float)
        numbers = [int(_group(data, f, "SegmentIdentification").ReferencedSegmentNumber) for f in frames]
        grid, slices = _stack(data, positions, array.shape[1:], path)
        segments = list(data.SegmentSequence)
        labels = np.zeros(grid.shape, np.uint16)
        for plane, k, number in zip(array, slices, numbers, strict=True):
            shown = plane != 0
            if (labels[k][shown] != 0).any():
                raise NephiError(f"{path} has overlapping segments, which a label map cannot represent")
            labels[k][shown] = number
        return Segmentation(grid.image(labels), segments)


def _group(data: Any, frame: Any, name: str) -> Any:
    """A functional group of a frame, or else the one that all frames share."""
    sequence = f"{name}Sequence"
    where = frame if sequence in frame else data.SharedFunctionalGroupsSequence[0]
    return where[sequence].value[0]


def _stack(data: Any, positions: np.ndarray, shape: tuple[int, ...], path: Path) -> tuple[Grid, np.ndarray]:
    """The grid that the frames lie on and the slice of each of them."""
    frames = data.PerFrameFunctionalGroupsSequence
    turns = np.array([_group(data, f, "PlaneOrientation").ImageOrientationPatient for f in frames], float)
    measures = _group(data, frames[0], "PixelMeasures")
    row, column = turns[0].reshape(2, 3)
    normal = np.cross(row, column)
    along = positions @ normal
    apart = np.diff(np.unique(np.round(along, 4)))
    step = float(apart.min()) if len(apart) else float(measures.get("SpacingBetweenSlices", measures.SliceThickness))
    places = (along - along.min()) / step
    first = positions[int(np.argmin(along))]
    aside = positions - first - (along - along.min())[:, None] * normal
    if np.abs(turns - turns[0]).max() > 1e-4 or np.abs(places - np.round(places)).max() > _OFF:
        raise NephiError(f"{path}: its frames do not form a regular stack")
    if np.abs(aside).max() > _OFF * step:
        raise NephiError(f"{path}: its frames are not stacked along their normal")
    slices = np.round(places).astype(int)
    spacing = (float(measures.PixelSpacing[1]), float(measures.PixelSpacing[0]), step)
    axes = np.stack([row, column, normal], 1)
    check_geometry(spacing, first, axes.ravel(), str(path))
    if slices.max() >= _MOST_SLICES:
        raise ValueError("its frames are too far apart")
    size = (shape[1], shape[0], int(slices.max()) + 1)
    return Grid(size, spacing, tuple(first.tolist()), tuple(axes.ravel().tolist())), slices


def write_segmentation(labels: sitk.Image, segments: list[Any], path: Path, of: Series) -> None:
    """A label map as a SEG in the frame of reference of a series, with items of a Segment Sequence as read.

    Raises NephiError if a segment is empty, which DICOM can't represent, or if the file can't be written.
    """
    pydicom = pydicom_module()
    array, grid = sitk.GetArrayViewFromImage(labels), Grid.of(labels)
    if np.linalg.det(grid.axes) < 0:
        raise NephiError("DICOM segmentations need a right-handed grid")
    numbers = {int(item.SegmentNumber): item for item in segments}
    shown = [(number, k) for number in sorted(numbers) for k in np.flatnonzero((array == number).any((1, 2)))]
    if not shown:
        raise NephiError("no segment lies within the image: there is nothing to write")
    data = new_object(SEGMENTATION, of, "SEG")
    del data.Laterality  # as given by the codes of the segments
    data.FrameOfReferenceUID = of.frame
    data.PositionReferenceIndicator = str(of.first.get("PositionReferenceIndicator", "") or "")
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.ContentLabel, data.ContentDescription, data.ContentCreatorName = "SEGMENTATION", "Warped segments", ""
    data.SegmentationType = "BINARY"
    data.LossyImageCompression = "00"
    data.Rows, data.Columns, data.NumberOfFrames = *array.shape[1:], len(shown)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit = data.PixelRepresentation = 0
    present = sorted({number for number, _ in shown})
    data.SegmentSequence = [_renumbered(numbers[number], k) for k, number in enumerate(present, 1)]
    data.ReferencedSeriesSequence = [series_reference(of)]
    data.DimensionOrganizationSequence, data.DimensionIndexSequence = _dimensions()
    shared, measures, turn = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [decimal(grid.spacing_mm[1]), decimal(grid.spacing_mm[0])]
    measures.SliceThickness = measures.SpacingBetweenSlices = decimal(grid.spacing_mm[2])
    turn.ImageOrientationPatient = [decimal(v) for v in (*grid.axes[:, 0], *grid.axes[:, 1])]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    shared.DerivationImageSequence = [_derivation(of)]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = [_frame(grid, present.index(n) + 1, int(k)) for n, k in shown]
    planes = np.stack([array[k] == number for number, k in shown])
    data.PixelData = pydicom.pixels.utils.pack_bits(planes.astype(np.uint8))
    with replaced(path.parent) as scratch:
        save_object(data, scratch / path.name)


@quiet()
def new_segment(number: int, name: str, like: Any = None) -> Any:
    """An item of a Segment Sequence, with codes and colour of the item ``like``, otherwise with the codes of tissue."""
    if like is not None:
        return _renumbered(like, number)
    item = pydicom_module().Dataset()
    item.SegmentNumber, item.SegmentLabel = number, name[:64]
    item.SegmentAlgorithmType, item.SegmentAlgorithmName = "SEMIAUTOMATIC", "NePhi"
    tissue = coded("85756007", "SCT", "Tissue")
    item.SegmentedPropertyCategoryCodeSequence, item.SegmentedPropertyTypeCodeSequence = [tissue], [tissue]
    return item


def _renumbered(segment: Any, number: int) -> Any:
    """DICOM numbers segments 1, 2, ... without gaps."""
    copy = pydicom_module().Dataset(segment)
    copy.SegmentNumber = number
    return copy


def _frame(grid: Grid, number: int, k: int) -> Any:
    pydicom = pydicom_module()
    frame, content, position, segment = (pydicom.Dataset() for _ in range(4))
    content.DimensionIndexValues = [number, k + 1]
    position.ImagePositionPatient = [decimal(v) for v in grid.to_lps_mm([0, 0, k])]
    segment.ReferencedSegmentNumber = number
    frame.FrameContentSequence, frame.PlanePositionSequence = [content], [position]
    frame.SegmentIdentificationSequence = [segment]
    return frame


def _derivation(of: Series) -> Any:
    """That the segments were made for the images of a series."""
    derivation, sources = pydicom_module().Dataset(), []
    derivation.DerivationCodeSequence = [coded("113076", "DCM", "Segmentation")]
    for header in of.headers:
        sources.append(reference(header))
        purpose = coded("121322", "DCM", "Source image for image processing operation")
        sources[-1].PurposeOfReferenceCodeSequence = [purpose]
    derivation.SourceImageSequence = sources
    return derivation


def _dimensions() -> tuple[list[Any], list[Any]]:
    """Frames are ordered by segment and position."""
    pydicom = pydicom_module()
    organisation = pydicom.Dataset()
    organisation.DimensionOrganizationUID = pydicom.uid.generate_uid()
    ordered = []
    for name, group in (
        ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        ("ImagePositionPatient", "PlanePositionSequence"),
    ):
        item = pydicom.Dataset()
        item.DimensionOrganizationUID = organisation.DimensionOrganizationUID
        item.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(name)
        item.FunctionalGroupPointer = pydicom.datadict.tag_for_keyword(group)
        ordered.append(item)
    return [organisation], ordered
