"""MRML nodes to files and back. Files are in world coordinates (LPS mm), whatever the nodes' parent transforms.

Reading and writing goes through nodes of a scratch scene, so that the user's scene never sees a storage node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.util import arrayFromVolume, arrayFromVTKMatrix, vtkMatrixFromArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .i18n import tr as _

FEWEST_VOXELS = 8  # along a side, as the engine wants it
_MAP = "NePhi.Map"  # attribute of volumes other than images
_AIR_HU = -200.0
_BENT_MM = 3.0  # between the nodes at which a nonlinear transform is handed on, at most
_ORTHOGONAL = 1e-3  # cosine between two axes of a volume above which it counts as sheared


class FrameError(Exception):
    """A volume whose geometry no image file can store; ends a sentence that begins with the volume."""


def ijk_to_world(volume) -> np.ndarray:
    """Voxel index -> world RAS mm as a matrix (4, 4), parent transforms included.

    Raises FrameError where the volume is bent or sheared.
    """
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    to_world = arrayFromVTKMatrix(matrix)
    parent = volume.GetParentTransformNode()
    if parent is not None:
        if not parent.IsTransformToWorldLinear():
            text = _("lies under the nonlinear transform {name}: harden that on a copy first.")
            raise FrameError(text.format(name=parent.GetName()))
        parent.GetMatrixTransformToWorld(matrix)
        to_world = arrayFromVTKMatrix(matrix) @ to_world
    axes = to_world[:3, :3] / np.linalg.norm(to_world[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > _ORTHOGONAL:
        raise FrameError(_("is sheared, itself or by its transform: resample it first, for instance with Crop Volume."))
    return to_world


def write_volume(volume, path: Path) -> None:
    """The volume in world coordinates as an uncompressed NRRD file; the node is only read."""
    _write_image(volume.GetImageData(), ijk_to_world(volume), path)


def write_labels(
    node,
    reference,
    path: Path,
    segment: str = "",
    number_of: Callable[[str], int] | None = None,
    one_by_one: str = "",
) -> dict[int, str]:
    """A label map or segmentation on the reference volume's voxels, by nearest neighbour; what each label is called.

    ``segment``: only this one of a segmentation. ``number_of``: the label that a name gets, by default its own or the
    segment's place. ``one_by_one``: what the regions are, where each of them counts: their names are written too, and
    NephiError is raised where segments overlap, of which the later one is kept otherwise.
    """
    # with SimpleITK, for which Slicer's start need not wait
    from nephi.files.segments import LabelMap, header_of

    if node.IsA("vtkMRMLSegmentationNode"):
        names = label_names(node)
        keys = dict(zip(names, node.GetSegmentation().GetSegmentIDs(), strict=True))
        if segment:
            (own,) = (label for label, key in keys.items() if key == segment)
            names, keys = {1: names[own]}, {1: segment}
        regions = LabelMap(reference.GetImageData().GetDimensions()[::-1], one_by_one)
        for label, key in keys.items():
            regions.add(names[label], _in_segment(node, key, reference))
        found = regions.labels
    else:
        found = _on_grid(_oriented(node), reference).astype(np.uint16)
        names = label_names(node, np.unique(found[found != 0]).tolist())
    labels = found
    if number_of is not None:
        labels = np.zeros_like(found)
        for label, name in names.items():
            labels[found == label] = number_of(name)
        names = {number_of(name): name for name in names.values()}
    _write_image(_image_data(labels), ijk_to_world(reference), path, header_of(names) if one_by_one else {})
    return names


def _in_segment(node, key: str, reference) -> np.ndarray:
    """Whether each voxel (z, y, x) of the reference volume lies in a segment, in world coordinates."""
    oriented = slicer.vtkOrientedImageData()
    slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentBinaryLabelmapRepresentation(node, key, oriented)
    values, segment = _on_grid(oriented, reference), node.GetSegmentation().GetSegment(key)
    if segment.GetRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()) is None:
        return values != 0  # converted from a surface
    return values == segment.GetLabelValue()  # segments that do not overlap are labels of one image


def label_names(node, labels: Sequence[int] = ()) -> dict[int, str]:
    """What the segments of a segmentation, from 1 on, or these ``labels`` of a label map are called."""
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = node.GetSegmentation()
        return {i: segmentation.GetSegment(key).GetName() for i, key in enumerate(segmentation.GetSegmentIDs(), 1)}
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    names = {label: colors.GetColorName(label) if colors else None for label in labels}
    return {label: name or _("label {number}").format(number=label) for label, name in names.items()}


def write_segmentation(node, path: Path) -> None:
    """A segmentation as Slicer itself writes it (.seg.nrrd), with the names of its segments."""
    copy = slicer.vtkMRMLSegmentationNode()
    copy.CopyContent(node, True)
    _store(slicer.vtkMRMLSegmentationStorageNode(), copy, path, compressed=True)


def write_points(markups, path: Path) -> None:
    """Control points in world coordinates as CSV: x,y,z in LPS mm."""
    position, rows = [0.0] * 3, ["x,y,z"]
    for i in range(markups.GetNumberOfControlPoints()):
        markups.GetNthControlPointPositionWorld(i, position)
        rows.append(f"{-position[0]!r},{-position[1]!r},{position[2]!r}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_linear_transform(node, path: Path) -> None:
    """A linear transform node, to world, as an ITK file: what maps fixed to moving points where it is put on moving."""
    matrix = vtk.vtkMatrix4x4()
    node.GetMatrixTransformToWorld(matrix)
    copy = slicer.vtkMRMLLinearTransformNode()
    copy.SetMatrixTransformToParent(matrix)
    _store(slicer.vtkMRMLTransformStorageNode(), copy, path)


def write_bent_transform(node, reference, path: Path) -> None:
    """A transform node of any kind, to world, as displacements from fixed to moving over the reference volume.

    An ITK file, whichever direction the node holds and whatever it lies under.
    """
    to_world = ijk_to_world(reference)
    spacings = np.linalg.norm(to_world[:3, :3], axis=0)
    extents = spacings * (np.array(reference.GetImageData().GetDimensions()) - 1)
    sizes = np.ceil(extents / _BENT_MM).astype(int) + 1
    steps_mm = np.maximum(extents, 1e-3) / np.maximum(sizes - 1, 1)
    axes = to_world[:3, :3] / spacings
    index_zyx = np.indices(sizes[::-1]).reshape(3, -1)[::-1].T
    points_ras_mm = (index_zyx * steps_mm) @ axes.T + to_world[:3, 3]
    general, given, moved = vtk.vtkGeneralTransform(), vtk.vtkPoints(), vtk.vtkPoints()
    node.GetTransformFromWorld(general)
    given.SetData(numpy_to_vtk(points_ras_mm, deep=True))
    moved.SetDataTypeToDouble()
    general.TransformPoints(given, moved)
    image = vtk.vtkImageData()
    image.SetDimensions(*sizes.tolist())
    image.SetSpacing(*steps_mm)
    image.SetOrigin(*to_world[:3, 3])
    image.GetPointData().SetScalars(numpy_to_vtk(vtk_to_numpy(moved.GetData()) - points_ras_mm, deep=True))
    directions = np.eye(4)
    directions[:3, :3] = axes
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(image)
    grid.SetGridDirectionMatrix(vtkMatrixFromArray(directions))
    copy = slicer.vtkMRMLGridTransformNode()
    copy.SetAndObserveTransformFromParent(grid)
    _store(slicer.vtkMRMLTransformStorageNode(), copy, path)


def write_transform(node, path: Path) -> None:
    """A transform node's own transform as an ITK file."""
    copy = slicer.vtkMRMLTransformNode()
    copy.SetAndObserveTransformFromParent(node.GetTransformFromParent())
    _store(slicer.vtkMRMLTransformStorageNode(), copy, path)


def write_image_file(volume, path: Path) -> None:
    """The volume in world coordinates in the format of the file's name, compressed."""
    copy = slicer.vtkMRMLScalarVolumeNode()
    copy.SetAndObserveImageData(volume.GetImageData())
    copy.SetIJKToRASMatrix(vtkMatrixFromArray(ijk_to_world(volume)))
    _store(slicer.vtkMRMLVolumeArchetypeStorageNode(), copy, path, compressed=True)


def read_grid_transform(path: Path) -> vtk.vtkObject:
    """A displacement file (ITK transform or image) as a vtkOrientedGridTransform from parent, in RAS mm."""
    node = slicer.vtkMRMLGridTransformNode()
    _load(slicer.vtkMRMLTransformStorageNode(), node, path)
    if not interpolate_linearly(node):
        raise OSError(_("{file} contains no displacement grid").format(file=path.name))
    return node.GetTransformFromParentAs("vtkOrientedGridTransform", False)


def read_transform(path: Path, scene, name: str):
    """A new node of any kind of transform in an ITK file: the moving volume under it would lie on the fixed one."""
    read = slicer.vtkMRMLTransformNode()
    _load(slicer.vtkMRMLTransformStorageNode(), read, path)
    node = add(scene, "vtkMRMLTransformNode", name)
    node.SetAndObserveTransformFromParent(read.GetTransformFromParent())
    return node


def read_model(path: Path, scene, name: str):
    """A new node of a surface in a file; raises OSError for one that is damaged or empty."""
    read = slicer.vtkMRMLModelNode()
    _load(slicer.vtkMRMLModelStorageNode(), read, path)
    if read.GetPolyData() is None or not read.GetPolyData().GetNumberOfPoints():
        raise OSError(_("{file} holds no surface").format(file=path.name))
    node = add(scene, "vtkMRMLModelNode", name)
    node.SetAndObservePolyData(read.GetPolyData())
    node.CreateDefaultDisplayNodes()
    return node


def write_model(node, path: Path) -> None:
    """A model in the format of the file's name, in LPS mm as Slicer itself writes it."""
    copy = slicer.vtkMRMLModelNode()
    copy.SetAndObserveMesh(node.GetMesh())
    _store(slicer.vtkMRMLModelStorageNode(), copy, path, compressed=True)


def interpolate_linearly(node) -> bool:
    """Between the nodes of a displacement grid as ITK and the engine do it, where MRML would take cubic splines.

    False for another kind of transform, or none.
    """
    grid = None if node is None else node.GetTransformFromParentAs("vtkOrientedGridTransform", False)
    if grid is not None:
        grid.SetInterpolationModeToLinear()
    return grid is not None


def read_volume(path: Path, node) -> None:
    """Image and geometry of a file into a volume node of the user's scene."""
    read = slicer.vtkMRMLScalarVolumeNode()
    _load(slicer.vtkMRMLVolumeArchetypeStorageNode(), read, path)
    matrix = vtk.vtkMatrix4x4()
    read.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(read.GetImageData())


def add(scene, class_name: str, name: str, displayed: bool = False, hidden: bool = False):
    """A new node; ``hidden``: not offered to the user, and not saved with the scene."""
    node = scene.CreateNodeByClass(class_name)
    node.UnRegister(None)  # the reference is Python's now
    node.SetName(scene.GenerateUniqueName(name))
    if hidden:
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
    scene.AddNode(node)
    if displayed:
        node.CreateDefaultDisplayNodes()
    return node


def add_for_display(scene, name: str):
    """A volume for display only: not an input for anything, and not saved with the scene.

    It stays in Slicer's own lists, as the selectors of slice views drop volumes that these do not contain.
    """
    volume = add(scene, "vtkMRMLScalarVolumeNode", name, displayed=True)
    volume.SetSaveWithScene(False)
    volume.GetDisplayNode().SetSaveWithScene(False)  # it would be loaded without its volume
    mark_as_map(volume)
    return volume


def mark_as_map(volume) -> None:
    volume.SetAttribute(_MAP, "1")


def is_map(volume) -> bool:
    """Whether a volume is a derived one that can't be registered, such as a Jacobian or a checkerboard."""
    return volume.GetAttribute(_MAP) is not None


def of_class(scene, class_name: str) -> list:
    return [scene.GetNthNodeByClass(i, class_name) for i in range(scene.GetNumberOfNodesByClass(class_name))]


def remove(scene, node) -> None:
    """Take a node out of the scene together with its display and storage nodes."""
    if node is None or scene.GetNodeByID(node.GetID() or "") is not node:
        return
    own = []
    if node.IsA("vtkMRMLDisplayableNode"):
        own += [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        own += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
    own = list(filter(None, own))
    # a legend before its volume; a display node after it, as slice views make a new one for a volume without one
    legends = [extra for extra in own if extra.IsA("vtkMRMLColorLegendDisplayNode")]
    for one in [*legends, node, *(extra for extra in reversed(own) if extra not in legends)]:
        scene.RemoveNode(one)


def show_like(volume, other) -> None:
    """Window and level of the other volume for this one."""
    shown, model = volume.GetDisplayNode(), other.GetDisplayNode()
    if shown is not None and model is not None:
        shown.SetAutoWindowLevel(False)
        shown.SetWindowLevel(model.GetWindow(), model.GetLevel())


def in_hounsfield(volume) -> bool:
    """Whether the values look like those of a CT, with air far below 0."""
    return volume.GetImageData().GetScalarRange()[0] < _AIR_HU


def resampled(volume, reference) -> np.ndarray:
    """A scalar volume at the reference volume's voxels (z, y, x), linear, its lowest value outside."""
    if _same_grid(volume, reference):
        return arrayFromVolume(volume)
    return _on_grid(_oriented(volume), reference, linear=True, outside=volume.GetImageData().GetScalarRange()[0])


def resampled_array(values: np.ndarray, volume, reference) -> np.ndarray:
    """Values (z, y, x) at the voxels of ``volume``, brought to the reference volume's voxels, linear, 0 outside."""
    oriented = slicer.vtkOrientedImageData()
    oriented.ShallowCopy(_image_data(values))
    oriented.SetImageToWorldMatrix(vtkMatrixFromArray(ijk_to_world(volume)))
    return _on_grid(oriented, reference, linear=True)


def _same_grid(volume, other) -> bool:
    if volume.GetImageData().GetDimensions() != other.GetImageData().GetDimensions():
        return False
    return volume is other or np.allclose(ijk_to_world(volume), ijk_to_world(other), atol=1e-4)


def _oriented(volume) -> slicer.vtkOrientedImageData:
    """The volume's image in world coordinates; values are shared."""
    oriented = slicer.vtkOrientedImageData()
    oriented.ShallowCopy(volume.GetImageData())
    oriented.SetImageToWorldMatrix(vtkMatrixFromArray(ijk_to_world(volume)))
    return oriented


def _on_grid(oriented, reference, linear: bool = False, outside: float = 0.0) -> np.ndarray:
    """An oriented image (world) at the reference volume's voxels (z, y, x)."""
    grid, out = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    grid.SetDimensions(reference.GetImageData().GetDimensions())
    grid.SetImageToWorldMatrix(vtkMatrixFromArray(ijk_to_world(reference)))
    grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
    if oriented.IsEmpty() or not resample(oriented, grid, out, linear, False, None, outside):
        return np.full(grid.GetDimensions()[::-1], outside)
    return vtk_to_numpy(out.GetPointData().GetScalars()).reshape(grid.GetDimensions()[::-1])


def _image_data(array: np.ndarray) -> vtk.vtkImageData:
    """An image of voxel values (z, y, x); geometry belongs to the volume node."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True))
    return image


def _write_image(image, to_world: np.ndarray, path: Path, header: Mapping[str, str] | None = None) -> None:
    node = slicer.vtkMRMLScalarVolumeNode()
    for key, value in (header or {}).items():
        node.SetAttribute(key, value)  # which are written
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(vtkMatrixFromArray(to_world))
    _store(slicer.vtkMRMLNRRDStorageNode(), node, path)


def _store(storage, node, path: Path, compressed: bool = False) -> None:
    scratch = slicer.vtkMRMLScene()
    for part in (node, storage):
        scratch.AddNode(part)
    storage.SetFileName(str(path))
    storage.SetUseCompression(compressed)
    if not storage.WriteData(node):
        raise OSError(_("cannot write {file}").format(file=path))


def _load(storage, node, path: Path) -> None:
    scratch = slicer.vtkMRMLScene()
    for part in (node, storage):
        scratch.AddNode(part)
    storage.SetFileName(str(path))
    if not path.is_file() or not storage.ReadData(node):
        raise OSError(_("cannot read {file}").format(file=path))
