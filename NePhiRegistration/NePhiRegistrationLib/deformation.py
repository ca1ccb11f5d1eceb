"""The displayed deformation: a separate transform node, drawn from fixed to moving, without the rigid part.

Slicer draws a transform to parent. The result's own transform node would show the direction from moving to fixed, and
mostly the offset of the scanner.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from slicer.util import arrayFromVTKMatrix
from vtk.util.numpy_support import vtk_to_numpy

from . import compared
from . import scene as nodes
from .i18n import tr as _
from .outputs import Outputs

_OF, _SHOWN = "NePhi.DeformationOf", "NePhi.DeformationShown"
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])
_COLORS = ((0.25, 0.85, 1.0), (0.55, 1.0, 0.3), (1.0, 0.85, 0.1), (1.0, 0.2, 0.1))  # from no to most displacement
_STEPS_MM = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def find(forward):
    """The node that shows this forward transform, or None."""
    return next((node for node in _all(forward.GetScene()) if node.GetNodeReference(_OF) is forward), None)


def remove_all(scene) -> None:
    """Nothing is drawn any longer, whichever transform it belongs to, and also where that was removed."""
    for node in _all(scene):
        nodes.remove(scene, node)


def _all(scene) -> list:
    found = nodes.of_class(scene, "vtkMRMLGridTransformNode")
    return [node for node in found if node.GetAttribute(_SHOWN)]


def make(forward):
    """The node that shows this forward transform; not saved with the scene, as it can be made again."""
    made = find(forward)
    if made is not None:
        return made
    grid, points_ras_mm, shift, outputs = _shift(forward)
    image = grid.GetDisplacementGrid()
    shown = vtk.vtkImageData()
    shown.CopyStructure(image)
    shown.GetPointData().SetScalars(vtk.util.numpy_support.numpy_to_vtk(shift, deep=True))
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(shown)
    transform.SetGridDirectionMatrix(grid.GetGridDirectionMatrix())
    transform.SetInterpolationModeToLinear()
    scene = forward.GetScene()
    name = _("{name}: deformation shown").format(name=forward.GetName())
    node = nodes.add(scene, "vtkMRMLGridTransformNode", name, hidden=True)
    node.SetAttribute(_SHOWN, "1")
    node.SetNodeReferenceID(_OF, forward.GetID())
    node.SetAndObserveTransformToParent(transform)
    node.CreateDefaultDisplayNodes()
    length_mm = np.linalg.norm(shift, axis=1)
    inside = np.ones(len(length_mm), bool) if outputs is None else compared.at_points(outputs, points_ras_mm)
    _scale(node.GetDisplayNode(), length_mm[inside] if inside.any() else length_mm)
    return node


def magnitude(forward) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The displayed deformation at the nodes of its grid.

    Returns its length in mm (z, y, x), whether each node lies in the compared region, and index_xyz -> RAS mm (4, 4).
    """
    grid, points_ras_mm, shift, outputs = _shift(forward)
    shape_zyx = grid.GetDisplacementGrid().GetDimensions()[::-1]
    inside = np.ones(len(shift), bool) if outputs is None else compared.at_points(outputs, points_ras_mm)
    to_ras = np.eye(4)
    to_ras[:3, :3] = _direction(grid) * grid.GetDisplacementGrid().GetSpacing()
    to_ras[:3, 3] = grid.GetDisplacementGrid().GetOrigin()
    return np.linalg.norm(shift, axis=1).reshape(shape_zyx), inside.reshape(shape_zyx), to_ras


def _shift(forward) -> tuple:
    """The transform's grid, its nodes (n, 3) in RAS mm, their shift without the rigid part, and the result."""
    grid = forward.GetTransformFromParentAs("vtkOrientedGridTransform", False)
    outputs = Outputs.find(forward)
    rigid_ras = np.eye(4) if outputs is None else _rigid_part(outputs.report["alignment"], _centre(grid))
    points_ras_mm = _points_ras_mm(grid)
    moved = points_ras_mm + vtk_to_numpy(grid.GetDisplacementGrid().GetPointData().GetScalars())
    # (moved - t) @ R is the inverse of points @ R.T + t
    return grid, points_ras_mm, (moved - rigid_ras[:3, 3]) @ rigid_ras[:3, :3] - points_ras_mm, outputs


def _scale(display, length_mm: np.ndarray) -> None:
    """Colours and contour levels that span all but the largest hundredth of the displacements."""
    display.SetSaveWithScene(False)
    largest = max(float(np.percentile(length_mm, 99)), _STEPS_MM[0])
    colors = vtk.vtkColorTransferFunction()
    for part, rgb in zip((0.0, 0.35, 0.65, 1.0), _COLORS, strict=True):
        colors.AddRGBPoint(part * largest, *rgb)
    display.SetColorMap(colors)
    step = next((step for step in _STEPS_MM if largest / step <= 8), _STEPS_MM[-1])
    levels = np.arange(step, largest + step, step)
    display.SetContourLevelsMmFromString(" ".join(f"{level:g}" for level in levels))


def _rigid_part(alignment: dict, centre_ras_mm: np.ndarray) -> np.ndarray:
    """The rotation of the alignment and the shift that carries the centre to where the alignment does, RAS (4, 4)."""
    matrix = _RAS_LPS @ np.array(alignment["matrix"]) @ _RAS_LPS
    u, _scales, vt = np.linalg.svd(matrix)
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    rigid = np.eye(4)
    rigid[:3, :3] = rotation
    rigid[:3, 3] = matrix @ centre_ras_mm + _RAS_LPS @ np.array(alignment["offset_mm"]) - rotation @ centre_ras_mm
    return rigid


def _points_ras_mm(grid) -> np.ndarray:
    """The nodes of a vtkOrientedGridTransform (n, 3), x fastest."""
    image = grid.GetDisplacementGrid()
    steps = [np.arange(n) * spacing for n, spacing in zip(image.GetDimensions(), image.GetSpacing(), strict=True)]
    z, y, x = np.meshgrid(*steps[::-1], indexing="ij")
    return np.stack([x.ravel(), y.ravel(), z.ravel()], 1) @ _direction(grid).T + np.array(image.GetOrigin())


def _direction(grid) -> np.ndarray:
    matrix = grid.GetGridDirectionMatrix()
    return arrayFromVTKMatrix(matrix)[:3, :3] if matrix else np.eye(3)


def _centre(grid) -> np.ndarray:
    return _points_ras_mm(grid).mean(0)
