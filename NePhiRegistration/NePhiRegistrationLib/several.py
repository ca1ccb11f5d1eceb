"""Settings that the same pair is registered with one after the other, so that their results can be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from . import parameters
from .choices import Preset
from .i18n import tr as _
from .job import Job
from .ownpresets import OwnPresets
from .parameters import Parameters

AS_SET = "as_set"  # the settings of the panel; other keys are terms of presets and paths of own ones


def offered(own: OwnPresets) -> dict[str, str]:
    """Keys, and how they are called."""
    shipped = {preset.term: preset.name_only for preset in Preset if preset is not Preset.FILE}
    return {AS_SET: _("As set above"), **shipped, **{str(own.path(name)): name for name in own.names()}}


def ticked(p: Parameters) -> list[str]:
    try:
        keys = json.loads(p.several or "[]")
    except ValueError:
        return []
    return [str(key) for key in keys] if isinstance(keys, list) else []


def tick(p: Parameters, keys: list[str]) -> None:
    p.several = json.dumps(keys) if keys else ""


def jobs(p: Parameters) -> list[Job]:
    """One for each of the ticked settings; without any, the one that the panel describes.

    All else is as the panel says: volumes, masks, guidance, trained model, device.
    """
    made, own = [], parameters.job(p)
    for key in ticked(p):
        if key == AS_SET:
            made.append(replace(own, label=_as_set(p)))
        elif key in {preset.term for preset in Preset}:
            name = next(preset.name_only for preset in Preset if preset.term == key)
            made.append(replace(own, preset=key, settings_file="", overrides={}, label=name))
        elif Path(key).is_file():  # else it was removed
            balanced = Preset.BALANCED.term
            made.append(replace(own, preset=balanced, settings_file=key, overrides={}, label=Path(key).stem))
    return made or [own]


def problem(p: Parameters, found: list[Job]) -> str:
    """Why the jobs of ``p`` cannot begin, in words; "" where they can."""
    if not ticked(p) or AS_SET in ticked(p):
        reason = parameters.problem(p)
        if reason:
            return reason
    for job in found:
        reason = job.problem()
        if reason:
            return _("{setting}: {reason}").format(setting=job.label, reason=reason) if job.settings_file else reason
    return ""


def _as_set(p: Parameters) -> str:
    name = Path(p.settings_file).stem if p.preset is Preset.FILE else p.preset.name_only
    return _("{preset}, changed").format(preset=name) if parameters.overrides(p) else name
