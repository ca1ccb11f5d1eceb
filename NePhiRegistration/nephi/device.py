"""What a run is made on: devices, threads, peak memory, versions."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import SimpleITK as sitk
import torch

from .errors import NephiError
from .version import __version__

Part = TypeVar("Part")
Made = TypeVar("Made")
_THREADS = 4  # the steps are too small to use more
_LITTLE_BYTES = 512 * 2**20  # that a process has from the system, freed ones among them
_CPU = torch.device("cpu")
_KINDS = ("cpu", "cuda", "xpu", "mps")  # of NVIDIA or AMD, Intel and Apple


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA, else the CPU), or a device by name; raises NephiError where it is missing."""
    if name == "auto":
        return torch.device("cuda" if _count("cuda") else "cpu")
    kind, _, number = name.partition(":")
    if kind not in _KINDS or (number and not number.isdigit()):
        raise NephiError(f"unknown device '{name}': use auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    if int(number or 0) >= (count := _count(kind)):
        found = f"{count} {kind.upper()} devices found"
        raise NephiError(f"device '{name}' is not available ({found}); use --device cpu or auto")
    return torch.device(name)


def _count(kind: str) -> int:
    """How many devices of a kind PyTorch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)  # older PyTorch has no torch.xpu
    return module.device_count() if module is not None and module.is_available() else 0


def devices() -> list[dict]:
    """The available devices: name, label to show and, for a GPU with memory of its own, memory_mb."""
    cores = os.cpu_count() or 1
    found: list[dict[str, Any]] = [{"name": "cpu", "label": f"CPU ({cores} core{'s' if cores > 1 else ''})"}]
    for kind in ("cuda", "xpu"):
        for number in range(_count(kind)):
            card = getattr(torch, kind).get_device_properties(number)
            label = f"{card.name} ({card.total_memory / 2**30:.0f} GB)"
            found.append({"name": f"{kind}:{number}", "label": label, "memory_mb": round(card.total_memory / 1e6)})
    if _count("mps"):
        found.append({"name": "mps", "label": "Apple GPU"})
    return found


def has_doubles(device: torch.device) -> bool:
    """Whether a device computes in double precision; Apple's do not."""
    return device.type != "mps"


def limit_threads(threads: int | None = None) -> None:
    """Few threads: the optimisation's steps are small, more threads only wait for each other."""
    if threads is not None and threads < 1:
        raise NephiError(f"--threads {threads}: must be at least 1")
    # of far more than there are processors, OpenMP ends the process
    threads = min(threads, os.cpu_count() or 1) if threads else min(_THREADS, torch.get_num_threads())
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def in_threads(work: Callable[[Part], Made], parts: Iterable[Part], device: torch.device = _CPU) -> Iterator[Made]:
    """``map(work, parts)``; on a CPU several parts run at once, each in one thread: as many as torch has.

    For parts of some milliseconds, where threads within an operation mostly wait for each other. The first part runs
    alone, so that shared caches are filled once. ``work`` keeps the caller's gradient mode.
    """
    threads, gradients, rest = torch.get_num_threads(), torch.is_grad_enabled(), iter(parts)

    def alone(part: Part) -> Made:
        with torch.set_grad_enabled(gradients):
            return work(part)

    if threads == 1 or device.type != "cpu":
        yield from map(work, rest)
        return
    for first in rest:
        torch.set_num_threads(1)
        try:
            found = work(first)
        finally:
            torch.set_num_threads(threads)
        yield found
        break
    torch.set_num_threads(1)  # of the threads that begin now, too
    try:
        with ThreadPoolExecutor(threads) as pool:
            running: deque[Future[Made]] = deque()
            for part in rest:
                running.append(pool.submit(alone, part))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        torch.set_num_threads(threads)


class _Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (malloc.h): bytes in its heaps, ``arena``, and in separate mappings, ``hblkhd``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def release_freed_memory() -> None:
    """Return freed memory to the system, where the C library is glibc, which keeps memory below live blocks.

    A small process keeps it for its next allocations: the system would have to clear it again, which takes time.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallinfo2"):  # glibc 2.33
        library.mallinfo2.restype = _Mallinfo
        held = library.mallinfo2()
        if held.arena + held.hblkhd < _LITTLE_BYTES:
            return
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


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
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def versions() -> dict[str, str]:
    """Versions of the package and of the libraries that its results depend on."""
    return {
        "nephi": __version__,
        "torch": torch.__version__,
        "simpleitk": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def peak_gpu_memory_mb(device: str) -> float | None:
    """The peak memory of torch on a GPU so far; None where it is unknown."""
    kind = device.partition(":")[0]
    return getattr(torch, kind).max_memory_allocated(device) / 1e6 if kind in ("cuda", "xpu") else None
