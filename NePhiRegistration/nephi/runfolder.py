"""The scratch folder of a run: who owns it, and that patients' images do not stay behind.

Its owner holds an exclusive lock on a file in it. The system releases that lock however the owner ends, so that the
owner's engines and its next start can tell an abandoned folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import weakref
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "owner.lock"
PREFIX = "nephi-run-"
_POLL_S = 1.0


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
    """Remove the folders whose owners have ended without doing so."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # being made, or another user's
            continue
        if try_lock(lock):
            _remove(folder, lock)
        else:
            os.close(lock)


def wait_for_owner(folder: Path) -> None:
    """Return when the owner of ``folder`` has ended or removed it; in either case it is gone then."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return
    while (folder / LOCK).exists():
        if try_lock(lock):
            _remove(folder, lock)
            return
        time.sleep(_POLL_S)
    os.close(lock)


def try_lock(file: int) -> bool:
    """Take the exclusive lock of an open file, unless another process holds it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)  # on Windows an open file stays until here
