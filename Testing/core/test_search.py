"""The search for the start: the landmarks of a known pair come near each other, whatever was done to a scan."""

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.errors import collected_notices
from nephi.images.align import align
from nephi.images.hounsfield import hounsfield, hu_offset
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom


@pytest.fixture(scope="module")
def pair():
    return make_phantom(size=(64, 56, 56), spacing_mm=5.0, seed=0)


def errors_mm(pair, moving: sitk.Image, points_lps_mm: np.ndarray) -> float:
    found = align(Both(pair.fixed, moving), Both(None, None), "auto")
    assert found.method == "search"
    index = Grid.of(moving).to_index(points_lps_mm)
    seen = ((index >= 0) & (index <= np.array(moving.GetSize()) - 1)).all(1)
    assert seen.sum() > 10
    gaps = found.affine(pair.fixed_landmarks_lps_mm[seen]) - points_lps_mm[seen]
    return float(np.linalg.norm(gaps, axis=1).mean())


@pytest.fixture(scope="module")
def plain_mm(pair):
    return errors_mm(pair, pair.moving, pair.moving_landmarks_lps_mm)


def turned(image: sitk.Image, points_lps_mm: np.ndarray, axis, degrees: float):
    turn = sitk.VersorTransform(axis, float(np.deg2rad(degrees)))
    turn.SetCenter(Grid.of(image).corners_lps_mm().mean(0).tolist())
    padded = sitk.ConstantPad(image, [10] * 3, [10] * 3, -1000)
    out = sitk.Resample(padded, padded, turn.GetInverse(), sitk.sitkLinear, -1000.0)
    return out, np.array([turn.TransformPoint(p) for p in points_lps_mm.tolist()])


@pytest.mark.parametrize("axis, degrees", [((1, 0, 0), 30), ((0, 0, 1), -40)])
def test_a_turned_patient_is_found(pair, plain_mm, axis, degrees):
    moving, points = turned(pair.moving, pair.moving_landmarks_lps_mm, axis, degrees)
    assert errors_mm(pair, moving, points) < 1.25 * plain_mm + 2


@pytest.mark.parametrize("part", [(slice(None), slice(None), slice(20, None)), (slice(22, None),)])
def test_a_cut_scan_is_not_matched_with_the_whole(pair, plain_mm, part):
    assert errors_mm(pair, pair.moving[part], pair.moving_landmarks_lps_mm) < 1.25 * plain_mm + 2


def test_contrast_may_be_inverted(pair, plain_mm):
    inverted = 1000 - sitk.Cast(pair.moving, sitk.sitkFloat32)
    assert errors_mm(pair, inverted, pair.moving_landmarks_lps_mm) < 1.25 * plain_mm + 2


def test_a_canvas_of_zeros_does_not_lead_astray(pair, plain_mm):
    padded = sitk.ConstantPad(pair.moving, [6] * 3, [6] * 3, 0)
    assert errors_mm(pair, padded, pair.moving_landmarks_lps_mm) < 1.25 * plain_mm + 2


def test_units_that_start_at_zero_are_recognised(pair):
    raised = pair.moving + 1024
    assert hu_offset(pair.moving) == 0 and hu_offset(raised) == -1024
    with collected_notices() as notes:
        array = sitk.GetArrayFromImage(hounsfield(raised, "moving"))
    np.testing.assert_allclose(array, sitk.GetArrayFromImage(pair.moving))
    assert len(notes) == 1 and "1024" in notes[0]
