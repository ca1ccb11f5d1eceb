"""Training: all weights of a model over many pairs, by the loop that also optimises one pair.

``torchrun --nproc-per-node N -m nephi train ...`` shares the pairs of each step among N processes, each on its own
GPU where there are some; the gradient is that of one process.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import NephiError
from ..fitting.fit import Adam, fit
from ..fitting.objective import Objective
from ..maps.fields import Code, Maps
from ..version import __version__
from .augment import Augmentation
from .dataset import open_data
from .model import Model
from .pair_tensors import Sample
from .processes import average, join
from .settings import TrainSettings, check_training
from .state import LOG, MODEL, RESUME, keep_log, load_state, peak_mb, replace_file, save_state, tensorboard
from .validate import validate


def train(
    settings: TrainSettings,
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    progress: Callable[[str, float, dict], None] | None = None,
    tell: Callable[[str], None] = print,
) -> dict:
    """Train into ``folder``: the best model so far, the state to resume from, a log; returns the best validation.

    Of several processes the first writes all that and returns it. Raises NephiError for settings or data that can't
    be used.
    """
    coarse = Model.load(settings.coarse) if settings.coarse else None
    if coarse is not None:
        settings = replace(settings, model=replace(settings.model, coarse=coarse.settings))
    elif settings.model.coarse is not None:
        raise NephiError("settings: model.coarse comes with a trained model: give its name or file as coarse")
    check_training(settings)
    rank, world, device = join(device)
    first = rank == 0
    if settings.accumulate % world:
        raise NephiError(f"accumulate is {settings.accumulate}: it must be a multiple of the {world} processes")

    generator = torch.Generator().manual_seed(settings.fit.seed)
    torch.manual_seed(settings.fit.seed)  # the encoder's layers start from it
    model = Model(settings.model, generator).to(device)
    if coarse is not None and model.coarse is not None:
        model.coarse.load_state_dict(coarse.state_dict())
    if settings.start:
        model.begin_with(Model.load(settings.start))

    silent = progress if first and progress else lambda *_: None
    cache = folder / "cache"
    if not first:  # the first process prepares the pairs, the others find them prepared
        torch.distributed.barrier()
    data = open_data(settings.data, settings.model, cache, False, tell if first else lambda _: None)
    checks = open_data(settings.validation or settings.data, settings.model, cache, True, lambda _: None)
    if first and world > 1:
        torch.distributed.barrier()
    points = torch.Generator(device)
    objective = Objective(settings.model.similarity, settings.regularity, settings.model.half_size_mm, points)
    objective.weights["similarity"] = settings.similarity_weight
    objective.weights["known"] = settings.known_weight
    adam = Adam(model.parameters(), settings.fit)
    best: dict = {}
    if resume:
        best = load_state(folder / RESUME, model, adam, settings)
    batches = iter(_loader(data, settings, adam.done, rank, world))
    mixed = settings.mixed_precision and device.type == "cuda"

    def step(number: int):
        seed, samples = next(batches)
        samples = [model.rest(sample.to(device)) for sample in samples]
        points.manual_seed(seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            codes = model.codes(samples)
        losses: list[torch.Tensor] = []
        terms: dict[str, torch.Tensor] = {}
        for code in codes:
            code = Code(code.global_code.float(), code.local_code.float(), code.upper_cube)
            loss, terms = objective(Maps(model.fields, code), [s.volumes for s in samples], [s.known for s in samples])
            losses.append(loss)
        return torch.stack(losses).mean(), terms  # the terms of the last round tell most

    writer, started, log = tensorboard(folder, adam.done) if first else None, time.perf_counter(), folder / LOG
    if first:
        keep_log(log, adam.done)

    def record(entry: dict) -> None:
        if not first:
            return
        entry = {**entry, "seconds": time.perf_counter() - started, "peak_memory_mb": peak_mb(device)}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if writer is not None:
            for name, value in entry.items():
                writer.add_scalar(f"train/{name}", value, entry["step"])
        silent("training", entry["step"] / settings.fit.iterations, entry)

    def after(done: int) -> None:
        last = done == settings.fit.iterations
        if first and (done % settings.validate_every == 0 or last):
            silent("validating", done / settings.fit.iterations, {})
            found = validate(model, checks, settings.validation_pairs, device, writer, done)
            model.train()
            record({"step": done, **{f"validation_{k}": v for k, v in found.items()}})
            if found["score"] > best.get("score", -math.inf):
                best.clear()
                best.update(found, step=done)
                facts = {"version": __version__, "settings": asdict(settings), "validation": dict(best)}
                replace_file(folder / MODEL, lambda path: model.save(path, facts))
        if first and (done % settings.save_every == 0 or last):
            save_state(folder / RESUME, model, adam, best, settings)

    model.train()
    try:
        fit(step, adam, record, settings.accumulate // world, lambda: average(adam, world), after)
        if world > 1:  # nobody leaves while the first still validates and writes
            torch.distributed.barrier()
    finally:
        if writer is not None:
            writer.close()
        if world > 1:
            torch.distributed.destroy_process_group()
    if first and not best:
        raise NephiError("no model was written, as no validation gave a number; lower fit.learning_rate")
    return best


# ---- which pairs a step takes ---------------------------------------------------------------------------


class _Draws(torch.utils.data.Dataset):
    """Entry (seed, indices): the samples of a batch, augmented from its seed."""

    def __init__(self, data, augmentation: Augmentation):
        self.data, self.augmentation = data, augmentation

    def __getitem__(self, draw: tuple[int, list[int]]) -> tuple[int, list[Sample]]:
        seed, indices = draw
        return seed, [self.augmentation(self.data[k], seed + i) for i, k in enumerate(indices)]


def _loader(data, settings: TrainSettings, done: int, rank: int, world: int):
    draws = _draws(len(data), settings, done, rank, world)
    return torch.utils.data.DataLoader(
        _Draws(data, settings.augmentation), sampler=draws, batch_size=None, num_workers=settings.workers
    )


def _draws(count: int, settings: TrainSettings, done: int, rank: int, world: int) -> Iterator[tuple[int, list[int]]]:
    """(seed, indices) of every batch from step ``done`` on: each pass over the data in a new order.

    All follows from the seed and the batch's number, so that a resumed run continues as it would have.
    """

    orders: dict[int, np.ndarray] = {}
    for number in range(done * settings.accumulate + rank, settings.fit.iterations * settings.accumulate, world):
        indices = []
        for place in range(number * settings.batch, (number + 1) * settings.batch):
            turn = place // count
            if turn not in orders:
                orders = {turn: np.random.default_rng((settings.fit.seed, turn)).permutation(count)}
            indices.append(int(orders[turn][place % count]))
        yield int(np.random.SeedSequence((settings.fit.seed, number)).generate_state(1)[0]), indices


# ---- several processes ----------------------------------------------------------------------------------


# ---- files ----------------------------------------------------------------------------------------------
