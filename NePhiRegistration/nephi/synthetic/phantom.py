"""A procedural breathing chest CT: exhale and inhale images whose true map is known everywhere.

The anatomy is a continuous function of *anatomy points* (mm, x Left, y Posterior, z Superior, origin
mid-chest, at exhale). Exhale is rendered from it directly and inhale through the inverse of the map,
so that both images are equally sharp and neither is an interpolated copy of the other. A 2D phantom
is the coronal section: x to the Left, y to the feet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..files.image import write_image
from ..files.landmarks import write_landmarks
from ..files.writing import replaced
from ..limits import Seed, check_value
from ..space.grid import Grid
from .anatomy import Canvas, Motion, draw_motion, draw_waves, grow_trees, render
from .sliding import SlidingMotion

_SIZES, _WIDEST_MM = (8, 4096), 1000
_DEFAULTS = {2: ((192, 160), 2.0), 3: ((128, 112, 112), 2.5)}


@dataclass(frozen=True)
class Phantom:
    """Exhale (fixed) and inhale (moving) chest CT in HU, lung masks, forks of vessels and the true map."""

    fixed: sitk.Image  # int16
    moving: sitk.Image
    fixed_mask: sitk.Image  # uint8
    moving_mask: sitk.Image
    fixed_landmarks_lps_mm: np.ndarray  # (n, d) forks of the vessels
    moving_landmarks_lps_mm: np.ndarray
    motion: Motion

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(..., d) points of the fixed image -> moving image, exactly."""
        return self.motion.forward(points_lps_mm)

    def inverse(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(..., d) points of the moving image -> fixed image, to 1e-6 mm."""
        return self.motion.inverse(points_lps_mm)

    def jacobian(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(...) Jacobian determinant of ``forward`` at (..., d) points of the fixed image."""
        return np.linalg.det(self.motion.derivative(np.asarray(points_lps_mm, float)))

    def displacement(self) -> sitk.Image:
        """``forward(x) - x`` in mm at every voxel of the fixed image (vectors of float32)."""
        grid = Grid.of(self.fixed)
        moved = self.motion.on_grid(grid, lambda motion, p: motion.forward(p) - p, inhale=False)
        return grid.image(np.ascontiguousarray(moved), vector=True)

    def write(self, folder: str | Path) -> None:
        """fixed, moving, fixed_mask, moving_mask (.nii.gz), fixed_landmarks and moving_landmarks (.csv)."""
        with replaced(folder) as scratch:
            for name in ("fixed", "moving", "fixed_mask", "moving_mask"):
                write_image(getattr(self, name), scratch / f"{name}.nii.gz")
            write_landmarks(scratch / "fixed_landmarks.csv", self.fixed_landmarks_lps_mm)
            write_landmarks(scratch / "moving_landmarks.csv", self.moving_landmarks_lps_mm)


def make_phantom(size=None, spacing_mm=None, dimension=3, seed=0, moving_spacing_mm=None, sliding=False) -> Phantom:
    """Make an exhale/inhale pair; the anatomy is scaled to fit the fixed image's field of view.

    size (x, y[, z]) and spacing (one, or one per axis) are the fixed image's (default 128 x 112 x 112
    at 2.5 mm, in 2D 192 x 160 at 2 mm); the moving image covers as much, with its own spacing if one is given.
    ``sliding``: what lies within the rib cage moves along it by up to 15 mm, and the chest wall stays where it is.
    Raises NephiError for a dimension other than 2 or 3, or a size or spacing that does not fit it.
    """
    if dimension not in _DEFAULTS:
        raise NephiError(f"A phantom has 2 or 3 dimensions, not {dimension}.")
    check_value(seed, Seed, "seed")
    size, rng = np.array(size or _DEFAULTS[dimension][0]), np.random.default_rng(seed)
    spacing_mm = spacing_mm or _DEFAULTS[dimension][1]
    moving_spacing_mm = moving_spacing_mm or spacing_mm
    if len(size) != dimension or {np.size(spacing_mm), np.size(moving_spacing_mm)} - {1, dimension}:
        raise NephiError(f"Give {dimension} sizes and 1 or {dimension} spacings for {dimension} dimensions.")
    fixed_grid = _centred_grid(size, spacing_mm, rng.uniform(-30, 30, dimension))
    offset = rng.choice([-1, 1], dimension) * rng.uniform(15, 40, dimension)  # another day, another table
    motion = draw_motion(fixed_grid, offset, rng, SlidingMotion if sliding else Motion)
    # the image's centre is not the patient's: aligning centres is not enough
    centre = motion.moving_centre_lps_mm + rng.uniform(-4, 4, dimension) * motion.scale
    moving_size = np.rint(size * np.array(spacing_mm) / moving_spacing_mm)
    moving_grid = _centred_grid(moving_size, moving_spacing_mm, centre)
    trees, mottle = grow_trees(rng, dimension), draw_waves(rng, 14, 12, 45)
    fixed, fixed_mask = render(Canvas(fixed_grid, motion, inhale=False), trees, mottle, rng)
    moving, moving_mask = render(Canvas(moving_grid, motion, inhale=True), trees, mottle, rng)
    forks = motion.from_anatomy(trees["forks"])
    return Phantom(fixed, moving, fixed_mask, moving_mask, forks, motion.forward(forks), motion)


def _centred_grid(size, spacing_mm, centre_lps_mm: np.ndarray) -> Grid:
    d = len(centre_lps_mm)
    spacing = np.broadcast_to(spacing_mm, d)
    if not (min(size) >= _SIZES[0] and max(size) <= _SIZES[1] and np.all((spacing > 0) & (spacing <= _WIDEST_MM))):
        least, most = _SIZES
        raise NephiError(
            f"A phantom needs {least} to {most} voxels along each axis and a spacing above 0, at most {_WIDEST_MM} mm."
        )
    origin = centre_lps_mm - (np.array(size) - 1) / 2 * spacing
    frame = (spacing, origin, np.eye(d).ravel())
    return Grid(tuple(map(int, size)), *(tuple(map(float, values)) for values in frame))


# Vessels and airways: capsules, rows of start (3), end (3), radius at the start, radius at the end.
