"""Commissioning: what is measured is the truth, what misses a limit is told, and a changed record is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from nephi.cli import main
from nephi.commission.battery import CASES, run
from nephi.commission.page import page_of
from nephi.commission.record import Limits, missed, read_limits, record, signed, unchanged
from nephi.errors import NephiError
from nephi.measure.quality import random_points
from nephi.settings import PRESETS
from nephi.space.grid import Grid

SPACING_MM = 9.0
NAMES = [case.name for case in CASES]


def of(**change) -> dict:
    """A case that keeps all limits, but for what is changed."""
    small = {"mean": 0.2, "median": 0.2, "p95": 0.5, "max": 1.5, "n": 2000.0}
    case = {"name": "a", "about": "A chest.", "spacing_mm": [1.0, 1.0, 2.5], "folds": 0, "folds_percent": 0.0}
    case |= {"aligned_tre_mm": small, "tre_mm": small, "file_tre_mm": small, "inverse_tre_mm": small}
    case |= {"jacobian": {"rmse": 0.05, "bias": 0.0, "correlation": 0.9}, "inverse_mm": small | {"mean": 0.01}}
    return case | {"verdict": "PASS", "reasons": ["All kept."], "verdict_right": True} | change


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Two cases, coarse, with few steps and without the search for a start."""
    few = replace(PRESETS["fast"], fit=replace(PRESETS["fast"].fit, iterations=10), align="centres")
    folder = tmp_path_factory.mktemp("cases")
    wanted = [case for case in CASES if case.name in ("quiet-breathing", "wrong-patient")]
    return folder, [run(case, folder / case.name, SPACING_MM, few, "cpu") for case in wanted]


@pytest.fixture(scope="module")
def pairs():
    """Two of the battery, coarse, by name; none of another person's."""
    return {case.name: case.made(SPACING_MM)[0] for case in CASES if case.name in ("deep-breathing", "thick-slices")}


def test_the_exact_determinant_is_that_of_the_map_in_either_direction(pairs):
    for pair in pairs.values():
        for base_is_fixed in (True, False):
            one = replace(pair, base_is_fixed=base_is_fixed)
            points, step = random_points(Grid.of(pair.fixed), pair.fixed_mask, 60), 1e-2
            columns = [one.forward(points + step * e) - one.forward(points - step * e) for e in np.eye(3)]
            expected = np.linalg.det(np.stack(columns, -1) / (2 * step))
            np.testing.assert_allclose(one.jacobian(points), expected, atol=1e-4)


def test_noise_is_of_one_dose_whatever_the_voxels():
    noisy = next(case for case in CASES if case.name == "noisy")
    with mock.patch("nephi.commission.battery.breathe") as made, mock.patch("nephi.commission.battery.procedural") as p:
        p.return_value = ()
        for spacing_mm in (2.0, 4.0):
            noisy.made(spacing_mm)
    asked_hu = [call.args[-1].noise_hu for call in made.call_args_list]
    np.testing.assert_allclose(asked_hu, [(80.0, 80.0), (80.0 / 8**0.5,) * 2])  # eight times the volume


def test_the_battery_is_of_what_it_says(pairs, outcomes):
    assert NAMES == ["quiet-breathing", "deep-breathing", "turned", "noisy", "thick-slices", "wrong-patient"]
    assert [case.name for case in CASES if case.other is not None] == ["wrong-patient"]
    _, (quiet, wrong) = outcomes
    assert wrong.result.moving_grid != Grid.of(wrong.pair.moving)
    motion = []
    for pair in (quiet.pair, pairs["deep-breathing"]):
        points = random_points(Grid.of(pair.fixed), pair.fixed_mask, 300)
        shift = pair.forward(points) - points
        motion.append(np.linalg.norm(shift - shift.mean(0), axis=1).mean())
    assert motion[1] > 2 * motion[0]
    assert pairs["thick-slices"].fixed.GetSpacing() == pytest.approx((9, 9, 22.5))
    assert quiet.pair.about["seed"] == quiet.case.seed and quiet.pair.about["kind"] == "tidal"


def test_a_case_is_measured_against_the_truth(outcomes):
    folder, (right, wrong) = outcomes
    assert {path.name for path in (folder / "quiet-breathing").iterdir()} >= {"transform.h5", "report.json"}
    m, result, pair = right.measured, right.result, right.pair
    points = random_points(result.fixed_grid, pair.fixed_mask, 2000, between=True)
    error = np.linalg.norm(result.forward(points) - pair.forward(points), axis=1)
    assert m["tre_mm"]["mean"] == pytest.approx(error.mean())
    assert m["tre_mm"]["mean"] < m["aligned_tre_mm"]["mean"]
    assert m["file_tre_mm"]["mean"] == pytest.approx(m["tre_mm"]["mean"], abs=0.3)
    assert m["jacobian"]["true_sd"] > 0.005 and m["jacobian"]["rmse"] < 0.5
    assert "tre_mm" not in wrong.measured and wrong.measured["verdict_right"] == (wrong.measured["verdict"] != "PASS")
    assert json.loads(json.dumps(m)) == m


def test_the_page_shows_all_cases_and_what_misses(outcomes):
    _, both = outcomes
    made = record(
        [o.measured for o in both], Limits(set_by="Clinic <B>", jacobian_rmse=1e-6), PRESETS["fast"], "cpu", 1, True
    )
    assert not made["passed"] and unchanged(made)
    html = page_of(made, both)
    for text in ("quiet-breathing", "wrong-patient", "NOT PASSED", "Clinic &lt;B&gt;", made["sha256"]):
        assert text in html
    assert html.count("<image ") == 3 + 2  # of a wrong pair there is no true determinant


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tre_mm": {"p95": 2.6, "max": 3.0}}, "map"),
        ({"tre_mm": {"p95": float("nan"), "max": 3.0}}, "map"),
        ({"file_tre_mm": {"p95": 1.0, "max": 5.5}}, "file"),
        ({"inverse_tre_mm": {"p95": 9.0, "max": 4.0}}, "inverse map"),
        ({"jacobian": {"rmse": 0.151}}, "|J|"),
        ({"inverse_mm": {"mean": 0.11}}, "differ"),
        ({"folds": 3, "folds_percent": 0.1}, "fold"),
        ({"verdict": "CHECK", "verdict_right": False}, "verdict"),
    ],
)
def test_what_misses_a_limit_is_told_and_nothing_else(change, word):
    assert list(missed(of(), Limits())) == []
    (line,) = missed(of(**change), Limits())
    assert word in line


def test_a_voxel_longer_than_a_limit_counts_in_its_place():
    thick = of(tre_mm={"p95": 2.4, "max": 4.0})
    assert list(missed(thick, Limits())) == []  # slices of 2.5 mm
    assert len(list(missed(thick | {"spacing_mm": [1.0, 1.0, 1.0]}, Limits()))) == 1


def test_any_change_of_a_record_is_noticed(tmp_path, capsys):
    made = record([of(), of(jacobian={"rmse": 0.5})], Limits(), PRESETS["fast"], "cpu", 2, False)
    assert not made["passed"] and made["cases"][0]["missed"] == [] and made["limits"]["set_by"]
    file = tmp_path / "commission.json"
    file.write_text(json.dumps(made, indent=4, sort_keys=True), encoding="utf-8")  # the layout is free
    assert main(["commission", "--check", str(file)]) == 0
    assert "unchanged" in capsys.readouterr().out
    for path in (("passed",), ("cases", 1, "jacobian", "rmse"), ("date",), ("limits", "max_mm"), ("sha256",)):
        changed = json.loads(json.dumps(made))
        *way, last = path
        place = changed
        for key in way:
            place = place[key]
        place[last] = "x" if isinstance(place[last], str) else 1e-3 + 0.5 * place[last]
        file.write_text(json.dumps(changed), encoding="utf-8")
        assert main(["commission", "--check", str(file)]) == 1, path
        assert "CHANGED" in capsys.readouterr().out


@pytest.mark.parametrize("without", ["date", "passed", "versions"])
def test_a_signed_file_that_is_no_record_is_one_line(tmp_path, capsys, without):
    made = record([of()], Limits(), PRESETS["fast"], "cpu", 1, False)
    other = signed({k: v for k, v in made.items() if k not in ("sha256", without)})
    (tmp_path / "c.json").write_text(json.dumps(other), encoding="utf-8")
    assert main(["commission", "--check", str(tmp_path / "c.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_record_of_another_version_says_so(tmp_path, capsys):
    made = record([of()], Limits(), PRESETS["fast"], "cpu", 1, False)
    older = signed({k: v for k, v in made.items() if k != "sha256"} | {"versions": {"nephi": "0.0.1"}})
    (tmp_path / "c.json").write_text(json.dumps(older), encoding="utf-8")
    assert main(["commission", "--check", str(tmp_path / "c.json")]) == 0
    assert "commission again" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path, capfd):
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    (tmp_path / "limits.json").write_text('{"p95_mm": -1}', encoding="utf-8")
    for arguments in (
        [],
        ["--check", str(tmp_path / "none.json")],
        ["--check", str(tmp_path / "other.json")],
        [str(tmp_path / "out"), "--check", str(tmp_path / "other.json")],
        [str(tmp_path / "out"), "--limits", str(tmp_path / "limits.json")],
        [str(tmp_path / "out"), "--preset", "none"],
    ):
        assert main(["commission", *arguments]) == 2, arguments
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(NephiError, match="limits"):
        read_limits(tmp_path / "limits.json")
    (tmp_path / "limits.json").write_text('{"p95_mm": 1.5}', encoding="utf-8")
    assert read_limits(tmp_path / "limits.json") == replace(Limits(), p95_mm=1.5, set_by="limits.json")
