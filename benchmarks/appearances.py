"""What images of made pairs look like: noise, shading, other contrasts, a head around a brain."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from nephi.space.grid import Grid

AROUND_MM = 22  # of a head around the brain


def smooth_noise(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> np.ndarray:
    """White noise under a Gaussian of this deviation in voxels, far from any border, of mean 0 and deviation 1."""
    margin = round(3 * deviation)
    image = sitk.GetImageFromArray(rng.standard_normal([n + 2 * margin for n in shape]))
    values = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, deviation))
    inner = values[tuple(slice(margin, margin + n) for n in shape)]
    return (inner - inner.mean()) / inner.std()


def shaded(values: np.ndarray, rng: np.random.Generator, part: float) -> np.ndarray:
    return values * np.exp(part * smooth_noise(values.shape, min(values.shape) / 6, rng))


def as_t2(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fluid bright, white matter dark, background as it was; of a T1 brain scaled to 0..1."""
    scaled = np.clip(values / np.percentile(values, 99.5), 0, 1)
    dark = np.interp(scaled, [0, 0.04, 0.12, 0.45, 0.7, 1.0], [0, 0.6, 1.0, 0.62, 0.35, 0.5])
    return dark + 0.02 * rng.standard_normal(values.shape) * (scaled > 0.02)


def as_mr(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of a CT: lungs and bone dark, fat brighter than muscle."""
    points = [-1100, -950, -700, -150, -90, -20, 20, 60, 150, 300, 1000]
    signal = np.interp(values, points, [0, 5, 30, 150, 230, 170, 110, 130, 180, 60, 10])
    return np.hypot(shaded(signal, rng, 0.15) + 5 * rng.standard_normal(values.shape), 5)


def folded(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 200 * np.abs(np.sin(2.2 * np.pi * values / np.percentile(values, 99.5))) + 3 * rng.standard_normal(
        values.shape
    )


def as_enhanced(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of a CT: 40 HU of contrast agent in soft tissue, up to 250 HU in parts of it (heart, large vessels)."""
    soft = np.interp(values, [-20, 20, 80, 150], [0, 1, 1, 0])
    blood = 1 / (1 + np.exp(-4 * (smooth_noise(values.shape, min(values.shape) / 12, rng) - 0.7)))
    return values + soft * (40 + 210 * blood)


def as_cone_beam(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scatter = 60 * smooth_noise(values.shape, min(values.shape) / 5, rng)
    return 0.8 * values - 100 + scatter + 60 * rng.standard_normal(values.shape)


def depth_mm(image: sitk.Image) -> np.ndarray:
    """(z, y, x) signed distance to the border of what an image shows, its holes filled: 0 at its last voxels."""
    shown = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(sitk.Cast(image > 0, sitk.sitkUInt8), [3] * 3))
    found = sitk.SignedMaurerDistanceMap(shown, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    return sitk.GetArrayFromImage(found)


def around(brain: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """A brain within a made head, ``AROUND_MM`` larger on each side, as bright as its own white matter; no noise."""
    more = [round(AROUND_MM / mm) for mm in brain.GetSpacing()]
    image = sitk.ConstantPad(brain, more, more, 0.0)
    values, away = sitk.GetArrayFromImage(image), -depth_mm(image)
    bright = _white(values)
    varied = [1 + 0.2 * smooth_noise(values.shape, 18.0 / brain.GetSpacing()[0], rng) for _ in range(3)]
    fluid, bone, skin = (mm * one.clip(0.4, 1.6) for mm, one in zip((2.0, 6.0, 6.0), varied, strict=True))
    layers = [away <= 0, away <= fluid, away <= fluid + bone, away <= fluid + bone + skin]
    texture = 1 + 0.15 * smooth_noise(values.shape, 2.0, rng)
    head = np.select(layers, [values, 0.2 * bright, 0.08 * bright, 0.9 * bright * texture], 0.0)
    return Grid.of(image).image(head.astype(np.float32))


def noisy(values: np.ndarray, bright: float, rng: np.random.Generator) -> np.ndarray:
    """Under the noise of a magnitude image, of a fiftieth of a brightness."""
    noise = 0.02 * bright
    return np.hypot(values + noise * rng.standard_normal(values.shape), noise * rng.standard_normal(values.shape))


def in_head(brain: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """A brain within a made head and noisy air."""
    head = around(brain, rng)
    values = noisy(sitk.GetArrayFromImage(head), _white(sitk.GetArrayFromImage(brain)), rng)
    return Grid.of(head).image(values.astype(np.float32))


def _white(values: np.ndarray) -> float:
    return float(np.percentile(values[values > 0], 95))
