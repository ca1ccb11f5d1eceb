"""The files of a training: the state to resume from, the log, TensorBoard's."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from ..device import peak_gpu_memory_mb, peak_memory_mb
from ..errors import NephiError, notice
from ..files.tensors import check_tensors, read_tensors, write_tensors
from ..files.writing import write_text
from ..fitting.fit import Adam
from .model import Model
from .settings import TrainSettings

MODEL, RESUME, LOG = "model.safetensors", "resume.safetensors", "log.jsonl"


def save_state(path: Path, model: Model, adam: Adam, best: dict, settings: TrainSettings) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"adam.{k}": v for k, v in adam.state().items()}
    facts = {"done": adam.done, "best": best, "settings": asdict(settings)}
    write_tensors(path, tensors, {"facts": json.dumps(facts)})


def load_state(path: Path, model: Model, adam: Adam, settings: TrainSettings) -> dict:
    """Take up model and optimiser; returns the best validation so far. Raises NephiError for another make's state."""
    if not path.exists():
        raise NephiError(f"there is nothing to resume: no {path}")
    metadata, tensors = read_tensors(path, "the state of a training run")
    try:
        facts = json.loads(metadata["facts"])
        made_with, done, best = facts["settings"], int(facts["done"]), dict(facts["best"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NephiError(f"cannot read {path} as the state of a training run: {error!r}") from None
    if made_with != json.loads(json.dumps(asdict(settings))):
        raise NephiError(f"{path} was made with different settings; use those, or another output folder")
    parts = {
        part: {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
        for part in ("model.", "adam.")
    }
    check_tensors(parts["model."], model.state_dict(), path)
    check_tensors(parts["adam."], adam.expected(parts["adam."]), path)
    model.load_state_dict(parts["model."])
    adam.resume(parts["adam."], done)
    return best


def keep_log(path: Path, done: int) -> None:
    """Cut the log after step ``done``: later steps are repeated. Damaged lines are left out with a notice."""
    kept, damaged = [], 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            if line and json.loads(line)["step"] <= done:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged += 1
    if damaged:
        notice(f"{path}: {damaged} damaged lines were skipped.")
    write_text(path, "".join(kept))


def tensorboard(folder: Path, done: int):
    """A TensorBoard writer if it is installed; entries after step ``done`` are purged."""
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter  # optional, and takes seconds to load

        return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    return None


@contextlib.contextmanager
def silent_threads() -> Iterator[None]:
    """Suppresses messages of threads that cannot write: TensorBoard raises the error at the next entry, too."""
    before = threading.excepthook
    threading.excepthook = lambda failed: None if isinstance(failed.exc_value, OSError) else before(failed)
    try:
        yield
    finally:
        threading.excepthook = before


def peak_mb(device: torch.device) -> float:
    return peak_gpu_memory_mb(str(device)) or peak_memory_mb() or float("nan")
