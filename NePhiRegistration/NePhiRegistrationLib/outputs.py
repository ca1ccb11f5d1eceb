"""The nodes of a finished registration: made from the engine's folder, found again in a reloaded scene, saved."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path

from nephi.files.folder import ResultFolder
from nephi.measure.report import current

from . import tables
from .hierarchy import put_into_folder, remove_with_folder
from .i18n import tr as _
from .review import as_file, reviews
from .scene import (
    add,
    interpolate_linearly,
    mark_as_map,
    of_class,
    read_grid_transform,
    read_volume,
    remove,
    show_like,
    write_image_file,
    write_transform,
)

_ROLE = "NePhi."  # roles of node references: the registered volumes, and the nodes of the same result
_TRANSFORMS = {"forward": "transform", "inverse": "inverse_transform"}  # parts, and their files in a ResultFolder
_VOLUMES = ("warped", "jacobian", "fields_disagreement", "error_map")  # called the same there
# there; some are not in the scene
_ENGINE_FILES = (*_TRANSFORMS.values(), *_VOLUMES, "error_bound", "registration", "page", "report")
_FORMER = {"fields_disagreement": "inverse_consistency"}  # parts by other names in scenes of before
_TABLES = {name: f"{name}.csv" for name in ("statistics", "folds", "ventilation")}


@dataclass
class Outputs:
    """Everything is in world coordinates, without parent transforms, as the inputs lay when the run began."""

    forward: object  # vtkMRMLGridTransformNode; from parent: fixed -> moving, so that moving under it lies on fixed
    inverse: object  # the same for the other way
    warped: object = None  # moving on the fixed volume's voxels
    jacobian: object = None  # determinant of fixed -> moving on the fixed volume's voxels
    fields_disagreement: object = None  # mm, on the transform's coarse grid
    error_map: object = None  # expected error in mm on a coarse grid; None if it was not written
    statistics: object = None
    folds: object = None
    ventilation: object = None  # None where no regions were given
    histogram: object = None  # vtkMRMLPlotChartNode
    histogram_series: object = None
    histogram_table: object = None
    report_text: object = None  # vtkMRMLTextNode with the report as JSON, so that it stays with the scene
    folder: Path | None = None  # of the engine's files; None after the scene was loaded again
    owner: object = None  # keeps that folder until the last reference to this is gone
    layers: list = field(default_factory=list)  # content of the slice views before, see ``display``; as ``folder``

    @property
    def report(self) -> dict:
        return current(json.loads(self.report_text.GetText()))

    @property
    def page(self) -> Path | None:
        """The engine's report with pictures, if it was requested and still exists."""
        page = None if self.folder is None else ResultFolder.opened(self.folder).page
        return page if page is not None and page.is_file() else None

    @property
    def fixed(self):
        return self.forward.GetNodeReference(f"{_ROLE}Fixed")

    @property
    def moving(self):
        return self.forward.GetNodeReference(f"{_ROLE}Moving")

    def nodes(self) -> list:
        parts = (getattr(self, name) for name in _node_fields())
        return [node for node in parts if node is not None]

    @classmethod
    def read(cls, folder: Path, forward, fixed, moving) -> Outputs:
        """New nodes from the engine's ``folder``; ``forward`` exists already. A failure leaves none."""
        scene = forward.GetScene()
        out = cls(forward=forward, inverse=None, folder=folder)
        try:
            out._make(scene, fixed.GetName(), moving.GetName())
        except Exception:
            for node in out.nodes()[1:]:  # all but forward, which is the caller's
                remove(scene, node)
            raise
        for node in out.nodes():
            node.SetNodeReferenceID(f"{_ROLE}Fixed", fixed.GetID())
            node.SetNodeReferenceID(f"{_ROLE}Moving", moving.GetID())
        for name in _node_fields():
            node = getattr(out, name)
            if node is not None and name != "forward":
                forward.SetNodeReferenceID(_ROLE + name, node.GetID())
        for transform, source, target in ((forward, moving, fixed), (out.inverse, fixed, moving)):
            # Slicer's own roles, which the export of DICOM spatial registrations asks for
            transform.SetNodeReferenceID(transform.GetMovingNodeReferenceRole(), source.GetID())
            transform.SetNodeReferenceID(transform.GetFixedNodeReferenceRole(), target.GetID())
        for volume in filter(None, (out.jacobian, out.fields_disagreement, out.error_map)):
            mark_as_map(volume)
        show_like(out.warped, moving)
        name = _("Registration {name}").format(name=forward.GetName())
        put_into_folder(name, out.nodes(), beside=fixed)
        return out

    def _make(self, scene, fixed: str, moving: str) -> None:
        files = ResultFolder.opened(self.folder)
        report = json.loads(files.report.read_text(encoding="utf-8"))
        self.forward.SetAndObserveTransformFromParent(read_grid_transform(files.transform))
        names = {"fixed": fixed, "moving": moving}
        self.inverse = add(scene, "vtkMRMLGridTransformNode", _("{fixed} to {moving}").format(**names))
        self.inverse.SetAndObserveTransformFromParent(read_grid_transform(files.inverse_transform))
        volumes = {
            "warped": _("{moving} on {fixed}"),
            "jacobian": _("Jacobian {fixed} to {moving}"),
            "fields_disagreement": _("Forward-backward difference {fixed} to {moving} (mm)"),
            "error_map": _("Expected error {fixed} to {moving} (mm)"),
        }
        if not files.error_map.is_file():  # of an older engine
            del volumes["error_map"]
        for part, name in volumes.items():
            node = add(scene, "vtkMRMLScalarVolumeNode", name.format(**names))
            setattr(self, part, node)
            read_volume(getattr(files, part), node)
            node.CreateDefaultDisplayNodes()
        self.report_text = add(scene, "vtkMRMLTextNode", _("Report {moving} to {fixed}").format(**names))
        self.report_text.SetText(json.dumps(report))
        name = _("Statistics {moving} to {fixed}").format(**names)
        self.statistics = tables.statistics_table(scene, report, name)
        self.folds = tables.fold_table(scene, report, _("Folds {moving} to {fixed}").format(**names))
        if "regions" in report:
            name = _("Ventilation {moving} to {fixed}").format(**names)
            self.ventilation = tables.ventilation_table(scene, report, name)
        name = _("Jacobian histogram {moving} to {fixed}").format(**names)
        self.histogram, self.histogram_series, self.histogram_table = tables.histogram_nodes(scene, report, name)

    @classmethod
    def opened(cls, folder: Path, fixed, moving) -> Outputs:
        """A saved result of these scans in a folder. Raises OSError, also for any damaged file."""
        forward = new_forward(fixed, moving)
        try:
            return cls.read(folder, forward, fixed, moving)
        except Exception as error:
            remove(forward.GetScene(), forward)
            raise OSError(
                _("The result in {folder} could not be read: {reason}").format(folder=folder.name, reason=error)
            ) from None

    @classmethod
    def find(cls, forward) -> Outputs | None:
        """The result of a forward transform node, as after loading a scene; None if it has none."""
        if forward is None or forward.GetNodeReference(f"{_ROLE}report_text") is None:
            return None
        parts = [name for name in _node_fields() if name != "forward"]
        found = cls(forward=forward, **{part: _part(forward, part) for part in parts})
        for transform in (found.forward, found.inverse):  # a scene that is loaded makes it cubic
            interpolate_linearly(transform)
        return found

    def under(self) -> list:
        """Nodes that one of the transforms moves."""
        transforms = (self.forward, self.inverse)
        found = of_class(self.forward.GetScene(), "vtkMRMLTransformableNode")
        return [node for node in found if node.GetParentTransformNode() in transforms]

    def remove(self) -> None:
        """Take all nodes of the result out of the scene, and its folder; what was under its transforms lies as before.

        Its ``layers`` are not shown again. Slicer's own undo does not serve: it is off in a scene
        and in every node of it, unless an application turns it on.
        """
        for node in self.under():
            node.SetAndObserveTransformNodeID(None)
        remove_with_folder(self.nodes())

    def save(self, folder: str | Path) -> tuple[Path, list[str]]:
        """All files of the result into ``folder``, or into a new folder in it where it holds a result already.

        Returns where they are, and the names of files that are no longer there since the scene was loaded. Raises
        OSError or NephiError, with no half-written file left.
        """
        folder = Path(folder)
        occupied = [getattr(ResultFolder(folder), name) for name in _ENGINE_FILES]
        occupied += [ResultFolder(folder).review, *(folder / name for name in _TABLES.values())]
        if any(file.exists() for file in occupied):
            folder = _unused(folder, self.forward.GetName())
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with ResultFolder(folder).replaced() as scratch:
                missing = self._write(scratch)
        except BaseException:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder, missing

    def _write(self, files: ResultFolder) -> list[str]:
        """The engine's files if they still exist, otherwise from the scene; returns the names of missing ones."""
        made = None if self.folder is None else ResultFolder.opened(self.folder)
        for name in _ENGINE_FILES:
            if made is not None and (engines := getattr(made, name)).is_file():
                shutil.copyfile(engines, getattr(files, name))
        for part, name in _TRANSFORMS.items():
            if not getattr(files, name).exists():
                write_transform(getattr(self, part), getattr(files, name))
        for name in _VOLUMES:
            if not getattr(files, name).exists() and getattr(self, name) is not None:
                write_image_file(getattr(self, name), getattr(files, name))
        if not files.report.exists():
            files.report.write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")
        if signed := reviews(self):
            files.review.write_text(as_file(signed, files.report.read_bytes()) + "\n", encoding="utf-8")
        for part, name in _TABLES.items():
            if getattr(self, part) is not None:
                tables.write_table(getattr(self, part), files.path / name)
        return [] if files.registration.exists() else [files.registration.name]


def new_forward(fixed, moving, label: str = ""):
    """The transform node for a new or loaded registration; ``label`` distinguishes it from others of the pair."""
    name = _("{moving} to {fixed}").format(moving=moving.GetName(), fixed=fixed.GetName())
    if label:
        name = _("{name} ({setting})").format(name=name, setting=label)
    forward = add(fixed.GetScene(), "vtkMRMLGridTransformNode", name)
    forward.SetNodeReferenceID(f"{_ROLE}Fixed", fixed.GetID())
    forward.SetNodeReferenceID(f"{_ROLE}Moving", moving.GetID())
    return forward


def _part(forward, name: str):
    former = _FORMER.get(name, name)
    return forward.GetNodeReference(_ROLE + name) or forward.GetNodeReference(_ROLE + former)


def _node_fields() -> list[str]:
    return [part.name for part in fields(Outputs) if part.name not in ("folder", "owner", "layers")]


def _unused(folder: Path, name: str) -> Path:
    """A path in the folder, after the result's name, that does not exist yet."""
    name = re.sub(r"[^\w .+-]", "_", name).strip(" .")[:100] or "result"
    paths = (folder / (name if i == 1 else f"{name} ({i})") for i in itertools.count(1))
    return next(path for path in paths if not path.exists())
