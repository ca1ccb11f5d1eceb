"""Training by the job script for SLURM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nephi.learning.state import LOG, RESUME

from Testing.cluster.slurm import wait_for

SCRIPT = Path(__file__).parents[2] / "pipelines" / "slurm" / "train.sh"
_HOW = ["--device", "cpu", "--progress", "none", "--threads", "1"]


def settings_in(folder: Path, iterations: int, **changes) -> Path:
    """Of a training on small shapes, two batches a step, saved after every step."""
    settings = {
        "data": "shapes-solid",
        "model": {
            "dimension": 2,
            "field": {"width": 16, "frequencies": 8},
            "encoder": {
                "kind": "published",
                "size": 32,
                "channels": [8, 16],
                "hidden": 16,
                "local_level": 1,
                "norm": "group",
            },
            "features": {"spacing_mm": 1.0},
            "similarity": {"name": "mse", "points": {"fraction": 0, "least": 200, "most": 200}, "window": [0.0, 1.0]},
            "cube_margin_mm": 0.0,
        },
        "fit": {"iterations": iterations},
        "batch": 2,
        "accumulate": 2,
        "validate_every": iterations,
        "validation_pairs": 2,
        "save_every": 1,
    }
    (folder / "settings.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    return folder / "settings.json"


def steps(output: Path) -> list[int]:
    entries = [json.loads(line) for line in (output / LOG).read_text(encoding="utf-8").splitlines()]
    return [entry["step"] for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_the_job_script_trains_and_goes_on_after_its_time_limit(slurm, tmp_path):
    """Two tasks are two agents; the signal of the limit comes while it trains."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "torchrun").symlink_to(Path(sys.executable).with_name("torchrun"))
    output, last = tmp_path / "run", 60
    environment = slurm.environment | {"NEPHI_PROCESSES": "1", "PATH": f"{folder}:{os.environ['PATH']}"}
    job = ["sbatch", "--parsable", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--gpus-per-node=0"]
    job += ["--cpus-per-task=1", f"--output={tmp_path}/job.log", str(SCRIPT), str(settings_in(tmp_path, last))]
    number = subprocess.check_output([*job, str(output), *_HOW], env=environment, text=True).strip()

    def log() -> str:
        return (tmp_path / "job.log").read_text(encoding="utf-8") if (tmp_path / "job.log").exists() else ""

    wait_for(lambda: (output / RESUME).exists() or not slurm("squeue", "-h"), 180)
    assert (output / RESUME).exists(), log()
    slurm("scancel", "--signal=USR1", "--batch", number)
    wait_for(lambda: "requeued before the time limit" in log(), 30)
    before = steps(output)
    assert before[-1] < last
    wait_for(lambda: slurm.without_delay() or not slurm("squeue", "-h"), 300)
    assert steps(output) == list(range(1, last + 1)), log()
