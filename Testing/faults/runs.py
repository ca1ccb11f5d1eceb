"""Runs that are killed, or that find no room, over an older result; and the run after them.

"No room" is an error at an operation on files, a limit on their size, or a small file system (tmpfs) that is full. The
limits are below what the command writes when nothing hinders it, so that they are reached.

Each runs in a process forked from this one, so that loading torch is paid for once. ``nephi.journal.step``, which every
operation on files passes, is where it is killed or where the disk is full.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nephi
import numpy as np
import SimpleITK as sitk
from nephi import journal
from nephi.cli import commands, main  # noqa: F401 (loaded before the forks)
from nephi.synthetic.phantom import make_phantom

from . import samples
from .disks import filled, mounted, taken, unmount
from .pool import LIMIT_S, LINE, RIGHT, SKIPPED, WRONG, Outcome, kept_folder

_CRASHED = 77
_REASONS = (os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG))


@dataclass(frozen=True)
class Command:
    """``arguments``: of a run into a folder, of the older (0) or the newer variant (1)."""

    arguments: Callable[[Path, int], list[str]]
    again: tuple[str, ...] = ()  # of the next run, besides
    several: bool = False  # files that appear one after the other


@functools.cache
def _inputs() -> Path:
    """Images, settings, a result, a list of pairs and a training, made once in a process of its own."""
    folder = kept_folder()

    def make() -> int:
        make_phantom((48, 40), 4.0, dimension=2).write(folder)
        roles = ("fixed", "moving", "fixed_mask", "moving_mask")
        row = ",".join(f"{role}.nii.gz" for role in roles)
        (folder / "pairs.csv").write_text(f"name,{','.join(roles)}\na,{row}\nb,{row}\n", encoding="utf-8")
        settings = replace(samples.SHORT, field=replace(samples.SMALL_FIELD, local_code=6))
        (folder / "settings.json").write_text(settings.to_json(), encoding="utf-8")
        fit = replace(samples.TRAINING.fit, iterations=6)
        training = replace(samples.TRAINING, data=str(folder / "pairs.csv"), fit=fit, save_every=2, validate_every=3)
        (folder / "train.json").write_text(json.dumps(asdict(training)), encoding="utf-8")
        make_phantom((28, 24, 24), 8.0).write(folder / "volume")
        return main(_register(folder, folder / "result", 5)) or main(_register(folder, folder / "other", 6))

    ended = _run(make)
    assert ended.code == 0, ended.said
    return folder


def _register(inputs: Path, output: Path, seed: int, below: str = "") -> list[str]:
    names = [str(inputs / below / f"{role}.nii.gz") for role in ("fixed", "moving")]
    return ["register", *names, "--output", str(output), "--settings", str(inputs / "settings.json"), "--seed",
    str(seed),
            "--no-report", "--threads", "1", "--progress", "none", "--no-auto-mask", "--device", "cpu"]  # fmt: skip


def _of_result(command: str, output: str, *more: str) -> Callable[[Path, int], list[str]]:
    def arguments(folder: Path, variant: int) -> list[str]:
        inputs = _inputs()
        given = [str(inputs / word) if (inputs / word).exists() else word for word in more]
        flags = ["--inverse"] * variant if command == "warp" else []
        return [command, str(inputs / "result"), *given, "--output", str(folder / output), *flags]

    return arguments


def _convert(to: str) -> Callable[[Path, int], list[str]]:
    def arguments(folder: Path, variant: int) -> list[str]:
        source = str(_inputs() / ("result", "other")[variant])
        return ["convert", source, "--to", to, "--output", str(folder / "converted")]

    return arguments


def _breathe(folder: Path, variant: int) -> list[str]:
    ct = _inputs() / "volume"
    given = [f"--ct={ct / 'fixed.nii.gz'}", f"--masks={ct / 'fixed_mask.nii.gz'}"]
    return ["breathe", "--count", "1", "--seed", str(variant), "--output", str(folder), *given]


def _evaluate(folder: Path, variant: int) -> list[str]:
    inputs = _inputs()
    transform = inputs / "result" / ("transform.h5", "inverse_transform.h5")[variant]
    return [
        "evaluate",
        str(transform),
        "--fixed",
        str(inputs / "fixed.nii.gz"),
        "--output",
        str(folder / "report.json"),
    ]


COMMANDS = {
    "register": Command(lambda folder, variant: _register(_inputs(), folder, variant)),
    "warp .nii.gz": Command(_of_result("warp", "warped.nii.gz", "moving.nii.gz")),
    "warp .mhd": Command(_of_result("warp", "warped.mhd", "moving.nii.gz")),
    "warp points": Command(_of_result("warp", "points.csv", "fixed_landmarks.csv")),
    "warp labels": Command(_of_result("warp", "labels.nii.gz", "moving_mask.nii.gz", "--labels")),
    "convert ants": Command(_convert("ants")),
    "convert bids": Command(_convert("bids")),
    "convert compact": Command(_convert("compact")),
    "register 3D": Command(lambda folder, variant: _register(_inputs(), folder, variant, "volume")),
    "jacobian .nrrd": Command(_of_result("jacobian", "jacobian.nrrd")),
    "evaluate": Command(_evaluate),
    "train": Command(
        lambda folder, variant: ["train", str(_inputs() / "train.json"), "--output", str(folder), "--seed",
                                 str(variant), "--device", "cpu", "--threads", "1", "--progress", "none"],
        again=("--resume",), several=True,
    ),
    "breathe": Command(_breathe),
}  # fmt: skip
_HOWS = (
    "killed at an operation", "killed at a moment", "no room at an operation", "files that may not grow",
    "a full file system",
)  # fmt: skip
# each command comes once among the first 13, which are the quick part
FAULTS = [f"{command}, {_HOWS[(i + k) % len(_HOWS)]}" for k in range(len(_HOWS)) for i, command in enumerate(COMMANDS)]
FAULTS += ["batch, killed at a moment"]


def fault(kind: str, seed: int) -> Outcome:
    """One run with a fault drawn from ``seed``, and the next one; what must hold is in ``_judged``."""
    name, _, how = kind.partition(", ")
    rng = np.random.default_rng([seed, *kind.encode()])
    disk = Path(tempfile.mkdtemp(prefix="nephi-faults-"))
    try:
        if "system" in how and (reason := mounted(disk)):
            return Outcome("fault", kind, seed, SKIPPED, said=reason)
        (folder := disk / "out").mkdir()
        if name == "batch":
            return _batch(kind, seed, rng, folder)
        older = not COMMANDS[name].several and rng.random() < 0.7
        if older:
            shutil.copytree(_reference(name, 0)[0], folder, dirs_exist_ok=True)
        return _judged(kind, seed, name, how, rng, folder, older)
    finally:
        if disk.is_mount():
            unmount(disk)
        shutil.rmtree(disk, ignore_errors=True)


@functools.cache
def _pages(name: str, older: bool) -> int:
    """Pages of its file system that a run takes at most, besides those of an older result."""
    disk = kept_folder()
    assert not mounted(disk)
    try:
        (folder := disk / "out").mkdir()
        if older:
            shutil.copytree(_reference(name, 0)[0], folder, dirs_exist_ok=True)
        arguments, before = COMMANDS[name].arguments(folder, 1), taken(folder)
        ended = _run(lambda: main(arguments), disk=folder)
        assert ended.code == 0, ended.said
        return ended.pages - before
    finally:
        unmount(disk)


def _judged(kind: str, seed: int, name: str, how: str, rng, folder: Path, older: bool) -> Outcome:
    command = COMMANDS[name]
    wanted, operations, seconds = _reference(name, 1)
    before, after = (snapshot(_reference(name, 0)[0]) if older else {}), snapshot(wanted)
    at = int(rng.integers(1, operations + 1)) if "operation" in how else 0
    sizes = [path.stat().st_size for path in sorted(wanted.rglob("*")) if path.is_file() and path.stat().st_size > 1]
    limit = int(rng.integers(1, rng.choice(sizes))) if "grow" in how else 0
    moment_s = float(rng.uniform(0, seconds)) if "moment" in how else 0.0
    where = f"operation {at} of {operations}" if at else f"{limit} bytes"
    filler = None
    if "system" in how:
        pages = int(rng.integers(0, _pages(name, older)))
        filler = filled(folder, pages)
        where = f"{pages} of {_pages(name, older)} pages"
    done = "over an older result, " * older + (f"{moment_s:.3f} of {seconds:.2f} s" if moment_s else where)

    def outcome(result: str, said: str = "") -> Outcome:
        return Outcome("fault", kind, seed, result, done, said)

    arguments = command.arguments(folder, 1)
    code, said = (ended := _run(lambda: main(arguments), at, "killed" in how, limit, moment_s)).code, ended.said
    if filler is not None:
        filler.unlink()
    killed = code == -signal.SIGKILL
    if not killed and code not in (0, 2):
        return outcome(WRONG, f"code {code}: {said[-500:]}")
    complaint = [line for line in said.splitlines() if line.strip()]
    if code == 2 and (len(complaint) != 1 or not complaint[0].startswith("nephi: ")):
        return outcome(WRONG, f"not one line: {said[-500:]}")
    if code == 2 and not any(word in complaint[0] for word in _REASONS):
        return outcome(WRONG, f"another reason than the disk: {complaint[0]}")
    now = snapshot(folder)
    if not command.several:
        if code == 2 and now != before:
            return outcome(WRONG, f"refused, but {_differ(before, now)}")
        mixed = any(now[key] == before.get(key) != after.get(key) for key in now) and any(
            now[key] == after.get(key) != before.get(key) for key in now
        )
        if mixed or any(now[key] not in (before.get(key), after.get(key)) for key in now):
            return outcome(WRONG, f"mixed: {_differ(before, now)}")
    if code == 0 and now != after:
        return outcome(WRONG, f"code 0, but {_differ(after, now)}")
    resumable = (folder / "resume.safetensors").is_file()
    again = _run(lambda: main([*arguments, *(command.again if resumable else ())]))
    if again.code != 0:
        return outcome(WRONG, f"the next run ends with {again.code}: {again.said[-500:]}")
    if (now := snapshot(folder)) != after:
        return outcome(WRONG, f"after the next run {_differ(after, now)}")
    if left := [path.name for path in folder.rglob(".*")]:
        return outcome(WRONG, f"left after the next run: {left}")
    return outcome(LINE if code == 2 else RIGHT, complaint[0] if code == 2 else "killed" if killed else "ended before")


def snapshot(folder: Path) -> dict[str, str]:
    """A digest of every file that a user sees; of reports and logs without times, memory and paths."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        if "tensorboard" in path.parts:
            continue
        data = path.read_bytes()
        if path.suffix == ".h5":  # HDF5 keeps the time
            made = sitk.ReadTransform(str(path))
            data = repr((made.GetName(), made.GetFixedParameters(), made.GetParameters())).encode()
        if path.suffix in (".json", ".jsonl") and data.strip():
            entries = (
                [json.loads(line) for line in data.splitlines()] if path.suffix == ".jsonl" else [json.loads(data)]
            )
            changing = ("time_s", "peak_memory_mb", "seconds", "files", "inputs", "provenance", "peak_gpu_memory_mb")
            data = json.dumps([{k: v for k, v in e.items() if k not in changing} for e in entries]).encode()
        name = path.relative_to(folder).as_posix()
        found["cache" if name.startswith("cache/") else name] = hashlib.sha256(data).hexdigest()
    return found


def _differ(wanted: dict[str, str], found: dict[str, str]) -> str:
    names = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    return f"other files than expected: {names}"


@functools.cache
def _reference(name: str, variant: int) -> tuple[Path, int, float]:
    """The undisturbed result, the number of operations on files, and the seconds it took."""
    folder = kept_folder()
    arguments = COMMANDS[name].arguments(folder, variant)
    started = time.perf_counter()
    ended = _run(lambda: main(arguments))
    assert ended.code == 0, ended.said
    return folder, ended.operations, time.perf_counter() - started


@dataclass(frozen=True)
class _Ended:
    """``code``: negative for the signal that ended it. ``pages``: taken of the file system at most, as seen before
    operations on files."""

    code: int
    said: str  # on its stderr
    operations: int = 0  # on files
    pages: int = 0


def _run(
    work: Callable[[], int],
    at: int = 0,
    kill: bool = False,
    limit: int = 0,
    moment_s: float = 0.0,
    disk: Path = Path("/"),
) -> _Ended:
    """Run ``work`` in a fork.

    ``at``: the operation on files at which it is killed, or at and after which there is no room. ``limit``: the bytes a
    file may have. ``moment_s``: when it is killed. ``disk``: on the file system whose pages count.
    """
    read, said = os.pipe()  # no file, which the limit would cut
    for one in (read, said):
        os.set_blocking(one, False)
    with open(read, "rb") as heard, tempfile.TemporaryFile() as counted:
        child = os.fork()
        if child == 0:
            code = _CRASHED
            try:
                os.setsid()
                for number in (1, 2):
                    os.dup2(said if number == 2 else os.open(os.devnull, os.O_WRONLY), number)
                sys.stderr = os.fdopen(2, "w", buffering=1)
                if limit:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                else:
                    _hook(at, kill, counted.fileno(), disk)
                code = work()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if moment_s:
            time.sleep(moment_s)
            os.kill(child, signal.SIGKILL)
        os.close(said)
        end = time.monotonic() + LIMIT_S
        while (waited := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return _Ended(124, f"no end in {LIMIT_S} s")
            time.sleep(0.005)
        counted.seek(0)
        pages = [int(line) for line in counted.read().split()]
        code = os.waitstatus_to_exitcode(waited[1])
        return _Ended(code, (heard.read() or b"").decode("utf-8", "replace"), len(pages), max(pages, default=0))


def _hook(at: int, kill: bool, counted: int, disk: Path) -> None:
    count = 0

    def watch(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if at == 0:
            os.write(counted, b"%d\n" % taken(disk))
        elif count >= at and kill:
            os.kill(os.getpid(), signal.SIGKILL)
        elif count >= at and operation in ("mkdir", "write", "fsync"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    journal.watch = watch


def _batch(kind: str, seed: int, rng: np.random.Generator, folder: Path) -> Outcome:
    """A batch that is killed alone; its engines end, and the same command completes it."""
    inputs = _inputs()
    environment = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1])}
    command = [sys.executable, "-m", "nephi", "batch", str(inputs / "pairs.csv"), "--output", str(folder / "out"),
               "--settings", str(inputs / "settings.json"), "--no-report", "--threads", "1", "--device",
               "cpu"]  # fmt: skip
    moment_s = float(rng.uniform(0.5, 12))
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(moment_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3 * LIMIT_S)
    done = f"killed after {moment_s:.1f} s"
    if again.returncode != 0:
        said = f"the next run ends with {again.returncode}: {(again.stdout + again.stderr)[-400:]}"
        return Outcome("fault", kind, seed, WRONG, done, said)
    found = snapshot(folder / "out")
    for name in ("transform.h5", "warped.nii.gz", "registration.safetensors"):
        if f"a/{name}" not in found or found.get(f"a/{name}") != found.get(f"b/{name}"):
            return Outcome("fault", kind, seed, WRONG, done, f"{name} is missing, or of one pair not that of the other")
    left = [path.name for path in (folder / "out").rglob(".*")]
    table = (folder / "out" / "summary.csv").read_text(encoding="utf-8")
    if left or table.count(",done,") != 2:
        return Outcome("fault", kind, seed, WRONG, done, f"left: {left}; {table[-200:]}")
    return Outcome("fault", kind, seed, RIGHT, done)
