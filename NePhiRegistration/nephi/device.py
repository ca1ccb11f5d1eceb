"""What a run is made on: devices, threads, peak memory, versions."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .errors import NephiError
from .version import __version__

_THREADS = 4  # the steps are too small to use more


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; raises NephiError where CUDA is asked for and missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise NephiError(f"unknown device '{name}': use auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise NephiError(f"device '{name}' is not available ({count} CUDA devices found); use --device cpu or auto")
    return torch.device(name)


def devices() -> list[dict]:
    """The available devices: name, label to show and, for a GPU, memory_mb."""
    cores = os.cpu_count() or 1
    found: list[dict[str, Any]] = [{"name": "cpu", "label": f"CPU ({cores} core{'s' if cores > 1 else ''})"}]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(number)
        label = f"{card.name} ({card.total_memory / 2**30:.0f} GB)"
        found.append({"name": f"cuda:{number}", "label": label, "memory_mb": round(card.total_memory / 1e6)})
    return found


def limit_threads(threads: int | None = None) -> None:
    """Few threads: the optimisation's steps are small, more threads only wait for each other."""
    if threads is not None and threads < 1:
        raise NephiError(f"--threads {threads}: must be at least 1")
    threads = threads or min(_THREADS, torch.get_num_threads())
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def peak_memory_mb() -> float | None:
    """The process's largest resident size so far; None where the system does not report it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage counts the parent's size at the start of the process, too
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def versions() -> dict[str, str]:
    """Of the package and of what its numbers depend on."""
    return {
        "nephi": __version__,
        "torch": torch.__version__,
        "simpleitk": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def peak_gpu_memory_mb(device: str) -> float | None:
    """The most memory that torch held on a GPU so far; None for other devices."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.startswith("cuda") else None
