"""Colours of text that stay readable on whatever ground the application's theme has."""

from __future__ import annotations

RED, GREEN, BLUE, GREY = (0.78, 0.18, 0.15), (0.13, 0.55, 0.30), (0.10, 0.42, 0.75), (0.5, 0.5, 0.5)
CONTRAST = 4.5  # WCAG AA for text
GOOD_GROUND, CHECK_GROUND, BAD_GROUND = (0.08, 0.42, 0.22), (0.96, 0.76, 0.25), (0.66, 0.10, 0.10)


def readable(rgb: tuple, ground_rgb: tuple) -> str:
    """``#rrggbb`` of this hue, lightened or darkened until it stands out from the ground (rgb from 0 to 1)."""
    towards = 1.0 if contrast((1.0, 1.0, 1.0), ground_rgb) > contrast((0.0, 0.0, 0.0), ground_rgb) else 0.0
    for step in range(21):
        mixed = tuple(round(255 * (c + (towards - c) * step / 20)) / 255 for c in rgb)
        if contrast(mixed, ground_rgb) >= CONTRAST:
            break
    return as_hex(mixed)


def on(ground_rgb: tuple) -> str:
    """``#rrggbb``, black or white, whichever stands out more from the ground."""
    return readable((1.0, 1.0, 1.0) if contrast((1.0, 1.0, 1.0), ground_rgb) >= CONTRAST else (0.0,) * 3, ground_rgb)


def as_hex(rgb: tuple) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def contrast(rgb: tuple, other_rgb: tuple) -> float:
    """WCAG contrast ratio, 1 to 21."""
    lighter, darker = sorted((_luminance(rgb), _luminance(other_rgb)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(rgb: tuple) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
