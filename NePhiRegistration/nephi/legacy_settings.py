"""Settings files of earlier versions, converted to the current entries: the only place that knows the old names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

# Settings of one kind used to list the entries of every kind. By class: entries that such a list always had.
_OF_ALL_KINDS = {
    "FieldSettings": {"width", "frequencies", "modulation", "linear"},
    "SimilaritySettings": {"noise", "blurs"},
    "EncoderSettings": {"node_spacing", "steps", "reach", "windows", "size", "any_size", "channels", "hidden",
                        "local_level", "context", "norm"},
}  # fmt: skip


def upgraded(base: Any, data: dict) -> dict:
    """The entries of a settings file of any version, converted to those of the class of ``base``; a copy."""
    names = {cls.__name__: cls for cls in type(base).__mro__}
    for name in names.keys() & _OF_ALL_KINDS.keys():
        if (
            data.keys() >= _OF_ALL_KINDS[name]
        ):  # entries of other kinds had no effect; unknown ones stay, to be reported
            known = _OF_ALL_KINDS[name] | _entries(names[name])
            data = {key: value for key, value in data.items() if hasattr(base, key) or key not in known}
    similarity = data.get("similarity")
    if names.keys() & {"Settings", "ModelSettings"} and isinstance(similarity, dict) and "stages" in similarity:
        return _with_levels(data, dict(similarity), "Settings" in names)
    return data


def _entries(cls: Any) -> set[str]:
    """The entries that this class and its subclasses have."""
    own = {entry.name for entry in fields(cls)}
    return own.union(*(_entries(kind) for kind in cls.__subclasses__()))


def _with_levels(data: dict, similarity: dict, all_levels: bool) -> dict:
    """``similarity.stages`` moved to ``levels`` (a registration) or to ``features`` (a model, which has one)."""
    stages = similarity.pop("stages")
    data = {**data, "similarity": similarity}
    if all_levels:
        return data | {"levels": [_level(stage) for stage in stages] if isinstance(stages, list | tuple) else stages}
    level = _level(stages[0] if isinstance(stages, list | tuple) and stages else stages)
    return data | {"features": level.get("features", {}) if isinstance(level, dict) else level}


def _level(stage: Any) -> Any:
    if not isinstance(stage, dict):
        return stage
    level = {key: value for key, value in stage.items() if key not in ("spacing_mm", "dilation", "outside")}
    if "coarsening" in level:
        level["node_spacing_factor"] = level.pop("coarsening")
    features = {key: value for key, value in stage.items() if key in ("spacing_mm", "dilation", "outside")}
    return {**level, "features": features} if features else level
