"""Frames: the grid against ITK itself, the cube, and the order of points and arrays."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nephi.space.cube import Cube
from nephi.space.grid import Grid


@st.composite
def directions(draw, d: int) -> np.ndarray:
    """Rotations, half of them left-handed, with axes swapped and turned round (as in LAS or PSR images)."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    oblique = draw(st.booleans())
    axes = np.linalg.qr(random.normal(size=(d, d)))[0] if oblique else np.eye(d)
    return axes[:, random.permutation(d)] * random.choice([-1.0, 1.0], d)


@st.composite
def grids(draw) -> Grid:
    d = draw(st.sampled_from([2, 3]))
    number = st.floats(-500, 500)
    return Grid(
        tuple(draw(st.integers(1, 12)) for _ in range(d)),
        tuple(draw(st.floats(0.05, 9.0)) for _ in range(d)),
        tuple(draw(number) for _ in range(d)),
        tuple(draw(directions(d)).ravel()),
    )


def itk_image(grid: Grid) -> sitk.Image:
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_lps_mm)
    image.SetDirection(grid.direction)
    return image


@given(grids(), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_grid_agrees_with_itk_both_ways(grid, seed):
    image = itk_image(grid)
    index = np.random.default_rng(seed).uniform(-3, 15, (5, grid.dimension))
    points = grid.to_lps_mm(index)
    expected = [image.TransformContinuousIndexToPhysicalPoint(i) for i in index.tolist()]
    np.testing.assert_allclose(points, expected, atol=1e-9)
    np.testing.assert_allclose(grid.to_index(points), index, atol=1e-7)
    back = [image.TransformPhysicalPointToContinuousIndex(p) for p in points.tolist()]
    np.testing.assert_allclose(grid.to_index(points), back, atol=1e-7)


@given(grids())
@settings(max_examples=40, deadline=None)
def test_slab_is_in_the_order_of_the_array(grid):
    image = itk_image(grid)
    points = grid.slab_lps_mm(0, grid.shape[0]).reshape(*grid.shape, grid.dimension)
    for index_zyx in (tuple(n - 1 for n in grid.shape), tuple(n // 2 for n in grid.shape)):
        expected = image.TransformIndexToPhysicalPoint([int(i) for i in reversed(index_zyx)])
        np.testing.assert_allclose(points[index_zyx], expected, atol=1e-9)
    middle = grid.shape[0] // 2
    part = grid.slab_lps_mm(middle, middle + 1)
    np.testing.assert_array_equal(part, points[middle].reshape(-1, grid.dimension))


@given(grids(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_cube_round_trip_and_box(grid, seed):
    corners = grid.corners_lps_mm()
    cube = Cube.around(corners, grid.direction)
    points = np.random.default_rng(seed).uniform(-300, 300, (6, grid.dimension))
    np.testing.assert_allclose(cube.to_lps_mm(cube.to_cube(points)), points, atol=1e-9)
    inside = cube.to_cube(corners)
    assert (np.abs(inside) <= cube.upper_cube + 1e-6).all()
    assert np.isclose(cube.upper_cube.max(), 1.0)
    lengths = np.linalg.norm(points[:1] - points[1:], axis=-1)
    scaled = np.linalg.norm(cube.to_cube(points[:1]) - cube.to_cube(points[1:]), axis=-1)
    np.testing.assert_allclose(scaled * cube.unit_mm, lengths, rtol=1e-9)  # isotropic


@given(grids(), st.floats(0.7, 6.0))
@settings(max_examples=60, deadline=None)
def test_cube_grid_covers_the_box_from_its_lower_corner(grid, spacing_mm):
    cube = Cube.around(grid.corners_lps_mm(), grid.direction)
    made = cube.grid(spacing_mm)
    first, last = cube.to_cube(made.to_lps_mm([np.zeros(made.dimension), np.array(made.size) - 1.0]))
    np.testing.assert_allclose(first, -cube.upper_cube, atol=1e-9)
    beyond = (last - cube.upper_cube) * cube.unit_mm
    assert (beyond > -1e-4).all() and (beyond < spacing_mm).all()
    assert made.spacing_mm == (spacing_mm,) * made.dimension


def test_same_as_forgives_rounding_only():
    grid = Grid((30, 20, 10), (1.0, 1.0, 2.5), (3.0, -4.0, 5.0), tuple(np.eye(3).ravel()))
    rounded = Grid(grid.size, (1.0 + 1e-7, 1.0, 2.5), (3.0 + 1e-5, -4.0, 5.0), grid.direction)
    assert grid.same_as(grid) and grid.same_as(rounded)
    assert not grid.same_as(Grid((30, 20, 11), *_rest(grid)))
    assert not grid.same_as(Grid(grid.size, (1.01, 1.0, 2.5), grid.origin_lps_mm, grid.direction))
    assert not grid.same_as(Grid(grid.size, grid.spacing_mm, (3.2, -4.0, 5.0), grid.direction))
    turned = tuple(np.diag([-1.0, 1.0, 1.0]).ravel())
    assert not grid.same_as(Grid(grid.size, grid.spacing_mm, grid.origin_lps_mm, turned))


def _rest(grid: Grid):
    return grid.spacing_mm, grid.origin_lps_mm, grid.direction


def test_image_and_resample_keep_the_frame():
    grid = Grid((6, 5, 4), (1.0, 2.0, 3.0), (7.0, 8.0, 9.0), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    array = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    image = grid.image(array)
    assert Grid.of(image) == grid and grid.shape == (4, 5, 6)
    assert image[5, 4, 3] == array[3, 4, 5]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(grid.resample(image)), array)
