"""Writes files completely or not at all, several of them as one (``journal.py``), by one run at a time."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import NephiError
from ..journal import JOURNAL, PREFIX, commit, recover, step
from ..paths import check_name
from ..runfolder import RunFolder, try_lock

FOLDER_LOCK, BATCH_LOCK = ".nephi.lock", ".nephi.batch.lock"
_HEADERS = 1 << 16  # most bytes of a file beside its values
_open: set[Path] = set()  # scratch folders of this process: files written there are part of their replacement
_locked: set[Path] = set()  # locks held by this process


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Where to write the file ``path``, with any files that its format adds; they appear when the block ends.

    An exception leaves earlier files as they were. Raises NephiError if the file can't be written.
    """
    path = check_name(path, "output")
    with replaced(path.parent) as scratch, _told(path):
        yield scratch / path.name


@contextmanager
def replaced(folder: str | Path, gone: Iterable[str] = (), last: str = "") -> Iterator[Path]:
    """A scratch folder whose files replace those of ``folder`` together at the end of the block.

    ``gone``: names of files that are removed with the old ones unless there are new ones; ``last``: the file that
    confirms the others. After an exception, or the end of this process at any moment, either the old or the new files
    are there; if it happens during the move, the next run or reader completes it. Inside another such block it is part
    of that. Raises NephiError if files can't be written.
    """
    folder = check_name(folder, "output")
    if not _open.isdisjoint((folder, *folder.parents)):
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        return
    with _told(folder):
        recover(folder)
        step("mkdir", folder)
        scratch = RunFolder(folder, PREFIX)
        _open.add(scratch.path)
        try:
            yield scratch.path
            commit(scratch.path, folder, gone, last)
        finally:
            _open.discard(scratch.path)
            with contextlib.suppress(OSError):  # the next run removes it
                step("rmdir", scratch.path)
                scratch.remove()


def write_text(path: str | Path, text: str) -> None:
    """Text as UTF-8, its line ends as they are."""
    with whole(path) as scratch:
        step("write", scratch)
        with open(scratch, "w", encoding="utf-8", newline="") as file:
            file.write(text)


def write_csv(path: str | Path, rows: Iterable[Iterable[object]]) -> None:
    """A table: floats with six digits, None as an empty cell, and no text that a spreadsheet would run."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    write_text(path, text.getvalue())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = visible(str(value), keep="")
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@")) else text


def visible(text: str, keep: str = "\n\t") -> str:
    """Control characters, which move a terminal's cursor or worse, as their escapes."""
    return "".join(c if c in keep or unicodedata.category(c) not in ("Cc", "Cf") else ascii(c)[1:-1] for c in text)


def reserve(path: Path, size: int) -> None:
    """Create and remove a file of ``size`` bytes. Raises OSError if there is no space for it."""
    zeros = bytes(1 << 20)
    try:
        with open(path, "wb") as file:
            for start in range(0, size, len(zeros)):
                file.write(zeros[: size - start])
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def by_library(
    path: Path,
    size: int,
    refused: str,
    errors: tuple[type[Exception], ...] = (RuntimeError, OSError),
    crashes: bool = False,
) -> Iterator[None]:
    """While a library writes ``path``, of about ``size`` bytes, with unreliable messages on a full disk.

    If it fails with one of ``errors``, raises OSError if there is no space for the file, otherwise NephiError with the
    text ``refused``. Its output on standard error is not shown. ``crashes``: on a full disk it does not fail but ends
    the process or truncates the file; the space is then checked before.
    """
    step("write", path)
    if crashes:
        reserve(path, size + _HEADERS)
    try:
        with _mute():
            yield
    except errors:
        for part in path.parent.glob(f"{path.name.split('.')[0]}.*"):  # the voxels may be in a separate file
            part.unlink()
        reserve(path, size + _HEADERS)
        raise NephiError(refused) from None


@contextmanager
def _mute() -> Iterator[None]:
    """The standard error output of C++ off."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no such file
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextmanager
def output_folder(folder: str | Path, patience_s: float = 0.0) -> Iterator[Path]:
    """The folder, created if necessary, without leftovers, and this process's alone until the block ends.

    Raises NephiError if it cannot be written to, or if another run writes to it for longer than ``patience_s``.
    """
    folder = check_name(folder, "output")
    try:
        step("mkdir", folder)
        folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + patience_s
        while (held := _hold(folder)) is None and time.monotonic() < end:
            time.sleep(0.1)
    except OSError as error:
        raise NephiError(f"cannot write to output folder {folder}: {error.strerror}") from None
    if held is None:
        raise NephiError(
            f"another run is writing to output folder {folder}: wait until it has finished, or choose another folder"
        )
    try:
        recover(folder)
        yield folder
    finally:
        _release(folder, held)


def claim(folder: Path) -> Callable[[], None] | None:
    """Claim a pair's folder for a batch of this process; returns a function that releases it, or None if it is taken.

    The engine that writes to the folder also locks it. Raises NephiError if the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _hold(folder, BATCH_LOCK)
    except OSError as error:
        raise NephiError(f"cannot write to output folder {folder}: {error.strerror}") from None
    return None if held is None else functools.partial(_release, folder, held, BATCH_LOCK)


def without_locks(folder: Path) -> None:
    """Remove the locks that a killed run left in a folder."""
    for name in (FOLDER_LOCK, BATCH_LOCK):
        if (folder / name).exists():
            with contextlib.suppress(OSError):
                held = _hold(folder, name)
                if held is not None:
                    _release(folder, held, name)


def is_held(folder: Path, name: str = FOLDER_LOCK) -> bool:
    """Whether a process holds the lock of that name in the folder."""
    try:
        file = os.open(folder / name, os.O_RDWR)
    except OSError:
        return False
    try:
        return try_lock(file) is False
    finally:
        os.close(file)


def _hold(folder: Path, name: str = FOLDER_LOCK) -> int | None:
    """The lock of a folder as an open file, -1 where this process has it already, None where another one does."""
    path = folder / name
    known = folder.resolve() / name
    if known in _locked:
        return -1
    kind = getattr(os, "O_TEMPORARY", 0) | getattr(os, "O_NOFOLLOW", 0)  # on Windows it goes with its owner
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | kind, 0o666)
        if try_lock(file) is False:
            os.close(file)
            return None
        with contextlib.suppress(FileNotFoundError):
            if sys.platform == "win32" or os.path.samestat(os.fstat(file), path.stat()):
                _locked.add(known)
                return file
        os.close(file)  # its former owner has just removed it


def _release(folder: Path, held: int, name: str = FOLDER_LOCK) -> None:
    if held < 0:
        return
    _locked.discard(folder.resolve() / name)
    if sys.platform != "win32":  # while locked, so that nobody waits for a deleted file
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    os.close(held)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Failures of the system as one line."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or path
        parts = [part for part in Path(str(place)).parts if not part.startswith((PREFIX, JOURNAL))]
        raise NephiError(f"cannot write {Path(*parts)}: {error.strerror or error}") from error
