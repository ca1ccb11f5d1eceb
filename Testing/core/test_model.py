"""The file of a trained model: what it keeps, and what is said of a file that is none or does not fit."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace

import pytest
import safetensors
import safetensors.torch
import torch
from nephi.errors import NephiError
from nephi.learning import shipped
from nephi.learning.dataset import Shapes
from nephi.learning.model import Model, about
from nephi.learning.settings import MatchingSettings, ModelSettings, PublishedSettings, check
from nephi.learning.shipped import find_model
from nephi.registration import register
from nephi.settings import NeuralSettings

SETTINGS = {
    "published": ModelSettings(
        dimension=2,
        field=NeuralSettings(width=16, frequencies=8, modulation="sine", global_code=6, local_code=5, linear=False),
        encoder=PublishedSettings(size=24, channels=(8, 16), hidden=12, local_level=1),
        cube_margin_mm=3.0,
    ),
    "matching": ModelSettings(
        dimension=2,
        field=NeuralSettings(width=16, frequencies=8, global_code=6, local_code=5, linear=False),
        encoder=MatchingSettings(node_spacing=0.5, steps=(4, 2), width=8),
        half_size_mm=90.0,
    ),
}


def sample(model: Model):
    return Shapes(False, model.settings, True, count=1)[0]


@pytest.fixture(scope="module", params=SETTINGS)
def trained(request, tmp_path_factory):
    """A model whose every weight is something, and its file."""
    model = Model(SETTINGS[request.param], torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in (model.fields.out, model.fields.out_bias):
            p.normal_(0, 0.05, generator=generator)
        model.train().codes([sample(model)])  # so that statistics of batches are not those of a new model
    path = tmp_path_factory.mktemp("model") / "trained.safetensors"
    model.save(path, {"seconds": 12.5, "data": "pairs.csv"})
    return model, path


def test_a_file_gives_the_same_maps(trained):
    model, path = trained
    again = Model.load(path)
    assert again.settings == model.settings
    code, same = (m.predict(sample(m)).code for m in (model, again))
    assert torch.equal(same.global_code, code.global_code) and torch.equal(same.local_code, code.local_code)
    x = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before, after = model.fields(x, code), again.fields(x, same)
    assert torch.equal(after, before) and (before - x).abs().max() > 1e-3
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_the_settings_and_how_it_came_to_be_are_in_the_file(trained):
    model, path = trained
    with safetensors.safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["settings"]) == json.loads(json.dumps(asdict(model.settings)))
    assert about(path) == {"seconds": 12.5, "data": "pairs.csv"}


def test_nothing_in_the_file_is_run(trained, monkeypatch):
    """A header of JSON and numbers, read without pickle."""
    _, path = trained
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert len(data) == 8 + length + max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")

    def refused(*_, **__):
        raise AssertionError("pickle")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refused)
    Model.load(path)


def rewritten(path, target, change):
    """A copy of a model file after ``change(metadata, tensors)``."""
    with safetensors.safe_open(str(path), "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del metadata["sha256"]  # what is changed here is well-formed: no damage
    change(metadata, tensors)
    safetensors.torch.save_file(tensors, str(target), metadata)


def setting(**changes):
    """A change of entries of the settings, ``a__b`` being b within a."""

    def change(metadata, tensors):
        data = json.loads(metadata["settings"])
        for key, value in changes.items():
            *outer, last = key.split("__")
            part = data
            for name in outer:
                part = part[name]
            part[last] = value
        metadata["settings"] = json.dumps(data)

    return change


_UNFIT = {
    "a tensor of another shape": (
        lambda m, t: t.update({"fields.out": torch.zeros(2, 16, 3)}), ["fields.out", "(2, 16, 3)", "(2, 16, 2)"]),
    "a tensor is missing": (lambda m, t: t.pop("fields.out_bias"), ["fields.out_bias", "None", "(2, 1, 2)"]),
    "a tensor too many": (lambda m, t: t.update({"fields.more": torch.zeros(3)}), ["fields.more", "(3,)", "None"]),
    "values that are not numbers": (lambda m, t: t["fields.out"].fill_(torch.nan), ["damaged", "fields.out"]),
    "settings of another width": (setting(field__width=24), ["fields.synthesis_in", "(2, 16, 16)", "(2, 16, 24)"]),
    "settings of another dimension": (setting(dimension=3), ["fields.out", "(2, 16, 2)", "(2, 16, 3)"]),
    "an unknown entry": (setting(depth=7), ["unknown entry 'depth'"]),
    "an unknown entry within": (setting(encoder__depth=7), ["unknown entry 'encoder.depth'"]),
    "a value of another type": (setting(field__width="wide"), ["field.width", "'wide'", "int"]),
    "an unknown encoder": (setting(encoder__kind="magic"), ["encoder.kind", "'magic'", "published"]),
    "four dimensions": (setting(dimension=4), ["dimension is 4"]),
    "no settings": (lambda m, t: m.pop("settings"), ["settings"]),
    "settings that are no object": (lambda m, t: m.update(settings="[1]"), ["settings"]),
    "garbled settings": (lambda m, t: m.update(settings="{"), ["settings"]),
    "another format": (lambda m, t: m.update(format="nephi-model-9"), ["nephi-model-9"]),
    "no format": (lambda m, t: m.clear(), ["not a trained NePhi model"]),
}  # fmt: skip


@pytest.mark.parametrize("case", _UNFIT)
def test_what_does_not_fit_is_named(case, trained, tmp_path):
    change, words = _UNFIT[case]
    path = tmp_path / "changed.safetensors"
    rewritten(trained[1], path, change)
    text = complaint(path)
    for word in words:
        assert word in text, text


def complaint(path) -> str:
    with pytest.raises(NephiError) as caught:
        Model.load(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize("damage", ["truncated", "header cut", "garbage", "empty", "text", "flipped"])
def test_a_damaged_file_is_refused(damage, trained, tmp_path):
    data = trained[1].read_bytes()
    damaged = {
        "truncated": data[: 2 * len(data) // 3],
        "header cut": data[:50],
        "garbage": b"\x93\x17" * 3000,
        "empty": b"",
        "text": b"{}" * 40,
        "flipped": data[:3] + bytes([data[3] ^ 0xFF]) + data[4:],
    }[damage]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damaged)
    assert ("is empty" if damage == "empty" else "cannot read") in complaint(path)


def test_the_result_of_a_registration_is_no_trained_model(phantom_2d, short, tmp_path):
    register(phantom_2d.fixed, phantom_2d.moving, settings=short(1), device="cpu").save(tmp_path / "m.safetensors")
    assert "nephi-registration-2" in complaint(tmp_path / "m.safetensors")


def test_a_file_of_something_else_is_no_trained_model(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    assert "not a trained NePhi model" in complaint(tmp_path / "other.safetensors")


def test_names_of_shipped_models(trained, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(shipped, "WEIGHTS", folder)
    with pytest.raises(NephiError, match="no model 'lung': choose one of none, or a model file"):
        Model.load("lung")
    for name in ("lung", "brain"):
        (folder / f"{name}.safetensors").write_bytes(trained[1].read_bytes())
    assert shipped.shipped_models() == ["brain", "lung"]
    assert find_model("lung") == folder / "lung.safetensors"
    assert Model.load("lung").settings == trained[0].settings
    for unknown in ("lungs", str(tmp_path / "absent.safetensors"), tmp_path):
        with pytest.raises(NephiError, match="brain, lung"):
            find_model(unknown)


_SENSELESS = {
    "kind": ({"kind": "magic"}, "encoder.kind"),
    "norm": ({"norm": "layer"}, "encoder.norm"),
    "width": ({"width": 20}, "encoder.width"),
    "group norm": ({"kind": "published", "norm": "group", "channels": (8, 12), "local_level": 1}, "encoder.channels"),
    "no channels": ({"channels": ()}, "encoder.channels"),
    "no rounds": ({"steps": ()}, "encoder.steps"),
    "even windows": ({"windows": (3, 4)}, "encoder.windows"),
    "level": ({"local_level": 6}, "encoder.local_level"),
    "spacing": ({"node_spacing": 0.0}, "encoder.node_spacing"),
}


@pytest.mark.parametrize("case", _SENSELESS)
def test_settings_that_make_no_model(case):
    changes, word = _SENSELESS[case]
    published = changes.keys() & {"norm", "channels", "local_level"}
    encoder = replace(PublishedSettings() if published else MatchingSettings(), **changes)
    settings = replace(SETTINGS["matching"], encoder=encoder)
    with pytest.raises(NephiError, match=word):
        check(settings)
    with pytest.raises(NephiError, match=word):
        Model(settings)


def test_a_batch_lies_in_cubes_of_one_shape():
    model = Model(SETTINGS["published"])
    pair = sample(model)
    assert model.codes([pair, pair])[0].batch == 2
    with pytest.raises(NephiError, match="set batch to 1"):
        model.codes([pair, replace(pair, half_extents_cube=torch.tensor([1.0, 0.8]))])
