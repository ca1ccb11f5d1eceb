"""A batch on a real SLURM: one node, in the test's folder. ``NEPHI_SLURM_PAIRS`` says how many pairs (default 10)."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nephi
import pytest
from nephi.synthetic.phantom import make_phantom

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux"),
    pytest.mark.skipif(
        not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")),
        reason="SLURM is not installed (Debian: slurmctld slurmd slurm-client munge)",
    ),
    pytest.mark.skipif(sys.platform == "linux" and os.geteuid() != 0, reason="slurmd has to be started by root"),
]
PHANTOMS = 5
PAIRS = int(os.environ.get("NEPHI_SLURM_PAIRS", "10"))
_HOW = ["--iterations", "2", "--no-report", "--align", "moments", "--threads", "1"]
_ROLES = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")
_CONFIG = """
ClusterName=nephi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=10
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller, a node and what they authenticate with, as children of this process."""

    def __init__(self, folder: Path):
        self.folder, self._running = folder, {}
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(parents=True, mode=0o700)
        (folder / "munge" / "key").write_bytes(os.urandom(1024))
        (folder / "munge" / "key").chmod(0o400)
        sockets = [socket.socket() for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        config = _CONFIG.format(
            host=socket.gethostname(), folder=folder, ports=[one.getsockname()[1] for one in sockets]
        )
        for one in sockets:
            one.close()
        (folder / "slurm.conf").write_text(config, encoding="utf-8")
        core = str(Path(nephi.__file__).parents[1])
        self.environment = {
            **os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": core, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        parts = [f"--{name}={folder}/munge/{name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file")]
        parts += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
        self.start("munged", "--force", "--foreground", *parts)
        wait_for((folder / "munge" / "socket").exists)
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", "node1")
        wait_for(lambda: "idle" in self("sinfo", "-h", "-o", "%T"))

    def start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                [shutil.which(name), *arguments], env=self.environment, stdout=log, stderr=log
            )

    def stop(self, name: str) -> None:
        self._running[name].terminate()
        self._running.pop(name).wait(30)

    def __call__(self, *command: str) -> str:
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return answer.stdout

    def jobs(self, *states: str) -> list[str]:
        """The jobs of arrays in these states, as NUMBER_INDEX."""
        lines = [line.split() for line in self("squeue", "-h", "-r", "-o", "%F_%K %T").splitlines()]
        return [line[0].removesuffix("_N/A") for line in lines if line[1] in states]

    def end(self) -> None:
        self("scancel", "--user=root")
        for name in reversed(list(self._running)):
            self.stop(name)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@pytest.fixture
def slurm(tmp_path):
    pytest.importorskip("submitit")
    cluster = None
    try:
        cluster = Slurm(tmp_path / "slurm")
        yield cluster
    finally:
        if cluster is not None:
            cluster.end()


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
    (tmp_path / "cluster.json").write_text('{"array": 1, "minutes": 30, "cpus": 1, "memory_gb": 0.5}')
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), "--output", str(output), *_HOW]
    command += ["--engine", "slurm", "--cluster", str(tmp_path / "cluster.json")]
    batch = subprocess.Popen(command, env=slurm.environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: batch.poll() is not None or made(output), 300)
        before = made(output)
        slurm("scancel", "--signal=USR2", *slurm.jobs("RUNNING"))
        text, _ = batch.communicate(timeout=600)
    finally:
        batch.kill()
    assert batch.returncode == 0, text
    assert {row["status"] for row in table(output)} == {"done"} and len(table(output)) == 4
    assert {name: changed for name, changed in made(output).items() if name in before} == before
    assert "Requeued job" in "".join(path.read_text(encoding="utf-8") for path in (output / ".jobs").glob("*.out"))
