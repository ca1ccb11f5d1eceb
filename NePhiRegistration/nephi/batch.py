"""Many pairs: each registered by a process of its own, with one table of all results.

What is finished is known by the pairs' own reports, so that a batch that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import NephiError
from .inputs import ROLES, TRAINING_ROLES, fingerprints
from .settings import Settings

SUMMARY, SETTINGS, LOG, REPORT = "summary.csv", "settings.json", "nephi.log", "report.json"
COLUMNS = (
    "name", "status", "error", "tre_before_mm", "tre_mm", "folds", "folds_percent", "dice_before", "dice",
    "inverse_consistency_mm", "volume_fixed_ml", "volume_moving_ml", "volume_change_percent", "seconds",
)  # fmt: skip
_PATIENCE_S = 5.0  # between asking a process to end and ending it


@dataclass(frozen=True)
class Pair:
    """A row of the list: a name, which is its folder's, and the files by role."""

    name: str
    files: dict[str, Path]


def read_pairs(path: str | Path) -> list[Pair]:
    """The rows of a CSV file (comma, semicolon or tab); its paths are relative to it. Raises NephiError.

    A list for training serves as well: its further columns are read, and of use there only.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise NephiError(f"cannot read the list of pairs {path}: {reason}") from None
    lines = text.splitlines()
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = list(csv.reader(lines, delimiter=separator))
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise NephiError(f"{path} lists no pairs: a line with the columns' names and a line a pair are expected")
    head, known = [name.lower() for name in rows[0]], ("name", *ROLES, *TRAINING_ROLES)
    wrong = [name for name in head if name not in known] + [name for name in known[:3] if name not in head]
    if wrong or len(set(head)) < len(head):
        columns = f"name, fixed, moving and any of {', '.join(known[3:])}"
        raise NephiError(f"{path}: the columns must be {columns}; look at {', '.join(wrong) or 'those given twice'}")
    pairs = []
    for row in rows[1:]:
        if len(row) > len(head):
            raise NephiError(f"{path}: the row of '{row[0]}' has {len(row)} cells, the head {len(head)}")
        cells = dict(zip(head, row, strict=False))
        pairs.append(Pair(cells.pop("name"), {role: path.parent / cell for role, cell in cells.items() if cell}))
    seen = set()
    for name in (pair.name for pair in pairs):
        if not name or name.startswith(".") or any(c in '/\\:*?"<>|' for c in name):
            raise NephiError(f"{path}: '{name}' cannot be a pair's name, as a folder gets it")
        if name.lower() in seen:
            raise NephiError(f"{path}: two pairs are named '{name}'")
        seen.add(name.lower())
    return pairs


def run_batch(
    pairs: list[Pair],
    output: Path,
    settings: Settings,
    *,
    jobs: int = 1,
    auto_mask: bool = True,
    device: str = "auto",
    threads: int | None = None,
    pictures: bool = True,
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """Register every pair that is not finished, ``jobs`` at a time; returns the rows of ``output/summary.csv``.

    The table is kept up to date as pairs end. An interrupt ends the processes, leaves what is finished, and is
    raised again.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / SETTINGS).write_text(settings.to_json() + "\n", encoding="utf-8")
    options = ["--settings", str(output / SETTINGS), "--device", device, "--progress", "none"]
    if threads or jobs > 1:
        options += ["--threads", str(threads or max(1, (os.cpu_count() or 1) // jobs))]
    options += ["--no-auto-mask"] * (not auto_mask) + ["--no-report"] * (not pictures)
    rows = {pair.name: _row(pair, "waiting") for pair in pairs}

    def note(pair: Pair, row: dict, when: str = "") -> None:
        rows[pair.name] = row
        with contextlib.suppress(OSError):  # open in a spreadsheet, say: it is written again at the end
            write_summary(list(rows.values()), output)
        ended = sum(r["status"] not in ("waiting", "running") for r in rows.values())
        if row["status"] != "running":
            tell(f"[{ended}/{len(pairs)}] {_line(row)}{when}")

    waiting, running = [], {}
    for pair in pairs:
        report = finished_report(output / pair.name, pair, settings, auto_mask)
        if report is None:
            waiting.append(pair)
        else:
            note(pair, _row(pair, "done", report), " (earlier)")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                pair = waiting.pop(0)
                try:
                    running[_start(pair, output / pair.name, options)] = pair, time.perf_counter()
                    note(pair, _row(pair, "running"))
                except (NephiError, OSError) as error:
                    note(pair, _row(pair, "failed", error=str(error)))
            for process in [p for p in running if p.poll() is not None]:
                pair, started = running.pop(process)
                note(pair, _ended(pair, output / pair.name, process.returncode, time.perf_counter() - started))
            time.sleep(0.05)
    finally:
        for process in running:
            end_process(process)
        for pair, _ in running.values():
            rows[pair.name] = _row(pair, "interrupted")
        write_summary(list(rows.values()), output)
    return list(rows.values())


def finished_report(folder: Path, pair: Pair, settings: Settings, auto_mask: bool) -> dict | None:
    """The report of a pair that was made from the same files with the same settings, else None."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = fingerprints(pair.files, auto_mask, settings.align, model=settings.model), json.loads(settings.to_json())
    return report if (report.get("inputs"), report.get("settings")) == wanted else None


def _start(pair: Pair, folder: Path, options: list[str]) -> subprocess.Popen:
    for role in ("fixed", "moving"):
        if role not in pair.files:
            raise NephiError(f"no {role} image is given")
    folder.mkdir(exist_ok=True)
    files = {role: str(path) for role, path in pair.files.items() if role in ROLES}
    command = [sys.executable, "-m", __package__, "register", files.pop("fixed"), files.pop("moving")]
    command += ["--output", str(folder), *options]
    for role, path in files.items():
        command += [f"--{role.replace('_', '-')}", path]
    package = str(Path(__file__).resolve().parents[1])
    # behind what is there: where the package is installed, its folder holds all others too
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), package)))}
    # a group of its own: the interpreter may be a launcher whose child has to end with it
    group = {"start_new_session": True} if os.name == "posix" else {"creationflags": subprocess.CREATE_NO_WINDOW}
    with open(folder / LOG, "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, **group
        )


def end_process(process: subprocess.Popen) -> None:
    """End a process and its children: asked first, so that it can tidy up, then not asked."""
    if os.name != "posix":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    for number, patience_s in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def _ended(pair: Pair, folder: Path, code: int, seconds: float) -> dict:
    if code == 0:
        return _row(pair, "done", json.loads((folder / REPORT).read_text(encoding="utf-8")))
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    told = [line.removeprefix("nephi: ") for line in lines if line.startswith("nephi: ")]
    if code < 0:  # POSIX: a signal ended it
        error = f"ended by signal {-code}" + (", perhaps for lack of memory" if code == -signal.SIGKILL else "")
    else:
        error = (told or lines or [f"ended with code {code}"])[-1]
    return _row(pair, "failed", error=error, seconds=seconds)


def _row(pair: Pair, status: str, report: dict | None = None, error: str = "", seconds: float | None = None) -> dict:
    row = {"name": pair.name, "status": status, "error": error, "seconds": seconds}
    if report is not None:
        tre, dice, volume = (report.get(key) for key in ("tre_mm", "dice", "volume"))
        row |= {
            "tre_before_mm": tre and tre["before"]["mean"],
            "tre_mm": tre and tre["after"]["mean"],
            "folds": report["folds"]["count"],
            "folds_percent": report["folds"]["percent"],
            "dice_before": dice and dice["before"],
            "dice": dice and dice["after"],
            "inverse_consistency_mm": report["inverse_consistency_mm"]["mean"],
            "volume_fixed_ml": volume and volume["fixed_ml"],
            "volume_moving_ml": volume and volume["moving_ml"],
            "volume_change_percent": volume and 100 * (volume["ratio"] - 1),
            "seconds": report["time_s"]["wall"],
        }
    return row


def _line(row: dict) -> str:
    if row["status"] != "done":
        return f"{row['name']}: {row['status']}: {row['error']}"
    tre = "" if row["tre_mm"] is None else f"TRE {row['tre_mm']:.2f} mm, "
    return f"{row['name']}: done, {tre}{row['folds']} folded voxels, {row['seconds']:.0f} s"


def write_summary(rows: list[dict], output: Path) -> None:
    """``summary.csv``, replaced at once."""
    scratch = output / f".{SUMMARY}"
    with open(scratch, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            cells = (row.get(column) for column in COLUMNS)
            table.writerow([f"{c:.6g}" if isinstance(c, float) else "" if c is None else c for c in cells])
    os.replace(scratch, output / SUMMARY)
