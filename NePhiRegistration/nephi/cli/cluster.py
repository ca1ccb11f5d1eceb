"""Batches as jobs of a cluster, through submitit: this process submits them, waits, and writes the table.

A job registers its pairs as a batch of one shard does. What is finished is read from the pairs' folders alone, so that
it does not matter how a job ended: pairs without a result and without a failure are submitted again.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from .. import process
from ..config import of_json, read_checked
from ..errors import NephiError
from ..files.cases import SETTINGS, Case
from ..files.folder import ResultFolder
from ..files.writing import output_folder, write_text
from ..limits import AtLeast, Count, Positive
from ..measure.verdict import read_tolerances
from ..paths import read_text_file, resolved
from ..settings import Settings
from .batch import failed, finished_report, pair_row, run_batch, write_summary
from .summarise import row_in

FOLDER = ".jobs"  # in the batch's: submitit's files and the jobs' output; no pair can be called so
_UNDER_WAY = "under_way.json"
_POLL_S = 2.0
_PATIENCE_S = 10.0
_WHOLE_RUN = 0.8  # of a job's time: one that was stopped earlier made way for others
_ROUNDS = 3  # consecutive submissions without a finished pair, after which the rest is abandoned


Natural = Annotated[int, AtLeast(0)]


@dataclass(frozen=True)
class ClusterSettings:
    """What a job asks the scheduler for, and how many there are."""

    partition: str | None = None
    account: str | None = None
    minutes: Count = 240  # a job that reaches its limit is requeued and resumes
    memory_gb: Positive = 8.0
    cpus: Count = 2
    gpus: Natural = 0
    array: Count = 100  # jobs at most; the pairs are shared out evenly
    at_once: Count = 256  # jobs that run at the same time at most
    requeues: Natural = 100
    warn_s: Natural = 90  # between the warning and the limit: time for a job to stop
    setup: tuple[str, ...] = ()  # shell commands before the job, such as module load
    sbatch: dict = field(default_factory=dict)  # further options of sbatch, by name

    def contradiction(self) -> str:
        for name, value in self.sbatch.items():
            sound = isinstance(value, (str, int, float)) and "\n" not in str(value)
            if not sound or not re.fullmatch(r"[A-Za-z][\w-]*", name):
                return f"sbatch holds {name!r}: {value!r}, must be options' names with a text or number each"
        return ""


def cluster_settings(options) -> ClusterSettings | None:
    """From the settings file, then single flags; None for the engine ``local``. Raises NephiError for invalid ones."""
    names = {"partition": "partition", "time": "minutes", "memory": "memory_gb", "gpus": "gpus", "array": "array"}
    given = {name: getattr(options, flag) for flag, name in names.items() if getattr(options, flag) is not None}
    if options.engine == "local":
        flags = [f"--{flag}" for flag, name in names.items() if name in given] + ["--cluster"] * bool(options.cluster)
        if flags:
            raise NephiError(f"{flags[0]} applies to jobs of a cluster: also give --engine slurm")
        return None
    return read_checked(ClusterSettings(), options.cluster, "cluster settings", **given)


@dataclass
class PairsJob:
    """What a job does: a batch of its pairs. submitit calls ``checkpoint`` before the time limit and requeues it."""

    pairs: list[Case]
    output: Path
    settings: Settings
    how: dict[str, Any]
    limit_s: float  # from the job's start to the warning
    stuck: list[Case] = field(default_factory=list)  # were being registered in a run of the job in which no pair ended
    began: tuple[float, int] | None = None  # when the job started, and the pairs that waited then

    def __call__(self) -> None:
        self.began = time.time(), len(self._waiting())
        for pair in self.stuck:  # else the job would be requeued for ever
            text = f"it did not end within a job's limit of {self.limit_s / 60:.0f} minutes; raise --time"
            failed(pair, self.output / pair.name, text)
        pairs = [pair for pair in self.pairs if pair not in self.stuck]
        run_batch(pairs, self.output, self.settings, **self.how, shared=True)

    def checkpoint(self) -> Any:
        """What the requeued job does."""
        began, waiting = self.began or (time.time(), 0), self._waiting()
        idle = time.time() - began[0] > _WHOLE_RUN * self.limit_s and len(waiting) >= began[1]
        stuck = [*self.stuck, *waiting[: self.how["jobs"] if idle else 0]]
        return _submitit().helpers.DelayedSubmission(replace(self, stuck=stuck, began=None))

    def _waiting(self) -> list[Case]:
        """The pairs that have neither a result nor a failure."""
        return [pair for pair in self.pairs if not _ended(pair, self.output, self.settings, self.how)]


def run_on_cluster(
    engine: str,
    pairs: list[Case],
    output: Path,
    settings: Settings,
    cluster: ClusterSettings,
    how: dict[str, Any],
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """Register the pairs that are not finished by jobs; returns the rows of ``output/summary.csv``.

    ``how``: further arguments of ``run_batch``. Jobs of an earlier start that are still under way are waited for
    first. An interrupt leaves the jobs of a scheduler alone. Raises NephiError where jobs cannot be submitted.
    """
    submitit = _submitit()
    output = output.resolve()
    pairs = [replace(pair, files={role: resolved(path) for role, path in pair.files.items()}) for pair in pairs]
    how = how | {"threads": how["threads"] or max(1, cluster.cpus // how["jobs"])}
    with output_folder(output, patience_s=_PATIENCE_S):
        write_text(output / SETTINGS, settings.to_json() + "\n")
    with output_folder(output / FOLDER) as folder:
        watch = _Watch(pairs, output, settings, tell)
        if earlier := _earlier(folder, tell):
            tell("jobs of an earlier start are under way; waiting for them")
            watch.until_ended(lambda: _queued(earlier))
        waiting = [p for p in pairs if not _finished(p, output, settings, how)]
        for pair in waiting:
            ResultFolder(output / pair.name).failure.unlink(missing_ok=True)
        idle = 0
        while waiting and idle < _ROUNDS:
            count = min(cluster.array, len(waiting))
            limit_s = max(60 * cluster.minutes - cluster.warn_s, 1)
            parts = [PairsJob(waiting[k::count], output, settings, how, limit_s) for k in range(count)]
            jobs = _submit(submitit, engine, folder, cluster, parts)
            write_text(folder / _UNDER_WAY, json.dumps([job.job_id for job in jobs] if engine == "slurm" else []))
            tell(f"{len(waiting)} pairs submitted as {count} jobs; their output is in {folder}")
            try:
                watch.until_ended(functools.partial(_under_way, engine, jobs))
            except BaseException:
                for job in jobs if engine == "processes" else ():
                    job.cancel(check=False)
                raise
            left = [pair for pair in waiting if not _ended(pair, output, settings, how)]
            idle = idle + 1 if len(left) == len(waiting) else 0
            waiting = left
        (folder / _UNDER_WAY).unlink(missing_ok=True)
        rows = watch.look()
        for pair in waiting:
            rows[pair.name] = pair_row(pair, "interrupted", error=f"its jobs ended without a result; see {folder}")
        with output_folder(output, patience_s=_PATIENCE_S):
            write_summary(list(rows.values()), output)
    return list(rows.values())


def _ended(pair: Case, output: Path, settings: Settings, how: dict[str, Any]) -> bool:
    return ResultFolder(output / pair.name).failure.exists() or _finished(pair, output, settings, how)


def _finished(pair: Case, output: Path, settings: Settings, how: dict[str, Any]) -> bool:
    tolerances = read_tolerances(how.get("tolerances"))
    folder = output / pair.name
    return finished_report(folder, pair, settings, how["auto_mask"], how["outputs"], tolerances) is not None


class _Watch:
    """Watches the folders of the pairs while jobs run: reports those that have ended and updates the table."""

    def __init__(self, pairs: list[Case], output: Path, settings: Settings, tell: Callable[[str], None]):
        self._pairs, self._output, self._tell = pairs, output, tell
        self._settings = json.loads(settings.to_json())
        self._ended: dict[str, dict] = {}

    def look(self) -> dict[str, dict]:
        rows = {}
        for pair in self._pairs:
            row = self._ended.get(pair.name) or row_in(self._output / pair.name, pair, self._settings)
            if row["status"] == "done":
                self._ended[pair.name] = row
            rows[pair.name] = row
        return rows

    def until_ended(self, under_way: Callable[[], bool]) -> None:
        told = len(self._ended)
        while under_way():
            started = time.perf_counter()
            rows = self.look()
            if len(self._ended) > told:
                told = len(self._ended)
                self._tell(f"{told} of {len(rows)} pairs done")
                with output_folder(self._output, patience_s=_PATIENCE_S):
                    write_summary(list(rows.values()), self._output)
            time.sleep(max(_POLL_S, 20 * (time.perf_counter() - started)))  # long lists are checked less often


def _submit(submitit, engine: str, folder: Path, cluster: ClusterSettings, parts: list[PairsJob]) -> list:
    environment = process.engine_environment()
    os.environ["PYTHONPATH"] = environment.get("PYTHONPATH", "")  # a job inherits it, and imports this very package
    try:
        if engine == "slurm":
            executor = submitit.SlurmExecutor(folder, max_num_timeout=cluster.requeues)
            wanted = {
                "job_name": "nephi",
                "partition": cluster.partition,
                "account": cluster.account,
                "time": cluster.minutes,
                "mem": f"{round(1024 * cluster.memory_gb)}MB",
                "cpus_per_task": cluster.cpus,
                "gpus_per_node": cluster.gpus or None,
                "array_parallelism": cluster.at_once,
                "signal_delay_s": cluster.warn_s,
                "setup": list(cluster.setup) or None,
                "additional_parameters": cluster.sbatch or None,
            }
            executor.update_parameters(**{name: value for name, value in wanted.items() if value is not None})
        else:
            executor = submitit.LocalExecutor(folder, max_num_timeout=cluster.requeues)
            executor.update_parameters(
                timeout_min=cluster.minutes, signal_delay_s=cluster.warn_s, gpus_per_node=cluster.gpus
            )
        with executor.batch():
            return [executor.submit(part) for part in parts]
    except (
        RuntimeError,
        OSError,
        ValueError,
        subprocess.CalledProcessError,
        submitit.core.utils.FailedJobError,
    ) as error:
        reason = " ".join(str(error).split())
        raise NephiError(f"cannot submit jobs to {engine}: {reason}") from None


def _under_way(engine: str, jobs: list) -> bool:
    if engine == "slurm":
        return _queued([job.job_id for job in jobs])
    return not all(job.done() for job in jobs)


def _queued(job_ids: list[str]) -> bool:
    """Whether one of the jobs is in SLURM's queue; also true while the controller does not answer.

    submitit itself asks the accounting database, which not every cluster has.
    """
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    try:
        answer = process.answer(["squeue", "--noheader", "--format=%A", f"--jobs={','.join(arrays)}"], timeout_s=60)
    except subprocess.TimeoutExpired:
        return True
    except OSError as error:
        raise NephiError(f"cannot query the jobs: squeue: {error.strerror}") from None
    if answer.returncode == 0:
        return bool(answer.stdout.strip())
    return "Invalid job id" not in answer.stderr  # the controller forgets jobs that ended some minutes ago


def _earlier(folder: Path, tell: Callable[[str], None]) -> list[str]:
    """The jobs that a former start left in the queue."""
    path = folder / _UNDER_WAY
    if not os.path.lexists(path):
        return []
    try:
        job_ids = of_json(read_text_file(path, "jobs"))
        if not isinstance(job_ids, list) or not all(re.fullmatch(r"\d+(_\d+)?", job_id) for job_id in job_ids):
            raise ValueError
    except (NephiError, ValueError, TypeError):
        tell(f"{path}, the list of jobs of an earlier start, is damaged: they are not waited for")
        return []
    return job_ids if job_ids and _queued(job_ids) else []


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise NephiError('--engine needs the package submitit; install it: pip install "nephi[cluster]"') from None
    return submitit
