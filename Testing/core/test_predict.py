"""Registration from a model: what it predicts is used where it is good, and put aside with a notice where it is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi.both import Both
from nephi.cli import main
from nephi.cli.batch import finished_report
from nephi.errors import NephiError
from nephi.files.cases import read_pairs
from nephi.images.image_pair import ImagePair
from nephi.learning import predict as predict_module
from nephi.learning.dataset import Shapes
from nephi.learning.model import Model, about
from nephi.learning.settings import MatchingSettings, ModelSettings, PublishedSettings
from nephi.learning.shipped import shipped_models
from nephi.learning.validate import validate
from nephi.maps.code import FORWARD, INVERSE
from nephi.measure.quality import dice, tre_mm
from nephi.registration import register
from nephi.result import Registration
from nephi.settings import PRESETS, Features, FitSettings, Level, NeuralSettings
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.breathing import BreathingSettings, breathe
from nephi.synthetic.chest import procedural
from nephi.synthetic.shapes import HALF

SHIFT_MM = np.array([9.0, -6.0])  # true map: x -> x + SHIFT_MM
ELSEWHERE_MM = np.array([30.0, 25.0])
_ENCODERS = {
    "published": PublishedSettings(size=24, channels=(8, 16), hidden=12, local_level=1),
    "matching": MatchingSettings(node_spacing=0.4, steps=(2,), width=8),
}
FLAT = ModelSettings(
    dimension=2, field=NeuralSettings(width=16, frequencies=8, global_code=6, local_code=5, linear=False),
    encoder=_ENCODERS["published"], features=Features(2.5, 2), cube_margin_mm=10.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def images(phantom_2d):
    """An image and itself, elsewhere: with the alignment ``none`` its shift is what is to be found."""
    moved = sitk.Image(phantom_2d.fixed)
    moved.SetOrigin(tuple(np.add(moved.GetOrigin(), SHIFT_MM)))
    return phantom_2d.fixed, moved


@pytest.fixture
def model_file(images, tmp_path):
    """A model that moves every point by as much, in mm, and what else is asked for."""

    def write(shift_mm=SHIFT_MM, settings: ModelSettings = FLAT, change=lambda model: None):
        margin_mm = settings.cube_margin_mm
        pair = ImagePair.of(Both(*images), Both(None, None), Affine.identity(2), settings.similarity, True, margin_mm)
        unit_mm = pair.cube.unit_mm
        torch.manual_seed(0)
        model = Model(settings, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for way, sign in ((FORWARD, 1), (INVERSE, -1)):
                model.fields.out_bias[way] = torch.tensor(sign * np.asarray(shift_mm) / unit_mm, dtype=torch.float32)
            change(model)
        model.save(tmp_path / "trained.safetensors")
        return str(tmp_path / "trained.safetensors")

    return write


def run(images, short, iterations: int = 0, model: str | None = None, **options) -> Registration:
    settings = replace(short(iterations), align="none", model=model)
    return register(*images, settings=settings, device="cpu", **options)


def points_of(images) -> np.ndarray:
    grid = Grid.of(images[0])
    return grid.to_lps_mm(np.random.default_rng(0).uniform(0.1, 0.9, (200, 2)) * grid.size)


# ---- one that is good ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "refinements"), [("published", 0), ("matching", 0), ("published", 2)])
def test_a_good_prediction_is_the_result(encoder, refinements, images, short, model_file, tmp_path):
    path = model_file(settings=replace(FLAT, encoder=_ENCODERS[encoder], refinements=refinements))
    result = run(images, short, model=path)
    points = points_of(images)
    assert result.notes == ()
    mm, part = (1.25, 0.3) if refinements else (1e-3, 1e-4)  # refined, it follows the images: half a voxel of them
    np.testing.assert_allclose(result.forward(points), points + SHIFT_MM, atol=mm)
    np.testing.assert_allclose(result.inverse(points + SHIFT_MM), points, atol=mm)
    np.testing.assert_allclose(result.jacobian_determinant(points), 1, atol=part)
    # it is a registration as any other: its file gives the same maps, without the model
    result.save(tmp_path / "model.safetensors")
    (tmp_path / "trained.safetensors").unlink()
    again = Registration.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(again.forward(points), result.forward(points), atol=1e-4)
    assert again.settings.model == path


def test_the_optimisation_passes_over_the_stage_that_looks_for_large_motion(images, short, model_file, monkeypatch):
    seen, volumes = [], ImagePair.volumes
    monkeypatch.setattr(
        ImagePair,
        "volumes",
        lambda self, scale, *rest, **more: seen.append(scale) or volumes(self, scale, *rest, **more),
    )
    three = (Level(0.0, Features(5.0), 4.0), Level(0.5, Features(2.5), 2.0), Level(0.75, Features(2.0)))
    found = []
    for model in (None, model_file()):
        settings = replace(short(8), align="none", model=model, levels=three, smooth=0.0)
        register(*images, settings=settings, device="cpu")
        found.append([scale.spacing_mm for scale in seen])
        seen.clear()
    assert found == [[5.0, 2.5, 2.0], [2.5, 2.0]]


def test_the_optimisation_begins_with_it(images, short, model_file):
    with_model, without = (run(images, short, 12, model) for model in (model_file(), None))
    first, zero = (r.history[0]["similarity"] for r in (with_model, without))
    assert first < 0.2 * zero
    points = points_of(images)
    errors = [np.linalg.norm(r.forward(points) - points - SHIFT_MM, axis=1).mean() for r in (with_model, without)]
    assert errors[0] < 0.5 < 1.5 < errors[1]
    assert (with_model.forward(points) != points + SHIFT_MM).any()  # and goes on


def test_progress_tells_of_it(images, short, model_file):
    stages = []
    run(images, short, 0, model_file(), progress=lambda stage, *_: stages.append(stage))
    assert stages.index("alignment") < stages.index("prediction") < stages.index("features")


# ---- one that is not -----------------------------------------------------------------------------------

_SABOTAGED = {
    "untrained": ((0.0, 0.0), lambda model: None, "no better"),
    "elsewhere": (ELSEWHERE_MM, lambda model: None, "no better"),
    "far out": ((500.0, 500.0), lambda model: None, "no better"),
    "overflow": (SHIFT_MM, lambda model: model.fields.out.fill_(3e38), "no better"),
    "wild": (SHIFT_MM, lambda model: model.fields.out.normal_(0, 20.0), "folds"),
    "folding": (SHIFT_MM, lambda model: fold(model), "folds"),
}


def fold(model: Model) -> None:
    """Ripples too small to be seen in the images, and too steep to be a map."""
    model.fields.bands.mul_(40)
    model.fields.out.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", _SABOTAGED)
def test_a_bad_prediction_is_put_aside_with_a_notice(case, images, short, model_file):
    shift_mm, change, word = _SABOTAGED[case]
    path = model_file(shift_mm, change=change)
    with_model, without = (run(images, short, 6, model) for model in (path, None))
    (note,) = with_model.notes
    assert word in note and path in note and "not used" in note
    points = points_of(images)
    for name in ("forward", "inverse"):
        np.testing.assert_array_equal(getattr(with_model, name)(points), getattr(without, name)(points))
    assert with_model.cube == without.cube
    assert [e["loss"] for e in with_model.history] == [e["loss"] for e in without.history]


def test_whatever_folds_is_not_used(images, short, model_file, monkeypatch):
    path = model_file()
    assert run(images, short, model=path).notes == ()
    monkeypatch.setattr(predict_module, "folds_percent", lambda *_, **__: 1e-4)
    assert "it folds" in run(images, short, model=path).notes[0]


def test_a_model_for_other_images(phantom_3d, images, short, model_file):
    flat = model_file()
    with pytest.raises(NephiError, match="the model is for 2D images; these are 3D"):
        register(phantom_3d.fixed, phantom_3d.moving, settings=replace(short(0), model=flat), device="cpu")


def test_an_unknown_model_is_told_before_any_work(images, short, monkeypatch):
    monkeypatch.setattr("nephi.preprocessing.align", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(NephiError, match="no model 'lungs'"):
        run(images, short, model="lungs")


# ---- the command line ----------------------------------------------------------------------------------


@pytest.fixture
def folder(images, tmp_path):
    for name, image in zip(("fixed", "moving"), images, strict=True):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    return tmp_path


def command(folder, *arguments: str) -> list[str]:
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    return ["register", *pair, "--output", str(folder / "out"), "--align", "none", "--no-report", "--preset", "fast",
            *arguments]  # fmt: skip


def test_register_with_a_model_alone(folder, model_file):
    path = model_file()
    assert main(command(folder, "--model", path, "--iterations", "0", "--progress", "none")) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["warnings"] == [] and report["settings"]["model"] == path
    transform = sitk.ReadTransform(str(folder / "out" / "transform.h5"))
    middle = np.array(Grid.of(sitk.ReadImage(str(folder / "fixed.nii.gz"))).corners_lps_mm().mean(0))
    np.testing.assert_allclose(transform.TransformPoint(tuple(middle)), middle + SHIFT_MM, atol=0.01)
    # a model that was trained anew is another input
    (folder / "pairs.csv").write_text("name,fixed,moving\nout,fixed.nii.gz,moving.nii.gz\n")
    (pair,) = read_pairs(folder / "pairs.csv")
    fast = replace(PRESETS["fast"], align="none", model=path)
    fast = replace(fast, fit=replace(fast.fit, iterations=0))
    assert finished_report(folder / "out", pair, fast, True) is not None
    model_file((1.0, 1.0))
    assert finished_report(folder / "out", pair, fast, True) is None


def test_the_report_warns_of_a_prediction_not_used(folder, model_file, capfd):
    path = model_file(ELSEWHERE_MM)
    assert main(command(folder, "--model", path, "--iterations", "2")) == 0
    (warning,) = json.loads((folder / "out" / "report.json").read_text())["warnings"]
    assert path in warning and "was not used: it fits no better than the alignment alone" in warning
    assert warning in capfd.readouterr().out


def test_a_model_that_is_none_is_one_line_and_exit_code_2(folder, capfd):
    (folder / "junk.safetensors").write_bytes(b"junk" * 50)
    for name, words in (("lungs", "no model 'lungs'"), (str(folder / "junk.safetensors"), "cannot read")):
        assert main(command(folder, "--model", name)) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("nephi: ") and words in lines[0]
    assert not list((folder / "out").glob("*"))


# ---- the models that are shipped -----------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_can_be_read_and_say_how_they_came_about(name):
    assert Model.load(name).settings.dimension in (2, 3)
    assert {"settings", "validation", "version"} <= set(about(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind, least", [("solid", 0.92), ("hollow", 0.72)])
def test_the_shapes_models_register_shapes_they_have_not_seen(kind, least):
    """The first validation pairs: by themselves, and one of them as images of a user."""
    model = Model.load(f"shapes2d-{kind}")
    data = Shapes(kind == "hollow", model.settings, validation=True, count=12)
    found = validate(model, data, len(data), "cpu")
    assert found["dice"] > least and found["folds_percent"] < 0.2
    fixed, moving = (sitk.GetImageFromArray(stack[0]) for stack in (data.fixed, data.moving))
    settings = replace(PRESETS["fast"], model=f"shapes2d-{kind}", align="none", fit=FitSettings(iterations=0))
    result = register(fixed, moving, settings=settings, auto_mask=False, device="cpu")
    grid = Grid.of(fixed)
    field = sitk.DisplacementFieldTransform(grid.image(result.displacement(grid).astype(float), vector=True))
    warped = sitk.GetArrayFromImage(grid.resample(moving, field)) > HALF
    there = data.fixed[0] > HALF
    assert not result.notes
    assert dice(there, warped) > max(0.6, dice(there, data.moving[0] > HALF) + 0.2)


@pytest.mark.slow
def test_the_lung_model_removes_most_of_a_breath_it_has_not_seen():
    """A procedural chest of a seed that no training list has."""
    pair = breathe(*procedural(987_654, 3.5), 987_654, BreathingSettings(3.5, tidal=0, still=0, one_lung=0, cut=0))
    settings = replace(PRESETS["fast"], model="lung", fit=FitSettings(iterations=0))
    result = register(
        pair.fixed, pair.moving, fixed_mask=pair.fixed_mask, moving_mask=pair.moving_mask, settings=settings,
        device="cpu",
    )  # fmt: skip
    fixed, moving = pair.landmarks
    before, after = (tre_mm(way(fixed), moving).mean() for way in (result.affine, result.forward))
    assert not result.notes and before > 4 and after < 0.4 * before
