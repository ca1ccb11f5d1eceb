"""Settings as former versions wrote them, turned into those of today: the only place that knows the old names."""

from __future__ import annotations

from typing import Any

_MATCHING = ("node_spacing", "steps", "reach", "windows")
_OF_OTHERS = {"mind": {"blurs"}, "ncc": {"noise"}, "mse": {"noise"}, "lncc": {"noise", "blurs"}}  # of a similarity
_PUBLISHED = ("size", "any_size", "channels", "hidden", "local_level", "context", "norm")


def renewed(base: Any, data: dict) -> dict:
    """The entries of a settings file of any version as the class of ``base`` has them today; ``data`` is kept."""
    if not isinstance(data, dict):
        return data
    rename = {"Settings": _settings, "ModelSettings": _model, "TrainSettings": _training}.get(type(base).__name__)
    return data if rename is None else rename(data)


def _settings(data: dict) -> dict:
    """The levels were ``similarity.stages``."""
    similarity = data.get("similarity")
    if not (isinstance(similarity, dict) and "stages" in similarity):
        return data
    stages = similarity["stages"]
    levels = [_level(stage) for stage in stages] if isinstance(stages, list | tuple) else stages
    return {**data, "levels": levels, "similarity": _similarity(similarity)}


def _model(data: dict) -> dict:
    """The features were the first of ``similarity.stages``, and one encoder's entries those of all."""
    data = dict(data)
    similarity = data.get("similarity")
    if isinstance(similarity, dict) and "stages" in similarity:
        stages = similarity["stages"]
        level = _level(stages[0] if isinstance(stages, list | tuple) and stages else stages)
        data["features"] = level.get("features", {}) if isinstance(level, dict) else level
        data["similarity"] = _similarity(similarity)
    encoder = data.get("encoder")
    if isinstance(encoder, dict) and encoder.keys() >= {*_MATCHING, *_PUBLISHED}:  # written as a whole
        of_others = _PUBLISHED if encoder.get("kind") == "matching" else _MATCHING
        data["encoder"] = {key: value for key, value in encoder.items() if key not in of_others}
    if isinstance(data.get("coarse"), dict):
        data["coarse"] = _model(data["coarse"])
    return data


def _training(data: dict) -> dict:
    return {**data, "model": _model(data["model"])} if isinstance(data.get("model"), dict) else data


def _level(stage: Any) -> Any:
    if not isinstance(stage, dict):
        return stage
    level = {key: value for key, value in stage.items() if key not in ("spacing_mm", "dilation", "outside")}
    if "coarsening" in level:
        level["node_spacing_factor"] = level.pop("coarsening")
    features = {key: value for key, value in stage.items() if key in ("spacing_mm", "dilation", "outside")}
    return {**level, "features": features} if features else level


def _similarity(data: dict) -> dict:
    """The levels stood here, and one similarity's entries were those of all: of a whole, others mean nothing."""
    written = {"noise", "blurs"} <= data.keys()
    without = {"stages"} | (_OF_OTHERS.get(data.get("name", ""), set()) if written else set())
    return {key: value for key, value in data.items() if key not in without}
