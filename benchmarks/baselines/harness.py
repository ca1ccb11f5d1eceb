"""What the baselines share: a prepared pair in the registration cube, the optimisation, the maps that are written.

A baseline is a module ("maps") that takes points_cube (k, n, 3) -> (k, n, 3): entry 0 from the fixed to the moving
image and, where it has an inverse, entry 1 back. As a ``Map`` the core's objective and result
take it in the place of its own; there is no latent code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nephi.both import ROLES, Both
from nephi.files.image import read_image
from nephi.files.masks import read_mask
from nephi.fitting.fit import Adam, fit
from nephi.fitting.similarity import make_similarity
from nephi.images.align import Alignment
from nephi.images.image_pair import ImagePair
from nephi.images.volume import Volume
from nephi.maps.maps import Map
from nephi.result import Registration
from nephi.settings import Features, FitSettings, Settings, SimilaritySettings
from nephi.space.affine import Affine
from nephi.space.cube import Cube
from nephi.space.grid import Grid
from torch import Tensor, nn

COARSE, FINE = Features(2.0, 2), Features(1.25, 1, 0.5)  # the features of the preset "balanced"


class OneWay(Map, nn.Module):
    """A map from the fixed to the moving image only; a subclass has ``displacement`` (n, 3) -> (n, 3), in the cube.

    Called, it takes points (..., 3) through that one map.
    """

    to, __call__ = nn.Module.to, nn.Module.__call__

    @property
    def half_extents_cube(self) -> Tensor:
        return torch.ones(3)

    def forward(self, points_cube: Tensor) -> Tensor:
        flat = points_cube.reshape(-1, points_cube.shape[-1])
        return points_cube + self.displacement(flat).reshape(points_cube.shape)

    def inverse(self, points_cube: Tensor) -> Tensor:
        raise ValueError("this map has no inverse")


def read_pair(prepared: Path, similarity: SimilaritySettings, cube_margin_mm: float | None = None) -> ImagePair:
    """The prepared files of a pair (``pairs.prepare``), which are aligned already."""
    images = ROLES.map(lambda role: read_image(prepared / f"{role}.nii.gz", f"{role} image"))
    masks, paths = Both(None, None), ROLES.map(lambda role: prepared / f"{role}_mask.nii.gz")
    if all(path.exists() for path in paths):
        masks = paths.map(lambda path, image, role: read_mask(path, image, f"{role} mask"), images, ROLES)
    return ImagePair.of(images, masks, Affine.identity(3), similarity, cube_margin_mm=cube_margin_mm)


def half_extents_cube(pair: ImagePair) -> Tensor:
    return torch.tensor(pair.cube.half_extents_cube, dtype=torch.float32)


def lattice_shape(cube: Cube, spacing_mm: float) -> tuple[int, ...]:
    """Nodes along z, y, x that cover the cube, at most this far apart."""
    return tuple(int(np.ceil(2 * half / spacing_mm - 1e-6)) + 1 for half in reversed(cube.half_sides_mm))


def forward_similarity(
    maps: OneWay, volumes: Sequence[Volume], settings: SimilaritySettings, generator: torch.Generator
) -> Tensor:
    """The similarity term of nephi in one direction: random points of the fixed mask, compared where they land."""
    (fixed, moving), kind = volumes, make_similarity(settings)
    points, index = fixed.draw(settings.points.count(fixed.voxels), generator)
    moved, offsets = maps(points), kind.offsets(points.shape[-1])
    weight = moving.inside(moved.detach())
    return kind.compare(moving.at(moved, offsets), fixed.at_voxels(index, offsets), weight)


@dataclass(frozen=True)
class Level:
    """A part of the optimisation: the lattice's spacing, the features compared, steps, and the learning rate."""

    spacing_mm: float
    features: Features
    iterations: int
    learning_rate: float


def optimise(
    maps: nn.Module,
    pair: ImagePair,
    levels: Sequence[Level],
    objective: Callable[[Level, Sequence[Volume]], tuple[Tensor, dict[str, Tensor]]],
    quick: bool = False,
) -> None:
    """Minimise ``objective(level, volumes)`` level by level; ``maps.refine(spacing_mm)`` opens a level."""
    features = volumes = None
    for level in levels:
        maps.refine(level.spacing_mm)
        if level.features != features:
            features, volumes = (
                level.features,
                pair.volumes(level.features, make_similarity(pair.similarity).prepare, "cpu"),
            )
        iterations = 5 if quick else level.iterations
        adam = Adam(maps.parameters(), FitSettings(iterations=iterations, learning_rate=level.learning_rate))
        fit(lambda _, level=level, volumes=volumes: objective(level, volumes), adam)


def write_maps(maps: nn.Module, pair: ImagePair, out: Path, inverse: bool) -> None:
    """displacement.mha and, where there is one, inverse_displacement.mha: LPS mm, on the pair's common grid."""
    maps.eval().requires_grad_(False)
    grid, alignment = Grid.of(pair.images[0]), Alignment(pair.affine, "given")
    result = Registration(maps, pair.cube, alignment, grid, Grid.of(pair.images[1]), Settings())
    for back in (False, True) if inverse else (False,):
        image = grid.image(result.displacement(grid, back), vector=True)
        sitk.WriteImage(image, str(out / f"{'inverse_' if back else ''}displacement.mha"))
