"""What the panel remembers, saved with the scene, and the job it describes."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Union

import slicer
from nephi.errors import NephiError
from nephi.settings import PRESETS, Settings, load, preset
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from . import scene as nodes
from .choices import MODEL_FILE, Alignment, GridMode, Preset, Similarity, View
from .guides import Guides
from .i18n import tr as _
from .job import Job

_Volume = slicer.vtkMRMLScalarVolumeNode
_Landmarks = slicer.vtkMRMLMarkupsFiducialNode
_Mask = Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007 as the wrapper wants


@parameterNodeWrapper
class Parameters:
    """Names are those of the job, and of SlicerParameterName in the .ui file."""

    fixed: _Volume
    moving: _Volume
    auto_mask: bool = True
    fixed_mask: _Mask
    moving_mask: _Mask
    fixed_segment: str = ""  # segment ID; "": all
    moving_segment: str = ""
    fixed_landmarks: _Landmarks
    moving_landmarks: _Landmarks
    regions: _Mask
    moving_regions: _Mask
    align: Alignment = Alignment.AUTO
    initial_transform: slicer.vtkMRMLTransformNode

    fixed_guide_points: _Landmarks
    moving_guide_points: _Landmarks
    guide_sd_mm: Annotated[float, WithinRange(0.1, 20.0)] = 1.0
    fixed_labels: _Mask
    moving_labels: _Mask
    fixed_excluded: _Mask
    moving_excluded: _Mask
    rigid: _Mask
    volume_kept: _Mask
    fixed_excluded_segment: str = ""
    moving_excluded_segment: str = ""
    rigid_segment: str = ""
    volume_kept_segment: str = ""
    sliding: bool = False

    preset: Preset = Preset.BALANCED
    settings_file: str = ""
    model: str = ""  # name of a shipped model, or MODEL_FILE; "": none
    model_file: str = ""
    device: str = "auto"
    similarity: Similarity = Similarity.MIND
    points: Annotated[int, WithinRange(100, 1_000_000)] = 2000
    weight: Annotated[float, WithinRange(0.0, 1000.0)] = 0.5
    iterations: Annotated[int, WithinRange(0, 100_000)] = 600
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    expert_of: str = ""  # the preset or file whose values the expert fields were filled with
    live: bool = True
    tolerances_file: str = ""  # of the site; "": the defaults
    page: bool = False  # the report with pictures too
    several: str = ""  # settings that are registered one after the other, see ``several``

    result: slicer.vtkMRMLGridTransformNode  # the forward transform, which refers to the rest
    view: View = View.FADE
    before: bool = False  # compare with the moving volume as it was
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.5
    legend: bool = True
    beyond: bool = False  # only the expected error beyond the tolerance
    grid: bool = False
    grid_mode: GridMode = GridMode.GRID
    grid_spacing_mm: Annotated[float, WithinRange(2.0, 50.0)] = 12.0
    grid_2d: bool = True
    grid_3d: bool = False


_NODES = [
    "fixed",
    "moving",
    "fixed_mask",
    "moving_mask",
    "fixed_landmarks",
    "moving_landmarks",
    "regions",
    "moving_regions",
    "initial_transform",
]
_PLAIN = ["auto_mask", "fixed_segment", "moving_segment", "device", "tolerances_file", "page", "sliding"]
_GUIDES = {part.name: part.name for part in fields(Guides)} | {  # of a job, and the parameter
    "fixed_landmarks": "fixed_guide_points",
    "moving_landmarks": "moving_guide_points",
    "landmarks_sd_mm": "guide_sd_mm",
}


def choose_only_pair(p: Parameters, scene) -> None:
    """With just two volumes in the scene there is little to choose."""
    volumes = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", scene)
        if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetHideFromEditors() and not nodes.is_map(node)
    ]
    if p.fixed is None and p.moving is None and len(volumes) == 2:
        p.fixed, p.moving = volumes


def base_settings(p: Parameters) -> Settings:
    """Settings of the chosen preset or file, before expert changes; raises NephiError for a bad file."""
    if p.preset is Preset.FILE and p.settings_file:
        return load(p.settings_file, PRESETS["balanced"])
    return preset(Preset.BALANCED.term if p.preset is Preset.FILE else p.preset.term)


def adopt_preset(p: Parameters, again: bool = False) -> None:
    """Fill the expert fields with the values of the chosen preset, if they are another's (or ``again``)."""
    source = f"{p.preset.term} {p.settings_file}" if p.preset is Preset.FILE else p.preset.term
    if p.expert_of == source and not again:
        return
    try:
        values = _expert(base_settings(p))
    except NephiError:  # Job.problem reports what is wrong with the file
        return
    with slicer.util.NodeModify(p):
        p.expert_of = source
        for name, value in values.items():
            setattr(p, name, value)


def expert_changes(p: Parameters) -> dict:
    """Expert fields that differ from the chosen preset's, by name."""
    values = _expert(base_settings(p))
    return {name: getattr(p, name) for name, value in values.items() if getattr(p, name) != value}


def problem(p: Parameters) -> str:
    """Why there is no job yet, as text; empty if there is one."""
    if p.preset is Preset.FILE and not p.settings_file:
        return _("Choose a settings file, or another preset.")
    if p.model == MODEL_FILE and not p.model_file:
        return _("Choose a model file, or no trained model.")
    return job(p).problem()


def job(p: Parameters) -> Job:
    own = {name: getattr(p, name) for name in _NODES + _PLAIN}
    own["guides"] = Guides(**{name: getattr(p, parameter) for name, parameter in _GUIDES.items()})
    file = p.settings_file if p.preset is Preset.FILE else ""
    name = Preset.BALANCED.term if p.preset is Preset.FILE else p.preset.term
    model = p.model_file if p.model == MODEL_FILE else p.model
    return Job(**own, align=p.align.term, preset=name, settings_file=file, model=model, overrides=overrides(p))


def overrides(p: Parameters) -> dict:
    """What the expert fields change of the preset, nested as in a settings file."""
    try:
        changes = expert_changes(p)
    except NephiError:
        return {}
    nested: dict = {}
    for name, value in changes.items():
        section, key = _PLACES[name]
        nested.setdefault(section, {})[key] = value.term if isinstance(value, Similarity) else value
    return nested


_PLACES = {
    "similarity": ("similarity", "name"),
    "points": ("similarity", "points"),
    "weight": ("regularity", "weight"),
    "iterations": ("fit", "iterations"),
    "seed": ("fit", "seed"),
}


def _expert(settings: Settings) -> dict:
    return {
        "similarity": next(s for s in Similarity if s.term == settings.similarity.name),
        "points": settings.similarity.points.most,
        "weight": settings.regularity.weight,
        "iterations": settings.fit.iterations,
        "seed": settings.fit.seed,
    }
