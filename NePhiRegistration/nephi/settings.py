"""Everything that can be set, as frozen dataclasses that go to and from JSON; the presets by name.

Lengths are in millimetres for a region of body size; a region shorter than ``BODY_MM`` scales them down
with it, so that the same presets serve a mouse lung.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import decode, read_json
from .errors import NephiError
from .registry import Registry

BODY_MM = 120.0
_LARGEST = 1e9  # of any number; what takes memory or time has limits of its own
_MOST = {
    "field.width": 4096, "field.hidden_layers": 64, "field.frequencies": 4096, "field.global_code": 4096,
    "field.local_code": 4096, "fit.iterations": 1_000_000, "similarity.points.most": 10_000_000,
    "regularity.points.most": 10_000_000, "fit.warm_up": 1.0, "fit.beta2": 1.0, "fit.learning_rate": 1.0,
}  # fmt: skip
FIELDS: Registry = Registry("field", "field.kind", "neural", "voxel")
SIMILARITIES: Registry = Registry("similarity", "similarity.name", "mind", "lncc", "ncc", "mse")
REGULARISERS: Registry = Registry("regulariser", "regularity.name", "gradicon", "diffusion", "bending", "none")
ALIGNMENTS = ("auto", "none", "centres", "moments", "affine")


@dataclass(frozen=True)
class FieldSettings:
    """Size of the two fields and of the latent code (paper, supplement A.1).

    ``kind`` voxel: no network, the local code is the displacement itself (of a model's coarse stage).
    """

    kind: str = "neural"
    width: int = 64
    hidden_layers: int = 1
    frequencies: int = 48
    wavelength_mm: float = 250.0  # scale of the Fourier features
    modulation: str = "relu"  # activation of the modulation network: relu or sine
    omega: float = 10.0
    global_code: int = 16
    local_code: int = 16
    code_spacing_mm: float = 12.0
    code_degree: int = 2  # of the B-spline between the local code's nodes: 1 (linear, as published) or 2
    linear: bool = True  # the displacement has a term that is linear in the local code, too


@dataclass(frozen=True)
class Sampling:
    """Points per step: ``fraction`` of the voxels, clamped to ``least`` ... ``most``."""

    fraction: float = 0.0
    least: int = 1000
    most: int = 1000

    @classmethod
    def of_number(cls, number: int) -> Sampling:
        """A bare number in a settings file: that many points."""
        return cls(0.0, number, number)

    def count(self, voxels: int) -> int:
        return int(min(max(self.fraction * voxels, self.least), self.most))


@dataclass(frozen=True)
class Stage:
    """From ``start`` (a fraction of the iterations) on, features are taken at this scale.

    When starting from a prediction, the first of several stages is skipped.
    """

    start: float = 0.0
    spacing_mm: float = 2.0
    dilation: int = 2
    outside: float = 1.0  # share of the intensity outside the masks that outside_hu replaces: 0 none, 1 all
    coarsening: float = 1.0  # node spacing of the local code in units of field.code_spacing_mm


@dataclass(frozen=True)
class SimilaritySettings:
    name: str = "mind"
    points: Sampling = Sampling()
    stages: tuple[Stage, ...] = (Stage(),)
    window: tuple[float, float] | None = None  # intensities mapped to 0..1; None: -1000..200 HU or percentiles
    outside_hu: float | None = -500.0  # CTs outside the masks given: so that the lungs' border counts, ribs less
    mask_margin_mm: float = 4.0  # points are drawn from the masks grown by this much
    finest: float = 0.75  # working grids are no finer than this part of the images' voxels
    noise: float = 0.015  # contrast below this part of the window does not count in MIND
    blurs: tuple[float, ...] = (0.0,)  # ncc and mse: standard deviations, in voxels; each a channel of its own
    boundary_weight: float = 0.0  # agreement of the masks' distance maps near their borders


@dataclass(frozen=True)
class RegularitySettings:
    name: str = "gradicon"
    weight: float = 0.3
    points: Sampling = Sampling(0.0, 64, 64)
    exact: bool = False  # Jacobian by automatic differentiation instead of finite differences
    step_mm: float = 1.5  # of the finite differences
    code_prior: float = 0.0  # weight of Eq. 5


@dataclass(frozen=True)
class FitSettings:
    iterations: int = 400
    learning_rate: float = 3e-3
    warm_up: float = 0.1  # part of the iterations in which the learning rate rises
    beta2: float = 0.99
    schedule: str = "cosine"  # or constant
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    preset: str = "balanced"
    align: str = "auto"  # auto, none, centres, moments, affine, or the path of a transform file
    model: str | None = None  # a trained model to start from: the name of a shipped one, or a file
    field: FieldSettings = FieldSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    regularity: RegularitySettings = RegularitySettings()
    fit: FitSettings = FitSettings()

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def _coarse_to_fine(fine: float, all_nodes: float, outside: float) -> tuple[Stage, ...]:
    """Wide features, few nodes first; from ``fine`` on fine features and more nodes, from ``all_nodes`` on all."""
    return (
        Stage(0.0, 2.0, 2, coarsening=4.0),
        Stage(fine, 1.25, 1, outside, coarsening=2.0),
        Stage(all_nodes, 1.25, 1, outside),
    )


PRESETS: dict[str, Settings] = {
    "fast": Settings(
        "fast",
        similarity=SimilaritySettings(stages=(Stage(0.0, 2.0, 2, coarsening=4.0), Stage(0.4, 1.75, 1))),
        fit=FitSettings(iterations=220, learning_rate=4e-3),
    ),
    "balanced": Settings(
        "balanced",
        similarity=SimilaritySettings(stages=_coarse_to_fine(0.4, 0.7, outside=0.5), mask_margin_mm=7.0),
        regularity=RegularitySettings(weight=0.5),
        fit=FitSettings(iterations=500),
    ),
    "accurate": Settings(
        "accurate",
        similarity=SimilaritySettings(
            points=Sampling(0.0, 1500, 1500), stages=_coarse_to_fine(0.25, 0.8, outside=0.25), mask_margin_mm=7.0
        ),
        regularity=RegularitySettings(weight=1.5),
        fit=FitSettings(iterations=1500),
    ),
    # Table 1 and supplement A: width 128, two hidden layers, 32 + 32 code, 2 % and 0.01 % of the voxels
    "paper": Settings(
        "paper",
        field=FieldSettings(
            width=128,
            hidden_layers=2,
            frequencies=128,
            wavelength_mm=175.0,
            modulation="sine",
            omega=30.0,
            global_code=32,
            local_code=32,
            code_spacing_mm=16.0,
            code_degree=1,
            linear=False,
        ),
        similarity=SimilaritySettings(
            name="ncc",
            points=Sampling(0.02, 1, 100_000),
            stages=(Stage(0.0, 2.0, 1),),
            window=(-1000.0, 0.0),
            outside_hu=-1000.0,
            mask_margin_mm=0.0,
        ),
        regularity=RegularitySettings(weight=10.0, points=Sampling(0.0001, 10, 500), code_prior=0.01),
        fit=FitSettings(iterations=200, learning_rate=1e-4, warm_up=0.0, beta2=0.999, schedule="constant"),
    ),
}


def preset(name: str) -> Settings:
    if name not in PRESETS:
        raise NephiError(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}, or give --settings FILE")
    return PRESETS[name]


def load(path: str | Path, base: Settings | None = None) -> Settings:
    """Settings from a JSON file; missing entries come from the preset it names (else ``base``)."""
    data = read_json(path)
    if isinstance(data.get("preset"), str):
        preset(data["preset"])
    return from_dict(data, base)


def from_dict(data: dict, base: Settings | None = None, names: bool = True) -> Settings:
    """Settings from a file's entries, checked; ``names`` as in ``check``."""
    name = data.get("preset")
    start = PRESETS.get(name) if isinstance(name, str) else None
    settings = decode(start or base or PRESETS["balanced"], data, "")
    check(settings, names)
    return settings


def _check_numbers(value: Any, where: str) -> None:
    """Raise NephiError for a number anywhere in the settings that is not finite or beyond all use."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_numbers(inner, f"{where}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        most = 2**63 - 1 if where == "fit.seed" else _MOST.get(where, _LARGEST)
        if not abs(value) <= most:  # NaN is not
            raise NephiError(f"settings: {where} is {value}, must be finite and at most {most:g}")


def check(settings: Settings, names: bool = True) -> None:
    """Raise NephiError for values out of range or inconsistent with each other.

    ``names``: also for a similarity or regulariser that is not known here; maps that are saved do without either.
    """
    s = settings
    _check_numbers(settings.to_dict(), "")
    FIELDS.check(s.field.kind)
    if names:
        SIMILARITIES.check(s.similarity.name)
        REGULARISERS.check(s.regularity.name)
    choices = [
        ("field.modulation", s.field.modulation, ("relu", "sine")),
        ("fit.schedule", s.fit.schedule, ("cosine", "constant")),
        ("field.code_degree", s.field.code_degree, (1, 2)),
    ]
    for key, value, allowed in choices:
        if value not in allowed:
            raise NephiError(f"settings: {key} is {value!r}, must be one of {', '.join(map(str, allowed))}")
    positive = {
        "field.width": s.field.width,
        "field.frequencies": s.field.frequencies,
        "field.hidden_layers": s.field.hidden_layers,
        "field.global_code": s.field.global_code,
        "field.local_code": s.field.local_code,
        "field.wavelength_mm": s.field.wavelength_mm,
        "field.code_spacing_mm": s.field.code_spacing_mm,
        "fit.learning_rate": s.fit.learning_rate,
        "regularity.step_mm": s.regularity.step_mm,
        "similarity.finest": s.similarity.finest,
        "similarity.points": s.similarity.points.most,
        "regularity.points": s.regularity.points.most,
        **{f"similarity.stages[{i}].spacing_mm": stage.spacing_mm for i, stage in enumerate(s.similarity.stages)},
        **{f"similarity.stages[{i}].dilation": stage.dilation for i, stage in enumerate(s.similarity.stages)},
    }
    for key, value in positive.items():
        if not value > 0:
            raise NephiError(f"settings: {key} is {value}, must be above 0")
    for key, value in {
        "fit.beta2": s.fit.beta2,
        "fit.warm_up": s.fit.warm_up,
        "regularity.weight": s.regularity.weight,
        "regularity.code_prior": s.regularity.code_prior,
        "similarity.boundary_weight": s.similarity.boundary_weight,
        "similarity.mask_margin_mm": s.similarity.mask_margin_mm,
        "similarity.noise": s.similarity.noise,
        "similarity.points.fraction": s.similarity.points.fraction,
        "regularity.points.fraction": s.regularity.points.fraction,
        "fit.seed": s.fit.seed,
    }.items():
        if value < 0:
            raise NephiError(f"settings: {key} is {value}, must be 0 or more")
    for key, points in {"similarity.points": s.similarity.points, "regularity.points": s.regularity.points}.items():
        if not 1 <= points.least <= points.most:
            raise NephiError(f"settings: {key} needs least from 1 to most, not {points.least} to {points.most}")
    for i, stage in enumerate(s.similarity.stages):
        if stage.dilation > 64 or stage.spacing_mm > 1000:
            raise NephiError(f"settings: similarity.stages[{i}] has a dilation above 64 or a spacing above 1000 mm")
        if not 0 <= stage.start <= 1:
            raise NephiError(f"settings: similarity.stages[{i}].start is {stage.start}, must be 0 to 1")
    if s.fit.iterations < 0:
        raise NephiError(f"settings: fit.iterations is {s.fit.iterations}, must be 0 or more")
    if not s.similarity.stages or s.similarity.stages[0].start != 0:
        raise NephiError("settings: the first of similarity.stages must have start 0")
    for i, stage in enumerate(s.similarity.stages):
        if not stage.coarsening >= 1:
            raise NephiError(f"settings: similarity.stages[{i}].coarsening is {stage.coarsening}, must be 1 or more")
        if not 0 <= stage.outside <= 1:
            raise NephiError(f"settings: similarity.stages[{i}].outside is {stage.outside}, must be 0 to 1")
    blurs = s.similarity.blurs
    if not blurs or min(blurs) < 0 or (any(blurs) and s.similarity.name not in ("ncc", "mse")):
        raise NephiError(f"settings: similarity.blurs {blurs} must be 0 or more, and other than 0 only for ncc and mse")
    window = s.similarity.window
    if window is not None and not window[0] < window[1]:
        raise NephiError(f"settings: similarity.window {window} must be (low, high) with low < high")
