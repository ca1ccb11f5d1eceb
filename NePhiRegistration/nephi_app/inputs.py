"""What a registration starts from: the nodes and files that were chosen, and the job that the page describes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.choices import MODEL_FILE, Preset
from NePhiRegistrationLib.guides import Guides
from NePhiRegistrationLib.job import Job
from NePhiRegistrationLib.ownpresets import OwnPresets

from . import dicom
from .files import Served
from .roles import ROLES, Kind
from .state import of_scans

_SCANS = ("fixed", "moving")
_PLAIN = ("fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "regions", "moving_regions",
          "initial_transform")  # fmt: skip
_SOURCE = "NePhi.Source"  # attribute of a scan: the file or folder that it was opened from, and series
OWN = "own/"  # before the name of an own preset


class Inputs:
    def __init__(self, scene: Any, state: Any, own: OwnPresets, served: Served):
        self.scene, self.state, self.own, self.served = scene, state, own, served
        self.nodes: dict[str, Any] = {}  # by role
        self.files: dict[str, Path] = {}  # of roles that no node is made of

    async def load(self, role: str, path: Path, name: str, series: tuple[str, ...] = ()) -> Any:
        """The node of a file or DICOM folder, or the file itself; raises NephiError and FrameError. Nothing changes."""
        loaded = await self._load(role, path, name, series)
        if not isinstance(loaded, Path):
            loaded.SetName(name)  # also where there is one of that name, which it may take the place of
        return loaded

    async def _load(self, role: str, path: Path, name: str, series: tuple[str, ...]) -> Any:
        from . import loading  # with SimpleITK, for which the first page need not wait

        kind, words = ROLES[role].kind, ROLES[role].text.lower()
        if kind in (Kind.SETTINGS, Kind.MODEL):
            return path
        if kind is Kind.SCAN:
            image = await asyncio.to_thread(loading.read_scan, path, words, series)
            node = loading.scan_node(self.scene, image, name)
            node.SetAttribute(_SOURCE, json.dumps([str(path), series]))
            dicom.remember(node, path, series)
            return node
        if kind is Kind.TRANSFORM:
            return loading.transform_node(self.scene, path)
        volume = self.nodes[ROLES[role].side]
        if kind is Kind.POINTS:
            return loading.points_node(self.scene, path, volume)
        return loading.labels_node(self.scene, path, volume, words, one_by_one=kind is Kind.LABELS)

    def take(self, role: str, loaded: Any) -> None:
        """Use it in the place of what was there; another scan takes all that lies on the former with it."""
        if role in _SCANS:
            for other in [name for name, known in ROLES.items() if known.side == role]:
                self.forget(other)
        self.forget(role)
        if isinstance(loaded, Path):
            self.files[role] = loaded
            name, segments = loaded.name, []
        else:
            self.nodes[role] = loaded
            name, segments = loaded.GetName(), _segments(loaded) if ROLES[role].kind is Kind.MASK else []
        self._say(role, name, segments)

    def forget(self, role: str) -> None:
        nodes.remove(self.scene, self.nodes.pop(role, None))
        self.files.pop(role, None)
        self._say(role, "", [])

    def _say(self, role: str, name: str, segments: list[dict]) -> None:
        with self.state:
            self.state.names = {**self.state.names, role: name}
            self.state.segments = {**self.state.segments, role: segments}
            self.state.segment = {**self.state.segment, role: ""}

    def job(self) -> Job:
        s, by_files = self.state, self.state.masks == "files"
        chosen = {role: self.nodes.get(role) for role in _PLAIN if by_files or "mask" not in role}
        segments = {f"{side}_segment": s.segment.get(f"{side}_mask", "") for side in _SCANS} if by_files else {}
        guides = {known.guide: self.nodes.get(role) for role, known in ROLES.items() if known.guide}
        guides |= {
            part.name: s.segment.get(part.name.removesuffix("_segment"), "")
            for part in fields(Guides)
            if part.name.endswith("_segment")
        }
        file = self._settings_file()
        return Job(
            self.nodes.get("fixed"),
            self.nodes.get("moving"),
            **chosen,
            **segments,
            auto_mask=s.masks == "auto",
            guides=Guides(**guides, landmarks_sd_mm=s.guide_sd_mm),
            preset=Preset.BALANCED.term if file else s.preset,
            settings_file=file,
            model=str(self.files.get("model_file", "")) if s.model == MODEL_FILE else s.model,
            align=s.align,
            device=s.device,
            page=True,
        )

    def _settings_file(self) -> str:
        """That is chosen, or is the chosen own preset; "" where another preset is."""
        preset = self.state.preset
        if preset.startswith(OWN):
            return str(self.own.path(preset.removeprefix(OWN)))
        return str(self.files.get("settings_file", "")) if preset == Preset.FILE.term else ""

    def checked(self) -> Job:
        """The job, to be used; raises NephiError where its settings lack something, or name files elsewhere."""
        if reason := self.settings_problem():
            raise NephiError(reason)
        return self.job()

    def problem(self) -> str:
        """Why there is no job yet, in words; "" where there is one."""
        return of_scans(self.settings_problem() or self._same_scan() or self.job().problem())

    def _same_scan(self) -> str:
        """What was opened twice is two nodes."""
        fixed, moving = (self.nodes.get(role) for role in _SCANS)
        if fixed is None or moving is None or not (source := fixed.GetAttribute(_SOURCE)):
            return ""
        same = source == moving.GetAttribute(_SOURCE)
        return "The fixed and the moving scan are the same: choose another one." if same else ""

    def settings_problem(self) -> str:
        """Why the settings are not complete, whatever they are for."""
        if self.state.preset == Preset.FILE.term and "settings_file" not in self.files:
            return "Choose a settings file, or another preset."
        if self.state.model == MODEL_FILE and "model_file" not in self.files:
            return "Choose a model file, or no trained model."
        try:
            away = [path.name for path in self.job().files() if not self.served.holds(path)]
        except NephiError as error:
            return str(error)
        return f"The settings name {away[0]}, which is not in the served folder." if away else ""


def _segments(labels: Any) -> list[dict]:
    """All, or one of the segments of a segmentation that has several."""
    if not labels.IsA("vtkMRMLSegmentationNode"):
        return []
    segmentation = labels.GetSegmentation()
    known = [(key, segmentation.GetSegment(key).GetName()) for key in segmentation.GetSegmentIDs()]
    items = [("", "All segments"), *known] if len(known) > 1 else []
    return [{"value": value, "text": text} for value, text in items]
