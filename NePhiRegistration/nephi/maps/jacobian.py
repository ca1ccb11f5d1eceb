"""Jacobians of maps at points: by forward differences, and exact ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..device import in_threads
from ..space.interpolate import constant

_PARTS = 4096  # points at a time


def finite_jacobian(values: Tensor, step: float) -> Tensor:
    """Forward differences: values (..., k, d) on a stencil -> Jacobian (..., d, d), row = output.

    The stencil is a point and one ``step`` ahead of it along each axis; further entries are not used.
    """
    k, d = values.shape[-2:]
    rows = [[-1 / step, *(float(i == j) / step for j in range(k - 1))] for i in range(d)]
    differences = constant(rows, values.device, values.dtype)  # (d, k): row i is the difference along axis i
    flat = values.reshape(-1, k, d)
    return torch.bmm(differences.expand(len(flat), d, k), flat).reshape(*values.shape[:-2], d, d).transpose(-1, -2)


def exact_jacobian(outputs: Tensor, points: Tensor, create_graph: bool = True) -> Tensor:
    """Jacobian (..., d, d) of outputs (..., d) at the points they were computed from, row = output."""
    rows = [
        torch.autograd.grad(outputs[..., i].sum(), points, create_graph=create_graph, retain_graph=True)[0]
        for i in range(outputs.shape[-1])
    ]
    return torch.stack(rows, -2)


def exact_determinants(forward: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Determinant (n,) of a map's exact Jacobian at points (n, d), some at a time."""

    def of_part(part: Tensor) -> Tensor:
        with torch.enable_grad():
            part = part.clone().requires_grad_()
            return torch.linalg.det(exact_jacobian(forward(part), part, create_graph=False)).detach()

    return torch.cat(list(in_threads(of_part, points.split(_PARTS), points.device)))
