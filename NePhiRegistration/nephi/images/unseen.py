"""What an image holds values for but does not show: planes of one value that cut off what the other image shows, and
values far from all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk

from ..both import Both
from ..space.affine import Affine
from ..space.grid import Box, Grid
from .hounsfield import far_padding, looks_like_ct, padding, shown_box

_CUT = 0.25  # of the largest plane of what is shown, that the plane at a cut shows: an organ ends gradually
_BEYOND = 0.15  # of what is shown along an axis: how far beyond a cut at a side the other image shows more
_MOSTLY = 0.5  # of the plane at a cut, beyond which the other image shows something
_LEAST = 8  # planes that a cut leaves: fewer are too little to compare
_PLACES = 64  # along each axis of a plane that are looked at

Run = tuple[int, int, int]  # planes of one value: axis of the array, the first and the one after the last


def unseen(images: Both[sitk.Image], affine: Affine) -> Both[tuple[Box | None, sitk.Image | None]]:
    """Of both images the box that cuts at the sides leave, and a mask of what is not shown; None where that is nothing.

    ``affine``: fixed -> moving. Planes of one value beside an organ say where it ends, unless it is cut off there: it
    ends abruptly, and the other image shows more.
    """
    return images.map(_unseen, images.swapped, Both(affine, affine.inverse()))


def abrupt_boxes(images: Both[sitk.Image]) -> Both[Box | None]:
    """The boxes without planes of one value at sides where what is shown ends abruptly, whatever the other image shows:
    before an alignment it is not known what lies where, and one of partial views does not need where an organ ends."""
    return images.map(lambda image: None if looks_like_ct(image) else _unseen(image, None, None)[0])


def not_shown(images: Both[sitk.Image], affine: Affine, excluded: Both[sitk.Image | None]) -> Both[sitk.Image | None]:
    """Masks, on the images' grids, of what they do not show and of what is ``excluded``; None where that is nothing."""

    def mask(image: sitk.Image, found: tuple[Box | None, sitk.Image | None], own: sitk.Image | None):
        hidden = np.zeros(image.GetSize()[::-1], bool)
        for box in (found[0], shown_box(image)):
            if box is not None:
                outside = np.ones(hidden.shape, bool)
                outside[box] = False
                hidden |= outside
        for part in (found[1], own):
            if part is not None:
                hidden |= sitk.GetArrayViewFromImage(part) != 0
        return Grid.of(image).image(hidden.astype(np.uint8)) if hidden.any() else None

    return images.map(mask, unseen(images, affine), excluded)


def _unseen(image: sitk.Image, other: sitk.Image | None, way: Affine | None) -> tuple[Box | None, sitk.Image | None]:
    array, far = sitk.GetArrayViewFromImage(image), far_padding(image)
    hidden = np.isin(array, far) if far else np.zeros(array.shape, bool)
    box = [[0, n] for n in array.shape]
    for axis, first, stop in _runs(array):
        if not _cuts_off(image, other, way, (axis, first, stop)):
            continue
        if first == 0:
            box[axis][0] = stop
        elif stop == array.shape[axis]:
            box[axis][1] = first
        else:
            np.moveaxis(hidden, axis, 0)[first:stop] = True
    box = [[0, n] if high - low < _LEAST else [low, high] for (low, high), n in zip(box, array.shape, strict=True)]
    whole = all(low == 0 and high == n for (low, high), n in zip(box, array.shape, strict=True))
    mask = Grid.of(image).image(hidden.astype(np.uint8)) if hidden.any() else None
    return None if whole else tuple(slice(low, high) for low, high in box), mask


def _runs(array: np.ndarray) -> Iterator[Run]:
    """Planes of one value side by side, but for images that are all of one value."""
    for axis in range(array.ndim):
        planes = np.moveaxis(array, axis, 0)
        some = np.moveaxis(_thinned(array, axis), axis, 0).reshape(len(planes), -1)
        flat = some.min(1) == some.max(1)
        for n in np.flatnonzero(flat):
            flat[n] = planes[n].min() == planes[n].max()
        ends = np.flatnonzero(np.diff(flat.astype(int), prepend=0, append=0))
        if not flat.all():
            yield from ((axis, int(first), int(stop)) for first, stop in ends.reshape(-1, 2))


def _thinned(array: np.ndarray, axis: int) -> np.ndarray:
    """All planes along an axis, of each some places."""
    return array[tuple(slice(None, None, 1 if a == axis else _step(n)) for a, n in enumerate(array.shape))]


def _step(n: int) -> int:
    return max(1, n // _PLACES)


def _cuts_off(image: sitk.Image, other: sitk.Image | None, way: Affine | None, run: Run) -> bool:
    """Whether planes cut off on all their sides what the other image, if there is one, shows, ``way`` leading there."""
    array, (axis, first, stop) = sitk.GetArrayViewFromImage(image), run
    values = [*padding(image), float(np.moveaxis(array, axis, 0)[first].flat[0])]
    shown = np.moveaxis(~np.isin(_thinned(array, axis), values), axis, 0)
    shares = shown.reshape(len(shown), -1).mean(1)
    extent = np.ptp(np.flatnonzero(shares)) + 1 if shares.any() else 0
    if first == 0:
        cuts = [(stop, stop - _BEYOND * extent)]
    elif stop == len(shown):
        cuts = [(first - 1, first - 1 + _BEYOND * extent)]
    else:
        cuts = [(first - 1, (first + stop - 1) / 2), (stop, (first + stop - 1) / 2)]
    for plane, beyond in cuts:
        if shares[plane] < _CUT * shares.max():
            return False
        if other is None or way is None:
            continue
        index = np.argwhere(shown[plane]) * [_step(n) for a, n in enumerate(array.shape) if a != axis]
        points = Grid.of(image).to_lps_mm(np.insert(index.astype(float), axis, beyond, 1)[:, ::-1])
        if _shown_at(other, way(points)) <= _MOSTLY:
            return False
    return True


def _shown_at(image: sitk.Image, points_lps_mm: np.ndarray) -> float:
    """Share of points (n, d) at which an image shows something."""
    index = np.rint(Grid.of(image).to_index(points_lps_mm)).astype(int)
    index = index[((index >= 0) & (index < image.GetSize())).all(1)]
    values = sitk.GetArrayViewFromImage(image)[tuple(index[:, ::-1].T)]
    return float((~np.isin(values, padding(image))).sum() / max(1, len(points_lps_mm)))
