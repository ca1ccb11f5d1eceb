"""Jacobians of maps at points: by forward differences, and exact ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..space.interpolate import constant


def finite_jacobian(values: Tensor, step: float) -> Tensor:
    """Forward differences: values (..., k, d) on a stencil -> Jacobian (..., d, d), row = output.

    The stencil is a point and one ``step`` ahead of it along each axis; what follows in it is not used.
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


def determinant(columns: Any) -> Any:
    """Determinant (...) of 2 or 3 columns (d, ...), or rows: these have the same. Tensors, arrays or numbers.

    By the rule, which is faster than a decomposition of many small matrices and does not wait for a GPU.
    """
    if len(columns) == 2:
        (a, c), (b, d) = columns
        return a * d - b * c
    (a, b, c), second, third = columns
    minors = [second[(k + 1) % 3] * third[(k + 2) % 3] - second[(k + 2) % 3] * third[(k + 1) % 3] for k in range(3)]
    return a * minors[0] + b * minors[1] + c * minors[2]
