"""The search for the start: the landmarks of a known pair come near each other, whatever was done to a scan."""

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.errors import collected_notices
from nephi.images import search
from nephi.images.align import align
from nephi.images.coarse import Prepared
from nephi.images.hounsfield import HU, Units, hounsfield, hu_units
from nephi.images.masks import lung_mask
from nephi.images.search import Found, Search
from nephi.space.affine import Affine
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


def test_a_shift_is_refined_wherever_it_ranks(pair, plain_mm, monkeypatch):
    """What shows little besides lung fits anything coarsely: quarter turns and half turns fit best here."""
    ranked = search._candidates
    monkeypatch.setattr(
        search, "_candidates", lambda *of: sorted(ranked(*of), key=lambda e: "90" not in e[1] and "180" not in e[1])
    )
    moved = sitk.Image(pair.moving)
    offset_mm = np.array([200.0, -300.0, 900.0])
    moved.SetOrigin((np.array(moved.GetOrigin()) + offset_mm).tolist())
    assert errors_mm(pair, moved, pair.moving_landmarks_lps_mm + offset_mm) < plain_mm + 1


def test_starts_on_their_way_to_the_same_place_leave_no_doubt(pair, monkeypatch):
    """Turns about one axis, refined by few steps, towards one about all three: the lead is 0.05 after these steps."""
    monkeypatch.setattr(search, "_RIGID_STEPS", 3)
    moving, points = pair.moving, pair.moving_landmarks_lps_mm
    for axis, degrees in zip(np.eye(3).tolist(), (20, 15, -25), strict=True):
        moving, points = turned(moving, points, axis, degrees)
    assert align(Both(pair.fixed, moving), Both(None, None), "auto").lead > 0.15


@pytest.mark.parametrize("offset_mm", [(0.0, 0.0, 180.0), (0.0, -150.0, 150.0)])
def test_found_lungs_put_right_a_search_that_parts_them(pair, plain_mm, monkeypatch, offset_mm):
    wrong = Affine(np.eye(3), np.array(offset_mm))
    monkeypatch.setattr(Search, "best", lambda self, _: Found(wrong, "elsewhere", self.affine.score(wrong), 0.5))
    images, points = Both(pair.fixed, pair.moving), (pair.fixed_landmarks_lps_mm, pair.moving_landmarks_lps_mm)
    without = align(images, Both(None, None), "auto")
    found = align(images, Both(None, None), "auto", images.map(lung_mask))
    assert (without.start, found.start) == ("elsewhere", "the lungs' moments")
    assert found.lead == pytest.approx(found.score - without.score) and found.lead > 0
    np.testing.assert_array_equal(without.affine.offset_mm, wrong.offset_mm)
    assert np.linalg.norm(found.affine(points[0]) - points[1], axis=1).mean() < 1.25 * plain_mm + 2


def test_found_lungs_that_are_none_change_nothing(pair):
    """What was taken for lungs lies elsewhere, and the images fit worse by it."""
    images, elsewhere = Both(pair.fixed, pair.moving), np.zeros(pair.moving.GetSize()[::-1], np.uint8)
    elsewhere[:12, :12, -12:] = 1
    lungs = Both(pair.fixed_mask, Grid.of(pair.moving).image(elsewhere))
    plain, found = (align(images, Both(None, None), "auto", given) for given in (None, lungs))
    assert found.start == plain.start and found.score == plain.score and found.lead == plain.lead
    np.testing.assert_array_equal(found.affine.matrix, plain.affine.matrix)
    np.testing.assert_array_equal(found.affine.offset_mm, plain.affine.offset_mm)


@pytest.mark.parametrize("part", [(slice(None), slice(None), slice(20, None)), (slice(22, None),)])
def test_a_cut_scan_is_not_matched_with_the_whole(pair, plain_mm, part):
    assert errors_mm(pair, pair.moving[part], pair.moving_landmarks_lps_mm) < 1.25 * plain_mm + 2


def test_contrast_may_be_inverted(pair, plain_mm):
    inverted = 1000 - sitk.Cast(pair.moving, sitk.sitkFloat32)
    assert errors_mm(pair, inverted, pair.moving_landmarks_lps_mm) < 1.25 * plain_mm + 2


def test_a_canvas_of_zeros_does_not_lead_astray(pair, plain_mm):
    padded = sitk.ConstantPad(pair.moving, [6] * 3, [6] * 3, 0)
    assert errors_mm(pair, padded, pair.moving_landmarks_lps_mm) < 1.25 * plain_mm + 2


@pytest.mark.parametrize("value", [-1000, 32767])
def test_a_canvas_far_from_all_values_does_not_lead_astray(pair, plain_mm, value):
    """Of images that are no CTs, too."""
    mr = [sitk.Sqrt(sitk.Cast(image, sitk.sitkFloat32) + 1100.0) for image in (pair.fixed, pair.moving)]
    assert hu_units(mr[0]) is None
    moving = sitk.ConstantPad(mr[1], [8] * 3, [8] * 3, value)
    affine = align(Both(mr[0], moving), Both(None, None), "auto").affine
    gaps = affine(pair.fixed_landmarks_lps_mm) - pair.moving_landmarks_lps_mm
    assert np.linalg.norm(gaps, axis=1).mean() < 1.25 * plain_mm + 2


def test_units_that_start_at_zero_are_recognised(pair):
    raised = pair.moving + 1024
    assert hu_units(sitk.ConstantPad(raised, [6] * 3, [6] * 3, -2000)) == Units(1.0, -1024.0)
    assert hu_units(pair.moving) == HU and hu_units(raised) == Units(1.0, -1024.0)
    with collected_notices() as notes:
        array = sitk.GetArrayFromImage(hounsfield(raised, "moving"))
    np.testing.assert_allclose(array, sitk.GetArrayFromImage(pair.moving))
    assert len(notes) == 1 and "1024" in notes[0]


@pytest.mark.parametrize("top", [1000, 0, 4095])
def test_inverted_contrast_is_recognised(pair, top):
    inverted = top - sitk.Cast(pair.moving, sitk.sitkFloat32)
    with collected_notices() as notes:
        array = sitk.GetArrayFromImage(hounsfield(inverted, "moving"))
    assert np.abs(array - sitk.GetArrayFromImage(pair.moving)).max() < 80
    assert len(notes) == 1 and "inverted" in notes[0]


def test_an_mr_is_no_inverted_ct():
    air, fat, tissue = (np.random.default_rng(0).normal(mean, 12, (60, 60, 60)) for mean in (30, 1000, 600))
    z, y, x = np.indices(air.shape) - 30
    r = np.sqrt(z**2 + y**2 + x**2)
    mr = sitk.GetImageFromArray(np.where(r < 18, tissue, np.where(r < 22, fat, np.abs(air - 30))))
    assert hu_units(mr) is None


def test_noise_below_zero_around_an_mr_makes_no_inverted_ct_of_it():
    """Grey matter where air would be, white matter beyond it, and the background denser than soft tissue."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices((60, 60, 60)) - 30
    r = np.sqrt(z**2 + y**2 + x**2)
    mr = np.where(r < 12, 1500.0, np.where(r < 22, 1000.0, np.where(r < 24, 500.0, 0.0))) + rng.normal(0, 60, r.shape)
    assert hu_units(sitk.GetImageFromArray(mr)) is None


def test_a_canvas_of_air_makes_no_inverted_ct_of_a_ct(pair):
    """Of what it shows little is soft tissue then: inverted, lungs would be."""
    moving, points = pair.moving, pair.moving_landmarks_lps_mm
    for axis, degrees in zip(np.eye(3).tolist(), (20, 15, -25), strict=True):
        moving, points = turned(moving, points, axis, degrees)
    assert hu_units(moving) == HU


def test_the_body_of_a_ct_is_its_tissue_also_where_most_sides_cut_it():
    """The background is air, though less than half of the sides shows it."""
    z, y, x = np.indices((24, 32, 32))
    tissue = x + y > 14
    hu = np.where(tissue, 40.0, -1000.0) + np.random.default_rng(0).normal(0, 10, tissue.shape)
    image = sitk.GetImageFromArray(hu.astype(np.float32))
    image.SetSpacing([6.0] * 3)
    assert hu_units(image) == HU
    coarse = Prepared.of(image, None, 6.0).at_scale(6.0)
    shown = coarse.features[0] > 0.6
    assert (coarse.body & shown).sum() > 0.9 * shown.sum()


def masked_errors_mm(pair, moving: sitk.Image, mask: sitk.Image, points_lps_mm: np.ndarray) -> float:
    found = align(Both(pair.fixed, moving), Both(pair.fixed_mask, mask), "auto")
    seen = np.array([moving.TransformPhysicalPointToContinuousIndex(p) for p in points_lps_mm.tolist()])
    seen = ((seen >= 0) & (seen <= np.array(moving.GetSize()) - 1)).all(1)
    gaps = found.affine(pair.fixed_landmarks_lps_mm[seen]) - points_lps_mm[seen]
    return float(np.linalg.norm(gaps, axis=1).mean())


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 0, 1)])
def test_a_turn_is_found_with_masks_whose_moments_know_none(pair, plain_mm, axis):
    moving, points = turned(pair.moving, pair.moving_landmarks_lps_mm, axis, 30)
    mask = turned(pair.moving_mask, points, axis, 30)[0] == 1
    assert masked_errors_mm(pair, moving, mask, points) < 1.25 * plain_mm + 2


@pytest.mark.parametrize("part", [(slice(None), slice(None), slice(20, None)), (slice(22, None),)])
def test_moments_of_a_cut_mask_are_not_trusted(pair, plain_mm, part):
    points = pair.moving_landmarks_lps_mm
    assert masked_errors_mm(pair, pair.moving[part], pair.moving_mask[part], points) < 1.25 * plain_mm + 2


def test_moments_that_the_images_confirm_are_taken_as_they_are(pair):
    images, masks = Both(pair.fixed, pair.moving), Both(pair.fixed_mask, pair.moving_mask)
    found, moments = align(images, masks, "auto"), align(images, masks, "moments")
    assert found.method == "moments" and found.lead is None
    np.testing.assert_array_equal(found.affine.matrix, moments.affine.matrix)


def test_room_air_around_a_scan_changes_nothing(pair, plain_mm):
    around = sitk.ConstantPad(pair.moving, [8] * 3, [8] * 3, -1000)
    assert abs(errors_mm(pair, around, pair.moving_landmarks_lps_mm) - plain_mm) < 1.0


def test_a_scale_that_is_cut_off_is_told(pair):
    array = np.zeros_like(sitk.GetArrayFromImage(pair.moving_mask))
    array[20:40, 20:40, 28:30] = 1
    mask = Grid.of(pair.moving_mask).image(array)
    with collected_notices() as notes:
        align(Both(pair.fixed, pair.moving), Both(pair.fixed_mask, mask), "moments")
    assert any("differ in extent" in note for note in notes)


def test_where_an_image_ends_it_shows_what_it_shows_elsewhere():
    """A ramp rises as much, and has the same edges, up to where it is cut."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in (24, 40, 40)], indexing="ij")
    image = sitk.GetImageFromArray((3.0 * z + 2 * y + x).astype(np.float32))
    image.SetSpacing((2.0, 2.0, 2.0))
    coarse = Prepared.of(image, None, 6.0).at_scale(6.0)
    assert coarse.seen.all()
    values, edges = coarse.features[:, :, 6, 6].numpy()  # what is near the corners is beyond the percentiles shown
    np.testing.assert_allclose(edges, edges.mean(), rtol=1e-3)
    np.testing.assert_allclose(np.diff(values), np.diff(values).mean(), rtol=1e-3)


@pytest.mark.parametrize("cut", [(0, 0), (0, 2)])
def test_a_thin_slab_is_not_moved_to_where_the_other_one_ends(pair, cut):
    """Of 50 mm, from one image: the headers are right, also where one slab begins 10 mm above the other."""
    fixed, moving = (pair.fixed[:, :, 22 + k : 32 + k] for k in cut)
    found = align(Both(fixed, moving), Both(None, None), "auto").affine
    points = Grid.of(fixed).corners_lps_mm()
    assert np.abs(found.scales() - 1).max() < 0.03
    assert np.linalg.norm(found(points) - points, axis=1).mean() < 2.0
