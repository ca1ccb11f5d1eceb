"""A result applied to other data of one of its images, in either direction: a new node in the folder of the result."""

from __future__ import annotations

import slicer
import vtk

from . import scene as nodes
from .hierarchy import put_beside
from .i18n import tr as _

CLASSES = (  # data that a result can be applied to
    "vtkMRMLScalarVolumeNode",
    "vtkMRMLLabelMapVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLModelNode",
    "vtkMRMLMarkupsNode",
)


def apply_to(outputs, node, backwards: bool = False):
    """A new node: ``node``, given in the moving image, warped to the fixed one; ``node`` itself is not changed.

    ``backwards``: from the fixed to the moving image. Volumes are resampled onto the voxels of the target image (label
    maps by nearest neighbour), everything else is transformed. Raises FrameError for a volume below a nonlinear
    transform.
    """
    target = outputs.moving if backwards else outputs.fixed
    transform = outputs.inverse if backwards else outputs.forward
    name = _("{name} on {target}").format(name=node.GetName(), target=target.GetName())
    scene = node.GetScene()
    if node.IsA("vtkMRMLScalarVolumeNode"):
        made = _resampled(node, target, transform, name)
    else:
        made = nodes.add(scene, node.GetClassName(), name)
        made.CopyContent(node, True)
        if node.GetParentTransformNode() is not None:
            made.SetAndObserveTransformNodeID(node.GetTransformNodeID())
            made.HardenTransform()
        made.SetAndObserveTransformNodeID(transform.GetID())
        made.HardenTransform()
    made.CreateDefaultDisplayNodes()
    if made.GetDisplayNode() is not None and node.GetDisplayNode() is not None:
        made.GetDisplayNode().CopyContent(node.GetDisplayNode())
    for role in ("Fixed", "Moving"):
        made.SetNodeReferenceID(f"NePhi.{role}", getattr(outputs, role.lower()).GetID())
    put_beside([made], outputs.forward)
    return made


def _resampled(volume, target, transform, name: str):
    to_index = vtk.vtkGeneralTransform()  # voxel of the target -> voxel of the volume
    to_index.PostMultiply()
    to_index.Concatenate(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(target)))
    to_index.Concatenate(transform.GetTransformFromParent())
    from_index = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(volume)), from_index)
    to_index.Concatenate(from_index)
    labels = volume.IsA("vtkMRMLLabelMapVolumeNode")
    image = volume.GetImageData()
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceTransform(to_index)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent(target.GetImageData().GetExtent())
    reslice.SetInterpolationMode(vtk.VTK_RESLICE_NEAREST if labels else vtk.VTK_RESLICE_LINEAR)
    reslice.SetBackgroundLevel(0.0 if labels else image.GetScalarRange()[0])
    reslice.Update()
    made = nodes.add(volume.GetScene(), volume.GetClassName(), name)
    made.SetAndObserveImageData(reslice.GetOutput())
    made.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(target)))
    return made
