"""Block matching: the best fit of small blocks of one image in another, roughly aligned image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..device import in_threads

_FLOOR = 1e-4  # least variance of a block: contrast below a hundredth of the window is not informative
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
    inner = (slice(None), *[slice(reach, reach + 2 * half + 1)] * fixed.ndim)

    def compared(index: Tensor) -> tuple[Tensor, Tensor]:
        one, other = (_around(image, index, half + reach) for image in (fixed, moving))
        return _correlations(one[inner], other), _correlations(other[inner], one)

    there, back = map(torch.cat, zip(*in_threads(compared, index_zyx.split(_BLOCKS)), strict=True))
    (a, best), (b, _) = _peaks(there), _peaks(back)
    centre: tuple = (slice(None), *[reach] * fixed.ndim)
    here = there[centre]
    return Matches(
        ((a - b) / 2).flip(-1).numpy(), best.numpy(), here.numpy(), (a + b).norm(dim=-1).numpy()
    )  # index z first, results x first


def _correlations(block: Tensor, window: Tensor) -> Tensor:
    """(n, k, ..., k) correlations of blocks (n, side, ...) with all blocks of the windows (n, side + k - 1, ...)."""
    d, side, wide = block.ndim - 1, block.shape[1], window.shape[1]
    size, axes = [_quick(wide)] * d, tuple(range(1, d + 1))
    mean = _box_mean(window, side)
    variance = _box_mean(window.square(), side).addcmul_(mean, mean, value=-1).clamp_(min=0)
    block = block - block.mean(axes, keepdim=True)
    window = window - window.mean(axes, keepdim=True)
    spectrum = torch.fft.rfftn(window, s=size, dim=axes) * torch.fft.rfftn(block, s=size, dim=axes).conj()
    kept = (slice(None), *[slice(wide - side + 1)] * d)
    product = torch.fft.irfftn(spectrum, s=size, dim=axes)[kept] / side**d
    return product / ((block.square().mean(axes, keepdim=True) + _FLOOR) * (variance + _FLOOR)).sqrt()


def _box_mean(windows: Tensor, side: int) -> Tensor:
    for axis in range(windows.ndim - 1, 0, -1):
        n = windows.shape[axis] - side + 1
        total = windows.narrow(axis, 0, n).clone()
        for first in range(1, side):
            total += windows.narrow(axis, first, n)
        windows = total.div_(side)
    return windows


def _around(image: Tensor, index_zyx: Tensor, reach: int) -> Tensor:
    """(n, 2 reach + 1, ...): the boxes around voxels (n, d); beyond the border its values hold."""
    d, steps, flat = image.ndim, torch.arange(-reach, reach + 1), torch.zeros(1, dtype=torch.long)
    for axis, extent in enumerate(image.shape):
        along = (index_zyx[:, axis, None] + steps).clamp_(0, extent - 1)
        flat = flat[..., None] * extent + along.reshape(len(along), *[1] * axis, -1)
    return image.reshape(-1).index_select(0, flat.reshape(-1)).reshape(-1, *[len(steps)] * d)


def _quick(n: int) -> int:
    """A length not below n whose transform is quick."""
    return next(m for m in (8, 9, 10, 12, 14, 16, 18, 20, 24, 32, 36, 40, 48, 64) if m >= n)


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
