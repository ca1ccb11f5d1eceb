"""What of the images is compared: given masks cut away what lies outside them, guessed ones do not."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from geometry import rotation
from nephi.both import Both
from nephi.fitting.similarity import make_similarity
from nephi.images.image_pair import ImagePair
from nephi.learning.pair_tensors import PairTensors
from nephi.settings import PRESETS, Features, MindSettings
from nephi.space.affine import Affine


def features(pair: ImagePair, scale: Features):
    """What is compared at a stage, by the pair's similarity."""
    return pair.volumes(scale, make_similarity(pair.similarity).prepare, "cpu")


def _ct(outside_hu: float) -> tuple[sitk.Image, sitk.Image]:
    """A box of noisy lung in the middle, and around it a chest wall with a texture of its own."""
    rng = np.random.default_rng(0)
    inside = np.zeros((40, 40, 40), bool)
    inside[10:30, 10:30, 10:30] = True
    texture = rng.normal(0, 80, inside.shape)
    array = np.where(inside, -800 + texture, outside_hu + np.roll(texture, int(outside_hu), 0))
    image, mask = (sitk.GetImageFromArray(a) for a in (array.astype(np.float32), inside.astype(np.uint8)))
    for each in (image, mask):
        each.SetSpacing([7.0] * 3)
    return image, mask


def test_only_given_masks_cut_away_the_chest_wall():
    (one, mask), (other, _) = _ct(40.0), _ct(45.0)
    differences = []
    for trusted in (True, False):
        similarity = MindSettings(outside_hu=-100.0)
        pair = ImagePair.of(Both(one, other), Both(mask, mask), Affine.identity(3), similarity, trusted)
        fixed, moving = features(pair, Features(7.0, 1))
        differences.append(float((fixed.volume.float() - moving.volume.float()).abs().mean()))
    assert differences[0] < 0.5 * differences[1]  # the rest: voxels that the border runs through


def test_points_come_from_the_masks_grown_by_the_margin():
    image, mask = _ct(40.0)
    counts = []
    for margin in (0.0, 10.0):
        similarity = MindSettings(mask_margin_mm=margin)
        pair = ImagePair.of(Both(image, image), Both(mask, mask), Affine.identity(3), similarity)
        volume = features(pair, Features(7.0, 1))[0]
        counts.append(len(volume.chosen))
    # a box of 20 voxels of 7 mm: its sides grow by the margin at either end, but for the rounded corners
    side = [count ** (1 / 3) for count in counts]
    assert side[0] == pytest.approx(20, abs=1) and side[1] - side[0] == pytest.approx(20 / 7, abs=0.6)


def test_a_stage_may_keep_a_part_of_the_chest_wall():
    (one, mask), (other, _) = _ct(40.0), _ct(45.0)
    apart = []
    for outside in (1.0, 0.5, 0.0):
        pair = ImagePair.of(Both(one, other), Both(mask, mask), Affine.identity(3), MindSettings())
        grid = pair.working_grid(7.0)
        a, b = (pair.seen_on(grid, way, outside)[0][: grid.shape[0]] for way in (0, 1))
        apart.append(float(np.abs(a - b).mean()))
    assert apart[0] < 0.25 * apart[2]  # the rest: voxels that the border runs through
    assert apart[1] == pytest.approx((apart[0] + apart[2]) / 2, rel=1e-3)


@pytest.mark.parametrize("finest, wanted_mm", [(0.75, 5.25), (0.5, 3.5), (0.1, 2.0)])
def test_the_working_grid_is_no_finer_than_a_part_of_the_voxels(finest, wanted_mm):
    image, mask = _ct(40.0)
    similarity = MindSettings(finest=finest)
    pair = ImagePair.of(Both(image, image), Both(mask, mask), Affine.identity(3), similarity)
    assert pair.working_grid(2.0).spacing_mm == pytest.approx((wanted_mm,) * 3)


@pytest.mark.parametrize("ct", [True, False])
@pytest.mark.parametrize("finer_mm, voxels", [(1.5, None), (7.0, {True: 6, False: 4})])
def test_nodes_of_the_code_lie_some_voxels_apart_at_least(ct, finer_mm, voxels):
    """Voxels of the finer image count; of CTs more of them."""
    (one, mask), (other, _) = _ct(40.0), _ct(45.0)
    if not ct:
        one, other = one + 5000, other + 5000
    wanted_mm = 12.0 if voxels is None else voxels[ct] * finer_mm
    fine, other_mask = sitk.Image(other), sitk.Image(mask)
    for each in (fine, other_mask):
        each.SetSpacing([finer_mm] * 3)
    affine = Affine(np.eye(3) * finer_mm / 7.0, np.zeros(3))
    pair = ImagePair.of(Both(one, fine), Both(mask, other_mask), affine, MindSettings())
    assert pair.fitted(PRESETS["fast"].field).code_spacing_mm == pytest.approx(wanted_mm)


def test_the_margin_shrinks_with_a_small_body():
    """A mouse lung: the same voxels, a tenth of the size; the margin of 4 mm is one for a body of 120 mm."""
    image, mask = _ct(40.0)
    for each in (image, mask):
        each.SetSpacing([0.7] * 3)
    counts = []
    for margin in (0.0, 4.0):
        similarity = MindSettings(mask_margin_mm=margin)
        pair = ImagePair.of(Both(image, image), Both(mask, mask), Affine.identity(3), similarity)
        assert 0.1 < pair.scale < 0.13
        grid = pair.working_grid(0.7 / pair.scale)
        assert max(grid.size) < 20 + 2 * 10.0 * pair.scale / 0.7 + 3  # of the images no more than is needed
        volume = features(pair, Features(0.7 / pair.scale, 1))[0]
        counts.append(len(volume.chosen))
    side = [count ** (1 / 3) for count in counts]
    assert side[0] == pytest.approx(20, abs=1)
    assert side[1] - side[0] == pytest.approx(2 * 4.0 * pair.scale / 0.7, abs=0.6)


@pytest.mark.parametrize("d", [2, 3])
def test_millimetres_of_the_moving_image_where_the_fixed_one_lies_askew(d, phantom_2d, phantom_3d):
    phantom = {2: phantom_2d, 3: phantom_3d}[d]
    fixed = sitk.Image(phantom.fixed)
    fixed.SetDirection(rotation(d, 35.0, seed=3).ravel())
    affine = Affine(rotation(d, 10.0) @ np.diag([1.4, 0.8, 1.1][:d]), np.full(d, 5.0))
    pair = ImagePair.of(Both(fixed, phantom.moving), Both(None, None), affine, MindSettings())
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (100, d)) * pair.cube.half_extents_cube
    apart_mm = affine(pair.cube.to_lps_mm(points[:50])) - affine(pair.cube.to_lps_mm(points[50:]))
    to_moving_mm = PairTensors.of(pair, Features(2.5)).to_moving_mm
    found_mm = torch.tensor(points[:50] - points[50:], dtype=torch.float32) @ to_moving_mm.T
    torch.testing.assert_close(found_mm, torch.tensor(apart_mm, dtype=torch.float32), atol=1e-3, rtol=0)
