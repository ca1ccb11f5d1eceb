from __future__ import annotations

import pytest

from Testing.cluster.slurm import Slurm, missing


@pytest.fixture
def slurm(tmp_path):
    if reason := missing():
        pytest.skip(reason)
    cluster = Slurm(tmp_path / "slurm")
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()
