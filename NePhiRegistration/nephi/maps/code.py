"""The latent code of a pair: a global vector and a grid of local codes between whose nodes is interpolated.

Points in here live in the registration cube (see ``space.cube``), one row a point, x first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..settings import FieldSettings
from ..space.interpolate import constant, interpolate

FORWARD, INVERSE = 0, 1  # index of the two maps
LINEAR_CUBE = 0.06  # displacement for a local code of 1, where there is a linear term


class Code:
    """Latent codes of a batch of pairs: a global vector and a local grid that covers the cube (paper, Eq. 4).

    ``global_code`` (b, g); ``local_code`` (b, l, (z,) y, x): nodes between minus and plus ``half_extents_cube`` (d,),
    interpolated by B-splines; beyond the border the value of the border is used.
    """

    def __init__(self, global_code: Tensor, local_code: Tensor, half_extents_cube: Tensor):
        self.global_code, self.local_code, self.half_extents_cube = global_code, local_code, half_extents_cube

    @property
    def batch(self) -> int:
        return len(self.global_code)

    @property
    def size(self) -> tuple[int, ...]:
        """Nodes along x, y (, z)."""
        return tuple(reversed(self.local_code.shape[2:]))

    def to(self, device) -> Code:
        return Code(*(t.to(device) for t in (self.global_code, self.local_code, self.half_extents_cube)))

    def at(self, points_cube: Tensor, degree: int = 1) -> Tensor:
        """Local code at points (2, b * n, d), pair after pair -> (2, b * n, l), by B-splines of degree 1 or 2."""
        return self.bound(degree)(points_cube / self.half_extents_cube)

    def bound(self, degree: int) -> Callable[[Tensor], Tensor]:
        """``at`` for several calls while the code stays the same, of points in units of ``half_extents_cube``."""
        # one row a node, in one piece: reading rows of a transposed table takes fifteen times as long
        table = self.local_code.movedim(1, -1).flatten(1, -2).contiguous()
        tables = [table.squeeze(0)] if self.batch == 1 else table.unbind()
        channels = table.shape[-1]
        half = constant([(n - 1) / 2 for n in self.size], table.device, table.dtype)

        def at(points: Tensor) -> Tensor:
            two, many, d = points.shape
            position = torch.addcmul(half, points, half)
            if len(tables) == 1:
                return interpolate(tables, position.reshape(1, -1, d), self.size, degree).reshape(two, many, channels)
            # a group for each pair
            by_pair = position.reshape(two, len(tables), -1, d).transpose(0, 1).flatten(1, 2)
            found = interpolate(tables, by_pair, self.size, degree).unflatten(1, (two, -1)).transpose(0, 1)
            return found.reshape(two, many, channels)

        return at

    def resampled(self, size: Sequence[int], degree: int = 1) -> Tensor:
        """The local code on another number of nodes along x, y (, z)."""
        nodes = points_between(self.half_extents_cube, size)[None].repeat(1, self.batch, 1)
        values = self.at(nodes, degree).reshape(self.batch, *reversed(size), -1)
        return values.movedim(-1, 1).contiguous()

    def prior(self) -> Tensor:
        """Mean norm of the global code plus mean norm over the grid (paper, Eq. 5)."""
        tiny = 1e-12  # a zero code has no gradient of its norm
        of_global, of_local = ((t.square().sum(1) + tiny).sqrt().mean() for t in (self.global_code, self.local_code))
        return of_global + of_local


class HybridCode(nn.Module, Code):
    """The code of one pair as parameters, at first those of ``start``."""

    global_code: nn.Parameter
    local_code: nn.Parameter

    def __init__(self, start: Code):
        nn.Module.__init__(self)
        self.register_buffer("half_extents_cube", start.half_extents_cube.clone(), persistent=False)
        self.global_code = nn.Parameter(start.global_code.detach().clone())
        self.local_code = _parameter(start.local_code)

    def refine(self, size: Sequence[int], degree: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Put the local code on other nodes; returns the old parameter and the new one."""
        old = self.local_code
        self.local_code = _parameter(self.resampled(size, degree))
        return old, self.local_code


def _parameter(local_code: Tensor) -> nn.Parameter:
    """Stored node by node, as it is read."""
    layout = torch.channels_last if local_code.ndim == 4 else torch.channels_last_3d
    return nn.Parameter(local_code.detach().clone().contiguous(memory_format=layout))


def nodes(half_sides: Iterable[float], spacing: float) -> tuple[int, ...]:
    """Nodes of the local code along x, y (, z), at most ``spacing`` apart; both in the cube's unit, or in mm."""
    return tuple(math.ceil(2 * float(half) / spacing) + 1 for half in half_sides)


def zero_code(settings: FieldSettings, half_extents_cube: Tensor, size: tuple[int, ...], batch: int = 1) -> Code:
    """All zeros: the initial code."""
    local = half_extents_cube.new_zeros(batch, settings.local_code, *reversed(size))
    return Code(half_extents_cube.new_zeros(batch, settings.global_code), local, half_extents_cube)


def points_between(half_extents_cube: Tensor, size: Sequence[int]) -> Tensor:
    """(n, d) points_cube, ``size`` of them evenly spaced along each axis of the cube, border included, x fastest."""
    device = half_extents_cube.device
    axes = [torch.linspace(-h, h, n, device=device) for h, n in zip(half_extents_cube.tolist(), size, strict=True)]
    mesh = torch.meshgrid(*reversed(axes), indexing="ij")
    return torch.stack(list(reversed(mesh)), -1).reshape(-1, len(axes))


def position_between(points_cube: Tensor, half_extents_cube: Tensor, size: Sequence[int]) -> Tensor:
    """The position of points (n, d) in units of the nodes; the first node is 0 along each axis."""
    half = constant([(n - 1) / 2 for n in size], points_cube.device, points_cube.dtype)
    return torch.addcmul(half, points_cube / half_extents_cube, half)


def steps_between(half_extents_cube: Tensor, size: Sequence[int]) -> Tensor:
    """(d,) from one such node to the next, in the cube."""
    return 2 * half_extents_cube / (torch.tensor(size, device=half_extents_cube.device) - 1)
