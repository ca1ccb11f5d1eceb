"""The phantom's promises: its map is exact, smooth and seen in the images."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.errors import NephiError
from nephi.space.grid import Grid
from nephi.synthetic.anatomy import draw_motion
from nephi.synthetic.phantom import make_phantom


@pytest.fixture(scope="module")
def phantom3():
    return make_phantom((80, 70, 70), 4.0, seed=3, moving_spacing_mm=(3.5, 4.0, 4.5))


@pytest.fixture(scope="module")
def phantom2():
    return make_phantom(dimension=2, seed=3)


@pytest.fixture(params=["phantom2", "phantom3"])
def phantom(request):
    return request.getfixturevalue(request.param)


def _points(phantom, n: int = 2000) -> np.ndarray:
    grid = Grid.of(phantom.fixed)
    index = np.random.default_rng(1).uniform(0, np.array(grid.size) - 1, (n, grid.dimension))
    return grid.to_lps_mm(index)


def _sample(image: sitk.Image, points_lps_mm: np.ndarray) -> np.ndarray:
    """Linear interpolation; NaN outside."""
    kernel = sitk.sitkLinear
    inside = image.TransformPhysicalPointToContinuousIndex
    size = np.array(image.GetSize())
    values = []
    for p in points_lps_mm:
        index = np.array(inside(p))
        ok = (index >= 0).all() and (index <= size - 1).all()
        values.append(image.EvaluateAtPhysicalPoint(p, kernel) if ok else np.nan)
    return np.array(values)


def test_inverse_undoes_forward_to_a_millionth_of_a_mm(phantom):
    points = _points(phantom)
    moved = phantom.forward(points)
    assert np.abs(phantom.inverse(moved) - points).max() < 5e-6
    assert np.abs(moved - points).max() > 20


def test_determinant_stays_positive_and_agrees_with_finite_differences(phantom):
    points = _points(phantom, 20000)
    determinant = phantom.jacobian(points)
    assert determinant.min() > 0.2
    assert determinant.max() < 3
    d, h = points.shape[1], 0.5
    columns = [(phantom.forward(points + h * e) - phantom.forward(points - h * e)) / (2 * h) for e in np.eye(d)]
    np.testing.assert_allclose(np.linalg.det(np.stack(columns, -1)), determinant, atol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_no_seed_folds(seed, phantom3):
    motion = draw_motion(Grid.of(phantom3.fixed), np.full(3, 20.0), np.random.default_rng(seed))
    assert np.linalg.det(motion.derivative(_points(phantom3, 4000))).min() > 0.2


def test_lungs_grow_on_inhale_as_the_diaphragm_falls(phantom3):
    fixed, moving = (sitk.GetArrayFromImage(m) for m in (phantom3.fixed_mask, phantom3.moving_mask))
    voxel = [float(np.prod(m.GetSpacing())) for m in (phantom3.fixed_mask, phantom3.moving_mask)]
    growth = moving.sum() * voxel[1] / (fixed.sum() * voxel[0])
    inside = np.argwhere(fixed)[:, ::-1]
    expected = phantom3.jacobian(Grid.of(phantom3.fixed).to_lps_mm(inside)).mean()
    assert growth == pytest.approx(expected, rel=0.02)
    assert growth > 1.1


def test_images_show_the_map(phantom):
    """Lungs and body at x look like the moving image at forward(x), and unlike it without the motion."""
    points = _points(phantom, 4000)
    smooth = [sitk.SmoothingRecursiveGaussian(sitk.Cast(i, sitk.sitkFloat32), 2.0)
              for i in (phantom.fixed, phantom.moving)]  # fmt: skip
    offset = phantom.motion.moving_centre_lps_mm - phantom.motion.fixed_centre_lps_mm
    here = _sample(smooth[0], points)
    right = _sample(smooth[1], phantom.forward(points))
    wrong = _sample(smooth[1], points + offset)
    ok = ~np.isnan(right) & ~np.isnan(wrong)
    rms = [np.sqrt(np.mean((here - there)[ok] ** 2)) for there in (right, wrong)]
    assert rms[0] < 0.35 * rms[1]


def test_fork_landmarks_lie_in_both_lungs_and_correspond(phantom):
    fixed, moving = phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm
    assert len(fixed) == len(moving) >= 100
    assert np.array_equal(phantom.forward(fixed), moving)
    assert _sample(phantom.fixed_mask, fixed).mean() > 0.98
    assert _sample(phantom.moving_mask, moving).mean() > 0.98


def test_parenchyma_keeps_its_mass(phantom3):
    """Density times growth is the same at corresponding points, away from vessels."""
    free = sitk.GrayscaleDilate(phantom3.fixed, [2] * 3) < -720
    inside = np.argwhere(sitk.GetArrayFromImage(free & phantom3.fixed_mask))[:, ::-1]
    points = Grid.of(phantom3.fixed).to_lps_mm(inside)
    assert len(points) > 500
    before = _sample(phantom3.fixed, points) + 1000
    after = _sample(phantom3.moving, phantom3.forward(points)) + 1000
    assert np.nanmedian(after * phantom3.jacobian(points)) == pytest.approx(np.median(before), rel=0.02)
    assert np.nanmedian(after) < 0.95 * np.median(before)


def test_displacement_image_is_the_map(phantom):
    points = _points(phantom, 300)
    field = phantom.displacement()
    voxels = Grid.of(phantom.fixed)
    index = np.rint(voxels.to_index(points)).astype(int)
    at = voxels.to_lps_mm(index)
    stored = sitk.GetArrayFromImage(field)[tuple(index.T[::-1])]
    assert np.abs(stored - (phantom.forward(at) - at)).max() < 0.01


def test_it_looks_like_ct(phantom3):
    ct = sitk.GetArrayFromImage(phantom3.fixed)
    lung = sitk.GetArrayFromImage(phantom3.fixed_mask) > 0
    assert phantom3.fixed.GetPixelID() == sitk.sitkInt16
    assert phantom3.fixed_mask.GetPixelID() == sitk.sitkUInt8
    assert -900 < np.median(ct[lung]) < -780
    assert (ct > 250).mean() > 0.005  # bone
    assert ct[lung].max() > -100  # vessels
    assert np.median(ct[:, 0]) == pytest.approx(-1000, abs=10)  # air in front of the body


def test_grids_differ_and_the_seed_decides(phantom3):
    assert phantom3.moving.GetSpacing() == (3.5, 4.0, 4.5)
    assert phantom3.fixed.GetSize() != phantom3.moving.GetSize()
    assert np.abs(np.subtract(phantom3.fixed.GetOrigin(), phantom3.moving.GetOrigin())).max() > 10
    a, b, c = (sitk.GetArrayFromImage(make_phantom(dimension=2, seed=s).moving) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_write_and_read_back(tmp_path, phantom2):
    phantom2.write(tmp_path / "pair")
    names = {"fixed.nii.gz", "moving.nii.gz", "fixed_mask.nii.gz", "moving_mask.nii.gz",
             "fixed_landmarks.csv", "moving_landmarks.csv"}  # fmt: skip
    assert {p.name for p in (tmp_path / "pair").iterdir()} == names
    again = sitk.ReadImage(str(tmp_path / "pair" / "moving.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(phantom2.moving))
    np.testing.assert_allclose(again.GetOrigin(), phantom2.moving.GetOrigin(), atol=1e-3)
    text = (tmp_path / "pair" / "fixed_landmarks.csv").read_text().splitlines()
    assert text[0] == "x,y"
    np.testing.assert_allclose(np.array(text[1].split(","), float), phantom2.fixed_landmarks_lps_mm[0], atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"dimension": 4}, {"size": (32, 32)}, {"spacing_mm": (1.0, 2.0)}, {"spacing_mm": -1.0},
              {"size": (4, 32, 32)}, {"moving_spacing_mm": (1.0, 1.0)}]
)  # fmt: skip
def test_unfit_settings_are_named(wrong):
    with pytest.raises(NephiError):
        make_phantom(**wrong)
