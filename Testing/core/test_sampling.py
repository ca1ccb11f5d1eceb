"""Images read on grids, directly and through transforms, without ITK where axes agree: ITK's values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.files.transform import displacement_transform, through
from nephi.images.sampling import nearest_through
from nephi.images.slices import Slices
from nephi.images.warp import linear_through
from nephi.space.affine import Affine
from nephi.space.grid import Grid


def _scene(dimension: int, kind, seed: int = 0) -> tuple[sitk.Image, Grid, np.random.Generator]:
    """An oblique image of random values, and a grid along its axes that reaches beyond it."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    size = (23, 19, 17)[:dimension]
    grid = Grid(size, (1.3, 0.9, 1.7)[:dimension], (-5.0, 3.0, 8.0)[:dimension], tuple(axes.ravel()))
    low = grid.to_lps_mm([-3.3, -2.6, -1.7][:dimension])
    other = Grid((31, 26, 24)[:dimension], (1.1, 1.15, 1.45)[:dimension], tuple(low.tolist()), grid.direction)
    return grid.image((100 * rng.normal(size=grid.shape) + 100).astype(kind)), other, rng


def _along(grid: Grid, rng: np.random.Generator) -> sitk.Transform:
    """Other lengths along the grid's axes, and a shift."""
    stretched = grid.axes @ np.diag(rng.uniform(0.8, 1.2, grid.dimension)) @ grid.axes.T
    return Affine(stretched, rng.normal(size=grid.dimension)).transform()


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("way", ["none", "along the axes", "turned", "displaced"])
def test_they_are_itk_s_values(dimension, kind, way):
    image, grid, rng = _scene(dimension, kind)
    turned = Affine(np.linalg.qr(rng.normal(size=(dimension, dimension)))[0], np.zeros(dimension))
    inner = grid.part(tuple(slice(3, n - 5) for n in grid.shape)).coarsened(3.0)  # points beyond the field stay
    inner = replace(inner, spacing_mm=tuple(1.013 * s for s in inner.spacing_mm))  # none on its very edge
    transform = {
        "none": None,
        "along the axes": _along(grid, rng),
        "turned": turned.transform(),
        "displaced": displacement_transform(2 * rng.normal(size=(*inner.shape, dimension)), inner),
    }[way]
    linear = sitk.GetArrayFromImage(grid.resample(image, transform, sitk.sitkLinear, -7.0, sitk.sitkFloat32))
    nearest = sitk.GetArrayFromImage(grid.resample(image, transform, sitk.sitkNearestNeighbor, 9))
    outside = (linear == -7).mean()
    assert way == "turned" or 0.05 < outside < 0.95  # both are tried
    # a displaced place is known to a ten-thousandth of a voxel: whether it lies in the image may be another's answer
    few = 0.002 if way == "displaced" else 0.0
    assert (np.abs(linear_through(image, grid, transform, -7.0) - linear) > 0.2).mean() <= few
    assert (nearest_through(image, grid, transform, 9) != nearest).mean() <= few
    if way != "displaced":
        slices = Slices(image, grid, transform, -7.0)
        np.testing.assert_allclose(np.concatenate([slices[:5], slices[5:]]), linear, atol=1e-3)


@pytest.mark.parametrize("dimension", [2, 3])
def test_points_through_a_field_are_itk_s(dimension):
    image, grid, rng = _scene(dimension, np.float32)
    field = displacement_transform(2 * rng.normal(size=(*Grid.of(image).shape, dimension)), Grid.of(image))
    points = grid.to_lps_mm(rng.uniform(-2, 30, (500, dimension)))
    wanted = np.array([field.TransformPoint(p) for p in points.tolist()])
    moved = (wanted != points).any(1)
    assert 50 < moved.sum() < 450
    np.testing.assert_allclose(through(field, points), wanted, atol=1e-9)


@pytest.mark.parametrize("slices", [(1, 1), (1, 4), (4, 1)], ids=["both", "the image", "the grid"])
@pytest.mark.parametrize("displaced", [False, True])
def test_one_slice_is_read_as_itk_reads_it(slices, displaced):
    image, grid, rng = _scene(3, np.int16)
    image = image[:, :, : slices[0]]
    first = grid.to_lps_mm([0.0, 0.0, 2.35])  # within the first slice of the image
    grid = replace(grid.slices(0, slices[1]), origin_lps_mm=tuple(first.tolist()))
    field = Grid.of(image) if slices[0] > 1 else grid
    transform = displacement_transform(0.8 * rng.normal(size=(*field.shape, 3)), field) if displaced else None
    linear = sitk.GetArrayFromImage(grid.resample(image, transform, sitk.sitkLinear, -7.0, sitk.sitkFloat32))
    nearest = sitk.GetArrayFromImage(grid.resample(image, transform, sitk.sitkNearestNeighbor, 9))
    assert 0.05 < (linear == -7).mean() < 0.95
    few = 0.005 if displaced else 0.0
    assert (np.abs(linear_through(image, grid, transform, -7.0) - linear) > 0.2).mean() <= few
    assert (nearest_through(image, grid, transform, 9) != nearest).mean() <= few
    if not displaced:
        np.testing.assert_allclose(Slices(image, grid, None, -7.0)[:], linear, atol=1e-3)
