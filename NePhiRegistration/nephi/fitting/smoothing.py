"""How far a result is smoothed: as far as the images agree as well with it, by a measure that was not optimised."""

from __future__ import annotations

import torch

from ..images.image_pair import ImagePair
from ..maps.consensus import Consensus
from ..settings import Features
from .similarity import LNCC

_PARTS = (0.4, 0.5, 0.6, 0.75, 0.9)  # of the distance between the nodes
_SPACING_MM, _SIDE = 1.5, 5  # of the blocks that are compared
_BLOCKS = 600
_WORSE = 0.0075  # of what keeps the blocks from agreeing wholly, that a smoother map may add
_SEED = 16


@torch.no_grad()
def smoothed(pair: ImagePair, consensus: Consensus, nodes_cube: float, most: float, device: torch.device) -> Consensus:
    """The consensus, or the smoothest of some smoothed ones that fits the images nearly as well.

    ``nodes_cube``: distance between the nodes of the fields' code; ``most``: the part of it over which it may be
    smoothed. The images are compared by their correlation in blocks around random points of the fixed mask.
    """
    parts = [part for part in _PARTS if part <= most]
    if not parts:
        return consensus
    similarity = LNCC()
    fixed, moving = pair.volumes(Features(_SPACING_MM, 1), similarity.prepare, device, drawn=(True, False))
    generator, d = torch.Generator(device).manual_seed(_SEED), len(fixed.lower)
    side = torch.arange(_SIDE) - _SIDE // 2
    offsets = torch.stack(torch.meshgrid(*[side] * d, indexing="ij"), -1).reshape(-1, d).to(device)
    points, index = fixed.draw(_BLOCKS, generator)
    blocks = (points[:, None] + offsets * fixed.spacing).reshape(-1, d)
    reference = fixed.at_voxels(index, offsets)
    plain = consensus.held
    seen = moving.inside(blocks + plain(blocks)) * fixed.counts(blocks)  # of blocks whose values all count
    seen = seen.reshape(_BLOCKS, -1).amin(1, keepdim=True)

    def unlike(map_: Consensus | None) -> float:
        there = blocks + plain(blocks) if map_ is None else map_.forward(blocks)
        return float(similarity.compare(moving.at(there).reshape(_BLOCKS, -1), reference, seen))

    limit, best = (1 + _WORSE) * unlike(None), consensus
    while parts:  # halved each time: what is smoothed farther fits worse
        middle = len(parts) // 2
        smoother = consensus.smoothed(parts[middle] * nodes_cube)
        if unlike(smoother) > limit:
            parts = parts[:middle]
        else:
            best, parts = smoother, parts[middle + 1 :]
    return best
