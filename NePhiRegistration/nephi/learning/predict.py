"""A model's prediction for one pair and the checks it must pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import NephiError
from ..fitting.objective import Objective
from ..images.image_pair import ImagePair
from ..maps.maps import Map
from ..settings import RegularitySettings
from ..space.cube import Cube
from .model import Model
from .pair_tensors import PairTensors
from .validate import folds_percent

_POINTS = 20_000  # at which the prediction is compared with the alignment alone
_FOLD_VOXELS = 50_000  # most voxels of the mask checked for folds; those of a result are counted exactly


@dataclass
class Prediction:
    """Map to start from, in the cube that the model works in; ``flaw``: why not to, or ""."""

    maps: Map
    cube: Cube
    flaw: str


def predict(model: Model, pair: ImagePair, device: torch.device) -> Prediction:
    """One pass of the model over an aligned pair.

    The flaw is found on the pair itself: the images fit worse through the prediction than through the alignment
    alone (by the model's own features), or it folds in the mask. Raises NephiError as ``ImagePair.of``, and
    for images of another dimension than the model's.
    """
    s = model.settings
    if pair.cube.dimension != s.dimension:
        raise NephiError(f"the model is for {s.dimension}D images; these are {pair.cube.dimension}D")
    own = ImagePair.of(pair.images, pair.masks, pair.affine, s.similarity, pair.trusted, s.cube_margin_mm)
    sample = PairTensors.of(own, s.features, device=device)
    maps = model.predict(sample)
    before, after = _misfits(maps, sample)
    flaw = ""
    if not after < before:
        flaw = f"it fits no better than the alignment alone ({after:.4f} against {before:.4f})"
    elif folds_percent(maps, sample, _FOLD_VOXELS) > 0:
        flaw = "it folds"
    return Prediction(maps, own.cube, flaw)


@torch.no_grad()
def _misfits(maps: Map, sample: PairTensors) -> list[float]:
    """Mean difference of the features at random points, both ways: through the alignment alone, and the maps."""
    generator = torch.Generator(sample.half_extents_cube.device).manual_seed(0)
    objective = Objective(sample.similarity, RegularitySettings("none"), 1.0, generator)
    return objective.misfits([None, maps], sample.volumes, _POINTS)
