"""One report for ``register``, ``evaluate`` and ``batch``: the same words mean the same numbers."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.cli import main
from nephi.cli.batch import pair_row
from nephi.files.cases import Case
from nephi.files.folder import ResultFolder
from nephi.files.tensors import read_tensors, write_tensors
from nephi.measure.evaluate import evaluate
from nephi.measure.report import Folds, LandmarkError, Overlap, Report, Summary
from nephi.registration import register
from nephi.report.write import write_all
from nephi.result import Registration, transform, warp
from nephi.settings import VoxelSettings


@pytest.fixture(scope="module")
def registered(phantom_2d, short) -> Registration:
    masks = {"fixed_mask": phantom_2d.fixed_mask, "moving_mask": phantom_2d.moving_mask}
    return register(phantom_2d.fixed, phantom_2d.moving, **masks, settings=short(20), device="cpu")


@pytest.fixture(scope="module")
def landmarks(phantom_2d):
    return phantom_2d.fixed_landmarks_lps_mm, phantom_2d.moving_landmarks_lps_mm


@pytest.fixture(scope="module")
def written(registered, phantom_2d, landmarks, tmp_path_factory) -> tuple[ResultFolder, Report]:
    folder = tmp_path_factory.mktemp("result")
    report = write_all(
        registered,
        phantom_2d.fixed,
        phantom_2d.moving,
        folder,
        landmarks=landmarks,
        outputs=["warped", "jacobian", "disagreement"],
    )
    return ResultFolder(folder), report


def test_a_report_comes_back_from_its_file(written):
    folder, report = written
    again = Report.from_json(folder.report.read_text(encoding="utf-8"))
    assert again == report and again.to_json() == report.to_json()
    assert isinstance(again.tre_mm, LandmarkError) and isinstance(again.tre_mm.before, Summary)
    assert isinstance(again.dice, Overlap) and isinstance(again.folds, Folds)


def test_a_report_of_before_tells_the_fields_disagreement_by_its_name(written):
    data = json.loads(written[1].to_json())
    disagreement = data.pop("fields_disagreement_mm")
    older = {**data, "inverse_consistency_mm": disagreement, "outputs": ["jacobian", "consistency"]}
    report = Report.from_json(json.dumps(older))
    assert report.fields_disagreement_mm == written[1].fields_disagreement_mm
    assert report.inverse_consistency_mm is None and report.outputs == ["jacobian", "disagreement"]
    evaluated = {k: older[k] for k in ("folds", "jacobian", "inverse_consistency_mm")}  # of transforms then as now
    report = Report.from_json(json.dumps(evaluated))
    assert report.inverse_consistency_mm.mean == disagreement["mean"] and report.fields_disagreement_mm is None


def test_a_report_of_another_make_is_no_report(written):
    data = json.loads(written[1].to_json())
    with pytest.raises(ValueError, match="depth"):
        Report.from_json(json.dumps({**data, "folds": {**data["folds"], "depth": 1}}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"folds": 1, "jacobian": {}}', '{"folds": {"depth": 1}, "x": 2}'])
def test_what_is_no_report_is_told(text):
    with pytest.raises(ValueError):
        Report.from_json(text)


def test_what_is_not_known_is_left_out():
    report = Report(Folds(0.0, 0), {})
    assert set(report.to_dict()) == {"folds", "jacobian", "warnings"}


def test_register_and_evaluate_mean_the_same(written, registered, phantom_2d, landmarks):
    """Unaligned, before (after the alignment only) and after, for landmarks and masks; folds; inverse consistency."""
    folder, report = written
    masks = {"fixed_mask": phantom_2d.fixed_mask, "moving_mask": phantom_2d.moving_mask}
    measured = evaluate(
        folder.transform, phantom_2d.fixed, folder.inverse_transform,
        alignment=registered.affine, landmarks=landmarks, **masks,
    )  # fmt: skip
    before = np.linalg.norm(registered.affine(landmarks[0]) - landmarks[1], axis=1).mean()
    raw = np.linalg.norm(landmarks[0] - landmarks[1], axis=1).mean()
    assert before < 0.9 * raw
    for one in (report, measured):
        assert one.tre_mm.before.mean == pytest.approx(before, abs=1e-6)
        assert one.tre_mm.unaligned.mean == pytest.approx(raw, abs=1e-6)
    assert measured.tre_mm.after.mean == pytest.approx(report.tre_mm.after.mean, abs=0.05)
    assert measured.dice.before == report.dice.before and measured.dice.after == report.dice.after
    assert measured.dice.before < measured.dice.after
    assert measured.inverse_consistency_mm.n == report.inverse_consistency_mm.n
    assert measured.inverse_consistency_mm.mean == pytest.approx(report.inverse_consistency_mm.mean, abs=1e-3)
    # what is written is the fields' consensus, one map and its inverse: they disagree on more
    assert report.inverse_consistency_mm.mean < 0.05 < report.fields_disagreement_mm.mean
    assert measured.fields_disagreement_mm is None
    assert (measured.folds.where, report.folds.where) == ("mask", "mask")
    assert report.folds.exact and not measured.folds.exact
    assert measured.volume.fixed_ml == report.volume.fixed_ml
    assert measured.volume.ratio == pytest.approx(report.volume.ratio, abs=0.01)


def test_what_landmarks_measure_is_in_the_verdict_of_a_result_and_mixed_up_rows_are_told(
    written, registered, phantom_2d, landmarks, tmp_path
):
    def verdict(fixed_lps_mm, moving_lps_mm):
        given = {"landmarks": (fixed_lps_mm, moving_lps_mm), "outputs": []}
        report = write_all(registered, phantom_2d.fixed, phantom_2d.moving, tmp_path / "r", **given)
        assert not set(report.warnings) & set(report.verdict.reasons)
        return report.verdict

    fixed, moving = landmarks
    mean, largest = written[1].verdict.criteria[:2]
    assert mean["found"] == f"{written[1].tre_mm.after.mean:.2f} mm" and "landmarks" in mean["name"]
    assert largest["found"] == f"{written[1].tre_mm.after.max:.2f} mm"
    off = verdict(fixed, moving + [30.0, 0.0])
    assert off.outcome == "FAIL" and not off.criteria[0]["kept"] and not off.criteria[1]["kept"]
    assert "shuffled" in verdict(fixed, np.random.default_rng(0).permutation(moving)).reasons[0]


def test_without_the_alignment_nothing_is_said_of_before(written, phantom_2d, landmarks):
    measured = evaluate(sitk.ReadTransform(str(written[0].transform)), phantom_2d.fixed, landmarks=landmarks)
    assert measured.tre_mm.before is None and "before" not in measured.to_dict()["tre_mm"]
    assert measured.inverse_consistency_mm is None and measured.dice is None


def test_the_command_tells_before_from_the_alignment_s_file(written, registered, phantom_2d, tmp_path, capsys):
    folder, report = written
    phantom_2d.write(tmp_path)
    sitk.WriteTransform(registered.affine.transform(), str(tmp_path / "alignment.tfm"))
    command = ["evaluate", str(folder.transform), "--fixed", str(tmp_path / "fixed.nii.gz"), "--moving",
               str(tmp_path / "moving.nii.gz"), "--inverse", str(folder.inverse_transform)]  # fmt: skip
    for role in ("fixed", "moving"):
        command += [f"--{role}-landmarks", str(tmp_path / f"{role}_landmarks.csv")]
    assert main(command) == 0
    plain = Report.from_json(capsys.readouterr().out)
    assert main([*command, "--alignment", str(tmp_path / "alignment.tfm"), "--output", str(tmp_path / "e.json")]) == 0
    aligned = Report.from_json((tmp_path / "e.json").read_text())
    assert plain.tre_mm.before is None and plain.folds.where == "image"
    assert plain.tre_mm.after.mean == pytest.approx(report.tre_mm.after.mean, abs=0.1)
    assert aligned.tre_mm.before.mean == pytest.approx(report.tre_mm.before.mean, abs=1e-3)
    assert aligned.tre_mm.unaligned == plain.tre_mm.unaligned
    assert main([*command, "--alignment", str(tmp_path / "fixed_landmarks.csv")]) == 2


def test_a_batch_s_row_is_of_the_same_numbers(written):
    _, report = written
    row = pair_row(Case("a", {}), "done", report)
    assert row["tre_before_mm"] == report.tre_mm.before.mean and row["tre_mm"] == report.tre_mm.after.mean
    assert row["dice_before"] == report.dice.before and row["dice"] == report.dice.after
    assert row["folds"] == report.folds.count and row["seconds"] == report.time_s["wall"]


# ---- the folder ----------------------------------------------------------------------------------------


def test_the_folder_holds_what_its_properties_say(written):
    folder, _ = written
    names = [name for name, value in vars(ResultFolder).items() if isinstance(value, property) and name != "files"]
    there = {getattr(folder, name) for name in names} & set(folder.path.iterdir())
    assert there == set(folder.path.iterdir())
    assert [f.name for f in fields(ResultFolder) if f.init] == ["path"]


def test_a_saved_registration_is_read_by_its_folder_or_file_and_by_its_former_name(written, landmarks, tmp_path):
    folder, _ = written
    assert folder.registration.name == "registration.safetensors"
    points = Registration.load(folder.registration).forward(landmarks[0])
    np.testing.assert_array_equal(Registration.load(folder.path).forward(landmarks[0]), points)
    former = tmp_path / "model.safetensors"  # as results were written before the name was changed
    former.write_bytes(folder.registration.read_bytes())
    np.testing.assert_array_equal(Registration.load(tmp_path).forward(landmarks[0]), points)
    np.testing.assert_array_equal(Registration.load(former).forward(landmarks[0]), points)
    (tmp_path / "registration.safetensors").write_bytes(b"newer")
    assert ResultFolder(tmp_path).registration.name == "registration.safetensors"


def test_voxel_fields_saved_by_former_versions_load(phantom_2d, short, landmarks, tmp_path):
    """Their settings held what networks have, too."""
    settings = replace(short(4), field=VoxelSettings(local_code=4))
    result = register(phantom_2d.fixed, phantom_2d.moving, settings=settings, device="cpu")
    result.save(tmp_path / "now.safetensors")
    metadata, tensors = read_tensors(tmp_path / "now.safetensors", "a registration")
    field = json.loads(Path(__file__).with_name("former_settings.json").read_text(encoding="utf-8"))["field"]
    parts = {key: json.loads(metadata[key]) for key in ("geometry", "settings")}
    for holder in (parts["geometry"]["maps"][""], parts["settings"]):
        assert holder["field"].keys().isdisjoint({"width", "linear"})
        holder["field"] = {**field, **holder["field"]}
    write_tensors(tmp_path / "former.safetensors", tensors, metadata | {k: json.dumps(v) for k, v in parts.items()})
    former = Registration.load(tmp_path / "former.safetensors")
    np.testing.assert_array_equal(former.forward(landmarks[0]), result.forward(landmarks[0]))
    assert former.settings == result.settings


def test_warping_by_method_function_and_file_is_the_same(written, registered, phantom_2d):
    folder, _ = written
    by_method = sitk.GetArrayFromImage(registered.warp(phantom_2d.moving))
    by_function = sitk.GetArrayFromImage(warp(folder.path, phantom_2d.moving))
    np.testing.assert_allclose(by_function, by_method, atol=1)
    np.testing.assert_allclose(sitk.GetArrayFromImage(sitk.ReadImage(str(folder.warped))), by_method, atol=1)
    labels = sitk.GetArrayFromImage(warp(registered, phantom_2d.moving_mask, labels=True))
    assert set(np.unique(labels)) == {0, 1}
    point = phantom_2d.fixed_landmarks_lps_mm[0]
    np.testing.assert_allclose(
        transform(registered).TransformPoint(point), registered.forward(point[None])[0], atol=0.5
    )
    back = transform(registered, inverse=True).TransformPoint(phantom_2d.moving_landmarks_lps_mm[0])
    np.testing.assert_allclose(back, registered.inverse(phantom_2d.moving_landmarks_lps_mm[:1])[0], atol=0.5)
    # at the border of the moving image, which lies elsewhere than the fixed one
    corner = registered.moving_grid.corners_lps_mm()[:1]
    back = transform(registered, inverse=True).TransformPoint(corner[0])
    assert np.linalg.norm(registered.inverse(corner) - corner) > 5
    np.testing.assert_allclose(back, registered.inverse(corner)[0], atol=0.5)


@pytest.mark.parametrize("shift_mm", [0.0, 6.0])
def test_masks_are_compared_where_both_images_show_them(shift_mm):
    """A moving image that ends within the mask: what it does not show counts neither for nor against the result."""
    index = np.indices((40, 40, 40)) - 19.5
    ball = sitk.GetImageFromArray((np.square(index).sum(0) < 15**2).astype(np.uint8))
    shift = sitk.TranslationTransform(3, [shift_mm, 0.0, 0.0])
    whole, cut = (evaluate(shift, ball, fixed_mask=ball, moving_mask=moving).dice for moving in (ball, ball[:, :, 20:]))
    assert whole is not None and cut is not None
    assert cut.after == pytest.approx(whole.after, abs=0.005)  # half of a symmetric case
    assert (whole.after == 1) == (shift_mm == 0)


def test_masks_of_which_the_moving_image_shows_nothing_do_not_overlap():
    ball = sitk.GetImageFromArray(np.pad(np.ones((10, 10, 10), np.uint8), 5))
    found = evaluate(sitk.TranslationTransform(3, [500.0, 0.0, 0.0]), ball, fixed_mask=ball, moving_mask=ball)
    assert found.dice is not None and found.dice.after == 0
    assert found.surface_mm is None
