"""What a registration starts from: the nodes and files that were chosen, and the job that the page describes."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path
from typing import Any

from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.choices import MODEL_FILE, Preset
from NePhiRegistrationLib.guides import Guides
from NePhiRegistrationLib.job import Job
from NePhiRegistrationLib.ownpresets import OwnPresets

from . import dicom
from .roles import ROLES, Kind

_SCANS = ("fixed", "moving")
_PLAIN = ("fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "regions", "initial_transform")
OWN = "own/"  # before the name of an own preset


class Inputs:
    def __init__(self, scene: Any, state: Any, own: OwnPresets):
        self.scene, self.state, self.own = scene, state, own
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

    def problem(self) -> str:
        """Why there is no job yet, in words; "" where there is one."""
        return self.settings_problem() or self.job().problem()

    def settings_problem(self) -> str:
        """Why the settings are not complete, whatever they are for."""
        if self.state.preset == Preset.FILE.term and "settings_file" not in self.files:
            return "Choose a settings file, or another preset."
        if self.state.model == MODEL_FILE and "model_file" not in self.files:
            return "Choose a model file, or no trained model."
        return ""


def _segments(labels: Any) -> list[dict]:
    """All, or one of the segments of a segmentation that has several."""
    if not labels.IsA("vtkMRMLSegmentationNode"):
        return []
    segmentation = labels.GetSegmentation()
    known = [(key, segmentation.GetSegment(key).GetName()) for key in segmentation.GetSegmentIDs()]
    items = [("", "All segments"), *known] if len(known) > 1 else []
    return [{"value": value, "text": text} for value, text in items]
