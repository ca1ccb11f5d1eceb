"""A batch on a real SLURM: one node, in the test's folder. ``NEPHI_SLURM_PAIRS`` says how many pairs (default 10)."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nephi.synthetic.phantom import make_phantom

from Testing.cluster.slurm import wait_for

pytest.importorskip("submitit")
pytestmark = pytest.mark.slow
PHANTOMS = 5
PAIRS = int(os.environ.get("NEPHI_SLURM_PAIRS", "10"))
_HOW = ["--iterations", "2", "--no-report", "--align", "moments", "--threads", "1"]
_ROLES = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")


def pairs_of_phantoms(folder: Path, count: int) -> Path:
    rows = [["name", *_ROLES]]
    for k in range(count):
        data = folder / "data" / str(k % PHANTOMS)
        if not data.exists():
            data.mkdir(parents=True)
            make_phantom(seed=k, dimension=2).write(data)
        rows.append(
            [f"pair{k:03}", *(f"data/{k % PHANTOMS}/{r}{'.csv' if 'landm' in r else '.nii.gz'}" for r in _ROLES)]
        )
    (folder / "pairs.csv").write_text("\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def table(output: Path) -> list[dict]:
    with open(output / "summary.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def made(output: Path) -> dict[str, int]:
    return {report.parent.name: report.stat().st_mtime_ns for report in output.glob("*/report.json")}


def batch_of(slurm, pairs: Path, output: Path, cluster: str) -> subprocess.Popen:
    """A batch that was just started on the cluster; ``cluster``: its settings file."""
    settings = output.with_name("cluster.json")
    settings.write_text(cluster)
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), "--output", str(output), *_HOW]
    command += ["--engine", "slurm", "--cluster", str(settings)]
    return subprocess.Popen(command, env=slurm.environment, stdout=subprocess.PIPE, text=True)


def test_nothing_is_lost_on_a_troubled_cluster(slurm, tmp_path):
    """A tenth of the jobs killed, the node drained, the controller and the batch itself killed and started again."""
    pairs, output, local = pairs_of_phantoms(tmp_path, PAIRS), tmp_path / "out", tmp_path / "local"
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), *_HOW]
    jobs = ["--output", str(output), "--engine", "slurm", "--time", "30", "--memory", "0.5", "--array", str(PAIRS)]
    (tmp_path / "cluster.json").write_text('{"cpus": 1}')
    jobs += ["--cluster", str(tmp_path / "cluster.json")]
    limit = 60 + 60 * PAIRS

    def start() -> subprocess.Popen:
        return subprocess.Popen([*command, *jobs], env=slurm.environment, stdout=subprocess.PIPE, text=True)

    batch = start()
    try:
        killed: set[str] = set()
        while len(killed) < max(1, PAIRS // 10):
            wait_for(lambda: batch.poll() is not None or set(slurm.jobs("RUNNING")) - killed, limit)
            assert batch.poll() is None
            job = min(set(slurm.jobs("RUNNING")) - killed)
            slurm("scancel", "--signal=KILL", "--full", job) if len(killed) % 2 else slurm("scancel", job)
            killed.add(job)
        wait_for(lambda: len(made(output)) >= PAIRS // 4, limit)
        slurm("scontrol", "update", "nodename=node1", "state=drain", "reason=test")
        slurm.stop("slurmctld")
        batch.send_signal(signal.SIGKILL)  # jobs run on without it
        batch.communicate(timeout=60)
        before = made(output)
        time.sleep(3)
        slurm.start("slurmctld", "-D")
        wait_for(lambda: "drain" in slurm("sinfo", "-h", "-o", "%T"))
        batch = start()  # the same command
        time.sleep(5)
        slurm("scontrol", "update", "nodename=node1", "state=resume")
        text, _ = batch.communicate(timeout=limit)
    finally:
        batch.kill()
    assert "waiting for them" in text and batch.returncode == 0, text
    assert {name: changed for name, changed in made(output).items() if name in before} == before  # none repeated
    few = pairs_of_phantoms(tmp_path, PHANTOMS)  # the same files again from there on
    local_batch = [*command[:4], str(few), *_HOW, "--output", str(local)]
    subprocess.run(local_batch, env=slurm.environment, check=True, timeout=limit)
    expected = [row | {"name": f"pair{k:03}"} for k in range(PAIRS) for row in [table(local)[k % PHANTOMS]]]
    assert table(output) == expected


def test_a_job_that_is_warned_is_requeued(slurm, tmp_path):
    """SLURM sends the signal of the limit to every process of the job, the engine of a pair included."""
    pairs, output = pairs_of_phantoms(tmp_path, 4), tmp_path / "out"
    batch = batch_of(slurm, pairs, output, '{"array": 1, "minutes": 30, "cpus": 1, "memory_gb": 0.5}')
    try:
        wait_for(lambda: batch.poll() is not None or made(output), 300)
        before = made(output)
        slurm("scancel", "--signal=USR2", *slurm.jobs("RUNNING"))
        wait_for(lambda: slurm.without_delay() or batch.poll() is not None, 300)
        text, _ = batch.communicate()
    finally:
        batch.kill()
    assert batch.returncode == 0, text
    assert {row["status"] for row in table(output)} == {"done"} and len(table(output)) == 4
    assert {name: changed for name, changed in made(output).items() if name in before} == before
    assert "Requeued job" in "".join(path.read_text(encoding="utf-8") for path in (output / ".jobs").glob("*.out"))


@pytest.mark.skipif(PAIRS < 100, reason="takes minutes: set NEPHI_SLURM_PAIRS=100")
def test_a_job_that_reaches_its_time_limit_goes_on(slurm, tmp_path):
    """SLURM itself warns the job, of a limit of one minute, again and again until all pairs are done."""
    pairs, output = pairs_of_phantoms(tmp_path, 20), tmp_path / "out"
    batch = batch_of(slurm, pairs, output, '{"array": 1, "minutes": 1, "cpus": 1, "memory_gb": 0.5, "warn_s": 15}')
    seen: dict[str, set[int]] = {}
    try:
        while batch.poll() is None:
            for name, changed in made(output).items():
                seen.setdefault(name, set()).add(changed)
            slurm.without_delay()
            time.sleep(0.5)
        text, _ = batch.communicate()
    finally:
        batch.kill()
    assert batch.returncode == 0, text
    assert {row["status"] for row in table(output)} == {"done"} and len(table(output)) == 20
    assert all(len(times) == 1 for times in seen.values()), seen  # none is made twice
    printed = "".join(path.read_text(encoding="utf-8") for path in (output / ".jobs").glob("*.out"))
    assert "Requeued job" in printed, printed
