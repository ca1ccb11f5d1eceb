"""Training: all weights of a model over many pairs, by the loop that also optimises one pair.

``torchrun --nproc-per-node N -m nephi train ...`` shares the pairs of each step among N processes, on one machine or
several, each on its own GPU where there are some; the gradient is that of one process.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import NephiError, notice
from ..fitting.fit import Adam, fit
from ..fitting.objective import Objective
from ..maps.code import Code
from ..maps.maps import FieldMap
from ..version import __version__
from .augment import Augmentation
from .dataset import Dataset, open_data
from .model import Model
from .pair_tensors import PairTensors
from .processes import average, join, wait
from .settings import TrainSettings, check_training
from .state import LOG, MODEL, RESUME, keep_log, load_state, peak_mb, save_state, silent_threads, tensorboard
from .validate import validate


def train(
    settings: TrainSettings,
    folder: Path,
    device: torch.device,
    *,
    data: Dataset | None = None,
    validation: Dataset | None = None,
    resume: bool = False,
    progress: Callable[[str, float, dict], None] | None = None,
    tell: Callable[[str], None] = print,
) -> dict:
    """Train and write the best model so far, a state to resume from and a log; returns the best validation.

    ``data``, ``validation``: own pairs instead of those named in the settings (see ``tensors_of``). With several
    processes the first one writes these files to ``folder`` and returns the validation. Raises NephiError for unusable
    settings or data.
    """
    settings, coarse = _with_coarse(settings)
    check_training(settings)
    rank, world, device = join(device)
    if settings.accumulate % world:
        raise NephiError(f"accumulate is {settings.accumulate}: it must be a multiple of the {world} processes")
    model = _new_model(settings, coarse, device)
    pairs = _open(settings, folder / "cache", data, validation, rank, world, tell)
    first = rank == 0
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(settings, folder, model, *pairs, device, rank, world, (progress if first else None) or _silent)
    if resume:
        run.resume()
    model.train()
    try:
        with silent_threads(), run.logging():
            fit(run.step, run.adam, run.record, settings.accumulate // world, run.before, run.after)
            if world > 1:  # nobody leaves while the first still validates and writes
                wait()
    except OSError as error:  # of the log or TensorBoard's curves
        raise NephiError(f"the training in {folder} ended: {error.strerror or error}") from None
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()
    if first and not run.best:
        raise NephiError("no model was written, as no validation gave a finite value; lower fit.learning_rate")
    return run.best


class _Run:
    """One process of a training: its steps, and the logging, validation and saving after them."""

    def __init__(
        self,
        settings: TrainSettings,
        folder: Path,
        model: Model,
        data: Dataset,
        validation: Dataset,
        device: torch.device,
        rank: int,
        world: int,
        progress: Callable[[str, float, dict], None],
    ):
        self.settings, self.folder, self.model, self.data, self.validation = settings, folder, model, data, validation
        self.device, self.rank, self.world, self.progress = device, rank, world, progress
        self.adam = Adam(model.parameters(), settings.fit)
        self.best: dict = {}
        self.points = torch.Generator(device)
        s = settings
        self.objective = Objective(s.model.similarity, s.regularity, s.model.half_size_mm, self.points)
        self.objective.weights |= {"similarity": s.similarity_weight, "known": s.known_weight}
        self.mixed = s.mixed_precision and device.type == "cuda"
        self._batches: Iterator | None = None
        self._writer, self._started = None, time.perf_counter()

    def resume(self) -> None:
        """Take up the state that an interrupted run left."""
        self.best = load_state(self.folder / RESUME, self.model, self.adam, self.settings)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """The log and TensorBoard's curves, of the first process."""
        self._started = time.perf_counter()
        if self.rank == 0:
            self._writer = tensorboard(self.folder, self.adam.done)
            keep_log(self.folder / LOG, self.adam.done)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # that it cannot write may be why it ends
                self._close()
            raise
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the next batch, the mean over the encoder's rounds, and the last round's terms."""
        if self._batches is None:
            self._batches = iter(_loader(self.data, self.settings, self.adam.done, self.rank, self.world))
        seed, samples = next(self._batches)
        samples = [self.model.rest(sample.to(self.device)) for sample in samples]
        self.points.manual_seed(seed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            codes = self.model.codes(samples)
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        volumes, known = [s.volumes for s in samples], [s.known for s in samples]
        for code in codes:
            code = Code(code.global_code.float(), code.local_code.float(), code.half_extents_cube)
            loss, terms = self.objective(FieldMap(self.model.fields, code), volumes, known)
            losses.append(loss)
        return torch.stack(losses).mean(), terms

    def before(self) -> None:
        """Before a step: the gradients of all processes, averaged."""
        average(self.adam, self.world)

    def record(self, entry: dict) -> None:
        """An entry of the log."""
        if self.rank:
            return
        seconds = time.perf_counter() - self._started
        entry = {**entry, "seconds": seconds, "peak_memory_mb": peak_mb(self.device)}
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            for name, value in entry.items():
                self._writer.add_scalar(f"train/{name}", value, entry["step"])
        self.progress("training", entry["step"] / self.settings.fit.iterations, entry)

    def after(self, done: int) -> None:
        """After a step: the validation, the best model and the state to resume from, when it is time for them."""
        s, last = self.settings, done == self.settings.fit.iterations
        if self.rank == 0 and (done % s.validate_every == 0 or last):
            self._validate(done)
        if self.rank == 0 and (done % s.save_every == 0 or last):
            save_state(self.folder / RESUME, self.model, self.adam, self.best, s)

    def _validate(self, done: int) -> None:
        s = self.settings
        self.progress("validating", done / s.fit.iterations, {})
        found = validate(self.model, self.validation, s.validation_pairs, self.device, self._writer, done)
        self.model.train()
        self.record({"step": done, **{f"validation_{k}": v for k, v in found.items()}})
        if found["score"] > self.best.get("score", -math.inf):
            self.best.clear()
            self.best.update(found, step=done)
            facts = {"version": __version__, "settings": asdict(s), "validation": dict(self.best)}
            self.model.save(self.folder / MODEL, facts)


def _with_coarse(settings: TrainSettings) -> tuple[TrainSettings, Model | None]:
    """The settings with those of the coarse stage that they name, and that stage."""
    if not settings.coarse:
        if settings.model.coarse is not None:
            raise NephiError("settings: model.coarse comes with a trained model: give its name or file as coarse")
        return settings, None
    coarse = Model.load(settings.coarse)
    return replace(settings, model=replace(settings.model, coarse=coarse.settings)), coarse


def _new_model(settings: TrainSettings, coarse: Model | None, device: torch.device) -> Model:
    """The model to train, from the seed or from another model's weights."""
    generator = torch.Generator().manual_seed(settings.fit.seed)
    torch.manual_seed(settings.fit.seed)  # the encoder's layers start from it
    model = Model(settings.model, generator).to(device)
    if coarse is not None and model.coarse is not None:
        model.coarse.load_state_dict(coarse.state_dict())
    if settings.start:
        model.begin_with(Model.load(settings.start))
    return model


def _open(
    settings: TrainSettings,
    cache: Path,
    data: Dataset | None,
    validation: Dataset | None,
    rank: int,
    world: int,
    tell: Callable[[str], None],
) -> tuple[Dataset, Dataset]:
    """The pairs to train on and to validate with; the first process prepares them, the others find them prepared."""
    if rank:
        wait()
    checks = validation if validation is not None else data
    if data is None:
        data = open_data(settings.data, settings.model, cache, False, _silent if rank else tell)
    if checks is None:
        checks = open_data(settings.validation or settings.data, settings.model, cache, True, _silent)
    if world > 1 and not rank:
        wait()
    return data, checks


def _silent(*_: object) -> None:
    """Tells nobody."""


# ---- which pairs a step takes ---------------------------------------------------------------------------


class _Draws(torch.utils.data.Dataset):
    """Entry (seed, indices): the samples of a batch, augmented from its seed."""

    def __init__(self, data, augmentation: Augmentation):
        self.data, self.augmentation = data, augmentation

    def __getitem__(self, draw: tuple[int, list[int]]) -> tuple[int, list[PairTensors]]:
        seed, indices = draw
        return seed, [self.augmentation(self.data[k], seed + i) for i, k in enumerate(indices)]


def _loader(data, settings: TrainSettings, done: int, rank: int, world: int):
    draws = _draws(len(data), settings, done, rank, world)
    return torch.utils.data.DataLoader(
        _Draws(data, settings.augmentation), sampler=draws, batch_size=None, num_workers=_workers(data, settings)
    )


_SHARED = Path("/dev/shm")  # shared memory of Linux
_AHEAD = 3  # batches of each process that may be there at a time


def _workers(data, settings: TrainSettings) -> int:
    """The processes that prepare pairs; none, with a notice, where what they share has no room: they would hang."""
    if not settings.workers or sys.platform != "linux":
        return settings.workers
    free = shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else 0
    needed = settings.workers * settings.batch * _AHEAD * _bytes(data[0])
    if free >= needed:
        return settings.workers
    notice(
        f"workers is {settings.workers}, but {_SHARED} has {free / 1e6:.0f} of {needed / 1e6:.0f} MB of room: "
        "pairs are prepared in the training's own process"
    )
    return 0


def _bytes(value: object) -> int:
    """Of all tensors in a nested value."""
    if isinstance(value, Tensor):
        return value.nbytes
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_bytes(getattr(value, part.name)) for part in fields(value))
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0


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
