"""The engine's verdict in the panel's words: every reason that it can have leads to what shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nephi.measure.report import ErrorEstimate
from nephi.measure.verdict import Tolerances, judged
from NePhiRegistrationLib import theme
from NePhiRegistrationLib.choices import View
from NePhiRegistrationLib.verdict import FOLDS, judgement, tolerated_mm

GOOD = ErrorEstimate(0.6, 0.5, 1.2, 3.0, 1.1, 2.0, 0.0, 0.9, 0.95, 0.0, True)


class Dice:
    """As the report's."""

    def __init__(self, before: float, after: float):
        self.before, self.after = before, after


class _Report:
    """What ``judged`` asks of a report, without a registration."""

    dice, inverse_consistency_mm, fields_disagreement_mm = Dice(0.7, 0.97), None, None
    folds = type("Folds", (), {"percent": 0.0, "count": 0})
    jacobian = {"p1": 0.8, "p99": 1.5}


def judged_so(monkeypatch, estimate=GOOD, share=0.0, **changes) -> dict:
    made = type("Report", (_Report,), changes)()
    kept = {}
    monkeypatch.setattr("nephi.measure.verdict.replace", lambda _report, **parts: kept.update(parts))
    judged(made, estimate, lambda mm: share, 1.0, Tolerances())
    verdict = kept["verdict"]
    return {"verdict": {"outcome": verdict.outcome, "reasons": verdict.reasons, "tolerances": verdict.tolerances}}


CASES = {  # what is wrong, and where that is seen
    "nothing": ({}, "PASS", {View.ERROR.term}),
    "agreement": ({"estimate": replace(GOOD, agreement=0.6)}, "CHECK", {View.CHECKERBOARD.term}),
    "another patient": ({"estimate": replace(GOOD, agreement=0.1)}, "FAIL", {View.CHECKERBOARD.term}),
    "unseen": ({"estimate": replace(GOOD, unseen=0.3)}, "CHECK", {View.CHECKERBOARD.term}),
    "kind": ({"estimate": replace(GOOD, calibrated=False)}, "CHECK", {View.FLICKER.term}),
    "mean": ({"estimate": replace(GOOD, mean=9.0)}, "FAIL", {View.ERROR.term}),
    "large": ({"share": 0.2}, "CHECK", {View.ERROR.term}),
    "dice": ({"dice": Dice(0.5, 0.8)}, "CHECK", {View.FADE.term}),
    "folds": ({"folds": type("Folds", (), {"percent": 2.0, "count": 9})}, "FAIL", {FOLDS}),
    "jacobian": ({"jacobian": {"p1": 0.01, "p99": 1.5}}, "CHECK", {View.JACOBIAN.term}),
    "disagreement": ({"fields_disagreement_mm": type("C", (), {"mean": 3.0})}, "CHECK", {View.CONSISTENCY.term}),
    "consistency": ({"inverse_consistency_mm": type("C", (), {"mean": 3.0})}, "CHECK", {View.CONSISTENCY.term}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_reason_leads_to_what_shows_it(case, monkeypatch):
    changes, outcome, places = CASES[case]
    found = judgement(judged_so(monkeypatch, **changes))
    assert found.outcome == outcome and len(found.reasons) == 1
    assert set(found.places) == places
    assert all(found.place_name(place) for place in found.places)


def test_no_place_is_named_twice(monkeypatch):
    report = judged_so(monkeypatch, replace(GOOD, mean=9.0), 0.9, dice=Dice(0.5, 0.5))
    assert judgement(report).places == [View.ERROR.term, View.FADE.term]
    assert judgement(report).title == "Not reliable"


def test_outcomes_differ_in_sign_words_and_ground():
    made = [judgement({"verdict": {"outcome": o, "reasons": [], "tolerances": {}}}) for o in ("PASS", "CHECK", "FAIL")]
    for part in ("sign", "title", "ground_rgb"):
        assert len({getattr(one, part) for one in made}) == 3
    for one in made:  # on its own ground, thus in every theme
        text = theme.on(one.ground_rgb)
        assert theme.contrast(tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)), one.ground_rgb) >= 4.5


def test_without_a_verdict_nothing_is_said():
    assert judgement({"warnings": []}) is None


def test_tolerance_is_the_sites_or_the_longest_voxel():
    report = {"verdict": {"tolerances": {"mean_mm": 1.5}}}
    assert tolerated_mm(report, (0.7, 0.7, 1.0), (0.7, 0.7, 1.2)) == 1.5
    assert tolerated_mm(report, (0.7, 0.7, 1.0), (0.7, 0.7, 5.0)) == 5.0
    assert tolerated_mm({}, (1.0, 1.0, 1.0)) == 2.0
