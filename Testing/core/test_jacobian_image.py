"""The determinant on fine images: exact at sparse nodes, interpolated between them, exact where it could fold."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi import PRESETS
from nephi.images.align import Alignment
from nephi.maps.code import Code, zero_code
from nephi.maps.maps import FieldMap, make_fields
from nephi.maps.sampled import nodes_around
from nephi.result import Registration
from nephi.space.affine import Affine
from nephi.space.cube import Cube
from nephi.space.grid import Grid


def registration(strength: float) -> tuple[Registration, sitk.Image]:
    """A rough map over an image of 1 mm voxels, 12 mm between the nodes of its code; and a mask in it."""
    grid = Grid((61, 55, 49), (1.0, 1.1, 1.2), (5.0, -7.0, 11.0), tuple(np.eye(3).ravel()))
    cube = Cube.around(grid.corners_lps_mm(), grid.direction)
    settings, generator = PRESETS["balanced"], torch.Generator().manual_seed(0)
    code = zero_code(settings.field, torch.tensor(cube.half_extents_cube, dtype=torch.float32), (6, 6, 6))
    local = strength * torch.randn(code.local_code.shape, generator=generator)
    fields = make_fields(settings.field, cube.unit_mm, 3, generator)
    maps = FieldMap(fields, Code(code.global_code, local, code.half_extents_cube))
    result = Registration(maps, cube, Alignment(Affine.identity(3), "none"), grid, grid, settings)
    inside = np.zeros(grid.shape, np.uint8)
    inside[5:40, 3:50, 10:61] = 1
    return result, grid.image(inside)


@pytest.mark.parametrize("strength, folds", [(0.5, False), (3.0, True)])
def test_folds_are_exact_and_the_rest_is_as_near_as_told(strength, folds):
    result, mask = registration(strength)
    displacement = result.displacement(result.fixed_grid)
    box, found, error = result.jacobian_image(displacement, result.fixed_grid, mask)
    assert box == (slice(5, 40), slice(3, 50), slice(10, 61))
    inside = sitk.GetArrayFromImage(mask)[box] > 0
    exact = result.dense_jacobian(result.fixed_grid, mask)[box]
    np.testing.assert_array_equal(found[~inside], 1)
    assert (exact[inside] <= 0).any() == folds
    np.testing.assert_array_equal(found[inside] <= 0, exact[inside] <= 0)
    low = inside & (exact < error["exact_below"] - 2 * error["max"])
    np.testing.assert_allclose(found[low], exact[low], atol=1e-4)
    gap = (found - exact)[inside]
    assert 0 < np.sqrt(np.mean(gap**2)) < 1.3 * error["rmse"] and np.abs(gap).max() < 3 * error["max"]
    assert error["rmse"] < 0.1 * exact[inside].std()


def test_coarse_images_are_exact_everywhere():
    result, _ = registration(0.5)
    coarse = Grid((25, 23, 21), (2.5, 2.6, 2.8), (5.0, -7.0, 11.0), tuple(np.eye(3).ravel()))
    result.fixed_grid = coarse
    mask = coarse.image(np.ones(coarse.shape, np.uint8))
    box, found, error = result.jacobian_image(result.displacement(coarse), coarse, mask)
    assert error is None
    np.testing.assert_allclose(found, result.dense_jacobian(coarse, mask)[box], atol=1e-5)


def test_fine_images_are_exact_where_that_is_asked_for():
    result, _ = registration(0.5)
    inside = np.zeros(result.fixed_grid.shape, np.uint8)
    inside[10:14, 20:30, 7:11] = 1
    inside[12, 25, 9] = 0
    mask = result.fixed_grid.image(inside)
    box, found, error = result.jacobian_image(result.displacement(result.fixed_grid), result.fixed_grid, mask, True)
    assert error is None and found.shape == (4, 10, 4)
    np.testing.assert_allclose(found, result.dense_jacobian(result.fixed_grid, mask)[box], atol=1e-6)


@pytest.mark.parametrize("size, spacing", [((31, 20, 9), 3.3), ((31, 20, 9), 50.0), ((12, 12), 1.0)])
def test_nodes_around_are_those_that_linear_interpolation_reads(size, spacing):
    grid = Grid(size, (1.0,) * len(size), (0.0,) * len(size), tuple(np.eye(len(size)).ravel()))
    nodes, generator = grid.coarsened(spacing), np.random.default_rng(0)
    inside = generator.random(grid.shape) < 0.01
    near = nodes_around(grid, nodes, inside)
    assert near.shape == nodes.shape
    # what is read between nodes that are not near may be anything
    values = np.where(near, 1.0, np.nan)
    index = nodes.to_index(grid.to_lps_mm(np.argwhere(inside)[:, ::-1]))[:, ::-1]
    low = np.clip(np.floor(index + 1e-9), 0, np.maximum(np.array(nodes.shape) - 2, 0)).astype(int)
    for corner in np.ndindex(*(2,) * len(size)):
        weight = np.where(corner, index - low, 1 - (index - low)).prod(1)
        at = np.minimum(low + corner, np.array(nodes.shape) - 1)
        assert np.isfinite(values[tuple(at.T)][weight > 1e-6]).all()
