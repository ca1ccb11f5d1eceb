"""Files to nodes of the scene, read as the command line reads them, so that their faults are told in the same words."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from nephi.errors import NephiError
from nephi.files.dicom_segmentations import is_segmentation, read_segmentation
from nephi.files.dicom_structures import filled, is_structure_set, read_structures
from nephi.files.image import open_image, read_volume
from nephi.files.landmarks import read_landmarks
from nephi.files.masks import check_mask, check_regions
from nephi.files.regions import read_regions
from nephi.files.segments import region_names
from nephi.files.transform import read_transform, write_transform
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.dicom_export import SEGMENTS
from vtk.util.numpy_support import numpy_to_vtk

_HALF = 128  # of the 255 of a voxel within a region
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])
_CT_WINDOW_HU = (-1000, 300)
_SEGMENTATION = (".seg.nrrd", ".seg.nhdr")  # as Slicer calls them
_LABEL_MAP, _SEGMENTATION_NODE = "vtkMRMLLabelMapVolumeNode", "vtkMRMLSegmentationNode"


def read_scan(path: Path, role: str, series: tuple[str, ...] = ()) -> sitk.Image:
    """A 3D image from a file or a DICOM folder, of which one of ``series`` is the UID; raises NephiError.

    Touches no scene, so that a thread may do it.
    """
    return read_volume(path, role, series)


def scan_node(scene: Any, image: sitk.Image, name: str) -> Any:
    node = _volume(scene, "vtkMRMLScalarVolumeNode", image, name)
    display = node.GetDisplayNode()
    if nodes.in_hounsfield(node):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(*_CT_WINDOW_HU)
    return node


def labels_node(scene: Any, path: Path, volume: Any | None, role: str, one_by_one: bool) -> Any:
    """A mask, or regions that count ``one_by_one``: a segmentation, or labels on the volume's voxels, if there is one.

    Raises NephiError. Several labels of a mask become a segmentation, of which one can be chosen.
    """
    if path.name.lower().endswith(_SEGMENTATION):
        return _segmentation(scene, path, role)
    if path.suffix.lower() == ".dcm" and is_segmentation(path):
        return _dicom_segmentation(scene, path)
    if path.suffix.lower() == ".dcm" and is_structure_set(path):
        return _structure_set(scene, path)
    image = open_image(path, role)
    reference = image if volume is None else _image_of(volume)
    if one_by_one:
        labels = read_regions(path, reference, role)
        node = _volume(scene, _LABEL_MAP, labels, path.name)
        names = region_names(labels)
        return _renamed(_as_segmentation(scene, node), names) if names else node
    mask = check_mask(image, reference, role)
    with contextlib.suppress(NephiError):  # probabilities, say
        labels = check_regions(image, reference, role)
        if sitk.GetArrayViewFromImage(labels).max() > 1:
            return _as_segmentation(scene, _volume(scene, _LABEL_MAP, labels, path.name))
    return _volume(scene, _LABEL_MAP, mask, path.name)


def _segmentation(scene: Any, path: Path, role: str) -> Any:
    """Of a file that Slicer wrote; Slicer's own reader does not survive a damaged one, so that it is read before."""
    open_image(path, role)
    node = nodes.add(scene, _SEGMENTATION_NODE, path.name, displayed=True)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(node) or not node.GetSegmentation().GetNumberOfSegments():
        nodes.remove(scene, node)
        raise NephiError(f"{role}: cannot read {path.name} as a segmentation; it is damaged or empty")
    node.GetDisplayNode().SetVisibility(False)
    return node


def _dicom_segmentation(scene: Any, path: Path) -> Any:
    found = read_segmentation(path)
    node = _renamed(_as_segmentation(scene, _volume(scene, _LABEL_MAP, found.labels, path.name)), found.names)
    node.SetAttribute(SEGMENTS, json.dumps([item.to_json() for item in found.segments]))
    return node


def _renamed(node: Any, names: dict[int, str]) -> Any:
    """A segmentation whose segments are called so, by their labels."""
    segmentation = node.GetSegmentation()
    for segment in map(segmentation.GetSegment, segmentation.GetSegmentIDs()):
        segment.SetName(names.get(segment.GetLabelValue(), segment.GetName()))
    return node


def _structure_set(scene: Any, path: Path) -> Any:
    """Its regions as segments, each on voxels of its own, so that they may overlap."""
    found = [structure for structure in read_structures(path) if structure.contours]
    if not found:
        raise NephiError(f"{path.name} contains no regions")
    images = [filled(structure) >= _HALF for structure in found]
    node = nodes.add(scene, _SEGMENTATION_NODE, path.name, displayed=True)
    for structure, image in zip(found, images, strict=True):
        _add_segments(_volume(scene, _LABEL_MAP, image, structure.name), node)
        segmentation = node.GetSegmentation()
        segment = segmentation.GetNthSegment(segmentation.GetNumberOfSegments() - 1)
        segment.SetName(structure.name)
        if len(structure.colour) == 3:
            segment.SetColor(*(part / 255 for part in structure.colour))
    return node


def _add_segments(labels: Any, node: Any) -> None:
    """The label map's labels to a segmentation, which takes its place."""
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node)
    node.GetDisplayNode().SetVisibility(False)
    nodes.remove(labels.GetScene(), labels)


def _as_segmentation(scene: Any, labels: Any) -> Any:
    """The label map's labels as segments, in its place."""
    node, name = nodes.add(scene, _SEGMENTATION_NODE, labels.GetName(), displayed=True), labels.GetName()
    _add_segments(labels, node)
    node.SetName(name)
    segmentation = node.GetSegmentation()
    for segment in map(segmentation.GetSegment, segmentation.GetSegmentIDs()):
        segment.SetName(f"label {segment.GetLabelValue()}")  # not what a colour table calls that number
    return node


def transform_node(scene: Any, path: Path) -> Any:
    """A transform of any format that the command line reads; raises NephiError."""
    transform = read_transform(path, 3)
    with tempfile.TemporaryDirectory() as folder:
        write_transform(transform, file := Path(folder) / "transform.h5")
        return nodes.read_transform(file, scene, path.name)


def points_node(scene: Any, path: Path, volume: Any) -> Any:
    """Landmarks of any format that the command line reads; raises NephiError."""
    points_lps_mm = read_landmarks(path, _image_of(volume))
    markups = nodes.add(scene, "vtkMRMLMarkupsFiducialNode", path.name, displayed=True)
    markups.GetDisplayNode().SetVisibility(False)
    for i, point in enumerate((points_lps_mm @ _RAS_LPS).tolist(), 1):
        markups.AddControlPoint(point, str(i))
    return markups


def surface_node(scene: Any, path: Path) -> Any:
    """The surface of a file; raises NephiError."""
    try:
        return nodes.read_model(path, scene, path.name)
    except OSError as error:
        raise NephiError(str(error)) from None


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
