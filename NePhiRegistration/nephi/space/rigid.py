"""Rigid motions of points."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import has_doubles


def lengths(vectors: Tensor) -> Tensor:
    """The norm of vectors (..., d); the gradient at zero is zero."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()


def rigidly_moved(start: Tensor, end: Tensor) -> Tensor:
    """Points (l, n, d) under the rigid motion of each of l bodies that takes them nearest to ``end`` (l, n, d).

    Differentiable as if the turn were known.
    """
    return moved_along(start, start, end)


def moved_along(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Points (l, m, d) under the rigid motion of each of l bodies that takes ``start`` (l, n, d) nearest to ``end``."""
    return (points - start.mean(1, keepdim=True)) @ _turns(start, end) + end.mean(1, keepdim=True)


@torch.no_grad()
def _turns(start: Tensor, end: Tensor) -> Tensor:
    """(l, d, d): rows of points from their mean times these are turned as ``rigidly_moved`` turns them.

    In 3D the eigenvector of Horn's matrix (J. Opt. Soc. Am. A 1987), by squaring it, which needs no decomposition.
    """
    a, b = (x - x.mean(1, keepdim=True) for x in (start, end))
    s = a.transpose(1, 2) @ b  # (l, d, d)
    if s.shape[-1] == 2:
        cosine, sine = s[:, 0, 0] + s[:, 1, 1], s[:, 0, 1] - s[:, 1, 0]
        length = (cosine.square() + sine.square()).sqrt().clamp(min=1e-12)
        c, t = cosine / length, sine / length
        return torch.stack([torch.stack([c, t], -1), torch.stack([-t, c], -1)], -2)
    s = s.double() if has_doubles(s.device) else s
    xx, xy, xz, yx, yy, yz, zx, zy, zz = s.flatten(1).unbind(1)
    rows = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    horn = torch.stack([torch.stack(row, -1) for row in rows], -2)
    size = horn.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
    power = horn / size + torch.eye(4, device=horn.device, dtype=horn.dtype)  # its eigenvalues are not negative
    for _ in range(20):
        power = power @ power
        power = power / power.square().sum((1, 2), keepdim=True).sqrt()
    largest = power.diagonal(dim1=1, dim2=2).argmax(-1)
    quaternion = power.gather(2, largest[:, None, None].expand(-1, 4, 1))[..., 0]
    w, x, y, z = (quaternion / lengths(quaternion)[:, None]).unbind(-1)
    return torch.stack(
        [
            torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y + w * z), 2 * (x * z - w * y)], -1),
            torch.stack([2 * (x * y - w * z), w * w - x * x + y * y - z * z, 2 * (y * z + w * x)], -1),
            torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), w * w - x * x - y * y + z * z], -1),
        ],
        -2,
    ).to(a.dtype)
