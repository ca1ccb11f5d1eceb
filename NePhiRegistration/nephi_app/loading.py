"""Files to nodes of the scene, read as the command line reads them, so that their faults are told in the same words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from nephi.files.image import read_volume
from nephi.files.landmarks import read_landmarks
from nephi.files.masks import read_mask, read_regions
from NePhiRegistrationLib import scene as nodes
from vtk.util.numpy_support import numpy_to_vtk

from .state import ROLES

_RAS_LPS = np.diag([-1.0, -1.0, 1.0])
_CT_WINDOW_HU = (-1000, 300)


async def node(scene: Any, role: str, path: Path, name: str, others: dict[str, Any]) -> Any:
    """A file as the node that its role asks for, beside those that are there; raises NephiError."""
    words = ROLES[role].lower()
    if role in ("fixed", "moving"):
        return scan_node(scene, await asyncio.to_thread(read_scan, path, words), name)
    volume = others["moving" if role.startswith("moving") else "fixed"]
    if role.endswith("landmarks"):
        return points_node(scene, path, volume)
    return labels_node(scene, path, volume, "regions" if role == "regions" else words)


def read_scan(path: Path, role: str) -> sitk.Image:
    """A 3D image from a file or a DICOM folder; raises NephiError. Touches no scene, so that a thread may do it."""
    return read_volume(path, role)


def scan_node(scene: Any, image: sitk.Image, name: str) -> Any:
    node = _volume(scene, "vtkMRMLScalarVolumeNode", image, name)
    display = node.GetDisplayNode()
    if nodes.in_hounsfield(node):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(*_CT_WINDOW_HU)
    return node


def labels_node(scene: Any, path: Path, volume: Any, role: str) -> Any:
    """A mask, or with the role ``regions`` labels, on the volume's voxels; raises NephiError."""
    reference = _image_of(volume)
    image = read_regions(path, reference) if role == "regions" else read_mask(path, reference, role)
    return _volume(scene, "vtkMRMLLabelMapVolumeNode", image, path.name)


def points_node(scene: Any, path: Path, volume: Any) -> Any:
    """Landmarks of any format that the command line reads; raises NephiError."""
    points_lps_mm = read_landmarks(path, _image_of(volume))
    markups = nodes.add(scene, "vtkMRMLMarkupsFiducialNode", path.name, displayed=True)
    markups.GetDisplayNode().SetVisibility(False)
    for i, point in enumerate((points_lps_mm @ _RAS_LPS).tolist(), 1):
        markups.AddControlPoint(point, str(i))
    return markups


def _volume(scene: Any, class_name: str, image: sitk.Image, name: str) -> Any:
    node = nodes.add(scene, class_name, name)
    data = vtk.vtkImageData()
    data.SetDimensions(image.GetSize())
    data.GetPointData().SetScalars(numpy_to_vtk(sitk.GetArrayViewFromImage(image).ravel(), deep=True))
    node.SetAndObserveImageData(data)
    matrix = np.eye(4)
    matrix[:3, :3] = _RAS_LPS @ np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    matrix[:3, 3] = _RAS_LPS @ image.GetOrigin()
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node.CreateDefaultDisplayNodes()
    return node


def _image_of(volume: Any) -> sitk.Image:
    """The place of a volume's voxels, as the readers of masks and points want it."""
    to_world = nodes.ijk_to_world(volume)
    spacing = np.linalg.norm(to_world[:3, :3], axis=0)
    image = sitk.Image(volume.GetImageData().GetDimensions(), sitk.sitkUInt8)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_RAS_LPS @ to_world[:3, 3]).tolist())
    image.SetDirection((_RAS_LPS @ (to_world[:3, :3] / spacing)).ravel().tolist())
    return image
