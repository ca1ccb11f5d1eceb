"""What is measured of each region, such as a lobe of the lungs."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..both import Both
from ..files.segments import named, region_names
from ..measure.quality import region_statistics
from ..measure.surfaces import label_agreement
from ..space.affine import Affine
from ..space.grid import Box, Grid
from .ventilation import Ventilation


def measured_regions(
    regions: Both[sitk.Image | None],
    jacobian: np.ndarray,
    box: Box,
    ventilation: Ventilation | None,
    transform: sitk.Transform,
    alignment: Affine,
) -> list[dict] | None:
    """A row of every region of the fixed label map; None without one.

    Volume and its change by the determinant (z, y, x) in the ``box`` of the grid (``region_statistics``), ventilation
    of CTs (``regional_ventilation``), and, where the moving image's regions are given, numbered alike, how well they
    meet (``label_agreement``; None for one that is missing there), with ``moving_region_ml``, the volume drawn there.
    """
    fixed, moving = regions
    if fixed is None:
        return None
    labels, grid = sitk.GetArrayViewFromImage(fixed)[box], Grid.of(fixed)
    rows = region_statistics(jacobian, labels, grid.voxel_volume_mm3)
    if ventilation is not None:
        rows = ventilation.of_regions(rows, jacobian, fixed)
    if moving is not None:
        agreement = {row["label"]: row for row in label_agreement(fixed, moving, transform, alignment.transform())}
        rows = [row | _agreement(agreement[row["label"]]) for row in rows]
    return named(rows, region_names(fixed))


def _agreement(row: dict) -> dict:
    """Without what the region's row says already; None of a region that the moving image's do not have."""
    left = {name: value for name, value in row.items() if name not in ("label", "name", "fixed_ml", "moving_ml")}
    return {"moving_region_ml": row["moving_ml"]} | (left if row["moving_ml"] else dict.fromkeys(left))
