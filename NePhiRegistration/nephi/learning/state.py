"""The files of a training: the state to resume from, the log, TensorBoard's."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

import safetensors
import torch

from ..device import peak_gpu_memory_mb, peak_memory_mb
from ..errors import NephiError
from ..files.tensors import read_tensors, write_tensors
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


def keep_log(path: Path, done: int) -> None:
    """Cut the log after step ``done``: later steps are repeated."""
    kept = []
    with contextlib.suppress(FileNotFoundError, ValueError):  # nothing yet, or a line that was cut off
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if json.loads(line)["step"] <= done:
                kept.append(line)
    write_text(path, "".join(kept))


def tensorboard(folder: Path, done: int):
    """A TensorBoard writer if it is installed; entries after step ``done`` are purged."""
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter  # optional, and takes seconds to load

        return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    return None


def peak_mb(device: torch.device) -> float:
    return peak_gpu_memory_mb(str(device)) or peak_memory_mb() or float("nan")
