"""Regional ventilation by the densities of two CTs, beside that by the Jacobian determinant."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..both import Both
from ..files.folder import ResultFolder
from ..measure.ventilation import SMOOTH_MM, Densities, log_jacobian, regional_ventilation
from ..space.grid import Box, Grid


@dataclass(frozen=True)
class Ventilation:
    """In a box of the fixed grid: densities, and specific ventilation (air gained per volume of air; z, y, x), NaN
    where unknown."""

    densities: Densities
    specific: np.ndarray
    box: Box
    voxel_volume_mm3: float

    @classmethod
    def of(
        cls, images: Both[sitk.Image], transform: sitk.Transform, box: Box, mask: sitk.Image, scale: float = 1.0
    ) -> Ventilation | None:
        """None for images other than CTs. ``scale``: of lengths, below 1 for small bodies."""
        grid, densities = Grid.of(images.fixed), Densities.of(images, transform, mask, box)
        if densities is None:
            return None
        return cls(densities, densities.ventilation(grid.spacing_mm, SMOOTH_MM * scale), box, grid.voxel_volume_mm3)

    def of_regions(self, rows: list[dict], jacobian: np.ndarray, regions: sitk.Image) -> list[dict]:
        """The rows of ``region_statistics`` with the ventilation of each region."""
        labels = sitk.GetArrayViewFromImage(regions)[self.box]
        found = regional_ventilation(jacobian, self.densities, self.specific, labels, self.voxel_volume_mm3)
        return [row | more for row, more in zip(rows, found, strict=True)]


def further_maps(
    jacobian: np.ndarray, ventilation: Ventilation | None, outputs: Collection[str], folder: ResultFolder
) -> Iterator[tuple[np.ndarray, Path]]:
    """The requested maps (z, y, x) other than the determinant, 0 where nothing changes, with their files."""
    if "log-jacobian" in outputs:
        yield log_jacobian(jacobian), folder.log_jacobian
    if "ventilation" in outputs:
        yield jacobian - 1, folder.ventilation
        if ventilation is not None:
            yield np.nan_to_num(ventilation.specific), folder.ventilation_hu
