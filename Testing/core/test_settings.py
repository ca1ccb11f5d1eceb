"""Settings to and from JSON, and what is said about a wrong entry."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nephi import registry
from nephi.config import decode, of_kind, read_json
from nephi.errors import NephiError
from nephi.learning.settings import MatchingSettings, ModelSettings, PublishedSettings, TrainSettings, check_training
from nephi.learning.settings import check as check_model
from nephi.limits import Count, Seed, check_limits, check_value
from nephi.settings import (
    FIELDS,
    PRESETS,
    Features,
    FieldSettings,
    IntensitySettings,
    Level,
    MindSettings,
    NeuralSettings,
    Sampling,
    Settings,
    SimilaritySettings,
    VoxelSettings,
    check,
    from_dict,
    load,
    preset,
)
from nephi.synthetic.breathing import BreathingSettings, generate
from nephi.synthetic.phantom import make_phantom
from nephi.synthetic.shapes import shape_pairs


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
    s = from_dict({"levels": [{"features": {"spacing_mm": 3}}, {"start": 0.5}], "similarity": {"window": [0, 1]}})
    assert s.levels == (Level(0.0, Features(3.0, 2)), Level(0.5, Features(2.0, 2)))
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
        ({"similarity": {"name": "mind", "blurs": [2.0]}}, ["similarity.blurs", "mind", "noise"]),
        ({"similarity": {"name": "ncc", "blurs": []}}, ["similarity.blurs"]),
        ({"similarity": {"points": 0}}, ["similarity.points.least", "1 or more"]),
        (
            {"levels": [{"features": {"spacing_mm": 0}}, {"start": 0.5}]},
            ["levels[0].features.spacing_mm", "0.001 or more"],
        ),
        ({"levels": []}, ["levels", "at least one"]),
        ({"levels": [{"start": 0.5}]}, ["levels[0].start", "begin at 0"]),
        ({"levels": [{"features": {"spacing": 1}}]}, ["levels[0].features.spacing", "spacing_mm"]),
        ({"regularity": {"name": "tv"}}, ["regularity.name", "gradicon"]),
        ({"regularity": {"points": {"fraction": "x"}}}, ["regularity.points.fraction", "float"]),
        ({"field": {"modulation": "tanh"}}, ["field.modulation", "relu"]),
        ({"field": {"width": 0}}, ["field.width"]),
        ({"field": {"width": 10**6}}, ["field.width", "at most 4096"]),
        ({"fit": {"beta2": -1}}, ["fit.beta2", "0 or more"]),
        ({"fit": {"learning_rate": float("nan")}}, ["fit.learning_rate", "finite"]),
        ({"similarity": {"window": [float("-inf"), 1]}}, ["similarity.window[0]", "finite"]),
        ({"similarity": {"points": {"least": -5}}}, ["similarity.points", "least"]),
        ({"levels": [{"features": {"dilation": 10**5}}]}, ["levels[0].features.dilation", "at most 64"]),
        ({"similarity": {"mask_margin_mm": 1e300}}, ["similarity.mask_margin_mm", "1e+300", "at most 1e+09"]),
        ({"similarity": {"mask_margin_mm": 10**400}}, ["similarity.mask_margin_mm", "too large"]),
        ({"similarity": {"points": {"least": 900, "most": 70}}}, ["similarity.points", "least", "900", "70"]),
        ({"preset": "paper", "similarity": {"noise": 0.1}}, ["similarity.noise", "ncc", "blurs"]),
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
    with pytest.raises(NephiError, match="no such file"):
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
    file, sharp = Path(__file__).with_name("former_settings.json"), Features(1.25, 1, 0.5)
    levels = Level(0.0, Features(2.0, 2), 4.0), Level(0.4, sharp, 2.0), Level(0.7, sharp)  # those of then
    assert load(file) == replace(PRESETS["balanced"], levels=levels)
    written = json.loads(file.read_text())
    assert from_dict({**written, "similarity": {**written["similarity"], "points": 700}}).similarity.points == Sampling(
        0.0, 700, 700
    )


def test_stages_of_former_files_are_the_levels():
    stages = [{"spacing_mm": 3, "coarsening": 2}, {"start": 0.5, "dilation": 1, "outside": 0.5}]
    data = {"similarity": {"name": "ncc", "blurs": [1.0], "stages": stages}}
    kept = json.loads(json.dumps(data))
    settings = from_dict(data)
    assert settings.levels == (Level(0.0, Features(3.0, 2), 2.0), Level(0.5, Features(2.0, 1, 0.5)))
    assert settings.similarity == IntensitySettings("ncc", blurs=(1.0,), mask_margin_mm=7.0) and data == kept
    for stages in ([{"spacing_mm": "x"}], [3], 3, [{"spacing": 1}]):
        with pytest.raises(NephiError, match="settings: "):
            from_dict({"similarity": {"stages": stages}})


def test_settings_that_former_models_held_still_load():
    """They listed the entries of every kind of encoder and of similarity, most of them of no meaning."""
    written = read_json(Path(__file__).with_name("former_model.json"))
    settings = decode(ModelSettings(), written)
    check_model(settings)
    assert settings.encoder == MatchingSettings(steps=(4, 3), windows=(3, 5)) and settings.features == Features(3.0, 1)
    assert settings.similarity == MindSettings(noise=0.02)
    assert settings.coarse.encoder == PublishedSettings(size=64) and settings.coarse.features == Features(6.0, 2)
    assert settings.coarse.similarity == IntensitySettings("ncc", blurs=(0.0, 2.0))
    training = decode(TrainSettings(), {"model": written})
    assert training.model == settings
    for broken in ([], [3], 3):
        with pytest.raises(NephiError, match="settings: "):
            decode(ModelSettings(), {"similarity": {"stages": broken}})


@pytest.mark.parametrize("part", ["field", "encoder", "similarity"])
def test_a_misspelt_entry_among_all_of_them_is_told(part):
    today = json.loads(json.dumps(dataclasses.asdict(ModelSettings())))
    for made in (today, read_json(Path(__file__).with_name("former_model.json"))):
        made[part]["widht"] = 3
        with pytest.raises(NephiError, match="unknown entry .*widht"):
            decode(ModelSettings(), made)


@pytest.mark.parametrize("name", ["lung", "lung-m", "lung-m-coarse", "shapes2d-hollow", "shapes2d-solid"])
def test_the_settings_that_the_shipped_models_were_trained_with_still_load(name):
    written = read_json(Path(__file__).parents[2] / "docs" / f"{name}.json")
    settings = decode(TrainSettings(), written)
    check_training(settings)
    assert settings.fit.iterations == written["fit"]["iterations"]


# ---- kinds of things --------------------------------------------------------------------------------------


def test_settings_of_another_kind_keep_what_both_have():
    mind = MindSettings(mask_margin_mm=2.0, noise=0.5)
    ncc = of_kind(mind, "ncc")
    assert ncc == IntensitySettings("ncc", mask_margin_mm=2.0)
    assert type(of_kind(mind, "lncc")) is SimilaritySettings  # has no entries of its own
    assert of_kind(ncc, "mind") == MindSettings(mask_margin_mm=2.0)
    made = decode(TrainSettings(), {"model": {"encoder": {"kind": "matching", "reach": 3}}})
    assert made.model.encoder == MatchingSettings(reach=3)
    with pytest.raises(
        NephiError, match=r"unknown entry 'model.encoder.size' of encoder 'matching' \(known: kind, node_"
    ):
        decode(TrainSettings(), {"model": {"encoder": {"kind": "matching", "size": 3}}})


def test_a_name_without_its_settings_is_refused():
    with pytest.raises(NephiError, match="similarity.name is 'ncc', whose settings are IntensitySettings"):
        check(replace(Settings(), similarity=MindSettings("ncc")))


def test_saved_settings_of_a_similarity_unknown_here_load():
    data = {"similarity": {"name": "of another package", "bins": 32, "finest": 0.5}}
    assert from_dict(data, names=False).similarity.finest == 0.5
    with pytest.raises(NephiError, match="similarity.name is 'of another package', must be one of mind"):
        from_dict(data)


def test_a_field_has_the_entries_of_its_kind_and_no_others():
    voxel = from_dict({"field": {"kind": "voxel", "code_spacing_mm": 5}}).field
    assert voxel == VoxelSettings(code_spacing_mm=5.0)  # its code has the channels that it needs
    assert not {"width", "frequencies", "omega", "linear"} & dataclasses.asdict(voxel).keys()
    paper = PRESETS["paper"].field
    assert of_kind(of_kind(paper, "voxel"), "neural") == NeuralSettings(code_spacing_mm=16.0, code_degree=1)
    with pytest.raises(NephiError, match=r"unknown entry 'field.width' of field 'voxel' \(known: kind, global_code, "):
        from_dict({"field": {"kind": "voxel", "width": 32}})
    with pytest.raises(NephiError, match="field.kind is 'voxel', whose settings are VoxelSettings, not NeuralSettings"):
        check(replace(Settings(), field=NeuralSettings("voxel")))


def test_lengths_of_a_field_are_scaled_together():
    assert NeuralSettings().scaled(0.5) == NeuralSettings(code_spacing_mm=6.0, wavelength_mm=125.0)
    assert VoxelSettings().scaled(0.5) == VoxelSettings(code_spacing_mm=6.0)


def test_entries_of_an_own_field_are_those_of_its_class(monkeypatch):
    """Also in files of former versions, which listed what networks have whatever the kind."""

    @dataclasses.dataclass(frozen=True)
    class WideSettings(FieldSettings):
        width: int = 8
        decay: float = 0.5

    for name in ("_factories", "_settings"):
        monkeypatch.setattr(FIELDS, name, dict(getattr(FIELDS, name)))
    FIELDS.add("plain", object)
    FIELDS.add("wide", lambda: None, settings=WideSettings)
    former = json.loads(Path(__file__).with_name("former_settings.json").read_text(encoding="utf-8"))["field"]
    for kind, wanted in (
        ("plain", FieldSettings("plain")),
        ("wide", WideSettings("wide", width=64)),
        ("voxel", VoxelSettings(global_code=16, local_code=16)),
        ("neural", NeuralSettings()),
    ):
        assert from_dict({"field": {**former, "kind": kind}}).field == wanted
    assert from_dict({"field": {"kind": "wide", "decay": 1}}).field == WideSettings("wide", decay=1.0)


def test_entries_of_a_kind_that_an_entry_point_brings_are_read(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class BrushSettings(FieldSettings):
        strokes: int = 3

    class Point:
        def load(self):
            FIELDS.describe("brush", BrushSettings)
            return object

    for name in ("_factories", "_settings"):
        monkeypatch.setattr(FIELDS, name, dict(getattr(FIELDS, name)))
    monkeypatch.setattr(registry, "entry_points", lambda **which: [Point()] if which["name"] == "brush" else [])
    assert from_dict({"field": {"kind": "brush", "strokes": 7}}).field == BrushSettings("brush", strokes=7)


# ---- limits -----------------------------------------------------------------------------------------------


def numbers(value, where: str = ""):
    """Every number in a settings object: its dotted name, and what makes the same object with another one there."""
    for one in dataclasses.fields(value):

        def put(new, key=one.name):
            return replace(value, **{key: new})

        yield from numbers_in(getattr(value, one.name), f"{where}{one.name}", put)


def numbers_in(inner, name: str, put):
    if dataclasses.is_dataclass(inner):
        yield from ((n, lambda x, p=p: put(p(x))) for n, p in numbers(inner, f"{name}."))
    elif isinstance(inner, tuple):
        for i, item in enumerate(inner):

            def at(new, i=i):
                return put((*inner[:i], new, *inner[i + 1 :]))

            yield from numbers_in(item, f"{name}[{i}]", at)
    elif isinstance(inner, (int, float)) and not isinstance(inner, bool):
        yield name, put


ROOTS = {
    "balanced": (PRESETS["balanced"], check),
    "paper": (PRESETS["paper"], check),
    "published": (TrainSettings(), check_training),
    "matching": (
        TrainSettings(model=ModelSettings(encoder=MatchingSettings(), coarse=ModelSettings())),
        check_training,
    ),
    "breathing": (BreathingSettings(), check_limits),
    "breathing on three spacings": (BreathingSettings(spacing_mm=(1.0, 1.0, 2.5)), check_limits),
}
# 1e300 is beyond every limit, -1e300 too, and so are whole numbers of that size
BEYOND = [float("nan"), float("inf"), float("-inf"), 1e300, -1e300, 10**300, -(10**300)]
NUMBERS = [(root, name, put) for root, (value, _) in ROOTS.items() for name, put in numbers(value)]


@pytest.mark.parametrize("root, name, put", NUMBERS, ids=[f"{root} {name}" for root, name, _ in NUMBERS])
def test_every_number_is_refused_beyond_its_limits(root, name, put):
    ROOTS[root][1](ROOTS[root][0])  # as it is, it passes
    for value in BEYOND:
        with pytest.raises(NephiError) as raised:
            ROOTS[root][1](put(value))
        text = str(raised.value)
        assert text.startswith(f"settings: {name} is ") and "\n" not in text, text
        assert repr(value) in text, text


def test_the_walk_above_meets_every_entry():
    found = {name for root, name, _ in NUMBERS if root == "matching"}
    assert {"fit.seed", "model.coarse.encoder.channels[5]", "model.encoder.steps[3]", "augmentation.swap"} <= found
    assert {"smooth_mm[2][1]", "spacing_mm[2]"} <= {name for root, name, _ in NUMBERS if root.startswith("breathing")}
    assert len(NUMBERS) > 150


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"wall_mm": (5.0, 1.0)}, "wall_mm is (5.0, 1.0), must be (low, high) with low <= high"),
        ({"smooth_mm": ((90, 2, 1),)}, "smooth_mm[0][1:] is (2, 1)"),
        ({"still": 0.7, "tidal": 0.7}, "tidal and still are 1.4 together, must be at most 1"),
        ({"cut": 1.5}, "cut is 1.5, must be 0 or more, at most 1"),
        ({"spacing_mm": (1.0, 2.0)}, "spacing_mm is (1.0, 2.0), expected a list of 3"),
        ({"scale": 1.0}, "scale is 1.0, expected a list of 2"),
        ({"spacing_mm": None}, "spacing_mm is None, expected float"),
    ],
)
def test_what_a_breath_cannot_be_drawn_from(settings, words):
    with pytest.raises(NephiError) as raised:
        check_limits(BreathingSettings(**settings))
    assert str(raised.value).startswith(f"settings: {words}")


def test_numbers_given_as_arguments_have_limits_too(tmp_path):
    check_value(np.int64(3), Seed, "seed")
    for call in (
        lambda: make_phantom(seed=-1),
        lambda: make_phantom(spacing_mm=float("nan")),
        lambda: make_phantom(size=(10**9, 10, 10)),
        lambda: shape_pairs(2, -1),
        lambda: generate(tmp_path, 0),
        lambda: generate(tmp_path, 1, -1),
        lambda: check_value(1.5, Count, "count"),
    ):
        with pytest.raises(NephiError, match="must be|expected int|A phantom needs 8 to 4096 voxels") as raised:
            call()
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
