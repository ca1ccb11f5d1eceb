"""The refinement voxel by voxel: it finds fine motion, keeps maps from folding, and leaves noise alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from detail import MM, SIDE, moved_slice
from nephi.fitting import dense as refinement
from nephi.fitting.brightness import Windows, correlated
from nephi.fitting.dense import eased, least_determinants
from nephi.registration import register
from nephi.settings import PRESETS, DenseSettings
from nephi.space.grid import Grid

FAST = PRESETS["fast"]
FEW = replace(
    FAST,
    align="none",
    kept=("all",),
    similarity=replace(FAST.similarity, window=(0.0, 1.0)),
    fit=replace(FAST.fit, iterations=20),
)
DENSE = DenseSettings(rounds=8, fine_rounds=6, spacing_mm=MM)


@pytest.fixture(scope="module")
def moved():
    return moved_slice()


def error_mm(result, moved) -> float:
    return float(np.linalg.norm(result.forward(moved[2]) - moved[3], axis=1).mean())


def test_fine_motion_is_found_and_both_maps_are_inverse(moved):
    before, after = (register(*moved[:2], settings=replace(FEW, dense=dense)) for dense in (DenseSettings(), DENSE))
    assert error_mm(after, moved) < 0.6 * error_mm(before, moved) < 1.0
    points = moved[2]
    assert np.abs(after.inverse(after.forward(points)) - points).max() < 0.05
    assert after.jacobian_determinant(points).min() >= DENSE.least_determinant


def test_a_round_goes_on_only_as_far_as_it_asks_for_the_same_way():
    last = torch.tensor([2.0, 0.0]).reshape(2, 1, 1)
    asked = {(1.0, 0.0): 1.5, (2.0, 1.0): 3.0, (6.0, 0.0): 7.0, (0.0, 1.0): 0.0, (-1.0, 0.0): -1.0}
    for move, along in asked.items():
        found = refinement._going_on(torch.tensor(move).reshape(2, 1, 1), last).flatten()
        assert found.tolist() == [along, move[1]]


def test_maps_are_smoothed_only_as_far_as_small_windows_stay_as_correlated(monkeypatch):
    """Smooth motion is found better so, and fine motion is kept."""
    cases = moved_slice(smooth_over=14.0), moved_slice(smooth_over=2.0, detail_of=1.0, moved_mm=0.5 * MM)
    settings = replace(FEW, dense=replace(DENSE, voxel_rounds=4))
    chosen = [error_mm(register(*case[:2], settings=settings), case) for case in cases]
    monkeypatch.setattr(refinement, "_MAP_SMOOTH", refinement._MAP_SMOOTH[:1])
    least = [error_mm(register(*case[:2], settings=settings), case) for case in cases]
    assert chosen[0] < 0.9 * least[0] and chosen[1] < 1.05 * least[1], (chosen, least)


def test_maps_of_images_without_detail_are_smoothed_as_little_as_can_be():
    flat = torch.full((33, 33), 0.5)
    step = refinement._Step(
        [flat, flat],
        [torch.ones_like(flat)] * 2,
        refinement._Kind(each_voxel=True),
        DENSE,
        torch.ones_like(flat),
        False,
    )
    u = torch.rand(2, 33, 33, generator=torch.Generator().manual_seed(0))
    least = torch.stack([refinement.smoothed(one, refinement._MAP_SMOOTH[0]) for one in u])
    assert torch.equal(step._smoothed(u), least)


@pytest.mark.parametrize("shape", [(40, 36), (20, 18, 22)])
def test_windows_lack_nothing_under_gains_and_everything_of_what_is_unrelated(shape):
    generator = torch.Generator().manual_seed(0)
    fixed, other = torch.rand(2, *shape, generator=generator)
    windows = Windows(fixed, torch.ones(shape))
    index = windows.at.long().flip(0).unbind(0)
    assert len(windows.fixed) > 100
    assert windows.lack(3 * fixed[index] - 1) == pytest.approx(0, abs=1e-5)
    assert windows.lack(-fixed[index]) == pytest.approx(2, abs=1e-5)
    assert windows.lack(other[index]) == pytest.approx(1, abs=0.05)


def test_where_each_voxel_is_a_node_finer_motion_is_found():
    """More rounds with nodes further apart do not find it; maps stay inverse to each other."""
    finer = moved_slice(smooth_over=2.0, detail_of=1.0, moved_mm=0.5 * MM)
    kinds = replace(DENSE, rounds=0, fine_rounds=20), replace(DENSE, rounds=0, fine_rounds=10, voxel_rounds=4)
    found = [register(*finer[:2], settings=replace(FEW, dense=dense)) for dense in kinds]
    longer, each = (error_mm(one, finer) for one in found)
    assert each < 0.98 * longer < 0.6
    points = finer[2]
    assert np.abs(found[1].inverse(found[1].forward(points)) - points).max() < 0.05
    assert found[1].jacobian_determinant(points).min() >= DENSE.least_determinant


def test_fine_motion_is_found_up_to_the_border_of_images_that_cut_the_body(moved):
    """Of both images a part within the body, whose border tissue crosses."""
    fixed, moving, points, partners = moved
    cut, near = SIDE // 4, 6
    parts = [sitk.Crop(image, [cut] * 2, [cut] * 2) for image in (fixed, moving)]
    index = Grid.of(parts[0]).to_index(points)
    inside = np.minimum(index, np.array(parts[0].GetSize()) - 1 - index).min(1)
    beside = parts + [both[(inside > 0) & (inside < near)] for both in (points, partners)]
    before, after = (
        error_mm(register(*parts, settings=replace(FEW, dense=dense)), beside) for dense in (DenseSettings(), DENSE)
    )
    assert after < 0.4 * before


def test_a_coils_shading_moves_little(moved):
    """What it adds is less than a tenth of a voxel."""
    fixed, moving = moved[:2]
    steps = np.linspace(-0.25, 0.25, SIDE)
    shading = np.exp(steps[:, None] - steps)
    shaded = Grid.of(moving).image((sitk.GetArrayFromImage(moving) * shading).astype(np.float32))
    settings = replace(FEW, similarity=replace(FEW.similarity, window=(0.0, 2.0)), dense=DENSE)
    plain, more = (error_mm(register(fixed, one, settings=settings), moved) for one in (moving, shaded))
    assert more < plain + 0.1 * MM


def other_contrast(image: sitk.Image) -> sitk.Image:
    """Dark and bright parts take the same brightness, as two tissues do in T2; the background stays."""
    values = sitk.GetArrayFromImage(image)
    return Grid.of(image).image(np.where(values > 0, 0.9 - 1.3 * np.abs(values - 0.45), 0.0).astype(np.float32))


@pytest.mark.parametrize("swapped", [False, True])
def test_fine_motion_is_found_between_two_contrasts(moved, swapped):
    """Whichever image the curve leads from; by lines alone it is not."""
    fixed, moving, points, partners = moved
    both = (other_contrast(fixed), moving) if swapped else (fixed, other_contrast(moving))
    dense = replace(DENSE, rounds=0)
    kinds = DenseSettings(), dense, replace(dense, curve=True)
    before, lines, curve = (error_mm(register(*both, settings=replace(FEW, dense=one)), moved) for one in kinds)
    assert curve < 0.8 * before and curve < 0.8 * lines


def test_images_that_no_curve_relates_move_nothing(moved):
    fixed, _, _, points = moved
    values = sitk.GetArrayFromImage(fixed)
    other = Grid.of(fixed).image(np.where(values > 0, np.rot90(values, 2), 0.0).astype(np.float32))
    settings = replace(FEW, fit=replace(FEW.fit, iterations=0), dense=replace(DENSE, curve=True))
    result = register(fixed, other, settings=settings)
    assert np.linalg.norm(result.forward(points) - points, axis=1).max() < 0.01 * MM


@pytest.mark.parametrize("dense", [DENSE, replace(DENSE, rounds=0, voxel_rounds=6)], ids=["nodes", "each voxel"])
def test_noise_moves_nothing(moved, dense):
    fixed = moved[0]
    rng = np.random.default_rng(1)
    values = sitk.GetArrayFromImage(fixed)
    noisy = [
        Grid.of(fixed).image((values + 0.02 * rng.standard_normal(values.shape) * (values > 0)).astype(np.float32))
        for _ in range(2)
    ]
    result = register(*noisy, settings=replace(FEW, fit=replace(FEW.fit, iterations=0), dense=dense))
    points = moved[3]
    assert np.linalg.norm(result.forward(points) - points, axis=1).mean() < 0.08 * MM


@pytest.mark.parametrize("dimension", [2, 3])
def test_places_that_fold_are_smoothed_and_others_are_left(dimension):
    u = torch.zeros(dimension, *[21] * dimension)
    u[(0, *[5] * dimension)] = 3.0
    assert least_determinants(u).min() < 0
    found = eased(u, 0.1, 50)
    assert least_determinants(found).min() >= 0.1
    assert found[..., 15:].abs().max() < 1e-9


@pytest.mark.parametrize("dimension", [2, 3])
def test_determinants_are_those_of_the_map(dimension):
    matrix = torch.eye(dimension) + 0.3 * torch.rand(dimension, dimension, generator=torch.Generator().manual_seed(0))
    places = torch.stack(list(reversed(torch.meshgrid(*[torch.arange(4.0)] * dimension, indexing="ij"))))
    u = torch.einsum("ij,j...->i...", matrix - torch.eye(dimension), places)
    assert torch.allclose(least_determinants(u), torch.linalg.det(matrix), atol=1e-4)
    assert least_determinants(u).shape == (3,) * dimension


@pytest.mark.parametrize("shape", [(11, 13), (7, 9, 8)])
def test_some_planes_at_a_time_give_what_all_at_once_give(shape, monkeypatch):
    d, generator = len(shape), torch.Generator().manual_seed(0)
    u, equations = (torch.rand(n, *shape, generator=generator) for n in (d, d * (d + 1) // 2 + d))
    wholes = least_determinants(u), refinement._worth(u, equations, 1.0)
    for places in (1, 2 * int(np.prod(shape[1:]))):  # one plane, and two
        monkeypatch.setattr(refinement, "_SLAB", places)
        parts = least_determinants(u), refinement._worth(u, equations, 1.0)
        assert all(torch.equal(one, other) for one, other in zip(parts, wholes, strict=True))


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_map_is_inverted_where_it_bends_strongly(dimension):
    """From a start that is wrong by a node, to a hundredth of one wherever the map's inverse lies within the grid."""
    places = torch.stack(list(reversed(torch.meshgrid(*[torch.arange(24.0)] * dimension, indexing="ij"))))
    u = 0.8 * torch.sin(0.5 * places.flip(0) + 0.3 * places)
    assert 0.1 < least_determinants(u).min() < 0.5
    back = refinement._inverted(u, torch.ones_like(u))
    inner = (slice(None), *[slice(5, -5)] * dimension)
    gap = back + refinement._sampled(u, places + back)
    assert gap[inner].abs().max() < 0.01 < 0.3 < u[inner].abs().max()


@pytest.mark.parametrize("shape", [(11, 13), (7, 9, 8)])
def test_steps_follow_the_gradient_of_what_lines_leave_in_small_windows(shape):
    """Against automatic differentiation, with windows that PyTorch's own pooling takes; half of the image counts."""
    random = torch.Generator().manual_seed(0)
    fixed, noise = (torch.rand(shape, generator=random, dtype=torch.float64) for _ in range(2))
    seen = (0.2 + 0.5 * fixed + 0.1 * noise).requires_grad_()
    weight = torch.ones(shape, dtype=torch.float64)
    weight[: shape[0] // 2] = 0.5
    pool = torch.nn.functional.avg_pool3d if len(shape) == 3 else torch.nn.functional.avg_pool2d

    def mean(values):
        return pool(values[None, None], 5, 1, 2)[0, 0]

    count = mean(weight)
    means = [mean(weight * one) / count for one in (fixed, seen)]
    variances = [
        mean(weight * one.square()) / count - middle.square() for one, middle in zip((fixed, seen), means, strict=True)
    ]
    shared = (mean(weight * fixed * seen) / count - means[0] * means[1]).clamp(min=0)
    left = count * (variances[0] - shared.square() / (variances[1] + 1e-4))
    left.sum().backward()
    wanted, its_weight = correlated(fixed, seen.detach(), weight)
    asked = 2 * its_weight * (seen.detach() - wanted)
    assert torch.allclose(asked, seen.grad, atol=1e-7)
    assert asked.abs().max() > 1e-3
