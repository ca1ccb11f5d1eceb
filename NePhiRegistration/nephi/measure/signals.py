"""Signals that indicate the error of a registration without ground truth, measured at points of the fixed mask.

The images are compared by block matching with normalised correlation, which the registration did not optimise, at
points of its own, at two scales: a fine one for what is nearly right and a coarse one, whose blocks move by up to about
20 mm, for what is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch

from ..both import Both
from ..errors import NephiError
from ..images.blocks import block_means, seen_box
from ..images.hounsfield import CT_WINDOW, HU, Units, hu_units, shown_range, unseen_values
from ..images.masks import drawn, inside, region_lps_mm
from ..images.warp import linear_through
from ..settings import BODY_MM
from ..space.grid import Grid
from .blockmatch import match
from .quality import PointMap

_POINTS, _COARSE_POINTS = 2000, 500
_SEED = 1616  # of the points
_HALF = 3  # of a block, in voxels of its scale
_FINE_MM, _COARSER = 1.5, 8 / 3  # spacing of the fine scale, at least, and of the coarse one in units of it
_VOXELS = 0.8  # of the coarser image: no block is compared on a finer grid
_REACH = 3, 5  # voxels: of the fine and of the coarse scale
_STEP_MM = 2.0  # of the difference quotients of the map
_AIRY_HU, _LUNG = -500.0, 0.3  # in lung masks 0.6 or more is below this, also in exhalation
_LEVELS = 64  # of an image's values, with equal numbers of voxels
_NOTHING: Both[sitk.Image | None] = Both(None, None)


@dataclass(frozen=True)
class Signals:
    """What was seen at n points of the fixed mask that the moving image shows, and at m of them at the coarse scale.

    Lengths are in mm, shifts (n, d) in the frame of the fixed image. ``asymmetry_mm`` (n,): the distance of a block's
    way there and its way back; ``here`` and ``best`` (n,): correlation without and with the shift. ``strain`` (n,): how
    far the map's matrix is from its mean over all points (Frobenius norm). ``unseen``: share of
    the mask's points that the moving image does not show. ``ct``: both images are CTs. ``lungs``: they are, and the
    mask is of lungs. ``voxel_mm``: side of the coarser image's voxel. ``scale``: of all lengths, below 1 for small
    bodies.
    """

    points_lps_mm: np.ndarray
    shifts_mm: np.ndarray
    asymmetry_mm: np.ndarray
    here: np.ndarray
    best: np.ndarray
    strain: np.ndarray
    coarse_points_lps_mm: np.ndarray  # (m, d), and the observations there
    coarse_shifts_mm: np.ndarray
    coarse_asymmetry_mm: np.ndarray
    coarse_here: np.ndarray
    coarse_best: np.ndarray
    unseen: float
    ct: bool
    lungs: bool
    coarse_voxel_mm: float  # of the coarse scale
    voxel_mm: float
    scale: float


def measure_signals(
    images: Both[sitk.Image],
    mask: sitk.Image | None,
    transform: sitk.Transform,
    forward: PointMap,
    hidden: Both[sitk.Image | None] = _NOTHING,
) -> Signals:
    """``transform`` and ``forward`` are the same map, fixed -> moving; ``mask``: of the fixed image; ``hidden``: masks
    of what the images do not show, or of what must not count.

    Raises NephiError where the moving image shows none of the fixed mask.
    """
    grids, units = images.map(Grid.of), images.map(hu_units)
    box, windows = region_lps_mm(images.fixed, mask), images.map(_Window.of, units)
    scale = min(1.0, float(np.ptp(box @ grids.fixed.axes, axis=0).max()) / BODY_MM)
    voxel_mm = max(grid.voxel_volume_mm3 ** (1 / grid.dimension) for grid in grids)
    fine_mm = max(_FINE_MM * scale, _VOXELS * voxel_mm)
    points, half_mm = _points(images.fixed, mask), _HALF * fine_mm
    points = points[_clear_of(hidden.fixed, points, half_mm)]
    ct = None not in units
    lungs = ct and mask is not None and _airy(images.fixed, units.fixed or HU, points) > _LUNG
    there = forward(points)
    index = grids.moving.to_index(there)
    seen = ((index >= -0.5) & (index <= np.array(grids.moving.size) - 0.5)).all(1)
    seen &= _clear_of(hidden.moving, there, half_mm)
    if not seen.any():
        raise NephiError("the moving image shows nothing of the registered region")
    points, there = points[seen], there[seen]
    some = points[:_COARSE_POINTS]
    fine = _matched(images, windows, transform, points, box, fine_mm, _REACH[0], alike=ct)
    coarse = _matched(images, windows, transform, some, box, _COARSER * fine_mm, _REACH[1], alike=ct)
    return Signals(
        points, *fine, _strain(forward, points, _STEP_MM * scale), some, *coarse,
        unseen=float(1 - seen.mean()), ct=ct, lungs=lungs,
        coarse_voxel_mm=_COARSER * fine_mm, voxel_mm=voxel_mm, scale=scale,
    )  # fmt: skip


@dataclass(frozen=True)
class _Window:
    """Values that become 0 and 1; those that pad a CT become 0, as air."""

    low: float
    high: float
    unseen: tuple[float, ...] = ()

    @classmethod
    def of(cls, image: sitk.Image, units: Units | None) -> _Window:
        if units is not None:
            low, high = ((hu - units.offset) / units.slope for hu in CT_WINDOW)  # high below low where inverted
            return cls(low, high, tuple(unseen_values(image, units)))
        low, high = shown_range(image)
        return cls(low, high if high > low else low + 1.0)

    def clipped(self, values: np.ndarray) -> np.ndarray:
        least, most = sorted((self.low, self.high))
        held = np.issubdtype(values.dtype, np.integer) and np.iinfo(values.dtype)
        whole = held and held.min <= least and most <= held.max and least % 1 == most % 1 == 0
        values = values if whole else values.astype(np.float32)
        if self.unseen:
            values = np.where(np.isin(values, self.unseen), values.dtype.type(self.low), values)
        return np.clip(values, values.dtype.type(least), values.dtype.type(most))

    def means(self, image: sitk.Image, factor: list[int], seen_lps_mm: np.ndarray | None) -> sitk.Image:
        """From 0 to 1, averaged over blocks of voxels, around the points (n, d) that are seen (None: everywhere)."""
        box = None if seen_lps_mm is None else seen_box(Grid.of(image), seen_lps_mm, factor)
        return sitk.ShiftScale(block_means(image, factor, box, self.clipped), -self.low, 1 / (self.high - self.low))


def _points(fixed: sitk.Image, mask: sitk.Image | None) -> np.ndarray:
    """(n, d) voxel centres of the mask, the same at every call; without one, where the image is not its background."""
    grid, rng = Grid.of(fixed), np.random.default_rng(_SEED)
    if mask is None:
        array = sitk.GetArrayViewFromImage(fixed)
        flat = rng.integers(0, array.size, 20 * _POINTS)
        values = array.reshape(-1)[flat]
        chosen = flat[values > np.percentile(values, 1)]
        chosen = chosen[:_POINTS] if len(chosen) else flat[:_POINTS]
        index_zyx = np.stack(np.unravel_index(chosen, grid.shape), -1)
    else:
        index_zyx = drawn(inside(mask), _POINTS, rng)
    return grid.to_lps_mm(index_zyx[:, ::-1])


def _clear_of(mask: sitk.Image | None, points_lps_mm: np.ndarray, half_mm: float) -> np.ndarray:
    """Which points (n, d) neither lie in a mask nor that far from it along an axis, so that blocks around them may."""
    clear = np.ones(len(points_lps_mm), bool)
    if mask is None:
        return clear
    grid, inside_it = Grid.of(mask), inside(mask)
    for step in (np.zeros(grid.dimension), *(sign * half_mm * axis for axis in grid.axes.T for sign in (1, -1))):
        index = np.rint(grid.to_index(points_lps_mm + step)).astype(int)
        held = ((index >= 0) & (index < grid.size)).all(1)
        clear[held] &= ~inside_it[tuple(index[held, ::-1].T)]
    return clear


def _airy(image: sitk.Image, units: Units, points_lps_mm: np.ndarray) -> float:
    """Which voxels of a CT, given by their centres (n, d), contain more air than tissue."""
    index = np.rint(Grid.of(image).to_index(points_lps_mm)).astype(int)[:, ::-1]
    values = sitk.GetArrayViewFromImage(image)[tuple(index.T)]
    return float((units.slope * values + units.offset < _AIRY_HU).mean())


def _strain(forward: PointMap, points_lps_mm: np.ndarray, step_mm: float) -> np.ndarray:
    steps = step_mm * np.eye(points_lps_mm.shape[1])
    ends = forward(np.concatenate([points_lps_mm + sign * step for step in steps for sign in (1, -1)]))
    ahead, behind = np.split(ends.reshape(len(steps), 2, *points_lps_mm.shape), 2, axis=1)
    matrices = (ahead - behind)[:, 0] / (2 * step_mm)  # (d, n, d)
    return np.sqrt(((matrices - matrices.mean(1, keepdims=True)) ** 2).sum((0, 2)))


def _matched(
    images: Both[sitk.Image],
    windows: Both[_Window],
    transform: sitk.Transform,
    points: np.ndarray,
    box_lps_mm: np.ndarray,
    spacing_mm: float,
    reach: int,
    alike: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shifts in LPS mm, asymmetry in mm, correlation here and at best of the blocks around points.

    Where the images are not ``alike``, the same tissue may be bright in one and dark in the other.
    """
    grid = Grid.of(images.fixed)
    along = grid.to_index(box_lps_mm) * grid.spacing_mm  # mm along the image's axes
    margin = (_HALF + 1) * spacing_mm
    low, high = along.min(0) - margin, along.max(0) + margin
    size = np.ceil((high - low) / spacing_mm).astype(int) + 1
    origin = grid.to_lps_mm(low / grid.spacing_mm)
    work = Grid(tuple(map(int, size)), (spacing_mm,) * grid.dimension, tuple(map(float, origin)), grid.direction)
    corners, ways = work.corners_lps_mm(), Both[sitk.Transform | None](None, transform)

    def values(image: sitk.Image, window: _Window, way: sitk.Transform | None) -> np.ndarray:
        seen = corners if way is None else _reached(corners, way)
        return linear_through(window.means(image, _factor(image, spacing_mm), seen), work, way)

    arrays = images.map(values, windows, ways)
    voxels = np.clip(np.rint(work.to_index(points)).astype(int), 0, np.array(work.size) - 1)[:, ::-1].copy()
    moving = arrays.moving if alike else _in_values_of(*arrays, _blocks(voxels, arrays.fixed.shape))
    one, other = (torch.from_numpy(array) for array in (arrays.fixed, moving))
    found = match(one, other, torch.from_numpy(voxels), _HALF, reach)
    return (found.shifts * spacing_mm) @ work.axes.T, found.asymmetry * spacing_mm, found.here, found.best


def _blocks(voxels: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices, z first, of the voxels of the blocks around some (n, d), clipped to the grid."""
    side = np.arange(-_HALF, _HALF + 1)
    offsets = np.stack(np.meshgrid(*[side] * len(shape), indexing="ij"), -1).reshape(-1, len(shape))
    return tuple(np.clip(voxels[:, None] + offsets, 0, np.array(shape) - 1).reshape(-1, len(shape)).T)


def _in_values_of(fixed: np.ndarray, moving: np.ndarray, where: tuple[np.ndarray, ...]) -> np.ndarray:
    """The moving values (z, y, x), each replaced by the mean of the fixed values that lie on it ``where`` asked for.

    So that a normalised correlation sees what a correlation ratio would (Roche et al., MICCAI 1998).
    """
    own, there = moving[where], fixed[where]
    edges = np.unique(np.quantile(own, np.linspace(0, 1, _LEVELS + 1)))
    level = np.clip(np.searchsorted(edges, own, "right") - 1, 0, max(0, len(edges) - 2))
    counts = np.bincount(level)
    held = counts > 0
    means, places = (np.bincount(level, values)[held] / counts[held] for values in (there, own))
    return np.interp(moving, places, means).astype(np.float32)


def _reached(corners_lps_mm: np.ndarray, transform: sitk.Transform) -> np.ndarray | None:
    """(n, d): their bounding box contains the image of a box with these corners (m, d); None: unknown."""
    if transform.GetTransformEnum() != sitk.sitkDisplacementField:
        if transform.IsLinear():
            return np.array([transform.TransformPoint(corner.tolist()) for corner in corners_lps_mm])
        return None
    field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
    vectors = sitk.GetArrayViewFromImage(field).reshape(-1, corners_lps_mm.shape[1])
    # points beyond the field do not move; by component this is twenty times as fast as along the first axis
    ends = np.array([(min(part.min(), 0), max(part.max(), 0)) for part in vectors.T])
    shifts = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
    return (corners_lps_mm[:, None] + shifts).reshape(-1, len(ends))


def _factor(image: sitk.Image, spacing_mm: float) -> list[int]:
    """The number of voxels along x, y (, z) nearest to the spacing."""
    sides = zip(image.GetSpacing(), image.GetSize(), strict=True)
    return [max(1, min(round(spacing_mm / side), n)) for side, n in sides]
