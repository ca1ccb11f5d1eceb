"""Results as DICOM objects: the registration (Deformable Spatial Registration), warped series, warped segments."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import slicer
from nephi.errors import NephiError
from vtk.util.numpy_support import vtk_to_numpy

from . import scene as nodes
from .i18n import tr as _

SEGMENTS = "NePhi.Segments"  # attribute of segmentations read from DICOM: the description of their segments
_INSTANCES = "DICOM.instanceUIDs"  # as Slicer's DICOM module leaves it at volumes that it loaded
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])


def problem(outputs) -> str:
    """Why no DICOM registration can be written for this result, as text; empty if it can."""
    for volume in (outputs.fixed, outputs.moving):
        if not volume.GetAttribute(_INSTANCES):
            return _("{name} was not loaded by the module DICOM.").format(name=volume.GetName())
        if volume.GetParentTransformNode() is not None:
            text = _("{name} lies under a transform, so that its position differs from that of its DICOM series.")
            return text.format(name=volume.GetName())
    return ""


def export(outputs, folder: str | Path, series_of: Callable) -> list[Path]:
    """Write both directions into a folder; the files' paths.

    ``series_of(volume)``: the ``Series`` that the fixed or moving volume is. Raises NephiError, with no file
    half-written.
    """
    from nephi.files.dicom_objects import write_registration
    from nephi.space.affine import Affine

    fixed, moving = series_of(outputs.fixed), series_of(outputs.moving)
    written = []
    for transform, name, registered, source in (
        (outputs.forward, "registration.dcm", fixed, moving),
        (outputs.inverse, "registration_inverse.dcm", moving, fixed),
    ):
        written.append(Path(folder) / name)
        write_registration(written[-1], *_sampled(transform), Affine.identity(3), registered, source)
    return written


def write_scan(volume, folder: Path, of, source, description: str) -> None:
    """A volume as a new series in the frame of reference of the series ``of``, derived from the series ``source``.

    Raises NephiError.
    """
    from nephi.files.dicom_objects import write_series

    folder.mkdir()
    write_series(_grid(volume).image(slicer.util.arrayFromVolume(volume)), folder, of, source, description)


def write_segments(node, reference, path: Path, of) -> None:
    """A segmentation or label map on the reference volume's voxels as a DICOM segmentation of the series ``of``.

    Raises NephiError.
    """
    import pydicom
    from nephi.files.dicom_segmentations import new_segment, write_segmentation
    from nephi.files.image import open_image

    with tempfile.TemporaryDirectory() as folder:
        names = nodes.write_labels(node, reference, file := Path(folder) / "labels.nrrd")
        labels = open_image(file, node.GetName())
    if node.IsA("vtkMRMLLabelMapVolumeNode"):  # not the name of that number in a colour table
        names = {label: _("label {number}").format(number=label) for label in names}
    told = map(pydicom.Dataset.from_json, json.loads(node.GetAttribute(SEGMENTS) or "[]"))
    known = {str(item.SegmentLabel): item for item in told}
    write_segmentation(labels, [new_segment(*pair, known.get(pair[1])) for pair in names.items()], path, of)


def from_database(volume, file_of_instance: Callable[[str], str]):
    """The series of a volume for which ``problem`` has none; ``file_of_instance``: the database's ``fileForInstance``.

    Raises NephiError.
    """
    import pydicom
    from nephi.files.dicom_objects import Series

    files = [file_of_instance(uid) for uid in volume.GetAttribute(_INSTANCES).split()]
    if not all(file and Path(file).is_file() for file in files):
        text = _("The DICOM files of {name} are no longer in the database.")
        raise NephiError(text.format(name=volume.GetName()))
    return Series([pydicom.dcmread(file, stop_before_pixels=True) for file in files])


def _grid(volume):
    from nephi.space.grid import Grid

    to_world = nodes.ijk_to_world(volume)
    spacing = np.linalg.norm(to_world[:3, :3], axis=0)
    axes, origin = _RAS_LPS @ (to_world[:3, :3] / spacing), _RAS_LPS @ to_world[:3, 3]
    size = volume.GetImageData().GetDimensions()
    return Grid(tuple(size), tuple(spacing.tolist()), tuple(origin.tolist()), tuple(axes.ravel().tolist()))


def _sampled(transform) -> tuple:
    """Grid and displacements (z, y, x, 3) of a transform node, in LPS mm."""
    from nephi.space.grid import Grid

    grid = transform.GetTransformFromParentAs("vtkOrientedGridTransform", False)
    image, directions = grid.GetDisplacementGrid(), grid.GetGridDirectionMatrix()
    axes = slicer.util.arrayFromVTKMatrix(directions)[:3, :3] if directions else np.eye(3)
    origin = _RAS_LPS @ np.array(image.GetOrigin())
    direction = tuple((_RAS_LPS @ axes).ravel().tolist())
    size = image.GetDimensions()
    shifts = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(*size[::-1], 3) @ _RAS_LPS
    return Grid(tuple(size), tuple(image.GetSpacing()), tuple(origin.tolist()), direction), shifts
