"""Reads safetensors files of models, cached samples and training states."""

from __future__ import annotations

from pathlib import Path

import safetensors
from torch import Tensor


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors by name; raises OSError or safetensors.SafetensorError if it cannot be read."""
    with safetensors.safe_open(str(path), "pt") as file:
        return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
