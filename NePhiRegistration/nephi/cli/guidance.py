"""What guides a registration, read from the files that the command line names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..both import ROLES, Both
from ..errors import NephiError
from ..files.image import open_image
from ..files.landmarks import read_deviations, read_landmarks
from ..files.masks import read_mask
from ..files.regions import read_regions
from ..files.transform import read_transform
from ..fitting.guidance import Guidance, PointMaps
from ..result import Registration


def guidance_from(options, fixed: sitk.Image, moving: sitk.Image) -> Guidance:
    """Raises NephiError for files that cannot be read or do not belong to their images."""
    images = Both(fixed, moving)
    points = Both(options.fixed_guide_landmarks, options.moving_guide_landmarks)
    labels = Both(options.fixed_guide_labels, options.moving_guide_labels)
    excluded = Both(options.fixed_exclude, options.moving_exclude)
    landmarks = deviations = None
    if points.fixed is not None:
        landmarks = points.map(read_landmarks, images)
        deviations = _deviations(points)
    return Guidance(
        landmarks_lps_mm=landmarks,
        landmarks_sd_mm=deviations,
        labels=None if labels.fixed is None else labels.map(open_image, ROLES.map("{} guide labels".format)),
        excluded=excluded.map(
            lambda path, image, role: read_mask(path, image, f"{role} excluded mask") if path else None, images, ROLES
        ),
        rigid=read_regions(options.rigid_mask, fixed, "rigid mask") if options.rigid_mask else None,
        volume_kept=read_regions(options.volume_mask, fixed, "volume mask") if options.volume_mask else None,
        initial=_initial(options.initial, fixed.GetDimension()) if options.initial else None,
    )


def _deviations(paths: Both[str]) -> np.ndarray | None:
    """Those of either file."""
    found = [one for one in paths.map(read_deviations) if one is not None]
    if len(found) == 2 and not np.array_equal(found[0], found[1]):
        raise NephiError(
            f"{paths.fixed} and {paths.moving} have different standard deviations; give them in only one file"
        )
    return found[0] if found else None


def _initial(path: str, dimension: int) -> sitk.Transform | PointMaps:
    if Path(path).is_dir() or Path(path).suffix.lower() == ".safetensors":
        registration = Registration.load(path)
        if registration.fixed_grid.dimension != dimension:
            raise NephiError(
                f"{path} is a {registration.fixed_grid.dimension}D registration, but the images are {dimension}D"
            )
        return registration
    return read_transform(path, dimension)
