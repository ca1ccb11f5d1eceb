"""Gauss-Newton refinement of both maps of a pair from the gradients of its features.

Where the maps are right to within a voxel or two, this finds the rest, to a small part of a voxel (Gauss-Newton with
the slopes of the image at rest: Lucas and Kanade 1981; Baker and Matthews 2004). All nodes are found together, so that
those with much to see in their surroundings lead the others. Nothing here is learned or differentiated.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.volume import Volume
from ..maps.code import FORWARD, INVERSE, LINEAR_CUBE, Code, nodes, points_between
from ..maps.maps import FieldMap, Map, code_like
from ..maps.voxel import VoxelFields
from ..settings import VoxelSettings

_VOXELS_PER_NODE = 4  # of the features, between the nodes of the local code: as fine as the features can show
_SHARE, _LEAST = 0.1, 50_000  # of the voxels that are looked at, and how many at least, where there are as many
_STIFFNESS = 0.2  # of the bending energy against the features' mean weight at a node
_ITERATIONS = 8  # of the solver; more change nothing that can be measured
_REACH = 2.0  # voxels that a node moves in a round, at most
_MEETINGS = 2  # of the last rounds, in which the two maps meet
_INVERSIONS = 2  # steps in which a point's partner under the inverse of the other map is found


@torch.no_grad()
def refined(pair: tuple[Volume, Volume], maps: Map, rounds: int) -> FieldMap:
    """The maps of a pair after some rounds, as voxel fields whose nodes are as fine as the features can show.

    In each round, both maps are corrected by what either image shows; in the last ones they then meet half way to
    being each other's inverse. What networks add to the maps is taken over at the nodes: they would answer to the
    nodes' values, too, so that points moved otherwise than least squares takes them to, into folds.
    """
    upper = maps.half_extents_cube
    settings = VoxelSettings(local_code=2 * len(upper))
    code = code_like(maps, settings, nodes(upper, _VOXELS_PER_NODE * pair[FORWARD].spacing))
    found = FieldMap(VoxelFields(settings, len(upper)), code)
    (fixed, moving), seen, back = pair, [_Seen(volume) for volume in pair], found.inverted()
    displacements = code.local_code[0].split(len(upper))  # views: they follow the code
    for left in range(rounds, 0, -1):
        forward = _correction(seen[FORWARD], moving, found, code, displacements[FORWARD])
        _move(code, forward, _correction(seen[INVERSE], fixed, back, code, displacements[INVERSE]))
        if left <= _MEETINGS:
            _move(code, _half_way(found, code), _half_way(back, code))
    return found


def _move(code: Code, forward: Tensor, inverse: Tensor) -> None:
    """Move its nodes in both maps by displacements (d, (z,) y, x) in the cube."""
    code.local_code += torch.cat([forward, inverse]) / LINEAR_CUBE


def _half_way(maps: Map, code: Code) -> Tensor:
    """Half the inverse-consistency error of the forward map at each node, so that both maps meet halfway."""
    x = points_between(code.half_extents_cube, code.size)
    mapped = maps.forward(x)
    apart = maps.inverted().solve(x, _INVERSIONS, near=mapped) - mapped
    return (apart / 2).T.reshape(-1, *reversed(code.size))


class _Seen:
    """Features of one image and their slopes, per voxel, at points spread over its mask."""

    def __init__(self, volume: Volume):
        self.voxel = volume.spacing
        self.points, index = volume.spread(_SHARE, _LEAST)
        d = index.shape[1]
        self.values = volume.at_voxels(index)
        step = torch.eye(d, dtype=index.dtype, device=index.device)
        ahead, behind = (volume.at_voxels(index, offsets).unflatten(1, (d, -1)) for offsets in (step, -step))
        self.slopes = ((ahead - behind) / 2).transpose(1, 2)  # (n, c, d)
        self.weight = self.slopes.transpose(1, 2) @ self.slopes


def _correction(here: _Seen, there: Volume, maps: Map, code: Code, displacements: Tensor) -> Tensor:
    """How the forward map should move at the nodes, as far as the images show: (d, (z,) y, x) in the cube.

    ``displacements``: those of the map at the code's nodes at present, as the code holds them.
    """
    d = len(code.half_extents_cube)
    mapped = maps.forward(here.points)
    # a shift of the point at rest that explains the difference: the map has to go the other way
    pull = torch.einsum("ncd,nc->nd", here.slopes, here.values - there.at(mapped))
    equations = torch.cat([here.weight.flatten(1), pull], 1) * there.inside(mapped)
    sums = _to_nodes(equations, (here.points + code.half_extents_cube) / (2 * code.half_extents_cube), code.size)
    now = LINEAR_CUBE / here.voxel * displacements
    voxels = _solve(sums[: d * d].unflatten(0, (d, d)), sums[d * d :], now)
    return voxels * (_REACH / voxels.norm(dim=0).clamp(min=_REACH)) * here.voxel


def _to_nodes(values: Tensor, position: Tensor, size: tuple[int, ...]) -> Tensor:
    """Sums of values (n, c) at positions (n, d), 0 to 1, over the nodes around each, linearly: (c, (z,) y, x)."""
    last = torch.tensor(size, device=values.device) - 1
    position = position * last
    first = torch.minimum(position.floor().clamp(min=0), last - 1)
    part, first = position - first, first.long()
    sums = values.new_zeros(math.prod(size), values.shape[1])
    for corner in product((0, 1), repeat=len(size)):
        sides = [part[:, axis] if ahead else 1 - part[:, axis] for axis, ahead in enumerate(corner)]
        share = torch.stack(sides, 1).prod(1, keepdim=True)
        flat = first[:, -1] + corner[-1]
        for axis in range(len(size) - 2, -1, -1):
            flat = flat * size[axis] + first[:, axis] + corner[axis]
        sums.index_add_(0, flat, values * share)
    return sums.T.reshape(-1, *reversed(size))


def _solve(weight: Tensor, pull: Tensor, now: Tensor) -> Tensor:
    """Change of the displacements ``now`` (d, (z,) y, x) that fits best under the bending energy of the new ones."""
    trace = torch.stack([weight[k, k] for k in range(len(weight))])
    stiffness = _STIFFNESS * trace[trace > 0].mean() if (trace > 0).any() else trace.new_ones(())

    def bent(x: Tensor) -> Tensor:
        return stiffness * _curvature(_curvature(x))

    def left(x: Tensor) -> Tensor:
        return torch.einsum("ij...,j...->i...", weight, x) + bent(x)

    # conjugate gradients, preconditioned by the diagonal
    diagonal = trace + stiffness * (2 * len(weight) * (2 * len(weight) + 1))
    x, residual = torch.zeros_like(pull), pull - bent(now)
    z = residual / diagonal
    direction, size = z, (residual * z).sum()
    for _ in range(_ITERATIONS):
        image = left(direction)
        step = size / (direction * image).sum().clamp(min=1e-12)
        x, residual = x + step * direction, residual - step * image
        z = residual / diagonal
        before, size = size, (residual * z).sum()
        direction = z + size / before.clamp(min=1e-12) * direction
    return x


def _curvature(x: Tensor) -> Tensor:
    """Sum over the axes of the differences to both neighbours (c, (z,) y, x); nothing beyond the border."""
    total = torch.zeros_like(x)
    for axis in range(1, x.ndim):
        slope = F.pad(x.diff(dim=axis), [0, 0] * (x.ndim - 1 - axis) + [1, 1])
        total += slope.diff(dim=axis)
    return total
