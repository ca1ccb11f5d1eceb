"""The entry point of the command line: runs a command and reports any error in one line."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from ..errors import NephiError, collected_notices
from ..paths import check_spared
from .console import consoles
from .parser import command_parser
from .progress import tell_notices

_PACKAGES = {name: f"install it: pip install {name}" for name in ("numpy", "SimpleITK", "safetensors")}
_PACKAGES["torch"] = "install it: pip install torch (in Slicer: with the PyTorch extension)"
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 64 * 2**20), (-1, 64 * 2**20)  # options of glibc's mallopt, bytes
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "not enough memory", "out of memory")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a pair of a batch failed, 2 bad input (one line on stderr), 130 interrupted."""
    with consoles(), _interruptible():
        return _main(arguments)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Where the process is asked to end, that is an interruption, so that nothing is left half-written."""
    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and (name == "SIGTERM" or signal.getsignal(number) == signal.SIG_DFL):  # nohup ignores it
            before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


def _main(arguments: list[str] | None) -> int:
    parser = command_parser()
    options = parser.parse_args(arguments)
    options.started = time.perf_counter()
    # before torch loads OpenMP: threads that wait longer than this sleep, else they slow a busy machine tenfold
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    _keep_freed_memory()
    atexit.register(gc.freeze)  # the process's memory goes at once: no search for garbage in it, half a second long
    try:
        module, command = options.run
        _expand_homes(options)
        _check_here()
        output = getattr(options, "output", None)
        if output is not None and (not output.strip() or "\0" in output):
            raise NephiError(f"--output {output!r} does not name a file or folder")
        if output is not None:
            check_spared([output], {name: value for name, value in vars(options).items() if name != "output"})
        # imported when it is known that it is needed: torch and SimpleITK take seconds, ``--help`` answers at once
        with collected_notices() as notices:
            code = getattr(_imported(module), command)(options) or 0
        tell_notices(notices)
        return code
    except NephiError as error:
        print(f"nephi: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        print(f"nephi: the Python package {error.name} is missing; {_PACKAGES[error.name]}", file=sys.stderr)
        return 2
    except ImportError as error:  # it is there, but cannot be loaded
        print(
            f"nephi: the Python package {error.name or 'torch'} cannot be loaded: {_first_line(error)}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("nephi: interrupted; no result was written", file=sys.stderr)
        return 130
    except OSError as error:  # such as a name that is too long, when only checking for a file
        what = "" if error.filename is None else f"cannot use {ascii(str(error.filename))[1:-1]}: "
        print(f"nephi: {what}{error.strerror or _first_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError where the memory of the computer does not do
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in _NO_MEMORY):
            raise
        print(
            "nephi: out of memory; choose a larger levels.features.spacing_mm, a smaller field.width or image",
            file=sys.stderr,
        )
        return 2


def _expand_homes(options) -> None:
    """``~`` at the start of a path is the home folder; shells leave it to the program in ``--output=~/a``."""
    for name, value in vars(options).items():
        if isinstance(value, list):
            setattr(options, name, [os.path.expanduser(one) if isinstance(one, str) else one for one in value])
        elif value == "" and name != "output":  # such as of a variable of the shell that is not set
            raise NephiError(f"--{name.replace('_', '-')} '' is empty; omit it or give a value")
        elif isinstance(value, str):
            setattr(options, name, os.path.expanduser(value))


def _check_here() -> None:
    """Raise NephiError where the current folder is gone: MKL then ends the process without a reason."""
    try:
        os.getcwd()
    except OSError:
        raise NephiError("the current folder no longer exists; change to another one") from None


def _keep_freed_memory() -> None:
    """Memory of tensors that come and go is used again: to return it to the system and to clear new pages for the next
    one took up to a fifth of the CPU time. Only where the C library is glibc."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(*_MMAP_THRESHOLD)
            library.mallopt(*_TRIM_THRESHOLD)


def _imported(module: str) -> ModuleType:
    """A module of commands, without looking for garbage among the objects of torch, now or later: that takes long."""
    first = "torch" not in sys.modules
    gc.disable()
    try:
        return import_module(f".{module}", __package__)
    finally:
        if first:
            gc.freeze()
        gc.enable()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _interrupt(*_):
    raise KeyboardInterrupt
