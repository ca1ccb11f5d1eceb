"""Settings of models and of their training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ..errors import NephiError
from ..limits import AtLeast, AtMost, Count, NotEmpty, NotNegative, Odd, OneOf, Positive, check_limits
from ..maps.fields import check_local_code
from ..registry import Registry
from ..settings import (
    Features,
    FieldSettings,
    FitSettings,
    MindSettings,
    NeuralSettings,
    RegularitySettings,
    SimilaritySettings,
)
from .augment import Augmentation

ENCODERS: Registry = Registry("encoder", "encoder.kind", "published", "matching")
_Channels = Annotated[int, AtLeast(1), AtMost(65536)]
_Size = Annotated[int, AtLeast(1), AtMost(4096)]
_Steps = Annotated[int, AtLeast(1), AtMost(4096)]


@dataclass(frozen=True)
class EncoderSettings:
    """What all encoders have; one of one's own that needs more derives its settings from these."""

    kind: Annotated[str, OneOf(ENCODERS)] = "published"  # of the encoder; it determines the further entries


@dataclass(frozen=True)
class PublishedSettings(EncoderSettings):
    """Of ``published``: convolutions over the two images, stacked (paper, supplement A.1)."""

    size: _Size = 175  # voxels per axis that the images are resampled to
    any_size: bool = False  # the last map is averaged to 3 per axis, so that one file takes images of every size
    channels: Annotated[tuple[_Channels, ...], NotEmpty()] = (8, 16, 32, 64, 128, 256)  # of the maps, level by level
    hidden: _Channels = 256  # units of the hidden layer that gives the global code
    local_level: Annotated[int, AtLeast(0), AtMost(64)] = 4  # which of the maps gives the local code: 0 is the finest
    context: bool = False  # the local code is made from all maps from local_level on, to see further than a few voxels
    norm: Annotated[str, OneOf("batch", "group")] = "batch"  # of the layers; group does not depend on the batch
    width: _Channels = 32  # channels between those maps and the local code, with context

    def contradiction(self) -> str:
        if self.local_level >= len(self.channels):
            return f"local_level is {self.local_level}, must be 0 to {len(self.channels) - 1}"
        if self.norm == "group" and any(c % min(8, c) for c in self.channels):
            return f"channels are {self.channels}, must be multiples of 8 for group norm"
        return ""


@dataclass(frozen=True)
class MatchingSettings(EncoderSettings):
    """Of ``matching``: looks for each image's features in the other, coarse to fine, with the map found so far.

    Lengths are in the cube's unit, half of the longest side of the lungs' box.
    """

    kind: Annotated[str, OneOf(ENCODERS)] = "matching"  # of the encoder
    node_spacing: Annotated[float, AtLeast(1e-3), AtMost(100)] = 0.105  # of the local code
    steps: Annotated[tuple[_Steps, ...], NotEmpty()] = (
        3,
        2,
        1,
        1,
    )  # between the compared positions, in voxels of the features
    reach: Annotated[int, AtLeast(1), AtMost(64)] = 2  # places to either side
    # lattice points, half a node spacing apart, over which costs are averaged
    windows: Annotated[tuple[Annotated[int, AtLeast(1), AtMost(1023), Odd()], ...], NotEmpty()] = (3, 5)
    width: _Channels = 32  # channels of the layers, a multiple of 8

    def contradiction(self) -> str:
        return f"width is {self.width}, must be a multiple of 8" if self.width % 8 else ""


ENCODERS.describe("published", PublishedSettings)
ENCODERS.describe("matching", MatchingSettings)


@dataclass(frozen=True)
class ModelSettings:
    """Parts of a model, and the preparation of the images that it expects."""

    dimension: Annotated[int, OneOf(2, 3)] = 3  # of the images
    field: FieldSettings = NeuralSettings()  # the maps
    encoder: EncoderSettings = PublishedSettings()  # the encoder that predicts their code
    features: Features = Features()  # the input of the encoder
    similarity: SimilaritySettings = MindSettings()  # the similarity used in training
    align: str = "auto"  # auto, none, centres, moments or affine
    cube_margin_mm: NotNegative = 15.0  # of the cube around the masks
    half_size_mm: Positive = 150.0  # the cube's half side that the fields' wavelength is meant for
    refinements: Annotated[int, AtLeast(0), AtMost(1000)] = 0  # Gauss-Newton rounds after it; no learned parameters
    coarse: ModelSettings | None = None  # of the stage before: its maps go first, this model finds the rest


def check(settings: ModelSettings, where: str = "") -> None:
    """Raise NephiError for settings that do not define a model; ``where``: a prefix for their names."""
    check_limits(settings, where)
    check_local_code(settings.field, settings.dimension)
    if settings.coarse is not None:
        check(settings.coarse, f"{where}coarse.")
        _check_coarse(settings, settings.coarse)


def _check_coarse(settings: ModelSettings, coarse: ModelSettings) -> None:
    """Raise NephiError if the two stages need differently prepared images."""
    if coarse.coarse is not None:
        raise NephiError("settings: the coarse stage of a model cannot have a coarse stage of its own")
    theirs = _preparation(coarse)
    for key, mine in _preparation(settings).items():
        if mine != theirs[key]:
            raise NephiError(f"settings: {key} is {mine!r}, but {theirs[key]!r} in the coarse stage; they must agree")
    fine, spacing = settings.features.spacing_mm, coarse.features.spacing_mm
    if spacing < fine or abs(spacing / fine - round(spacing / fine)) > 1e-6:
        raise NephiError(f"settings: the coarse stage's spacing {spacing} mm must be a multiple of the fine {fine} mm")


def _preparation(settings: ModelSettings) -> dict:
    """The settings, other than the spacing, on which the preprocessed images depend."""
    return {
        **{key: getattr(settings, key) for key in ("dimension", "align", "cube_margin_mm")},
        **{
            f"similarity.{key}": getattr(settings.similarity, key) for key in ("window", "outside_hu", "mask_margin_mm")
        },
        "features.outside": settings.features.outside,
    }


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training. Its lists of pairs are those of ``nephi batch``."""

    data: str = ""  # a list of pairs, shapes-solid or shapes-hollow
    validation: str = ""  # the same, of the pairs that the model is validated on
    start: str = ""  # a shipped model's name or a model file, of the same architecture, whose weights to start from
    coarse: str = ""  # a shipped model's name or a model file: the frozen coarse stage of a multi-resolution model
    model: ModelSettings = ModelSettings()  # the model
    fit: FitSettings = FitSettings(iterations=10_000, learning_rate=1e-4, warm_up=0.02, beta2=0.999)  # the optimiser
    regularity: RegularitySettings = RegularitySettings(weight=1.0, code_prior=0.001)  # how smooth the maps are
    similarity_weight: NotNegative = 1.0  # of the similarity
    known_weight: NotNegative = 0.1  # of the distance, in mm, to points known to correspond, where a list has them
    batch: Annotated[Count, AtMost(65536)] = 1  # pairs at once
    accumulate: Annotated[Count, AtMost(65536)] = 1  # batches of a step
    augmentation: Augmentation = field(default_factory=Augmentation)  # by which a pair becomes many
    validate_every: Count = 1000  # steps
    validation_pairs: Count = 200  # at most
    save_every: Count = 200  # steps between two saved states from which a stopped training can resume
    mixed_precision: bool = True  # on a GPU: bfloat16 where it serves
    workers: Annotated[int, AtLeast(0), AtMost(1024)] = 0  # processes that prepare pairs


def check_training(settings: TrainSettings) -> None:
    """Raise NephiError for values out of range or inconsistent with each other."""
    m = settings.model
    check(m, "model.")
    check_limits(settings)
    if settings.fit.iterations < 1:
        raise NephiError("settings: fit.iterations is 0, must be above 0")
    if isinstance(m.encoder, MatchingSettings) and settings.batch != 1:
        raise NephiError(
            "the matching encoder takes one pair at a time: set batch to 1 and accumulate to the batch size size"
        )
