"""Gauss-Newton refinement of both maps of a pair from the gradients of its features.

Where the maps are right to within a voxel or two, this finds the rest, to a small part of a voxel (Gauss-Newton with
the slopes of the image at rest: Lucas and Kanade 1981; Baker and Matthews 2004). All nodes are found together, so that
those with much to see in their surroundings lead the others. Nothing here is learned or differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.volume import Volume
from ..maps.code import FORWARD, INVERSE, LINEAR_CUBE, Code, nodes, points_between
from ..maps.maps import FieldMap, Map, code_like
from ..maps.voxel import VoxelFields
from ..settings import VoxelSettings
from ..space.interpolate import PointWeights

_VOXELS_PER_NODE = 4  # of the features, between the nodes of the local code: as fine as the features can show
_SHARE, _LEAST = 0.1, 50_000  # share of the voxels used, and their least number, if there are as many
_STIFFNESS = 0.2  # of the bending energy against the features' mean weight at a node
_ITERATIONS = 8  # of the solver; more have no measurable effect
_REACH = 2.0  # voxels that a node moves in a round, at most
_MEETINGS = 2  # of the last rounds, in which the two maps meet
_INVERSIONS = 2  # steps in which a point's partner under the inverse of the other map is found


@torch.no_grad()
def refined(pair: tuple[Volume, Volume], maps: Map, rounds: int) -> FieldMap:
    """The maps of a pair after some rounds, as voxel fields with nodes as fine as the features can resolve.

    In each round both maps are corrected by the features of both images; in the last rounds the two are also made
    inverse to each other half-way. The contribution of networks is transferred to the nodes: the networks also depend
    on the values of the nodes, so that points would move differently from the least-squares solution, into folds.
    """
    upper = maps.half_extents_cube
    settings = VoxelSettings(local_code=2 * len(upper))
    code = code_like(maps, settings, nodes(upper, _VOXELS_PER_NODE * pair[FORWARD].spacing))
    found = FieldMap(VoxelFields(settings, len(upper)), code)
    (fixed, moving), seen = pair, [_Seen(volume, code, settings.code_degree) for volume in pair]
    displacements = code.local_code[0].split(len(upper))  # views: they follow the code
    for left in range(rounds, 0, -1):
        forward = _correction(seen[FORWARD], moving, displacements[FORWARD])
        _move(code, forward, _correction(seen[INVERSE], fixed, displacements[INVERSE]))
        if left <= _MEETINGS:
            _move(code, _half_way(found, code), _half_way(found.inverted(), code))
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
    """Features of one image and their slopes, per voxel, at points spread over its mask, among a code's nodes.

    ``degree``: of the splines between the nodes.
    """

    def __init__(self, volume: Volume, code: Code, degree: int):
        self.voxel, self.shape = volume.spacing, code.local_code.shape[2:]
        self.points, index = volume.spread(_SHARE, _LEAST)
        last = torch.tensor(code.size, device=index.device) - 1
        position = (self.points + code.half_extents_cube) / (2 * code.half_extents_cube) * last
        self.moved_by, self.near = PointWeights(position, code.size, degree), PointWeights(position, code.size)
        d = index.shape[1]
        self.values = volume.at_voxels(index)
        step = torch.eye(d, dtype=index.dtype, device=index.device)
        ahead, behind = (volume.at_voxels(index, offsets).unflatten(1, (d, -1)) for offsets in (step, -step))
        self.slopes = ((ahead - behind) / 2).transpose(1, 2)  # (n, c, d)
        self.weight = self.slopes.transpose(1, 2) @ self.slopes

    def moved(self, displacements: Tensor) -> Tensor:
        """The points (n, d) through a map whose nodes move by ``displacements`` (d, (z,) y, x) in the cube."""
        return self.points + self.moved_by.at(displacements.flatten(1).T.contiguous())

    def at_nodes(self, values: Tensor) -> Tensor:
        """Sums (c, (z,) y, x) of values (n, c) at the points over the nodes around each, linearly."""
        return self.near.sums(values).T.reshape(-1, *self.shape)


def _correction(here: _Seen, there: Volume, local_code: Tensor) -> Tensor:
    """The displacement of the nodes that the images ask for: (d, (z,) y, x) in the cube.

    ``local_code``: the current displacement, in the layout of the code.
    """
    displacements, d = LINEAR_CUBE * local_code, len(local_code)
    mapped = here.moved(displacements)
    # a shift of the point at rest that explains the difference: the map has to go the other way
    pull = torch.einsum("ncd,nc->nd", here.slopes, here.values - there.at(mapped))
    sums = here.at_nodes(torch.cat([here.weight.flatten(1), pull], 1) * there.inside(mapped))
    voxels = _solve(sums[: d * d].unflatten(0, (d, d)), sums[d * d :], displacements / here.voxel)
    length = voxels.square().sum(0).sqrt()  # torch's norm over the first axis takes fifty times as long
    return voxels * (_REACH / length.clamp(min=_REACH)) * here.voxel


def _solve(weight: Tensor, pull: Tensor, now: Tensor) -> Tensor:
    """Change of the displacements ``now`` (d, (z,) y, x) that fits best under the bending energy of the new ones."""
    trace = torch.stack([weight[k, k] for k in range(len(weight))])
    stiffness = _STIFFNESS * trace[trace > 0].mean() if (trace > 0).any() else trace.new_ones(())

    def bent(x: Tensor) -> Tensor:
        return stiffness * _curvature(_curvature(x))

    def left(x: Tensor) -> Tensor:
        image = bent(x)
        for j, along in enumerate(x):
            image.addcmul_(weight[:, j], along)
        return image

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
    """Sum over the axes of the differences to both neighbours (c, (z,) y, x); without those beyond the border."""
    total = x * (-2 * (x.ndim - 1))
    for axis in range(1, x.ndim):
        last = x.shape[axis] - 1
        total.narrow(axis, 1, last).add_(x.narrow(axis, 0, last))
        total.narrow(axis, 0, last).add_(x.narrow(axis, 1, last))
        for border in (0, last):
            total.select(axis, border).add_(x.select(axis, border))
    return total
