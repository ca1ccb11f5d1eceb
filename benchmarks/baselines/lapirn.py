"""A Laplacian pyramid of networks that predicts a displacement, trained without ground truth.

Follows Mok and Chung, Large Deformation Diffeomorphic Image Registration with Laplacian Pyramid Networks (MICCAI 2020;
"LapIRN"), the displacement variant: three levels at a quarter, half and full resolution, each refining the upsampled
displacement of the one before and taking over its features, trained one after the other under local correlation at
several scales and a diffusion regulariser.

It differs in its size and data (see ``train_baselines.py``: some dozen generated pairs at 48 voxels per side for some
hundred steps; published: 120,000 steps) and in the penalty of folds, which is left out. No inverse, as published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import predict

CHANNELS, BLOCKS, RANGE, SMOOTH = 28, 5, 0.4, 1.0
SHARES = (0.4, 0.8)  # of the training: from there on the second, the third level
FROZEN = 0.05  # part of the training in which the levels below a new one rest
SIDES = 8  # a size has to be a multiple of it


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)


class Residual(nn.Module):
    """Two convolutions after their activations, and the input (He et al., 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = convolution(channels, channels), convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


class PyramidLevel(nn.Module):
    """Images and the displacement so far -> a change of it, and features for the next level."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        activation = nn.LeakyReLU(0.2)
        self.enter = nn.Sequential(convolution(inputs, channels), activation, convolution(channels, channels))
        self.down = convolution(channels, channels, stride=2)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(BLOCKS)))
        self.up = nn.ConvTranspose3d(channels, channels, 2, stride=2)
        self.out = nn.Sequential(
            convolution(2 * channels, channels), activation, convolution(channels, 3), nn.Softsign()
        )

    def forward(self, seen: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        entered = self.enter(seen)
        down = self.down(entered)
        features = self.up(F.leaky_relu(self.blocks(down if below is None else down + below), 0.2))
        return RANGE * self.out(torch.cat([features, entered], 1)), features


class LapIRN(nn.Module):
    """Moving and fixed image (1, 1, z, y, x) -> displacement (1, 3, z, y, x), x first, in halves of the sides."""

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        self.levels = nn.ModuleList(PyramidLevel(2 if k == 0 else 5, channels) for k in range(3))

    def forward(self, moving: Tensor, fixed: Tensor, levels: int = 3, frozen: bool = False) -> Tensor:
        """The displacement after the given number of levels, at that level's resolution."""
        found = features = None
        for k in range(levels):
            scaled = [shrink(image, 2 - k) for image in (moving, fixed)]
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (frozen and k < levels - 1)):
                if found is None:
                    found, features = self.levels[k](torch.cat(scaled, 1), None)
                    continue
                found = F.interpolate(found, scale_factor=2, mode="trilinear", align_corners=True)
                seen = torch.cat([warp(scaled[0], found), scaled[1], found], 1)
                change, features = self.levels[k](seen, features)
                found = found + change
        return found

    def loss(self, moving: Tensor, fixed: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        levels = 1 + sum(done >= share for share in SHARES)
        frozen = levels > 1 and done < SHARES[levels - 2] + FROZEN
        displacement = self(moving, fixed, levels, frozen)
        warped, target = warp(shrink(moving, 3 - levels), displacement), shrink(fixed, 3 - levels)
        similarity = 0.0
        for scale in range(levels):  # the largest window at the finest scale
            similarity = similarity - local_ncc(
                shrink(warped, scale), shrink(target, scale), 1 + 2 * (levels - scale)
            ) / 2**scale  # fmt: skip
        terms = {"similarity": similarity, "regularity": diffusion(displacement)}
        return similarity + SMOOTH * terms["regularity"], terms

    def displacement(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self(moving, fixed)


def shrink(image: Tensor, times: int) -> Tensor:
    """Half the resolution, ``times`` times."""
    for _ in range(times):
        image = F.avg_pool3d(image, 3, stride=2, padding=1, count_include_pad=False)
    return image


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    identity = F.affine_grid(torch.eye(3, 4)[None].to(image), image.shape, align_corners=True)
    return F.grid_sample(image, identity + displacement.movedim(1, -1), padding_mode="border", align_corners=True)


def local_ncc(a: Tensor, b: Tensor, window: int) -> Tensor:
    """Mean squared correlation in windows of this many voxels per side."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, window, stride=1, padding=window // 2, count_include_pad=False)

    a_mean, b_mean = mean(a), mean(b)
    covariance = mean(a * b) - a_mean * b_mean
    variances = (mean(a * a) - a_mean**2).clamp(min=0) * (mean(b * b) - b_mean**2).clamp(min=0)
    return (covariance.square() / (variances + 1e-6)).mean()


def diffusion(displacement: Tensor) -> Tensor:
    """Mean squared difference of neighbouring voxels, in voxels."""
    sides = torch.tensor(displacement.shape[:1:-1]).to(displacement)
    voxels = displacement * ((sides - 1) / 2)[:, None, None, None]
    return sum(voxels.diff(dim=axis).square().mean() for axis in (2, 3, 4)) / 3


def build(size: int) -> LapIRN:
    if size % SIDES:
        raise SystemExit(f"lapirn: the size {size} must be a multiple of {SIDES}")
    return LapIRN()


def run(job) -> None:
    predict(build, "lapirn", job)
