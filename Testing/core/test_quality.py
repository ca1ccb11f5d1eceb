"""Quality measures against fields whose answers are known by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nephi.errors import NephiError
from nephi.measure import quality
from nephi.space.grid import Grid


def _rotation(dimension: int) -> np.ndarray:
    """An oblique direction, left-handed, so that a lost sign of the axes shows."""
    random = np.random.default_rng(5).standard_normal((dimension, dimension))
    rotation = np.linalg.qr(random)[0]
    rotation[:, 0] *= -np.sign(np.linalg.det(rotation))
    return rotation


def _grid(size: tuple[int, ...], oblique: bool = True) -> Grid:
    dimension = len(size)
    direction = _rotation(dimension) if oblique else np.eye(dimension)
    spacing, origin = (0.7, 1.3, 2.5)[:dimension], (-31.0, 12.5, 200.0)[:dimension]
    return Grid(size, spacing, origin, tuple(direction.ravel().tolist()))


def _points_lps_mm(grid: Grid) -> np.ndarray:
    return grid.slab_lps_mm(0, grid.shape[0]).reshape(*grid.shape, grid.dimension)


def _one_voxel_moved(grid: Grid, voxels: float) -> np.ndarray:
    """The voxel in the middle moves along index axis x by this many voxels."""
    field = np.zeros((*grid.shape, grid.dimension))
    field[tuple(n // 2 for n in grid.shape)] = voxels * grid.spacing_mm[0] * grid.axes[:, 0]
    return field


def _checkerboard(grid: Grid, voxels: float) -> np.ndarray:
    """Neighbours move to opposite sides along index axis x; the outer two layers rest."""
    sign = 1.0 - 2.0 * (np.indices(grid.shape).sum(0) % 2)
    inner = np.zeros(grid.shape)
    inner[(slice(2, -2),) * grid.dimension] = voxels
    return (sign * inner)[..., None] * grid.spacing_mm[0] * grid.axes[:, 0]


SIZES = [(9, 8), (9, 8, 7)]


def test_tre_and_summary():
    a = np.array([[0.0, 0, 0], [1, 2, 3]])
    b = np.array([[3.0, 4, 0], [1, 2, 3]])
    assert quality.tre_mm(a, b).tolist() == [5, 0]
    result = quality.summary(quality.tre_mm(a, b))
    assert result == {"mean": 2.5, "median": 2.5, "p95": pytest.approx(4.75), "max": 5.0, "n": 2.0}
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize("other", [np.zeros((3, 3)), np.zeros((2, 2)), np.zeros(3)])
def test_tre_of_points_that_do_not_pair_up(other):
    with pytest.raises(NephiError, match="pair up"):
        quality.tre_mm(np.zeros((2, 3)), other)


def test_summary_of_nothing():
    with pytest.raises(NephiError):
        quality.summary([])


def test_dice():
    a, b = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    a[:2], b[1:3] = 1, 7
    assert quality.dice(a, b) == 0.5
    assert quality.dice(a, a) == 1.0
    assert quality.dice(a, np.zeros_like(a)) == 0.0
    with pytest.raises(NephiError, match="empty"):
        quality.dice(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(NephiError, match="shape"):
        quality.dice(a, b[:3])


@pytest.mark.parametrize("size", SIZES)
def test_jacobian_of_an_affine_map_is_its_determinant_everywhere(size):
    grid, d = _grid(size), len(size)
    affine = np.eye(d) + 0.3 * np.random.default_rng(1).standard_normal((d, d))
    displacement = _points_lps_mm(grid) @ (affine.T - np.eye(d)) + 900
    jacobian = quality.displacement_jacobian(displacement, grid)
    assert jacobian.dtype == np.float32 and jacobian.shape == grid.shape
    np.testing.assert_allclose(jacobian, np.linalg.det(affine), rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_jacobian_of_a_quadratic_map_is_exact_inside(size):
    """Central differences are exact on it, so that a swapped or flipped axis shows at every voxel."""
    grid, d = _grid(size), len(size)
    form = 1e-2 * np.random.default_rng(2).standard_normal((d, d, d))
    points = _points_lps_mm(grid) - np.asarray(grid.origin_lps_mm)
    displacement = np.einsum("cij,...i,...j->...c", form, points, points)
    matrix = np.eye(d) + np.einsum("cij,...i->...cj", form + form.swapaxes(1, 2), points)
    expected = np.linalg.det(matrix)
    inside = (slice(1, -1),) * d
    assert np.ptp(expected) > 0.05
    jacobian = quality.displacement_jacobian(displacement, grid)
    np.testing.assert_allclose(jacobian[inside], expected[inside], rtol=1e-5)


def test_jacobian_agrees_with_itk_without_rotation():
    grid = _grid((9, 8, 7), oblique=False)
    displacement = 0.3 * np.random.default_rng(3).standard_normal((*grid.shape, 3))
    field = grid.image(displacement, vector=True)
    itk = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    jacobian = quality.displacement_jacobian(displacement, grid)
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(jacobian[inside], itk[inside], rtol=1e-4)


def test_jacobian_at_the_border_is_one_sided():
    grid = Grid((4, 3), (2.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    displacement = np.zeros((3, 4, 2))
    displacement[..., 0] = [0, 1, 4, 9]
    jacobian = quality.displacement_jacobian(displacement, grid)
    np.testing.assert_allclose(jacobian, np.tile([1.5, 2, 3, 3.5], (3, 1)))


def test_jacobian_of_a_single_slice_is_that_of_its_plane():
    grid = _grid((6, 5, 1))
    points = _points_lps_mm(grid) - np.asarray(grid.origin_lps_mm)
    along = points @ grid.axes[:, 0]
    jacobian = quality.displacement_jacobian(0.5 * along[..., None] * grid.axes[:, 0], grid)
    np.testing.assert_allclose(jacobian, 1.5, rtol=1e-5)


@pytest.mark.parametrize("size", [(9, 8, 7), (7, 40)])
def test_slabs_leave_no_seams(size, monkeypatch):
    grid = _grid(size)
    displacement = np.random.default_rng(4).standard_normal((*grid.shape, grid.dimension)).astype(np.float32)
    mask = np.random.default_rng(6).random(grid.shape) < 0.3
    mask[4:] = False
    whole = quality.displacement_jacobian(displacement, grid)
    volume = quality.non_diffeomorphic_volume(displacement, grid)
    inside = quality.non_diffeomorphic_volume(displacement, grid, mask)
    for voxels in (1, 2 * int(np.prod(size[:-1]))):
        monkeypatch.setattr(quality, "_SLAB_VOXELS", voxels)
        np.testing.assert_array_equal(quality.displacement_jacobian(displacement, grid), whole)
        assert quality.non_diffeomorphic_volume(displacement, grid) == pytest.approx(volume)
        assert quality.non_diffeomorphic_volume(displacement, grid, mask) == pytest.approx(inside)


@pytest.mark.parametrize("measure", [quality.displacement_jacobian, quality.non_diffeomorphic_volume])
def test_memory_beyond_input_and_output_is_that_of_a_slab(measure):
    grid = _grid((256, 256, 30))
    displacement = np.zeros((*grid.shape, 3), np.float32)
    tracemalloc.start()
    try:
        measure(displacement, grid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one_array = 4 * displacement.size // 3
    assert peak < one_array + 60e6  # 9 derivatives of the whole image alone would be 71 MB more


@pytest.mark.parametrize("size", SIZES)
def test_no_volume_is_folded_by_identity_and_affine_maps(size):
    grid, d = _grid(size), len(size)
    none = {"percent": 0.0, "volume_mm3": 0.0, "voxels": 0}
    assert quality.non_diffeomorphic_volume(np.zeros((*grid.shape, d)), grid) == none
    shear = np.eye(d) + 0.9 * np.eye(d, k=1)
    displacement = _points_lps_mm(grid) @ (shear.T - np.eye(d)) - 700
    assert quality.non_diffeomorphic_volume(displacement, grid) == none


@pytest.mark.parametrize("size", SIZES)
def test_a_reflection_folds_all_volume(size):
    grid, d = _grid(size), len(size)
    mirror = np.diag([-2.0, 1, 1][:d])
    result = quality.non_diffeomorphic_volume(_points_lps_mm(grid) @ (mirror - np.eye(d)), grid)
    cells = np.prod(np.array(size) - 1) * grid.voxel_volume_mm3
    assert result["percent"] == pytest.approx(200)
    assert result["volume_mm3"] == pytest.approx(2 * cells)
    assert result["voxels"] == np.prod(size)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize(
    ("size", "moved", "voxel_volumes"),
    [
        ((9, 8), 0.99, 0.0),
        # 2D: 2 corner triangles of the voxel and 2 of the one it passes, each (moved - 1) / 2; half of them.
        ((9, 8), 1.5, 0.5),
        ((9, 8, 7), 0.99, 0.0),
        # 3D: 4 + 4 corner tetrahedra, each (moved - 1) / 6; half of them.
        ((9, 8, 7), 1.5, 8 * 0.5 / 6 / 2),
        # and beyond 2 voxels the 4 middle tetrahedra ahead of it, each (moved / 2 - 1) / 3.
        ((9, 8, 7), 3.0, (8 * 2 / 6 + 4 * 0.5 / 3) / 2),
    ],
)
def test_one_voxel_that_passes_its_neighbour(size, moved, voxel_volumes, oblique):
    grid = _grid(size, oblique)
    field = _one_voxel_moved(grid, moved)
    result = quality.non_diffeomorphic_volume(field, grid)
    assert result["volume_mm3"] == pytest.approx(voxel_volumes * grid.voxel_volume_mm3, abs=1e-9)
    assert result["percent"] == pytest.approx(100 * voxel_volumes / np.prod(np.array(size) - 1), abs=1e-9)
    if moved < 3:
        assert result["voxels"] == (0 if moved < 1 else 2)


def test_the_mask_takes_a_corner_simplex_by_its_corner():
    grid = _grid((9, 8))
    mask = np.zeros(grid.shape, bool)
    mask[4, 4] = True  # the voxel that moves: 2 of the 4 triangles that fold, of 4 in all
    result = quality.non_diffeomorphic_volume(_one_voxel_moved(grid, 1.5), grid, mask)
    assert result["volume_mm3"] == pytest.approx(0.25 * grid.voxel_volume_mm3)
    assert result["percent"] == pytest.approx(25)
    assert result["voxels"] == 1


def test_the_mask_shares_a_middle_simplex_among_its_vertices():
    grid = _grid((9, 8, 7))
    mask = np.zeros(grid.shape, bool)
    mask[3, 4, 4] = True  # the voxel that moves: 4 corner tetrahedra of -2 / 6, a quarter of 4 of -0.5 / 3
    result = quality.non_diffeomorphic_volume(_one_voxel_moved(grid, 3.0), grid, mask)
    assert result["volume_mm3"] == pytest.approx(0.75 * grid.voxel_volume_mm3)
    assert result["percent"] == pytest.approx(75)
    whole = quality.non_diffeomorphic_volume(_one_voxel_moved(grid, 3.0), grid)
    # The voxel, the one it passes, and the three other vertices of each of the 4 tetrahedra ahead of it.
    assert whole["voxels"] == 2 + 8


@pytest.mark.parametrize("size", [(12, 11), (12, 11, 10)])
def test_a_checkerboard_folds_though_central_differences_see_nothing(size):
    grid, d = _grid(size), len(size)
    displacement = _checkerboard(grid, 0.8)
    jacobian = quality.displacement_jacobian(displacement, grid)
    assert quality.fold_summary(jacobian) == {"percent": 0.0, "count": 0}
    mask = np.zeros(grid.shape, bool)
    mask[(slice(3, -3),) * d] = True
    result = quality.non_diffeomorphic_volume(displacement, grid, mask)
    # Half of the corner simplices have the determinant 1 - 2 * 0.8; the middle ones (1/3 in 3D) only move.
    assert result["percent"] == pytest.approx(100 * 0.6 * 0.5 * (2 / 3 if d == 3 else 1))
    assert result["voxels"] == mask.sum()


def test_a_volume_needs_cells_and_a_mask_with_voxels():
    with pytest.raises(NephiError, match="two voxels"):
        quality.non_diffeomorphic_volume(np.zeros((1, 5, 6, 3)), _grid((6, 5, 1)))
    with pytest.raises(NephiError, match="empty"):
        quality.non_diffeomorphic_volume(np.zeros((5, 6, 2)), _grid((6, 5)), np.zeros((5, 6)))
    for measure in (quality.displacement_jacobian, quality.non_diffeomorphic_volume):
        with pytest.raises(NephiError, match="shape"):
            measure(np.zeros((6, 5, 2)), _grid((6, 5)))


def test_fold_summary_and_statistics_inside_a_mask():
    jacobian = np.array([[1.0, 2.0, 0.0], [-1.0, 4.0, np.nan]], np.float32)
    assert quality.fold_summary(jacobian) == {"percent": 50.0, "count": 3}
    mask = np.array([[1, 1, 0], [0, 1, 0]])
    assert quality.fold_summary(jacobian, mask) == {"percent": 0.0, "count": 0}
    result = quality.jacobian_statistics(jacobian, mask)
    assert set(result) == {"min", "p1", "p5", "mean", "median", "p95", "p99", "max", "std_log"}
    assert result["min"] == 1 and result["max"] == 4 and result["median"] == 2
    assert result["mean"] == pytest.approx(7 / 3)
    assert result["p5"] == pytest.approx(1.1) and result["p95"] == pytest.approx(3.8)
    assert result["std_log"] == pytest.approx(np.std(np.log([1, 2, 4])))
    for measure in (quality.fold_summary, quality.jacobian_statistics):
        with pytest.raises(NephiError, match="empty"):
            measure(jacobian, np.zeros_like(mask))
        with pytest.raises(NephiError, match="shape"):
            measure(jacobian, mask[:1])


def test_statistics_leave_the_jacobian_alone_and_clip_the_logarithm():
    jacobian = np.array([[3.0, -1.0], [1.0, 2.0]], np.float32)
    result = quality.jacobian_statistics(jacobian)
    assert jacobian.tolist() == [[3, -1], [1, 2]]
    assert result["std_log"] == pytest.approx(np.std(np.log([3, 1e-9, 1, 2])), rel=1e-5)


def test_volume_change():
    mask = np.zeros((10, 10, 10), bool)
    mask[:5] = True
    jacobian = np.where(mask, 1.4, 9.0)
    result = quality.volume_change(jacobian, mask, 8.0)
    assert result == pytest.approx({"fixed_ml": 4.0, "moving_ml": 5.6, "ratio": 1.4})


def test_histogram_counts_every_voxel_and_says_where():
    jacobian = np.array([[0.99, 1.0, 1.04], [1.3, -0.01, np.nan]])
    result = quality.jacobian_histogram(jacobian)
    edges, counts = result["edges"], result["counts"]
    assert len(edges) == len(counts) + 1 and sum(counts) == 6
    assert edges[0] == -1 and edges[-1] == 1.35 and np.allclose(np.diff(edges), 0.05)
    by_edge = dict(zip(edges, counts, strict=False))
    assert by_edge[-1.0] == 1 and by_edge[-0.05] == 1  # not a number; just below zero
    assert by_edge[0.95] == 1 and by_edge[1.0] == 2 and by_edge[1.3] == 1
    inside = quality.jacobian_histogram(jacobian, np.array([[1, 1, 1], [0, 0, 0]]))
    assert inside == {"edges": [0.95, 1.0, 1.05], "counts": [1, 2]}


def test_histogram_of_many_voxels_is_that_of_numpy():
    values = np.random.default_rng(0).normal(1.2, 0.3, 3 * 2**18 + 5)  # more than are counted at a time
    result = quality.jacobian_histogram(values)
    assert result["counts"] == np.histogram(values, result["edges"])[0].tolist() and sum(result["counts"]) == len(
        values
    )


def test_histogram_of_what_lies_far_out_and_of_one_value():
    far = quality.jacobian_histogram(np.array([-50.0, 1.0, 900.0]))
    assert (far["edges"][0], far["edges"][-1]) == (-1, 5)
    assert far["counts"][0] == far["counts"][-1] == 1 and sum(far["counts"]) == 3
    for value in (1.0, -7.0, 7.0, np.inf):
        assert quality.jacobian_histogram(np.full((2, 3), value))["counts"] == [6]


@pytest.mark.parametrize("d", [2, 3])
def test_region_statistics(d):
    labels = np.zeros((6,) * d, np.uint16)
    labels[1], labels[3] = 7, 2
    jacobian = np.where(labels == 7, 1.5, np.where(labels == 2, 0.75, -9.0)).astype(np.float32)
    small, large = quality.region_statistics(jacobian, labels, 1000.0)
    n = 6 ** (d - 1)
    assert small == pytest.approx({
        "label": 2, "volume_fixed_ml": n, "volume_moving_ml": 0.75 * n, "change_ml": -0.25 * n,
        "change_percent": -25, "mean_jacobian": 0.75,
    })  # fmt: skip
    assert large["label"] == 7 and large["change_percent"] == pytest.approx(50)
    assert quality.region_statistics(jacobian, np.zeros_like(labels), 1.0) == []
    with pytest.raises(NephiError, match="shape"):
        quality.region_statistics(jacobian, labels[1:], 1.0)


@pytest.mark.parametrize("size", [(20, 16), (20, 16, 12)])
def test_fold_regions(size):
    grid, d = _grid(size), len(size)
    jacobian = np.ones(grid.shape, np.float32)
    small, large = (slice(2, 3),) * d, (slice(6, 9),) * d
    jacobian[small], jacobian[large] = -3, -0.25
    jacobian[(8,) * d] = -0.75
    regions = quality.fold_regions(jacobian, grid)
    assert [region["voxels"] for region in regions] == [3**d, 1]
    assert [region["min_jacobian"] for region in regions] == [-0.75, -3]
    assert regions[0]["volume_mm3"] == pytest.approx(3**d * grid.voxel_volume_mm3)
    np.testing.assert_allclose(regions[0]["centre_lps_mm"], grid.to_lps_mm([7] * d))
    np.testing.assert_allclose(regions[1]["centre_lps_mm"], grid.to_lps_mm([2] * d))
    assert [region["min_jacobian"] for region in quality.fold_regions(jacobian, grid, most=1)] == [-0.75]
    mask = np.zeros(grid.shape, np.uint8)
    mask[small] = 1
    assert [region["min_jacobian"] for region in quality.fold_regions(jacobian, grid, mask)] == [-3]
    assert quality.fold_regions(np.ones(grid.shape), grid) == []
    with pytest.raises(NephiError, match="shape"):
        quality.fold_regions(jacobian[1:], grid)


def test_fold_regions_place_x_first_and_join_at_corners():
    grid = _grid((6, 5, 4))
    jacobian = np.ones(grid.shape)
    jacobian[1, 2, 3] = jacobian[2, 3, 4] = 0
    (region,) = quality.fold_regions(jacobian, grid)
    assert region["voxels"] == 2 and region["min_jacobian"] == 0
    np.testing.assert_allclose(region["centre_lps_mm"], grid.to_lps_mm([3.5, 2.5, 1.5]))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.floats(0.1, 5), st.floats(-20, 20))
def test_inverse_consistency(dimension, scale, shift):
    points = np.random.default_rng(7).uniform(-100, 100, (30, dimension))

    def forward(x):
        return scale * x + shift

    def inverse(x):
        return (x - shift) / scale

    np.testing.assert_allclose(quality.inverse_consistency_mm(forward, inverse, points), 0, atol=1e-9)
    off = quality.inverse_consistency_mm(forward, lambda x: inverse(x) + 2.0, points)
    np.testing.assert_allclose(off, 2 * np.sqrt(dimension))


def test_inverse_consistency_is_measured_where_the_inverse_is_known():
    grid = _grid((20, 20, 20))
    points, shift = grid.points_lps_mm().reshape(-1, 3), np.array([300.0, 0.0, 0.0])
    moving = Grid(grid.size, grid.spacing_mm, tuple(np.add(grid.origin_lps_mm, shift * 0.97)), grid.direction)

    def inverse(x):  # as of a displacement field, which moves nothing beyond its grid
        return np.where(moving.holds(x)[:, None], x - shift, x)

    assert quality.inverse_consistency_mm(lambda x: x + shift, inverse, points).max() == 300
    there = quality.inverse_consistency_mm(lambda x: x + shift, inverse, points, moving)
    assert 0 < len(there) < len(points) and there.max() < 1e-9
