"""Settings and outputs from the command line's options."""

from __future__ import annotations

from dataclasses import replace

from ..errors import NephiError
from ..files.folder import DEFAULT_OUTPUTS, check_outputs
from ..settings import Settings, check, load, preset


def settings_from(options) -> Settings:
    """Preset, then settings file, then single flags."""
    settings = preset(options.preset or "balanced")
    if options.settings:
        settings = load(options.settings, settings)
        if options.preset and settings.preset != options.preset:
            raise NephiError(f"--preset {options.preset} and the settings file's preset '{settings.preset}' differ")
    given = {k: getattr(options, k) for k in ("align", "model", "sliding") if getattr(options, k)}
    settings = replace(settings, **given)
    changes = {k: getattr(options, k) for k in ("iterations", "seed") if getattr(options, k) is not None}
    settings = replace(settings, fit=replace(settings.fit, **changes))
    if options.guide_sd is not None:
        settings = replace(settings, guidance=replace(settings.guidance, landmarks_sd_mm=options.guide_sd))
    check(settings)
    return settings


def outputs_from(options) -> tuple[str, ...]:
    """``--outputs``, less the report where ``--no-report`` is given."""
    names: tuple[str, ...] = DEFAULT_OUTPUTS
    if options.outputs is not None:
        names = tuple(part.strip() for part in options.outputs.split(",") if part.strip())
        check_outputs(names)
    return tuple(name for name in names if not (options.no_report and name == "report"))
