"""Procedural chests that differ from each other, as people do: proportions, asymmetry, fat, emphysema, nodules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .anatomy import Canvas, Motion, draw_waves, grow_trees, render
from .bspline import box_grid


def procedural(seed: int, spacing_mm: float = 2.5) -> tuple[sitk.Image, sitk.Image]:
    """A procedural chest CT (int16, HU) and its lungs (uint8), a different one for each seed."""
    rng = np.random.default_rng(seed)
    waves, phases = draw_waves(rng, 10, 70, 180)
    amplitudes = rng.normal(size=(10, 3)) * rng.uniform(0.012, 0.035) / np.linalg.norm(waves, axis=1, keepdims=True)
    zero = np.zeros(3)
    shape = _Shape(3, 1.0, zero, zero, waves, phases, amplitudes,
                   rng.uniform((0.82, 0.85, 0.78), (1.1, 1.15, 1.12)), rng.uniform(-0.08, 0.08),
                   rng.uniform(-0.04, 0.22), rng.uniform(-14, 14, 2))  # fmt: skip
    ends = np.array([[-165, -112, -140], [165, 125, 135]]) * shape.stretch
    grid = box_grid(ends[0], ends[1], spacing_mm)
    trees = grow_trees(rng, 3, int(rng.integers(120, 320)))
    forks = trees["forks"][rng.permutation(len(trees["forks"]))[: rng.integers(0, 12)]]
    if len(forks):  # nodules: balls beside vessels
        balls = forks + rng.normal(size=forks.shape) * 4
        radius = rng.uniform(2, 7, (len(balls), 1))
        trees["vessels"] = np.vstack([trees["vessels"], np.hstack([balls, balls, radius, radius])])
    canvas = Canvas(grid, shape, inhale=True)
    canvas.growth = _thinness(canvas.xyz, rng)
    return render(canvas, trees, draw_waves(rng, 14, 12, 45), rng)


@dataclass(frozen=True)
class _Shape(Motion):
    """The phantom's anatomy -> a person's: proportions, asymmetry, fat, two domes and a smooth random part."""

    stretch: np.ndarray  # along each axis
    asymmetry: float  # the left lung wider
    fat: float  # outside the ribs
    domes_mm: np.ndarray  # right, left: lifted

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(..., 3) anatomy points -> points of the image, mm."""
        a = np.asarray(points_lps_mm, float)
        x, y, z = np.moveaxis(a, -1, 0)
        left = (1 + np.tanh(x / 25)) / 2
        low = (1 - np.tanh((z + 20) / 40)) / 2
        shift = np.sin(a @ self.wave_vectors.T + self.wave_phases) @ self.wave_amplitudes
        outer = (1 + np.tanh((np.sqrt((x / 140) ** 2 + ((y - 3) / 105) ** 2 + 1e-6) - 1) / 0.12)) / 2
        shift[..., 0] += x * (self.asymmetry * np.tanh(x / 60) + self.fat * outer)
        shift[..., 1] += (y - 3) * self.fat * outer
        shift[..., 2] += low * ((1 - left) * self.domes_mm[0] + left * self.domes_mm[1])
        return (a + shift) * self.stretch


def _thinness(xyz: np.ndarray, rng) -> np.ndarray:
    """Factor by which the parenchyma is thinner than the phantom's, overall and in patches of emphysema."""
    patches = np.zeros(xyz.shape[1:], np.float32)
    vectors, phases = draw_waves(rng, 12, 25, 90)
    for vector, phase in zip(vectors.astype(np.float32), phases.astype(np.float32), strict=True):
        patches += np.cos(np.tensordot(vector, xyz, 1) + phase)
    severity = rng.uniform(0, 1.5) * (rng.random() < 0.5)
    dark = 1 / (1 + np.exp(-6 * (patches / np.float32(np.sqrt(6)) - rng.uniform(0.6, 1.6))))
    return np.exp(rng.uniform(-0.5, 0.35)) * (1 + severity * dark)
