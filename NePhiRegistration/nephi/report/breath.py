"""What the densities of two CTs say of the breath between them, beside the map: volumes and numbers by region."""

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
class Breath:
    """In a box of the fixed grid: densities, and the air gained per volume of air (z, y, x), NaN where unknown."""

    densities: Densities
    ventilation: np.ndarray
    box: Box
    voxel_volume_mm3: float

    @classmethod
    def of(
        cls, images: Both[sitk.Image], transform: sitk.Transform, box: Box, mask: sitk.Image, scale: float = 1.0
    ) -> Breath | None:
        """None for other images than CTs. ``scale``: of lengths, below 1 for small bodies."""
        grid, densities = Grid.of(images.fixed), Densities.of(images, transform, mask, box)
        if densities is None:
            return None
        return cls(densities, densities.ventilation(grid.spacing_mm, SMOOTH_MM * scale), box, grid.voxel_volume_mm3)

    def of_regions(self, rows: list[dict], jacobian: np.ndarray, regions: sitk.Image) -> list[dict]:
        """The rows of ``region_statistics`` with the ventilation of each region."""
        labels = sitk.GetArrayViewFromImage(regions)[self.box]
        found = regional_ventilation(jacobian, self.densities, self.ventilation, labels, self.voxel_volume_mm3)
        return [row | more for row, more in zip(rows, found, strict=True)]


def further_maps(
    jacobian: np.ndarray, breath: Breath | None, outputs: Collection[str], folder: ResultFolder
) -> Iterator[tuple[np.ndarray, Path]]:
    """Maps (z, y, x) besides the determinant that were asked for, 0 where nothing changes, and their files."""
    if "log-jacobian" in outputs:
        yield log_jacobian(jacobian), folder.log_jacobian
    if "ventilation" in outputs:
        yield jacobian - 1, folder.ventilation
        if breath is not None:
            yield np.nan_to_num(breath.ventilation), folder.ventilation_hu
