"""Training by several processes, on one machine and on several: the steps of one, and clear words where one ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nephi
import pytest
import safetensors.torch
import torch
from nephi.learning import train as train_module
from nephi.learning.settings import MatchingSettings, ModelSettings, TrainSettings
from nephi.learning.state import LOG, RESUME
from nephi.learning.train import train
from nephi.settings import Features, FitSettings, MindSettings, NeuralSettings, Sampling

_HERE = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
SETTINGS = TrainSettings(
    model=ModelSettings(
        dimension=2,
        field=NeuralSettings(width=16, frequencies=8, global_code=6, local_code=5),
        encoder=MatchingSettings(node_spacing=0.4, steps=(3, 1), width=16),
        features=Features(4.0, 1),
        similarity=MindSettings(points=Sampling(0.0, 200, 200)),
    ),
    fit=FitSettings(iterations=2, learning_rate=1e-3),
    accumulate=2,
    validate_every=2,
    save_every=2,
)


def started(command: list[str], environments: list[dict]) -> list[subprocess.CompletedProcess]:
    """The command in each of the environments at the same time."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, *command], env=_HERE | more, **how) for more in environments]
    try:
        told = [one.communicate(timeout=180) for one in running]
    finally:
        for one in running:
            one.kill()
    return [subprocess.CompletedProcess(r.args, r.returncode, *t) for r, t in zip(running, told, strict=True)]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_make_the_steps_of_one_process(training_pairs, tmp_path, monkeypatch):
    """Two agents of torchrun with a process each, as two machines start them."""
    monkeypatch.setattr(train_module, "tensorboard", lambda *_: None)  # takes seconds to load
    settings = replace(SETTINGS, data=str(training_pairs))
    single, shared = tmp_path / "single", tmp_path / "shared"
    train(settings, single, torch.device("cpu"))
    (tmp_path / "settings.json").write_text(json.dumps(asdict(settings)))
    command = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    command += ["--rdzv-id", "one", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command += ["-m", "nephi", "train", str(tmp_path / "settings.json"), "--output", str(shared)]
    runs = started([*command, "--device", "cpu", "--progress", "none", "--threads", "1"], [{}, {}])
    assert [run.returncode for run in runs] == [0, 0], runs
    assert sum(run.stdout.count("written to") for run in runs) == 1  # by the first process of all
    expected, found = (safetensors.torch.load_file(folder / RESUME) for folder in (single, shared))
    assert set(found) == set(expected)
    # the first moments are the gradients; weights that have none move by noise
    gradients = [name for name in expected if name.endswith("exp_avg")]
    largest = max(float(expected[name].abs().max()) for name in gradients)
    for name in gradients:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4 * largest, rtol=1e-3, msg=name)
    differing = [((found[n] - expected[n]).abs() > 1e-5).flatten() for n in expected if n.startswith("model.")]
    assert largest > 1e-3 and torch.cat(differing).float().mean() < 0.01
    logs = [(folder / LOG).read_text(encoding="utf-8").splitlines() for folder in (single, shared)]
    assert [json.loads(line)["step"] for line in logs[0]] == [json.loads(line)["step"] for line in logs[1]]


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so_in_a_line(tmp_path):
    """The first finds that its list of pairs is not there, while the second waits for it."""
    (tmp_path / "settings.json").write_text(json.dumps(asdict(replace(SETTINGS, data=str(tmp_path / "none.csv")))))
    command = ["-m", "nephi", "train", str(tmp_path / "settings.json"), "--output", str(tmp_path / "out")]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    runs = started([*command, "--device", "cpu", "--threads", "1"], [place | {"RANK": rank} for rank in "01"])
    assert [run.returncode for run in runs] == [2, 2], runs
    said = [[line for line in run.stderr.splitlines() if line.startswith("nephi: ")] for run in runs]
    assert [len(lines) for lines in said] == [1, 1], runs
    assert "none.csv" in said[0][0] and "another process of the training has ended" in said[1][0]
