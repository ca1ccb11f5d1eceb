"""The registration of two DICOM series as DICOM objects (Deformable Spatial Registration), for what reads those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import slicer
from nephi.errors import NephiError
from vtk.util.numpy_support import vtk_to_numpy

from .i18n import tr as _

_INSTANCES = "DICOM.instanceUIDs"  # as Slicer's DICOM module leaves it at volumes that it loaded
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])


def problem(outputs) -> str:
    """Why no DICOM registration can be made of this result, in words; "" where one can."""
    for volume in (outputs.fixed, outputs.moving):
        if not volume.GetAttribute(_INSTANCES):
            return _("{name} was not loaded by the module DICOM.").format(name=volume.GetName())
        if volume.GetParentTransformNode() is not None:
            text = _("{name} lies under a transform, so that its place is not that of its DICOM series.")
            return text.format(name=volume.GetName())
    return ""


def export(outputs, folder: str | Path, file_of_instance: Callable[[str], str]) -> list[Path]:
    """Write both directions into a folder; the files' paths.

    ``file_of_instance``: as the DICOM database's ``fileForInstance``. Raises NephiError, with no file half-written.
    """
    from nephi.files.dicom_objects import write_registration
    from nephi.space.affine import Affine

    if reason := problem(outputs):
        raise NephiError(reason)
    fixed, moving = (_series(volume, file_of_instance) for volume in (outputs.fixed, outputs.moving))
    written = []
    for transform, name, registered, source in (
        (outputs.forward, "registration.dcm", fixed, moving),
        (outputs.inverse, "registration_inverse.dcm", moving, fixed),
    ):
        written.append(Path(folder) / name)
        write_registration(written[-1], *_sampled(transform), Affine.identity(3), registered, source)
    return written


def _series(volume, file_of_instance: Callable[[str], str]):
    import pydicom
    from nephi.files.dicom_objects import Series

    files = [file_of_instance(uid) for uid in volume.GetAttribute(_INSTANCES).split()]
    if not all(file and Path(file).is_file() for file in files):
        text = _("The DICOM files of {name} are no longer in the database.")
        raise NephiError(text.format(name=volume.GetName()))
    return Series([pydicom.dcmread(file, stop_before_pixels=True) for file in files])


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
