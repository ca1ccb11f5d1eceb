"""A trained model's answer for one pair, and whether it is any good."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from .errors import NephiError
from .field import Code, NeuralFields
from .model import Model
from .objective import Objective
from .pair import Pair
from .sample import Sample
from .settings import RegularitySettings, Settings
from .space import Cube
from .validate import folds_percent

_POINTS = 20_000  # at which the prediction is compared with the alignment alone


@dataclass
class Prediction:
    """Fields and code to start from, in the cube that the model works in; ``flaw``: why not to, or ""."""

    fields: NeuralFields
    code: Code
    cube: Cube
    flaw: str


def predict(model: Model, pair: Pair, device: torch.device) -> Prediction:
    """One pass of the model over an aligned pair.

    The flaw is found on the pair itself: the images fit worse through the prediction than through the alignment
    alone (by the model's own features), or it folds somewhere in the mask. Raises NephiError as ``Pair``, and for
    images of another dimension than the model's.
    """
    s = model.settings
    if pair.cube.dimension != s.dimension:
        raise NephiError(f"the model is for {s.dimension}D images; these are {pair.cube.dimension}D")
    seen = replace(pair.settings, similarity=s.similarity)
    own = Pair(*pair.images, *pair.masks, pair.affine, seen, pair.trusted, s.cube_margin_mm)
    sample = Sample.of(own).to(device)
    code = model.predict(sample)
    fields = copy.deepcopy(model.fields).requires_grad_(True)
    before, after = _misfits(model, sample, code, seen)
    flaw = ""
    if not after < before:
        flaw = f"it fits no better than the alignment alone ({after:.4f} against {before:.4f})"
    elif folds_percent(model, code, sample, sample.voxel_centres(), most=None) > 0:
        flaw = "it folds"
    return Prediction(fields, code, own.cube, flaw)


@torch.no_grad()
def _misfits(model: Model, sample: Sample, code: Code, settings: Settings) -> list[float]:
    """Mean difference of the features at random points, both ways: through the alignment alone, and the code."""
    generator = torch.Generator(sample.upper_cube.device).manual_seed(0)
    objective = Objective(model.fields, settings.similarity, RegularitySettings("none"), 1.0, generator)
    return objective.misfits([None, code], sample.volumes, _POINTS)
