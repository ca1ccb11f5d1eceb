"""Block matching: where small blocks of one image fit best in another that should already lie on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..device import in_threads

_FLOOR = 1e-4  # of a block's variance: what is smoother than a hundredth of the window tells nothing
_BLOCKS = 128  # compared at a time


@dataclass(frozen=True)
class Matches:
    """Of n blocks: the shift (n, d) that fits best, in voxels, x first, and normalised correlation (n,).

    ``shifts`` have the sense fixed -> moving. ``best`` belongs to them, ``here`` to no shift. ``asymmetry`` (n,): how
    far, in voxels, the shift found by the moving image's block in the fixed image is from the way back.
    """

    shifts: np.ndarray
    best: np.ndarray
    here: np.ndarray
    asymmetry: np.ndarray


def match(fixed: Tensor, moving: Tensor, index_zyx: Tensor, half: int, reach: int) -> Matches:
    """Blocks of 2 ``half`` + 1 voxels a side around the voxels (n, d), moved by up to ``reach`` voxels along each axis.

    ``fixed`` and ``moving`` (z, y, x) lie on one grid. Both serve as the block and as what is searched; the shift is
    half the difference of the two, each to a fraction of a voxel by a parabola.
    """
    there = _correlations(fixed, moving, index_zyx, half, reach)
    back = _correlations(moving, fixed, index_zyx, half, reach)
    (a, best), (b, _) = _peaks(there), _peaks(back)
    centre: tuple = (slice(None), *[reach] * fixed.ndim)
    here = there[centre]
    return Matches(
        ((a - b) / 2).flip(-1).numpy(), best.numpy(), here.numpy(), (a + b).norm(dim=-1).numpy()
    )  # index z first, results x first


def _correlations(fixed: Tensor, moving: Tensor, index_zyx: Tensor, half: int, reach: int) -> Tensor:
    """(n, k, ..., k) correlations of the fixed blocks with the moving ones, for all shifts, z first."""
    d, side, shifts = fixed.ndim, 2 * half + 1, 2 * reach + 1
    wide = side + shifts - 1
    blocks, searched = _padded(fixed, half), _padded(moving, half + reach)
    mean = _box_mean(searched, side)
    variance = _box_mean(searched.square(), side).addcmul_(mean, mean, value=-1).clamp_(min=0)
    del mean  # images of this size are what the memory goes to
    size, axes = [_quick(wide)] * d, tuple(range(1, d + 1))
    kept = (slice(None), *[slice(shifts)] * d)

    def compared(index: Tensor) -> Tensor:
        block = _cut(blocks, index, side)
        block = block - block.mean(axes, keepdim=True)
        window = _cut(searched, index, wide)
        window = window - window.mean(axes, keepdim=True)
        spectrum = torch.fft.rfftn(window, s=size, dim=axes) * torch.fft.rfftn(block, s=size, dim=axes).conj()
        product = torch.fft.irfftn(spectrum, s=size, dim=axes)[kept] / side**d
        spread = (block.square().mean(axes, keepdim=True) + _FLOOR) * (_cut(variance, index, shifts) + _FLOOR)
        return product / spread.sqrt()

    return torch.cat(list(in_threads(compared, index_zyx.split(_BLOCKS))))


def _padded(image: Tensor, by: int) -> Tensor:
    return functional.pad(image[None, None], [by] * 2 * image.ndim, mode="replicate")[0, 0]


def _box_mean(image: Tensor, side: int) -> Tensor:
    for axis in range(image.ndim):
        n = image.shape[axis] - side + 1
        total = image.narrow(axis, 0, n).clone()
        for first in range(1, side):
            total += image.narrow(axis, first, n)
        image = total.div_(side)
    return image


def _cut(image: Tensor, index_zyx: Tensor, side: int) -> Tensor:
    """(n, side, ..., side): the boxes whose first voxels are these (n, d)."""
    d = image.ndim
    stride = torch.tensor([int(np.prod(image.shape[axis + 1 :])) for axis in range(d)])
    offsets = torch.stack(torch.meshgrid(*[torch.arange(side)] * d, indexing="ij"), -1).reshape(-1, d)
    flat = (index_zyx * stride).sum(-1, keepdim=True) + (offsets * stride).sum(-1)
    return image.reshape(-1)[flat].reshape(-1, *[side] * d)


def _quick(n: int) -> int:
    """A length not below n whose transform is quick."""
    return next(m for m in (8, 9, 10, 12, 15, 16, 18, 20, 24, 25, 27, 30, 32, 36, 40, 48, 64) if m >= n)


def _peaks(correlations: Tensor) -> tuple[Tensor, Tensor]:
    """The best shifts (n, d), z first, from the middle, with a parabola along each axis, and their correlations."""
    n, side, d = len(correlations), correlations.shape[1], correlations.ndim - 1
    best, flat = correlations.reshape(n, -1).max(1)
    index = torch.stack([flat // side ** (d - 1 - axis) % side for axis in range(d)], -1)
    shifts = (index - side // 2).float()
    rows = correlations.reshape(n, -1)
    for axis in range(d):
        step = side ** (d - 1 - axis)
        inner = (index[:, axis] > 0) & (index[:, axis] < side - 1)
        low, high = (rows.gather(1, torch.where(inner, flat + sign * step, flat)[:, None])[:, 0] for sign in (-1, 1))
        bend = (2 * best - low - high).clamp(min=1e-6)
        shifts[:, axis] += (0.5 * (high - low) / bend).clamp(-0.5, 0.5)
    return shifts, best
