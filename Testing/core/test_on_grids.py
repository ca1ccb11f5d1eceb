"""Maps that are splines, on grids along the cube's axes: the same as at the grids' points, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from nephi.images.align import Alignment
from nephi.maps.code import nodes, zero_code
from nephi.maps.consensus import Consensus
from nephi.maps.maps import FieldMap
from nephi.maps.on_grids import OnGrids, determinant
from nephi.maps.voxel import VoxelFields
from nephi.result import Registration
from nephi.settings import PRESETS, VoxelSettings
from nephi.space.affine import Affine
from nephi.space.cube import Cube
from nephi.space.grid import Grid


def _turned(d: int) -> tuple[float, ...]:
    c, s = np.cos(0.3), np.sin(0.3)
    matrix = np.eye(d)
    matrix[:2, :2] = [[c, -s], [s, c]]
    return tuple(matrix.ravel().tolist())


def _registration(d: int, smooth: float = 0.05) -> Registration:
    """A smooth map about a turned cube, after an alignment that shears."""
    grid = Grid((40, 34, 30)[:d], (2.0, 2.5, 3.0)[:d], (-20.0, 15.0, 40.0)[:d], _turned(d))
    cube = Cube.around(grid.corners_lps_mm(), grid.direction, 5.0)
    half = torch.tensor(cube.half_extents_cube, dtype=torch.float32)
    settings = VoxelSettings(local_code=2 * d, code_degree=2)
    code = zero_code(settings, half, nodes(half.tolist(), 0.3))
    noise = torch.randn(code.local_code.shape, generator=torch.Generator().manual_seed(5))
    code.local_code[:] = 0.4 * noise
    code.local_code[:, d:] = -code.local_code[:, :d]
    maps = Consensus(FieldMap(VoxelFields(settings, d), code), [smooth] * d)
    matrix = np.eye(d) + 0.05 * np.arange(d * d).reshape(d, d) / d
    affine = Affine(matrix, np.arange(1.0, d + 1))
    return Registration(maps, cube, Alignment(affine, "given"), grid, grid, PRESETS["fast"])


@pytest.mark.parametrize("d", [2, 3])
def test_displacements_and_determinants_are_those_of_the_points(d):
    """Of a grid that reaches beyond the cube, where the map's displacement holds."""
    result = _registration(d)
    fixed = result.fixed_grid
    around = Grid((31, 29, 27)[:d], (3.9, 3.7, 4.1)[:d], tuple(fixed.to_lps_mm([-4.3] * d)), fixed.direction)
    at_once = OnGrids.of(result.maps, result.cube, result.affine, around)
    assert at_once is not None
    points = around.points_lps_mm()
    wanted = result.forward(points) - points
    assert np.abs(wanted).max() > 2 and np.allclose(result.displacement(around), wanted, atol=2e-4)
    exact = result.jacobian_determinant(points.reshape(-1, d)).reshape(around.shape)
    assert np.ptp(exact) > 0.2 and np.allclose(at_once.determinants(around), exact, atol=1e-4)
    assert np.allclose(result.dense_jacobian(around, None), exact, atol=1e-4)


def test_determinants_are_written_in_the_mask_alone():
    result = _registration(3)
    inside = np.zeros(result.fixed_grid.shape, np.uint8)
    inside[10:20, 5:25, 8:30] = 1
    found = result.dense_jacobian(result.fixed_grid, result.fixed_grid.image(inside))
    whole = result.dense_jacobian(result.fixed_grid, None)
    assert np.array_equal(found[inside == 1], whole[inside == 1]) and (found[inside == 0] == 1).all()


def test_not_where_axes_differ_or_the_map_is_no_spline():
    result = _registration(3)
    turned = replace(result.fixed_grid, direction=tuple(np.eye(3).ravel()))
    assert OnGrids.of(result.maps, result.cube, result.affine, turned) is None
    points = turned.points_lps_mm()
    assert np.allclose(result.displacement(turned), result.forward(points) - points, atol=1e-5)
    assert OnGrids.of(_registration(3, 0.0).maps, result.cube, result.affine, result.fixed_grid) is None


@pytest.mark.parametrize("d", [2, 3])
def test_a_determinant_is_that_of_linear_algebra(d):
    matrices = torch.randn(50, d, d, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    found = determinant([matrices[..., k].T for k in range(d)])
    assert torch.allclose(found, torch.linalg.det(matrices))
