"""Registers many pairs, each in its own process, and keeps one table of all results.

Finished pairs are recognised by their own reports, so that an interrupted batch resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import process
from ..errors import NephiError
from ..files.cases import GUIDES_OF_BOTH, ROLES, Case, fingerprints, read_pairs
from ..files.folder import DEFAULT_OUTPUTS, ResultFolder
from ..files.writing import output_folder, write_csv, write_text
from ..measure.report import Report
from ..measure.verdict import Tolerances, read_tolerances
from ..paths import read_text_file
from ..runfolder import RunFolder, remove_abandoned
from ..settings import Settings
from .options import outputs_from, settings_from

SUMMARY, SETTINGS = "summary.csv", "settings.json"
_ORPHANS_S = 10.0  # the engines of a batch that was killed may need this long to end
COLUMNS = (
    "name", "status", "error", "verdict", "reasons", "expected_error_mm", "error_bound_mm",
    "tre_before_mm", "tre_mm", "folds", "folds_percent", "dice_before", "dice",
    "inverse_consistency_mm", "volume_fixed_ml", "volume_moving_ml", "volume_change_percent", "seconds",
)  # fmt: skip


def run_batch(
    pairs: list[Case],
    output: Path,
    settings: Settings,
    *,
    jobs: int = 1,
    auto_mask: bool = True,
    device: str = "auto",
    threads: int | None = None,
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS,
    tolerances: Path | None = None,
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """Register every pair that is not finished, ``jobs`` at a time; returns the rows of ``output/summary.csv``.

    The table is kept up to date as pairs end. An interrupt ends the processes, leaves what is finished, and is
    raised again; where this process is killed, the others end too. ``tolerances``: a file, see ``read_tolerances``.
    """
    options = ["--device", device, "--progress", "none"]
    if threads or jobs > 1:
        options += ["--threads", str(threads or max(1, (os.cpu_count() or 1) // jobs))]
    options += ["--no-auto-mask"] * (not auto_mask) + ["--outputs", ",".join(outputs)]
    options += [] if tolerances is None else ["--tolerances", str(tolerances)]
    wanted = read_tolerances(tolerances)
    rows = {pair.name: _row(pair, "waiting") for pair in pairs}

    def note(pair: Case, row: dict, when: str = "") -> None:
        rows[pair.name] = row
        with contextlib.suppress(NephiError):  # open in a spreadsheet, say: it is written again at the end
            write_summary(list(rows.values()), output)
        ended = sum(r["status"] not in ("waiting", "running") for r in rows.values())
        if row["status"] != "running":
            tell(f"[{ended}/{len(pairs)}] {_line(row)}{when}")

    temporary = Path(tempfile.gettempdir())
    remove_abandoned(temporary)
    waiting: list[Case] = []
    running: dict[subprocess.Popen[bytes], tuple[Case, float]] = {}
    with output_folder(output):
        write_text(output / SETTINGS, settings.to_json() + "\n")
        owner = RunFolder(temporary)
        try:
            for pair in pairs:
                report = finished_report(output / pair.name, pair, settings, auto_mask, outputs, wanted)
                if report is None:
                    waiting.append(pair)
                else:
                    note(pair, _row(pair, "done", report), " (earlier)")
            while waiting or running:
                while waiting and len(running) < jobs:
                    pair = waiting.pop(0)
                    try:
                        child = _start(pair, output / pair.name, settings, options, owner)
                        running[child] = pair, time.perf_counter()
                        note(pair, _row(pair, "running"))
                    except (NephiError, OSError) as error:
                        note(pair, _row(pair, "failed", error=str(error)))
                for ended in [child for child in running if child.poll() is not None]:
                    pair, started = running.pop(ended)
                    note(pair, _ended(pair, output / pair.name, ended.returncode, time.perf_counter() - started))
                time.sleep(0.05)
        finally:
            for child in running:
                process.end(child, process.PATIENCE_S)
            owner.remove()
            for pair, _ in running.values():
                rows[pair.name] = _row(pair, "interrupted")
            write_summary(list(rows.values()), output)
    return list(rows.values())


def finished_report(
    folder: Path,
    pair: Case,
    settings: Settings,
    auto_mask: bool,
    outputs: tuple[str, ...] = (),
    tolerances: Tolerances | None = None,
) -> Report | None:
    """The report of a pair that was made from the same files with the same settings and has all ``outputs``, or None.

    ``tolerances``: those that its verdict has to go by, if that matters.
    Reports of before 0.2 do not say what was written; by default it was all.
    """
    report = _report(folder)
    if report is None:
        return None
    inputs = fingerprints(pair.files, auto_mask, settings.align, model=settings.model, series=pair.series)
    missing = set(outputs) - set(DEFAULT_OUTPUTS if report.outputs is None else report.outputs)
    same = (report.inputs, report.settings) == (inputs, json.loads(settings.to_json()))
    judged = report.verdict is not None and tolerances is not None and report.verdict.tolerances == tolerances.to_dict()
    return report if same and not missing and (judged or tolerances is None) else None


def _report(folder: Path) -> Report | None:
    """The report in a result folder, None where there is none, or what is no report."""
    try:
        return Report.from_json(read_text_file(ResultFolder.opened(folder).report, "report").decode())
    except (NephiError, ValueError):
        return None


def _start(pair: Case, folder: Path, settings: Settings, options: list[str], owner: RunFolder) -> subprocess.Popen:
    for role in ("fixed", "moving"):
        if role not in pair.files:
            raise NephiError(f"no {role} image is given")
    with output_folder(folder, patience_s=_ORPHANS_S):
        write_text(folder / SETTINGS, settings.to_json() + "\n")
        ResultFolder(folder).log.unlink(missing_ok=True)
    files = {role: str(path) for role, path in pair.files.items() if role in ROLES}
    arguments = [
        files.pop("fixed"),
        files.pop("moving"),
        "--output",
        str(folder),
        "--settings",
        str(folder / SETTINGS),
        *options,
    ]
    for kind in GUIDES_OF_BOTH:
        both = [files.pop(f"{image}_{kind}", None) for image in ("fixed", "moving")]
        given = [path for path in both if path is not None]
        if len(given) == 1:
            raise NephiError(f"{kind} are given of one image alone; give fixed_{kind} and moving_{kind}")
        arguments += [f"--{kind.replace('_', '-')}", *given] if given else []
    for role, path in files.items():
        arguments += [f"--{role.replace('_', '-')}", path]
    for uid in pair.series:
        arguments += ["--series", uid]
    with open(ResultFolder(folder).log, "xb") as log:
        return process.start(process.engine_command("register", *arguments, owner=owner), stdout=log, stderr=log)


def _ended(pair: Case, folder: Path, code: int, seconds: float) -> dict:
    report = _report(folder) if code == 0 else None
    if report is not None:
        return _row(pair, "done", report)
    lines = []
    if code == 0:
        lines = [f"its report is gone, or damaged: {ResultFolder(folder).report}"]
    with contextlib.suppress(OSError):  # the folder may have been removed
        text = ResultFolder(folder).log.read_text(encoding="utf-8", errors="replace")
        lines = lines or [line.strip() for line in text.split("\n") if line.strip()]
    complaints = [line.removeprefix("nephi: ") for line in lines if line.startswith("nephi: ")]
    if code < 0:  # POSIX: a signal ended it
        error = f"ended by signal {-code}" + (", perhaps for lack of memory" if code == -signal.SIGKILL else "")
    else:
        error = (complaints or lines or [f"ended with code {code}"])[-1]
    return _row(pair, "failed", error=error, seconds=seconds)


def _row(pair: Case, status: str, report: Report | None = None, error: str = "", seconds: float | None = None) -> dict:
    row: dict[str, Any] = {"name": pair.name, "status": status, "error": error, "seconds": seconds}
    if report is not None:
        tre, dice, volume, consistency = report.tre_mm, report.dice, report.volume, report.inverse_consistency_mm
        row |= {
            "verdict": report.verdict and report.verdict.outcome,
            "reasons": report.verdict and " ".join(report.verdict.reasons),
            "expected_error_mm": report.error_estimate_mm and report.error_estimate_mm.mean,
            "error_bound_mm": report.error_estimate_mm and report.error_estimate_mm.bound_mean,
            "tre_before_mm": tre and tre.before and tre.before.mean,
            "tre_mm": tre and tre.after.mean,
            "folds": report.folds.count,
            "folds_percent": report.folds.percent,
            "dice_before": dice and dice.before,
            "dice": dice and dice.after,
            "inverse_consistency_mm": consistency and consistency.mean,
            "volume_fixed_ml": volume and volume.fixed_ml,
            "volume_moving_ml": volume and volume.moving_ml,
            "volume_change_percent": volume and 100 * (volume.ratio - 1),
            "seconds": report.time_s and report.time_s.get("wall"),
        }
    return row


def _line(row: dict) -> str:
    if row["status"] != "done":
        return f"{row['name']}: {row['status']}: {row['error']}"
    tre = "" if row["tre_mm"] is None else f"TRE {row['tre_mm']:.2f} mm, "
    seconds = "" if row["seconds"] is None else f", {row['seconds']:.0f} s"
    verdict = f"{row['verdict']}, " if row.get("verdict") else ""
    return f"{row['name']}: done, {verdict}{tre}{row['folds']} folded voxels{seconds}"


def write_summary(rows: list[dict], output: Path) -> None:
    write_csv(output / SUMMARY, [COLUMNS, *([row.get(column) for column in COLUMNS] for row in rows)])


def batch_command(options) -> int:
    settings = settings_from(options)
    if options.jobs < 1:
        raise NephiError(f"--jobs {options.jobs}: must be at least 1")
    outputs = outputs_from(options)
    pairs, output = read_pairs(options.pairs), Path(options.output)
    try:
        rows = run_batch(
            pairs,
            output,
            settings,
            jobs=options.jobs,
            auto_mask=not options.no_auto_mask,
            device=options.device,
            threads=options.threads,
            outputs=outputs,
            tolerances=None if options.tolerances is None else Path(options.tolerances).absolute(),
            tell=lambda line: print(line, flush=True),
        )
    except OSError as error:
        raise NephiError(f"cannot write to {error.filename or output}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        print("nephi: interrupted; the same command resumes with the pairs that are not finished", file=sys.stderr)
        return 130
    failed = sum(row["status"] != "done" for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} pairs done; {output / SUMMARY}")
    return 1 if failed else 0
