"""Settings to and from JSON, and what is said about a wrong entry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nephi.config import decode, read_json
from nephi.errors import NephiError
from nephi.learning.settings import TrainSettings, check_training
from nephi.settings import PRESETS, Features, Level, Sampling, Settings, from_dict, load, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name, tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(PRESETS[name].to_json())
    assert load(file) == PRESETS[name]
    assert load(file, PRESETS["fast"]) == PRESETS[name]  # a complete file leaves nothing to its base
    assert PRESETS[name].preset == name


def test_what_is_left_out_comes_from_the_named_preset_else_the_base():
    paper = from_dict({"preset": "paper", "fit": {"iterations": 7}})
    assert paper.fit.iterations == 7 and paper.field == PRESETS["paper"].field
    fast = from_dict({"fit": {"seed": 3}}, PRESETS["fast"])
    assert fast.fit.iterations == PRESETS["fast"].fit.iterations and fast.fit.seed == 3
    assert from_dict({}) == PRESETS["balanced"]


def test_a_number_of_points_is_a_shorthand():
    settings = from_dict({"similarity": {"points": 500}})
    assert settings.similarity.points == Sampling(0.0, 500, 500)
    assert settings.similarity.points.count(10**9) == 500
    part = from_dict({"preset": "paper", "similarity": {"points": {"most": 70}}})
    assert part.similarity.points == Sampling(0.02, 1, 70)


def test_lists_become_tuples_and_null_is_allowed_where_it_means_something():
    s = from_dict({"similarity": {"stages": [{"spacing_mm": 3}, {"start": 0.5}], "window": [0, 1]}})
    assert s.similarity.stages == (Level(0.0, Features(3.0, 2)), Level(0.5, Features(2.0, 2)))
    assert s.similarity.window == (0.0, 1.0)
    assert from_dict({"preset": "paper", "similarity": {"window": None}}).similarity.window is None


@pytest.mark.parametrize(
    "data, words",
    [
        ({"fits": {}}, ["fits", "fit"]),
        ({"fit": {"iteration": 3}}, ["fit.iteration", "iterations"]),
        ({"fit": {"iterations": "many"}}, ["fit.iterations", "'many'", "int"]),
        ({"fit": {"iterations": 3.5}}, ["fit.iterations", "3.5"]),
        ({"fit": {"iterations": True}}, ["fit.iterations", "True"]),
        ({"fit": {"iterations": -1}}, ["fit.iterations", "-1"]),
        ({"fit": 3}, ["fit", "3"]),
        ({"fit": {"learning_rate": 0}}, ["fit.learning_rate", "above 0"]),
        ({"fit": {"schedule": "steps"}}, ["fit.schedule", "cosine"]),
        ({"similarity": {"name": "ssd"}}, ["similarity.name", "ssd", "mind"]),
        ({"regularity": {"exact": 1}}, ["regularity.exact", "bool"]),
        ({"similarity": {"window": [1.0]}}, ["similarity.window"]),
        ({"similarity": {"window": [5, 1]}}, ["similarity.window", "low < high"]),
        ({"similarity": {"name": "ncc", "blurs": [-1]}}, ["similarity.blurs", "0 or more"]),
        ({"similarity": {"name": "mind", "blurs": [2.0]}}, ["similarity.blurs", "only for ncc and mse"]),
        ({"similarity": {"name": "ncc", "blurs": []}}, ["similarity.blurs"]),
        ({"similarity": {"points": 0}}, ["similarity.points", "above 0"]),
        ({"similarity": {"stages": [{"spacing_mm": 0}, {"start": 0.5}]}}, ["stages[0].spacing_mm", "above 0"]),
        ({"similarity": {"stages": []}}, ["similarity.stages", "start 0"]),
        ({"similarity": {"stages": [{"start": 0.5}]}}, ["similarity.stages", "start 0"]),
        ({"similarity": {"stages": [{"spacing": 1}]}}, ["similarity.stages[0].spacing", "spacing_mm"]),
        ({"regularity": {"name": "tv"}}, ["regularity.name", "gradicon"]),
        ({"regularity": {"points": {"fraction": "x"}}}, ["regularity.points.fraction", "float"]),
        ({"field": {"modulation": "tanh"}}, ["field.modulation", "relu"]),
        ({"field": {"width": 0}}, ["field.width"]),
        ({"field": {"width": 10**6}}, ["field.width", "at most 4096"]),
        ({"fit": {"beta2": -1}}, ["fit.beta2", "0 or more"]),
        ({"fit": {"learning_rate": float("nan")}}, ["fit.learning_rate", "finite"]),
        ({"similarity": {"window": [float("-inf"), 1]}}, ["similarity.window[0]", "finite"]),
        ({"similarity": {"points": {"least": -5}}}, ["similarity.points", "least"]),
        ({"similarity": {"stages": [{"dilation": 10**5}]}}, ["stages[0]", "dilation"]),
        ({"similarity": {"mask_margin_mm": 1e300}}, ["similarity.mask_margin_mm", "finite"]),
        ({"regularity": {"weight": float("inf")}}, ["regularity.weight", "finite"]),
    ],
)
def test_a_wrong_entry_is_named(data, words):
    with pytest.raises(NephiError) as raised:
        from_dict(data)
    text = str(raised.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_files_that_are_no_settings(tmp_path):
    with pytest.raises(NephiError, match="cannot read settings"):
        load(tmp_path / "none.json")
    cases = ("{", "not valid JSON"), ("[1]", "JSON object"), ('{"preset": "fats"}', "unknown preset 'fats'")
    for text, match in cases:
        file = tmp_path / "bad.json"
        file.write_text(text)
        with pytest.raises(NephiError, match=match):
            load(file)
    with pytest.raises(NephiError, match="unknown preset 'fats'.*fast"):
        preset("fats")


def test_to_dict_is_plain_json():
    assert json.loads(Settings().to_json())["fit"]["iterations"] == 400


# ---- what was written before ---------------------------------------------------------------------------


def test_settings_as_reports_held_them_before_still_load():
    """Whatever the classes are called by now: a file that lists every entry gives the preset it was written from."""
    file = Path(__file__).with_name("former_settings.json")
    assert load(file) == PRESETS["balanced"]
    written = json.loads(file.read_text())
    assert from_dict({**written, "similarity": {**written["similarity"], "points": 700}}).similarity.points == Sampling(
        0.0, 700, 700
    )


@pytest.mark.parametrize("name", ["lung", "lung-m", "lung-m-coarse", "shapes2d-hollow", "shapes2d-solid"])
def test_the_settings_that_the_shipped_models_were_trained_with_still_load(name):
    written = read_json(Path(__file__).parents[2] / "docs" / f"{name}.json")
    settings = decode(TrainSettings(), written)
    check_training(settings)
    assert settings.fit.iterations == written["fit"]["iterations"]
