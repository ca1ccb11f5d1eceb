"""A map held on a grid: coarser grids over the same box, values between nodes, and the error that is reported."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from geometry import rotation
from nephi.maps.sampled import _expected_error, coarsest_displacement, halved, interpolate
from nephi.space.grid import Grid


def grid(d: int, size=(41, 33, 25), spacing=(1.0, 1.25, 2.0)) -> Grid:
    return Grid(size[:d], spacing[:d], (5.0, -7.0, 11.0)[:d], tuple(rotation(d, 20.0).ravel()))


def nodes_lps_mm(g: Grid) -> np.ndarray:
    """(..zyx, d)."""
    return g.slab_lps_mm(0, g.shape[0]).reshape(*g.shape, g.dimension)


@pytest.mark.parametrize("d", [2, 3])
def test_a_coarser_grid_covers_the_same_centres_with_about_the_spacing(d):
    fine = grid(d)
    for wanted_mm in (2.0, 3.0, 7.0):
        coarse = fine.coarsened(wanted_mm)
        np.testing.assert_allclose(coarse.corners_lps_mm(), fine.corners_lps_mm(), atol=1e-9)
        extent = (np.array(fine.size) - 1) * fine.spacing_mm
        assert coarse.size == tuple(np.minimum(np.ceil(extent / wanted_mm), np.array(fine.size) - 1).astype(int) + 1)
        assert all(s <= max(wanted_mm, own) + 1e-9 for s, own in zip(coarse.spacing_mm, fine.spacing_mm, strict=True))
    assert fine.coarsened(0.1).size == fine.size  # never finer
    assert fine.coarsened(1e6).size == (2,) * d


@pytest.mark.parametrize("d", [2, 3])
def test_halving_keeps_the_nodes_and_a_quadratic_exactly(d):
    coarse = grid(d).coarsened(8.0)

    def quadratic(p):
        return np.stack([p[..., 0] ** 2 - p[..., 1], p[..., 0] * p[..., 1]], -1)

    fine, values = halved(coarse, quadratic(nodes_lps_mm(coarse)))
    np.testing.assert_allclose(fine.corners_lps_mm(), coarse.corners_lps_mm(), atol=1e-9)
    np.testing.assert_allclose(values, quadratic(nodes_lps_mm(fine)), atol=1e-8)


def test_between_nodes_a_linear_field_is_exact():
    g = grid(3)
    slope = np.array([[0.1, 0.2, 0.0], [0.0, -0.1, 0.3], [0.2, 0.0, 0.1]])
    points = g.to_lps_mm(np.random.default_rng(0).uniform(0, 1, (200, 3)) * (np.array(g.size) - 1))
    np.testing.assert_allclose(interpolate(nodes_lps_mm(g) @ slope.T, g, points), points @ slope.T, atol=1e-6)


def test_the_coarsest_grid_that_is_good_enough_is_taken_and_its_error_told():
    g = Grid((97, 81), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    points = g.to_lps_mm(np.random.default_rng(0).uniform(0, 1, (2000, 2)) * (np.array(g.size) - 1))
    chosen = []
    for wave_mm, amplitude_mm in ((400.0, 2.0), (60.0, 2.0), (30.0, 4.0)):
        shift = partial(_wave, wave_mm, amplitude_mm)
        displacement = partial(_on_nodes, shift)
        coarse, values, error = coarsest_displacement(displacement, shift, g, points, points + shift(points))
        exact = np.linalg.norm(interpolate(values, coarse, points) - shift(points), axis=-1)
        assert error["mean_mm"] == pytest.approx(exact.mean(), abs=1e-6)
        assert error["max_mm"] == pytest.approx(exact.max(), abs=1e-6)
        assert error["mean_mm"] <= 0.025 or coarse.size == g.size
        assert error["spacing_mm"] == list(coarse.spacing_mm)
        chosen.append(coarse.spacing_mm[0])
    assert chosen[0] == pytest.approx(3.0) and chosen == sorted(chosen, reverse=True) and chosen[-1] < chosen[0]


@pytest.mark.parametrize("body", [1.0, 0.1])
def test_a_map_of_large_voxels_is_written_no_finer_than_they_are_where_that_is_good_enough(body):
    g = Grid((81, 71), (5.0 * body, 5.0 * body), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    points = g.to_lps_mm(np.random.default_rng(0).uniform(0, 1, (2000, 2)) * (np.array(g.size) - 1))
    for wave_mm, as_coarse in ((400.0, True), (60.0, False)):
        shift = partial(_wave, wave_mm * body, 2.0 * body)
        moved = points + shift(points)
        coarse, _, error = coarsest_displacement(partial(_on_nodes, shift), shift, g, points, moved, body)
        assert error["mean_mm"] <= 0.025 * body or coarse.size == g.size
        assert (coarse.spacing_mm[0] == pytest.approx(5.0 * body)) == as_coarse


def test_the_error_that_is_expected_is_the_one_that_comes():
    g = Grid((97, 81), (1.0, 1.0), (4.0, -3.0), tuple(rotation(2, 20.0).ravel()))
    nodes, shift = g.coarsened(7.0), partial(_wave, 45.0, 2.0)
    index = np.random.default_rng(0).uniform(1, np.array(nodes.size) - 2, (300, 2))  # not in the cells at the border
    points = nodes.to_lps_mm(index)
    finer, values = halved(nodes, _on_nodes(shift, nodes))
    error = np.linalg.norm(interpolate(values, finer, points) - shift(points), axis=-1).mean()
    assert _expected_error(shift, nodes, points, shift(points)) == pytest.approx(error, rel=1e-4)
    assert error > 0.005


def _wave(length_mm: float, amplitude_mm: float, points: np.ndarray) -> np.ndarray:
    x, y = 2 * np.pi * points[..., 0] / length_mm, 2 * np.pi * points[..., 1] / length_mm
    return amplitude_mm * np.stack([np.sin(y), np.cos(x)], -1)


def _on_nodes(function, g: Grid) -> np.ndarray:
    return function(nodes_lps_mm(g)).astype(np.float32)
