"""Random maps of the cube, by which a pair becomes many."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..both import Both
from ..limits import NotNegative, Share
from .pair_tensors import Frame, PairTensors


@dataclass(frozen=True)
class Augmentation:
    """Random maps of the cube.

    Both images alike: flips (a probability per axis), rotation, scale and shift. The moving image alone, as a different
    alignment: ``apart_*``. And the pair in the opposite direction.
    """

    flip: Share = 0.0  # chance of each axis
    rotation_deg: NotNegative = 8.0  # of both images alike, about each axis
    scale: Share = 0.1  # change of size of both images alike
    shift: NotNegative = 0.05  # of both images alike, in the unit of the cube
    apart_deg: NotNegative = 3.0  # rotation of the moving image alone
    apart_scale: Share = 0.04  # change of size of the moving image alone
    apart_shift: NotNegative = 0.03  # of the moving image alone, in the unit of the cube
    swap: Share = 0.5  # chance that the pair is taken the other way round

    def __call__(self, sample: PairTensors, seed: int) -> PairTensors:
        rng, d = np.random.default_rng(seed), len(sample.half_extents_cube)
        if rng.random() < self.swap:
            sample = sample.swapped()
        turned, shift = _random_affine(rng, d, self.rotation_deg, self.scale, self.shift)
        turned = turned * np.where(rng.random(d) < self.flip, -1, 1)
        apart = _random_affine(rng, d, self.apart_deg, self.apart_scale, self.apart_shift)
        frames = Both((turned, shift), (turned @ apart[0], turned @ apart[1] + shift))
        if all(np.allclose(a, np.eye(d)) and not np.any(b) for a, b in frames):
            return sample
        device = sample.half_extents_cube.device

        def tensors(frame: tuple[np.ndarray, np.ndarray]) -> Frame:
            matrix, offset = (torch.tensor(part, dtype=torch.float32, device=device) for part in frame)
            return matrix, offset

        return sample.moved(frames.map(tensors))


def _random_affine(rng: np.random.Generator, d: int, degrees: float, scale: float, shift: float):
    matrix = np.diag(np.exp(rng.uniform(-1, 1, d) * math.log1p(scale)))
    for i in range(d):
        for j in range(i):
            angle = math.radians(degrees) * rng.uniform(-1, 1)
            turn = np.eye(d)
            turn[[i, j], [i, j]] = math.cos(angle)
            turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
            matrix = turn @ matrix
    return matrix, shift * rng.uniform(-1, 1, d)
