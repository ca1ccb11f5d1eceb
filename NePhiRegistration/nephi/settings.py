"""All settings, as frozen dataclasses that are converted to and from JSON, and the presets by name.

Lengths are in millimetres for a region of body size; a region shorter than ``BODY_MM`` scales them down
with it, so that the same presets serve a mouse lung. Limits are declared with the fields; see ``nephi.limits``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from .config import decode, read_json
from .errors import NephiError
from .limits import AtLeast, AtMost, NotEmpty, NotNegative, OneOf, Positive, Seed, Share, check_limits
from .registry import Registry

BODY_MM = 120.0
Width = Annotated[int, AtLeast(1), AtMost(4096)]
Points = Annotated[int, AtLeast(1), AtMost(10_000_000)]
FIELDS: Registry = Registry("field", "field.kind", "neural", "voxel")
SIMILARITIES: Registry = Registry("similarity", "similarity.name", "mind", "lncc", "ncc", "mse", "mi", "ngf")
REGULARISERS: Registry = Registry("regulariser", "regularity.name", "gradicon", "diffusion", "bending", "none")
EVERY_ENTRY = "all"  # of ``Settings.kept``
ALIGNMENTS = ("auto", "none", "centres", "moments", "affine")


@dataclass(frozen=True)
class FieldSettings:
    """The settings of all fields: their kind, and the latent code that they read (paper, supplement A.1)."""

    kind: Annotated[str, OneOf(FIELDS)] = "neural"  # of the fields; it determines the further entries
    global_code: Width = 16  # channels of the global code
    local_code: Width = 16  # channels of the local code
    code_spacing_mm: Positive = 12.0  # between the nodes of the local code, at the last level
    code_degree: Annotated[int, OneOf(1, 2)] = 2  # of the B-spline between the nodes: 1 (linear, as published) or 2

    @property
    def moves_points(self) -> bool:
        """Whether the local code displaces points directly: its first channels forward, the next ones backward."""
        return False

    def scaled(self, factor: float) -> Self:
        """With all lengths in millimetres times ``factor``."""
        return replace(self, code_spacing_mm=self.code_spacing_mm * factor)


@dataclass(frozen=True)
class NeuralSettings(FieldSettings):
    """Settings of ``neural``: modulated networks over Fourier features, one for each direction."""

    width: Width = 64  # number of units in a layer
    hidden_layers: Annotated[int, AtLeast(1), AtMost(64)] = 1  # number of layers between the first and the last
    frequencies: Width = 48  # number of Fourier features
    wavelength_mm: Positive = 250.0  # scale of the Fourier features
    modulation: Annotated[str, OneOf("relu", "sine")] = "relu"  # activation of the modulation network
    omega: float = 10.0  # factor in the sines
    linear: bool = True  # whether the displacement also has a term that is linear in the local code

    @property
    def moves_points(self) -> bool:
        return self.linear

    def scaled(self, factor: float) -> Self:
        return replace(super().scaled(factor), wavelength_mm=self.wavelength_mm * factor)


@dataclass(frozen=True)
class VoxelSettings(FieldSettings):
    """Settings of ``voxel``: no network; the local code is the displacement itself."""

    kind: Annotated[str, OneOf(FIELDS)] = "voxel"  # of the fields
    global_code: Width = 1  # channels of the global code, which has no effect here
    local_code: Width = 6  # channels of the local code: twice the dimension of the images

    @property
    def moves_points(self) -> bool:
        return True


FIELDS.describe("neural", NeuralSettings)
FIELDS.describe("voxel", VoxelSettings)


@dataclass(frozen=True)
class Sampling:
    """Points per step: ``fraction`` of the voxels, clamped to ``least`` ... ``most``."""

    fraction: NotNegative = 0.0  # of the voxels of the region
    least: Points = 1000  # points, however small the region
    most: Points = 1000  # points, however large the region

    @classmethod
    def of_number(cls, number: int) -> Sampling:
        """A bare number in a settings file: that many points."""
        return cls(0.0, number, number)

    def contradiction(self) -> str:
        return f"least is {self.least}, but most {self.most}" if self.least > self.most else ""

    def count(self, voxels: int) -> int:
        return int(min(max(self.fraction * voxels, self.least), self.most))


@dataclass(frozen=True)
class Features:
    """The scale at which the images are compared."""

    spacing_mm: Annotated[float, AtLeast(1e-3), AtMost(1000)] = 2.0  # of the grid that both images are resampled to
    dilation: Annotated[int, AtLeast(1), AtMost(64)] = 2  # distance in voxels of the compared patches
    outside: Share = 1.0  # share of the intensity outside the masks that outside_hu replaces: 0 none, 1 all


@dataclass(frozen=True)
class Level:
    """A level of the optimisation, from coarse to fine. A prediction replaces those with the fewest nodes."""

    start: Share = 0.0  # share of the iterations after which the level begins
    features: Features = Features()  # the features that are compared
    node_spacing_factor: Annotated[float, AtLeast(1), AtMost(1000)] = 1.0  # of the local code, times code_spacing_mm


@dataclass(frozen=True)
class SimilaritySettings:
    """The settings of all similarities: their name, and where and on which intensities the images are compared."""

    name: Annotated[str, OneOf(SIMILARITIES)] = "mind"  # of the similarity; it determines the further entries
    points: Sampling = Sampling()  # points per step
    window: tuple[float, float] | None = None  # intensities mapped to 0..1; null: -1000..200 HU or percentiles
    outside_hu: float | None = -500.0  # intensity of CTs outside given masks: the lungs' border counts, ribs less
    mask_margin_mm: NotNegative = 4.0  # points are drawn from the masks dilated by this distance
    finest: Positive = 0.75  # working grids are no finer than this fraction of the voxels of the images
    boundary_weight: NotNegative = 0.0  # of the agreement of the distance maps of the masks near their borders

    def contradiction(self) -> str:
        if self.window is not None and not self.window[0] < self.window[1]:
            return f"window is {self.window}, must be (low, high) with low < high"
        return ""


@dataclass(frozen=True)
class MindSettings(SimilaritySettings):
    """Settings of ``mind``: the self-similarity context."""

    noise: NotNegative = 0.015  # contrast below this fraction of the window is ignored


@dataclass(frozen=True)
class IntensitySettings(SimilaritySettings):
    """Settings of ``ncc`` and ``mse``, which compare intensities."""

    name: Annotated[str, OneOf(SIMILARITIES)] = "ncc"  # ncc or mse
    blurs: Annotated[tuple[NotNegative, ...], NotEmpty()] = (0.0,)  # standard deviations in voxels, each of one channel


@dataclass(frozen=True)
class InformationSettings(IntensitySettings):
    """Settings of ``mi``, mutual information."""

    name: Annotated[str, OneOf(SIMILARITIES)] = "mi"
    bins: Annotated[int, AtLeast(4), AtMost(256)] = 24  # number of bins of the histogram for each image


@dataclass(frozen=True)
class EdgeSettings(SimilaritySettings):
    """Settings of ``ngf``, normalised gradient fields."""

    name: Annotated[str, OneOf(SIMILARITIES)] = "ngf"
    noise: NotNegative = 1.0  # times the mean gradient of the image: smaller gradients hardly count


SIMILARITIES.describe("mind", MindSettings)
SIMILARITIES.describe("ncc", IntensitySettings)
SIMILARITIES.describe("mse", IntensitySettings)
SIMILARITIES.describe("mi", InformationSettings)
SIMILARITIES.describe("ngf", EdgeSettings)


@dataclass(frozen=True)
class RegularitySettings:
    """What keeps the maps smooth, and its weight."""

    name: Annotated[str, OneOf(REGULARISERS)] = "gradicon"  # of the regulariser
    weight: NotNegative = 0.3  # of the penalty; that of the similarity is 1
    points: Sampling = Sampling(0.0, 64, 64)  # points per step
    exact: bool = False  # Jacobian by automatic differentiation instead of finite differences
    step_mm: Positive = 1.5  # of the finite differences
    bending_mm: NotNegative = 0.0  # of gradicon, in voxels of 2 mm: length over which slopes should change little
    code_prior: NotNegative = 0.0  # weight of Eq. 5, which keeps the code small


@dataclass(frozen=True)
class DenseSettings:
    """The refinement voxel by voxel after the optimisation, for images with much detail."""

    rounds: Annotated[int, AtLeast(0), AtMost(1000)] = 0  # iterations with nodes two voxels apart; 0: no refinement
    fine_rounds: Annotated[int, AtLeast(0), AtMost(1000)] = 0  # iterations with values at voxels
    voxel_rounds: Annotated[int, AtLeast(0), AtMost(1000)] = 0  # iterations with a node at each voxel
    spacing_mm: Annotated[float, AtLeast(1e-3), AtMost(1000)] = 1.0  # size of these voxels; at least that of the images
    curve: bool = False  # maps the intensities of one image to those of the other by a curve, for different contrasts
    stiffness: NotNegative = 1e-4  # relative to the squared slopes of the intensities, in units of the window's width
    least_determinant: Annotated[float, AtLeast(0.01), AtMost(0.9)] = 0.06  # of the map, which is smoothed below

    @property
    def all_rounds(self) -> tuple[int, int, int]:
        return self.rounds, self.fine_rounds, self.voxel_rounds


@dataclass(frozen=True)
class GuidanceSettings:
    """How far the result may be from its guidance (see ``Guidance``); within half of that there is no penalty."""

    landmarks_sd_mm: Positive = 1.0  # standard deviation of landmarks given without one
    labels_sd_mm: Positive = 1.0  # of the borders of given labels
    rigid_mm: Positive = 0.02  # distance from the best rigid motion of a rigid region
    volume: Positive = 0.01  # relative change of a volume that is to be kept
    weight: NotNegative = 0.3  # of all guidance; that of the similarity is 1


@dataclass(frozen=True)
class FitSettings:
    """Settings of the optimiser, Adam."""

    iterations: Annotated[int, AtLeast(0), AtMost(1_000_000)] = 400  # steps; 0: the initial maps are the result
    learning_rate: Annotated[Positive, AtMost(1)] = 3e-3  # its maximum
    warm_up: Share = 0.1  # share of the iterations during which the learning rate rises
    beta2: Share = 0.99  # decay of Adam's mean of squared gradients
    schedule: Annotated[str, OneOf("cosine", "constant")] = "cosine"  # of the learning rate, after the warm-up
    seed: Seed = 0  # of all random numbers


@dataclass(frozen=True)
class Settings:
    """The settings of a registration."""

    preset: str = "balanced"  # the preset that gives the entries missing in a file
    align: str = "auto"  # auto, none, centres, moments, affine, or the path of a transform file
    model: str | None = None  # a trained model to start from: the name of a shipped one, or a file
    levels: Annotated[tuple[Level, ...], NotEmpty()] = (Level(),)  # from coarse to fine; the first begins at 0
    field: FieldSettings = NeuralSettings()  # the maps
    similarity: SimilaritySettings = MindSettings()  # how the similarity of the images is measured
    regularity: RegularitySettings = RegularitySettings()  # how smooth the maps are
    guidance: GuidanceSettings = GuidanceSettings()  # how strictly landmarks, labels and regions are followed
    fit: FitSettings = FitSettings()  # the optimiser
    dense: DenseSettings = DenseSettings()  # the refinement after the optimisation
    # entries that are not adapted to the pair, such as "levels" or "fit.iterations" ("all": none is adapted)
    kept: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    sliding: bool = False  # allow motion to slide along the border of the masks, and only there
    consensus: bool = True  # the result is the mean of the forward field and the inverted inverse one, and its inverse
    smooth: Share = 1.0  # of the node spacing: largest distance over which the consensus is smoothed

    def contradiction(self) -> str:
        start = self.levels[0].start
        return "" if start == 0 else f"levels[0].start is {start}, the first level must begin at 0"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def _wide(end: float) -> tuple[Level, ...]:
    """The levels until this share of the iterations: few nodes, and features that start with a wide range."""
    return tuple(Level(part * end, Features(mm, 2), 4.0) for part, mm in ((0.0, 8.0), (0.2, 4.0), (0.45, 2.0)))


def _coarse_to_fine(fine: float, all_nodes: float, outside: float) -> tuple[Level, ...]:
    """First wide features and few nodes; from ``fine`` on fine features and more nodes; from ``all_nodes`` on all
    nodes."""
    sharp = Features(1.25, 1, outside)
    return *_wide(fine), Level(fine, sharp, 2.0), Level(all_nodes, sharp)


PRESETS: dict[str, Settings] = {
    "fast": Settings(
        "fast",
        levels=(*_wide(0.4), Level(0.4, Features(1.75, 1))),
        regularity=RegularitySettings(bending_mm=0.8),
        fit=FitSettings(iterations=220, learning_rate=4e-3),
    ),
    "balanced": Settings(
        "balanced",
        levels=_coarse_to_fine(0.4, 0.7, outside=0.5),
        similarity=MindSettings(mask_margin_mm=7.0),
        regularity=RegularitySettings(weight=0.5, bending_mm=1.2),
        fit=FitSettings(iterations=500),
    ),
    "accurate": Settings(
        "accurate",
        levels=_coarse_to_fine(0.25, 0.8, outside=0.25),
        similarity=MindSettings(points=Sampling(0.0, 1500, 1500), mask_margin_mm=7.0),
        regularity=RegularitySettings(weight=1.5, bending_mm=0.7),
        fit=FitSettings(iterations=1500),
    ),
    # Table 1 and supplement A: width 128, two hidden layers, 32 + 32 code, 2 % and 0.01 % of the voxels
    "paper": Settings(
        "paper",
        field=NeuralSettings(
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
        levels=(Level(features=Features(2.0, 1)),),
        similarity=IntensitySettings(
            points=Sampling(0.02, 1, 100_000),
            window=(-1000.0, 0.0),
            outside_hu=-1000.0,
            mask_margin_mm=0.0,
        ),
        regularity=RegularitySettings(weight=10.0, points=Sampling(0.0001, 10, 500), code_prior=0.01),
        fit=FitSettings(iterations=200, learning_rate=1e-4, warm_up=0.0, beta2=0.999, schedule="constant"),
        consensus=False,
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
    if "kept" not in data:  # files written from settings list every entry
        settings = replace(settings, kept=tuple(dict.fromkeys((*settings.kept, *_entries(data)))))
    check(settings, names)
    return settings


def _entries(data: dict) -> Iterator[str]:
    """The entries of a file as ``Settings.kept`` lists them."""
    for part, value in data.items():
        if isinstance(value, dict):
            yield from ("levels" if name == "stages" else f"{part}.{name}" for name in value)
        elif part not in ("preset", "kept"):
            yield part


def check(settings: Settings, names: bool = True) -> None:
    """Raise NephiError for values out of range or inconsistent with each other.

    ``names``: also for an unknown similarity or regulariser, which saved maps do not need.
    """
    FIELDS.check(settings.field.kind)  # maps need their field
    check_limits(settings, names=names)
