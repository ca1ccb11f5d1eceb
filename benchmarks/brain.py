"""Two brains of different people: nephi and its peers on the same pair, each in its own process.

    python -m benchmarks.brain --out DIR [--pairs brain brain_2mm ...] [--methods nephi greedy ants]

Scores are the mean Dice of five parts (by intensity and depth, see ``tissues``), and folds at voxels of the brain.

- ``brain``, ``brain_2mm``: T1 images without skulls, aligned, voxels of 1 and 2 mm; ``brain_2mm_back``: the latter
  with the fixed and the moving image exchanged.
- ``head``, ``head_2mm``: the same within made heads (fluid, bone, fat and skin of varying thickness, noisy air).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.space.grid import Grid

from . import pairs, peers
from .appearances import depth_mm, in_head

BRAINS = [f"brain_mr/oasis_condlapirn_{name}.nii.gz" for name in "AB"]
CASES = {  # shrunk by; within a head; fixed and moving image exchanged
    "brain": (1, False, False), "brain_2mm": (2, False, False), "brain_2mm_back": (2, False, True),
    "head": (1, True, False), "head_2mm": (2, True, False),
}  # fmt: skip
METHODS = ("nephi", "greedy", "ants")
DEEP_MM = {1: 18.0, 2: 22.0}  # tissue -> from where on its deep part counts: ventricles, nuclei


def tissues(image: sitk.Image) -> sitk.Image:
    """1, 2: fluid near the surface and deep; 3, 4: grey matter likewise; 5: white matter; 0 around the brain."""
    values, depth = sitk.GetArrayFromImage(image), depth_mm(image)
    some = values[values > 0.02 * values.max()][::20]
    centres = np.percentile(some, [5, 40, 85])
    for _ in range(50):  # k-means
        nearest = np.abs(some[:, None] - centres).argmin(1)
        centres = np.array([some[nearest == k].mean() for k in range(3)])
    kind = np.abs(values[..., None] - centres).argmin(-1) + 1
    labels = np.select([kind == 3, kind == 2], [5, 3 + (depth >= DEEP_MM[2])], 1 + (depth >= DEEP_MM[1]))
    return Grid.of(image).image((labels * (depth >= 0)).astype(np.uint8))


def prepare(case: str, folder: Path, seed: int = 1) -> pairs.Prepared:
    """Write both images, their labels and prepared.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shrunk, heads, back = CASES[case]
    rng, images = np.random.default_rng(seed), []
    for role, name in zip(("fixed", "moving"), BRAINS[::-1] if back else BRAINS, strict=True):
        brain = sitk.ReadImage(str(pairs.data_folder() / name), sitk.sitkFloat32)
        labels = tissues(brain)
        images.append(sitk.BinShrink(in_head(brain, rng) if heads else brain, [shrunk] * 3))
        own = sitk.Resample(labels, images[-1], sitk.Transform(), sitk.sitkNearestNeighbor)
        sitk.WriteImage(images[-1], str(folder / f"{role}.nii.gz"))
        sitk.WriteImage(own, str(folder / f"{role}_labels.nii.gz"))
    grid, values = Grid.of(images[0]), np.concatenate([sitk.GetArrayFromImage(image).ravel() for image in images])
    window = [float(v) for v in np.percentile(values, (0.5, 99.5))]
    prepared = pairs.Prepared([1.0] * 3, [0.0] * 3, window, False, 0, 0.0, 0.0, list(grid.size), list(grid.spacing_mm))
    (folder / "prepared.json").write_text(json.dumps(asdict(prepared), indent=1))
    return prepared


if __name__ == "__main__":
    sys.exit(peers.made_pairs(__doc__, CASES, prepare, ["brain"], METHODS, ["fast", "balanced"]))
