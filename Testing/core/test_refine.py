"""Least squares: the normal equations, their solution, and what a map is still off by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nephi.errors import NephiError
from nephi.fitting import gauss_newton as refine
from nephi.fitting.gauss_newton import _curvature, _solve, refined
from nephi.images.volume import Volume
from nephi.learning.model import Model
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.settings import MatchingSettings, PublishedSettings, check
from nephi.maps.code import FORWARD, INVERSE, LINEAR_CUBE, nodes, zero_code
from nephi.maps.maps import FieldMap, make_fields
from nephi.settings import NeuralSettings, VoxelSettings
from stages import SIMILARITY, randomised, single

SIDE = {2: 48, 3: 40}


def noise(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the equations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
def test_bending_spares_what_is_linear_within(d):
    axes = torch.meshgrid(*[torch.arange(7.0)] * d, indexing="ij")
    plane = sum((k + 1) * axis for k, axis in enumerate(axes))[None]
    inner = (slice(None), *[slice(1, -1)] * d)
    assert _curvature(plane)[inner].abs().max() == 0
    bowl = sum(axis.square() for axis in axes)[None]
    torch.testing.assert_close(_curvature(bowl)[inner], torch.full_like(bowl[inner], 2.0 * d))
    a, b = noise(1, *[5] * d), noise(1, *[5] * d, seed=1)
    torch.testing.assert_close((_curvature(a) * b).sum(), (a * _curvature(b)).sum())


@pytest.mark.parametrize("d", [2, 3])
def test_the_solution_is_that_of_the_whole_system(d, monkeypatch):
    monkeypatch.setattr(refine, "_ITERATIONS", 400)
    shape = (4, 3, 3)[:d]
    slopes = noise(*shape, 6, d)
    slopes[0] = 0  # nothing is seen there: the bending energy decides
    weight = torch.einsum("...ki,...kj->ij...", slopes, slopes)
    pull, now = noise(d, *shape, seed=1), noise(d, *shape, seed=2)
    found = _solve(weight, pull, now)

    trace = torch.stack([weight[k, k] for k in range(d)])
    stiffness = refine._STIFFNESS * trace[trace > 0].mean()
    columns = [one.reshape(pull.shape) for one in torch.eye(pull.numel(), dtype=torch.float64)]
    matrix = [torch.einsum("ij...,j...->i...", weight, x) + stiffness * _curvature(_curvature(x)) for x in columns]
    right = pull - stiffness * _curvature(_curvature(now))
    expected = torch.linalg.solve(torch.stack([m.reshape(-1) for m in matrix], 1), right.reshape(-1))
    torch.testing.assert_close(found.reshape(-1), expected, rtol=1e-5, atol=1e-6)


# ---- whole rounds ----------------------------------------------------------------------------------------


def waves(points_cube: torch.Tensor) -> torch.Tensor:
    """Smooth features (n, 8) of points (n, d), different everywhere."""
    generator = torch.Generator().manual_seed(3)
    frequency = torch.randn((points_cube.shape[1], 8), generator=generator) * 5
    return torch.sin(points_cube @ frequency + torch.rand(8, generator=generator) * 6) / 2 + 0.5


def shift(points_cube: torch.Tensor, voxel: float) -> torch.Tensor:
    """Up to about one and a half voxels, smoothly."""
    return 1.5 * voxel * torch.sin(1.5 * points_cube + torch.tensor([0.3, 1.1, 2.0][: points_cube.shape[1]]))


def pair(d: int, flat: bool = False, view=None):
    """Features of a fixed and a moving image, the latter moved by ``shift``; the voxels' side."""
    side = SIDE[d]
    voxel = 2 / (side - 1)
    axes = [torch.linspace(-1, 1, side)] * d
    points = torch.stack(list(reversed(torch.meshgrid(*axes, indexing="ij"))), -1).reshape(-1, d)
    fixed = waves(points + shift(points, voxel))  # so that moving(x + shift(x)) = fixed(x)
    volumes = [f.reshape(*[side] * d, 8) for f in (fixed, waves(points))]
    if flat:
        volumes = [torch.full_like(v, 0.5) for v in volumes]
    return tuple(Volume(v, -torch.ones(d), voxel, None, view) for v in volumes), voxel


def start(d: int, kind: str = "neural") -> FieldMap:
    neural = NeuralSettings(width=16, frequencies=8, global_code=2, local_code=2 * d + 3, linear=True)
    settings = VoxelSettings(local_code=2 * d) if kind == "voxel" else neural
    fields = make_fields(settings, 150.0, d, torch.Generator().manual_seed(0))
    return FieldMap(fields, zero_code(settings, torch.ones(d), (5,) * d))


def errors(maps: FieldMap, d: int, voxel: float) -> list[float]:
    """Mean distance to the truth in voxels, forward and there and back again, away from the border."""
    x = (torch.rand((500, d), generator=torch.Generator().manual_seed(1)) * 2 - 1) * 0.8
    there = maps.forward(x)
    gaps = there - x - shift(x, voxel), maps.inverse(there) - x
    return [float(gap.norm(dim=1).mean() / voxel) for gap in gaps]


@pytest.mark.parametrize("kind", ["neural", "voxel"])
@pytest.mark.parametrize("d", [2, 3])
def test_a_small_part_of_a_voxel_remains(d, kind):
    seen, voxel = pair(d)
    before = start(d, kind)
    with torch.no_grad():
        assert errors(before, d, voxel)[0] > 1
        after = refined(seen, before, 4)
        forward, back = errors(after, d, voxel)
    assert forward < 0.08
    assert back < 0.04
    assert after.code.size == nodes(torch.ones(d), 4 * voxel)
    assert not after.code.local_code.requires_grad


def test_what_a_network_adds_is_kept_and_the_pair_s_own_maps_are_left_alone():
    seen, voxel = pair(2, flat=True)
    before = start(2)
    before.code.local_code[:] = torch.linspace(-2, 2, 5)[:, None]
    before.fields.out.data[:] = noise(*before.fields.out.shape, seed=1).float() * 0.1
    local = before.code.local_code.clone()
    x = (torch.rand((300, 2), generator=torch.Generator().manual_seed(1)) * 2 - 1) * 0.8
    with torch.no_grad():
        after = refined(seen, before, 0)
        for way in (FORWARD, INVERSE):
            moved = (before.forward, before.inverse)[way](x) - x
            assert moved.norm(dim=1).mean() > 2 * voxel
            assert ((after.forward, after.inverse)[way](x) - (before.forward, before.inverse)[way](x)).norm(
                dim=1
            ).mean() < 0.15 * moved.norm(dim=1).mean()
        refined(seen, after, 1)
    assert torch.equal(before.code.local_code, local)


def test_without_anything_to_see_nothing_moves():
    seen, _ = pair(2, flat=True)
    assert refined(seen, start(2), 3).code.local_code.abs().max() == 0


def test_what_is_out_of_view_does_not_pull():
    out = torch.eye(2), torch.tensor([99.0, 99.0]), torch.tensor([2.0, 2.0])
    seen, _ = pair(2, view=out)
    assert refined(seen, start(2), 2).code.local_code.abs().max() == 0


def test_maps_that_disagree_meet_half_way():
    """Nothing to see, a shift forward and none back: half of it each, and each other's inverse after one round."""
    seen, _ = pair(2, flat=True)
    before = start(2, "voxel")
    before.code.local_code[:, 0] = 0.4
    local = refined(seen, before, 1).code.local_code[0]
    torch.testing.assert_close(local[0], torch.full_like(local[0], 0.2))
    torch.testing.assert_close(local[2], torch.full_like(local[2], -0.2))
    assert local[(1, 3), :].abs().max() < 1e-6


def test_a_round_moves_no_node_far(monkeypatch):
    monkeypatch.setattr(refine, "_REACH", 0.25)
    seen, voxel = pair(2)
    moved = refined(seen, start(2), 1).code.local_code[0, :2].norm(dim=0) * LINEAR_CUBE / voxel
    assert moved.max() < 0.3  # and a little from the other map
    assert moved.max() > 0.2


def test_a_share_of_the_voxels_is_spread_over_the_mask():
    mask = torch.zeros(20, 30, 40, dtype=torch.bool)
    mask[5:15, 5:25, 5:35] = True
    volume = Volume(torch.zeros(20, 30, 40, 1), -torch.ones(3), 0.05, mask)
    points, index = volume.spread(0.1, 50)
    assert len(points) == 600
    torch.testing.assert_close(points, index * 0.05 - 1)
    assert mask[tuple(index.flip(-1).T)].all()
    assert len(torch.unique(index, dim=0)) == 600
    assert (index.double().mean(0) - torch.tensor([19.5, 14.5, 9.5])).abs().max() < 1
    assert len(volume.spread(0.1, 1000)[0]) == 1000
    assert len(volume.spread(0.1, 10**9)[0]) == 6000


# ---- in a model ------------------------------------------------------------------------------------------


def image_pair() -> PairTensors:
    """A texture and the same half a voxel aside."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 1, 25, 25), generator=generator)
    big = torch.nn.functional.interpolate(coarse, (97, 97), mode="bicubic")[0, 0]
    upper = torch.ones(2)
    return PairTensors(
        name="half", intensities=(big[:96:2, :96:2], big[:96:2, 1:97:2]), masks=None, distances=None,
        half_extents_cube=upper, lower_cube=-upper, spacing_cube=2 / 47, similarity=SIMILARITY, dilation=1,
    )  # fmt: skip


def test_the_prediction_is_refined_and_the_training_is_not():
    settings = single(2)
    coarse = Model(settings, torch.Generator().manual_seed(0))
    fine = Model(replace(settings, refinements=3), torch.Generator().manual_seed(0))
    sample = image_pair()
    assert len(fine.codes([sample])) == len(settings.encoder.steps)
    x = (torch.rand((300, 2), generator=torch.Generator().manual_seed(1)) * 2 - 1) * 0.8
    truth = torch.tensor([-0.5 * 2 / 47, 0.0])
    with torch.no_grad():
        left = [float((m.predict(sample).forward(x) - x - truth).norm(dim=1).mean() * 47 / 2) for m in (coarse, fine)]
    assert left[1] < 0.5 * left[0]
    assert left[1] < 0.1


@pytest.mark.parametrize("kind", ["matching", "published"])
def test_every_encoder_s_prediction_can_be_refined(kind):
    encoder = {
        "published": PublishedSettings(size=32, channels=(4, 8), local_level=1, hidden=8, width=8),
        "matching": MatchingSettings(steps=(1,), width=8),
    }[kind]
    field = NeuralSettings(width=16, frequencies=8, linear=False)
    model = Model(replace(single(2), field=field, encoder=encoder, refinements=4), torch.Generator().manual_seed(0))
    before = replace(model.settings, refinements=0)
    sample = image_pair()
    refined_maps = model.predict(sample)
    model.settings = before
    x = torch.zeros(1, 2)
    truth = torch.tensor([[-0.5 * 2 / 47, 0.0]])
    with torch.no_grad():
        gaps = [float((maps.forward(x) - truth).norm()) for maps in (model.predict(sample), refined_maps)]
    assert gaps[1] < 0.3 * gaps[0]


def test_a_refined_model_survives_its_file(tmp_path):
    model = randomised(replace(single(2), refinements=2), 0).eval()
    model.save(tmp_path / "model.safetensors")
    again, sample = Model.load(tmp_path / "model.safetensors"), image_pair()
    a, b = (m.predict(sample).code.local_code for m in (model, again))
    assert torch.equal(a, b)


def test_fewer_rounds_than_none_are_refused():
    with pytest.raises(NephiError, match="refinements is -1"):
        check(replace(single(2), refinements=-1))
