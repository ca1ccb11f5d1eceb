"""Ventilation between two breathing states, by the map (volume) and by the density of the lungs (air).

``|J| - 1`` is the volume that tissue gains, per volume of it in the fixed image (Reinhardt et al., Medical Image
Analysis 2008). ``1000 (m - f) / (f (m + 1000))``, with f and m the HU of the same tissue in the fixed and in the moving
image, is the air that it gains, per volume of air in it (Simon, J Clin Monit 2000; Guerrero et al., Phys Med Biol
2006): air has -1000 HU, tissue and blood 0, and only air is gained. Of the same breath the second is larger, by 1 / the
air's part of the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..both import Both
from ..images.hounsfield import hu_units, in_hu
from ..space.grid import Box, Grid

SMOOTH_MM = 3.0  # standard deviation within the mask: noise of 20 HU is a tenth of the lungs' density
_LEAST_AIR, _MOST_AIR = 0.3, 0.99  # part of the volume: below are vessels and walls, whose ventilation is unknown
_LEAST_JACOBIAN = 1e-9  # as in the statistics of log |J|


@dataclass(frozen=True)
class Densities:
    """Both images in HU (float32, (z, y, x)) in the box of the fixed mask; the moving one is warped."""

    fixed: np.ndarray
    moving: np.ndarray
    inside: np.ndarray  # bool

    @classmethod
    def of(cls, images: Both[sitk.Image], transform: sitk.Transform, mask: sitk.Image, box: Box) -> Densities | None:
        """In a box of the fixed grid that contains the mask; None for images other than CTs."""
        units = images.map(hu_units)
        if units.fixed is None or units.moving is None:
            return None
        part = Grid.of(images.fixed).part(box)
        fixed, moving = in_hu(images.fixed, units.fixed), in_hu(images.moving, units.moving)
        return cls(
            sitk.GetArrayViewFromImage(fixed)[box].copy(),
            sitk.GetArrayFromImage(part.resample(moving, transform, outside=-1000.0)),
            sitk.GetArrayViewFromImage(mask)[box] != 0,
        )

    def ventilation(self, spacing_mm: tuple[float, ...], smooth_mm: float = SMOOTH_MM) -> np.ndarray:
        """Air gained per volume of air (z, y, x; float32), of images smoothed within the mask by ``smooth_mm``.

        NaN where less than 30 % of the smoothed volume is air in either state, and outside the mask.
        """
        weight = _smooth(self.inside.astype(np.float32), spacing_mm, smooth_mm)
        f, m = (
            np.minimum(
                -_smooth(np.where(self.inside, hu, 0), spacing_mm, smooth_mm) / np.maximum(weight, 1e-3) / 1000,
                _MOST_AIR,
            )
            for hu in (self.fixed, self.moving)
        )
        known = self.inside & (f >= _LEAST_AIR) & (m >= _LEAST_AIR)
        found = np.full(self.inside.shape, np.nan, np.float32)
        found[known] = (m[known] - f[known]) / (f[known] * (1 - m[known]))
        return found


def log_jacobian(jacobian: np.ndarray) -> np.ndarray:
    """log |J|, of |J| clipped at 1e-9."""
    return np.log(np.maximum(jacobian, _LEAST_JACOBIAN))


def regional_ventilation(
    jacobian: np.ndarray, densities: Densities, ventilation: np.ndarray, labels: np.ndarray, voxel_volume_mm3: float
) -> list[dict[str, float | None]]:
    """For every label but 0, in order: the content of its tissue in both states, and its ventilation.

    Each is a dict of air_fixed_ml and air_moving_ml, ventilation_jacobian (mean |J| - 1), ventilation_hu (the mean of
    ``ventilation`` where it is known, None where it is nowhere), and mass_ratio: the mass of the tissue in the moving
    image by that in the fixed one, which is 1 where map and densities agree and only air is gained. Arrays (z, y, x) of
    one shape.
    """
    rows = []
    for label in np.unique(labels[labels != 0]):
        here = labels == label
        f, m, j = densities.fixed[here] / -1000, densities.moving[here] / -1000, jacobian[here].astype(float)
        volume_ml, known = voxel_volume_mm3 / 1000, ventilation[here][np.isfinite(ventilation[here])]
        rows.append(
            {
                "air_fixed_ml": float(f.sum(dtype=float) * volume_ml),
                "air_moving_ml": float((m * j).sum() * volume_ml),
                "ventilation_jacobian": float(j.mean() - 1),
                "ventilation_hu": float(known.mean(dtype=float)) if known.size else None,
                "mass_ratio": float(((1 - m) * j).sum() / max((1 - f).sum(dtype=float), 1e-9)),
            }
        )
    return rows


def _smooth(values: np.ndarray, spacing_mm: tuple[float, ...], sd_mm: float) -> np.ndarray:
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing(spacing_mm)
    return sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, [sd_mm**2] * values.ndim, 64, 0.01, True))
