"""Safetensors files of models, cached samples, training states and registrations."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import NephiError
from ..paths import check_file
from .writing import by_library, whole

_FEW = 2**22  # values
_MAKING = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange)
_DIGEST = "sha256"  # of everything in the file, among its metadata: safetensors itself has no checksum


def read_tensors(path: str | Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors by name.

    ``what``: the expected content, for messages. Raises NephiError if the file can't be read or has changed since it
    was written; files of versions before 0.3 have no checksum.
    """
    path = check_file(path, what)
    try:
        data = path.read_bytes()  # not mapped: a file that is cut while its tensors are in use would end the process
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except KeyError as kind:
        raise NephiError(f"cannot read {path} as {what}: it has tensors of an unknown type, {kind}") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise NephiError(f"cannot read {path} as {what}: {str(error).splitlines()[0]}") from None
    except MemoryError:
        raise NephiError(f"there is too little memory to read {path}") from None
    written = metadata.pop(_DIGEST, None)
    renamed = written is None and any(re.fullmatch("[0-9a-f]{64}", value) for value in metadata.values())
    if renamed or (written is not None and written != _digest(tensors, metadata)):
        raise NephiError(f"cannot read {path} as {what}: it is damaged, its checksum does not match")
    return metadata, tensors


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Bounded(TorchFunctionMode):
    """Context in which settings may create only as many tensor values as ``tensors`` have, and a few more.

    Raises NephiError for more, before memory is allocated. (The meta device, which needs none, loads torch's compiler.)
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path):
        super().__init__()
        self.left = 4 * sum(tensor.numel() for tensor in tensors.values()) + _FEW
        self.path = path

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _MAKING:
            sizes = args[0] if args and not isinstance(args[0], int) else args
            self.left -= math.prod(sizes) ** (2 if func is torch.eye and len(sizes) == 1 else 1)
            if self.left < 0:
                raise NephiError(f"{self.path} does not fit its own settings: they need more tensors than it contains")
        return func(*args, **(kwargs or {}))


def check_tensors(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raise NephiError unless ``tensors`` are finite and have the names and shapes of ``wanted`` (on any device)."""
    for name in [*wanted, *tensors]:
        have, want = (None if t is None else tuple(t.shape) for t in (tensors.get(name), wanted.get(name)))
        if have != want:
            raise NephiError(f"{path} does not fit its own settings: {name} is {have}, but should be {want}")
        if not torch.isfinite(tensors[name]).all():
            raise NephiError(f"{path} is damaged: {name} has values that are not numbers")


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Tensors of any device by their names, and metadata; raises NephiError where the file cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, _DIGEST: _digest(tensors, metadata)}
    with whole(path) as scratch:
        size = sum(tensor.nbytes for tensor in tensors.values())
        with by_library(scratch, size, f"cannot write {path}", (safetensors.SafetensorError,)):
            safetensors.torch.save_file(tensors, str(scratch), metadata)
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
