"""Instance optimisation of one prepared pair, by nephi's own objective and loop, and what it reaches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from nephi.field import Code, HybridCode, NeuralFields, zero_code
from nephi.fit import Adam, fit
from nephi.model import Model
from nephi.objective import Objective, regularity, stencil
from nephi.sample import Sample
from nephi.settings import FieldSettings, FitSettings, RegularitySettings, SimilaritySettings
from nephi.validate import measure


@dataclass
class Start:
    """Fields and code to optimise; ``half_size_mm`` is what one unit of the cube stands for."""

    fields: torch.nn.Module
    code: Code
    half_size_mm: float

    @classmethod
    def predicted(cls, model: Model, sample: Sample) -> Start:
        """The model's prediction; the model itself is left as it is."""
        fields = copy.deepcopy(model.fields).requires_grad_(True)
        return cls(fields, model.predict(sample), model.settings.half_size_mm)

    @classmethod
    def fresh(
        cls, field: FieldSettings, sample: Sample, size: int, half_size_mm: float, seed: int = 0, spread: float = 0.0
    ) -> Start:
        """Random weights and a code on ``size`` nodes a side, of zeros or random with this standard deviation.

        The fields' last layer is zero, so that without a linear term both maps are the identity.
        """
        generator = torch.Generator().manual_seed(seed)
        upper = sample.upper_cube
        fields = NeuralFields(field, half_size_mm, len(upper), generator).to(upper.device)
        code = zero_code(field, upper, (size,) * len(upper))
        drawn = [spread * torch.randn(t.shape, generator=generator).to(t) for t in (code.global_code, code.local_code)]
        return cls(fields, Code(*drawn, upper), half_size_mm)

    def measure(self, sample: Sample) -> dict[str, float]:
        """Dice and folds (percent of all pixels, exact Jacobian) of the forward map."""
        return measure(SimpleNamespace(fields=self.fields), self.code, sample)

    @torch.no_grad()
    def inverse_inconsistency(self, points: int = 4096, step_mm: float = 1.5) -> float:
        """Mean squared Frobenius norm of J[phi o psi] - Id over random points and both orders (paper, Eq. 3)."""
        upper, settings = self.code.upper_cube, RegularitySettings("gradicon")
        d, step = len(upper), step_mm / self.half_size_mm
        generator = torch.Generator(upper.device).manual_seed(0)
        x = (torch.rand((points, 1, d), generator=generator, device=upper.device) * 2 - 1) * upper
        x = (x + stencil("gradicon", d, step, False).to(upper)).expand(2, -1, -1, -1)
        y = self.fields(x.reshape(2, -1, d), self.code).reshape(x.shape)
        return float(regularity(lambda p: self.fields(p, self.code), settings, x, y, step))


def optimise(
    start: Start,
    sample: Sample,
    similarity: SimilaritySettings,
    regularity: RegularitySettings,
    settings: FitSettings,
    watch=lambda done, start: None,
) -> Start:
    """``settings.iterations`` steps on code and fields; ``watch(done, start)`` is called after each."""
    code = HybridCode(start.code) if hasattr(start.code, "local_code") else start.code
    start = Start(start.fields, code, start.half_size_mm)
    parameters = [*start.fields.parameters(), *(code.parameters() if isinstance(code, HybridCode) else ())]
    generator = torch.Generator(sample.upper_cube.device).manual_seed(settings.seed)
    objective = Objective(start.fields, similarity, regularity, start.half_size_mm, generator)
    volumes = sample.volumes
    fit(lambda _: objective(code, [volumes]), Adam(parameters, settings), after_step=lambda n: watch(n, start))
    return start
