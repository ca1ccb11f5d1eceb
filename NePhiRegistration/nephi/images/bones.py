"""The relative position of the bones around the masks of a pair of CTs: a start for the wall of a sliding border."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from ..both import Both
from ..space.affine import Affine
from ..space.grid import Grid
from .affine_fit import AffineFit, orthogonal
from .blocks import shrink_factors
from .coarse import Coarse, blurred
from .hounsfield import looks_like_ct
from .search import Correlation

_SPACING_MM = 6.0  # of a large body
_BONE_HU = (150.0, 600.0)  # from 0 to 1
_LEAST_PART = 0.1  # of bone, where a voxel is compared
_AROUND_MM = 12.0  # the bones, too
_STEPS = 8
_POINTS = 4000  # at most, about
_LEAST_BONE = 100  # voxels
_LEAST_FIT = 0.5  # score; 0.95 and more on phantoms
_FARTHEST_MM = 60.0  # from where the masks' alignment takes the bones


def bones_aligned(
    images: Both[sitk.Image], masks: Both[sitk.Image], start: Affine, scale: float
) -> Both[np.ndarray] | None:
    """Points (n, d) in LPS mm of the bones outside the fixed mask, and where their rigid motion takes them.

    ``start``: the alignment of the masks. The motion is the one that fits the bones of both images. None for images
    other than CTs, and if no motion fits. As ribs resemble each other, every translation is tried.
    """
    if not all(looks_like_ct(image) for image in images):
        return None
    spacing_mm = _SPACING_MM * scale
    d, grid = images.fixed.GetDimension(), Grid.of(images.fixed)
    centre = grid.corners_lps_mm().mean(0)
    turn = orthogonal(start.matrix)
    first = Affine(turn, start(centre) - turn @ centre)
    low, high = grid.corners_lps_mm().min(0), grid.corners_lps_mm().max(0)
    size = np.ceil((high - low) / spacing_mm).astype(int) + 1
    coarse = Grid(tuple(size.tolist()), (spacing_mm,) * d, tuple(low.tolist()), tuple(np.eye(d).ravel().tolist()))
    transforms = Both(Affine.identity(d), first)
    fixed, moving = (_bones(*each, coarse) for each in zip(images, masks, transforms, strict=True))
    bone = [image.features[0] > _LEAST_PART for image in (fixed, moving)]
    if min(int(part.sum()) for part in bone) < _LEAST_BONE:
        return None
    _, shift = Correlation(fixed.features, fixed.seen, size).best(moving.features, moving.seen)
    around = _AROUND_MM * scale
    fit = AffineFit(Both(fixed, moving), Both(fixed.near(bone[0], around), moving.near(bone[1], around)))
    found = fit.refined(Affine(np.eye(d), shift * spacing_mm), rigid=True, steps=_STEPS)
    moved_mm = np.linalg.norm(found(fit.centre) - fit.centre)
    if fit.score(found) < _LEAST_FIT or moved_mm > _FARTHEST_MM * scale:
        return None
    points = fixed.points(bone[0], _POINTS)[0].double().numpy()
    return Both(points, first(found(points)))


def _bones(image: sitk.Image, mask: sitk.Image, through: Affine, grid: Grid) -> Coarse:
    """Bone (0 to 1, by intensity) outside the mask, for the image on a grid."""
    low, high = _BONE_HU
    bone = sitk.Clamp((sitk.Cast(image, sitk.sitkFloat32) - low) / (high - low), sitk.sitkFloat32, 0, 1)
    inside = sitk.Cast(mask != 0, sitk.sitkFloat32)
    everywhere = inside * 0 + 1
    shrink = shrink_factors(Grid.of(image), grid.spacing_mm[0])

    def resampled(values: sitk.Image) -> torch.Tensor:
        on_grid = grid.resample(sitk.BinShrink(values, shrink), through.transform(), sitk.sitkLinear, 0.0)
        return torch.from_numpy(sitk.GetArrayFromImage(on_grid))

    seen = ((resampled(everywhere) > 0.5) & (resampled(inside) < 0.5)).float()
    return Coarse(
        blurred(resampled(bone)[None]) * seen,
        seen,
        seen > 0,
        seen > 0,
        grid.spacing_mm[0],
        np.array(grid.origin_lps_mm),
    )
