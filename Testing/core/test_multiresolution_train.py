"""Training of two stages: each by a command of its own, the coarse one frozen before the fine one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from nephi.cli import main
from nephi.learning import train as train_module
from nephi.learning.model import Model, about
from nephi.learning.settings import ModelSettings, PublishedSettings, TrainSettings
from nephi.learning.state import LOG, MODEL, RESUME
from nephi.learning.train import train
from nephi.settings import Features, FitSettings, RegularitySettings, Sampling
from stages import both, randomised, single, voxel

CPU = torch.device("cpu")
_COARSE = {
    "matching": voxel(features=Features(12.0, 1)),
    "published": voxel(
        features=Features(12.0, 1), encoder=PublishedSettings(size=24, channels=(8, 16), hidden=12, local_level=1)
    ),
}


def brief(model: ModelSettings, data: Path, **changes) -> TrainSettings:
    settings = TrainSettings(
        data=str(data), model=model, fit=FitSettings(iterations=4, learning_rate=1e-3), accumulate=2,
        regularity=RegularitySettings(points=Sampling(0.0, 16, 16)), validate_every=2, save_every=2,
    )  # fmt: skip
    return replace(settings, **changes)


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    monkeypatch.setattr(train_module, "tensorboard", lambda *_: None)


def write(settings: TrainSettings, path: Path) -> str:
    path.write_text(json.dumps(asdict(settings)))
    return str(path)


def command(*arguments) -> int:
    return main(["train", *map(str, arguments), "--device", "cpu", "--threads", "1", "--progress", "none"])


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", _COARSE)
def test_each_stage_is_trained_by_a_command(kind, training_pairs, tmp_path):
    """The first on its own; then, as it is, before the second; a stopped run goes on as it would have."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert command(write(brief(_COARSE[kind], training_pairs), tmp_path / "1.json"), "--output", first) == 0
    coarse = first / MODEL
    fine = brief(single(spacing_mm=4.0), training_pairs)
    assert command(write(fine, tmp_path / "2.json"), "--coarse", coarse, "--output", second) == 0

    trained, before = Model.load(second / MODEL), Model.load(coarse)
    assert trained.coarse.settings == before.settings == _COARSE[kind]
    for name, value in before.state_dict().items():  # statistics of batches as well
        assert torch.equal(trained.coarse.state_dict()[name], value), name
    torch.manual_seed(fine.fit.seed)
    begun = Model(fine.model, torch.Generator().manual_seed(fine.fit.seed))
    assert not torch.equal(trained.encoder.local.weight, begun.encoder.local.weight)
    assert about(second / MODEL)["settings"]["coarse"] == str(coarse)
    entries = [json.loads(line) for line in (second / LOG).read_text().splitlines()]
    assert all("known" in e for e in entries if "loss" in e)
    assert all({"validation_tre_mm", "validation_dice"} <= set(e) for e in entries if "validation_score" in e)

    def stop(stage: str, fraction: float, entry: dict) -> None:
        if entry.get("step") == 3 and "loss" in entry:
            raise Stopped

    third = tmp_path / "third"
    third.mkdir()
    settings = replace(fine, coarse=str(coarse))
    with pytest.raises(Stopped):
        train(settings, third, CPU, progress=stop)
    assert command(tmp_path / "2.json", "--coarse", coarse, "--output", third, "--resume") == 0
    whole, parts = (safetensors.torch.load_file(str(f / RESUME)) for f in (second, third))
    assert set(whole) == set(parts)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_what_the_coarse_stage_found_is_not_looked_for_again(training_pairs, tmp_path):
    """The known points that the fine stage is taught are those seen through the coarse one."""
    coarse = randomised(voxel(features=Features(12.0, 1)), 0)
    with torch.no_grad():
        coarse.encoder.local.bias.fill_(1.5)  # it predicts a shift that is off
    coarse.save(tmp_path / "off.safetensors")
    settings = brief(single(spacing_mm=4.0), training_pairs, fit=FitSettings(iterations=1))
    known = {}
    for name in ("", str(tmp_path / "off.safetensors")):
        folder = tmp_path / (Path(name).stem or "alone")
        folder.mkdir()
        train(replace(settings, coarse=name), folder, CPU)
        known[folder.name] = json.loads((folder / LOG).read_text().splitlines()[0])["known"]
    assert known["off"] > known["alone"] + 5


def test_the_command_begins_with_the_weights_of_another_model(training_pairs, tmp_path):
    begun = randomised(single(spacing_mm=4.0), 3)
    begun.save(tmp_path / "begun.safetensors")
    coarse = randomised(_COARSE["matching"], 4)
    coarse.save(tmp_path / "coarse.safetensors")
    fine = brief(begun.settings, training_pairs, fit=FitSettings(iterations=1, learning_rate=1e-9))
    flags = ["--start", tmp_path / "begun.safetensors", "--coarse", tmp_path / "coarse.safetensors"]
    assert command(write(fine, tmp_path / "s.json"), *flags, "--output", tmp_path / "run") == 0
    trained = Model.load(tmp_path / "run" / MODEL)
    for name, value in begun.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, atol=1e-7, rtol=0)
    for name, value in coarse.state_dict().items():
        assert torch.equal(trained.coarse.state_dict()[name], value), name


_BAD = {
    "no such model": ({}, ["--coarse", "absent"], ["no model 'absent'"]),
    "no such start": ({}, ["--start", "absent"], ["no model 'absent'"]),
    "no model": ({}, ["--coarse", "@junk"], ["junk", "cannot read"]),
    "of two stages itself": ({}, ["--coarse", "@two"], ["cannot have a coarse stage of its own"]),
    "of another alignment": ({"model": {"align": "none"}}, ["--coarse", "@coarse"], ["align is 'none', but 'auto'"]),
    "of another spacing": ({}, ["--coarse", "@odd"], ["spacing 4.0 mm must be a multiple of the fine 2.5 mm"]),
    "of no file": ({"model": {"coarse": {"dimension": 2}}}, [], ["model.coarse", "give its name or file as coarse"]),
    "start of another make": ({}, ["--start", "@coarse"], ["the model to start from has a different field"]),
}  # fmt: skip


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, training_pairs, tmp_path, capfd):
    changes, flags, words = _BAD[case]
    made = {"coarse": voxel(), "two": both(), "odd": voxel(features=Features(4.0, 1))}
    for name, settings in made.items():
        Model(settings).save(tmp_path / f"{name}.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 50)
    settings = asdict(brief(single(), training_pairs))
    settings["model"] |= changes.get("model", {})
    (tmp_path / "s.json").write_text(json.dumps(settings))
    flags = [str(tmp_path / f"{f[1:]}.safetensors") if f.startswith("@") else f for f in flags]
    assert command(tmp_path / "s.json", *flags, "--output", tmp_path / "out") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("nephi: "), lines
    for word in words:
        assert word in lines[0], lines
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
