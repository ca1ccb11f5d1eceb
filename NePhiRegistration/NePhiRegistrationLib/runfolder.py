"""The folder of one registration: who it belongs to, and that patients' images do not stay behind.

The application holds an exclusive lock on a file in it. The system releases that lock however the application ends,
so that the engine (``engine.py``) and the next start can tell an abandoned folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

LOCK = "host.lock"
PREFIX = "nephi-run-"


class RunFolder:
    """A new folder below ``parent``, removed by ``remove``, with the last reference to it, or at exit."""

    def __init__(self, parent: Path):
        parent.mkdir(parents=True, exist_ok=True)
        for _attempt in range(5):
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            # another application that is just starting may have taken the new folder for an abandoned one
            if try_lock(lock) and (self.path / LOCK).exists():
                break
            os.close(lock)
        else:
            raise OSError(f"cannot lock a folder in {parent}")
        self.lock = self.path / LOCK
        self.remove = weakref.finalize(self, _remove, self.path, lock)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of applications that have ended without doing so."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # being made, or another user's
            continue
        if try_lock(lock):
            _remove(folder, lock)
        else:
            os.close(lock)


def try_lock(file: int) -> bool:
    """Take the exclusive lock of an open file, unless another process holds it."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)  # on Windows an open file stays until here
