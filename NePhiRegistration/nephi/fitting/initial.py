"""Initial maps: a given transform, as its affine part and the rest, and the motion of landmarks."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..errors import NephiError
from ..images.image_pair import ImagePair
from ..maps.code import FORWARD, INVERSE, nodes
from ..maps.held import held
from ..maps.maps import Map
from ..maps.sampled import interpolate
from ..space.affine import Affine
from ..space.grid import Grid
from .guidance import Guidance, PointMaps

_SPACING_MM = 4.0  # between the nodes that represent the transform
_POINTS = 20_000  # for fitting the affine part and checking the inverse
_REACH_MM = 80.0  # standard deviation of the distance over which landmarks inform about the motion
_MOTION_MM, _SINGLE_MM = 40.0, 5.0  # standard deviations of the motion, and of the independent motion of single points
_LANDMARKS = 1000  # used at most
_GOOD_MM, _POOR_MM = 0.01, 0.5  # mean error of the inverse: the aim, and the largest that is accepted


def affine_part(initial: sitk.Transform | PointMaps, fixed: Grid, mask: sitk.Image | None) -> Affine:
    """The affine map nearest to the transform at the voxels of the fixed image, or of its mask.

    Raises NephiError if it can't be inverted.
    """
    points = _points_lps_mm(fixed, mask)
    moved = through(initial, points)
    if not np.isfinite(moved).all():
        raise NephiError("the initial transform maps points to NaN or infinity")
    centre = points.mean(0)
    homogeneous = np.concatenate([points - centre, np.ones((len(points), 1))], 1)
    solution, _, rank, _ = np.linalg.lstsq(homogeneous, moved, rcond=None)
    matrix = solution[:-1].T
    if rank <= fixed.dimension or not np.linalg.det(matrix) > 1e-3:
        raise NephiError("the initial transform cannot be inverted: it mirrors or flattens the image")
    return Affine(matrix, solution[-1] - matrix @ centre)


def outer_map(initial: sitk.Transform | PointMaps, pair: ImagePair, device: torch.device) -> Map:
    """The residual of the transform after the pair's alignment, as a map of its cube to be refined.

    An ITK transform is inverted numerically; beyond the fixed image its displacement at the border is used. Raises
    NephiError if the inverse is not found in the mask (without one, in the image): the transform folds.
    """
    fixed, mask, cube = Grid.of(pair.images.fixed), pair.masks.fixed, pair.cube
    affine, scale = pair.affine, pair.scale
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

        def inverse(points_cube: Tensor) -> Tensor:
            return in_cube(lambda points: maps.inverse(affine(points)), points_cube)

    def in_cube(through, points_cube: Tensor) -> Tensor:
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
                f"the initial transform cannot be inverted: its inverse misses points by {missed_mm:.2g} mm; does it "
                "fold?"
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


class MotionAround(Map):
    """The motion given by landmarks, smooth and decreasing with distance: the mean of a Gaussian process, each way.

    Motion given at the start need not be found by the guiding terms, which bend the map at each landmark while the
    images are still too far apart to determine the motion in between. Rasmussen and Williams, Gaussian Processes for
    Machine Learning, 2006, Eq. 2.25.
    """

    def __init__(self, ends_cube: Tensor, sd_mm: Tensor, mm: float, half_extents_cube: Tensor):
        """``ends_cube`` (2, n, d): points and where they end; ``sd_mm`` (n,): how exactly; ``mm``: in the cube."""
        self.ends_cube, self.sd_mm, self.mm, self._half_extents_cube = ends_cube, sd_mm, mm, half_extents_cube
        here = ends_cube.double()
        alike = torch.stack([self._alike(points, points) for points in here])
        single = (sd_mm.double().square() + _SINGLE_MM**2) / _MOTION_MM**2
        self.weights = torch.linalg.solve(alike + torch.diag(single), here.flip(0) - here)

    @classmethod
    def of(cls, guidance: Guidance, sd_mm: float, pair: ImagePair, outer: Map | None) -> MotionAround:
        """The motion by the landmarks, of the map that is composed with ``outer``; ``sd_mm``: their default deviation.

        On the CPU, as some devices have no double precision.
        """
        assert guidance.landmarks_lps_mm is not None, "landmarks are given"
        fixed, moving = guidance.landmarks_lps_mm
        given = np.full(len(fixed), sd_mm) if guidance.landmarks_sd_mm is None else guidance.landmarks_sd_mm
        some = np.linspace(0, len(fixed) - 1, min(len(fixed), _LANDMARKS)).astype(int)
        ends = pair.cube.to_cube(fixed[some]), pair.cube.to_cube(pair.affine.inverse()(moving[some]))
        half_extents = torch.tensor(pair.cube.half_extents_cube, dtype=torch.float32)
        here, there = (torch.tensor(end).to(half_extents) for end in ends)
        there = there if outer is None else outer.inverse(there.to(outer.device)).cpu()
        # lengths are those of large bodies
        deviations = torch.tensor(given[some] / pair.scale).to(half_extents)
        return cls(torch.stack([here, there]), deviations, pair.scale / pair.cube.unit_mm, half_extents)

    @property
    def half_extents_cube(self) -> Tensor:
        return self._half_extents_cube

    def _alike(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, m): correlation of the motion of points (n, d) and (m, d), at most 1."""
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / (_REACH_MM * self.mm)
        return torch.exp(-apart.square() / 2)

    def _moved(self, points_cube: Tensor, way: int) -> Tensor:
        points = points_cube.double()
        return (points + self._alike(points, self.ends_cube[way].double()) @ self.weights[way]).to(points_cube)

    def forward(self, points_cube: Tensor) -> Tensor:
        return self._moved(points_cube, FORWARD)

    def inverse(self, points_cube: Tensor) -> Tensor:
        return self._moved(points_cube, INVERSE)

    def to(self, device: torch.device | str) -> MotionAround:
        ends, sd_mm, half_extents = (x.to(device) for x in (self.ends_cube, self.sd_mm, self._half_extents_cube))
        return MotionAround(ends, sd_mm, self.mm, half_extents)
