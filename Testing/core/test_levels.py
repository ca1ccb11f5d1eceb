"""Coarse to fine: what the presets' levels reach, in bodies of every size, and where a prediction begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from nephi import PRESETS, register
from nephi.fitting.optimise import _schedule
from nephi.settings import Features, Level
from nephi.space.grid import Grid

LEVELLED = [name for name, settings in PRESETS.items() if len(settings.levels) > 1]


def texture(shape_zyx: tuple[int, ...], smooth: float, seed: int = 0) -> np.ndarray:
    noise = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=shape_zyx).astype(np.float32))
    values = sitk.GetArrayFromImage(sitk.DiscreteGaussian(noise, smooth**2, 64, 0.001, False))
    return 100 + 40 * (values - values.mean()) / values.std()


def image(values: np.ndarray, spacing_mm: float) -> sitk.Image:
    made = sitk.GetImageFromArray(values.astype(np.float32))
    made.SetSpacing([spacing_mm] * values.ndim)
    return made


@pytest.mark.parametrize("name", LEVELLED)
@pytest.mark.parametrize("shape", [(8, 8), (8, 90), (8, 8, 8), (8, 40, 40), (60, 60, 8)])
def test_images_of_few_voxels_are_registered_at_all_levels(name, shape):
    """Also where the coarsest grid holds a voxel or two along an axis."""
    values = texture(shape, 1.0)
    settings = replace(PRESETS[name], fit=replace(PRESETS[name].fit, iterations=20))
    result = register(image(values, 3.0), image(np.roll(values, 1, -1), 3.0), settings=settings, device="cpu")
    grid = Grid.of(image(values, 3.0))
    points = grid.slab_lps_mm(0, grid.shape[0])
    for mapped in (result.forward(points), result.inverse(points)):
        assert np.isfinite(mapped).all() and np.abs(mapped - points).max() < 30
    assert [entry["step"] for entry in result.history] == list(range(1, 21))


@pytest.mark.parametrize("size", [1.0, 0.1], ids=["body", "mouse"])
def test_far_motion_is_found_whatever_the_size_of_the_body(size):
    """Where fine texture leads astray what does not see far: levels from 2 mm on alone lose it."""
    values, apart = (texture((128, 128), smooth, seed=k) for k, smooth in enumerate((1.2, 8.0))), 14
    values = sum(values)
    moved, spacing = np.roll(values, apart, 1), 2.0 * size
    cut = slice(16, 112)
    settings = replace(PRESETS["fast"], align="none")
    result = register(
        image(values[cut, cut], spacing), image(moved[cut, cut], spacing), settings=settings, device="cpu"
    )
    places = np.stack(np.meshgrid(np.arange(10, 75, 8), np.arange(10, 85, 8)), -1).reshape(-1, 2)
    points = places * spacing
    off = np.linalg.norm(result.forward(points) - points - [apart * spacing, 0], axis=1)
    assert np.median(off) < 0.25 * spacing and off.mean() < spacing


def test_a_prediction_takes_the_place_of_the_levels_with_the_fewest_nodes():
    for name in LEVELLED:
        levels, iterations = PRESETS[name].levels, PRESETS[name].fit.iterations
        whole, rest = (_schedule(levels, iterations, predicted) for predicted in (False, True))
        assert [level for level, _ in whole] == list(levels) and whole[-1][1] == rest[-1][1] == iterations
        coarse = levels[0].node_spacing_factor
        kept = [level for level in levels if level.node_spacing_factor < coarse]
        assert [level.features for level, _ in rest] == [level.features for level in kept]
        assert rest[0][0].start == 0 and rest[1:] == whole[len(levels) - len(kept) + 1 :]


def test_of_levels_with_as_many_nodes_a_prediction_takes_the_place_of_the_first():
    levels = tuple(Level(start, Features(mm, 2)) for start, mm in ((0.0, 4.0), (0.5, 2.0), (0.8, 1.5)))
    rest = _schedule(levels, 10, True)
    assert [(level.features.spacing_mm, end) for level, end in rest] == [(2.0, 8), (1.5, 10)]
    assert _schedule(levels[:1], 10, True) == [(levels[0], 10)]
