"""Large images are read in the parts that count: the same as whole ones."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from geometry import rotation
from nephi.images.masks import _on_grid
from nephi.images.slices import Slices
from nephi.space.affine import Affine
from nephi.space.grid import Grid


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize("place", [(30.0, 20.0, 15.0), (-8.0, 5.0, 2.0), (500.0, 0.0, 0.0)], ids=["in", "over", "off"])
def test_averaging_what_a_grid_sees_is_averaging_the_whole(degrees, place):
    random = np.random.default_rng(0)
    whole = Grid((83, 71, 59), (0.7, 0.7, 0.8), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    image = whole.image(random.integers(-1000, 300, whole.shape).astype(np.int16))
    grid = Grid((9, 8, 7), (2.0,) * 3, place, tuple(rotation(3, degrees).ravel()))
    transform = Affine(np.diag([1.05, 0.98, 1.0]), np.array([0.4, -0.7, 0.3])).transform()
    found = Slices(image, grid, transform, -2000.0)[:]
    averaged = sitk.BinShrink(image, (2, 2, 2))
    wanted = sitk.GetArrayFromImage(grid.resample(averaged, transform, outside=-2000.0, pixel=sitk.sitkFloat32))
    np.testing.assert_allclose(found, wanted, atol=1e-2)


@pytest.mark.parametrize("corner", [(4, 5, 6), (0, 0, 0), (15, 12, 9)])
def test_a_mask_of_coarse_voxels_is_resampled_as_a_whole(corner):
    whole = Grid((83, 71, 59), (0.7, 0.7, 0.8), (3.0, -2.0, 1.0), tuple(rotation(3, 15.0).ravel()))
    small = sitk.BinShrink(whole.image(np.zeros(whole.shape, np.uint8)), (4, 4, 4))
    inside = np.zeros(small.GetSize()[::-1], np.uint8)
    inside[tuple(slice(c, c + 5) for c in reversed(corner))] = 1
    mask = Grid.of(small).image(inside)
    wanted = sitk.GetArrayFromImage(whole.resample(sitk.Cast(mask, sitk.sitkFloat32))) > 0.5
    found = _on_grid(mask, whole)
    assert wanted.any() and found.GetPixelID() == sitk.sitkUInt8 and Grid.of(found).same_as(whole)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), wanted)


def test_parts_and_every_nth_voxel_lie_where_they_did():
    grid = Grid((10, 9, 8), (0.7, 0.8, 0.9), (3.0, -2.0, 1.0), tuple(rotation(3, 15.0).ravel()))
    image = grid.image(np.arange(720.0).reshape(grid.shape))
    part = grid.part((slice(1, 4), slice(2, 9), slice(0, 5)))
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(part.resample(image)), sitk.GetArrayFromImage(image)[1:4, 2:9, 0:5], atol=1e-6
    )
    few = grid.every((3, 2, 1))
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(few.resample(image)), sitk.GetArrayFromImage(image)[:, ::2, ::3], atol=1e-6
    )
