"""The phases of a sequence, such as a 4D CT, against one of them: pairs for a batch, and the transforms it gives."""

from __future__ import annotations

from pathlib import Path

import slicer
from nephi.files.folder import ResultFolder
from nephi.files.writing import write_csv
from vtk.util.numpy_support import vtk_to_numpy

from . import scene as nodes
from .checks import volume_problem
from .i18n import tr as _

_BROWSER, _TRANSFORM = "vtkMRMLSequenceBrowserNode", "vtkMRMLGridTransformNode"


def problem(sequence, reference: int) -> str:
    """Why its phases cannot be registered, in words; ``reference`` counts from 0. "" where they can."""
    count = sequence.GetNumberOfDataNodes()
    if count < 2:
        return _("The sequence {name} has fewer than two phases.").format(name=sequence.GetName())
    if not 0 <= reference < count:
        return _("The sequence has {count} phases; choose one of them as reference.").format(count=count)
    for i in range(count):
        phase = sequence.GetNthDataNode(i)
        if not phase.IsA("vtkMRMLScalarVolumeNode"):
            return _("The sequence {name} does not contain volumes.").format(name=sequence.GetName())
        if reason := volume_problem(_("phase {number}").format(number=i + 1), phase):
            return reason
    return ""


def write_pairs(sequence, reference: int, folder: Path) -> Path:
    """Every phase as a file, and the list of pairs of the others with the reference, which is not changed.

    Raises OSError and FrameError as ``scene`` does.
    """
    count = sequence.GetNumberOfDataNodes()
    for i in range(count):
        nodes.write_volume(sequence.GetNthDataNode(i), folder / f"{_name(i)}.nrrd")
    fixed = f"{_name(reference)}.nrrd"
    rows = [[_name(i), fixed, f"{_name(i)}.nrrd"] for i in range(count) if i != reference]
    write_csv(folder / "pairs.csv", [["name", "fixed", "moving"], *rows])
    return folder / "pairs.csv"


def add_transforms(sequence, reference: int, output: Path):
    """A sequence of the transforms of each phase to the reference, played together with the phases.

    For the reference itself, and for phases without a result, the transform is the identity. Raises OSError.
    """
    scene, made = sequence.GetScene(), []
    for i in range(sequence.GetNumberOfDataNodes()):
        file = ResultFolder.opened(output / _name(i)).transform
        made.append(nodes.read_grid_transform(file) if i != reference and file.is_file() else None)
    found = next((grid for grid in made if grid is not None), None)
    if found is None:
        return None
    name = _("{name} to phase {number}").format(name=sequence.GetName(), number=reference + 1)
    transforms = nodes.add(scene, "vtkMRMLSequenceNode", name)
    transforms.SetIndexName(sequence.GetIndexName())
    transforms.SetIndexUnit(sequence.GetIndexUnit())
    transforms.SetIndexType(sequence.GetIndexType())
    for i, grid in enumerate(made):
        node = getattr(slicer, _TRANSFORM)()
        node.SetName(name)
        node.SetAndObserveTransformFromParent(_still(found) if grid is None else grid)
        transforms.SetDataNodeAtValue(node, sequence.GetNthIndexValue(i))
    for browser in nodes.of_class(scene, _BROWSER):
        if browser.IsSynchronizedSequenceNode(sequence, True):
            browser.AddSynchronizedSequenceNode(transforms)
    return transforms


def _name(index: int) -> str:
    """The base name of a phase's files; names sort like the phases."""
    return f"phase_{index + 1:03d}"


def _still(grid):
    """The same grid without displacements."""
    still = slicer.vtkOrientedGridTransform()
    still.DeepCopy(grid)
    image = grid.GetDisplacementGrid().NewInstance()
    image.DeepCopy(grid.GetDisplacementGrid())
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = 0
    still.SetDisplacementGridData(image)
    return still
