"""B-spline interpolation of values on a regular grid at scattered points: values and slopes in one product.

A spline of degree p blends the p + 1 nearest nodes along each axis. Degree 1 is linear interpolation; with degree 2 the
derivative is continuous (Unser, IEEE Signal Processing Magazine 1999). Beyond the border the border's value holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

# by degree: the weight of each node as a polynomial in the offset t of the point from its nearest node (degree 2) or
# from the node below it (degree 1), constant term first
_WEIGHTS = {
    1: ((1.0, -1.0), (0.0, 1.0)),
    2: ((1 / 8, -1 / 2, 1 / 2), (3 / 4, 0.0, -1.0), (1 / 8, 1 / 2, 1 / 2)),
}
_CACHED_POINTS = 512
_READ_POINTS = 4096  # that a CPU evaluates at a time: their weights stay in its cache
_FIRST = {1: 0, 2: -1}  # the first node that counts, from that one


def interpolate(
    tables: Sequence[Tensor], position: Tensor, size: Sequence[int], degree: int = 1, scale: float = 1.0
) -> Tensor:
    """Values (g, n, c) at positions (g, n, d), x first, in units of the nodes; node 0 lies at 0.

    ``tables``: for each of the g groups of points its own (rows, c), one row a node, x fastest, of float or uint8;
    ``size``: nodes along x, y (, z); ``scale``: what the values are multiplied by. Differentiable with respect to float
    tables and to the positions, as often as wanted; nothing is copied between host and device.
    """
    if torch.is_grad_enabled() and (position.requires_grad or any(table.requires_grad for table in tables)):
        return _Interpolate.apply(position, tuple(size), degree, scale, *tables)
    points = _READ_POINTS if position.device.type == "cpu" else max(1, position.shape[1])
    found = [
        _read(table, part, tuple(size), degree, scale)
        for table, group in zip(tables, position, strict=True)
        for part in group.split(points)
    ]
    return torch.cat(found).reshape(*position.shape[:-1], tables[0].shape[1])


class PointWeights:
    """What the nodes around positions (n, d) weigh there: for points that stay while the values at the nodes change.

    Positions, ``size`` and ``degree`` as in ``interpolate``. Nothing here is differentiated.
    """

    def __init__(self, position: Tensor, size: Sequence[int], degree: int = 1):
        self.nodes = math.prod(size)
        self.row, weight = _around(position, tuple(size), degree, 1.0, slopes=False)
        self.weight = weight[..., 0]

    def at(self, table: Tensor) -> Tensor:
        """Values (n, c) at the points, of a table (nodes, c) with one row a node, x fastest."""
        return F.embedding_bag(self.row, table, mode="sum", per_sample_weights=self.weight)

    def sums(self, values: Tensor) -> Tensor:
        """The transpose: values (n, c) at the points, shared among the nodes around them, as sums (nodes, c)."""
        point, first, weight = self._by_node
        return F.embedding_bag(point, values, first, mode="sum", per_sample_weights=weight)

    @cached_property
    def _by_node(self) -> tuple[Tensor, Tensor, Tensor]:
        """Point and weight of each share, sorted by node, and where those of each node (nodes,) begin."""
        rows, order = self.row.reshape(-1).sort(stable=True)
        first = torch.searchsorted(rows, torch.arange(self.nodes, device=rows.device))
        return order // self.row.shape[1], first, self.weight.reshape(-1)[order]


def constant(values: float | Sequence, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor that is made once per device: a copy from the host would make a GPU wait at each use."""
    return _constant(_tuple(values), device, dtype)


@cache  # never let go of: a CUDA graph that was captured reads them where they are
def _constant(values: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


def _tuple(values):
    return tuple(map(_tuple, values)) if isinstance(values, (tuple, list)) else values


@cache
def _coefficients(degree: int, d: int, scale: float, slopes: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(degree + 1, d, nodes, columns): by power of t, what each axis gives to each column of the weights.

    Column 0 is the value; column 1 + a the slope along axis a, to which axis a gives its weights' derivative.
    """
    value = torch.tensor(_WEIGHTS[degree], device=device, dtype=dtype).T  # (powers, nodes)
    slope = torch.zeros_like(value)
    for power in range(1, degree + 1):
        slope[power - 1] = power * value[power]
    columns = 1 + d if slopes else 1
    out = value[:, None, :, None].repeat(1, d, 1, columns)
    for axis in range(d if slopes else 0):
        out[:, axis, :, 1 + axis] = slope
    out[:, 0] *= scale
    return out


def _around(position: Tensor, size: tuple[int, ...], degree: int, scale: float, slopes: bool) -> tuple[Tensor, Tensor]:
    """Rows (n, k) of the nodes around positions (n, d), and their weights (n, k, columns)."""
    n, d = position.shape
    kind = position.device, position.dtype
    nearest = position.detach().floor() if degree == 1 else position.detach().round()
    t = (position - nearest)[..., None, None]
    powers = _coefficients(degree, d, scale, slopes, *kind)
    part = torch.addcmul(powers[-2], t, powers[-1])
    for power in range(degree - 2, -1, -1):
        part = torch.addcmul(powers[power], t, part)  # (n, d, nodes, columns)
    steps = [k + _FIRST[degree] for k in range(degree + 1)]
    last, zero = constant([[extent - 1] for extent in size], *kind), constant((0,), *kind)
    node = torch.clamp(nearest[..., None] + constant(steps, *kind), zero, last).long()
    strides = [1]
    for extent in size[:-1]:
        strides.append(strides[-1] * extent)
    node = node * constant([[stride] for stride in strides], position.device, torch.long)
    row, weight = node[:, -1], part[:, -1]
    for axis in range(d - 2, -1, -1):
        row = (row[:, :, None] + node[:, axis, None]).flatten(1)
        weight = (weight[:, :, None] * part[:, axis, None]).flatten(1, 2)
    return row, weight


def _gather(tables: Sequence[Tensor], row: Tensor, dtype: torch.dtype) -> Tensor:
    """Values (g * n, k, c) of rows (g * n, k), the first n of the first table and so on."""
    found = []
    for table, rows in zip(tables, row.chunk(len(tables)), strict=True):
        if table.dtype == torch.uint8 and table.shape[1] % 4 == 0:  # four bytes at a time
            found.append(table.view(torch.int32).index_select(0, rows.reshape(-1)).view(torch.uint8))
        else:
            found.append(table.index_select(0, rows.reshape(-1)))
    values = found[0] if len(found) == 1 else torch.cat(found)
    return values.to(dtype).reshape(*row.shape, tables[0].shape[1])


def _blend(weight: Tensor, values: Tensor) -> Tensor:
    """Sum (n, c) of values (n, k, c) times their weights (n, k, 1)."""
    if values.shape[-1] == 1:  # a matrix product of vectors is slow on a GPU
        return (weight * values).sum(1)
    return torch.bmm(weight.transpose(1, 2), values)[:, 0]


def _read(table: Tensor, position: Tensor, size: tuple[int, ...], degree: int, scale: float) -> Tensor:
    """Values (n, c) of one table at positions (n, d)."""
    row, weight = _around(position, size, degree, scale, slopes=False)
    if table.dtype == position.dtype and table.device.type == "cpu":  # nothing is held but the result
        return F.embedding_bag(row, table, mode="sum", per_sample_weights=weight[..., 0])
    return _blend(weight, _gather([table], row, position.dtype))


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, position: Tensor, size: tuple[int, ...], degree: int, scale: float, *tables: Tensor) -> Tensor:
        moves = ctx.needs_input_grad[0]
        row, weight = _around(position.reshape(-1, position.shape[-1]), size, degree, scale, slopes=moves)
        values = _gather(tables, row, position.dtype)
        found = _blend(weight[..., :1], values)
        ctx.size, ctx.degree, ctx.scale = size, degree, scale
        ctx.save_for_backward(position, values if moves else None, row, weight, *tables)
        return found.reshape(*position.shape[:-1], tables[0].shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor):
        position, values, row, weight, *tables = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return _differentiable(ctx, grad, position, tables)
        flat = grad.reshape(-1, 1, grad.shape[-1])
        on_position = None
        if values is not None:
            of_nodes = (values * flat).sum(-1, keepdim=True)  # (g * n, k, 1)
            on_position = torch.bmm(weight[..., 1:].transpose(1, 2), of_nodes).reshape(position.shape)
        on_tables: list[Tensor | None] = [None] * len(tables)
        if any(ctx.needs_input_grad[4:]):
            # on a CPU in parts that stay in its cache, which is several times faster
            points = _CACHED_POINTS if flat.device.type == "cpu" else len(flat)
            for k, kinds in enumerate(zip(*(t.chunk(len(tables)) for t in (row, weight[..., :1], flat)), strict=True)):
                total = torch.zeros_like(tables[k])
                for rows, weights, grads in zip(*(t.split(points) for t in kinds), strict=True):
                    total.index_add_(0, rows.reshape(-1), (weights * grads).flatten(0, 1))
                on_tables[k] = total
        return on_position, None, None, None, *on_tables


def _differentiable(ctx, grad: Tensor, position: Tensor, tables: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients by differentiation of the plain formula, so that they have gradients of their own."""
    row, weight = _around(position.reshape(-1, position.shape[-1]), ctx.size, ctx.degree, ctx.scale, slopes=False)
    values = _blend(weight, _gather(tables, row, position.dtype))[:, None]
    inputs = {0: position, **{4 + k: table for k, table in enumerate(tables)}}
    wanted = [i for i in inputs if ctx.needs_input_grad[i]]
    outputs = values[:, 0].reshape(grad.shape)
    found = torch.autograd.grad(outputs, [inputs[i] for i in wanted], grad, create_graph=True)
    by_input = dict(zip(wanted, found, strict=True))
    return tuple(by_input.get(i) for i in range(4 + len(tables)))
