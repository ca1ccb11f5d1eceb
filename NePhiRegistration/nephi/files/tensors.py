"""Safetensors files of models, cached samples, training states and registrations."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from .writing import reserve, step, whole


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors by name; raises OSError or safetensors.SafetensorError if it cannot be read."""
    with safetensors.safe_open(str(path), "pt") as file:
        return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Tensors of any device by their names, and metadata; raises NephiError where the file cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as scratch:
        step("write", scratch)
        try:
            safetensors.torch.save_file(tensors, str(scratch), metadata)
        except safetensors.SafetensorError as error:
            scratch.unlink(missing_ok=True)
            reserve(scratch, sum(tensor.nbytes for tensor in tensors.values()))
            raise OSError(None, str(error), str(path)) from None
        _in_order(scratch)


def _in_order(path: Path) -> None:
    """The metadata, which safetensors writes in random order, sorted: the same content makes the same file."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))
        head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
