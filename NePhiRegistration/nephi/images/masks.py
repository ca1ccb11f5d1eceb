"""The intensity window, and the lungs of a CT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk

from ..settings import BODY_MM
from ..space.grid import Box, Grid
from .blocks import block_means, shrink_factors
from .hounsfield import CT_WINDOW, LEAST_PADDING, far_padding, looks_like_ct, padding, sparse
from .sampling import interpolated

LUNG_THRESHOLD_HU = -400.0
BLOCKS_MM = 3.0  # in which lungs are searched
_LEAST_MM = {2: 1000.0, 3: 200e3}  # mm2 and mm3 of lungs, or _LEAST_PART of the field of view where that is less
_LEAST_PART = 0.01
_TRACHEAE_MM = (9.0, 12.0)  # about its radius, and more than that of any
_ROOM_AIR_HU = -965.0  # median of a part, below which it is the air of the room; emphysema has been seen at -955
_CUT_LUNG_HU = -920.0  # a part at the border of the image or of the scanned region is a lung if its median is above
_LEAST_AROUND = 0.4  # of the directions in which a lung has the body; foam of a table has it above alone
_AROUND_MM = 5.0
_MOSTLY_AROUND = 0.5  # the same, above which a darker part at the border is a lung, too
_CUT_AROUND = 0.6  # the same, for a smaller part cut off from a lung
_ENCLOSED = 0.8  # the same, above which dark air does not belong to the room
_VOID_HU, _LEAST_VOID = -1200.0, 0.002  # darker than air with its noise, where that is a part of the image
_LITTLE_TISSUE = 0.2  # relative to the air, below which the image shows little but lungs


def signed_distance_mm(mask: sitk.Image, positive_inside: bool = False) -> sitk.Image:
    """Distance of each voxel centre in mm from the outermost voxel centres of the mask; negative inside.

    The border itself lies half a voxel beyond these centres. ``positive_inside``: the same with the opposite sign.
    """
    return sitk.SignedMaurerDistanceMap(mask, positive_inside, squaredDistance=False, useImageSpacing=True)


def choose_window(image: sitk.Image, mask: sitk.Image | None = None) -> tuple[float, float]:
    """Intensities to map to 0..1: -1000..200 HU for CT, else the 1st to 99th percentile of the values that are neither
    0 nor far padding."""
    if looks_like_ct(image):
        return CT_WINDOW
    array, sample = sitk.GetArrayViewFromImage(image), sparse(image, 128)
    values = sample[sparse(mask, 128) != 0] if mask is not None else sample
    values = values if values.size else array  # a small mask may slip through the steps
    shown = values[~np.isin(values, [0.0, *far_padding(image)])]
    values = shown if shown.size else values
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return (low, high) if low < high else (float(array.min()), float(array.max()))


def lung_mask(image: sitk.Image, threshold: float = LUNG_THRESHOLD_HU) -> sitk.Image | None:
    """Lungs of a CT by threshold: the two largest parts of air inside the body, and parts cut off by the image border.

    The air of the room is removed first: dark parts that reach the borders of the image, also where they touch a lung
    that the field of view cuts. Other parts of air are rejected if they are not surrounded by the body or are darker
    than lungs; the limits are stricter at the borders of the image and next to padding. Vessels are filled in.

    Works at about 3 mm and is returned on the image's grid; None if no plausible lung is found (less than 200 ml and 1
    % of the image), so that a caller can continue without a mask. The trachea may stay in. In an image shorter than
    ``BODY_MM`` all lengths are scaled down.
    """
    grid = Grid.of(image)
    lungs = lungs_of_blocks(lung_blocks(_without_voids(image)), grid, threshold)
    return None if lungs is None else on_grid(lungs, grid)


def lung_blocks(
    image: sitk.Image, prepare: Callable[[np.ndarray], np.ndarray] | None = None, mm: float = BLOCKS_MM
) -> sitk.Image:
    """Means (float32) of blocks of about ``mm``, in which lungs are searched; ``prepare`` as in ``block_means``."""
    grid = Grid.of(image)
    return sitk.Cast(block_means(image, shrink_factors(grid, mm * _scale(grid)), prepare=prepare), sitk.sitkFloat32)


def _scale(grid: Grid) -> float:
    """The factor of all lengths, for small bodies."""
    return min(1.0, grid.longest_side_mm / BODY_MM)


def lungs_of_blocks(small: sitk.Image, grid: Grid, threshold: float = LUNG_THRESHOLD_HU) -> sitk.Image | None:
    """``lung_mask`` in ``lung_blocks``, which are given in Hounsfield units, of an image of this grid."""
    d, scale = grid.dimension, _scale(grid)
    # a child's lungs are smaller, and so are their surroundings in the image
    floor = min(_LEAST_MM[d], _LEAST_PART * grid.voxel_volume_mm3 * float(np.prod(grid.size)))
    # a trachea that ends in the room's air joins it to the lungs; an opening by more than its radius parts them
    radii = [[1] * d, *([max(2, round(mm * scale / s)) for s in small.GetSpacing()] for mm in _TRACHEAE_MM)]
    # a narrow field of view may show less of the body than of padding; lungs may have been segmented already
    tries = (_found(small, threshold, *seen, radii, floor) for seen in ((False, False), (True, False), (False, True)))
    lungs = next((found for found in tries if found is not None), None)
    if lungs is None:
        return None
    radius = [max(1, round(6.0 * scale / s)) for s in small.GetSpacing()]
    box = [(part.start, part.stop) for part in reversed(mask_box(lungs))]
    sides = zip(box, radius, lungs.GetSize(), strict=True)
    around = tuple(slice(max(0, low - r - 1), min(n, high + r + 1)) for (low, high), r, n in sides)
    return sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(lungs[around], radius))


def _without_voids(image: sitk.Image) -> sitk.Image:
    """With water in the place of values that no air has, so that dark padding is taken as bright padding is."""
    if (sparse(image) < _VOID_HU).mean() < _LEAST_VOID:
        return image
    array = sitk.GetArrayFromImage(image)
    array[array < _VOID_HU] = 0
    return Grid.of(image).image(array)


def _found(
    image: sitk.Image, threshold: float, padding_counts: bool, alone: bool, radii: list[list[int]], least_mm3: float
) -> sitk.Image | None:
    """Lungs of at least a volume with vessels left out, by the first of the radii that parts them from the room;
    ``alone``: without the body around them, if that is not there."""
    edges, values = _edges(image, threshold), sitk.GetArrayViewFromImage(image)
    tissue = values >= threshold
    if alone:
        around, room = np.ones_like(values), _never_seen(image)
    else:
        around = _around(image, threshold, padding_counts)
        room = _room(image, edges, around)
    inner = ~room & ~tissue
    if alone and _opened(tissue).sum() > _LITTLE_TISSUE * inner.sum():  # vessels are thin
        return None
    air = _bytes(inner)
    air.CopyInformation(image)
    ends = edges | _grown(room)
    for radius in radii:
        found = _lung_air(image, air, edges, around, radius, 0.1 * least_mm3)
        parts = sitk.RelabelComponent(sitk.ConnectedComponent(found), sortByObjectSize=True)
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(parts)
        volumes = [shape.GetPhysicalSize(label) for label in (1, 2) if shape.HasLabel(label)]
        if volumes and volumes[0] >= least_mm3:
            two = len(volumes) == 2 and volumes[1] > 0.2 * volumes[0]
            return _chosen(image, parts, 2 if two else 1, ends, around)
    return None


def _chosen(image: sitk.Image, parts: sitk.Image, largest: int, ends: np.ndarray, around: np.ndarray) -> sitk.Image:
    """The largest parts, and others that the end of the scanned region cuts off from a lung."""
    labels, values = sitk.GetArrayViewFromImage(parts), sitk.GetArrayViewFromImage(image)

    def cut(part: np.ndarray) -> bool:
        return bool(around[part].mean() >= _CUT_AROUND and np.median(values[part]) >= _CUT_LUNG_HU)

    also = [n for n in np.unique(labels[ends]) if n > largest and cut(labels == n)]
    lungs = _bytes(np.isin(labels, [*range(1, largest + 1), *also]))
    lungs.CopyInformation(parts)
    return lungs


def on_grid(mask: sitk.Image, grid: Grid) -> sitk.Image:
    """A mask of coarser voxels on a grid, resampled where it is not 0."""
    coarse = Grid.of(mask)
    corners = coarse.to_lps_mm(_box_corners(mask_box(mask), margin=1))
    index = grid.to_index(corners)
    low = np.clip(np.floor(index.min(0)), 0, np.array(grid.size) - 1).astype(int)
    high = np.clip(np.ceil(index.max(0)) + 1, low + 1, grid.size).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))[::-1]
    out = np.zeros(grid.shape, np.uint8)
    for row, values in zip(
        out[box], interpolated(sitk.GetArrayViewFromImage(mask), coarse, grid.part(box)), strict=True
    ):
        np.greater(values, 0.5, out=row.view(bool))
    return grid.image(out)


def _lung_air(
    image: sitk.Image, air: sitk.Image, edges: np.ndarray, around: np.ndarray, radius: list[int], least_mm3: float
) -> sitk.Image:
    """The parts of air, opened by a radius in voxels, that do not belong to the room."""
    narrow = max(radius) == 1
    opened = _bytes(_opened(inside(air))) if narrow else sitk.BinaryMorphologicalOpening(air, radius)
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(opened))
    values = sitk.GetArrayViewFromImage(image)
    at_an_edge = set(np.unique(labels[edges]))
    counts, shares = _shares(labels, around)
    volumes_mm3 = counts * Grid.of(image).voxel_volume_mm3
    large = [n for n in np.flatnonzero(volumes_mm3 >= least_mm3) if n and shares[n] >= _LEAST_AROUND]
    within = [n for n in large if shares[n] >= _CUT_AROUND]
    within = within if volumes_mm3[within].sum() >= 10 * least_mm3 else []
    found = []
    for label in within or large:  # the corner of a lung has the body in few directions, and so has much else
        part = labels == label
        at_a_side = label in at_an_edge and shares[label] < _MOSTLY_AROUND
        if np.median(values[part]) >= (_CUT_LUNG_HU if at_a_side else _ROOM_AIR_HU):
            found.append(label)
    lungs = _bytes(np.isin(labels, found))
    lungs.CopyInformation(image)
    return lungs if narrow else sitk.And(sitk.BinaryDilate(lungs, [2 * r for r in radius]), air)


def _room(image: sitk.Image, edges: np.ndarray, around: np.ndarray) -> np.ndarray:
    """(z, y, x): the air of the room, and regions never scanned.

    These are dark means of 3 voxels along each axis, from the borders inwards up to where the body surrounds them, as
    it surrounds emphysema. Includes one more voxel, between the air and tissue.
    """
    values = sitk.GetArrayViewFromImage(image)
    never_seen = _never_seen(image) & (values < _ROOM_AIR_HU)
    dark = (_means(values) < _ROOM_AIR_HU) & (around < _ENCLOSED) & ~never_seen
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(_bytes(dark)))
    faces = edges | _grown(never_seen)
    for axis in range(faces.ndim):
        np.moveaxis(faces, axis, 0)[[0, -1]] = True
    outside = np.zeros(labels.max() + 1, bool)
    outside[np.unique(labels[faces])] = True
    outside[_shares(labels, around)[1] >= _LEAST_AROUND] = False
    outside[0] = False
    return _grown(outside[labels] | never_seen)


def _never_seen(image: sitk.Image) -> np.ndarray:
    """(z, y, x): the connected region of one value from a corner on; noise in air repeats no value side by side."""
    values, out = sitk.GetArrayViewFromImage(image), np.zeros(image.GetSize()[::-1], bool)
    ends = np.ix_(*[(0, n - 1) for n in out.shape])
    for value in padding(image):
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(image == value))
        large = np.bincount(parts.ravel()) >= LEAST_PADDING * values.size
        large[0] = False
        out |= np.isin(parts, [n for n in np.unique(parts[ends]) if large[n]])
    return out


def _shares(labels: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each label, and the mean of ``around`` there; both 0 for the label 0."""
    part = labels != 0
    own, many = labels[part], int(labels.max()) + 1
    counts = np.bincount(own, minlength=many)
    return counts, np.bincount(own, around[part], many) / np.maximum(1, counts)


def _means(values: np.ndarray) -> np.ndarray:
    """Means of 3 voxels along each axis, of 2 at the ends."""
    for axis in range(values.ndim):
        old = np.moveaxis(values, axis, 0)
        values = values.copy()
        new = np.moveaxis(values, axis, 0)
        new[1:] += old[:-1]
        new[:-1] += old[1:]
        new[1:-1] /= 3
        new[[0, -1]] /= min(2, len(new))
    return values


def _bytes(part: np.ndarray) -> sitk.Image:
    """An image of bool (z, y, x), without geometry."""
    return sitk.GetImageFromArray(part.view(np.uint8))


def _opened(part: np.ndarray) -> np.ndarray:
    """(...) bool, without parts of two voxels or less in width."""
    return _grown(~_grown(~part))


def _grown(part: np.ndarray) -> np.ndarray:
    """(...) bool, grown by one voxel along one axis or two."""
    axes = range(part.ndim)
    return np.logical_or.reduce([_along(_along(part, a), b) for a in axes for b in axes[a + 1 :]])


def _along(part: np.ndarray, axis: int) -> np.ndarray:
    """Grown by one voxel along an axis."""
    out = part.copy()
    old, new = np.moveaxis(part, axis, 0), np.moveaxis(out, axis, 0)
    new[1:] |= old[:-1]
    new[:-1] |= old[1:]
    return out


def _upright(image: sitk.Image) -> int | None:
    """The axis of the array that is the patient's; None in 2D."""
    d = image.GetDimension()
    return d - 1 - int(np.abs(Grid.of(image).axes[2]).argmax()) if d == 3 else None


def _around(image: sitk.Image, threshold: float, padding_counts: bool) -> np.ndarray:
    """(z, y, x): of the directions along the axes, both ways, the share in which the body lies, or padding above the
    threshold where that counts; at a coarser step, and repeated."""
    d = image.GetDimension()
    step_mm = _AROUND_MM * min(1.0, Grid.of(image).longest_side_mm / BODY_MM)
    steps = [max(1, round(step_mm / s)) for s in reversed(image.GetSpacing())]
    values = sitk.GetArrayViewFromImage(image)[tuple(slice(None, None, step) for step in steps)]
    tissue = values >= threshold
    own = tissue & ~np.isin(values, padding(image))
    dense = own if own.any() and not padding_counts else tissue
    # opened, to remove the table and other thin parts
    parts = sitk.ConnectedComponent(_bytes(_opened(dense)))
    body = sitk.GetArrayFromImage(sitk.RelabelComponent(parts, sortByObjectSize=True)) == 1
    out = np.zeros(body.shape, np.float32)
    for axis in range(d):
        out += np.maximum.accumulate(body, axis)
        out += np.flip(np.maximum.accumulate(np.flip(body, axis), axis), axis)
    places = (np.arange(n) // step for n, step in zip(reversed(image.GetSize()), steps, strict=True))
    return out[np.ix_(*places)] / (2 * d)


def _edges(image: sitk.Image, threshold: float) -> np.ndarray:
    """(z, y, x): the image borders (not top and bottom, where cut lungs may end), and voxels next to bright padding."""
    d = image.GetDimension()
    edges = np.zeros(image.GetSize()[::-1], bool)
    for axis in range(d):
        if axis != _upright(image):
            np.moveaxis(edges, axis, 0)[[0, -1]] = True
    for value in padding(image):
        if value >= threshold:
            parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(image == value))
            largest = np.bincount(parts.ravel())[1:].argmax() + 1
            edges |= _grown(parts == largest)
    return edges


def inside(mask: sitk.Image) -> np.ndarray:
    """(z, y, x) bool: where a mask is not 0; of bytes a view, which lives as long as the mask."""
    array = sitk.GetArrayViewFromImage(mask)
    return array.view(bool) if array.itemsize == 1 else array != 0


def binary(mask: sitk.Image) -> sitk.Image:
    """1 where a mask is not 0; the mask itself where it already is so."""
    array = sitk.GetArrayViewFromImage(mask)
    return mask if array.dtype == np.uint8 and array.max() <= 1 else mask != 0


def mask_box(mask: sitk.Image) -> Box:
    """The box of a mask that is not 0, as slices of its array (z first)."""
    array = inside(mask)
    planes = np.flatnonzero([plane.any() for plane in array])
    box = [slice(int(planes[0]), int(planes[-1]) + 1)]
    flat = np.bitwise_or.reduce(array[box[0]].view(np.uint8), axis=0)
    for axis in range(flat.ndim):
        rows = np.flatnonzero(flat.any(tuple(a for a in range(flat.ndim) if a != axis)))
        box.append(slice(int(rows[0]), int(rows[-1]) + 1))
    return tuple(box)


def drawn(part: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(n, d) index_zyx of nonzero entries of a part (z, y, x), drawn without repetition: ``count``, or all."""
    counts = np.array([np.count_nonzero(plane) for plane in part])
    ends = np.cumsum(counts)
    ranks = rng.choice(int(ends[-1]), min(count, int(ends[-1])), replace=False)
    planes = np.searchsorted(ends, ranks, side="right")
    flat = np.empty(len(ranks), np.int64)
    for plane in np.unique(planes):  # one at a time: the places of all voxels take much more memory than the part
        here = planes == plane
        flat[here] = np.flatnonzero(part[plane])[ranks[here] - ends[plane] + counts[plane]]
    return np.column_stack([planes, *np.unravel_index(flat, part.shape[1:])])


def region_lps_mm(image: sitk.Image, mask: sitk.Image | None) -> np.ndarray:
    """Corners (n, d) of the mask's bounding box, or of the image."""
    grid = Grid.of(image)
    return grid.corners_lps_mm() if mask is None else grid.to_lps_mm(_box_corners(mask_box(mask)))


def _box_corners(box: Box, margin: int = 0) -> np.ndarray:
    """(2^d, d) index_xyz of the corner voxels of a box, which is given z first."""
    ends = [(part.start - margin, part.stop - 1 + margin) for part in reversed(box)]
    return np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
