"""The quick part of the campaign (``python -m Testing.faults`` is the long one), and that it finds what is wrong."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from Testing.faults import fuzz, pool
from Testing.faults.__main__ import cases_of, table
from Testing.faults.pool import LINE, RIGHT, WRONG, Outcome

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of memory, forks and pipes as Linux has them"),
]


@pytest.mark.parametrize(
    "counts", [{"fuzz": 2 * len(fuzz.READERS)}, {"property": 15}, {"fault": 13}], ids=["fuzz", "property", "fault"]
)
def test_nothing_is_wrong(counts, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the children are many
    outcomes: list[Outcome] = []
    pool.run(cases_of(counts, seed=100), jobs=2, tell=outcomes.append)
    assert len(outcomes) == sum(counts.values())
    assert not [outcome for outcome in outcomes if outcome.result == WRONG]
    assert table(outcomes).endswith("| 0 |")


def _outcomes(monkeypatch, read, count: int = 60) -> set[str]:
    """Of damaged settings files through another reader; the memory of this process is not to be limited."""
    reader = replace(fuzz.READERS["settings .json"], read=read)
    monkeypatch.setitem(fuzz.READERS, "settings .json", reader)
    monkeypatch.setattr(fuzz, "limit_memory_once", lambda: None)
    return {fuzz.fuzz("settings .json", seed).result for seed in range(1, count) if seed % 10}


def test_a_reader_that_believes_everything_is_found(monkeypatch):
    whole = fuzz.READERS["settings .json"].read

    def believing(path):
        try:
            return whole(path)
        except Exception:
            return {}

    assert _outcomes(monkeypatch, believing) == {RIGHT, WRONG}


def test_a_reader_that_ends_with_a_traceback_is_found(monkeypatch):
    whole = fuzz.READERS["settings .json"].read

    def failing(path):
        try:
            return whole(path)
        except Exception as error:
            raise KeyError("something") from error

    assert WRONG in _outcomes(monkeypatch, failing)


def test_a_crash_is_found():
    child = pool._Child()
    child.part = "fuzz"
    outcome = child("fuzz", "landmarks .csv", 1)
    assert outcome.result in (RIGHT, LINE)
    child.process.kill()
    child.process.wait()
    outcome = child("fuzz", "landmarks .csv", 1)
    assert outcome.result == WRONG and "crash" in outcome.said
    child.end()
    assert not fuzz.same({"a": np.zeros(3)}, {"a": np.zeros(4)}) and not fuzz.same(1.0, 2)
