"""Geometry that several tests need."""

from __future__ import annotations

import numpy as np
import torch


def rotation(dimension: int, degrees: float, seed: int = 0) -> np.ndarray:
    """A rotation (d, d), in 3D about a random axis."""
    angle = np.radians(degrees)
    if dimension == 2:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y, z = (axis := np.random.default_rng(seed).normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def points_of(dimension: int, n: int = 50, seed: int = 1) -> torch.Tensor:
    """Points (n, d), each coordinate between -1 and 1."""
    return torch.rand(n, dimension, generator=torch.Generator().manual_seed(seed)) * 2 - 1
