"""Lung CT pairs with landmarks, registered in this process: what the experiments in 3D share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from nephi.device import limit_threads
from nephi.errors import NephiError
from nephi.measure import quality
from nephi.measure.quality import random_points
from nephi.registration import register
from nephi.result import Registration
from nephi.settings import Settings
from nephi.space.grid import Grid

from benchmarks.pairs import PAIRS, data_folder, read_landmarks

_FOLD_POINTS = 50_000
BREATH_HOLDS = ("breathhold_case01", "breathhold_case02")


@dataclass(frozen=True)
class Case:
    """Images, lung masks and points_lps_mm that correspond, each fixed and moving."""

    name: str
    images: tuple[sitk.Image, sitk.Image]
    masks: tuple[sitk.Image, sitk.Image]
    landmarks: tuple[np.ndarray, np.ndarray]

    @classmethod
    def read(cls, name: str) -> Case:
        pair, folder = PAIRS[name], data_folder()
        if not (folder / pair.fixed).is_file():
            raise NephiError(f"no {folder / pair.fixed}: set NEPHI_DATA to the data folder")

        def both(fixed: str, moving: str, read):
            return read(folder / fixed), read(folder / moving)

        def image(path):
            return sitk.ReadImage(str(path))

        return cls(
            name,
            both(pair.fixed, pair.moving, image),
            both(pair.fixed_mask, pair.moving_mask, image),
            both(pair.fixed_landmarks, pair.moving_landmarks, read_landmarks),
        )

    def at_resolution(self, voxels: int) -> Case:
        """Images and masks on grids with this many voxels along the longer side of each lungs' box, averaged."""

        def coarser(image: sitk.Image, mask: sitk.Image) -> tuple[sitk.Image, sitk.Image]:
            shape = sitk.LabelShapeStatisticsImageFilter()
            shape.Execute(mask != 0)
            box = np.array(shape.GetBoundingBox(1))[3:] * np.array(mask.GetSpacing())
            old, spacing = Grid.of(image), float(box.max()) / voxels
            if spacing <= min(old.spacing_mm):
                return image, mask
            extent = (np.array(old.size) - 1) * old.spacing_mm
            size = tuple(int(n) for n in np.floor(extent / spacing) + 1)
            grid = Grid(size, (spacing,) * 3, old.origin_lps_mm, old.direction)
            smooth = sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), 0.4 * spacing)
            share = sitk.SmoothingRecursiveGaussian(sitk.Cast(mask != 0, sitk.sitkFloat32), 0.4 * spacing)
            return grid.resample(smooth, outside=-1000.0), sitk.Cast(grid.resample(share) > 0.5, sitk.sitkUInt8)

        images, masks = zip(*map(coarser, self.images, self.masks), strict=True)
        return replace(self, images=images, masks=masks)


def registered(case: Case, settings: Settings, device) -> tuple[Registration, dict]:
    """The registration, and its numbers: TRE after the alignment and at the end, folds in the fixed mask, seconds.

    Folds: percent of 50,000 random voxel centres of the mask whose exact Jacobian determinant is not above 0.
    """
    limit_threads(2)
    result = register(
        *case.images, fixed_mask=case.masks[0], moving_mask=case.masks[1], settings=settings, device=str(device)
    )
    fixed, moving = case.landmarks
    errors = quality.tre_mm(result.forward(fixed), moving)
    points = random_points(result.fixed_grid, result.fixed_mask, _FOLD_POINTS)
    folded = ~(result.jacobian_determinant(points) > 0)
    return result, {
        "aligned_mm": float(quality.tre_mm(result.affine(fixed), moving).mean()),
        "tre_mm": float(errors.mean()),
        "folds_percent": 100 * float(folded.mean()),
        "seconds": result.seconds,
    }
