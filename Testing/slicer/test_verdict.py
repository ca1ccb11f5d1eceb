"""The engine's verdict in the panel's words: every reason that it can have leads to what shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nephi.measure.report import ErrorEstimate, Folds, LandmarkError, Overlap, Report, Summary
from nephi.measure.verdict import Tolerances, judged
from NePhiRegistrationLib import theme
from NePhiRegistrationLib.choices import View
from NePhiRegistrationLib.verdict import FOLDS, LANDMARKS, REGIONS, judgement, tolerated_mm

GOOD = ErrorEstimate(0.6, 0.5, 1.2, 3.0, 1.1, 2.0, 0.0, 0.9, 0.95, 0.0, True)
RESULT = Report(folds=Folds(0.0, 0), jacobian={"p1": 0.8, "p99": 1.5}, dice=Overlap(0.97, 0.7))
NEAR, FAR = (Summary(mm, mm, mm, mm, 2.0) for mm in (0.5, 3.0))


def landmarks(error: Summary, doubt: str | None = None) -> dict:
    rows = [{"number": number, "after_mm": error.mean} for number in (1, 2)]
    return {"tre_mm": LandmarkError(error, doubt=doubt), "landmarks": rows}


def region(surface_mm: float | None, dice: float) -> dict:
    row = {"label": 1, "name": "left lung", "moving_region_ml": 900.0, "surface_mm": surface_mm, "dice": dice}
    return {"regions": [row]}


def judged_so(estimate=GOOD, share=0.0, **changes) -> dict:
    return judged(replace(RESULT, **changes), estimate, lambda mm: share, 1.0, Tolerances()).to_dict()


CASES = {  # what is wrong, and where that is seen
    "nothing": ({}, "PASS", {View.ERROR.term}),
    "nothing, as landmarks say": (landmarks(NEAR), "PASS", {View.ERROR.term, LANDMARKS}),
    "agreement": ({"estimate": replace(GOOD, agreement=0.6)}, "CHECK", {View.CHECKERBOARD.term}),
    "another patient": ({"estimate": replace(GOOD, agreement=0.1)}, "FAIL", {View.CHECKERBOARD.term}),
    "unseen": ({"estimate": replace(GOOD, unseen=0.3)}, "CHECK", {View.CHECKERBOARD.term}),
    "kind": ({"estimate": replace(GOOD, calibrated=False)}, "CHECK", {View.FLICKER.term}),
    "mean": ({"estimate": replace(GOOD, mean=9.0)}, "FAIL", {View.ERROR.term}),
    "large": ({"share": 0.2}, "CHECK", {View.ERROR.term}),
    "dice": ({"dice": Overlap(0.8, 0.5)}, "CHECK", {View.FADE.term}),
    "folds": ({"folds": Folds(2.0, 9)}, "FAIL", {FOLDS}),
    "jacobian": ({"jacobian": {"p1": 0.01, "p99": 1.5}}, "CHECK", {View.JACOBIAN.term}),
    "disagreement": ({"fields_disagreement_mm": FAR}, "CHECK", {View.CONSISTENCY.term}),
    "consistency": ({"inverse_consistency_mm": FAR}, "CHECK", {View.CONSISTENCY.term}),
    "landmarks": (landmarks(FAR), "CHECK", {LANDMARKS}),
    "a landmark": (landmarks(NEAR) | {"landmarks": [{"number": 1, "after_mm": 5.5}] +
                   [{"number": 2, "after_mm": 0.1}] * 9}, "CHECK", {LANDMARKS}),
    "mixed-up landmarks": (landmarks(FAR, "The landmarks lie 3 mm apart"), "CHECK", {LANDMARKS}),
    "guide": ({"guidance": {"landmarks": {"after": {"n": 2.0, "max": 3.0}, "within": 1}}}, "CHECK", set()),
    "region": (region(2.5, 0.95), "CHECK", {REGIONS}),
    "region that is not shown": (region(None, 0.1), "CHECK", {REGIONS}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_reason_leads_to_what_shows_it(case):
    changes, outcome, places = CASES[case]
    found = judgement(judged_so(**changes))
    assert found.outcome == outcome and len(found.reasons) == 1
    assert set(found.places) == places
    assert all(found.place_name(place) for place in found.places)


def test_no_place_is_named_twice():
    report = judged_so(replace(GOOD, mean=9.0), 0.9, dice=Overlap(0.5, 0.5))
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
