"""What is said of a result first, and what may not be said."""

from __future__ import annotations

import re
from pathlib import Path

import nephi
import pytest
from nephi.registration import PHASES
from NePhiRegistrationLib import theme
from NePhiRegistrationLib.summary import Kind, as_html, summary
from NePhiRegistrationLib.words import is_notice, stage_text

SPACING_MM = (1.0, 1.0, 2.0)  # diagonal 2.4 mm
FOUND = [
    f"The {role} lung mask was found by a threshold; check it, or give one with --{role}-mask."
    for role in ("fixed", "moving")
]


def report(**changes) -> dict:
    """Of an ordinary run with masks, without anything to remark."""
    return {
        "folds": {"count": 0, "percent": 0.0, "regions": []},
        "fields_disagreement_mm": {"mean": 0.2, "max": 1.5},
        "volume": {"fixed_ml": 2000.0, "moving_ml": 3000.0},
        "dice": {"before": 0.8, "after": 0.98},
        "inputs": {"auto_mask": True},
        "warnings": [],
    } | changes


def lines(changes: dict, hounsfield: bool = True) -> dict:
    made = {k: v for k, v in report(**changes).items() if v is not None}
    return {line.text: line.kind for line in summary(made, SPACING_MM, hounsfield)}


def tre(before: float, after: float, largest: float) -> dict:
    return {"tre_mm": {"before": {"mean": before, "max": 20.0}, "after": {"mean": after, "max": largest}}}


def test_expected_error_is_a_number_among_others():
    estimate = {"mean": 0.62, "max": 4.0, "bound_mean": 1.31}
    text = (
        "Expected error: mean 0.6 mm, at the worst place 4.0 mm. "
        "True errors may be larger: their upper 95 % limit is 1.3 mm on average."
    )
    assert lines({"error_estimate_mm": estimate})[text] is Kind.NEUTRAL


@pytest.mark.parametrize(
    "before, after, largest, kind",
    [
        (10.0, 0.5, 2.0, Kind.GOOD),
        (10.0, 1.8, 14.8, Kind.NEUTRAL),  # a landmark that is far off
        (10.1, 10.0, 20.0, Kind.ATTENTION),  # it fell, and all is wrong
        (10.0, 3.0, 4.0, Kind.ATTENTION),
        (10.0, 11.0, 20.0, Kind.ATTENTION),
        (0.4, 0.5, 1.0, Kind.GOOD),  # below a voxel, before and after
    ],
)
def test_landmark_error_is_good_only_below_a_voxel(before, after, largest, kind):
    found = lines(tre(before, after, largest))
    (text,) = [text for text in found if text.startswith("Landmark error")]
    assert found[text] is kind and f"largest {largest:.1f} mm" in text
    assert f"mean {before:.1f} mm before, {after:.1f} mm after" in text


@pytest.mark.parametrize(
    "changes, hounsfield, kind, words",
    [
        ({"volume": None, "dice": None}, True, Kind.ATTENTION, "No lungs were found: the whole image"),
        ({"volume": None, "dice": None, "inputs": {"auto_mask": False}}, True, Kind.NOTICE, "whole image was compared"),
        ({"volume": None, "dice": None}, False, Kind.NOTICE, "whole image was compared"),  # an MR: nothing to detect
        ({"dice": None}, True, Kind.NOTICE, "Only the fixed volume had a mask"),
    ],
)
def test_missing_masks_are_said(changes, hounsfield, kind, words):
    found = lines(changes, hounsfield)
    (text,) = [text for text in found if words in text]
    assert found[text] is kind
    assert ("Volume of the mask" in str(found)) == ("volume" not in changes)


def test_ordinary_run_has_no_warning():
    found = lines({"warnings": FOUND} | tre(10.0, 0.5, 2.0))
    assert Kind.ATTENTION not in found.values()
    assert [kind for text, kind in found.items() if "threshold" in text] == [Kind.NOTICE] * 2
    assert "--" not in str(found)


def test_anything_else_that_the_engine_warns_of_is_a_warning_and_comes_first():
    found = list(lines({"warnings": [*FOUND, "The images differ <much>."]}).items())
    assert found[0] == ("The images differ <much>.", Kind.ATTENTION)


def test_what_is_a_notice_is_what_the_engine_says():
    """Where it is reworded there, it has to be here."""
    code = "".join(path.read_text(encoding="utf-8") for path in Path(nephi.__file__).parent.rglob("*.py"))
    assert "lung mask was found by a threshold" in code and "The prediction of model" in code
    assert is_notice("The prediction of model 'lung' was not used: it folds.")
    stages = set(re.findall(r"""(?:tell|begin)\("([\w ]+)"(?:, [\d.f]|\))""", code)) | {*PHASES, "optimising"}
    assert len(stages) >= 10
    assert {s for s in stages - {"phantom"} if stage_text(s) == s[:1].upper() + s[1:]} <= {"optimising", "done"}


def test_a_disagreement_above_a_voxel_is_no_detail():
    assert lines({})["Forward-backward difference: mean 0.2 mm, largest 1.5 mm."] is Kind.NEUTRAL
    found = lines({"fields_disagreement_mm": {"mean": 5.9, "max": 13.0}})
    (text,) = [text for text in found if "Forward-backward" in text]
    assert found[text] is Kind.ATTENTION and "do not trust the match" in text


def test_volumes_are_in_litres():
    assert lines({})["Volume of the mask: 2.00 L fixed, 3.00 L moving (+1.00 L, +50 %)."] is Kind.NEUTRAL


@pytest.mark.parametrize("count, words", [(1, "in 1 place,"), (3, "in 3 places,"), (100, "in 100+ places")])
def test_folds_are_counted(count, words):
    found = lines({"folds": {"count": 9, "percent": 0.1, "regions": [{}] * count}})
    (text,) = [text for text in found if text.startswith("Folded")]
    assert found[text] is Kind.ATTENTION and words in text


def test_html_shows_signs_and_escapes_text():
    html = as_html(summary(report(warnings=["a <b> & c"]), SPACING_MM, True), dict.fromkeys(Kind, "#123456"))
    assert "\u26a0" in html and "a &lt;b&gt; &amp; c" in html and html.count("#123456") == html.count("<div>")


GROUNDS = {"Slicer, dark": (0x32 / 255,) * 3, "Slicer, light": (0xF0 / 255,) * 3, "white": (1,) * 3, "black": (0,) * 3}


@pytest.mark.parametrize("ground", GROUNDS.values(), ids=GROUNDS)
@pytest.mark.parametrize("rgb", [theme.RED, theme.GREEN, theme.BLUE, theme.GREY])
def test_colours_are_readable_on_any_ground(rgb, ground):
    text = theme.readable(rgb, ground)
    shown = tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    assert theme.contrast(shown, ground) >= 4.5
    assert shown.index(max(shown)) == rgb.index(max(rgb))  # still the same hue


def test_contrast_is_that_of_wcag():
    assert theme.contrast((1, 1, 1), (0, 0, 0)) == pytest.approx(21)
    red, dark = (0xC0 / 255, 0x39 / 255, 0x2B / 255), GROUNDS["Slicer, dark"]
    assert theme.contrast(red, dark) == pytest.approx(2.36, abs=0.01)  # as measured of the colour that was fixed
