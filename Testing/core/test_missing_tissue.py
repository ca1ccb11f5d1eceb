"""What one image does not show never pulls."""

from __future__ import annotations

from dataclasses import replace

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.fitting.similarity import make_similarity
from nephi.images.hounsfield import shown_box
from nephi.images.image_pair import ImagePair
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
