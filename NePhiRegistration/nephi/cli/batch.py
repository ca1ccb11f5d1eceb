"""Registers many pairs, each in its own process, and keeps one table of all results.

Finished pairs are recognised by their own reports, so that an interrupted batch resumes where it stopped. A pair that
failed leaves a file with the reason, so that a table can be written by whoever reads the folders.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import process
from ..errors import NephiError
from ..files.cases import GUIDES_OF_BOTH, ROLES, SETTINGS, SUMMARY, Case, fingerprints
from ..files.folder import DEFAULT_OUTPUTS, ResultFolder
from ..files.writing import claim, output_folder, without_locks, write_csv, write_text
from ..measure.report import Report
from ..measure.verdict import Tolerances, read_tolerances
from ..paths import read_text_file
from ..runfolder import RunFolder, remove_abandoned
from ..settings import Settings

_ORPHANS_S = 10.0  # the engines of a batch that was killed may need this long to end
_SHARED_S = 60.0  # and the many jobs of a cluster that begin at the same moment this long to pass one by one
_POLL_S, _POLL_ELSEWHERE_S = 0.05, 1.0
_RARELY = 50  # times as long as writing the table takes passes before it is written again
COLUMNS = (
    "name", "status", "error", "verdict", "reasons", "expected_error_mm", "error_bound_mm",
    "tre_before_mm", "tre_mm", "tre_within_2_mm", "folds", "folds_percent", "dice_before", "dice", "dice_labels",
    "surface_mm", "hausdorff_95_mm",
    "inverse_consistency_mm", "fields_disagreement_mm", "volume_fixed_ml", "volume_moving_ml", "volume_change_percent",
    "seconds",
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
    also: Sequence[str] = (),
    shared: bool = False,
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """Register every unfinished pair, ``jobs`` at a time; returns the rows of ``output/summary.csv``.

    The table is updated as pairs end. An interrupt ends the processes, leaves what is finished, and is raised again; if
    this process is killed, the others end too. ``tolerances``: a file, see ``read_tolerances``. ``shared``: other such
    batches write to ``output`` at the same time: no table is written, and pairs that they are registering are waited
    for. Several visible GPUs are distributed among the processes.
    """
    options = _engine_options(jobs, auto_mask, device, threads, outputs, tolerances, also)
    judged_by = read_tolerances(tolerances)
    table = _Table(pairs, None if shared else output, tell)
    environments = gpu_environments(jobs if device in ("auto", "cuda") else 1)
    temporary = Path(tempfile.gettempdir())
    remove_abandoned(temporary)

    def finished(pair: Case) -> bool:
        report = finished_report(output / pair.name, pair, settings, auto_mask, outputs, judged_by)
        if report is not None:
            without_locks(output / pair.name)
            table.note(pair_row(pair, "done", report), " (earlier)")
        return report is not None

    with contextlib.ExitStack() as stack:
        with output_folder(output, patience_s=_SHARED_S) if shared else contextlib.nullcontext():
            if not shared:
                stack.enter_context(output_folder(output))
            _write_settings(output, settings)
        engines = _Engines(output, settings, options, environments, table, RunFolder(temporary))
        try:
            waiting = [pair for pair in pairs if not finished(pair)]
            while waiting or engines.running:
                elsewhere = []
                while waiting and len(engines.running) < jobs:
                    pair = waiting.pop(0)
                    if not engines.begin(pair, finished):
                        elsewhere.append(pair)
                waiting += elsewhere
                engines.collect()
                table.write_if_due()
                time.sleep(_POLL_ELSEWHERE_S if elsewhere else _POLL_S)
        finally:
            engines.end()
            table.write()
    return list(table.rows.values())


def _engine_options(
    jobs: int,
    auto_mask: bool,
    device: str,
    threads: int | None,
    outputs: tuple[str, ...],
    tolerances: Path | None,
    also: Sequence[str],
) -> list[str]:
    """Options of ``nephi register`` that are the same for all pairs."""
    options = ["--device", device, "--progress", "none"]
    if threads or jobs > 1:
        options += ["--threads", str(threads or max(1, (os.cpu_count() or 1) // jobs))]
    options += ["--no-auto-mask"] * (not auto_mask) + ["--outputs", ",".join(outputs)]
    options += [] if tolerances is None else ["--tolerances", str(tolerances)]
    return options + [f"--also={name}" for name in also]


@dataclass(frozen=True, eq=False)
class _Run:
    """A pair that is being registered."""

    child: subprocess.Popen[bytes]
    pair: Case
    started: float
    environment: dict[str, str]
    release: Callable[[], None]  # the claim to the pair's folder


@dataclass(frozen=True, eq=False)
class _Engines:
    """The processes of a batch, each with the claim to the folder of its pair."""

    output: Path
    settings: Settings
    options: list[str]
    environments: list[dict[str, str]]  # which processes share out
    table: _Table
    owner: RunFolder
    running: list[_Run] = field(default_factory=list)

    def begin(self, pair: Case, finished: Callable[[Case], bool]) -> bool:
        """Whether the pair has begun, or ended; not where another batch is at it."""
        folder = self.output / pair.name
        try:
            release = claim(folder)
            if release is None:
                return False
            with contextlib.ExitStack() as claimed:
                claimed.callback(release)
                if finished(pair):  # meanwhile, by another batch
                    return True
                environment = min(self.environments, key=[run.environment for run in self.running].count)
                child = _start(pair, folder, self.settings, self.options, self.owner, environment)
                run = _Run(child, pair, time.perf_counter(), environment, claimed.pop_all().close)
                self.running.append(run)
                self.table.note(pair_row(pair, "running"))
        except (NephiError, OSError) as error:
            self.table.note(failed(pair, folder, str(error)))
        return True

    def collect(self) -> None:
        """Record the pairs that have ended."""
        for run in [run for run in self.running if run.child.poll() is not None]:
            self.running.remove(run)
            seconds = time.perf_counter() - run.started
            self.table.note(_ended(run.pair, self.output / run.pair.name, run.child.returncode, seconds))
            run.release()

    def end(self) -> None:
        """End all processes that still run."""
        for run in self.running:
            process.end(run.child, process.PATIENCE_S)
            run.release()
            self.table.rows[run.pair.name] = pair_row(run.pair, "interrupted")
        self.owner.remove()


def _write_settings(output: Path, settings: Settings) -> None:
    """Existing folders are not created again, which takes time on the file system of a cluster."""
    text = settings.to_json() + "\n"
    with contextlib.suppress(NephiError):
        if read_text_file(output / SETTINGS, "settings") == text.encode():
            return
    write_text(output / SETTINGS, text)


def gpu_environments(jobs: int) -> list[dict[str, str]]:
    """Additions to the environments of ``jobs`` processes, so that each sees one of the visible GPUs."""
    numbers = process.visible_gpus() if jobs > 1 else []
    return [{"CUDA_VISIBLE_DEVICES": number} for number in numbers] if len(numbers) > 1 else [{}]


class _Table:
    """The rows of a batch: reported as pairs end, and written to ``output`` unless it is None."""

    def __init__(self, pairs: list[Case], output: Path | None, tell: Callable[[str], None]):
        self.rows = {pair.name: pair_row(pair, "waiting") for pair in pairs}
        self._output, self._tell = output, tell
        self._ended = 0
        self._changed, self._next = True, 0.0

    def note(self, row: dict, when: str = "") -> None:
        self.rows[row["name"]] = row
        self._changed = True
        if row["status"] != "running":
            self._ended += 1
            self._tell(f"[{self._ended}/{len(self.rows)}] {_line(row)}{when}")

    def write_if_due(self) -> None:
        """Long tables are written less often, so that this takes little of the time."""
        started = time.perf_counter()
        if self._changed and started >= self._next:
            with contextlib.suppress(NephiError):  # for instance open in a spreadsheet: it is written again at the end
                self.write()
            now = time.perf_counter()
            self._next = now + _RARELY * (now - started)

    def write(self) -> None:
        if self._output is not None:
            write_summary(list(self.rows.values()), self._output)
        self._changed = False


def finished_report(
    folder: Path,
    pair: Case,
    settings: Settings,
    auto_mask: bool,
    outputs: tuple[str, ...] = (),
    tolerances: Tolerances | None = None,
) -> Report | None:
    """The report of a pair made from the same files with the same settings and with all ``outputs``, or None.

    ``tolerances``: those that its verdict must use, if that matters. Reports from before version 0.2 do not list what
    was written; by default it was everything.
    """
    report = report_of(folder)
    if report is None:
        return None
    written = DEFAULT_OUTPUTS if report.outputs is None else report.outputs
    if report.settings != _plain(settings) or not set(outputs) <= set(written):
        return None
    inputs = fingerprints(pair.files, auto_mask, settings.align, model=settings.model, series=pair.series)
    judged = report.verdict is not None and tolerances is not None and report.verdict.tolerances == tolerances.to_dict()
    return report if report.inputs == inputs and (judged or tolerances is None) else None


@functools.lru_cache(maxsize=4)
def _plain(settings: Settings) -> dict:
    """As in a report."""
    return json.loads(settings.to_json())


def report_of(folder: Path) -> Report | None:
    """The report in a result folder; None if it is missing or invalid."""
    try:
        return Report.from_json(read_text_file(ResultFolder.opened(folder).report, "report").decode())
    except (NephiError, ValueError):
        return None


def _start(
    pair: Case, folder: Path, settings: Settings, options: list[str], owner: RunFolder, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    for role in ("fixed", "moving"):
        if role not in pair.files:
            raise NephiError(f"no {role} image is given")
    with output_folder(folder, patience_s=_ORPHANS_S):
        write_text(folder / SETTINGS, settings.to_json() + "\n")
        ResultFolder(folder).log.unlink(missing_ok=True)
        ResultFolder(folder).failure.unlink(missing_ok=True)
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
            raise NephiError(f"{kind} are given for only one image; give both fixed_{kind} and moving_{kind}")
        arguments += [f"--{kind.replace('_', '-')}", *given] if given else []
    for role, path in files.items():
        arguments += [f"--{role.replace('_', '-')}", path]
    for uid in pair.series:
        arguments += ["--series", uid]
    with open(ResultFolder(folder).log, "xb") as log:
        command = process.engine_command("register", *arguments, owner=owner)
        return process.start(command, stdout=log, stderr=log, environment=process.engine_environment() | environment)


def _ended(pair: Case, folder: Path, code: int, seconds: float) -> dict:
    report = report_of(folder) if code == 0 else None
    if report is not None:
        return pair_row(pair, "done", report)
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
    return failed(pair, folder, error, seconds)


def failed(pair: Case, folder: Path, error: str, seconds: float | None = None) -> dict:
    """The row of a pair without a result; the reason is saved in its folder, if that is writable."""
    with contextlib.suppress(NephiError), output_folder(folder):
        write_text(ResultFolder(folder).failure, json.dumps({"error": error, "seconds": seconds}) + "\n")
    return pair_row(pair, "failed", error=error, seconds=seconds)


def pair_row(
    pair: Case, status: str, report: Report | None = None, error: str = "", seconds: float | None = None
) -> dict:
    """A row of ``summary.csv``; its columns are ``COLUMNS``."""
    row: dict[str, Any] = {"name": pair.name, "status": status, "error": error, "seconds": seconds}
    if report is not None:
        tre, dice, volume = report.tre_mm, report.dice, report.volume
        consistency, disagreement = report.inverse_consistency_mm, report.fields_disagreement_mm
        row |= {
            "verdict": report.verdict and report.verdict.outcome,
            "reasons": report.verdict and " ".join(report.verdict.reasons),
            "expected_error_mm": report.error_estimate_mm and report.error_estimate_mm.mean,
            "error_bound_mm": report.error_estimate_mm and report.error_estimate_mm.bound_mean,
            "tre_before_mm": tre and tre.before and tre.before.mean,
            "tre_mm": tre and tre.after.mean,
            "tre_within_2_mm": tre and tre.within_2_mm,
            "folds": report.folds.count,
            "folds_percent": report.folds.percent,
            "dice_before": dice and dice.before,
            "dice": dice and dice.after,
            **_of_labels(report),
            "inverse_consistency_mm": consistency and consistency.mean,
            "fields_disagreement_mm": disagreement and disagreement.mean,
            "volume_fixed_ml": volume and volume.fixed_ml,
            "volume_moving_ml": volume and volume.moving_ml,
            "volume_change_percent": volume and 100 * (volume.ratio - 1),
            "seconds": report.time_s and report.time_s.get("wall"),
        }
    return row


def _of_labels(report: Report) -> dict[str, float | None]:
    """Means over the labels; without any the distances are those of the masks."""
    if not report.labels:
        apart = report.surface_mm
        return {} if apart is None else {"surface_mm": apart.mean, "hausdorff_95_mm": apart.hausdorff_95}
    columns = {"dice_labels": "dice", "surface_mm": "surface_mm", "hausdorff_95_mm": "hausdorff_95_mm"}
    found = {to: [row[name] for row in report.labels if row[name] is not None] for to, name in columns.items()}
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def _line(row: dict) -> str:
    if row["status"] != "done":
        return f"{row['name']}: {row['status']}: {row['error']}"
    tre = "" if row["tre_mm"] is None else f"TRE {row['tre_mm']:.2f} mm, "
    seconds = "" if row["seconds"] is None else f", {row['seconds']:.0f} s"
    verdict = f"{row['verdict']}, " if row.get("verdict") else ""
    return f"{row['name']}: done, {verdict}{tre}{row['folds']} folded voxels{seconds}"


def write_summary(rows: list[dict], output: Path) -> None:
    write_csv(output / SUMMARY, [COLUMNS, *([row.get(column) for column in COLUMNS] for row in rows)])
