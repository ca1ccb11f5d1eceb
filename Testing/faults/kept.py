"""What NePhi or a site keeps and reads again, as the samples: cohorts, jobs, limits, records and journals."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import tempfile
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nephi import journal
from nephi.cli import cluster
from nephi.cli.commission import _check
from nephi.cli.summarise import summarise
from nephi.commission.record import Limits, read_limits, read_record, record, unchanged
from nephi.errors import NephiError
from nephi.files.writing import replaced, write_text
from nephi.measure import calibration as measure_calibration
from submitit.slurm.slurm import _make_sbatch_string

from . import samples
from .stated import _once, _over


def _entries(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)


def _written(path: Path, entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return path


# ---- cohorts and clusters -------------------------------------------------------------------------------


def cluster_settings(folder: Path, rng: np.random.Generator) -> Path:
    made = cluster.ClusterSettings(partition="long", minutes=int(rng.integers(1, 600)), setup=("module load a",))
    return _written(folder / "cluster.json", asdict(made) | {"sbatch": {"qos": "low", "nice": 100}})


def read_cluster_settings(path: Path) -> Any:
    """Up to the script that the scheduler gets."""
    flags = dict.fromkeys(("partition", "time", "memory", "gpus", "array"))
    found = cluster.cluster_settings(Namespace(engine="slurm", cluster=str(path), **flags))
    assert found is not None
    _make_sbatch_string("nephi", path.parent, time=found.minutes, mem=f"{round(1024 * found.memory_gb)}MB",
                        setup=list(found.setup), partition=found.partition, gpus_per_node=found.gpus,
                        additional_parameters=found.sbatch)  # fmt: skip
    return json.loads(json.dumps(asdict(found)))


def cluster_stated(path: Path) -> Any:
    return _over(json.loads(json.dumps(asdict(cluster.ClusterSettings()))), _entries(path)) | (
        {"sbatch": _entries(path)["sbatch"]} if "sbatch" in _entries(path) else {}
    )


def jobs(folder: Path, rng: np.random.Generator) -> Path:
    return _written(folder / "under_way.json", [f"{n}_{i}" for i, n in enumerate(rng.integers(1, 10**6, 4))])


def read_jobs(path: Path) -> Any:
    """As a batch that starts again, the queue holding them all."""
    told: list[str] = []
    asked, cluster._queued = cluster._queued, bool
    try:
        return {"jobs": cluster._earlier(path.parent, told.append), "told": len(told)}
    finally:
        cluster._queued = asked


def jobs_stated(path: Path) -> Any:
    if not os.path.lexists(path):
        return {"jobs": [], "told": 0}
    try:
        assert path.is_file()
        found = _entries(path)
        assert isinstance(found, list) and all(re.fullmatch(r"\d+(_\d+)?", job) for job in found)
        return {"jobs": found, "told": 0}
    except Exception:
        return {"jobs": [], "told": 1}


def cohort(folder: Path, rng: np.random.Generator) -> Path:
    """The settings beside a pair that was made with them."""
    (folder / "p").mkdir()
    samples.report(folder / "p", rng)
    (folder / "settings.json").write_text(samples.SHORT.to_json(), encoding="utf-8")
    return folder / "settings.json"


def read_cohort(path: Path) -> Any:
    return [row["status"] for row in summarise(path.parent)]


def cohort_stated(path: Path) -> Any:
    own = json.loads(samples.SHORT.to_json())
    return ["done" if not os.path.lexists(path) or _entries(path) == own else "waiting"]


# ---- what a site answers for ----------------------------------------------------------------------------


def limits(folder: Path, rng: np.random.Generator) -> Path:
    return _written(folder / "limits.json", asdict(Limits("a site")) | {"p95_mm": round(float(rng.uniform(1, 3)), 2)})


def limits_stated(path: Path) -> Any:
    return _over(asdict(Limits()) | {"set_by": path.name}, _entries(path))


def commissioned(folder: Path, rng: np.random.Generator) -> Path:
    small = {"mean": 0.2, "p95": float(rng.uniform(0.3, 0.9)), "max": 1.5}
    case = {"name": "a", "about": "A chest.", "spacing_mm": [1.0, 1.0, 2.5], "folds": 0, "folds_percent": 0.0,
            "tre_mm": small, "inverse_mm": small, "verdict": "PASS", "reasons": [], "verdict_right": True}  # fmt: skip
    return _written(folder / "commission.json", record([case], Limits(), samples.SHORT, "cpu", 1, True))


def read_commissioned(path: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        _check(path)
    found = read_record(path)
    return found if unchanged(found) else "changed"


def commissioned_stated(path: Path) -> Any:
    entries = _entries(path)
    rest = {name: value for name, value in entries.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return entries if hashlib.sha256(text.encode("ascii")).hexdigest() == entries["sha256"] else "changed"


def calibration(folder: Path, rng: np.random.Generator) -> Path:
    """Of expected errors, as it is installed."""
    return Path(shutil.copy(Path(measure_calibration.__file__).with_suffix(".json"), folder))


def read_calibration(path: Path) -> Any:
    found = measure_calibration.read_model(path)
    return {"weights": found.weights, "knots": found.knots}


def calibration_stated(path: Path) -> Any:
    entries = _entries(path)
    return {name: entries[name] for name in ("weights", "knots")}


# ---- journals -------------------------------------------------------------------------------------------


def interrupted(folder: Path, rng: np.random.Generator) -> Path:
    """The journal of a run that was killed while three new files took the places of three older ones."""
    for name in "abc":
        _written(folder / "out" / name, f"old {name}")
    moves = int(rng.integers(2, 8))  # the first is the journal's own
    child = os.fork()
    if child == 0:
        count = 0

        def watch(operation: str, path: Path) -> None:
            nonlocal count
            count += operation == "replace"
            if count == moves:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with replaced(folder / "out", gone=("c",), last="b") as scratch:
                journal.watch = watch
                for name in "abd":
                    write_text(scratch / name, f"new {name}")
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    return next((folder / "out").glob(".nephi-*/.journal"))


def read_interrupted(path: Path) -> Any:
    """What stands there once a copy of the folder was recovered; where that is refused, nothing may be lost."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        _copy(path.parent.parent, folder)
        held = _texts(folder)
        try:
            journal.recover(folder)
        except NephiError:
            assert _texts(folder) == held, "something is lost"
            raise
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())}


def interrupted_stated(path: Path) -> Any:
    """Without a journal the move counts as done; with its digest right all of the new files are to come."""
    if os.path.lexists(path):
        line, digest = path.read_bytes().split(b"\n")
        assert hashlib.sha256(line).hexdigest().encode() == digest
        return {name: f"new {name}" for name in "abd"}
    files = (file for file in sorted(path.parent.parent.iterdir()) if file.is_file())
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def _texts(folder: Path) -> Counter[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in (".journal", "owner.lock"))
    return Counter(file.read_text(encoding="utf-8") for file in files)


def _copy(source: Path, target: Path) -> None:
    """A folder with whatever stands in it, pipes and links too."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            _copy(entry, target / entry.name)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(target / entry.name)
        else:
            shutil.copy(entry, target / entry.name, follow_symlinks=False)


READ = {
    "cluster settings .json": (cluster_settings, read_cluster_settings, cluster_stated, 0),
    "jobs of a cohort .json": (jobs, read_jobs, jobs_stated, 0),
    "settings of a cohort .json": (cohort, read_cohort, cohort_stated, 0),
    "limits .json": (limits, lambda path: asdict(read_limits(path)), limits_stated, 0),
    "commissioning record .json": (commissioned, read_commissioned, commissioned_stated, 0),
    "calibration .json": (calibration, read_calibration, calibration_stated, 0),
    "journal": (interrupted, read_interrupted, interrupted_stated, 0),
}
