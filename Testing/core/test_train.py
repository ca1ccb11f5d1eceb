"""Training: it learns, goes on after a stop as if there had been none, and shares its work among processes."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import nephi
import pytest
import safetensors.torch
import torch
from nephi.cli import main
from nephi.errors import NephiError
from nephi.learning import dataset
from nephi.learning import train as train_module
from nephi.learning.augment import Augmentation
from nephi.learning.dataset import Shapes
from nephi.learning.model import Model, about
from nephi.learning.settings import MatchingSettings, ModelSettings, PublishedSettings, TrainSettings
from nephi.learning.state import LOG, MODEL, RESUME
from nephi.learning.train import train
from nephi.learning.validate import validate
from nephi.settings import (
    Features,
    FitSettings,
    IntensitySettings,
    MindSettings,
    NeuralSettings,
    RegularitySettings,
    Sampling,
)

CPU = torch.device("cpu")
STILL = Augmentation(flip=0, rotation_deg=0, scale=0, shift=0, apart_deg=0, apart_scale=0, apart_shift=0, swap=0)
_FIELD = NeuralSettings(width=32, frequencies=16, wavelength_mm=200.0)
SHAPES = TrainSettings(
    data="shapes-solid",
    model=ModelSettings(
        dimension=2,
        field=_FIELD,
        encoder=PublishedSettings(size=48, channels=(16, 32, 32), hidden=64, local_level=2, norm="group"),
        features=Features(1.0, 1),
        similarity=IntensitySettings("mse", Sampling(0.0, 400, 400), window=(0.0, 1.0)),
        cube_margin_mm=0.0,
    ),
    fit=FitSettings(iterations=64, learning_rate=4e-3, warm_up=0.05, beta2=0.99),
    regularity=RegularitySettings(weight=0.3, points=Sampling(0.0, 32, 32)),
    batch=8,
    augmentation=STILL,
    validate_every=32,
    save_every=32,
)
_ENCODERS = {
    "published, batch norm": PublishedSettings(size=32, channels=(8, 16), hidden=16, local_level=1),
    "matching": MatchingSettings(node_spacing=0.4, steps=(3, 1), width=16),
}


def brief(encoder: str, data: Path, **changes) -> TrainSettings:
    """Six steps on a list of pairs, with augmentation, two batches a step."""
    similarity = MindSettings(points=Sampling(0.0, 200, 200))
    small = NeuralSettings(width=16, frequencies=8, global_code=6, local_code=5)
    settings = TrainSettings(
        data=str(data),
        model=ModelSettings(
            dimension=2, field=small, encoder=_ENCODERS[encoder], features=Features(4.0, 1), similarity=similarity
        ),
        fit=FitSettings(iterations=6, learning_rate=1e-3),
        regularity=RegularitySettings(points=Sampling(0.0, 16, 16), code_prior=0.01),
        accumulate=2,
        augmentation=Augmentation(flip=0.5),
        validate_every=2,
        save_every=2,
    )
    return replace(settings, **changes)


@pytest.fixture(scope="module")
def pairs(training_pairs) -> Path:
    return training_pairs


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Few shapes; TensorBoard, which takes seconds to load, only where a test is about it."""
    monkeypatch.setattr(dataset, "TRAINING", (400, 1))
    monkeypatch.setattr(dataset, "VALIDATION", (12, 2))
    monkeypatch.setattr(train_module, "tensorboard", lambda *_: None)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(str(folder / RESUME))


# ---- it learns -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "TRAINING", (400, 1))
        patch.setattr(dataset, "VALIDATION", (12, 2))
        patch.setattr(train_module, "tensorboard", lambda *_: None)
        folder = tmp_path_factory.mktemp("learned")
        told = []
        best = train(SHAPES, folder, CPU, progress=lambda *entry: told.append(entry))
    return folder, best, told


@pytest.mark.slow
def test_shapes_it_has_not_seen_overlap_better(learned):
    folder, best, _ = learned
    checks = Shapes(False, SHAPES.model, True, 12)
    before = validate(Model(SHAPES.model), checks, 12, CPU)
    assert best["dice"] > before["dice"] + 0.12  # measured: 0.53 -> 0.77
    assert best["folds_percent"] < 1
    model = Model.load(folder / MODEL)
    after = validate(model, checks, 12, CPU)
    assert after["dice"] == pytest.approx(best["dice"], abs=1e-5)


def test_the_model_s_file_tells_how_it_was_made(learned):
    folder, best, _ = learned
    facts = about(folder / MODEL)
    assert facts["settings"] == json.loads(json.dumps(asdict(SHAPES)))
    assert facts["validation"] == best and best["step"] in (32, 64)
    assert facts["version"] == nephi.__version__


def test_log_and_progress(learned):
    folder, _, told = learned
    entries = log_of(folder)
    steps = [e for e in entries if "loss" in e]
    checks = [e for e in entries if "validation_dice" in e]
    assert [e["step"] for e in steps] == list(range(1, 65))
    assert [e["step"] for e in checks] == [32, 64]
    assert all(e["peak_memory_mb"] > 50 and e["seconds"] >= 0 for e in entries)
    assert {"similarity", "regularity"} <= set(steps[0])
    first, last = (sum(e["similarity"] for e in part) / 10 for part in (steps[:10], steps[-10:]))
    assert last < 0.8 * first
    assert {stage for stage, *_ in told} == {"training", "validating"}
    assert told[-1][1] == 1.0


# ---- it goes on ----------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_at(step: int):
    def progress(stage: str, fraction: float, entry: dict) -> None:
        if entry.get("step") == step and "loss" in entry:
            raise Stopped

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("encoder", _ENCODERS)
def test_a_run_that_was_stopped_goes_on_as_it_would_have(encoder, pairs, tmp_path):
    settings = brief(encoder, pairs)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    best = train(settings, whole, CPU)
    with pytest.raises(Stopped):
        train(settings, parts, CPU, progress=stop_at(5))  # saved last after 4
    assert [e["step"] for e in log_of(parts)] == [1, 2, 2, 3, 4, 4, 5]
    assert train(settings, parts, CPU, resume=True) == best
    expected, found = state_of(whole), state_of(parts)
    assert set(found) == set(expected) and len(expected) > 20
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)
    for name in ("loss", "known", "code_prior", "validation_tre_mm"):
        both = [[e[name] for e in log_of(folder) if name in e] for folder in (whole, parts)]
        assert len(both[0]) in (3, 6) and both[1] == pytest.approx(both[0], rel=1e-4), name
    assert train(settings, parts, CPU, resume=True) == best  # there is nothing left to do


def test_a_new_run_begins_a_new_log(pairs, tmp_path):
    settings = brief("matching", pairs, fit=FitSettings(iterations=2))
    for _ in range(2):
        train(settings, tmp_path, CPU)
        assert [e["step"] for e in log_of(tmp_path) if "loss" in e] == [1, 2]


def test_the_best_is_kept(pairs, tmp_path, monkeypatch):
    """The first validation is the better one; one that gives no number is never the best."""
    scores = iter([float("nan"), 3.0, 1.0])
    monkeypatch.setattr(train_module, "validate", lambda *_: {"score": next(scores), "tre_mm": 1.0})
    assert train(brief("matching", pairs), tmp_path, CPU) == {"score": 3.0, "tre_mm": 1.0, "step": 4}
    assert about(tmp_path / MODEL)["validation"]["step"] == 4
    monkeypatch.setattr(train_module, "validate", lambda *_: {"score": float("nan")})
    (tmp_path / "nan").mkdir()
    with pytest.raises(NephiError, match="no model was written"):
        train(brief("matching", pairs), tmp_path / "nan", CPU)


# ---- what each step takes ------------------------------------------------------------------------------


def test_it_begins_with_the_weights_of_another_model(pairs, tmp_path):
    settings = brief("matching", pairs, fit=FitSettings(iterations=1, learning_rate=1e-9))
    torch.manual_seed(5)
    other = Model(settings.model, torch.Generator().manual_seed(5))
    other.save(tmp_path / "other.safetensors")
    train(replace(settings, start=str(tmp_path / "other.safetensors")), tmp_path / "run", CPU)
    trained = Model.load(tmp_path / "run" / MODEL).state_dict()
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-7, rtol=0)
    wider = replace(settings.model, field=replace(settings.model.field, width=24))
    with pytest.raises(NephiError, match="different field.*width=16.*width=24"):
        train(replace(settings, model=wider, start=str(tmp_path / "other.safetensors")), tmp_path / "wider", CPU)


def test_every_pair_has_its_turn_and_processes_share_them():
    settings = replace(SHAPES, batch=2, accumulate=4, fit=FitSettings(iterations=5))
    drawn = list(train_module._draws(8, settings, 0, 0, 1))
    assert len(drawn) == 20 and all(len(indices) == 2 for _, indices in drawn)
    for start in range(0, 20, 4):  # a pass over all eight, in an order of its own
        assert sorted(k for _, indices in drawn[start : start + 4] for k in indices) == list(range(8))
    assert len({tuple(tuple(i) for _, i in drawn[s : s + 4]) for s in range(0, 20, 4)}) == 5
    assert len({seed for seed, _ in drawn}) == 20
    halves = [list(train_module._draws(8, settings, 0, rank, 2)) for rank in (0, 1)]
    assert [d for both in zip(*halves, strict=True) for d in both] == drawn
    assert list(train_module._draws(8, settings, 3, 0, 1)) == drawn[12:]


@pytest.mark.slow
def test_the_points_that_are_known_count(pairs, tmp_path):
    """In mm: at first what the alignment leaves, and less as it learns."""
    settings = brief("matching", pairs, augmentation=STILL, similarity_weight=0.0, known_weight=1.0)
    settings = replace(settings, fit=FitSettings(iterations=30, learning_rate=5e-3), validate_every=30, save_every=30)
    best = train(settings, tmp_path, CPU)
    known = [e["known"] for e in log_of(tmp_path) if "known" in e]
    assert 1 < known[0] < 30
    assert sum(known[-5:]) < 0.7 * sum(known[:5])
    assert best["tre_mm"] < 0.7 * best["tre_before_mm"]  # measured: 2.5 -> 0.9 mm


# ---- several processes ---------------------------------------------------------------------------------


def test_work_that_processes_cannot_share(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "join", lambda device: (0, 2, device))
    with pytest.raises(NephiError, match="accumulate is 3: it must be a multiple of the 2 processes"):
        train(brief("matching", pairs, accumulate=3), tmp_path, CPU)


# ---- TensorBoard ---------------------------------------------------------------------------------------


def test_tensorboard_shows_curves_and_pictures(pairs, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.undo()
    settings = brief("matching", pairs, fit=FitSettings(iterations=4))
    with pytest.raises(Stopped):
        train(settings, tmp_path, CPU, progress=stop_at(3))  # saved last after 2
    train(settings, tmp_path, CPU, resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/similarity", "train/validation_tre_mm", "train/peak_memory_mb"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert len(tags["images"]) == 3


class Full:
    """A writer of curves that finds no room, as TensorBoard's does: in its thread, then at each call."""

    def __init__(self, *_):
        thread = threading.Thread(target=self.add_image)
        thread.start()
        thread.join()

    def add_image(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    add_scalar = close = add_image


def test_a_disk_that_is_full_for_tensorboard_is_one_line(pairs, tmp_path, monkeypatch, capfd):
    made = []
    monkeypatch.setattr(train_module, "tensorboard", lambda *_: made.append(Full()) or made[0])
    with pytest.raises(NephiError, match="training in .* ended: No space left"):
        train(brief("matching", pairs, fit=FitSettings(iterations=1)), tmp_path, CPU)
    assert made and not capfd.readouterr().err


def test_it_trains_without_tensorboard(pairs, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(brief("matching", pairs, fit=FitSettings(iterations=1)), tmp_path, CPU)
    assert (tmp_path / MODEL).is_file() and not (tmp_path / "tensorboard").exists()


# ---- bad input -----------------------------------------------------------------------------------------


def complaint(capfd) -> str:
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("nephi: "), lines
    return lines[0]


_BAD = {
    "no data": ({}, [], ["no training data", "--data"]),
    "no settings file": (None, ["@absent.json"], ["absent.json"]),
    "unknown entry": ({"model": {"encoder": {"kin": "matching"}}}, [], ["model.encoder.kin", "kind"]),
    "wrong type": ({"batch": "eight"}, [], ["batch", "'eight'", "int"]),
    "unknown encoder": ({"model": {"encoder": {"kind": "magic"}}, "data": "x"}, [], ["encoder.kind", "matching"]),
    "matching in batches": (
        {"model": {"encoder": {"kind": "matching"}}, "batch": 2}, ["--data", "x"], ["set batch to 1", "accumulate"]),
    "no batch": ({"batch": 0}, ["--data", "x"], ["batch is 0"]),
    "no accumulation": ({"accumulate": 0}, ["--data", "x"], ["accumulate is 0"]),
    "no validation": ({"validate_every": 0}, ["--data", "x"], ["validate_every is 0"]),
    "no steps": ({}, ["--data", "x", "--iterations", "0"], ["iterations is 0"]),
    "unknown schedule": ({"fit": {"schedule": "stairs"}}, ["--data", "x"], ["fit.schedule", "cosine"]),
    "unknown similarity": (
        {"model": {"similarity": {"name": "nmi"}}}, ["--data", "x"], ["similarity.name", "'nmi'", "mind"]),
    "absent list": ({}, ["--data", "absent.csv"], ["absent.csv"]),
    "shapes in 3D": ({}, ["--data", "shapes-solid"], ["2D", "dimension to 2"]),
    "absent validation": (
        {"model": {"dimension": 2}}, ["--data", "shapes-solid", "--validation", "absent.csv"], ["absent.csv"]),
    "resume without a state": ({"model": {"dimension": 2}}, ["--data", "shapes-solid", "--resume"], ["to resume"]),
    "unknown device": ({}, ["--data", "x", "--device", "tpu"], ["tpu"]),
}  # fmt: skip


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, capfd):
    settings, arguments, words = _BAD[case]
    if settings is not None:
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        arguments = [str(tmp_path / "settings.json"), *arguments]
    arguments = [a.removeprefix("@") for a in arguments]
    assert main(["train", *arguments, "--output", str(tmp_path / "out"), "--progress", "none"]) == 2
    text = complaint(capfd)
    for word in words:
        assert word in text, text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_list_without_a_pair_that_can_be_read(tmp_path, capfd):
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\na,no.nii.gz,no.nii.gz\n")
    (tmp_path / "head.csv").write_text("name,fixed,moving\n")
    for name, words in (("pairs.csv", "none of its 1 pairs"), ("head.csv", "lists no pairs")):
        assert main(["train", "--data", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
        assert words in complaint(capfd)


def test_resume_with_other_settings_or_a_damaged_state(pairs, tmp_path, capfd):
    settings = brief("matching", pairs, fit=FitSettings(iterations=2))
    train(settings, tmp_path, CPU)
    with pytest.raises(NephiError, match="different settings"):
        train(replace(settings, known_weight=0.7), tmp_path, CPU, resume=True)
    state = tmp_path / RESUME
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(NephiError, match="as the state of a training"):
        train(settings, tmp_path, CPU, resume=True)
    model = (tmp_path / MODEL).read_bytes()
    state.write_bytes(model)  # a model is no state
    with pytest.raises(NephiError, match="as the state of a training"):
        train(settings, tmp_path, CPU, resume=True)
    assert (tmp_path / MODEL).read_bytes() == model


def test_an_interrupt_says_how_to_go_on(tmp_path, capfd, monkeypatch):
    def stopped(settings, folder, *_, **__):
        (folder / RESUME).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("nephi.cli.training.train", stopped)
    assert main(["train", "--data", "x", "--output", str(tmp_path)]) == 130
    assert "--resume" in complaint(capfd)


def test_a_broken_pair_is_told_once_and_the_rest_is_trained_on(pairs, tmp_path, capfd):
    rows = pairs.read_text().splitlines()
    (pairs.parent / "broken.csv").write_text(
        "\n".join([*rows, rows[1].replace("p0", "bad").replace("0/moving.n", "no/m.n")])
    )
    settings = brief("matching", pairs.parent / "broken.csv", fit=FitSettings(iterations=1))
    told = []
    train(settings, tmp_path, CPU, tell=told.append)
    assert len(told) == 1 and told[0].startswith("bad is skipped: moving image: no such file")
