"""Settings of models and of their training."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import NephiError
from ..maps.fields import check_local_code
from ..settings import FieldSettings, FitSettings, RegularitySettings, Settings, SimilaritySettings
from ..settings import check as check_settings
from .augment import Augmentation

ENCODERS = ("published", "matching")
NORMS = ("batch", "group")


@dataclass(frozen=True)
class EncoderSettings:
    """``published``: convolutions over the two images, stacked (paper, supplement A.1), on ``size`` voxels per axis.

    ``any_size``: its last map is averaged to 3 per axis, so that one file takes images of every size.
    ``context``: the local code is made from all its maps from ``local_level`` on, not from that one alone, which sees
    no further than a few voxels.
    ``matching``: looks for each image's features in the other, coarse to fine, with the map found so far.
    """

    kind: str = "published"
    size: int = 175
    any_size: bool = False
    channels: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    hidden: int = 256
    local_level: int = 4  # which of the maps gives the local code: 0 is the finest
    context: bool = False
    norm: str = "batch"
    # of the matching encoder; lengths in the cube's unit, half of the longest side of the lungs' box
    node_spacing: float = 0.105  # of the local code
    steps: tuple[int, ...] = (3, 2, 1, 1)  # between the places looked at, in voxels of the features
    reach: int = 2  # places to either side
    windows: tuple[int, ...] = (3, 5)  # of lattice points, half a node spacing apart, over which costs are averaged
    width: int = 32  # of the published encoder with ``context``, too


@dataclass(frozen=True)
class ModelSettings:
    """Parts of a model, and the preparation of the images that it expects."""

    dimension: int = 3
    field: FieldSettings = FieldSettings()
    encoder: EncoderSettings = EncoderSettings()
    similarity: SimilaritySettings = SimilaritySettings()  # of its stages, the first: what the encoder looks at
    align: str = "auto"
    cube_margin_mm: float = 15.0
    half_size_mm: float = 150.0  # the cube's half side that the fields' wavelength is meant for
    refinements: int = 0  # Gauss-Newton rounds after the encoder; no learned parameters
    coarse: ModelSettings | None = None  # of the stage before: its maps go first, this model finds the rest


def check(settings: ModelSettings) -> None:
    """Raise NephiError for settings that do not define a model."""
    e = settings.encoder
    check_settings(Settings(field=settings.field, similarity=settings.similarity))
    if settings.dimension not in (2, 3):
        raise NephiError(f"settings: dimension is {settings.dimension}, must be 2 or 3")
    for key, value, allowed in (("kind", e.kind, ENCODERS), ("norm", e.norm, NORMS)):
        if value not in allowed:
            raise NephiError(f"settings: encoder.{key} is '{value}', must be one of {', '.join(allowed)}")
    least = {key: getattr(e, key) for key in ("size", "hidden", "reach", "width", "node_spacing")}
    least |= {"channels": min(e.channels, default=0), "steps": min(e.steps, default=0)}
    for key, value in least.items():
        if not value > 0:
            raise NephiError(f"settings: encoder.{key} is {getattr(e, key)}, must be above 0")
    if not 0 <= e.local_level < len(e.channels):
        raise NephiError(f"settings: encoder.local_level is {e.local_level}, must be 0 to {len(e.channels) - 1}")
    if not e.windows or any(w < 1 or w % 2 == 0 for w in e.windows):
        raise NephiError(f"settings: encoder.windows are {e.windows}, must be odd numbers")
    check_local_code(settings.field, settings.dimension)
    if settings.refinements < 0:
        raise NephiError(f"settings: refinements is {settings.refinements}, must be 0 or more")
    if e.kind == "matching" and e.width % 8:
        raise NephiError(f"settings: encoder.width is {e.width}, must be a multiple of 8")
    if e.kind == "published" and e.norm == "group" and any(c % min(8, c) for c in e.channels):
        raise NephiError(f"settings: encoder.channels are {e.channels}, must be multiples of 8 for group norm")
    if settings.coarse is not None:
        check(settings.coarse)
        _check_coarse(settings, settings.coarse)


def _check_coarse(settings: ModelSettings, coarse: ModelSettings) -> None:
    """Raise NephiError if the two stages need differently prepared images."""
    if coarse.coarse is not None:
        raise NephiError("settings: the coarse stage of a model can't have a coarse stage of its own")
    theirs = _preparation(coarse)
    for key, mine in _preparation(settings).items():
        if mine != theirs[key]:
            raise NephiError(f"settings: {key} is {mine!r}, but {theirs[key]!r} in the coarse stage; they must agree")
    fine, spacing = (s.similarity.stages[0].spacing_mm for s in (settings, coarse))
    if spacing < fine or abs(spacing / fine - round(spacing / fine)) > 1e-6:
        raise NephiError(f"settings: the coarse stage's spacing {spacing} mm must be a multiple of the fine {fine} mm")


def _preparation(settings: ModelSettings) -> dict:
    """The settings, besides the spacing, on which the prepared images depend."""
    s = settings.similarity
    return {
        **{key: getattr(settings, key) for key in ("dimension", "align", "cube_margin_mm")},
        **{f"similarity.{key}": getattr(s, key) for key in ("window", "outside_hu", "mask_margin_mm")},
        "similarity.stages[0].outside": s.stages[0].outside,
    }


@dataclass(frozen=True)
class TrainSettings:
    """``data`` and ``validation``: lists of pairs (see ``nephi batch``), or ``shapes-solid``, ``shapes-hollow``.

    ``coarse``: a shipped model's name or a model file: the coarse stage of a multi-resolution model, frozen.
    ``start``: a shipped model's name or a model file, of the same architecture, whose weights to start from.
    A step draws ``batch`` pairs ``accumulate`` times; ``known_weight``: of the distance, in mm, to the points that
    are known to correspond, where a list has them.
    """

    data: str = ""
    validation: str = ""
    start: str = ""
    coarse: str = ""
    model: ModelSettings = ModelSettings()
    fit: FitSettings = FitSettings(iterations=10_000, learning_rate=1e-4, warm_up=0.02, beta2=0.999)
    regularity: RegularitySettings = RegularitySettings(weight=1.0, code_prior=0.001)
    similarity_weight: float = 1.0
    known_weight: float = 0.1
    batch: int = 1
    accumulate: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    validate_every: int = 1000
    validation_pairs: int = 200  # at most
    save_every: int = 200
    mixed_precision: bool = True  # on a GPU: bfloat16 where it serves
    workers: int = 0  # processes that prepare pairs


def check_training(settings: TrainSettings) -> None:
    """Raise NephiError for values out of range or inconsistent with each other."""
    m = settings.model
    check(m)
    check_settings(Settings(regularity=settings.regularity, fit=settings.fit))
    counts = ("batch", "accumulate", "validate_every", "validation_pairs", "save_every")
    values = {key: getattr(settings, key) for key in counts} | {"fit.iterations": settings.fit.iterations}
    for key, value in values.items():
        if value < 1:
            raise NephiError(f"settings: {key} is {value}, must be above 0")
    if settings.workers < 0:
        raise NephiError(f"settings: workers is {settings.workers}, must be 0 or more")
    if m.encoder.kind == "matching" and settings.batch != 1:
        raise NephiError("the matching encoder takes one pair at a time: set batch to 1 and accumulate to the batch")
