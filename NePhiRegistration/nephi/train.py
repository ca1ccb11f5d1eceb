"""Training: all weights of a model over many pairs, by the loop that also optimises one pair.

``torchrun --nproc-per-node N -m nephi train ...`` shares the pairs of each step among N processes, each on its own
GPU where there are some; the gradient is that of one process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from . import __version__
from .dataset import Augmentation, open_data
from .errors import NephiError
from .field import Code, Maps
from .fit import Adam, fit
from .model import Model, ModelSettings
from .model import check as check_model
from .objective import Objective
from .output import peak_memory_mb
from .sample import Sample
from .settings import FitSettings, RegularitySettings, Settings, check
from .tensorfile import read_tensors
from .validate import validate

_PATIENCE = timedelta(hours=12)  # for another process: the first prepares many pairs and validates alone
MODEL, RESUME, LOG = "model.safetensors", "resume.safetensors", "log.jsonl"


@dataclass(frozen=True)
class TrainSettings:
    """``data`` and ``validation``: lists of pairs (see ``nephi batch``), or ``shapes-solid``, ``shapes-hollow``.

    ``coarse``: a shipped model's name or a model file: the coarse stage of a multi-resolution model, left as it is.
    ``start``: a shipped model's name or a model file, of the same make, whose weights to begin with.
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


def train(
    settings: TrainSettings,
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    progress: Callable[[str, float, dict], None] | None = None,
    tell: Callable[[str], None] = print,
) -> dict:
    """Train into ``folder``: the best model so far, the state to go on from, a log; returns the best validation.

    Of several processes the first writes all that and returns it. Raises NephiError for settings or data that can't
    be used.
    """
    coarse = Model.load(settings.coarse) if settings.coarse else None
    if coarse is not None:
        settings = replace(settings, model=replace(settings.model, coarse=coarse.settings))
    elif settings.model.coarse is not None:
        raise NephiError("settings: model.coarse comes with a trained model: give its name or file as coarse")
    _check(settings)
    rank, world, device = _join(device)
    first = rank == 0
    if settings.accumulate % world:
        raise NephiError(f"accumulate is {settings.accumulate}: it must be a multiple of the {world} processes")

    generator = torch.Generator().manual_seed(settings.fit.seed)
    torch.manual_seed(settings.fit.seed)  # the encoder's layers start from it
    model = Model(settings.model, generator).to(device)
    if coarse is not None:
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
        best = _load_state(folder / RESUME, model, adam, settings)
    batches = iter(_loader(data, settings, adam.done, rank, world))
    mixed = settings.mixed_precision and device.type == "cuda"

    def step(number: int):
        seed, samples = next(batches)
        samples = [model.rest(sample.to(device)) for sample in samples]
        points.manual_seed(seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            codes = model.codes(samples)
        losses, terms = [], {}
        for code in codes:
            code = Code(code.global_code.float(), code.local_code.float(), code.upper_cube)
            loss, terms = objective(Maps(model.fields, code), [s.volumes for s in samples], [s.known for s in samples])
            losses.append(loss)
        return torch.stack(losses).mean(), terms  # the terms of the last round tell most

    writer, started, log = _writer(folder, adam.done) if first else None, time.perf_counter(), folder / LOG
    if first:
        _keep_log(log, adam.done)

    def record(entry: dict) -> None:
        if not first:
            return
        entry = {**entry, "seconds": time.perf_counter() - started, "peak_memory_mb": _peak_mb(device)}
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
                _replace(folder / MODEL, lambda path: model.save(path, facts))
        if first and (done % settings.save_every == 0 or last):
            _save_state(folder / RESUME, model, adam, best, settings)

    model.train()
    try:
        fit(step, adam, record, settings.accumulate // world, lambda: _average(adam, world), after)
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


def _check(settings: TrainSettings) -> None:
    """Raise NephiError where values make no sense together."""
    m = settings.model
    check_model(m)
    check(Settings(regularity=settings.regularity, fit=settings.fit))
    counts = ("batch", "accumulate", "validate_every", "validation_pairs", "save_every")
    values = {key: getattr(settings, key) for key in counts} | {"fit.iterations": settings.fit.iterations}
    for key, value in values.items():
        if value < 1:
            raise NephiError(f"settings: {key} is {value}, must be above 0")
    if settings.workers < 0:
        raise NephiError(f"settings: workers is {settings.workers}, must be 0 or more")
    if m.encoder.kind == "matching" and settings.batch != 1:
        raise NephiError("the matching encoder takes one pair at a time: set batch to 1 and accumulate to the batch")


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
    """(seed, indices) of every batch from step ``done`` on: each pass over the data in an order of its own.

    All follows from the seed and the batch's number, so that a run that was stopped goes on as it would have.
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


def _join(device: torch.device) -> tuple[int, int, torch.device]:
    """This process's number and how many there are, as a launcher (torchrun, accelerate) has told, and its device."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        if device.type == "cuda":
            number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if number >= gpus:
                raise NephiError(f"more processes than the {gpus} GPUs of this machine: start as many as there are")
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return int(os.environ.get("RANK", "0")), world, device


def _average(adam: Adam, world: int) -> None:
    """The gradients' mean over all processes, in one message."""
    if world == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in adam.parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    torch.distributed.all_reduce(flat)
    flat /= world
    for p, part in zip(adam.parameters, flat.split([g.numel() for g in grads]), strict=True):
        p.grad = part.view_as(p)


# ---- files ----------------------------------------------------------------------------------------------


def _save_state(path: Path, model: Model, adam: Adam, best: dict, settings: TrainSettings) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"adam.{k}": v for k, v in adam.state().items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    facts = {"done": adam.done, "best": best, "settings": asdict(settings)}
    _replace(path, lambda p: safetensors.torch.save_file(tensors, str(p), {"facts": json.dumps(facts)}))


def _load_state(path: Path, model: Model, adam: Adam, settings: TrainSettings) -> dict:
    try:
        metadata, tensors = read_tensors(path)
        facts = json.loads(metadata["facts"])
    except FileNotFoundError:
        raise NephiError(f"there is nothing to resume: no {path}") from None
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise NephiError(f"cannot read the state of the training {path}: {error}") from None
    if facts["settings"] != json.loads(json.dumps(asdict(settings))):
        raise NephiError(f"{path} was made with other settings; use those, or another output folder")
    part = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(part)
    adam.resume({k.removeprefix("adam."): v for k, v in tensors.items() if k.startswith("adam.")}, facts["done"])
    return facts["best"]


def _keep_log(path: Path, done: int) -> None:
    """Of the log what was written up to a step: what comes after it is done again."""
    kept = []
    with contextlib.suppress(FileNotFoundError, ValueError):  # nothing yet, or a line that was cut off
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if json.loads(line)["step"] <= done:
                kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    scratch = path.with_name(f".{path.name}")
    write(scratch)
    os.replace(scratch, path)


def _writer(folder: Path, done: int):
    """TensorBoard's, where it is installed; it then shows nothing older from after step ``done``."""
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    return None


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory_mb() or float("nan")
