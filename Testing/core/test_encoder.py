"""Encoders: the published size, any image size, codes that fit their cube, and what the matching one sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from nephi.images import volume as features
from nephi.images.volume import Volume, mind_ssc
from nephi.learning.dataset import Shapes
from nephi.learning.matching import _Conv3d, _lattice, _sums_around
from nephi.learning.model import Model, make_encoder
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.settings import MatchingSettings, ModelSettings, PublishedSettings
from nephi.maps.code import FORWARD, INVERSE, nodes, zero_code
from nephi.maps.fields import NeuralFields
from nephi.maps.maps import FieldMap
from nephi.settings import PRESETS, NeuralSettings

PAPER = PRESETS["paper"].field
SMALL = NeuralSettings(width=16, frequencies=8, global_code=6, local_code=5, linear=False)
KINDS = {
    "published": PublishedSettings(size=20, channels=(8, 16), hidden=12, local_level=1),
    "context": PublishedSettings(size=20, channels=(8, 16, 24), hidden=12, local_level=1, context=True, width=8),
    "matching": MatchingSettings(node_spacing=0.5, steps=(2, 1), width=8),
}


def random(*shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def texture(d: int, side: int) -> torch.Tensor:
    """Blobs of a few voxels, of every size."""
    x = random(*[side] * d)[None, None]
    smooth = (torch.nn.functional.avg_pool2d, torch.nn.functional.avg_pool3d)[d - 2]
    return (smooth(x, 3, 1, 1)[0, 0] - 0.5) * 3 + 0.5


def sample(d: int, side: int = 24) -> PairTensors:
    image = texture(d, side)
    upper = torch.tensor([1.0, 0.8, 0.7][:d])
    return PairTensors(
        name="texture", intensities=(image, image.roll(1, 0)), masks=None, distances=None, half_extents_cube=upper,
        lower_cube=-upper, spacing_cube=2 / (side - 1), similarity=ModelSettings().similarity,
    )  # fmt: skip


# ---- the published encoder -----------------------------------------------------------------------------


def test_it_has_the_published_size():
    """Supplement A.1 and Table 1: 3.07 M; the local code comes from the map of 128 channels and 6 voxels per side."""
    encoder = make_encoder(PublishedSettings(), PAPER, 3).eval()
    assert PublishedSettings().size == 175
    assert sum(p.numel() for p in encoder.parameters()) == 3_069_016
    with torch.no_grad():
        code = encoder(random(1, 2, 175, 175, 175), torch.ones(3))
    assert code.local_code.shape == (1, 32, 6, 6, 6)
    assert code.global_code.shape == (1, 32)
    assert encoder.local.in_channels == 128


def test_one_file_takes_images_of_several_sizes():
    settings = [PublishedSettings(size=size, any_size=True, channels=(8, 16, 16), local_level=1) for size in (24, 41)]
    encoders = [make_encoder(s, SMALL, 3).eval() for s in settings]
    encoders[1].load_state_dict(encoders[0].state_dict())
    with torch.no_grad():
        for side in (24, 30, 41):
            images = random(2, 2, side, side, side)
            codes = [encoder(images, torch.ones(3)) for encoder in encoders]
            assert codes[0].global_code.shape == (2, 6)
            assert codes[0].local_code.shape == (2, 5, *[-(-side // 4)] * 3)
            assert torch.equal(codes[0].global_code, codes[1].global_code)
        fixed = make_encoder(PublishedSettings(size=24, channels=(8, 16, 16), local_level=1), SMALL, 3).eval()
        with pytest.raises(RuntimeError):
            fixed(random(1, 2, 41, 41, 41), torch.ones(3))


def test_the_larger_of_two_fixed_sizes_has_more_layers():
    layers = [len(make_encoder(PublishedSettings(size=size), SMALL, 2).layers) for size in (128, 175, 300)]
    assert layers == [6, 6, 7]


# ---- both ----------------------------------------------------------------------------------------------


def test_with_context_the_local_code_sees_the_whole_image():
    """A voxel far from a node changes its code; without, it does not."""
    images = random(1, 2, 64, 64)
    changed = images.clone()
    changed[..., -1, -1] += 1

    def change(context: bool) -> float:
        torch.manual_seed(0)
        settings = PublishedSettings(size=64, channels=(8, 16, 24, 32), local_level=1, context=context)
        encoder = make_encoder(settings, SMALL, 2).eval()
        with torch.no_grad():
            codes = [encoder(x, torch.ones(2)).local_code for x in (images, changed)]
        assert codes[0].shape == (1, SMALL.local_code, 16, 16)
        return float((codes[0] - codes[1])[..., 4, 4].abs().max())

    assert change(False) == 0
    assert change(True) > 0


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_fit_the_fields_and_every_weight_learns(kind, d):
    settings = ModelSettings(dimension=d, field=SMALL, encoder=KINDS[kind])
    torch.manual_seed(0)
    model, pair = Model(settings), sample(d)
    codes = model.codes([pair])
    assert len(codes) == (2 if kind == "matching" else 1)
    for code in codes:
        assert code.batch == 1 and code.global_code.shape == (1, 6) and code.local_code.shape[:2] == (1, 5)
        assert torch.equal(code.half_extents_cube, pair.half_extents_cube)
        points = (torch.rand(2, 7, d) * 2 - 1) * pair.half_extents_cube
        assert model.fields(points, code).shape == points.shape
    if kind == "matching":
        assert codes[0].size == nodes(pair.half_extents_cube, 0.5)
    sum(code.global_code.square().sum() + code.local_code.square().sum() for code in codes).backward()
    assert not [n for n, p in model.encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(torch.isfinite(p.grad).all() for p in model.encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_is_of_the_pair(kind):
    settings = ModelSettings(dimension=2, field=SMALL, encoder=KINDS[kind], similarity=ModelSettings().similarity)
    torch.manual_seed(0)
    model, data = Model(settings), Shapes(False, settings, True, count=2)
    one, again, other = (model.predict(data[k]).code for k in (0, 0, 1))
    assert torch.equal(one.local_code, again.local_code) and torch.equal(one.global_code, again.global_code)
    assert (one.local_code - other.local_code).abs().max() > 1e-4


# ---- what the matching encoder compares ----------------------------------------------------------------


@pytest.mark.parametrize("bytes_", [True, False])
@pytest.mark.parametrize("d", [2, 3])
def test_distances_are_mean_squared_differences(d, bytes_, monkeypatch):
    monkeypatch.setattr(features, "_ROWS", 7)
    shape = (6, 7, 8)[-d:]
    values = random(*shape, 5)
    values = (values * 255).round().to(torch.uint8) if bytes_ else values
    volume = Volume(values, -torch.ones(d), 0.3, None)
    generator, steps = torch.Generator().manual_seed(1), torch.tensor([-2, 0, 3])
    index = torch.randint(-3, 11, (20, d), generator=generator)  # beyond the border: its values
    reference = random(20, 5, seed=2)
    around = list(product(steps.tolist(), repeat=d))
    expected = torch.empty(20, len(around))
    for n, (k, offset) in product(range(20), enumerate(around)):
        place = (index[n] + torch.tensor(offset)).flip(-1)
        at = [min(max(int(i), 0), s - 1) for i, s in zip(place, shape, strict=True)]
        value = values[tuple(at)].float() / (255 if bytes_ else 1)
        expected[n, k] = (value - reference[n]).square().mean()
    torch.testing.assert_close(volume.distances(index, steps, reference), expected, atol=1e-6, rtol=1e-5)
    kept = values.clone()
    volume.distances(index, steps, reference)
    assert torch.equal(volume.volume, kept)  # it is only read


@pytest.mark.parametrize("size", [(12, 9), (9, 12, 7), (3, 2)])
@pytest.mark.parametrize("window", [1, 3, 5])
def test_sums_around_are_those_of_the_box_among_what_is_kept(size, window):
    kept = random(*size) > 0.7
    kept[..., -1] = False
    values = random(int(kept.sum()), 3, seed=1)
    places = torch.nonzero(kept)
    near = (places[:, None] - places).abs().amax(-1) <= window // 2
    torch.testing.assert_close(_sums_around(values, kept, window), near.float() @ values)


def volumes(d: int, shift: tuple[int, ...], side: int = 40) -> list[Volume]:
    """A texture and its copy, ``shift`` voxels (x first) away."""
    image = texture(d, side)
    images = image, image.roll(tuple(reversed(shift)), tuple(range(d)))
    return [Volume(mind_ssc(i), -torch.ones(d), 2 / (side - 1), None) for i in images]


@pytest.mark.parametrize("shift", [(2, -1), (1, -2, 2), (0, 0, 0)])
def test_costs_are_least_at_the_true_shift(shift):
    d, side = len(shift), 24
    pair = volumes(d, shift, side)
    axis = torch.arange(8, side - 8)
    index = torch.stack(torch.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    offsets = torch.tensor(list(product(range(-2, 3), repeat=d)))
    for here, there, sign in ((*pair, 1), (*pair[::-1], -1)):
        costs = there.distances(index, torch.arange(-2, 3), here.at_voxels(index))
        assert (offsets[costs.argmin(1)] == sign * torch.tensor(shift)).all()
        assert costs.amin(1).max() < 1e-6 < costs.mean(1).min()


def look(pair, d: int, step: int, already: tuple[float, ...] | None = None):
    """For each way, its sign, and what is seen: (n, d) shifts in steps, their spread and ten times the least cost.

    ``already``: what the fields map so far, in voxels.
    """
    fields = NeuralFields(SMALL, 150.0, d)
    if already is not None:
        fields.out_bias.data[FORWARD] = torch.tensor(already) * pair[0].spacing
        fields.out_bias.data[INVERSE] = -torch.tensor(already) * pair[0].spacing
    encoder = make_encoder(MatchingSettings(width=8, windows=(3, 5)), SMALL, d)
    code = zero_code(SMALL, torch.ones(d), (8,) * d)
    for way, sign in ((FORWARD, 1), (INVERSE, -1)):
        with torch.no_grad():
            maps = FieldMap(fields, code)
            through = (maps.forward, maps.inverse)[way]
            seen, kept, _ = encoder._look(pair[way], pair[1 - way], through, code, step)
        assert seen.shape == (len(kept), encoder.points[0].in_features) and kept.all()
        for start in (3, 3 + d + 2):  # a window after the other
            yield sign, *seen[:, start : start + d + 2].split([d, 1, 1], 1)


@pytest.mark.parametrize(
    "shift, already, step",
    [
        ((2, -1), None, 1),
        ((4, -2), None, 2),
        ((9, -7), (8.0, -6.0), 1),
        ((2, 1), (1.75, 1.5), 1),
        ((1, -2, 2), None, 1),
    ],
)
def test_the_true_shift_is_seen(shift, already, step):
    """Counted from where the present map leads to, which may lie between voxels."""
    d = len(shift)
    rest = (torch.tensor(shift) - torch.tensor(already or [0.0] * d)) / step
    for sign, found, *_ in look(volumes(d, shift), d, step, already):
        middle = found.median(0).values  # at the border the copy was cut off
        torch.testing.assert_close(middle, sign * rest, atol=0.3, rtol=0)


def test_where_nothing_matches_no_shift_is_sure():
    pair = volumes(2, (1, 1))
    other = Volume(mind_ssc(1 - 5 * random(40, 40, seed=9)), pair[1].lower, pair[1].spacing, None)
    matched, lost = (list(look(p, 2, 1)) for p in (pair, (pair[0], other)))
    for (_, _, sure, least), (_, _, unsure, most) in zip(matched, lost, strict=True):
        assert unsure.median() > 1.5 * sure.median()
        assert most.median() > 3 * least.median()
    flat = Volume(torch.full((40, 40, 4), 7, dtype=torch.uint8), pair[0].lower, pair[0].spacing, None)
    for _, found, spread, least in look((flat, flat), 2, 1):  # and where all is alike, none at all
        assert found.abs().max() < 1e-5 and least.abs().max() < 1e-5 and spread.min() > 1.9


def test_what_is_out_of_view_counts_nowhere():
    """The copy was scanned in part only: points that lead out of it are told, and follow those around them."""
    d, side, shift = 2, 40, (2, -1)
    pair = volumes(d, shift, side)
    size = torch.tensor([float(side)] * d)
    half = torch.tensor([side / 2, float(side)])  # voxels along x
    matrix, offset = torch.eye(d) / pair[0].spacing, torch.full((d,), (side - 1) / 2)
    pair[0].view, pair[1].view = (matrix, offset, size), (matrix, offset, half)
    encoder = make_encoder(MatchingSettings(width=8, windows=(1, 9)), SMALL, d)
    code, fields = zero_code(SMALL, torch.ones(d), (8, 8)), NeuralFields(SMALL, 150.0, d)
    with torch.no_grad():
        seen, _, _ = encoder._look(*pair, FieldMap(fields, code).forward, code, 1)
    inside = seen[:, 0] > 0
    assert 0.4 < inside.float().mean() < 0.6
    alone, around = seen[:, 3:7], seen[:, 7:11]
    assert alone[~inside].abs()[:, [0, 1, 3]].max() < 1e-5
    near = ~inside & (_lattice(torch.ones(d), (8, 8))[:, 0] < 0.2)  # there are points in view around
    torch.testing.assert_close(around[near][:, :2].median(0).values, torch.tensor([2.0, -1.0]), atol=0.3, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_lattice_points_lie_around_their_nodes_and_their_means_go_there(d):
    upper, size = torch.tensor([1.0, 0.7, 0.5][:d]), (5, 4, 3)[:d]
    points = _lattice(upper, size)
    assert len(points) == 2**d * torch.tensor(size).prod()
    encoder = make_encoder(MatchingSettings(width=8), SMALL, d)
    everywhere = encoder._to_nodes(points, torch.ones(len(points), dtype=torch.bool), size)
    axes = [torch.linspace(-float(u), float(u), n) for u, n in zip(upper, size, strict=True)]
    expected = torch.stack(torch.meshgrid(*axes, indexing="ij")).permute(0, *range(d, 0, -1))[None]
    torch.testing.assert_close(everywhere, expected, atol=1e-5, rtol=0)
    # outside the mask nothing; where one point of a node is left, its value
    kept = points[:, 0] < -0.3
    ones = encoder._to_nodes(torch.ones(int(kept.sum()), 2), kept, size)
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert (ones[..., 0] == 1).all() and (ones[..., -1] == 0).all()


def test_nodes_are_no_further_apart_than_asked_for():
    for spacing in (0.1, 0.33, 2.0):
        for u, n in zip((1.0, 0.62), nodes(torch.tensor([1.0, 0.62]), spacing), strict=True):
            assert 2 * u / (n - 1) <= spacing + 1e-6
            assert n == 2 or 2 * u / (n - 2) > spacing - 1e-6


def test_only_the_mask_is_looked_at():
    d, side = 2, 30
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:, : side // 2] = True
    pair = [Volume(mind_ssc(texture(d, side)), -torch.ones(d), 2 / (side - 1), m) for m in (mask, None)]
    encoder = make_encoder(MatchingSettings(width=8), SMALL, d)
    code, fields = zero_code(SMALL, torch.ones(d), (6, 6)), NeuralFields(SMALL, 150.0, d)
    with torch.no_grad():
        seen, kept, _ = encoder._look(*pair, FieldMap(fields, code).forward, code, 1)
    left = _lattice(torch.ones(d), (6, 6))[:, 0] < 0
    assert len(seen) == kept.sum() and torch.equal(kept, left)


@pytest.mark.parametrize("d", [2, 3])
def test_with_a_linear_term_the_comparison_alone_moves_the_points(d):
    """Nothing is trained: the maps are what was found, both ways, where no lattice point is kept as well."""
    side, shift = 40, (2, -1, 3)[:d]
    pair, field = volumes(d, shift, side), replace(SMALL, linear=True, local_code=2 * d + 1)
    fields = NeuralFields(field, 150.0, d)
    encoder = make_encoder(MatchingSettings(width=8, steps=(2, 1)), field, d)
    points = torch.rand(2, 500, d, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = torch.tensor(shift) * pair[0].spacing
    with torch.no_grad():
        code = encoder(pair, fields, zero_code(field, torch.ones(d), (8,) * d))[-1]
        moved = (fields(points, code) - points).median(1).values
    torch.testing.assert_close(moved, torch.stack([expected, -expected]), atol=0.25 * pair[0].spacing, rtol=0)


def test_flow_is_held_where_nothing_was_looked_at():
    encoder = make_encoder(MatchingSettings(width=8), SMALL, 2)
    kept = _lattice(torch.ones(2), (9, 5))[:, 0] < -0.4
    flow = encoder._flow(torch.tensor([[0.1, -0.2]]).repeat(int(kept.sum()), 1), kept, (9, 5))
    torch.testing.assert_close(flow, torch.tensor([0.1, -0.2])[None, :, None, None].expand(1, 2, 5, 9))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_in_use_are_those_of_the_training(stride):
    convolution = _Conv3d(5, 7, 3, stride=stride, padding=1)
    assert list(convolution.state_dict()) == list(torch.nn.Conv3d(5, 7, 3).state_dict())
    x = random(1, 5, 6, 7, 8)
    trained = convolution(x)
    assert trained.requires_grad
    with torch.no_grad():
        used = convolution(x)
    assert used.layout == torch.strided and torch.allclose(used, trained.detach(), atol=1e-6)
