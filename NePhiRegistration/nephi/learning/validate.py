"""Validation of a model on pairs it was not trained on: overlap, landmark error, folds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..both import Both
from ..maps.jacobian import exact_determinants
from ..maps.maps import Map
from ..measure.quality import dice
from .model import Model
from .pair_tensors import PairTensors

_CHUNK = 16384
_FOLD_VOXELS = 20_000  # of the mask, where folds are counted in 3D
_PICTURES = 4


def validate(model: Model, data, most: int, device, writer=None, step: int = 0) -> dict[str, float]:
    """Means over at most ``most`` pairs: dice, tre_mm, folds_percent, each where it is known, and ``score``.

    The score, the larger the better, is minus the landmark error, or else the overlap. ``writer``: TensorBoard's.
    """
    found: dict[str, list[float]] = {}
    for k in range(min(most, len(data))):
        sample = data[k].to(device)
        maps = model.predict(sample)
        for name, value in measure(maps, sample).items():
            found.setdefault(name, []).append(value)
        if writer is not None and k < _PICTURES:
            writer.add_image(f"pair {k}: fixed, warped, moving", picture(maps, sample), step)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    folds = 10 * means["folds_percent"]  # a few folds outweigh a little accuracy
    means["score"] = -means["tre_mm"] - folds if "tre_mm" in means else means.get("dice", 0.0) - folds / 100
    return means


def measure(maps: Map, sample: PairTensors) -> dict[str, float]:
    """dice, tre_mm and folds_percent of a pair's forward map, if the data of the pair allow."""
    points = sample.voxel_centres()
    found = {"folds_percent": folds_percent(maps, sample)}
    if sample.landmarks is not None and sample.to_moving_mm is not None:
        fixed, moving = sample.landmarks
        apart = (mapped(maps, fixed) - moving) @ sample.to_moving_mm.T
        found["tre_mm"] = float(apart.norm(dim=-1).mean())
        before = (fixed - moving) @ sample.to_moving_mm.T
        found["tre_before_mm"] = float(before.norm(dim=-1).mean())
    labels = sample.labels if sample.labels is not None else sample.masks
    if labels is not None:
        found["dice"] = overlap(labels, sample, mapped(maps, points))
    return found


def overlap(labels: Both[Tensor], sample: PairTensors, partners: Tensor) -> float:
    """Mean Dice over the labels of the moving map, warped, with the fixed one; fractions are cut at one half."""
    fixed, moving = labels
    one = moving.is_floating_point() or moving.dtype == torch.bool
    values = [1] if one else [v for v in np.unique(fixed.cpu()).tolist() if v]
    scores = []
    for value in values:
        part = moving.float() if one else (moving == value).float()
        warped = sample.at(part, partners) > 0.5
        there = (fixed.float() > 0.5 if fixed.is_floating_point() else fixed == value).reshape(-1)
        if there.any() or warped.any():
            scores.append(dice(there.cpu().numpy(), warped.cpu().numpy()))
    return float(np.mean(scores)) if scores else 1.0


@torch.no_grad()
def mapped(maps: Map, points_cube: Tensor) -> Tensor:
    return torch.cat([maps.forward(p) for p in points_cube.split(_CHUNK)])


def folds_percent(maps: Map, sample: PairTensors, most: int = _FOLD_VOXELS) -> float:
    """Share of voxels (of the mask, if there is one) whose exact Jacobian determinant is not above 0.

    In 3D at most ``most`` of them are evaluated.
    """
    within = None if sample.masks is None else sample.masks.fixed
    points_cube = sample.voxel_centres(within, most if sample.lower_cube.numel() == 3 else None)
    folded = int((~(exact_determinants(maps.forward, points_cube) > 0)).sum())
    return 100 * folded / max(1, len(points_cube))


def picture(maps: Map, sample: PairTensors) -> Tensor:
    """(1, y, 3 x): the fixed, the warped and the moving image, in 3D their middle coronal slices, head up."""
    shape = sample.intensities[0].shape
    fixed, moving = sample.scaled
    warped = sample.at(moving, mapped(maps, sample.voxel_centres())).reshape(shape)
    images = [fixed, warped, moving]
    if len(shape) == 3:
        images = [image[:, shape[1] // 2].flip(0) for image in images]
    return torch.cat(images, -1)[None].clamp(0, 1).cpu()
