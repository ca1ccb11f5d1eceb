"""Rough run time and memory, before the run.

Fitted to runs of 2D and 3D pairs with every preset on two CPU cores; within a factor of two there. On a GPU
the time is an upper bound and the memory that of the same run on a CPU, without the libraries; neither was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..settings import BODY_MM, FieldSettings, NeuralSettings, Settings

_REGION_MM3 = 15e6  # lungs with a margin: what is worked on of a larger volume
_MASK_PART = 0.3  # of it lies in the lungs
_LIBRARIES_MB = 480.0
_BYTES_A_VOXEL = 10.0  # of both images, their warped copy and Jacobian
_BYTES_A_WORK_VOXEL = 45.0  # of the working grid: features of both images, before and after a change of stage
_BYTES_AN_ACTIVATION = 60.0
_TRANSFORM_MM3, _TRANSFORM_MM2 = 27.0, 9.0  # per node of the written transforms, 3D and 2D
# seconds: once, per voxel read and written, per iteration, per multiplication of the network with its derivatives in
# the optimisation, per working voxel and level, per multiplication of a node's map and of a voxel's exact determinant
_ONCE_S, _VOXEL_S, _ITERATION_S, _FIT_PRODUCT_S = 5.0, 2e-7, 0.014, 2e-10
_FEATURES_S, _MAP_PRODUCT_S, _JACOBIAN_PRODUCT_S = 4e-7, 6e-11, 1.3e-10


@dataclass(frozen=True)
class Estimate:
    """Wall-clock seconds and peak memory: of the process on a CPU, of the device on a GPU."""

    seconds: float
    memory_mb: float


def estimate(
    settings: Settings,
    fixed_size: tuple[int, ...],
    fixed_spacing_mm: tuple[float, ...],
    moving_size: tuple[int, ...],
    moving_spacing_mm: tuple[float, ...],
    device: str = "cpu",
) -> Estimate:
    """Rough cost of registering images of these sizes (voxels) and spacings, x first, lung masks assumed in 3D."""
    dimension = len(fixed_size)
    volume = math.prod(n * s for n, s in zip(fixed_size, fixed_spacing_mm, strict=True))
    voxel = math.prod(fixed_spacing_mm)
    voxels = math.prod(fixed_size) + math.prod(moving_size)
    region = min(volume, _REGION_MM3) if dimension == 3 else volume
    longest_mm = max(n * s for n, s in zip(fixed_size, fixed_spacing_mm, strict=True))
    scale = min(1.0, longest_mm / BODY_MM)
    own_mm = math.prod(fixed_spacing_mm) ** (1 / dimension)

    finest_mm = settings.similarity.finest * own_mm
    work = [region / max(level.features.spacing_mm * scale, finest_mm) ** dimension for level in settings.levels]
    points = settings.similarity.points.count(int(max(work)))
    products, activations = _network(settings.field)
    memory = _BYTES_A_WORK_VOXEL * max(work) + _BYTES_AN_ACTIVATION * points * activations
    if device.startswith("cuda"):
        memory_mb = memory / 1e6
    else:
        memory_mb = _LIBRARIES_MB + (memory + _BYTES_A_VOXEL * voxels) / 1e6

    steps = settings.fit.iterations * (_ITERATION_S + _FIT_PRODUCT_S * points * products)
    features = _FEATURES_S * sum(work)
    nodes = min(volume / (_TRANSFORM_MM3 if dimension == 3 else _TRANSFORM_MM2) / scale**dimension, voxels / 2)
    transforms = _MAP_PRODUCT_S * products * nodes
    jacobian = _JACOBIAN_PRODUCT_S * products * _MASK_PART * region / voxel
    return Estimate(_ONCE_S + _VOXEL_S * voxels + features + steps + transforms + jacobian, memory_mb)


def _network(field: FieldSettings) -> tuple[int, int]:
    """Multiplications and activations of a point; fields without a network read their code, and no more is known."""
    if not isinstance(field, NeuralSettings):
        return field.local_code, field.local_code
    f = field
    products = 2 * f.frequencies * 2 * f.width + f.local_code * f.width + 2 * f.hidden_layers * f.width**2
    return products, 2 * f.frequencies + 4 * f.width
