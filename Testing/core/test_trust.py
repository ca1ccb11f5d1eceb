"""What a registration says of its own error, and the verdict: properties on phantoms whose true map is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi.both import Both
from nephi.cli import main
from nephi.errors import NephiError
from nephi.measure import calibration
from nephi.measure.blockmatch import match
from nephi.measure.calibration import MODEL
from nephi.measure.quality import summary
from nephi.measure.report import ErrorEstimate, Folds, LandmarkError, Overlap, Report, Summary
from nephi.measure.signals import measure_signals
from nephi.measure.trust import FEATURES, Trust
from nephi.measure.verdict import CHECK, FAIL, PASS, Tolerances, judged, read_tolerances
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.phantom import Phantom, make_phantom

GOOD = Report(
    folds=Folds(0.0, 0),
    jacobian={"p1": 0.8, "p99": 1.5},
    dice=Overlap(0.97),
    inverse_consistency_mm=Summary(0.01, 0.01, 0.02, 0.05, 1000.0),
    fields_disagreement_mm=Summary(0.2, 0.2, 0.5, 1.0, 1000.0),
)
SURE = ErrorEstimate(0.5, 0.4, 1.0, 2.0, 1.2, 2.0, 0.0, 0.98, 0.98, 0.0, True)


def none_above(mm: float) -> float:
    return 0.0


def trust_in(phantom: Phantom, error: Affine | None = None, moving: sitk.Image | None = None) -> Trust:
    """The trust in the phantom's true map, after which ``error`` moves every point."""
    grid = Grid.of(phantom.fixed)
    error = error or Affine.identity(grid.dimension)
    nodes = grid.coarsened(8.0)
    points = nodes.slab_lps_mm(0, nodes.shape[0])
    moved = (error(phantom.forward(points)) - points).reshape(*nodes.shape, grid.dimension)
    field = nodes.image(np.ascontiguousarray(moved), vector=True)
    signals = measure_signals(
        Both(phantom.fixed, phantom.moving if moving is None else moving),
        phantom.fixed_mask,
        sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)),
        lambda x: error(phantom.forward(x)),
    )
    return Trust.of(signals, grid, phantom.fixed_mask)


def test_a_ct_without_lungs_is_not_what_was_calibrated(phantom_3d, right):
    """Without a mask, and with one of what is no lung."""
    body = phantom_3d.fixed > -500
    for mask in (None, body, phantom_3d.fixed_mask):
        with_mask = replace(phantom_3d, fixed_mask=mask)
        assert trust_in(with_mask).estimate().calibrated == (mask is phantom_3d.fixed_mask)


def shift(*mm: float) -> Affine:
    return Affine(np.eye(len(mm)), np.array(mm))


@pytest.fixture(scope="module")
def right(phantom_3d) -> Trust:
    return trust_in(phantom_3d)


# ---- block matching --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
def test_a_shift_is_found_to_a_fraction_of_a_voxel(d):
    random = np.random.default_rng(0)
    noise = sitk.GetImageFromArray(random.normal(size=(40,) * d).astype(np.float32))
    image = sitk.SmoothingRecursiveGaussian(noise, 1.5)
    wanted = np.array([1.4, -2.0, 0.7])[:d]
    moved = Grid.of(image).resample(image, sitk.TranslationTransform(d, (-wanted).tolist()), sitk.sitkBSpline)
    both = [torch.from_numpy(sitk.GetArrayFromImage(i)) for i in (image, moved)]
    index = torch.from_numpy(random.integers(10, 30, (50, d)))
    found = match(*both, index, half=3, reach=3)
    assert np.abs(np.median(found.shifts, 0) - wanted).max() < 0.15
    assert found.asymmetry.max() < 1.0 and np.all(found.best > 0.5)


def test_blocks_of_constant_images_tell_nothing():
    flat = torch.zeros(20, 20, 20)
    found = match(flat, flat, torch.full((4, 3), 10), half=3, reach=2)
    assert np.abs(found.best).max() < 1e-3 and np.isfinite(found.shifts).all()


# ---- the expected error ----------------------------------------------------------------------------------------------


def test_the_true_map_is_trusted(right):
    estimate = right.estimate()
    assert estimate.mean < 1.0 and estimate.agreement > 0.9 and estimate.unseen < 0.05 and estimate.calibrated
    assert np.all(right.errors.bound_mm >= right.errors.expected_mm)


def test_blocks_that_fit_as_well_elsewhere_are_nothing_against_a_map(phantom_3d):
    """On a ramp they do along two axes, where noise decides; in scans of two people they fit nowhere."""
    grid, rng = Grid.of(phantom_3d.fixed), np.random.default_rng(0)
    ramp = -1000 + 1200 * np.indices(grid.shape)[2] / grid.shape[2]
    ramps = Both(*(grid.image((ramp + rng.normal(0, 10, grid.shape)).astype(np.float32)) for _ in range(2)))
    signals = measure_signals(ramps, None, sitk.TranslationTransform(3), lambda x: np.asarray(x, float))
    found = Trust.of(signals, grid, None).estimate()
    assert found.agreement < 0.2 and found.clear_agreement > 0.9
    other = make_phantom(size=(80, 72, 72), spacing_mm=4.0, seed=7).moving
    found = trust_in(phantom_3d, moving=other).estimate()
    assert found.agreement <= found.clear_agreement < 0.4


def test_the_expected_error_grows_with_the_true_one(phantom_3d, right):
    expected = [right.estimate().mean]
    for mm in (2.0, 5.0, 10.0, 18.0):
        expected.append(trust_in(phantom_3d, shift(mm, 0, 0)).estimate().mean)
    assert np.all(np.diff(expected) > 0), expected
    assert 1.0 < expected[1] < 4.0 and expected[3] > 4.0


def test_an_error_is_seen_where_it_is(phantom_3d):
    """One half of the chest is right, in the other the map is off by 6 mm."""
    phantom = phantom_3d
    middle = Grid.of(phantom.fixed).corners_lps_mm().mean(0)[0]

    class Half(type(phantom.motion)):
        pass

    def off(points):
        return np.outer(1 / (1 + np.exp(-(points[:, 0] - middle) / 4)), [0.0, 0.0, 6.0])

    grid = Grid.of(phantom.fixed)
    nodes = grid.coarsened(8.0)
    points = nodes.slab_lps_mm(0, nodes.shape[0])
    moved = (phantom.forward(points) + off(points) - points).reshape(*nodes.shape, 3)
    field = nodes.image(np.ascontiguousarray(moved), vector=True)
    signals = measure_signals(
        Both(phantom.fixed, phantom.moving),
        phantom.fixed_mask,
        sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)),
        lambda x: phantom.forward(x) + off(x),
    )
    trust = Trust.of(signals, grid, phantom.fixed_mask)
    marks = phantom.fixed_landmarks_lps_mm
    expected = trust.errors_at(marks).expected_mm
    assert np.median(expected[marks[:, 0] > middle + 15]) > 2 * np.median(expected[marks[:, 0] < middle - 15])


def test_the_map_is_in_mm_over_the_fixed_image_and_0_outside_the_mask(phantom_3d, right):
    grid, seen = Grid.of(phantom_3d.fixed), Grid.of(right.expected)
    np.testing.assert_allclose(seen.corners_lps_mm(), grid.corners_lps_mm(), atol=1e-6)
    mask = sitk.GetArrayFromImage(seen.resample(phantom_3d.fixed_mask, interpolator=sitk.sitkNearestNeighbor)) != 0
    expected, bound = (sitk.GetArrayFromImage(image) for image in (right.expected, right.bound))
    assert np.all(expected[mask] > 0) and np.all(bound[mask] >= expected[mask])
    assert np.count_nonzero(expected[~mask]) < np.count_nonzero(mask)  # only beside it
    at = seen.to_lps_mm(np.argwhere(mask)[:5, ::-1])
    np.testing.assert_allclose(right.errors_at(at).expected_mm, expected[mask][:5], rtol=1e-4)


def test_lengths_scale_with_a_small_body():
    """A phantom in a tenth of its size is as trusted as the large one, in a tenth of the millimetres."""
    large, small = (trust_in_2d(spacing_mm) for spacing_mm in (2.0, 0.2))
    assert small == pytest.approx(large / 10, rel=0.3)


def trust_in_2d(spacing_mm: float) -> float:
    phantom = make_phantom((96, 80), 4.0, dimension=2, seed=1)
    factor = spacing_mm / 4.0
    images = [phantom.fixed, phantom.moving, phantom.fixed_mask]
    for image in images:
        image.SetSpacing([s * factor for s in image.GetSpacing()])
        image.SetOrigin([o * factor for o in image.GetOrigin()])
    grid = Grid.of(images[0])
    points = grid.slab_lps_mm(0, grid.shape[0])
    moved = (phantom.forward(points / factor) * factor - points).reshape(*grid.shape, 2)
    field = grid.image(np.ascontiguousarray(moved), vector=True)
    signals = measure_signals(
        Both(*images[:2]),
        images[2],
        sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)),
        lambda x: phantom.forward(x / factor) * factor,
    )
    return Trust.of(signals, grid, images[2]).estimate().mean


def test_more_of_a_signal_never_means_less_error():
    assert set(MODEL.weights) == {*FEATURES, "one"}
    assert all(MODEL.weights[name] >= 0 for name in FEATURES)
    assert all(times >= 1 for _, times in MODEL.knots)


def test_strain_in_a_part_means_more_error_there_than_the_same_strain_everywhere(right):
    signals = right.signals
    x = signals.points_lps_mm[:, 0]
    part = x < np.quantile(x, 0.3)
    everywhere, there = (np.where(strained, 0.5, 0.1) for strained in (np.ones_like(part), part))
    place = signals.points_lps_mm[[x.argmin(), x.argmax()]]
    in_part, apart = (
        right.of(replace(signals, strain=s), right.grid, None).errors_at(place) for s in (there, everywhere)
    )
    assert in_part.expected_mm[0] > 1.2 * apart.expected_mm[0]
    assert in_part.expected_mm[1] < apart.expected_mm[1]


def test_strain_that_stands_out_twice_as_much_counts_more_than_twice(right):
    signals = right.signals
    x = signals.points_lps_mm[:, 0]
    part, place = x < np.quantile(x, 0.3), signals.points_lps_mm[[x.argmin()]]

    def log_expected(times: float) -> float:
        strained = replace(signals, strain=0.1 * np.where(part, times, 1.0))
        return float(np.log(right.of(strained, right.grid, None).errors_at(place).expected_mm[0]))

    none, some, twice = map(log_expected, (1.0, 2.0, 4.0))
    assert twice - some > 1.5 * (some - none) > 0


def damaged(part: str, key, value) -> str:
    """The calibration with another value in one of its parts."""
    whole = json.loads(Path(calibration.__file__).with_suffix(".json").read_text(encoding="utf-8"))
    whole[part][key] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    "text", ["{", "[]", damaged("weights", "one", float("nan")), damaged("weights", "one", "2"),
             damaged("weights", "two", 1.0), damaged("weights", "strain", -0.1), damaged("knots", 0, [0.3, 0.5]),
             damaged("knots", 1, [0.0, 2.0]), damaged("knots", 0, [50.0, 2.0]), damaged("knots", slice(1, None), [])],
)  # fmt: skip
def test_a_damaged_calibration_is_one_line(text, tmp_path):
    assert calibration.read_model(Path(calibration.__file__).with_suffix(".json")) == MODEL
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(NephiError, match="a.json is damaged.*reinstall NePhi"):
        calibration.read_model(tmp_path / "a.json")


def test_where_nothing_of_the_region_is_seen_there_is_one_clear_error(phantom_3d):
    with pytest.raises(NephiError, match="shows nothing of the registered region"):
        trust_in(phantom_3d, shift(5000.0, 0, 0))


# ---- the verdict -----------------------------------------------------------------------------------------------------


def outcome(trust: Trust, voxel_mm: float = 4.0) -> str:
    return judged(GOOD, trust.estimate(), trust.share_above, voxel_mm).verdict.outcome


def test_a_good_phantom_passes(right):
    assert outcome(right) == PASS


@pytest.mark.parametrize("mm", [(10.0, 0.0, 0.0), (0.0, 12.0, -9.0), (0.0, 0.0, 30.0)])
def test_a_shifted_one_does_not(phantom_3d, mm):
    assert outcome(trust_in(phantom_3d, shift(*mm))) != PASS


def test_a_mirrored_one_fails(phantom_3d):
    centre = phantom_3d.moving_landmarks_lps_mm.mean(0)
    mirror = np.diag([-1.0, 1.0, 1.0])
    assert outcome(trust_in(phantom_3d, Affine(mirror, centre - mirror @ centre))) == FAIL


def test_another_patient_s_scan_does_not_pass(phantom_3d):
    other = make_phantom(size=(80, 72, 72), spacing_mm=4.0, seed=7)
    ours, theirs = (m.mean(0) for m in (phantom_3d.moving_landmarks_lps_mm, other.moving_landmarks_lps_mm))
    moving = sitk.Image(other.moving)
    moving.SetOrigin((np.array(moving.GetOrigin()) + ours - theirs).tolist())
    assert outcome(trust_in(phantom_3d, moving=moving)) != PASS


def in_other_contrast(image: sitk.Image) -> sitk.Image:
    """As of another modality, in 8 bits: air is bright, dense tissue dark."""
    hu = np.clip(sitk.GetArrayFromImage(image), -1000, 400)
    return Grid.of(image).image(255 - np.round((hu + 1000.0) * 255 / 1400).astype(np.float32))


def test_images_of_another_contrast_match_where_the_map_is_right(phantom_3d, right):
    moving = in_other_contrast(phantom_3d.moving)
    found, shifted = trust_in(phantom_3d, moving=moving), trust_in(phantom_3d, shift(10.0, 0.0, 0.0), moving)
    assert not found.signals.ct
    assert found.estimate().agreement > 0.8 * right.estimate().agreement
    assert found.estimate().mean < 2.0 < 5.0 < shifted.estimate().mean
    assert outcome(found) == CHECK  # not calibrated for such images


def test_a_mirrored_one_of_another_contrast_may_be_lost(phantom_3d):
    centre = phantom_3d.moving_landmarks_lps_mm.mean(0)
    mirror = np.diag([-1.0, 1.0, 1.0])
    error = Affine(mirror, centre - mirror @ centre)
    trust = trust_in(phantom_3d, error, in_other_contrast(phantom_3d.moving))
    verdict = judged(GOOD, trust.estimate(), trust.share_above, 4.0).verdict
    assert verdict.outcome == CHECK and "may be lost" in " ".join(verdict.reasons)


@pytest.mark.parametrize(
    ("change", "word", "worst"),
    [
        ({"folds": Folds(0.1, 12)}, "folds", CHECK),
        ({"folds": Folds(5.0, 1200)}, "folds", FAIL),
        ({"dice": Overlap(0.8)}, "Dice", CHECK),
        ({"dice": Overlap(0.3)}, "Dice", FAIL),
        ({"jacobian": {"p1": 0.01, "p99": 1.2}}, "volume", CHECK),
        ({"inverse_consistency_mm": Summary(3.0, 3.0, 4.0, 5.0, 10.0)}, "inverse transform", CHECK),
        ({"fields_disagreement_mm": Summary(3.0, 3.0, 4.0, 5.0, 10.0)}, "two directions do not agree", CHECK),
        ({"fields_disagreement_mm": Summary(5.0, 5.0, 6.0, 7.0, 10.0)}, "two directions do not agree", FAIL),
    ],
)
def test_each_tolerance_counts_and_is_named(change, word, worst):
    assert judged(GOOD, SURE, none_above, 1.0).verdict.outcome == PASS
    verdict = judged(replace(GOOD, **change), SURE, none_above, 1.0).verdict
    assert verdict.outcome == worst and word in verdict.reasons[0] and len(verdict.reasons) == 1


@pytest.mark.parametrize(
    ("change", "word", "worst"),
    [
        ({"mean": 2.5}, "2.5 mm", CHECK),
        ({"mean": 8.0}, "8.0 mm", FAIL),
        ({"agreement": 0.2}, "do not match", FAIL),
        ({"agreement": 0.4, "clear_agreement": 0.45}, "do not match", FAIL),
        ({"agreement": 0.4, "clear_agreement": 0.7}, "40 %", CHECK),  # most of the others fit as well where they lie
        ({"unseen": 0.4}, "40 %", CHECK),
        ({"unseen": 0.7}, "70 %", CHECK),  # the rest is judged by itself
        ({"unseen": 0.95}, "95 %", FAIL),
        ({"calibrated": False}, "calibrated", CHECK),
    ],
)
def test_so_does_what_the_images_say(change, word, worst):
    verdict = judged(GOOD, replace(SURE, **change), none_above, 1.0).verdict
    assert verdict.outcome == worst and word in " ".join(verdict.reasons)


@pytest.mark.parametrize(
    ("change", "word", "worst"),
    [
        ({"mean": 38.7, "agreement": 0.39, "clear_agreement": 0.53}, "may be lost", CHECK),
        ({"mean": 38.7, "agreement": 0.05, "clear_agreement": 0.06}, "do not match", FAIL),
        ({"mean": 3.0}, "3.0 mm", CHECK),
        ({"unseen": 0.95}, "95 %", FAIL),
    ],
)
def test_what_is_not_calibrated_for_such_images_asks_for_a_check_and_fails_none(change, word, worst):
    guide = replace(SURE, calibrated=False, **change)
    verdict = judged(GOOD, guide, lambda mm: float(guide.mean > mm), 1.0).verdict
    assert verdict.outcome == worst and word in " ".join(verdict.reasons)
    assert judged(replace(GOOD, folds=Folds(5.0, 1200)), guide, none_above, 1.0).verdict.outcome == FAIL
    assert judged(measured_at([10.0] * 9), guide, none_above, 1.0).verdict.outcome == FAIL


def test_the_worst_reason_comes_first_and_large_errors_count_by_their_share():
    verdict = judged(replace(GOOD, dice=Overlap(0.2)), replace(SURE, mean=2.5), lambda mm: 0.3, 1.0).verdict
    assert verdict.outcome == FAIL and "Dice" in verdict.reasons[0] and len(verdict.reasons) == 3


@pytest.mark.parametrize(
    ("near", "above", "wanted"), [(0.1, 0.0, PASS), (0.2, 0.01, CHECK), (0.9, 0.4, CHECK), (0.9, 0.6, FAIL)]
)
def test_a_part_with_nearly_large_errors_is_to_be_checked(near, above, wanted):
    verdict = judged(GOOD, SURE, {3.0: near, 5.0: above}.__getitem__, 1.0).verdict
    assert verdict.outcome == wanted and (wanted == PASS or "3.0 mm" in verdict.reasons[0])


def test_coarse_voxels_widen_what_is_tolerated_in_mm():
    assert judged(GOOD, replace(SURE, mean=4.0), none_above, 6.0).verdict.outcome == PASS


# ---- what was measured -----------------------------------------------------------------------------------------------


def measured_at(errors_mm, guided=(), doubt: str | None = None) -> Report:
    """With landmarks of these errors; those at ``guided`` took part in the registration."""
    errors = np.asarray(errors_mm, float)
    rows = [{"number": k, "after_mm": float(mm), "guided": k - 1 in guided} for k, mm in enumerate(errors, 1)]
    return replace(GOOD, landmarks=rows, tre_mm=LandmarkError(Summary(**summary(errors)), doubt=doubt))


def verdict_of(report: Report, voxel_mm: float = 1.0, **tolerances):
    return judged(report, SURE, none_above, voxel_mm, Tolerances(**tolerances)).verdict


@pytest.mark.parametrize(
    ("errors_mm", "wanted"),
    [([1.0] * 9, PASS), ([2.5] * 9, CHECK), ([10.0] * 9, FAIL), ([0.5] * 99 + [5.5], CHECK), ([10.0], CHECK),
     ([1.0] * 8 + [4.9], PASS), ([1.0, 1.0, 40.0], CHECK), ([5.0, 5.0, 40.0], FAIL)],
)  # fmt: skip
def test_measured_errors_enter_the_verdict_and_none_fails_by_one_landmark_alone(errors_mm, wanted):
    assert verdict_of(measured_at(errors_mm)).outcome == wanted


def test_the_farther_the_landmarks_the_worse_the_verdict_and_it_follows_the_site_and_the_voxel():
    errors_mm = np.random.default_rng(0).rayleigh(1.0, 50)
    outcomes = [verdict_of(measured_at(errors_mm * times)).outcome for times in (0.5, 1, 2, 4, 8)]
    assert outcomes == sorted(outcomes, key=[PASS, CHECK, FAIL].index) and {PASS, FAIL} <= set(outcomes)
    far = measured_at(errors_mm * 8)
    assert verdict_of(far, mean_mm=20.0, large_mm=50.0).outcome == PASS == verdict_of(far, voxel_mm=50.0).outcome


def test_the_farthest_landmark_is_named_by_its_number():
    verdict = verdict_of(measured_at([0.5, 1.0, 14.9, 0.2, 6.0] + [0.5] * 20))
    assert verdict.outcome == CHECK and len(verdict.reasons) == 1
    assert "Landmark 3 is the farthest, 14.9 mm" in verdict.reasons[0] and "2 of 25" in verdict.reasons[0]


def test_landmarks_that_guided_measure_nothing_but_must_be_reached():
    both = measured_at([30.0, 30.0, 1.0, 1.2], guided=(0, 1))
    alone = measured_at([30.0, 30.0], guided=(0, 1))
    assert verdict_of(both).outcome == PASS and "2 landmarks is 1.1 mm" in verdict_of(both).reasons[0]
    assert verdict_of(alone).outcome == PASS and "landmark" not in verdict_of(alone).reasons[0]
    for within, wanted in ((2, PASS), (1, CHECK), (0, CHECK)):
        told = replace(alone, guidance={"landmarks": {"after": {"n": 2.0, "max": 30.0}, "within": within}})
        assert verdict_of(told).outcome == wanted


def test_a_doubt_of_the_landmarks_is_the_one_reason_and_no_warning_besides():
    report = replace(measured_at([60.0] * 9, doubt="Rows are mixed up."), warnings=["Other.", "Rows are mixed up."])
    report = judged(report, SURE, none_above, 1.0)
    assert report.verdict.outcome == FAIL and report.verdict.reasons == ["Rows are mixed up."]
    assert report.warnings == ["Other."] and Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("entry", ["regions", "labels"])
def test_regions_count_by_their_surfaces_whatever_their_size(entry):
    def outcome(surface_mm, dice, moving_ml=5.0):
        volumes = {"fixed_ml": 5.0, "moving_ml": moving_ml, "moving_region_ml": moving_ml}
        near = {"label": 1, "surface_mm": 0.5, "dice": 0.97, **volumes | {"moving_ml": 5.0, "moving_region_ml": 5.0}}
        row = {"label": 2, "name": "oesophagus", "surface_mm": surface_mm, "dice": dice, **volumes}
        verdict = verdict_of(replace(GOOD, **{entry: [near, row]}))
        assert verdict.outcome == PASS or "oesophagus" in verdict.reasons[0]
        return verdict.outcome

    assert outcome(1.0, 0.5) == PASS  # small and thin
    assert outcome(2.5, 0.97) == outcome(30.0, 0.0) == CHECK  # segmentations err, too
    assert outcome(None, 0.99) == PASS and outcome(None, 0.0) == CHECK  # without a surface in one image
    assert outcome(None, None, moving_ml=0.0) == PASS  # the moving image's segmentation lacks it


# ---- tolerances of a site --------------------------------------------------------------------------------------------


def test_a_site_s_file_changes_what_it_names_and_is_named(tmp_path):
    file = tmp_path / "clinic.json"
    file.write_text(json.dumps({"mean_mm": 0.1, "jacobian": [0.5, 2.0]}), encoding="utf-8")
    tolerances = read_tolerances(file)
    assert (tolerances.mean_mm, tolerances.jacobian, tolerances.set_by) == (0.1, (0.5, 2.0), "clinic.json")
    assert tolerances.dice == Tolerances().dice and read_tolerances(None) == Tolerances()
    report = judged(GOOD, SURE, none_above, 0.05, tolerances)
    assert report.verdict.outcome == FAIL and report.verdict.tolerances["set_by"] == "clinic.json"
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"mean": 1}', '{"mean_mm": -1}', '{"mean_mm": NaN}', '{"dice": 2}', '{"jacobian": [2, 1]}',
     '{"jacobian": 3}', '{"set_by": 5}', '{"fail_factor": 1}', '{"mean_mm": 1, "mean_mm": 2}'],
)  # fmt: skip
def test_bad_tolerances_give_one_line_before_any_work(text, tmp_path, capsys):
    file = tmp_path / "t.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(NephiError, match=r"^tolerances: .+"):
        read_tolerances(file)
    phantom = make_phantom((24, 24), 8.0, dimension=2)
    phantom.write(tmp_path / "p")
    images = [str(tmp_path / "p" / f"{role}.nii.gz") for role in ("fixed", "moving")]
    assert main(["register", *images, "--output", str(tmp_path / "out"), "--tolerances", str(file)]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0 and not (tmp_path / "out").exists()
