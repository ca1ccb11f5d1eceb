"""B-spline interpolation of values on a regular grid at scattered points: values and slopes in one product.

A spline of degree p blends the p + 1 nearest nodes along each axis. Degree 1 is linear interpolation; with degree 2 the
derivative is continuous (Unser, IEEE Signal Processing Magazine 1999). Beyond the border the border's value holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache

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
_FEW = 8  # nodes of a point
_FIRST = {1: 0, 2: -1}  # the first node that counts, from that one


def interpolate(
    tables: Sequence[Tensor], position: Tensor, size: Sequence[int], degree: int = 1, scale: float = 1.0
) -> Tensor:
    """Values (g, n, c) at positions (g, n, d), x first, in units of the nodes; node 0 lies at 0.

    ``tables``: for each of the g groups of points its own (rows, c), one row a node, x fastest, of float or uint8;
    ``size``: nodes along x, y (, z); ``scale``: what the values are multiplied by. Differentiable with respect to float
    tables and to the positions, as often as wanted; nothing is copied between host and device. At NaN the values are
    NaN.
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
        points = _READ_POINTS if position.device.type == "cpu" else max(1, len(position))
        around = [_around(part, tuple(size), degree, 1.0) for part in position.split(points)]
        self.row, self.weight = map(torch.cat, zip(*around, strict=True))

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


def along_axes(values: Tensor, positions: Sequence[Tensor], degree: int, slope: int | None = None) -> Tensor:
    """Splines with coefficients (c, (z,) y, x) on a grid along the axes of their nodes, axis by axis: (c, (z,) y, x).

    ``positions``: of the grid's places along x, y (, z), in units of the nodes. ``slope``: the axis along which the
    derivative is taken, x first; None: the values. Nothing here is differentiated.
    """
    for axis in range(len(positions) - 1, -1, -1):  # z first: of a slab it is the one that leaves least
        matrix = _weights_along(positions[axis], values.shape[-1 - axis], degree, axis == slope)
        values = torch.tensordot(matrix, values, ([1], [values.ndim - 1 - axis])).movedim(0, -1 - axis)
    return values


def _weights_along(position: Tensor, nodes: int, degree: int, slope: bool) -> Tensor:
    """(n, nodes): the weights of the nodes of an axis at positions (n,) along it, or their derivative."""
    row, weight = _around_with_slopes(position[:, None], (nodes,), degree, 1.0)
    return position.new_zeros(len(position), nodes).scatter_add_(1, row, weight[..., int(slope)])


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
    """By power of t, what each axis gives to the weights: (degree + 1, d, nodes, 1) to those of points that come last.

    With slopes (degree + 1, d, nodes, columns), to each column: column 0 is the value; column 1 + a the slope along
    axis a, to which axis a gives its weights' derivative.
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


def _polynomial(coefficients: Tensor, t: Tensor) -> Tensor:
    """Values at t of polynomials with coefficients (powers, ...), constant term first."""
    found = torch.addcmul(coefficients[-2], t, coefficients[-1])
    for power in range(len(coefficients) - 3, -1, -1):
        found = torch.addcmul(coefficients[power], t, found)
    return found


def _nearest(position: Tensor, degree: int) -> Tensor:
    return position.detach().floor() if degree == 1 else position.detach().round()


def _rows(nearest: Tensor, size: tuple[int, ...], degree: int, axis: int, whole: torch.dtype) -> Tensor:
    """What each axis adds to the rows of the nodes around nearest ones, within the size, as whole numbers.

    (d, nodes, n) of ``nearest`` (d, n) where ``axis``, that of the nodes, is 1; (n, d, nodes) of (n, d) where it is -1.
    """
    # clamped before the step to a node is added, where rows are counted, and as whole numbers: NaN, which is no row,
    # would stay NaN. What is read there has a weight of NaN
    low, high, ahead, strides = _steps(size, degree, axis, nearest.device, whole)
    return torch.addcmul(ahead, torch.clamp(nearest.to(whole).unsqueeze(axis), low, high), strides)


@cache
def _steps(
    size: tuple[int, ...], degree: int, axis: int, device: torch.device, whole: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For ``_rows``: the least and the most that a nearest node may be, the rows from it to each node, and of a step
    along each axis."""
    steps = [k + _FIRST[degree] for k in range(degree + 1)]
    strides = [math.prod(size[:along]) for along in range(len(size))]

    def shaped(values: list[list[int]]) -> Tensor:
        found = constant(values, device, whole)
        return found if axis == -1 else found[..., None]

    low, high = [[-step for step in steps]], [[extent - 1 - step for step in steps] for extent in size]
    ahead = [[stride * step for step in steps] for stride in strides]
    return shaped(low), shaped(high), shaped(ahead), shaped([[stride] for stride in strides])


def _around(position: Tensor, size: tuple[int, ...], degree: int, scale: float) -> tuple[Tensor, Tensor]:
    """Rows (n, k) of the nodes around positions (n, d), and their weights (n, k).

    Worked out with the points last, over which a CPU runs three times as fast as over the few nodes of each.
    """
    d, along = position.shape[1], position.T.contiguous()
    nearest = _nearest(along, degree)
    powers = _coefficients(degree, d, scale, False, position.device, position.dtype)
    whole = torch.int32 if math.prod(size) < 2**31 else torch.long
    part, node = _polynomial(powers, (along - nearest)[:, None]), _rows(nearest, size, degree, 1, whole)
    row, weight = node[-1], part[-1]  # (nodes, n)
    for axis in range(d - 2, -1, -1):
        row, weight = (row[:, None] + node[axis]).flatten(0, 1), (weight[:, None] * part[axis]).flatten(0, 1)
    # sums by rows of 32 bits take five times as long; many rows are turned faster before they are widened
    row = row.T.contiguous() if len(row) > _FEW and row.device.type == "cpu" else row.T
    return row.to(torch.long, memory_format=torch.contiguous_format), weight.T.contiguous()


def _around_with_slopes(position: Tensor, size: tuple[int, ...], degree: int, scale: float) -> tuple[Tensor, Tensor]:
    """The same rows, and weights (n, k, 1 + d): of the value, then of its slope along each axis."""
    d, nearest = position.shape[1], _nearest(position, degree)
    powers = _coefficients(degree, d, scale, True, position.device, position.dtype)
    part = _polynomial(powers, (position - nearest)[..., None, None])
    node = _rows(nearest, size, degree, -1, torch.long)
    row, weight = node[:, -1], part[:, -1]  # (n, nodes), (n, nodes, columns)
    for axis in range(d - 2, -1, -1):
        row = (row[:, :, None] + node[:, axis, None]).flatten(1)
        weight = (weight[:, :, None] * part[:, axis, None]).flatten(1, 2)
    return row, weight


def _gather(tables: Sequence[Tensor], row: Tensor, dtype: torch.dtype) -> Tensor:
    """Values (g * n, k, c) of rows (g * n, k), the first n of the first table and so on."""
    parts, channels = [rows.reshape(-1) for rows in row.chunk(len(tables))], tables[0].shape[1]
    if tables[0].dtype == torch.uint8 and channels % 4 == 0:  # four bytes at a time, to where they are read
        read = tables[0].new_empty(row.numel(), channels)
        for table, rows, part in zip(tables, parts, read.view(torch.int32).chunk(len(tables)), strict=True):
            torch.index_select(table.view(torch.int32), 0, rows, out=part)
        return read.to(dtype).reshape(*row.shape, channels)
    found = [table.index_select(0, rows) for table, rows in zip(tables, parts, strict=True)]
    return (found[0] if len(found) == 1 else torch.cat(found)).to(dtype).reshape(*row.shape, channels)


@lru_cache(maxsize=4)
def _in_order(many: int, each: int) -> Tensor:
    """Rows (many, each) of a table that is read from the first to the last."""
    return torch.arange(many * each).reshape(many, each)


def _blend(weight: Tensor, values: Tensor) -> Tensor:
    """Sum (n, c) of values (n, k, c) times their weights (n, k, 1)."""
    if values.shape[-1] == 1:  # a matrix product of vectors is slow on a GPU
        return (weight * values).sum(1)
    return torch.bmm(weight.transpose(1, 2), values)[:, 0]


def _read_at(tables: Sequence[Tensor], row: Tensor, weight: Tensor) -> Tensor:
    """Values (g * n, c) of what the tables hold at rows (g * n, k), times weights (g * n, k)."""
    table = tables[0]
    alike = table.dtype == weight.dtype and table.device.type == "cpu"
    if alike and len(tables) == 1:  # no other memory is kept than the result
        return F.embedding_bag(row, table, mode="sum", per_sample_weights=weight)
    return _blend(weight[..., None], _gather(tables, row, weight.dtype))


def _read(table: Tensor, position: Tensor, size: tuple[int, ...], degree: int, scale: float) -> Tensor:
    """Values (n, c) of one table at positions (n, d)."""
    row, weight = _around(position, size, degree, scale)
    if table.device.type == "cpu" and table.dtype != weight.dtype:  # sums of rows are eight times as fast as products
        table, row = _gather([table], row, weight.dtype).flatten(0, 1), _in_order(*row.shape)
    return _read_at([table], row, weight)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, position: Tensor, size: tuple[int, ...], degree: int, scale: float, *tables: Tensor) -> Tensor:
        flat, values = position.reshape(-1, position.shape[-1]), None
        if ctx.needs_input_grad[0]:
            row, weight = _around_with_slopes(flat, size, degree, scale)
            values = _gather(tables, row, position.dtype)
            found = _blend(weight[..., :1], values)
        else:
            row, weight = _around(flat, size, degree, scale)
            found, weight = _read_at(tables, row, weight), weight[..., None]
        ctx.size, ctx.degree, ctx.scale = size, degree, scale
        ctx.save_for_backward(position, values, row, weight, *tables)
        return found.reshape(*position.shape[:-1], tables[0].shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor):
        position, values, row, weight, *tables = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return _differentiable(ctx, grad, position, tables)
        flat = grad.reshape(-1, 1, grad.shape[-1])
        on_position = None
        if values is not None:
            of_nodes = torch.bmm(values, flat.transpose(1, 2))  # (g * n, k, 1)
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
    row, weight = _around(position.reshape(-1, position.shape[-1]), ctx.size, ctx.degree, ctx.scale)
    values = _blend(weight[..., None], _gather(tables, row, position.dtype))
    inputs = {0: position, **{4 + k: table for k, table in enumerate(tables)}}
    wanted = [i for i in inputs if ctx.needs_input_grad[i]]
    outputs = values.reshape(grad.shape)
    found = torch.autograd.grad(outputs, [inputs[i] for i in wanted], grad, create_graph=True)
    by_input = dict(zip(wanted, found, strict=True))
    return tuple(by_input.get(i) for i in range(4 + len(tables)))
