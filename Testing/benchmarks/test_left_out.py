"""Which results take part in the model that judges another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from nephi.measure.report import Folds, Report
from nephi.measure.signals import Signals
from nephi.space.grid import Grid

from benchmarks.trust import Calibration, Measured
from benchmarks.trust_cases import CALIBRATION, JUDGED, Case


def made(seed: int) -> Measured:
    """Blocks whose shifts tell of the error."""
    rng = np.random.default_rng(seed)
    points, coarse = rng.uniform(0, 100, (200, 3)), rng.uniform(0, 100, (50, 3))
    shifts, coarse_shifts = (np.exp(rng.normal(0, 1)) * rng.normal(size=(n, 3)) for n in (200, 50))
    s = Signals(
        points, shifts, *(rng.uniform(0.1, 1, 200) for _ in range(4)), coarse, coarse_shifts,
        *(rng.uniform(0.1, 1, 50) for _ in range(3)), unseen=0.0, ct=True, lungs=True,
        coarse_voxel_mm=4.0, voxel_mm=2.0, scale=1.0,
    )  # fmt: skip
    grid = Grid((20, 20, 20), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    error = np.linalg.norm(shifts, axis=1)
    return Measured(s, grid, None, 2.0, Report(Folds(0.0, 0), {"p1": 0.8, "p99": 1.2}), points, error, 0.0)


@pytest.fixture
def found() -> dict[Case, Measured]:
    pairs = ("breathhold_case01", "popi:60>10", "popi_phase00:3", "fnndsc:1", "chest:2", "chest:4", "phantom:8")
    return {Case(pair, state): made(7 * i + j) for i, pair in enumerate(pairs) for j, state in enumerate(("a", "b"))}


def test_a_patient_s_own_results_take_no_part_in_what_judges_him(found):
    judged = Case("popi:60>10", "a")
    other = {
        c: dataclasses.replace(m, error_mm=9 * m.error_mm) for c, m in found.items() if c.subjects & judged.subjects
    }
    before, after = (Calibration(known) for known in (found, {**found, **other}))
    assert len(other) == 4  # of phase 00 too, which is the same patient's
    assert before.model(judged.subjects) == after.model(judged.subjects)
    assert before.model() != after.model()


def test_results_of_data_that_are_not_free_take_part_in_no_model(found):
    kept = {case: m for case, m in found.items() if not case.pair.startswith("breathhold")}
    assert len(kept) == len(found) - 2
    for out in (frozenset(), Case("popi:60>10", "a").subjects):
        assert Calibration(found).model(out) == Calibration(kept).model(out)
    others = {case.pair for case in (*CALIBRATION, *JUDGED) if "breathhold" not in case.pair}
    assert {case.pair for case in (*CALIBRATION, *JUDGED) if case.teaches} == others


def test_who_is_who():
    def of(pair: str) -> frozenset[str]:
        return Case(pair, "fast").subjects

    assert of("breathhold_case01") == of("breathhold_case02")
    assert of("popi:60>10") == of("popi:30>00") == of("popi_phase00:7")
    assert of("coarse:12") == of("fnndsc:1") and of("coarse:11") == of("chest:11")
    assert of("chest:4") != of("chest:6") and of("lung_ct_followup") != of("breathhold_case01")
    assert of("chest:4|popi_phase00:3") == of("chest:4") | of("popi:60>10")
    assert all(case.subjects for case in (*CALIBRATION, *JUDGED))
