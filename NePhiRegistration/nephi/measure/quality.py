"""Measures of a registration: landmark error, overlap, Jacobian determinants, folds, inverse consistency.

A displacement_mm is an array (..zyx, d) in LPS mm, x first in the last axis, of the forward map on the
fixed grid: fixed point -> moving point = fixed point + displacement. Its Jacobian determinant is above 1
where the tissue is larger in the moving image. Everything works in 2D and 3D and for any direction matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..images.masks import drawn, inside
from ..space.determinant import determinant
from ..space.grid import Grid, slabs

PointMap = Callable[[np.ndarray], np.ndarray]  # (n, d) points_lps_mm -> (n, d) points_lps_mm
# Voxels worked on at a time: the temporary arrays of one slab fit the CPU's cache.
_SLAB_VOXELS = 2**18
_BINS = 20  # of the histogram, for a determinant that is larger by 1


def tre_mm(a_lps_mm: np.ndarray, b_lps_mm: np.ndarray) -> np.ndarray:
    """Target registration error: distance of row i of ``a`` to row i of ``b``, both (n, d), -> (n,) mm."""
    a, b = np.asarray(a_lps_mm, float), np.asarray(b_lps_mm, float)
    if a.ndim != 2 or a.shape != b.shape:
        raise NephiError(f"The landmarks do not pair up: arrays {a.shape} and {b.shape}.")
    return np.linalg.norm(a - b, axis=1)


def summary(values: np.ndarray) -> dict[str, float]:
    """mean, median, p95, max and n of ``values``, as floats. Raises NephiError if there are none."""
    values = np.asarray(values, float).ravel()
    if values.size == 0:
        raise NephiError("There are no values to summarise.")
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
        "n": float(values.size),
    }


def dice(mask_a: np.ndarray, mask_b: np.ndarray) -> float:
    """Dice overlap 2|A and B| / (|A| + |B|) of two masks of one shape (non-zero is inside), 0 to 1.

    Raises NephiError if the shapes differ or if both masks are empty, where it is not defined.
    """
    a, b = np.asarray(mask_a) != 0, np.asarray(mask_b) != 0
    if a.shape != b.shape:
        raise NephiError(f"The masks differ in shape: {a.shape} and {b.shape}; resample one onto the other.")
    total = np.count_nonzero(a) + np.count_nonzero(b)
    if total == 0:
        raise NephiError("Both masks are empty, so their overlap is undefined.")
    return float(2 * np.count_nonzero(a & b) / total)


def displacement_jacobian(displacement_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """Jacobian determinant (..zyx) float32 of x -> x + displacement(x), by central differences.

    One-sided differences at the border; along an axis of a single voxel the displacement counts as constant.
    Raises NephiError if the displacement does not lie on ``grid``.
    """
    displacement_mm = _checked(displacement_mm, grid)
    step = _step_mm(grid)
    jacobian = np.empty(grid.shape, np.float32)
    for rows in grid.slabs(_SLAB_VOXELS):
        low = max(rows.start - 1, 0)
        inner_rows = slice(rows.start - low, rows.stop - low)
        u = _components_first(displacement_mm[low : rows.stop + 1])
        columns = []
        for axis in range(grid.dimension):  # of the index, x first; the last of the array
            array_axis = grid.dimension - axis
            if array_axis == 1:
                derivative = _central_difference(u, 1, np.arange(inner_rows.start, inner_rows.stop))
            else:
                inner = u[:, inner_rows]
                derivative = _central_difference(inner, array_axis, np.arange(u.shape[array_axis]))
            columns.append([derivative[row] + step[row, axis] for row in range(grid.dimension)])
        jacobian[rows] = determinant(columns) / determinant(step.T)
    return jacobian


def non_diffeomorphic_volume(
    displacement_mm: np.ndarray, grid: Grid, mask: np.ndarray | None = None
) -> dict[str, float | int]:
    """Volume that the map turns inside out, by the simplices between voxel centres (digital diffeomorphism).

    Central differences skip the voxel they are taken at, so that they can miss a fold. Here the cell between
    2^d neighbouring voxel centres is cut into simplices: one at each corner (the determinants of all forward
    and backward differences) and, in 3D, the two tetrahedra that remain in the middle. The map is linear in
    a simplex, hence invertible there if and only if its determinant is positive: 4 triangles in 2D, 10
    tetrahedra in 3D. They are two complete partitions of the cell, the results of which are averaged.
    Liu, Chen, Wei, Carass, Prince, IJCV 2024 (arXiv 2212.06060); with a mask (..zyx) a corner simplex
    belongs to its corner voxel and a middle one in equal parts to its vertices.

    Returns volume_mm3 (2D: mm2): the sum of the negative signed volumes after the map, as a positive number;
    percent: the same, of the volume of all simplices before the map; voxels: how many have a corner simplex
    or are a vertex of a middle one whose determinant is not positive.
    Raises NephiError on shapes that do not fit, an axis of a single voxel, or an empty mask.
    """
    displacement_mm, mask = _checked(displacement_mm, grid), _checked_mask(mask, grid.shape)
    if min(grid.shape) < 2:
        raise NephiError(f"The non-diffeomorphic volume needs two voxels along every axis, not {grid.size}.")
    step, simplices = _step_mm(grid), _simplices(grid.dimension)
    folded_volume = whole_volume = 0.0
    bad = np.zeros(grid.shape, bool)
    cells = (grid.shape[0] - 1, *grid.shape[1:])
    for rows in slabs(cells, _SLAB_VOXELS):
        corners = slice(rows.start, rows.stop + 1)
        if mask is not None and not mask[corners].any():
            continue
        u = _components_first(displacement_mm[corners])
        weights = None if mask is None else mask[corners]
        for corners_xyz, owners in simplices:
            offsets_mm = (corners_xyz[1:] - corners_xyz[0]) @ step.T
            at = [_corner(corner) for corner in corners_xyz]
            first = u[at[0]]
            columns = [
                [u[corner][row] - first[row] + offset[row] for row in range(grid.dimension)]
                for corner, offset in zip(at[1:], offsets_mm, strict=True)
            ]
            reference = determinant(offsets_mm)
            ratio = determinant(columns) / reference
            volume = float(abs(reference)) / (6 if grid.dimension == 3 else 2)
            if weights is None:
                share = None
                whole_volume += volume * ratio.size
            else:
                owned = [weights[at[i][1:]].astype(np.float32) for i in range(owners)]
                share = np.add.reduce(owned) / np.float32(owners)
                whole_volume += volume * float(share.sum(dtype=np.float64))
            folded = ~(ratio > 0)  # NaN counts as folded
            if folded.any():
                depth = np.maximum(-ratio[folded], 0).astype(np.float64)
                folded_volume += volume * float((depth if share is None else depth * share[folded]).sum())
                for i in range(owners):
                    bad[corners][at[i][1:]] |= folded
    if mask is not None:
        bad &= mask
        if whole_volume == 0:
            raise NephiError("The mask for the non-diffeomorphic volume is empty.")
    return {
        "percent": float(100 * folded_volume / whole_volume),
        "volume_mm3": float(folded_volume / 2),  # two partitions of the same space
        "voxels": int(np.count_nonzero(bad)),
    }


def fold_summary(jacobian: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float | int]:
    """percent and count of the voxels (inside ``mask``) whose Jacobian determinant is not above 0."""
    values = _inside(jacobian, mask)
    count = int(np.count_nonzero(~(values > 0)))
    return {"percent": 100 * count / values.size, "count": count}


def jacobian_statistics(jacobian: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """min, p1, p5, mean, median, p95, p99, max and std_log of the determinant inside ``mask``.

    std_log is the standard deviation of log |J|, |J| clipped to 1e-9 .. 1e9 as in the Learn2Reg challenges.
    """
    values = np.array(_inside(jacobian, mask), np.float32)  # a copy to work in
    mean = float(values.mean(dtype=np.float64))
    names = ("min", "p1", "p5", "median", "p95", "p99", "max")
    points = np.percentile(values, (0, 1, 5, 50, 95, 99, 100), overwrite_input=True)
    np.log(np.clip(values, 1e-9, 1e9, out=values), out=values)
    values -= values.mean(dtype=np.float64)
    std_log = float(np.sqrt(np.mean(np.square(values, out=values), dtype=np.float64)))
    return {**dict(zip(names, map(float, points), strict=True)), "mean": mean, "std_log": std_log}


def jacobian_histogram(jacobian: np.ndarray, mask: np.ndarray | None = None) -> dict[str, list]:
    """Voxels (inside ``mask``) by determinant: counts (n,) between edges (n + 1,), bins of 0.05.

    The same bins for every pair, so that histograms compare; the first and last bin (at -1 and 5 at most)
    hold what lies beyond them, not a number counts as a fold.
    """
    values, counts = _inside(jacobian, mask), np.zeros(6 * _BINS, np.int64)
    for start in range(0, values.size, _SLAB_VOXELS):
        some = np.nan_to_num(values[start : start + _SLAB_VOXELS], nan=-np.inf).clip(-2, 6) * np.float64(_BINS)
        index = np.floor(some, out=some).clip(-_BINS, 5 * _BINS - 1).astype(np.int16)
        counts += np.bincount(index + _BINS, minlength=len(counts))
    seen = np.flatnonzero(counts)
    low, high = int(seen[0]) - _BINS, int(seen[-1]) + 1 - _BINS
    return {
        "edges": [i / _BINS for i in range(low, high + 1)],
        "counts": counts[seen[0] : seen[-1] + 1].tolist(),
    }


def region_statistics(jacobian: np.ndarray, labels: np.ndarray, voxel_volume_mm3: float) -> list[dict[str, float]]:
    """Volume change of every label but 0 (lobes, say) of an integer array of the determinant's shape.

    Each is a dict of label, volume_fixed_ml, volume_moving_ml, change_ml and change_percent from the fixed to
    the moving image, and mean_jacobian.
    """
    labels = np.asarray(labels)
    if labels.shape != np.shape(jacobian):
        raise NephiError(f"The regions have the shape {labels.shape}, but the image has {np.shape(jacobian)}.")
    inside = labels != 0
    names, which = np.unique(labels[inside], return_inverse=True)
    count = np.bincount(which)
    means = np.bincount(which, weights=np.asarray(jacobian)[inside]) / count
    volumes_ml = count * voxel_volume_mm3 / 1000
    return [
        {
            "label": int(name),
            "volume_fixed_ml": float(volume),
            "volume_moving_ml": float(volume * mean),
            "change_ml": float(volume * (mean - 1)),
            "change_percent": float(100 * (mean - 1)),
            "mean_jacobian": float(mean),
        }
        for name, volume, mean in zip(names, volumes_ml, means, strict=True)
    ]


def volume_change(
    jacobian_determinant: np.ndarray, mask: np.ndarray | None, voxel_volume_mm3: float
) -> dict[str, float]:
    """Volume of the fixed image's ``mask`` (None: of all values), fixed_ml, that of its image in the moving one,
    moving_ml, and ratio = moving_ml / fixed_ml."""
    values = _inside(jacobian_determinant, mask)
    ratio = float(values.mean(dtype=np.float64))
    fixed_ml = values.size * voxel_volume_mm3 / 1000
    return {"fixed_ml": fixed_ml, "moving_ml": fixed_ml * ratio, "ratio": ratio}


def fold_regions(
    jacobian: np.ndarray, grid: Grid, mask: np.ndarray | None = None, most: int = 100
) -> list[dict[str, object]]:
    """The connected regions where the Jacobian determinant is not above 0, largest first, ``most`` at most.

    Each is a dict of voxels, volume_mm3, centre_lps_mm (list, the mean of its voxel centres) and min_jacobian,
    its lowest determinant. Voxels that touch at a corner are connected.
    """
    jacobian = np.asarray(jacobian)
    mask = _checked_mask(mask, grid.shape)
    if jacobian.shape != grid.shape:
        raise NephiError(f"The Jacobian determinant has the shape {jacobian.shape}, but the grid has {grid.shape}.")
    folded = ~(jacobian > 0)
    if mask is not None:
        folded &= mask
    where_zyx = np.argwhere(folded)
    if len(where_zyx) == 0:
        return []
    low, high = where_zyx.min(0), where_zyx.max(0) + 1  # folds are few: label their box, not the image
    box = folded[tuple(map(slice, low, high))].astype(np.uint8)
    components = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(box), True))
    label = components[tuple((where_zyx - low).T)].astype(np.intp) - 1
    voxels = np.bincount(label)
    sums_zyx = [np.bincount(label, weights=axis) for axis in where_zyx.T]
    lowest = np.full(len(voxels), np.nan)
    np.fmin.at(lowest, label, jacobian[tuple(where_zyx.T)])
    order = np.argsort(-voxels, kind="stable")[:most]
    centres_lps_mm = grid.to_lps_mm((np.stack(sums_zyx, 1) / voxels[:, None])[order, ::-1])
    return [
        {
            "voxels": int(voxels[i]),
            "volume_mm3": float(voxels[i] * grid.voxel_volume_mm3),
            "centre_lps_mm": list(map(float, centre)),
            "min_jacobian": float(lowest[i]),
        }
        for i, centre in zip(order, centres_lps_mm, strict=True)
    ]


def inverse_consistency_mm(
    forward: PointMap,
    inverse: PointMap,
    points_lps_mm: np.ndarray,
    moving_grid: Grid | None = None,
) -> np.ndarray:
    """|inverse(forward(x)) - x| in mm, (n,), at the fixed points (n, d); both maps take and return (n, d).

    ``moving_grid``: where the inverse is known; points that go elsewhere are left out.
    """
    moved = forward(points_lps_mm)
    if moving_grid is not None:
        there = moving_grid.holds(moved)
        points_lps_mm, moved = points_lps_mm[there], moved[there]
    return tre_mm(inverse(moved), points_lps_mm)


def _checked(displacement_mm: np.ndarray, grid: Grid) -> np.ndarray:
    displacement_mm = np.asarray(displacement_mm)
    expected = (*grid.shape, grid.dimension)
    if displacement_mm.shape != expected:
        raise NephiError(f"The displacement has the shape {displacement_mm.shape}, not {expected}.")
    return displacement_mm


def _checked_mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    mask = np.asarray(mask)
    mask = mask if mask.dtype == bool else mask != 0
    if mask.shape != shape:
        raise NephiError(f"The mask has the shape {mask.shape}, but the image has {shape}; resample the mask.")
    return mask


def _inside(jacobian: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """(n,) values inside the mask. Raises NephiError if there are none."""
    jacobian = np.asarray(jacobian)
    mask = _checked_mask(mask, jacobian.shape)
    values = jacobian.ravel() if mask is None else jacobian[mask]
    if values.size == 0:
        raise NephiError("The mask is empty: there is no Jacobian determinant to describe.")
    return values


def _step_mm(grid: Grid) -> np.ndarray:
    """(d, d): column j is the way in LPS mm from one voxel to the next along index axis j."""
    return grid.axes * np.asarray(grid.spacing_mm)


def _components_first(displacement_mm: np.ndarray) -> np.ndarray:
    """(..., d) -> contiguous (d, ...) in the field's own precision; a large translation needs float64."""
    kind = displacement_mm.dtype if displacement_mm.dtype in (np.float32, np.float64) else np.float64
    return np.ascontiguousarray(np.moveaxis(displacement_mm, -1, 0), kind)


def _central_difference(u: np.ndarray, axis: int, here: np.ndarray) -> np.ndarray:
    """Derivative of ``u`` per voxel along ``axis`` at the indices ``here``; one-sided at the border."""
    before, after = np.maximum(here - 1, 0), np.minimum(here + 1, u.shape[axis] - 1)
    span = np.maximum(after - before, 1).astype(u.dtype)
    span = span.reshape([-1 if i == axis else 1 for i in range(u.ndim)])
    difference = np.take(u, after, axis)
    difference -= np.take(u, before, axis)
    difference /= span
    return difference


def _simplices(dimension: int) -> list[tuple[np.ndarray, int]]:
    """The simplices of the unit cell: vertices (d + 1, d), x first, and how many leading ones own it."""
    corners = np.array(list(product((0, 1), repeat=dimension)))
    flips = np.eye(dimension, dtype=int)
    simplices = [(np.vstack([corner, corner ^ flips]), 1) for corner in corners]
    if dimension == 3:  # cutting off every second corner leaves the tetrahedron of the others
        simplices += [(corners[corners.sum(1) % 2 == odd], 4) for odd in (0, 1)]
    return simplices


def _corner(corner_xyz: np.ndarray) -> tuple[slice, ...]:
    """Index into (d, ..zyx) that gives this corner of every cell."""
    return (slice(None), *(slice(1, None) if one else slice(None, -1) for one in corner_xyz[::-1]))


def random_points(grid: Grid, mask: sitk.Image | None, count: int, between: bool = False) -> np.ndarray:
    """The same (n, d) points_lps_mm at every call: voxel centres of the mask, or anywhere in the grid.

    ``between``: anywhere in the voxels of the mask, where interpolation errs more than at the centres.
    """
    rng = np.random.default_rng(0)
    if mask is None:
        return grid.to_lps_mm(rng.uniform(0, 1, (count, grid.dimension)) * (np.array(grid.size) - 1))
    index = drawn(inside(mask), count, rng)[:, ::-1]
    if between:
        index = np.clip(index + rng.uniform(-0.5, 0.5, index.shape), 0, np.array(grid.size) - 1)
    return grid.to_lps_mm(index)
