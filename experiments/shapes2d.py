"""Pairs of triangles and circles, and what optimising one of them from scratch takes."""

from __future__ import annotations

from dataclasses import replace

import torch
from nephi.config import decode, read_json
from nephi.learning.dataset import Shapes
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.settings import ModelSettings, TrainSettings
from nephi.settings import FitSettings, RegularitySettings

from benchmarks import ROOT
from benchmarks.optimise import Start, optimise

from .experiment import Rows

NODES = 8  # of the local code, per side
SPREAD = 0.01  # of the random code


def training(kind: str) -> TrainSettings:
    """The settings that the shipped model ``shapes2d-solid`` or ``shapes2d-hollow`` was trained with."""
    return decode(TrainSettings(), read_json(ROOT / "docs" / f"shapes2d-{kind}.json"))


def published_like(settings: ModelSettings) -> ModelSettings:
    """Fields without the term that is linear in the local code, which the paper's have not."""
    return replace(settings, field=replace(settings.field, linear=False))


def pairs(kind: str, count: int, settings: ModelSettings, device: torch.device) -> list[PairTensors]:
    """The first ``count`` validation pairs."""
    data = Shapes(kind == "hollow", settings, validation=True, count=count)
    return [data[k].to(device) for k in range(count)]


def from_scratch(
    sample: PairTensors,
    settings: ModelSettings,
    regularity: RegularitySettings,
    fit: FitSettings,
    every: int = 0,
    start: Start | None = None,
) -> tuple[Start, Rows]:
    """Optimise random weights and a random code for one pair; rows of step, Dice, folds each ``every`` steps."""
    if start is None:
        start = Start.fresh(settings.field, sample, NODES, settings.half_size_mm, fit.seed, SPREAD)
    rows = []

    def watch(done: int, start: Start) -> None:
        if every and done % every == 0:
            rows.append({"step": done, **start.measure(sample)})

    watch(0, start)
    return optimise(start, sample, settings.similarity, regularity, fit, watch), rows
