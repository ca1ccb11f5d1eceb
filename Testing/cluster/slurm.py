"""SLURM on one machine: a controller and a node in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nephi

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

    def begin(self) -> None:
        folder = self.folder
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
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __call__(self, *command: str) -> str:
        """What a command prints; nothing where the controller does not answer in time."""
        try:
            return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, timeout=30).stdout
        except subprocess.TimeoutExpired:
            return ""

    def jobs(self, *states: str) -> list[str]:
        """The jobs of arrays in these states, as NUMBER_INDEX."""
        lines = [line.split() for line in self("squeue", "-h", "-r", "-o", "%F_%K %T").splitlines()]
        return [line[0].removesuffix("_N/A") for line in lines if line[1] in states]

    def without_delay(self) -> None:
        """Let requeued jobs start now; SLURM holds them back for two minutes."""
        for number in set(self("squeue", "-h", "-t", "PENDING", "-o", "%A").split()):
            self("scontrol", "update", f"jobid={number}", "starttime=now")

    def end(self) -> None:
        """All jobs and daemons, whatever state they are in."""
        if "slurmctld" in self._running:
            self("scancel", "--user=root")
            end = time.monotonic() + 15
            while self("squeue", "-h").strip() and time.monotonic() < end:
                time.sleep(0.5)
        for name in reversed(list(self._running)):
            self.stop(name)


def missing() -> str:
    """Why SLURM cannot be started here, or nothing."""
    if sys.platform != "linux":
        return "SLURM runs on Linux"
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        return "SLURM is not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "slurmd has to be started by root" if os.geteuid() != 0 else ""


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
