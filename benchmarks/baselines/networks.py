"""What the learned baselines share: what they see of a pair, their training pairs, weights in a file, a prediction.

A learned baseline is a module with ``loss(moving, fixed, done)`` for one training step (``done``: part of the training
behind it) and ``displacement(moving, fixed)`` -> (k, 3, z, y, x), x first, in halves of the cube's sides; entry 0 from
the fixed to the moving image and, where the network is trained for one, entry 1 back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from nephi.files.tensors import read_tensors
from nephi.learning.dataset import Pairs
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.settings import ModelSettings
from nephi.settings import PRESETS
from torch import Tensor, nn

from ..voxel_maps import VoxelMaps
from .harness import half_extents_cube, read_pair, write_maps

# the paper's images: -1000..0 HU, the lungs only, in a cube around both lungs
SEEN = ModelSettings(features=PRESETS["paper"].levels[0].features, similarity=PRESETS["paper"].similarity)


def images(sample: PairTensors, size: int) -> tuple[Tensor, Tensor]:
    """The moving and the fixed image of a pair, (1, 1, size, size, size) each."""
    fixed, moving = sample.images(size)[:, None, None]
    return moving, fixed


def training_images(data: str | Path, size: int, cache: Path) -> list[tuple[Tensor, Tensor]]:
    """Moving and fixed images of a list of pairs, as ``nephi breathe`` writes it; aligned as by nephi."""
    pairs = Pairs(data, SEEN, cache)
    return [images(pairs[k], size) for k in range(len(pairs))]


def save(network: nn.Module, path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, str(path), {"size": str(size)})


def load(build: Callable[[int], nn.Module], path: Path) -> tuple[nn.Module, int]:
    """The trained network and the voxels per side that it sees."""
    if not path.is_file():
        raise SystemExit(f"no trained network {path}: run train_baselines.py {path.stem}, or give --networks")
    metadata, tensors = read_tensors(path, "a trained network")
    network = build(int(metadata["size"]))
    network.load_state_dict(tensors)
    return network.eval(), int(metadata["size"])


def predict(
    build: Callable[[int], nn.Module],
    name: str,
    job,
    improve: Callable[[nn.Module, Tensor, Tensor], None] = lambda network, moving, fixed: None,
) -> None:
    """One pass of a trained network over a pair, after ``improve``, which may optimise its weights for the pair."""
    pair = read_pair(job.prepared, SEEN.similarity, SEEN.cube_margin_mm)
    if pair.masks[0] is None:
        raise SystemExit(f"{name} was trained on lungs: the pair needs masks")
    network, size = load(build, Path(job.networks or "networks") / f"{name}.safetensors")
    moving, fixed = images(PairTensors.of(pair, SEEN.features), size)
    improve(network, moving, fixed)
    with torch.no_grad():
        displacement = network.displacement(moving, fixed)
    upper = half_extents_cube(pair)
    maps = VoxelMaps(displacement.shape[2:], upper)
    maps.displacement = nn.Parameter(displacement * upper[:, None, None, None])
    write_maps(maps, pair, job.out, inverse=len(displacement) == 2)
