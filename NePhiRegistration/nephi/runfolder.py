"""The scratch folder of a run, which is removed with its owner, so that no patient's images stay behind.

Its owner holds an exclusive lock on a file in it. The system releases that lock however the owner ends, so that the
owner's engines and its next start recognise an abandoned folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "owner.lock"
PREFIX = "nephi-run-"
_POLL_S = 1.0
_HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}


class RunFolder:
    """A new folder below ``parent``, removed by ``remove``, with the last reference to it, or at exit."""

    def __init__(self, parent: Path, prefix: str = PREFIX):
        parent.mkdir(parents=True, exist_ok=True)
        for _attempt in range(5):
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            # another application that is just starting may have taken the new folder for an abandoned one
            try:
                lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:
                continue
            if try_lock(lock) is not False and (self.path / LOCK).exists():
                break
            os.close(lock)
        else:
            raise OSError(f"cannot lock a folder in {parent}")
        self.lock = self.path / LOCK
        self.remove = weakref.finalize(self, _remove, self.path, lock)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders whose owners have ended without doing so."""
    for folder in parent.glob(f"{PREFIX}*"):
        with take_abandoned(folder):
            pass


@contextlib.contextmanager
def take_abandoned(folder: Path) -> Iterator[bool]:
    """Whether the folder's owner has ended; if so it is this process's in the block and removed at its end."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        with contextlib.suppress(OSError):  # another user's; or empty, its owner killed as it began or ended
            folder.rmdir()
        yield False
        return
    if not try_lock(lock):
        os.close(lock)
        yield False
        return
    try:
        yield True
    except BaseException:
        os.close(lock)
        raise
    _remove(folder, lock)


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


def try_lock(file: int) -> bool | None:
    """Lock an open file exclusively: False if another process holds the lock, None where locks are not supported."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None  # some file systems of networks know no locks
    return True


def _remove(folder: Path, lock: int) -> None:
    """The lock goes last: killed before, the folder is still known as abandoned."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            if entry.name == LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()
    if sys.platform != "win32":
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)  # on Windows an open file stays until here
