"""Models of two stages that several tests need."""

from __future__ import annotations

from dataclasses import replace

import torch
from nephi.learning.model import Model
from nephi.learning.settings import MatchingSettings, ModelSettings
from nephi.settings import Features, MindSettings, NeuralSettings, Sampling, VoxelSettings

FINE_MM, COARSE_MM = 2.5, 7.5


SIMILARITY = MindSettings(points=Sampling(0.0, 200, 200))


def single(d: int = 2, spacing_mm: float = FINE_MM, **changes) -> ModelSettings:
    """A stage that needs no training to find a shift; looks 6 of its voxels away."""
    field = NeuralSettings(width=16, frequencies=8, global_code=3, local_code=2 * d + 1, linear=True)
    encoder = MatchingSettings(node_spacing=0.15 * (d - 1), steps=(2, 1), windows=(5, 9), width=8)
    features = Features(spacing_mm, 1)
    settings = ModelSettings(d, field, encoder, features, SIMILARITY)
    return replace(settings, **changes)


def voxel(d: int = 2, **changes) -> ModelSettings:
    field = VoxelSettings(local_code=2 * d, global_code=1)
    return single(d, COARSE_MM, **{"field": field, **changes})


def both(d: int = 2) -> ModelSettings:
    return single(d, coarse=voxel(d))


def randomised(settings: ModelSettings, seed: int) -> Model:
    """Every weight is something."""
    model, generator = Model(settings), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.03)
    return model
