"""Large images are read in the parts that count: the same as whole ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from geometry import rotation
from nephi.images.blocks import block_means
from nephi.images.masks import drawn, on_grid
from nephi.images.sampling import interpolated
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
    found = on_grid(mask, whole)
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


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("factor", [(2, 2, 2), (7, 3, 5), (1, 4, 1), (40, 33, 29)])
def test_means_of_blocks_are_those_of_itk(kind, factor):
    random = np.random.default_rng(1)
    grid = Grid((83, 71, 59), (0.7, 0.7, 0.8), (3.0, -2.0, 1.0), tuple(rotation(3, 15.0).ravel()))
    low, high = (0, 250) if np.issubdtype(kind, np.unsignedinteger) else (-1000, 3000)
    image = grid.image(random.integers(low, high, grid.shape).astype(kind))
    box = (slice(0, 59), slice(5, 61), slice(3, 83))
    wanted = sitk.BinShrink(image[3:83, 5:61, 0:59], factor)
    found = block_means(image, factor, box)
    assert found.GetPixelID() == image.GetPixelID() and Grid.of(found).same_as(Grid.of(wanted))
    arrays = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted)
    np.testing.assert_allclose(*arrays, rtol=1e-5 if kind == np.float32 else 0)
    clipped = block_means(image, factor, box, lambda values: values.clip(50, 90))
    clamped = sitk.Cast(sitk.Clamp(image[3:83, 5:61, 0:59], image.GetPixelID(), 50, 90), sitk.sitkFloat64)
    wanted = sitk.GetArrayFromImage(sitk.BinShrink(clamped, factor))
    np.testing.assert_allclose(sitk.GetArrayFromImage(clipped), wanted, rtol=1e-5)
    assert clipped.GetPixelID() == sitk.sitkFloat32


@pytest.mark.parametrize("d", [2, 3])
def test_a_volume_between_the_nodes_of_a_grid_is_that_of_itk(d):
    coarse = Grid((9, 8, 7)[:d], (3.0, 2.5, 4.0)[:d], (3.0, -2.0, 1.0)[:d], tuple(rotation(d, 15.0).ravel()))
    values = np.random.default_rng(2).normal(size=coarse.shape).astype(np.float32)
    origin = tuple(coarse.to_lps_mm([-1.0, 0.3, -0.7][:d]))
    fine = Grid((41, 30, 47)[:d], (0.9, 0.8, 0.77)[:d], origin, coarse.direction)
    found = np.stack(list(interpolated(values, coarse, fine, 5.0)))
    wanted = sitk.GetArrayFromImage(fine.resample(coarse.image(values), outside=5.0))
    assert 0.02 < (wanted == 5).mean() < 0.9
    np.testing.assert_array_equal(found == 5, wanted == 5)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_between_nodes_no_more_than_some_slices_are_held():
    coarse = Grid((20, 20, 60), (3.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    fine = Grid((200, 200, 90), (0.29, 0.29, 1.9), (0.0,) * 3, coarse.direction)
    values = np.ones(coarse.shape, np.float32)
    tracemalloc.start()
    try:
        assert sum(slice_[0, 0] for slice_ in interpolated(values, coarse, fine)) == 90
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 200 * 200 * 4


def test_voxels_are_drawn_from_a_mask_as_from_a_list_of_all():
    part = np.random.default_rng(3).uniform(size=(9, 20, 30)) < 0.1
    part[4] = False
    every = np.argwhere(part)
    for count in (50, 10**6):
        found = drawn(part, count, np.random.default_rng(0))
        wanted = every[np.random.default_rng(0).choice(len(every), min(count, len(every)), replace=False)]
        np.testing.assert_array_equal(found, wanted)
