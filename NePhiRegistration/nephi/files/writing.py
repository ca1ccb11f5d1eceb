"""How files come into being: whole or not at all, several of them as one, by one run at a time.

Files are made in a scratch folder beside their place, reach the disk, and move. Where several move, a journal in the
scratch folder is the decision: from then on the next run, or whoever reads, finishes what a killed run began.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import NephiError
from ..runfolder import LOCK, RunFolder, take_abandoned, try_lock

PREFIX = ".nephi-"
FOLDER_LOCK, BATCH_LOCK = ".nephi.lock", ".nephi.batch.lock"
_JOURNAL, _OLD = ".journal", ".old"  # in a scratch folder: what is to move; what stood in its place
_open: set[Path] = set()  # scratch folders of this process: what is written into them is part of their whole
_locked: set[Path] = set()  # locks that this process holds


def step(operation: str, path: Path) -> None:
    """Called before every operation on a file (mkdir, write, fsync, replace, unlink, rmdir); does nothing.

    Tests put a function of their own in its place, to fail or to be killed at that very point.
    """


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Where to write the file ``path``, with any files that its format adds; they appear when the block ends.

    An exception leaves what was there before. Raises NephiError where the file cannot be written.
    """
    path = Path(path)
    with replaced(path.parent) as scratch, _told(path):
        yield scratch / path.name


@contextmanager
def replaced(folder: str | Path, gone: Iterable[str] = (), last: str = "") -> Iterator[Path]:
    """A scratch folder whose files replace those of ``folder`` together at the end of the block.

    ``gone``: names of files that are removed with the older ones where there is no new one; ``last``: the file that
    vouches for the others. An exception, or the end of this process at any moment, leaves the older files or the new
    ones: where it comes while they move, the next run or reader completes the move. Inside another such block it is
    a part of that. Raises NephiError where files cannot be written.
    """
    folder = Path(folder)
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
            _commit(scratch.path, folder, gone, last)
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
    """Make and remove a file of ``size`` bytes; raises OSError where there is no room for it.

    For libraries that do not tell, or crash, when the disk runs full.
    """
    step("write", path)
    zeros = bytes(1 << 20)
    try:
        with open(path, "wb") as file:
            for start in range(0, size, len(zeros)):
                file.write(zeros[: size - start])
    finally:
        path.unlink(missing_ok=True)


def recover(folder: str | Path) -> None:
    """Finish what killed runs had begun to move into ``folder``, and remove what they left there otherwise."""
    folder = Path(folder)
    with contextlib.suppress(OSError):  # a folder that cannot be written to is read as it stands
        for scratch in sorted(folder.glob(f"{PREFIX}*")):
            if scratch.is_symlink():
                continue
            with take_abandoned(scratch) as taken:
                plan = _plan(scratch) if taken else None
                if plan is not None:
                    _move(scratch, folder, plan)
                if taken:
                    step("rmdir", scratch)


@contextmanager
def output_folder(folder: str | Path, patience_s: float = 0.0) -> Iterator[Path]:
    """The folder, created if necessary, without leftovers, and this process's alone until the block ends.

    Raises NephiError if it cannot be written to, or if another run writes to it for longer than ``patience_s``.
    """
    folder = Path(folder)
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
            f"another run is writing to output folder {folder}: wait until it ends, or choose another folder"
        )
    try:
        recover(folder)
        yield folder
    finally:
        _release(folder, held)


def claim(folder: Path) -> Callable[[], None] | None:
    """Take a pair's folder for a batch of this process, until what is returned is called; None where another has it.

    The engine that writes to the folder locks it besides. Raises NephiError where the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _hold(folder, BATCH_LOCK)
    except OSError as error:
        raise NephiError(f"cannot write to output folder {folder}: {error.strerror}") from None
    return None if held is None else functools.partial(_release, folder, held, BATCH_LOCK)


def is_held(folder: Path, name: str = FOLDER_LOCK) -> bool:
    """Whether a process holds the folder's lock of that name."""
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
    if sys.platform != "win32":  # while it is held, so that nobody waits at a file that is no longer there
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
        parts = [part for part in Path(str(place)).parts if not part.startswith(PREFIX)]
        raise NephiError(f"cannot write {Path(*parts)}: {error.strerror or error}") from error


def _commit(scratch: Path, folder: Path, gone: Iterable[str], last: str) -> None:
    """Everything in the scratch folder to the disk, and then to its place."""
    files = [file for file in sorted(scratch.rglob("*")) if file.is_file() and file != scratch / LOCK]
    names = sorted((file.relative_to(scratch).as_posix() for file in files), key=lambda name: name == last)
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(None, "a folder of that name exists", str(folder / name))
    mode = _usual_mode(scratch)
    for file in files:
        if sys.platform != "win32":
            file.chmod(mode)  # some libraries write for their user alone
        sync(file)
    for inner in {file.parent for file in files}:
        sync(inner)
    if len(names) == 1 and not any((folder / name).exists() for name in gone) and "/" not in names[0]:
        step("replace", folder / names[0])
        os.replace(scratch / names[0], folder / names[0])
        with contextlib.suppress(OSError):  # the file is there; a refusal now would be wrong
            sync(folder)
        return
    plan = {"names": names, "gone": [name for name in gone if name not in names]}
    draft = scratch / f"{_JOURNAL}.part"
    step("write", draft)
    draft.write_text(json.dumps(plan), encoding="utf-8")
    sync(draft)
    step("replace", scratch / _JOURNAL)
    os.replace(draft, scratch / _JOURNAL)
    try:
        sync(scratch)
        _move(scratch, folder, plan)
    except BaseException:
        _move_back(scratch, folder, plan)
        raise


def _plan(scratch: Path) -> dict | None:
    """The journal of a scratch folder; None where there is none, or none that this module has written."""
    try:
        plan = json.loads((scratch / _JOURNAL).read_text(encoding="utf-8"))
        names = [PurePosixPath(name) for name in [*plan["names"], *plan["gone"]]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    inside = all(name.parts and not name.is_absolute() and ".." not in name.parts for name in names)
    return plan if inside and not any("\\" in str(name) or ":" in str(name) for name in names) else None


def _move(scratch: Path, folder: Path, plan: dict) -> None:
    """The new files to their places, whatever part of them is there; at no moment do older files stand beside new."""
    waiting = [name for name in plan["names"] if (scratch / name).exists()]
    for name in [*plan["gone"], *waiting]:
        for inner in [folder / parent for parent in PurePosixPath(name).parents if parent.parts]:
            if inner.is_symlink():
                raise OSError(None, "a link to another folder exists", str(inner))
    for name in reversed([*plan["gone"], *waiting]):  # first the one that vouches for the others
        if (folder / name).is_symlink() or (folder / name).exists():
            _replace(folder / name, scratch / _OLD / name)
    for name in waiting:
        _replace(scratch / name, folder / name)
    for inner in {folder, *((folder / name).parent for name in plan["names"])}:
        sync(inner)
    step("unlink", scratch / _JOURNAL)
    (scratch / _JOURNAL).unlink()


def _move_back(scratch: Path, folder: Path, plan: dict) -> None:
    with contextlib.suppress(OSError):  # where even this fails, the journal stays and the next run goes forward
        for name in plan["names"]:
            if not (scratch / name).exists():
                _replace(folder / name, scratch / name)
        for name in [*plan["gone"], *plan["names"]]:
            if (scratch / _OLD / name).is_symlink() or (scratch / _OLD / name).exists():
                _replace(scratch / _OLD / name, folder / name)
        with contextlib.suppress(FileNotFoundError):
            (scratch / _JOURNAL).unlink()


def _replace(source: Path, target: Path) -> None:
    step("replace", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def sync(path: Path) -> None:
    """A file's content, or a folder's entries, to the disk."""
    step("fsync", path)
    if path.is_dir() and sys.platform == "win32":  # it keeps its folders itself
        return
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _usual_mode(scratch: Path) -> int:
    """Permissions of a new file here."""
    probe = scratch / f"{_JOURNAL}.mode"
    probe.touch(0o666)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode
