"""What is written is what was asked for; the transforms come first, and an older result stays until all is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from nephi import register
from nephi.cli import main
from nephi.cli.batch import finished_report
from nephi.errors import NephiError
from nephi.files.cases import Case, fingerprints
from nephi.files.folder import DEFAULT_OUTPUTS, ResultFolder
from nephi.report import write
from nephi.report.write import write_all
from nephi.result import Registration
from nephi.synthetic.phantom import make_phantom

ALWAYS = {"transform.h5", "inverse_transform.h5", "registration.safetensors", "report.json"}
FILES = {
    "transform": set(),
    "warped": {"warped.nii.gz"},
    "jacobian": {"jacobian.nii.gz"},
    "exact-jacobian": {"jacobian.nii.gz"},
    "log-jacobian": {"log_jacobian.nii.gz"},
    "ventilation": {"ventilation.nii.gz", "ventilation_hu.nii.gz"},
    "disagreement": {"fields_disagreement.nii.gz"},
    "error-map": {"error_map.nii.gz", "error_bound.nii.gz"},
    "report": {"report.html"},
}


@pytest.fixture(scope="module")
def phantom_2d():
    return make_phantom((96, 80), 4.0, dimension=2)


@pytest.fixture(scope="module")
def result(phantom_2d, short) -> Registration:
    masks = {"fixed_mask": phantom_2d.fixed_mask, "moving_mask": phantom_2d.moving_mask}
    return register(phantom_2d.fixed, phantom_2d.moving, **masks, settings=short(6), device="cpu")


@pytest.mark.parametrize("outputs", [(), *((name,) for name in FILES), ("warped", "disagreement"), DEFAULT_OUTPUTS])
def test_what_is_asked_for_is_written_and_nothing_else(outputs, result, phantom_2d, tmp_path):
    (tmp_path / "warped.nii.gz").write_text("of an older result")
    report = write_all(result, phantom_2d.fixed, phantom_2d.moving, tmp_path, outputs=outputs)
    wanted = ALWAYS.union(*(FILES[name] for name in outputs))
    assert {path.name for path in tmp_path.iterdir()} == wanted
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(written["outputs"]) == set(outputs) and report.folds.exact and written["folds"]["count"] >= 0


def test_unknown_outputs_are_refused_in_one_line(result, phantom_2d, tmp_path, capfd):
    with pytest.raises(NephiError, match="jacobean"):
        write_all(result, phantom_2d.fixed, phantom_2d.moving, tmp_path, outputs=["jacobean"])
    phantom_2d.write(tmp_path / "in")
    pair = [str(tmp_path / "in" / f"{role}.nii.gz") for role in ("fixed", "moving")]
    for command in (["register", *pair], ["batch", str(tmp_path / "in" / "fixed.nii.gz")]):
        assert main([*command, "--output", str(tmp_path / "out"), "--outputs", "warped,jacobean"]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "jacobean" in line and "exact-jacobian" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_the_transforms_can_be_used_while_the_rest_is_made(older, failing, result, phantom_2d, tmp_path, monkeypatch):
    if older:
        write_all(result, phantom_2d.fixed, phantom_2d.moving, tmp_path, outputs=["warped"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    seen = []

    def look(*arguments):
        seen.append({path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()})
        if not older:
            points = phantom_2d.fixed_landmarks_lps_mm
            transform = sitk.ReadTransform(str(tmp_path / "transform.h5"))
            moved = [transform.TransformPoint(p.tolist()) for p in points]
            assert np.linalg.norm(moved - result.forward(points), axis=1).mean() < 0.2
            again = Registration.load(tmp_path / "registration.safetensors")
            np.testing.assert_allclose(again.forward(points), result.forward(points), atol=1e-4)
        if failing:
            raise NephiError("no room")
        return measured(*arguments)

    measured = write._measured
    monkeypatch.setattr(write, "_measured", look)
    if failing:
        with pytest.raises(NephiError, match="no room"):
            write_all(result, phantom_2d.fixed, phantom_2d.moving, tmp_path, outputs=())
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    else:
        write_all(result, phantom_2d.fixed, phantom_2d.moving, tmp_path, outputs=())
        assert {path.name for path in tmp_path.iterdir()} == ALWAYS
    (now,) = seen
    assert now == before if older else set(now) == ALWAYS - {"report.json"}


def test_a_result_that_cannot_be_moved_into_place_leaves_no_transforms(result, phantom_2d, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.html").mkdir()  # found as the files move, when the transforms have long been shown
    with pytest.raises(NephiError, match="a folder with this name exists"):
        write_all(result, phantom_2d.fixed, phantom_2d.moving, tmp_path, outputs=("report",))
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "report.html"}


def test_a_batch_makes_again_what_lacks_an_output(result, phantom_2d, tmp_path):
    phantom_2d.write(tmp_path / "in")
    pair = Case("a", {role: tmp_path / "in" / f"{role}.nii.gz" for role in ("fixed", "moving")})
    settings = result.settings
    inputs = fingerprints(pair.files, True, settings.align, model=settings.model)
    out = tmp_path / "out"
    write_all(result, phantom_2d.fixed, phantom_2d.moving, out, inputs=inputs, outputs=["transform", "warped"])
    for wanted, there in (((), True), (("warped",), True), (("warped", "jacobian"), False), (DEFAULT_OUTPUTS, False)):
        assert (finished_report(out, pair, settings, True, wanted) is not None) == there
    report = ResultFolder(out).report
    former = {k: v for k, v in json.loads(report.read_text(encoding="utf-8")).items() if k != "outputs"}
    report.write_text(json.dumps(former), encoding="utf-8")  # of a version that wrote everything
    assert finished_report(out, pair, settings, True, DEFAULT_OUTPUTS) is not None
