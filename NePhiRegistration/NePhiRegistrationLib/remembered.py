"""Choices saved in the settings of the application, for the next scene and the next start."""

from __future__ import annotations

from enum import Enum

NAMES = (
    *("preset", "device", "tolerances_file", "auto_mask", "live", "page"),
    *("opacity", "legend", "grid_mode", "grid_spacing_mm"),
)
_GROUP = "NePhiRegistration/"


def recall(p, settings) -> None:
    """Fill a new parameter node; a value that no longer makes sense leaves the default.

    ``settings``: the application's QSettings, which may give texts for numbers.
    """
    for name in NAMES:
        text, default = settings.value(_GROUP + name), getattr(p, name)
        if text is None:
            continue
        try:
            setattr(p, name, _value(str(text), default))
        except (ValueError, KeyError, RuntimeError):
            continue


def keep(p, settings) -> None:
    """Save the choices, except a settings file, which belongs to its scene."""
    for name in NAMES:
        value = getattr(p, name)
        if isinstance(value, Enum) and value.name == "FILE":
            continue
        settings.setValue(_GROUP + name, _text(value))


def _text(value) -> str:
    if isinstance(value, Enum):
        return value.name
    return str(int(value)) if isinstance(value, bool) else str(value)


def _value(text: str, default):
    if isinstance(default, Enum):
        return type(default)[text]
    if isinstance(default, bool):
        return bool(int(text))
    return type(default)(text)
