"""Replaces several files as one, and completes a replacement that a killed run left unfinished.

Files are written to a scratch folder next to their destination, synced to disk, and moved. If there are several, a
journal in the scratch folder marks the decision: from then on the next run, or any process that opens a file there,
completes what a killed run began.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from .errors import NephiError
from .runfolder import LOCK, take_abandoned

PREFIX = ".nephi-"
JOURNAL, _OLD = ".journal", ".old"  # in a scratch folder: the files to move; the files they replace
watch: Callable[[str, Path], None] | None = None  # tests put a function here, to fail or be killed at that very point


def step(operation: str, path: Path) -> None:
    """Called before every operation on a file (mkdir, write, fsync, replace, unlink, rmdir)."""
    if watch is not None:
        watch(operation, path)


def recover(folder: str | Path) -> None:
    """Complete the moves into ``folder`` that killed runs began, and remove their other leftovers.

    Raises NephiError if a journal is damaged or its move can't be completed: the folder may then contain a mixture.
    """
    folder = Path(folder)
    with contextlib.suppress(OSError, ValueError):  # a read-only folder is read as it is
        for scratch in sorted(folder.glob(f"{PREFIX}*")):
            if scratch.is_symlink():
                continue
            with take_abandoned(scratch) as taken:
                plan = _plan(scratch) if taken else None
                if plan is not None:
                    _finish(scratch, folder, plan)
                if taken:
                    step("rmdir", scratch)
                elif (scratch / JOURNAL).is_file() and not os.access(scratch / LOCK, os.W_OK):
                    raise NephiError(_half_way(scratch, folder, "the folder cannot be written to"))


def complete_moves(path: Path) -> None:
    """``recover``, before ``path`` is opened, of the folders whose killed run may have been about to move it."""
    for folder in dict.fromkeys((path.parent.parent, path.parent, path)):
        recover(folder)


def commit(scratch: Path, folder: Path, gone: Iterable[str], last: str) -> None:
    """Everything in the scratch folder to the disk, and then to its place."""
    files = [file for file in sorted(scratch.rglob("*")) if file.is_file() and file != scratch / LOCK]
    names = sorted((file.relative_to(scratch).as_posix() for file in files), key=lambda name: name == last)
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(None, "a folder with this name exists", str(folder / name))
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
    draft = scratch / f"{JOURNAL}.part"
    step("write", draft)
    draft.write_bytes(_sealed(plan))
    sync(draft)
    step("replace", scratch / JOURNAL)
    os.replace(draft, scratch / JOURNAL)
    try:
        sync(scratch)
        _move(scratch, folder, plan)
    except BaseException:
        _move_back(scratch, folder, plan)
        raise


def _sealed(plan: dict) -> bytes:
    """A journal's content: the plan, and a digest of it, by which damage is noticed."""
    line = json.dumps(plan).encode("ascii")
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode("ascii")


def _plan(scratch: Path) -> dict | None:
    """The plan in the journal of a scratch folder, None without one. Raises NephiError if it is damaged."""
    path = scratch / JOURNAL
    if not os.path.lexists(path):
        return None
    try:
        data = path.read_bytes() if path.is_file() else b""
        plan = json.loads(data.partition(b"\n")[0])
        names = [PurePosixPath(name) for name in [*plan["names"], *plan["gone"]]]
        sound = data == _sealed(plan)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise NephiError(_half_way(scratch, scratch.parent, "its journal is damaged")) from None
    inside = all(name.parts and not name.is_absolute() and ".." not in name.parts for name in names)
    if not sound or not inside or any("\\" in str(name) or ":" in str(name) for name in names):
        raise NephiError(_half_way(scratch, scratch.parent, "its journal is damaged"))
    return plan


def _half_way(scratch: Path, folder: Path, reason: str) -> str:
    return (
        f"{folder}: a run that was killed had begun to replace files here, which cannot be finished: {reason}. New "
        f"files are in their places or in {scratch.name}, older ones in {scratch.name}/{_OLD}; keep those you want and "
        f"remove {scratch.name}"
    )


def _finish(scratch: Path, folder: Path, plan: dict) -> None:
    try:
        _move(scratch, folder, plan)
    except OSError as error:
        raise NephiError(_half_way(scratch, folder, error.strerror or str(error))) from None


def _move(scratch: Path, folder: Path, plan: dict) -> None:
    """Moves the new files, or those left of them, to their places; old and new files are never there together."""
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
    step("unlink", scratch / JOURNAL)
    (scratch / JOURNAL).unlink()


def _move_back(scratch: Path, folder: Path, plan: dict) -> None:
    with contextlib.suppress(OSError):  # where even this fails, the journal stays and the next run goes forward
        for name in plan["names"]:
            if not (scratch / name).exists():
                _replace(folder / name, scratch / name)
        for name in [*plan["gone"], *plan["names"]]:
            if (scratch / _OLD / name).is_symlink() or (scratch / _OLD / name).exists():
                _replace(scratch / _OLD / name, folder / name)
        with contextlib.suppress(FileNotFoundError):
            (scratch / JOURNAL).unlink()


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
    probe = scratch / f"{JOURNAL}.mode"
    probe.touch(0o666)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode
