"""The lungs that the engine segments in volumes, as segmentations to check and correct."""

from __future__ import annotations

from pathlib import Path

import slicer
import vtk
from nephi.process import engine_command
from nephi.runfolder import RunFolder

from . import scene as nodes
from .checks import volume_problem
from .hierarchy import put_beside
from .i18n import tr as _
from .job import LogicError
from .runner import EngineProcess
from .words import failure

_SEGMENTS = {  # the engine's labels: name and colour
    1: (_("right lung"), (0.86, 0.55, 0.42)),
    2: (_("left lung"), (0.45, 0.68, 0.86)),
    3: (_("lungs"), (0.70, 0.62, 0.80)),
}


class LungSearch:
    """Volumes are searched one after the other, in a process of its own that is watched by polling.

    Raises LogicError with one line where it cannot begin.
    """

    def __init__(self, logic, volumes: list):
        self.running = True
        self.made: list[tuple] = []  # volumes and their segmentations
        self.errors: list[str] = []  # names of volumes without lungs
        self._logic, self._waiting = logic, list(volumes)
        for volume in volumes:
            if reason := volume_problem(_("volume"), volume):
                raise LogicError(reason)
        self._next()

    def poll(self) -> bool:
        """Process what was found; True while it runs."""
        if not self.running:
            return False
        code = self._process.exit_code()
        if code is None:
            return True
        self._process.end()
        if self._volume.GetScene() is not None:  # it may have been removed meanwhile
            try:
                log = [str(message) for message in self._process.messages()]
                if code:
                    raise LogicError(failure(code, log).replace(str(self._file), self._volume.GetName()))
                self.made.append((self._volume, _segmentation(self._volume, self._labels)))
            except (LogicError, OSError) as error:
                self.errors.append(str(error))
        self._folder.remove()
        if self._waiting:
            try:
                self._next()
            except LogicError as error:
                self.errors.append(str(error))
                self.running = False
        else:
            self.running = False
        return self.running

    def cancel(self) -> None:
        """End it; segmentations that were made stay."""
        if self.running:
            self._process.end()
            self._folder.remove()
            self.running = False

    def _next(self) -> None:
        self._volume, folder = self._waiting.pop(0), None
        try:
            self._folder = folder = RunFolder(self._logic.temporary)
            self._file, self._labels = folder.path / "volume.nrrd", folder.path / "labels.nrrd"
            nodes.write_volume(self._volume, self._file)
            command = engine_command(
                "lungs", str(self._file), "--output", str(self._labels), python=self._logic.python, owner=folder
            )
            self._process = EngineProcess(command, self._logic.environment, folder.path)
        except (OSError, nodes.FrameError) as error:
            if folder is not None:
                folder.remove()
            raise LogicError(_("The search for lungs could not be started: {reason}").format(reason=error)) from None


def _segmentation(volume, file: Path):
    """A new segmentation of the engine's labels, on the volume's own voxels and under its own transform."""
    read = slicer.vtkMRMLScalarVolumeNode()
    nodes.read_volume(file, read)
    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    image.ShallowCopy(read.GetImageData())
    volume.GetIJKToRASMatrix(matrix)
    image.SetImageToWorldMatrix(matrix)
    made = nodes.add(volume.GetScene(), "vtkMRMLSegmentationNode", _("Lungs of {name}").format(name=volume.GetName()))
    made.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(image, made)
    segmentation = made.GetSegmentation()
    for key in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(key)
        name, color = _SEGMENTS[segment.GetLabelValue()]
        segment.SetName(name)
        segment.SetColor(*color)
    made.CreateDefaultDisplayNodes()
    made.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    put_beside([made], volume)
    return made
