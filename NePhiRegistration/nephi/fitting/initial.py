"""A transform to start from: its affine part, which aligns the images, and the rest, which is refined upon."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import NephiError
from ..maps.code import nodes
from ..maps.held import held
from ..maps.maps import Map
from ..maps.sampled import interpolate
from ..space.affine import Affine
from ..space.cube import Cube
from ..space.grid import Grid
from .guidance import PointMaps

_SPACING_MM = 4.0  # between the nodes at which the transform is held
_POINTS = 20_000  # that the affine part is fitted to, and the inverse is looked at
_GOOD_MM, _POOR_MM = 0.01, 0.5  # of the inverse: what is tried for, and what is not accepted, on average


def affine_part(initial: sitk.Transform | PointMaps, fixed: Grid, mask: sitk.Image | None) -> Affine:
    """The affine map nearest to the transform at the voxels of the fixed image, or of its mask.

    Raises NephiError where it is none that can be inverted.
    """
    points = _points_lps_mm(fixed, mask)
    moved = through(initial, points)
    if not np.isfinite(moved).all():
        raise NephiError("the initial transform leads to places that are NaN or infinite")
    centre = points.mean(0)
    homogeneous = np.concatenate([points - centre, np.ones((len(points), 1))], 1)
    solution, _, rank, _ = np.linalg.lstsq(homogeneous, moved, rcond=None)
    matrix = solution[:-1].T
    if rank <= fixed.dimension or not np.linalg.det(matrix) > 1e-3:
        raise NephiError("the initial transform cannot be inverted: it mirrors or flattens the image")
    return Affine(matrix, solution[-1] - matrix @ centre)


def outer_map(
    initial: sitk.Transform | PointMaps,
    affine: Affine,
    fixed: Grid,
    mask: sitk.Image | None,
    cube: Cube,
    scale: float,
    device: torch.device,
) -> Map:
    """What is left of the transform when the affine part is taken away, as a map of the cube to be refined upon.

    An ITK transform is inverted numerically; beyond the fixed image its displacement at the border is used. Raises
    NephiError where the inverse is not found in the mask, or in the image without one: the transform folds.
    """
    spacing_mm, back = _SPACING_MM * scale, affine.inverse()
    inverse = None
    if isinstance(initial, sitk.Transform):
        grid = fixed.coarsened(spacing_mm)
        rest = back(_displaced(initial, grid)) - grid.points_lps_mm()

        def forward_lps_mm(points: np.ndarray) -> np.ndarray:
            return points + interpolate(rest, grid, points)

    else:
        maps = initial

        def forward_lps_mm(points: np.ndarray) -> np.ndarray:
            return back(maps.forward(points))

        def inverse(points_cube: torch.Tensor) -> torch.Tensor:
            return in_cube(lambda points: maps.inverse(affine(points)), points_cube)

    def in_cube(through, points_cube: torch.Tensor) -> torch.Tensor:
        points = cube.to_lps_mm(points_cube.double().numpy())
        return torch.from_numpy(cube.to_cube(through(points))).float()

    half_extents = torch.tensor(cube.half_extents_cube, dtype=torch.float32)
    size = nodes(cube.half_sides_mm, spacing_mm)
    good = _GOOD_MM * scale / cube.unit_mm
    found = held(lambda points: in_cube(forward_lps_mm, points), inverse, half_extents, size, good)
    if inverse is None:
        points = torch.tensor(cube.to_cube(_points_lps_mm(fixed, mask)), dtype=torch.float32)
        missed_mm = float((found.inverse(found.forward(points)) - points).norm(dim=-1).mean()) * cube.unit_mm
        if not missed_mm <= _POOR_MM * scale:
            raise NephiError(
                f"the initial transform cannot be inverted: points come back {missed_mm:.2g} mm away; does it fold?"
            )
    return found.to(device)


def _points_lps_mm(fixed: Grid, mask: sitk.Image | None) -> np.ndarray:
    """Points (n, d) spread over the fixed image, or over its mask."""
    if mask is None:
        coarse = fixed.coarsened(fixed.longest_side_mm / _POINTS ** (1 / fixed.dimension))
        return coarse.slab_lps_mm(0, coarse.shape[0])
    inside = np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1]
    return fixed.to_lps_mm(inside[np.linspace(0, len(inside) - 1, min(_POINTS, len(inside))).astype(int)])


def through(initial: sitk.Transform | PointMaps, points_lps_mm: np.ndarray) -> np.ndarray:
    """Where the transform takes points (n, d)."""
    if isinstance(initial, sitk.Transform):
        return np.array([initial.TransformPoint(point) for point in points_lps_mm.tolist()])
    return initial.forward(points_lps_mm)


def _displaced(transform: sitk.Transform, grid: Grid) -> np.ndarray:
    """(z, y, x, d) points in LPS mm: where the transform takes the voxels of a grid."""
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.size, grid.origin_lps_mm, grid.spacing_mm, grid.direction
    )
    return grid.points_lps_mm() + sitk.GetArrayFromImage(field)
