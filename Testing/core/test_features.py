"""MIND-SSC against its definition, interpolation against torch, and the volume points are drawn from."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from nephi.images import volume as features
from nephi.images.volume import Volume, mind_ssc, sample_linear, smoothed
from torch.nn import functional as F


def noise(*shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def slow_mind(image: np.ndarray, dilation: int, sigma: float) -> np.ndarray:
    """Heinrich et al. 2013 by the definition: at every voxel, patch distances between the pairs of the six
    (four) neighbours that are sqrt(2) dilations apart; exp(-D / mean D); the best channel is 1."""
    d = image.ndim
    neighbours = [s * dilation * np.eye(d, dtype=int)[i] for i in range(d) for s in (1, -1)]
    pairs = [(a, b) for a, b in combinations(neighbours, 2) if (a + b).any()]
    patch = list(product((-1, 0, 1), repeat=d))
    top = np.array(image.shape) - 1

    def at(index) -> float:
        return image[tuple(np.clip(index, 0, top))]

    out = np.empty((*image.shape, len(pairs)))
    for voxel in np.ndindex(image.shape):
        distance = np.array([
            np.mean([(at(voxel + a + np.array(p)) - at(voxel + b + np.array(p))) ** 2 for p in patch])
            for a, b in pairs
        ])  # fmt: skip
        out[voxel] = np.exp(-(distance - distance.min()) / max(distance.mean(), 2 * sigma**2))
    return out * 255


@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_mind_agrees_with_its_definition(shape, dilation):
    image = noise(*shape)
    fast = mind_ssc(image, dilation, 0.02).numpy().astype(float)
    slow = slow_mind(image.numpy().astype(float), dilation, 0.02)
    assert fast.shape == slow.shape == (*shape, 2 * len(shape) * (len(shape) - 1))
    # the order of the channels is free, but must be the same at every voxel
    channels = slow.shape[-1]
    gaps = np.abs(fast[..., :, None] - slow[..., None, :]).reshape(-1, channels, channels)
    order = gaps.max(0).argmin(1).tolist()
    assert sorted(order) == list(range(slow.shape[-1]))
    assert np.abs(fast - slow[..., order]).max() <= 1


@pytest.mark.parametrize("shape", [(37, 9, 8), (37, 20)])
def test_mind_is_the_same_in_slabs(shape, monkeypatch):
    image = noise(*shape)
    parts = mind_ssc(image, 2)
    monkeypatch.setattr(features, "_SLAB_VOXELS", 40)
    assert torch.equal(parts, mind_ssc(image, 2))
    monkeypatch.setattr(features, "_TILE_VOXELS", 40)  # and in tiles of these, along two axes
    assert torch.equal(parts, mind_ssc(image, 2))
    monkeypatch.setattr(features, "_SLAB_VOXELS", 10**6)
    assert torch.equal(parts, mind_ssc(image, 2))


def test_mind_takes_a_byte_a_channel():
    assert mind_ssc(noise(10, 9, 8)).nbytes == 12 * 10 * 9 * 8
    assert mind_ssc(noise(10, 9)).nbytes == 4 * 10 * 9


def test_mind_does_not_see_brightness_contrast_and_inversion():
    image = noise(12, 12, 12)
    plain = mind_ssc(image).int()
    for other in (image + 0.3, 2.5 * image, 1 - image):
        assert (mind_ssc(other).int() - plain).abs().max() <= 1
    assert (mind_ssc(noise(12, 12, 12, seed=1)).int() - plain).abs().float().mean() > 20


def test_mind_ignores_contrast_below_the_noise():
    faint = 0.5 + 1e-4 * noise(12, 12, 12)
    assert (mind_ssc(faint, noise=0.02) > 250).all()


@pytest.mark.parametrize("channels", [1, 3, 4, 12])
@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 8)])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_sampling_agrees_with_torch(kind, shape, channels):
    d = len(shape)
    volume = noise(*shape, channels)
    volume = (volume * 255).to(torch.uint8) if kind == "uint8" else volume.double()
    size = torch.tensor(shape[::-1], dtype=torch.double)
    points = (noise(200, d, seed=3).double() * 1.4 - 0.2) * (size - 1)  # a third or so lie outside
    assert ((points < 0) | (points > size - 1)).any(-1).sum() > 30
    weight = noise(200, channels, seed=4).double()
    mine, theirs = points.clone().requires_grad_(), points.clone().requires_grad_()
    values = sample_linear(volume, mine)
    grid = (2 * theirs / (size - 1) - 1).reshape(1, *[1] * (d - 1), -1, d)
    moved = volume.double().movedim(-1, 0)[None]
    expected = F.grid_sample(moved, grid, padding_mode="border", align_corners=True).reshape(channels, -1).T
    torch.testing.assert_close(values, expected, atol=1e-9, rtol=1e-9)
    (values * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-8, rtol=1e-8)


def test_sampling_at_nodes_on_the_border_and_in_a_single_slice():
    volume = noise(4, 5, 6, 2)
    index = torch.tensor([[0.0, 0, 0], [5, 4, 3], [2, 1, 3], [5, 0, 0]])
    expected = torch.stack([volume[int(z), int(y), int(x)] for x, y, z in index])
    torch.testing.assert_close(sample_linear(volume, index), expected)
    flat = noise(1, 5, 6, 4)
    torch.testing.assert_close(sample_linear(flat, torch.tensor([[2.0, 3.0, 0.7]]))[0], flat[0, 3, 2])


def volume(mask=None, view=None) -> Volume:
    z, y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (4, 5, 6)], indexing="ij")
    return Volume(torch.stack([x, y, z], -1), torch.tensor([-1.0, -0.5, 0.0]), 0.25, mask, view)


def test_volume_draws_voxel_centres_inside_the_mask():
    mask = torch.zeros(4, 5, 6, dtype=torch.bool)
    mask[3, 1, 2] = mask[0, 4, 5] = True
    points, index = volume(mask).draw(100, torch.Generator().manual_seed(0))
    assert {tuple(i) for i in index.tolist()} == {(2, 1, 3), (5, 4, 0)}
    torch.testing.assert_close(points, index * 0.25 + torch.tensor([-1.0, -0.5, 0.0]))
    everywhere = volume().draw(3000, torch.Generator().manual_seed(0))[1]
    assert len({tuple(i) for i in everywhere.tolist()}) == 4 * 5 * 6


def test_volume_reads_the_same_at_voxels_and_at_points():
    v = volume()
    points, index = v.draw(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(v.at(points), index.float())
    torch.testing.assert_close(v.at_voxels(index), index.float())
    offsets = features.local_offsets(3)
    assert offsets.shape == (27, 3)
    torch.testing.assert_close(v.at(points, offsets), v.at_voxels(index, offsets))


def test_bytes_are_read_as_parts_of_one():
    v = Volume(torch.full((4, 4, 4), 255, dtype=torch.uint8), torch.zeros(2), 0.5, None)
    assert float(v.at(torch.tensor([[0.7, 0.9]]))[0, 0]) == float(v.at_voxels(torch.tensor([[1, 2]]))[0, 0]) == 1


def test_field_of_view_of_the_source_image():
    view = (torch.eye(3) * 10, torch.tensor([5.0, 5.0, 5.0]), torch.tensor([11, 11, 11]))
    points = torch.tensor([[0.0, 0, 0], [0.49, 0.49, -0.49], [0.51, 0, 0], [0, -0.6, 0]])
    assert volume(view=view).inside(points)[:, 0].tolist() == [1, 1, 0, 0]
    assert volume().inside(points).all()


# ---- smoothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_smoothed_point_is_a_gaussian(dimension):
    image = torch.zeros([25] * dimension)
    image[(12,) * dimension] = 1.0
    blurred = smoothed(image, 2.0)
    index = torch.stack(torch.meshgrid(*[torch.arange(25.0)] * dimension, indexing="ij"))
    expected = torch.exp(-((index - 12).square().sum(0)) / 8)
    torch.testing.assert_close(blurred, expected / expected.sum(), atol=1e-6, rtol=1e-3)


def test_smoothing_keeps_what_is_even_up_to_the_border():
    torch.testing.assert_close(smoothed(torch.full((9, 14), 0.3), 5.0), torch.full((9, 14), 0.3))
    image = noise(9, 14)
    assert smoothed(image, 0.0) is image
