"""Breathing pairs: the map is exact, it is what the images show, and it is the motion of lungs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.errors import NephiError
from nephi.files.cases import read_pairs
from nephi.files.image import read_image
from nephi.files.landmarks import read_landmarks
from nephi.files.masks import read_mask
from nephi.images.align import align
from nephi.images.masks import lung_mask
from nephi.space.grid import Grid
from nephi.synthetic.breathing import BreathingSettings, breathe, generate
from nephi.synthetic.bspline import Breath, Spline, box_grid
from nephi.synthetic.chest import procedural

QUIET = BreathingSettings(spacing_mm=4.0, still=0.0, tidal=0.0, noise_hu=(0.0, 0.0), one_lung=0.0, cut=0.0)


@pytest.fixture(scope="module")
def chest():
    return procedural(3, 4.0)


@pytest.fixture(scope="module", params=[1, 2], ids=["base fixed", "base moving"])
def pair(request, chest):
    """Breath-hold without noise, once for each way round."""
    for seed in range(request.param * 100, request.param * 100 + 20):
        pair = breathe(*chest, seed, QUIET)
        if pair.base_is_fixed == (request.param == 1):
            return pair
    raise AssertionError("twenty seeds, and the base is always on one side")


def _lung_points(pair, n: int = 2000) -> np.ndarray:
    index = np.argwhere(sitk.GetArrayViewFromImage(pair.fixed_mask))[:, ::-1]
    index = index[np.random.default_rng(0).permutation(len(index))[:n]]
    return Grid.of(pair.fixed).to_lps_mm(index)


def _values(image: sitk.Image, points_lps_mm: np.ndarray) -> np.ndarray:
    """Linear interpolation; NaN outside."""
    size, values = np.array(image.GetSize()), []
    for point, index in zip(points_lps_mm, Grid.of(image).to_index(points_lps_mm), strict=True):
        ok = (index >= 0).all() and (index <= size - 1).all()
        values.append(image.EvaluateAtPhysicalPoint(point, sitk.sitkLinear) if ok else np.nan)
    return np.array(values)


def _motion_mm(pair, points_lps_mm: np.ndarray) -> np.ndarray:
    """Length of the motion without the scanner's offset, at points of the fixed image."""
    deformed = pair.forward(points_lps_mm) if pair.base_is_fixed else points_lps_mm
    return np.linalg.norm(pair.breath.spline(deformed), axis=1)


def _spline() -> Spline:
    return Spline.random(np.zeros(3), np.full(3, 100.0), 30.0, 3.0, np.random.default_rng(0))


def test_spline_is_the_same_on_a_grid_and_at_points_and_beyond_its_lattice():
    spline, grid = _spline(), box_grid(np.full(3, -120.0), np.full(3, 220.0), (17.0, 23.0, 31.0))
    points = grid.slab_lps_mm(0, grid.shape[0])
    assert not grid.same_as(spline.lattice)
    np.testing.assert_allclose(spline.on_grid(grid).reshape(-1, 3), spline(points), atol=1e-4)
    for axis in range(3):
        np.testing.assert_allclose(spline.on_grid(grid, axis).reshape(-1, 3), spline(points, axis), atol=1e-5)
    far = np.array([[500.0, 50.0, 50.0], [900.0, 50.0, 50.0]])
    assert np.ptp(spline(far), axis=0).max() == 0
    assert spline(points).std() > 1


def test_spline_slopes_and_jacobian_are_the_derivative():
    spline, h = _spline(), 1e-4
    grid = box_grid(np.full(3, 5.0), np.full(3, 90.0), 12.0)
    points = grid.slab_lps_mm(0, grid.shape[0])
    turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, 0.3).GetMatrix(), (3, 3))
    breath = Breath(spline, turn, np.full(3, 40.0), np.array([7.0, 8.0, 9.0]))
    columns = [(breath.forward(points + h * e) - breath.forward(points - h * e)) / (2 * h) for e in np.eye(3)]
    np.testing.assert_allclose(breath.jacobian(grid).ravel(), np.linalg.det(np.stack(columns, -1)), atol=1e-5)
    for axis, column in enumerate(columns):
        np.testing.assert_allclose((spline(points, axis) + np.eye(3)[axis]) @ turn.T, column, atol=1e-6)


def test_random_spline_has_the_size_asked_for():
    spline = Spline.random(np.zeros(3), np.full(3, 600.0), 30.0, 4.0, np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(0, 600, (4000, 3))
    assert spline(points).std() == pytest.approx(4.0, rel=0.1)


def test_map_and_inverse_undo_each_other(pair):
    points = _lung_points(pair)
    moved = pair.forward(points)
    assert np.abs(pair.inverse(moved) - points).max() < 1e-4
    assert np.abs(pair.forward(pair.inverse(moved)) - moved).max() < 1e-4
    assert np.linalg.norm(moved - points, axis=1).mean() > 5


def test_map_that_folds_is_not_inverted_in_silence():
    spline = _spline()
    breath = Breath(Spline(spline.lattice, 20 * spline.control), np.eye(3), np.zeros(3), np.zeros(3))
    with pytest.raises(NephiError, match="could not be inverted"):
        breath.inverse(np.random.default_rng(0).uniform(0, 100, (500, 3)))


def test_voxels_and_points_see_one_map(pair):
    grid = Grid.of(pair.moving if pair.base_is_fixed else pair.fixed)
    points = grid.slab_lps_mm(0, grid.shape[0])[::29]
    voxels = pair.breath.on_grid(grid).reshape(-1, 3)[::29] + pair.breath.centre_lps_mm
    assert np.abs(voxels - pair.breath.forward(points)).max() < 1e-3


def test_images_show_the_map_to_a_fraction_of_a_voxel(pair):
    """Shifting the map along any axis makes borders and vessels agree less; the best shift is nearly none."""
    around = sitk.BinaryDilate(pair.fixed_mask, [2] * 3)
    index = np.argwhere(sitk.GetArrayViewFromImage(around))[:, ::-1]
    points = Grid.of(pair.fixed).to_lps_mm(index[np.random.default_rng(0).permutation(len(index))[:4000]])
    # above -400 HU: density changes with the volume, what is dense does not
    fixed, moving = (sitk.Clamp(i, sitk.sitkFloat32, -400, 100) for i in (pair.fixed, pair.moving))
    here, moved = _values(fixed, points), pair.forward(points)
    for axis in np.eye(3):
        before, at, after = (1 - np.corrcoef(*_both(here, _values(moving, moved + s * axis)))[0, 1] for s in (-3, 0, 3))
        assert at < 0.6 * min(before, after)
        best_mm = 1.5 * (before - after) / (before - 2 * at + after)  # of the parabola through the three
        assert abs(best_mm) < 0.4


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ok = ~np.isnan(a) & ~np.isnan(b)
    return a[ok], b[ok]


def test_parenchyma_keeps_its_mass(pair):
    points = _lung_points(pair, 6000)
    base, deformed = (pair.fixed, pair.moving) if pair.base_is_fixed else (pair.moving, pair.fixed)
    there = pair.forward(points)
    at_base, at_deformed = (points, there) if pair.base_is_fixed else (there, points)
    slopes = np.stack([pair.breath.spline(at_deformed, axis) for axis in range(3)], -1)
    growth = np.linalg.det(slopes + np.eye(3))  # of the base's volume
    before, after = _values(base, at_base) + 1000, _values(deformed, at_deformed) + 1000
    ok = ~np.isnan(before + after) & (np.maximum(before, after) < 400)
    scale = np.median(after[ok] / before[ok])
    assert abs(np.log(scale)) > 0.05  # it is seen at all
    assert np.median(after[ok] / (before[ok] * growth[ok])) == pytest.approx(1, abs=0.12)  # calibrations differ
    assert np.corrcoef(np.log(growth[ok]), np.log(after[ok] / before[ok]))[0, 1] > 0.3


def test_landmarks_lie_on_vessels_in_both_lungs_and_correspond(pair):
    fixed, moving = pair.landmarks
    assert fixed.shape == moving.shape
    assert len(fixed) >= 100
    assert np.abs(pair.forward(fixed) - moving).max() < 1e-4
    assert _values(pair.fixed_mask, fixed).mean() > 0.98
    assert _values(pair.moving_mask, moving).mean() > 0.98
    assert np.nanmedian(_values(pair.fixed, fixed)) > np.nanmedian(_values(pair.fixed, _lung_points(pair))) + 30


def test_images_and_masks(pair):
    for image, mask in ((pair.fixed, pair.fixed_mask), (pair.moving, pair.moving_mask)):
        assert image.GetPixelID() == sitk.sitkInt16
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert Grid.of(image).same_as(Grid.of(mask))
        lung = sitk.GetArrayFromImage(image)[sitk.GetArrayFromImage(mask) > 0]
        assert -950 < np.median(lung) < -550
    moved = pair.forward(_lung_points(pair))
    assert np.nanmean(_values(pair.moving_mask, moved)) > 0.95


@pytest.mark.slow
def test_motion_is_that_of_breathing(chest):
    """Over seeds: nothing folds, the base moves more than the apex, volumes change, the kinds differ in strength."""
    kinds = {"still": {"still": 1.0, "tidal": 0.0}, "tidal": {"tidal": 1.0, "still": 0.0}, "breath_hold": {}}
    mean_mm, volumes, rests_mm = {}, [], []
    for kind, shares in kinds.items():
        means = []
        for seed in range(3):
            pair = breathe(*chest, seed, replace(QUIET, spacing_mm=6.0, **shares))
            assert pair.about["kind"] == kind
            points = _lung_points(pair, 1000)
            motion = _motion_mm(pair, points)
            means.append(motion.mean())
            grid = Grid.of(pair.moving if pair.base_is_fixed else pair.fixed)
            growth = pair.breath.jacobian(grid)
            assert growth.min() > 0.15
            if kind == "breath_hold":
                order = np.argsort(points[:, 2])
                assert motion[order[:250]].mean() > motion[order[-250:]].mean()
                deformed = pair.moving_mask if pair.base_is_fixed else pair.fixed_mask
                volumes.append(abs(np.log(growth[sitk.GetArrayViewFromImage(deformed) > 0].mean())))
                given = Both(pair.fixed_mask, pair.moving_mask)
                affine = align(Both(pair.fixed, pair.moving), given, "moments").affine
                rests_mm.append(np.linalg.norm(affine(points) - pair.forward(points), axis=1).mean())
        mean_mm[kind] = np.mean(means)
    assert 1 < mean_mm["still"] < 6
    assert mean_mm["still"] < mean_mm["breath_hold"] and mean_mm["tidal"] < mean_mm["breath_hold"]
    assert 5 < mean_mm["breath_hold"] < 35
    assert np.log(1.05) < np.mean(volumes) < np.log(1.7)
    assert 2 < np.mean(rests_mm) < 16


def test_one_lung(chest):
    whole, half = (breathe(*chest, 5, replace(QUIET, spacing_mm=6.0, one_lung=share)) for share in (0.0, 1.0))
    volumes = [sitk.GetArrayViewFromImage(pair.fixed_mask).sum() for pair in (whole, half)]
    assert 0.25 < volumes[1] / volumes[0] < 0.75
    assert half.about["one_lung"] in (-1, 1)
    assert half.fixed.GetSize()[0] < 0.8 * whole.fixed.GetSize()[0]
    x = [_lung_points(half)[:, 0].mean(), _lung_points(whole)[:, 0].mean()]
    assert np.sign(x[0] - x[1]) == half.about["one_lung"]


def test_field_of_view_is_cut(chest):
    def ends(cut: float, seed: int) -> int:
        """How many of the images show lung at their top or bottom."""
        pair = breathe(*chest, seed, replace(QUIET, spacing_mm=6.0, cut=cut))
        masks = [sitk.GetArrayViewFromImage(m) for m in (pair.fixed_mask, pair.moving_mask)]
        return sum(bool(mask[0].any() or mask[-1].any()) for mask in masks)

    assert sum(ends(1.0, seed) for seed in range(3)) > sum(ends(0.0, seed) for seed in range(3))


def test_seed_and_settings_decide(chest):
    small = replace(QUIET, spacing_mm=(6.0, 6.5, 7.0), noise_hu=(30.0, 30.0))
    a, b, c = (breathe(*chest, seed, small) for seed in (1, 1, 2))
    assert np.array_equal(sitk.GetArrayFromImage(a.moving), sitk.GetArrayFromImage(b.moving))
    assert a.moving.GetSize() != c.moving.GetSize() or a.moving.GetOrigin() != c.moving.GetOrigin()
    assert a.fixed.GetSpacing() == a.moving.GetSpacing() == (6.0, 6.5, 7.0)
    quiet = breathe(*chest, 1, replace(small, noise_hu=(0.0, 0.0)))
    noise = sitk.GetArrayFromImage(a.fixed).astype(float) - sitk.GetArrayFromImage(quiet.fixed)
    assert noise.std() == pytest.approx(30, rel=0.1)


@pytest.mark.slow
def test_procedural_chests_differ(chest):
    (image, lungs), (again, _) = procedural(1, 7.0), procedural(1, 7.0)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(again))
    volumes = [sitk.GetArrayViewFromImage(m).sum() * Grid.of(m).voxel_volume_mm3 / 1e6 for m in (lungs, chest[1])]
    assert all(1 < volume < 9 for volume in volumes)
    assert abs(np.log(volumes[0] / volumes[1])) > 0.02


@pytest.mark.slow
def test_generate_writes_what_a_batch_reads(tmp_path, chest):
    listed = generate(tmp_path / "set", 2, seed=7, templates=[chest], settings=replace(QUIET, spacing_mm=6.0))
    pairs = read_pairs(listed)
    assert [pair.name for pair in pairs] == ["pair0000", "pair0001"]
    for pair in pairs:
        fixed, moving = read_image(pair.files["fixed"]), read_image(pair.files["moving"])
        for role, image in (("fixed", fixed), ("moving", moving)):
            read_mask(pair.files[f"{role}_mask"], image, role)
        assert len(read_landmarks(pair.files["fixed_landmarks"])) == len(read_landmarks(pair.files["moving_landmarks"]))
    about = json.loads((listed.parent / "pair0000" / "pair.json").read_text())
    again = breathe(*chest, about["seed"], replace(QUIET, spacing_mm=6.0))
    np.testing.assert_allclose(read_landmarks(pairs[0].files["moving_landmarks"]), again.landmarks[1], atol=1e-6)
    assert about["settings"]["spacing_mm"] == 6.0


def test_lungs_are_found_where_none_are_given(chest):
    image, small = chest[0], replace(QUIET, spacing_mm=6.0)
    found, given = (breathe(image, mask, 4, small).fixed_mask for mask in (None, lung_mask(image)))
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(given))


def test_what_cannot_breathe_is_named(chest):
    image, lungs = chest
    with pytest.raises(NephiError, match="no lungs"):
        breathe(sitk.Cast(lungs, sitk.sitkInt16))
    with pytest.raises(NephiError, match="3D"):
        breathe(image[:, 30, :])
    with pytest.raises(NephiError, match="empty"):
        breathe(image, lungs * 0)
    with pytest.raises(NephiError, match="grid"):
        breathe(image, lungs[1:])


def test_real_ct(data):
    folder = data / "train_ct"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    image = read_image(folder / "fnndsc.nii.gz")
    pair = breathe(image, read_mask(folder / "fnndsc_mask.nii.gz", image, "lungs"), 3, replace(QUIET, spacing_mm=5.0))
    fixed, moving = pair.landmarks
    assert len(fixed) > 100
    assert np.abs(pair.forward(fixed) - moving).max() < 1e-4
    spots = np.random.default_rng(0).permutation(moving)
    right, wrong = (
        np.corrcoef(*_both(_values(pair.fixed, fixed), _values(pair.moving, p)))[0, 1] for p in (moving, spots)
    )
    assert right > 0.5 > wrong
