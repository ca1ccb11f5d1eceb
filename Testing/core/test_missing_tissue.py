"""What one image does not show never pulls."""

from __future__ import annotations

from dataclasses import replace

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
from detail import GRID, MM, moved_slice
from nephi.both import Both
from nephi.config import of_kind
from nephi.fitting.similarity import make_similarity
from nephi.images.hounsfield import shown_box
from nephi.images.image_pair import ImagePair
from nephi.images.unseen import abrupt_boxes, unseen
from nephi.measure.signals import measure_signals
from nephi.settings import PRESETS, Features
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

CUT = 12  # voxels, of 48


@pytest.fixture(scope="module")
def phantom():
    return make_phantom((48, 42, 42), 6.5, seed=3)


def _padded(image: sitk.Image, value: int) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    array[:CUT] = value
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    return out


@pytest.mark.parametrize("value", [-1024, -2000, 0])
def test_padding_is_not_part_of_what_a_ct_shows(phantom, value):
    whole = tuple(slice(0, n) for n in reversed(phantom.moving.GetSize()))
    assert shown_box(phantom.moving) is None
    assert shown_box(_padded(phantom.moving, value)) == (slice(CUT, whole[0].stop), *whole[1:])


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_padded_part_counts_as_one_that_was_cut_off(phantom, role):
    settings = replace(PRESETS["fast"], fit=replace(PRESETS["fast"].fit, iterations=10))
    given = {name: getattr(phantom, name) for name in ("fixed", "moving", "fixed_mask", "moving_mask")}
    padded = given | {role: _padded(given[role], -1024), f"{role}_mask": _padded(given[f"{role}_mask"], 0)}
    cut = given | {name: given[name][:, :, CUT:] for name in (role, f"{role}_mask")}
    a, b = (nephi.register(**images, settings=settings) for images in (padded, cut))
    points = phantom.fixed_landmarks_lps_mm
    np.testing.assert_array_equal(a.forward(points), b.forward(points))
    assert getattr(a, f"{role}_grid").size == given[role].GetSize()


def test_nothing_is_compared_where_features_see_beyond_the_image(phantom):
    fixed, mask = (image[:, :, CUT:] for image in (phantom.fixed, phantom.fixed_mask))
    images, masks = Both(fixed, phantom.moving), Both(mask, phantom.moving_mask)
    offset = phantom.motion.moving_centre_lps_mm - phantom.motion.fixed_centre_lps_mm
    pair = ImagePair.of(images, masks, Affine(np.eye(3), offset), PRESETS["fast"].similarity)
    mind, reach = make_similarity(PRESETS["fast"].similarity), 2
    seen = pair.volumes(Features(6.5, 1), mind.prepare, "cpu", reach)[0]
    points, _ = seen.spread(1.0, 1)
    index = Grid.of(fixed).to_index(pair.cube.to_lps_mm(points.numpy()))
    assert (index >= reach - 1e-3).all() and (index[:, 2] < reach + 2).any()
    below = points.clone()
    below[:, 2] -= 1.0
    assert not seen.counts(below[below[:, 2] >= seen.lower[2]]).all()


# ---- organs alone and whole fields of view, without masks ------------------------------------------------

GONE = 20  # rows, of 64


def painted(image: sitk.Image, rows: slice, value: float) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    array[rows] = value
    return Grid.of(image).image(array)


def distances(a, b) -> np.ndarray:
    return np.linalg.norm(np.asarray(a) - b, axis=-1)


@pytest.fixture(scope="module")
def whole():
    """A slice, the same moved, points of both, and where those end if both show everything."""
    fixed, moving, a, b = moved_slice()
    return fixed, moving, a, b, nephi.register(fixed, moving, settings=replace(PRESETS["fast"], align="none"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cropped", "background", "another value", "far away", "slab", "excluded"])
def test_what_one_image_does_not_show_pulls_nothing(whole, how):
    """Elsewhere the error is that of whole images, and what is missing follows its surroundings."""
    fixed, moving, a, b, result = whole
    excluded, gone = None, slice(0, GONE)
    if how == "cropped":
        cut = moving[:, GONE:]
    elif how == "slab":
        gone = slice(30, 34)
        cut = painted(moving, gone, 0.0)
    elif how == "excluded":
        gone = slice(28, 36)
        cut = painted(moving, gone, 1.0)
        excluded = painted(sitk.Cast(0 * moving, sitk.sitkUInt8), gone, 1)
    else:
        cut = painted(moving, gone, {"background": 0.0, "another value": 0.4, "far away": -50.0}[how])
    guidance = nephi.Guidance(excluded=(None, excluded))
    partial = nephi.register(fixed, cut, settings=replace(PRESETS["fast"], align="none"), guidance=guidance)
    row = b[:, 1] / MM
    apart = np.maximum(gone.start - row, row - gone.stop)  # rows from what is missing
    known, unknown = apart > 4, apart < 0
    errors, before = distances(partial.forward(a), b), distances(result.forward(a), b)
    assert errors[known].mean() < 1.2 * before[known].mean() + 0.1
    assert errors[unknown].mean() < distances(a, b)[unknown].mean()
    determinants = partial.jacobian_determinant(GRID.slab_lps_mm(0, GRID.shape[0]))
    assert determinants.min() > 0.2


def test_an_organ_that_ends_where_the_other_one_does_is_not_cut_off():
    """Solid shapes end abruptly, too, and there may be nothing between two of them."""

    def boxes(first: int) -> sitk.Image:
        array = np.zeros((64, 64), np.float32)
        array[first : first + 20, 10:50] = array[first + 26 : first + 34, 10:50] = 1.0
        return GRID.image(array)

    identity = Affine(np.eye(2), np.zeros(2))
    assert unseen(Both(boxes(10), boxes(12)), identity) == ((None, None), (None, None))


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_planes_of_one_value_that_cut_through_an_organ_are_not_shown(value):
    fixed, moving, *_ = moved_slice()
    identity = Affine(np.eye(2), np.zeros(2))
    for axis in (0, 1):
        array = sitk.GetArrayFromImage(moving)
        planes = np.moveaxis(array, axis, 0)
        planes[-GONE:] = planes[20:24] = value
        (box, mask), other = unseen(Both(GRID.image(array), fixed), identity)
        assert other == (None, None) and box is not None and mask is not None
        assert box[axis] == slice(0, 64 - GONE) and box[1 - axis] == slice(0, 64)
        hidden = np.moveaxis(sitk.GetArrayFromImage(mask), axis, 0)
        assert hidden[20:24].all() and not hidden[:20].any() and not hidden[24:].any()


def test_an_alignment_sees_no_filled_planes_and_needs_more_than_a_few():
    fixed, moving, *_ = moved_slice()
    found = abrupt_boxes(Both(painted(moving, slice(64 - GONE, 64), 0.0), fixed))
    assert found == ((slice(0, 64 - GONE), slice(0, 64)), None)
    assert abrupt_boxes(Both(painted(moving, slice(34, 64), 0.0), painted(fixed, slice(0, 61), 0.0)))[1] is None


def test_values_far_from_all_others_are_not_shown_wherever_they_are():
    fixed, moving, *_ = moved_slice()
    array = sitk.GetArrayFromImage(moving)
    corner = np.add.outer(np.arange(64), np.arange(64)) < 40
    array[corner] = -1000.0
    _, (box, mask) = unseen(Both(fixed, GRID.image(array)), Affine(np.eye(2), np.zeros(2)))
    assert box is None and np.array_equal(sitk.GetArrayFromImage(mask) != 0, corner)


@pytest.mark.parametrize("name", ["ncc", "mind"])
def test_without_masks_nothing_beyond_an_image_is_compared(name):
    """Nor does what is compared depend on values that are read in its place."""
    fixed, moving, *_ = moved_slice()
    similarity = PRESETS["fast"].similarity if name == "mind" else of_kind(PRESETS["fast"].similarity, name)
    pair = ImagePair.of(Both(fixed, moving[:, GONE:]), Both(None, None), Affine(np.eye(2), np.zeros(2)), similarity)
    chosen = make_similarity(similarity)
    seen = pair.volumes(Features(4.0, 1), chosen.prepare, "cpu", chosen.reach(1), means=chosen.means)[1]
    points, _ = seen.spread(1.0, 1)
    index = Grid.of(moving).to_index(pair.cube.to_lps_mm(points.numpy()))
    assert index[:, 1].min() >= GONE - 1e-3
    above = points.clone()
    above[:, 1] -= (GONE - 2) * MM / pair.cube.unit_mm
    assert not seen.counts(above[above[:, 1] >= seen.lower[1]]).all()


@pytest.mark.parametrize("name", ["ncc", "mi", "mse"])
def test_smoothed_features_are_made_of_what_counts_alone(name):
    fixed, moving, *_ = moved_slice()
    similarity = replace(of_kind(PRESETS["fast"].similarity, name), blurs=(0.0, 1.0, 3.0))
    lesion = sitk.Cast(0 * moving, sitk.sitkUInt8)
    lesion[25:35, 25:35] = 1
    chosen, made = make_similarity(similarity), []
    for value in (0.0, 1.0):
        array = sitk.GetArrayFromImage(moving)
        array[25:35, 25:35] = value
        pair = ImagePair.of(
            Both(fixed, GRID.image(array)),
            Both(None, None),
            Affine(np.eye(2), np.zeros(2)),
            similarity,
            excluded=Both(None, lesion),
        )
        made.append(pair.volumes(Features(4.0, 1), chosen.prepare, "cpu", chosen.reach(1), means=chosen.means)[1])
    counts = ~made[0].excluded
    assert counts.float().mean() > 0.8  # though a Gaussian of 12 mm sees far
    first, second = (one.volume.flatten(0, 1)[counts] for one in made)
    np.testing.assert_array_equal(first, second)


def test_what_is_not_shown_takes_no_part_in_the_expected_error():
    fixed, moving, *_ = moved_slice(moved_mm=0.01)
    cut = painted(moving, slice(0, GONE), 0.0)
    hidden = painted(sitk.Cast(0 * moving, sitk.sitkUInt8), slice(0, GONE), 1)
    transform = sitk.TranslationTransform(2)
    told, plain = (
        measure_signals(Both(fixed, cut), None, transform, lambda points: points, Both(None, mask))
        for mask in (hidden, None)
    )
    assert told.unseen > 0.2 > plain.unseen
    assert told.here.min() > 0.9 > plain.here.min()
    assert (told.points_lps_mm[:, 1] > (GONE - 0.5) * MM).all()
