"""Instance optimisation of one prepared pair, by nephi's own objective and loop, and what it reaches."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from nephi.fitting.fit import Adam, fit
from nephi.fitting.objective import Objective
from nephi.fitting.regularity import make_regulariser
from nephi.learning.model import Model
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.validate import measure
from nephi.maps.code import Code, HybridCode, zero_code
from nephi.maps.maps import FieldMap, Map, make_fields
from nephi.settings import FieldSettings, FitSettings, RegularitySettings, SimilaritySettings


@dataclass
class Start:
    """Maps to optimise; ``half_size_mm``: what one unit of the cube is."""

    maps: Map
    half_size_mm: float

    @classmethod
    def predicted(cls, model: Model, sample: PairTensors) -> Start:
        """The model's prediction; the model itself is left as it is."""
        code = model.predict(sample).code
        return cls(FieldMap(copy.deepcopy(model.fields).requires_grad_(True), code), model.settings.half_size_mm)

    @classmethod
    def fresh(
        cls,
        field: FieldSettings,
        sample: PairTensors,
        size: int,
        half_size_mm: float,
        seed: int = 0,
        spread: float = 0.0,
    ) -> Start:
        """Random weights and a code on ``size`` nodes per side, of zeros or random with this standard deviation.

        The fields' last layer is zero, so that without a linear term both maps are the identity.
        """
        generator = torch.Generator().manual_seed(seed)
        upper = sample.half_extents_cube
        fields = make_fields(field, half_size_mm, len(upper), generator).to(upper.device)
        code = zero_code(field, upper, (size,) * len(upper))
        drawn = [spread * torch.randn(t.shape, generator=generator).to(t) for t in (code.global_code, code.local_code)]
        return cls(FieldMap(fields, Code(*drawn, upper)), half_size_mm)

    def measure(self, sample: PairTensors) -> dict[str, float]:
        """Dice and folds (percent of all pixels, exact Jacobian) of the forward map."""
        return measure(self.maps, sample)

    @torch.no_grad()
    def inverse_inconsistency(self, points: int = 4096, step_mm: float = 1.5) -> float:
        """Mean squared Frobenius norm of J[phi o psi] - Id over random points and both orders (paper, Eq. 3)."""
        upper, regulariser = self.maps.half_extents_cube, make_regulariser(RegularitySettings("gradicon"))
        d, step = len(upper), step_mm / self.half_size_mm
        generator = torch.Generator(upper.device).manual_seed(0)
        x = (torch.rand((points, 1, d), generator=generator, device=upper.device) * 2 - 1) * upper
        x = (x + regulariser.stencil(d, step).to(upper)).expand(2, -1, -1, -1)
        y = self.maps(x.reshape(2, -1, d)).reshape(x.shape)
        return float(regulariser.penalty(self.maps, x, y, step))


def optimise(
    start: Start,
    sample: PairTensors,
    similarity: SimilaritySettings,
    regularity: RegularitySettings,
    settings: FitSettings,
    watch=lambda done, start: None,
) -> Start:
    """``settings.iterations`` steps on all that the maps are made of; ``watch(done, start)`` is called after each."""
    maps = start.maps
    if isinstance(maps, FieldMap):
        code = HybridCode(maps.code)
        maps, parameters = FieldMap(maps.fields, code), [*maps.fields.parameters(), *code.parameters()]
    else:
        parameters = list(maps.parameters())
    start = Start(maps, start.half_size_mm)
    generator = torch.Generator(sample.half_extents_cube.device).manual_seed(settings.seed)
    objective, volumes = Objective(similarity, regularity, start.half_size_mm, generator), sample.volumes
    fit(lambda _: objective(maps, [volumes]), Adam(parameters, settings), after_step=lambda n: watch(n, start))
    return start
