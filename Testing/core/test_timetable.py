"""The part of a run that is told, and with it the time left, follows what the stages take."""

from __future__ import annotations

import pytest
from nephi import PRESETS
from nephi.files.folder import DEFAULT_OUTPUTS
from nephi.measure.estimate import beginning, estimate, stages
from nephi.measure.timetable import Timetable, in_stages

EXPECTED = {"reading": 4.0, "optimising": 20.0, "warping": 8.0, "writing": 8.0}
CT = ((512, 512, 400), (0.7, 0.7, 0.8), (512, 512, 400))


def told(took: dict[str, float], expected: dict[str, float] = EXPECTED) -> list[tuple[float, str, float]]:
    """(seconds, stage, fraction) of a run whose stages take these seconds, told of ten times a stage."""
    now, out = [0.0], []
    table = Timetable(expected, lambda stage, fraction, _: out.append((now[0], stage, fraction)), 0.0, lambda: now[0])
    for stage, seconds in took.items():
        for tenth in range(11):
            table(stage, tenth / 10, {})
            now[0] += seconds / 10 if tenth < 10 else 0.0
    table("done", 1.0, {})
    return out


@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_the_time_left_is_true_within_a_fifth_however_fast_the_computer(slower):
    took = {stage: slower * seconds for stage, seconds in EXPECTED.items()}
    entries, total = told(took), sum(took.values())
    assert [f for *_, f in entries] == sorted(f for *_, f in entries) and entries[-1][2] == 1
    seen = 0
    for seconds, _, fraction in entries:
        if 0.25 * total < seconds < 0.95 * total:
            left = seconds * (1 - fraction) / fraction
            assert left == pytest.approx(total - seconds, rel=0.2, abs=0.02 * total)
            seen += 1
    assert seen > 10


def test_a_stage_that_takes_longer_than_expected_corrects_the_rest():
    entries = told(EXPECTED | {"optimising": 80.0})
    total = entries[-1][0]
    for seconds, stage, fraction in entries:
        if stage == "optimising" and seconds > 20:  # when it ends is known by its own pace, the rest may be as slow
            assert total - seconds < 1.02 * seconds * (1 - fraction) / fraction < 3 * (total - seconds)
    assert max(f for _, stage, f in entries if stage == "warping") < 0.97


def test_stages_that_are_left_out_or_unknown_do_no_harm():
    entries = told({"reading": 4.0, "surprise": 5.0, "writing": 8.0})
    assert [f for *_, f in entries] == sorted(f for *_, f in entries) and entries[-1][2] == 1
    assert told({"anything": 1.0}, {})[-1][2] == 1


def test_a_timetable_is_not_put_into_another():
    table = Timetable(EXPECTED, lambda *_: None)
    assert in_stages(table, {}) is table and in_stages(None, {})("reading", 0.0, {}) is None


def test_the_estimate_knows_model_device_outputs_and_masks():
    fast, lung = PRESETS["fast"], PRESETS["fast"].__class__(**{**vars(PRESETS["fast"]), "model": "lung"})
    plain = stages(fast, *CT)
    assert list(plain) == [name for name in stages(lung, *CT) if name != "prediction"]
    assert stages(lung, *CT)["prediction"] > 1
    few = stages(fast, *CT, outputs=("transform",))
    assert not {"warping", "writing", "report", "forward-backward difference"} & set(few) and "transforms" in few
    exact = stages(fast, *CT, outputs=(*DEFAULT_OUTPUTS, "exact-jacobian"))
    assert exact["Jacobian determinant"] > 2 * plain["Jacobian determinant"]
    assert stages(fast, *CT, device="cuda:0")["optimising"] < 0.2 * plain["optimising"]
    given = stages(fast, *CT, masks=True)
    assert "masks" not in given and given["alignment"] < plain["alignment"]
    assert list(beginning(plain)) == ["masks", "alignment", "features", "optimising"]
    cost = estimate(fast, CT[0], CT[1], CT[2], CT[1], "cpu", ("transform",))
    assert cost.seconds == pytest.approx(sum(few.values()))


def test_a_run_whose_stages_are_not_known_yet_is_not_taken_for_done():
    """As the command line begins: it reads the images before it knows what they will cost."""
    told: list[float] = []
    now = iter([0.0, 1.0, 2.0, 4.0])
    table = Timetable({}, lambda stage, fraction, terms: told.append(fraction), clock=lambda: next(now))
    table("reading", 0.0, {})
    table.expect({"optimising": 10.0})
    table("optimising", 0.0, {})
    table("optimising", 0.2, {})
    assert told[0] == 0.0 and 0 < told[1] < 0.5 and told[1] <= told[2] < 0.6
