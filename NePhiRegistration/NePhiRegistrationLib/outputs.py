"""The nodes of a finished registration: made from the engine's folder, found again in a reloaded scene, saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from . import tables
from .scene import add, interpolate_linearly, read_grid_transform, read_volume, remove, show_like, write_transform

REPORT = "report.json"
_ROLE = "NePhi."  # of node references: what was registered to what, and what belongs to the same result
_ENGINE_FILES = ("transform.h5", "inverse_transform.h5", "registration.safetensors", REPORT, "report.html")
_TABLES = ("statistics", "folds", "ventilation")


@dataclass
class Outputs:
    """Everything is in world coordinates, without parent transforms, as the inputs lay when the run began."""

    forward: object  # vtkMRMLGridTransformNode; from parent: fixed -> moving, so that moving under it lies on fixed
    inverse: object  # the same for the other way
    warped: object = None  # moving on the fixed volume's voxels
    jacobian: object = None  # determinant of fixed -> moving on the fixed volume's voxels
    inverse_consistency: object = None  # mm, on the transform's coarse grid
    statistics: object = None
    folds: object = None
    ventilation: object = None  # None where no regions were given
    histogram: object = None  # vtkMRMLPlotChartNode
    histogram_series: object = None
    histogram_table: object = None
    report_text: object = None  # vtkMRMLTextNode with the report as JSON, so that it stays with the scene
    folder: Path | None = None  # of the engine's files; None after the scene was loaded again

    @property
    def report(self) -> dict:
        return json.loads(self.report_text.GetText())

    @property
    def fixed(self):
        return self.forward.GetNodeReference(f"{_ROLE}Fixed")

    @property
    def moving(self):
        return self.forward.GetNodeReference(f"{_ROLE}Moving")

    def nodes(self) -> list:
        parts = (getattr(self, part.name) for part in fields(self) if part.name != "folder")
        return [node for node in parts if node is not None]

    @classmethod
    def read(cls, folder: Path, forward, fixed, moving, region_names: dict[int, str]) -> Outputs:
        """New nodes from the engine's ``folder``; ``forward`` is already there. A failure leaves none."""
        scene = forward.GetScene()
        out = cls(forward=forward, inverse=None, folder=folder)
        try:
            out._make(scene, fixed.GetName(), moving.GetName(), region_names)
        except Exception:
            for node in out.nodes()[1:]:  # all but forward, which is the caller's
                remove(scene, node)
            raise
        for node in out.nodes():
            node.SetNodeReferenceID(f"{_ROLE}Fixed", fixed.GetID())
            node.SetNodeReferenceID(f"{_ROLE}Moving", moving.GetID())
        for part in fields(cls):
            node = getattr(out, part.name)
            if node is not None and part.name not in ("folder", "forward"):
                forward.SetNodeReferenceID(_ROLE + part.name, node.GetID())
        show_like(out.warped, moving)
        return out

    def _make(self, scene, fixed: str, moving: str, region_names: dict[int, str]) -> None:
        folder = self.folder
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        self.forward.SetAndObserveTransformFromParent(read_grid_transform(folder / "transform.h5"))
        self.inverse = add(scene, "vtkMRMLGridTransformNode", f"{fixed} to {moving}")
        self.inverse.SetAndObserveTransformFromParent(read_grid_transform(folder / "inverse_transform.h5"))
        volumes = {
            "warped": ("warped.nii.gz", f"{moving} on {fixed}"),
            "jacobian": ("jacobian.nii.gz", f"Jacobian {fixed} to {moving}"),
            "inverse_consistency": ("inverse_consistency.nii.gz", f"Inverse consistency {fixed} to {moving} (mm)"),
        }
        for part, (file, name) in volumes.items():
            node = add(scene, "vtkMRMLScalarVolumeNode", name)
            setattr(self, part, node)
            read_volume(folder / file, node)
            node.CreateDefaultDisplayNodes()
        self.report_text = add(scene, "vtkMRMLTextNode", f"Report {moving} to {fixed}")
        self.report_text.SetText(json.dumps(report))
        self.statistics = tables.statistics_table(scene, report, f"Statistics {moving} to {fixed}")
        self.folds = tables.fold_table(scene, report, f"Folds {moving} to {fixed}")
        if "regions" in report:
            self.ventilation = tables.ventilation_table(scene, report, region_names, f"Ventilation {moving} to {fixed}")
        histogram = tables.histogram_nodes(scene, report, f"Jacobian histogram {moving} to {fixed}")
        self.histogram, self.histogram_series, self.histogram_table = histogram

    @classmethod
    def find(cls, forward) -> Outputs | None:
        """The result that a forward transform node belongs to, as after loading a scene; None if it is none."""
        if forward is None or forward.GetNodeReference(f"{_ROLE}report_text") is None:
            return None
        parts = [part.name for part in fields(cls) if part.name not in ("forward", "folder")]
        found = cls(forward=forward, **{part: forward.GetNodeReference(_ROLE + part) for part in parts})
        for transform in (found.forward, found.inverse):  # a scene that is loaded makes it cubic
            interpolate_linearly(transform)
        return found

    def save(self, folder: str | Path) -> list[str]:
        """Transforms, model, report and tables into ``folder``; the names of engine files that are gone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        missing = []
        for name in _ENGINE_FILES:
            source = None if self.folder is None else self.folder / name
            if source is not None and source.is_file():
                shutil.copyfile(source, folder / name)
            else:
                missing.append(name)
        # what the scene holds does not depend on the engine's folder
        for name, node in (("transform.h5", self.forward), ("inverse_transform.h5", self.inverse)):
            if name in missing:
                write_transform(node, folder / name)
                missing.remove(name)
        if REPORT in missing:
            (folder / REPORT).write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")
            missing.remove(REPORT)
        for part in _TABLES:
            node = getattr(self, part)
            if node is not None:
                tables.write_csv(node, folder / f"{part}.csv")
        return [name for name in missing if name != "report.html"]
