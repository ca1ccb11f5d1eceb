"""The local code between its nodes, on other nodes, and in the place of a map."""

from __future__ import annotations

import math

import pytest
import torch
from geometry import points_of
from nephi.fitting.fit import Adam
from nephi.maps.code import FORWARD, INVERSE, Code, HybridCode, points_between, zero_code
from nephi.maps.maps import FieldMap, code_like, make_fields
from nephi.registration import register
from nephi.settings import Features, FitSettings, Level, NeuralSettings, VoxelSettings
from nephi.space.interpolate import PointWeights, interpolate

UPPER = torch.tensor([1.0, 0.8, 0.6])


def random_code(d: int, size=(6, 5, 4)) -> HybridCode:
    code = zero_code(NeuralSettings(), UPPER[:d], size[:d])
    code.local_code.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return HybridCode(code)


@pytest.mark.parametrize("d", [2, 3])
def test_linear_code_agrees_with_grid_sample(d):
    code = random_code(d)
    x = points_of(d) * code.half_extents_cube * 1.2  # some beyond the border
    grid = (x / code.half_extents_cube).reshape(1, *[1] * (d - 1), -1, d)
    wanted = torch.nn.functional.grid_sample(code.local_code, grid, padding_mode="border", align_corners=True)
    inside = torch.minimum(torch.maximum(x, -code.half_extents_cube), code.half_extents_cube)
    found = code.at(torch.stack([inside, inside]), degree=1)
    assert torch.allclose(found[1], wanted.reshape(code.local_code.shape[1], -1).T, atol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("degree, smooth", [(1, False), (2, True)])
def test_slope_of_the_code_along_a_line_jumps_only_where_it_is_linear(d, degree, smooth):
    code = random_code(d)
    line = torch.linspace(-0.9, 0.9, 4001).double()[:, None] * code.half_extents_cube + 0.01
    values = code.double().at(torch.stack([line, line]), degree)[0]
    slopes = values.diff(dim=0)
    jumps = slopes.diff(dim=0).abs().amax() / slopes.abs().amax()
    assert (jumps < 0.02) == smooth


@pytest.mark.parametrize("degree", [1, 2])
def test_constant_code_is_constant_up_to_the_border(degree):
    code = random_code(3)
    with torch.no_grad():
        code.local_code.fill_(0.7)
    corners = torch.stack(
        [-code.half_extents_cube, code.half_extents_cube, code.half_extents_cube * torch.tensor([1.0, -1.0, 0.3])]
    )
    assert torch.allclose(code.at(torch.stack([corners, corners]), degree), torch.tensor(0.7), atol=1e-6)


# ---- on other nodes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("degree", [1, 2])
def test_what_changes_evenly_stays_on_finer_nodes(d, degree):
    code = random_code(d)
    x = points_of(d) * UPPER[:d] * 0.3  # away from the border, where the nearest value holds
    slope = torch.arange(1.0, d + 1)
    with torch.no_grad():
        code.local_code[:] = (points_between(code.half_extents_cube, code.size) @ slope).reshape(*reversed(code.size))
    size = tuple(3 * n - 2 for n in code.size)
    old, new = code.refine(size, degree)
    assert code.size == size and new is code.local_code and old is not new and new.requires_grad
    assert torch.allclose(code.at(torch.stack([x, x]), degree)[0, :, 0], x @ slope, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_smooth_code_is_nearly_the_same_on_finer_nodes_in_each_pair_of_a_batch(batch):
    local = torch.randn(batch, 4, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    code = Code(torch.zeros(batch, 1), local, UPPER)
    finer = Code(code.global_code, code.resampled((31, 26, 21), 2), UPPER)
    x = torch.cat([points_of(3) * UPPER] * batch)[None]
    before, after = code.at(x, 2), finer.at(x, 2)
    assert before.std() > 0.3 and (after - before).abs().max() < 0.05
    assert batch == 1 or not torch.allclose(before[:, :50], before[:, 50:100], atol=0.1)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("d", [2, 3])
def test_points_that_stay_read_the_same_and_share_their_values_with_what_they_read(d, degree):
    size, generator = (4, 3, 5)[:d], torch.Generator().manual_seed(0)
    position = torch.rand((50, d), generator=generator, dtype=torch.float64) * torch.tensor(size)  # some of them beyond
    table, values = (torch.rand((n, 2), generator=generator, dtype=torch.float64) for n in (math.prod(size), 50))
    weights = PointWeights(position, size, degree)
    read, sums = weights.at(table), weights.sums(values)
    torch.testing.assert_close(read, interpolate([table], position[None], size, degree)[0])
    torch.testing.assert_close(sums.sum(0), values.sum(0))
    torch.testing.assert_close((read * values).sum(), (table * sums).sum())


def test_a_value_at_a_node_counts_there_alone_also_on_the_border():
    sums = PointWeights(torch.tensor([[2.0, 3.0], [1.0, 0.0]]), (3, 4)).sums(torch.tensor([[2.0], [3.0]]))
    expected = torch.zeros(4, 3)
    expected[3, 2], expected[0, 1] = 2.0, 3.0
    torch.testing.assert_close(sums.reshape(4, 3), expected)


def test_an_optimiser_goes_on_with_the_finer_code():
    code = random_code(2)
    adam = Adam(code.parameters(), FitSettings(iterations=20, learning_rate=0.01))

    def step() -> float:
        loss = (code.local_code - 1).square().mean() + (code.global_code - 1).square().mean()
        loss.backward()
        adam.step()
        return float(loss.detach())

    first = [step() for _ in range(5)]
    old, new = code.refine((12, 10), 2)
    kept, start = old.detach().clone(), new.detach().clone()
    adam.replace(old, new)
    then = [step() for _ in range(5)]
    assert first == sorted(first, reverse=True) and then == sorted(then, reverse=True)
    assert torch.equal(old, kept) and not torch.equal(new, start)
    assert [p is new for p in adam.parameters].count(True) == 1 and all(p is not old for p in adam.parameters)
    # moments of the global code run on, those of the new nodes start afresh
    assert sorted(float(v) for name, v in adam.state().items() if name.endswith("step")) == [5.0, 10.0]


def test_it_steps_as_pytorchs_optimiser_does():
    torch.manual_seed(0)
    mine, theirs = ([torch.nn.Parameter(torch.ones(n, 3)) for n in (2, 5)] for _ in range(2))
    settings = FitSettings(iterations=30, learning_rate=0.05, schedule="constant", warm_up=0.0, beta2=0.9)
    adam, other = Adam(mine, settings), torch.optim.Adam(theirs, lr=0.05, betas=(0.9, 0.9))
    for step in range(30):
        target = torch.randn(3)
        for parameters in (mine, theirs):
            used = parameters if step % 3 else parameters[:1]  # the second one has no gradient at times
            sum((p - target).square().sum() for p in used).backward()
        adam.step()
        other.step()
        other.zero_grad(set_to_none=True)
        assert all(p.grad is None for p in mine)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, torch.ones(1), atol=0.1)


def test_a_registration_refines_its_code_at_the_stage_that_asks_for_it(phantom_2d, short):
    coarse, fine = (Level(start, Features(4.0, 2), factor) for start, factor in ((0.0, 3.0), (0.5, 1.0)))
    sizes = []

    def seen(stage, fraction, registration) -> None:
        sizes.append(registration.fields.maps.code.size)

    settings = short(8, levels=(coarse, fine))
    result = register(phantom_2d.fixed, phantom_2d.moving, settings=settings, device="cpu", preview=seen)
    before, after = sizes[1], sizes[-1]
    assert all(abs((b - 1) - 3 * (a - 1)) <= 2 for a, b in zip(before, after, strict=True)) and before != after
    assert result.fields.maps.code.size == after and len(set(sizes)) == 2
    losses = [e["loss"] for e in result.history]
    assert losses[4] < 1.1 * losses[3]  # nothing jumps where the nodes change


# ---- in the place of a map -----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["neural", "voxel"])
def test_a_code_alone_moves_points_as_the_maps_do_that_it_is_like(d, kind):
    code = random_code(d)
    fields = make_fields(VoxelSettings(local_code=2 * d), 150.0, d)
    maps = FieldMap(
        fields, HybridCode(Code(code.global_code, code.local_code[:, : 2 * d] * 20, code.half_extents_cube))
    )
    settings = VoxelSettings(local_code=2 * d) if kind == "voxel" else NeuralSettings(local_code=9)
    like = code_like(maps, settings, tuple(5 * n for n in code.size))
    mine = FieldMap(make_fields(settings, 150.0, d, torch.Generator().manual_seed(0)), like)
    x = points_of(d) * UPPER[:d]
    for way in (FORWARD, INVERSE):
        moved = (maps.forward, maps.inverse)[way](x) - x
        assert moved.norm(dim=1).mean() > 0.02
        assert ((mine.forward, mine.inverse)[way](x) - x - moved).norm(dim=1).mean() < 0.05 * moved.norm(dim=1).mean()
    assert not torch.allclose(mine.forward(x), mine.inverse(x), atol=0.01)


@pytest.mark.parametrize("d", [2, 3])
def test_voxel_maps_without_gradients_are_those_with_them(d):
    """The former read the code by PyTorch's own interpolation; also beyond the border, where its value holds."""
    settings = VoxelSettings(local_code=2 * d, code_degree=1)
    code = zero_code(settings, UPPER[:d], (6, 5, 4)[:d])
    code.local_code.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    maps = FieldMap(make_fields(settings, 100.0, d), code)
    x = points_of(d) * UPPER[:d] * 1.2
    for way in (maps.forward, maps.inverse):
        with torch.no_grad():
            found = way(x)
        assert torch.allclose(found, way(x), atol=1e-6) and not torch.allclose(found, x, atol=1e-2)
