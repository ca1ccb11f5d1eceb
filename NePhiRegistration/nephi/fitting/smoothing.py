"""Smoothing of the result, as far as the agreement of the images allows, by a measure that was not optimised."""

from __future__ import annotations

from functools import cache

import torch

from ..images.image_pair import ImagePair
from ..maps.consensus import Consensus
from ..maps.jacobian import finite_jacobian
from ..settings import Features
from .similarity import LNCC

_PARTS = (0.4, 0.5, 0.6, 0.75, 0.9)  # of the distance between the nodes
_SPACING_MM, _SIDE = 1.5, 5  # of the blocks that are compared
_BLOCKS = 600
_WORSE = 0.0075  # largest increase of the disagreement of the blocks by a smoother map, relative to it
_SEED = 16
_APART = 0.75  # of the nodes' distance: where the determinant is compared with itself
_STEP = 0.125  # of the nodes' distance, over which the determinant is taken
_CALMER = 0.98  # largest remainder of bands after smoothing along an axis, otherwise it has no effect on them


@torch.no_grad()
def smoothed(pair: ImagePair, consensus: Consensus, nodes_cube: float, most: float, device: torch.device) -> Consensus:
    """The consensus, or the smoothest of some smoothed ones that fits the images nearly as well.

    ``nodes_cube``: distance between the nodes of the fields' code; ``most``: the part of it over which it may be
    smoothed. The images are compared by their correlation in blocks around random points of the fixed mask.

    It is smoothed along all axes alike, as far as that goes, then further along single axes, first along that which
    calms the Jacobian determinant most for what it costs: across thick slices the images tell less of the map.
    """
    parts = [0.0, *(part for part in _PARTS if part <= most)]
    if len(parts) == 1:
        return consensus
    similarity = LNCC()
    fixed, moving = pair.volumes(Features(_SPACING_MM, 1), similarity.prepare, device, drawn=(True, False))
    generator, d = torch.Generator(device).manual_seed(_SEED), len(fixed.lower)
    side = torch.arange(_SIDE) - _SIDE // 2
    offsets = torch.stack(torch.meshgrid(*[side] * d, indexing="ij"), -1).reshape(-1, d).to(device)
    points, index = fixed.draw(_BLOCKS, generator)
    blocks = (points[:, None] + offsets * fixed.spacing).reshape(-1, d)
    reference = fixed.at_voxels(index, offsets)
    weights = consensus.shift.weights(blocks)
    seen = moving.inside(blocks + consensus.shift.at(weights)) * fixed.counts(blocks)  # where all of a block counts
    seen = seen.reshape(_BLOCKS, -1).amin(1, keepdim=True)

    def unlike(map_: Consensus) -> float:
        there = blocks + map_.shift.at(weights)
        return float(similarity.compare(moving.at(there).reshape(_BLOCKS, -1), reference, seen))

    step = _STEP * nodes_cube
    eye = torch.eye(d, device=device)
    nearby = torch.cat([torch.zeros(1, d, device=device), *(way * nodes_cube * _APART * eye for way in (-1, 1))])
    stencil = torch.cat([torch.zeros(1, d, device=device), step * eye])
    around = points[:, None, None] + nearby[:, None] + stencil

    @cache
    def bands(map_: Consensus) -> float:
        """Variation of the determinant over distances as short as between two nodes, along all axes together."""
        values = map_.forward(around.reshape(-1, d)).reshape(around.shape)
        centre, before, after = finite_jacobian(values, step).det().split([1, d, d], 1)
        return float((before + after - 2 * centre).square().mean())

    best, chosen, now = consensus, [0] * d, unlike(consensus)
    limit = (1 + _WORSE) * now

    def tried(steps: list[int]) -> tuple[Consensus, float]:
        smoother = consensus.smoothed([parts[each] * nodes_cube for each in steps])
        return smoother, unlike(smoother)

    left, right = 1, len(parts)
    while left < right:  # by bisection: more smoothing fits worse
        middle = (left + right) // 2
        smoother, worse = tried([middle] * d)
        if worse > limit:
            right = middle
        else:
            best, chosen, now, left = smoother, [middle] * d, worse, middle + 1
    axes = set(range(d))  # along which it may be smoothed further
    while axes := {axis for axis in axes if chosen[axis] + 1 < len(parts)}:
        gains = []
        for axis in sorted(axes):
            steps = [part + (axis == other) for other, part in enumerate(chosen)]
            smoother, worse = tried(steps)
            if worse > limit:
                axes.remove(axis)  # nor does it go when the others are smoothed further
            else:
                calm = bands(smoother) / max(bands(best), 1e-12)
                if calm > _CALMER:
                    axes.remove(axis)
                else:
                    gains.append(((1 - calm) / max(worse - now, 1e-6 * limit), axis, smoother, steps, worse))
        if gains:
            *_, best, chosen, now = max(gains, key=lambda one: one[:2])
    return best
