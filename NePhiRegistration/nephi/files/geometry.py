"""Where an image's voxels lie, checked: finite, of a size that occurs, at right angles."""

from __future__ import annotations

import numpy as np

from ..errors import NephiError

_SPACING_MM = (1e-4, 1e3)
FARTHEST_MM = 1e6
_SKEW = 1e-3  # of the directions' products; beyond it the axes are not at right angles


def check_geometry(spacing_mm, origin_lps_mm, direction, role: str) -> None:
    """Raise NephiError unless ``spacing_mm`` (d), ``origin_lps_mm`` (d) and ``direction`` (d * d) are an image's."""
    spacing, origin = np.asarray(spacing_mm, float), np.asarray(origin_lps_mm, float)
    axes = np.reshape(np.asarray(direction, float), (len(spacing), len(spacing)))
    for name, values in (("spacing", spacing), ("origin", origin), ("direction", axes)):
        if not np.isfinite(values).all():
            raise NephiError(f"{role}: the {name} in the file has NaN or infinite values; repair the header")
    low, high = _SPACING_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        raise NephiError(
            f"{role}: the voxel spacing is {numbers(spacing)} mm; values from {low:g} to {high:g} mm are expected"
        )
    if (np.abs(origin) > FARTHEST_MM).any():
        raise NephiError(f"{role}: the origin {numbers(origin)} mm is farther than {FARTHEST_MM / 1e6:g} km away")
    products = axes.T @ axes
    if np.abs(np.diag(products) - 1).max() > _SKEW:
        raise NephiError(f"{role}: the direction is not orthonormal: its columns have lengths other than 1")
    skew = np.abs(products - np.diag(np.diag(products))).max()
    if skew > _SKEW:
        degrees = np.degrees(np.arcsin(min(1.0, skew)))
        raise NephiError(
            f"{role}: the axes are not at right angles (sheared by {degrees:.2g} degrees, as by a gantry tilt); "
            "resample the image to a straight grid first"
        )


def numbers(values) -> str:
    return " x ".join(f"{v:.6g}" for v in np.ravel(values))
