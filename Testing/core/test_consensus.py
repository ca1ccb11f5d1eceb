"""What both fields of a pair say together: one map, and its inverse."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nephi import PRESETS, Registration, make_phantom, register
from nephi.files.tensors import read_tensors, write_tensors
from nephi.maps.consensus import Consensus
from nephi.maps.jacobian import exact_jacobian
from nephi.maps.maps import Map


class Waves(Map):
    """A stretch of the cube and back, each with an error of its own: waves of ``height``."""

    def __init__(self, dimension: int, height: float, seed: int = 0, stretch: float = 1.2):
        numbers = torch.Generator().manual_seed(seed)
        self.upper = torch.ones(dimension, dtype=torch.double)
        self.waves, self.phases = torch.randn(2, 2, dimension, dimension, generator=numbers, dtype=torch.double)
        self.phases, self.height, self.stretch = 3 * self.phases[:, :1], height, stretch

    @property
    def half_extents_cube(self):
        return self.upper

    def _error(self, points, way: int):
        return self.height * torch.sin(2 * points @ self.waves[way] + self.phases[way])

    def forward(self, points_cube):
        return self.stretch * points_cube + self._error(points_cube, 0)

    def inverse(self, points_cube):
        return points_cube / self.stretch + self._error(points_cube, 1)

    def to(self, device):
        return self


def points(dimension: int, many: int = 2000) -> torch.Tensor:
    return 2 * torch.rand(many, dimension, generator=torch.Generator().manual_seed(5), dtype=torch.double) - 1


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("height", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_its_two_maps_are_inverses_of_each_other(dimension, height, smooth):
    consensus, x = Consensus(Waves(dimension, height), [smooth] * dimension), points(dimension)
    for there, back in ((consensus.forward, consensus.inverse), (consensus.inverse, consensus.forward)):
        assert (back(there(x)) - x).abs().max() < 6e-5  # 0.01 mm of a cube of 300 mm


def test_it_is_the_mean_of_a_map_and_of_the_inverse_of_the_other():
    maps, x = Waves(3, 0.005), points(3)
    other = maps.inverted().solve(x, rounds=50)
    assert (maps.inverse(other) - x).abs().max() < 1e-9
    apart = (maps.forward(x) - other).norm(dim=-1).mean()
    off = Consensus(maps).forward(x) - (maps.forward(x) + other) / 2
    assert off.norm(dim=-1).mean() < 0.02 * apart


@pytest.mark.parametrize("seed", range(4))
def test_it_errs_less_than_the_fields_do(seed):
    """Errors that have nothing to do with each other: by the square root of two."""
    maps, x = Waves(3, 0.005, seed), points(3)
    error = [(m.forward(x) - 1.2 * x).square().mean().sqrt() for m in (maps, Consensus(maps))]
    back = [(m.inverse(x) - x / 1.2).square().mean().sqrt() for m in (maps, Consensus(maps))]
    assert math.sqrt((error[1] ** 2 + back[1] ** 2) / (error[0] ** 2 + back[0] ** 2)) < 0.85


def test_its_jacobian_is_that_of_what_it_does():
    consensus, x, h = Consensus(Waves(3, 0.02)), points(3, 50).requires_grad_(), 1e-5
    exact = exact_jacobian(consensus.forward(x), x, create_graph=False)
    with torch.no_grad():
        steps = h * torch.eye(3, dtype=torch.double)
        columns = [(consensus.forward(x + s) - consensus.forward(x - s)) / (2 * h) for s in steps]
    torch.testing.assert_close(exact, torch.stack(columns, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimension", [2, 3])
def test_points_of_known_weights_move_as_any_do(dimension):
    plain, x = Consensus(Waves(dimension, 0.02)), 1.2 * points(dimension)  # some beyond the cube
    smooth, weights = plain.smoothed([0.1] * dimension), plain.shift.weights(x)
    torch.testing.assert_close(x + smooth.shift.at(weights), smooth.forward(x), rtol=0, atol=1e-9)
    assert (smooth.shift.at(weights) - plain.shift.at(weights)).abs().max() > 1e-4


def test_where_a_map_folds_the_inverse_stays_near_and_finite():
    consensus, x = Consensus(Waves(2, 0.6)), points(2)
    assert (consensus.inverse(x) - x).norm(dim=-1).max() < 3


@pytest.fixture(scope="module", params=[2, 3])
def registered(request, short):
    size = (64, 56, 56) if request.param == 3 else (96, 80)
    spacing = 5.0 if request.param == 3 else 4.0
    phantom = make_phantom(size, spacing, dimension=request.param, seed=2)
    masks = {"fixed_mask": phantom.fixed_mask, "moving_mask": phantom.moving_mask}
    return phantom, register(phantom.fixed, phantom.moving, **masks, settings=short(60), device="cpu")


def centres(result: Registration) -> np.ndarray:
    grid = result.fixed_grid.coarsened(8.0)
    return grid.slab_lps_mm(0, grid.shape[0])


def test_a_registration_is_invertible_to_a_hundredth_of_a_millimetre(registered):
    """In the whole image, where the fields disagree on much more."""
    _, result = registered
    x = centres(result)
    assert np.linalg.norm(result.inverse(result.forward(x)) - x, axis=1).max() < 0.01
    y = result.forward(x)
    assert np.linalg.norm(result.forward(result.inverse(y)) - y, axis=1).max() < 0.01
    fields = result.fields
    assert np.linalg.norm(fields.inverse(fields.forward(x)) - x, axis=1).max() > 0.1
    assert fields.fields is fields


def test_it_is_saved_and_loaded(registered, tmp_path):
    _, result = registered
    result.save(tmp_path / "a.safetensors")
    again, x = Registration.load(tmp_path / "a.safetensors"), centres(result)
    for name in ("forward", "inverse", "jacobian_determinant"):
        for one, other in ((again, result), (again.fields, result.fields)):
            np.testing.assert_allclose(getattr(one, name)(x), getattr(other, name)(x), rtol=0, atol=1e-3)
    again.fields.save(tmp_path / "b.safetensors")
    np.testing.assert_array_equal(Registration.load(tmp_path / "b.safetensors").forward(x), again.fields.forward(x))


def test_files_of_before_hold_the_fields_alone(registered, tmp_path):
    _, result = registered
    result.save(tmp_path / "new.safetensors")
    metadata, tensors = read_tensors(tmp_path / "new.safetensors", "a registration")
    geometry, settings = (json.loads(metadata[name]) for name in ("geometry", "settings"))
    assert geometry.pop("consensus") is True and settings.pop("consensus") is True
    metadata |= {"geometry": json.dumps(geometry), "settings": json.dumps(settings)}
    write_tensors(tmp_path / "old.safetensors", tensors, metadata)
    x = centres(result)
    np.testing.assert_array_equal(Registration.load(tmp_path / "old.safetensors").forward(x), result.fields.forward(x))


def test_files_of_before_hold_one_distance_of_smoothing(registered, tmp_path):
    """Along all axes alike; now there is one for each."""
    _, result = registered
    along = [0.1] * result.cube.dimension
    ours = replace(result, maps=Consensus(result.fields.maps, along))
    ours.save(tmp_path / "new.safetensors")
    metadata, tensors = read_tensors(tmp_path / "new.safetensors", "a registration")
    geometry = json.loads(metadata["geometry"])
    assert geometry["smooth"] == along
    for smooth, maps in ((0.1, ours.maps), (0.0, Consensus(result.fields.maps))):
        changed = metadata | {"geometry": json.dumps(geometry | {"smooth": smooth})}
        write_tensors(tmp_path / "old.safetensors", tensors, changed)
        again = Registration.load(tmp_path / "old.safetensors")
        x = centres(result)
        np.testing.assert_allclose(again.forward(x), replace(result, maps=maps).forward(x), rtol=0, atol=1e-4)


def test_without_it_the_fields_are_the_result(short, phantom_2d):
    result = register(phantom_2d.fixed, phantom_2d.moving, settings=replace(short(2), consensus=False), device="cpu")
    assert result.fields is result
    assert not PRESETS["paper"].consensus and PRESETS["fast"].consensus
