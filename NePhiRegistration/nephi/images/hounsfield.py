"""What an image's numbers mean: whether they are Hounsfield units, with which offset, and which value pads it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..errors import notice
from ..space.grid import Box

CT_WINDOW = (-1000.0, 200.0)
_AIR_HU = -1000.0
_DENSE_HU = -500.0  # what pads is seen as such where it is denser than this, or no air at all
_FAR_HU = -1100.0
_LEAST_BACKGROUND = 0.2
_LEAST_PADDING = 0.002  # part of an image that one value must fill to be padding


def sparse(image: sitk.Image, side: int = 64) -> np.ndarray:
    """About ``side`` voxels along each axis, evenly spread (z, y, x): enough for what an image's values are like."""
    array = sitk.GetArrayViewFromImage(image)
    return array[tuple(slice(None, None, max(1, n // side)) for n in array.shape)]


def padding(image: sitk.Image, least: float = _LEAST_PADDING) -> list[float]:
    """Values that fill a corner and at least this part of the image."""
    array, sample = sitk.GetArrayViewFromImage(image), sparse(image)
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in array.shape], indexing="ij"), -1).reshape(-1, array.ndim)
    values = {float(array[tuple(index)]) for index in ends}
    return sorted(value for value in values if (sample == value).mean() >= least)


def background(image: sitk.Image) -> float | None:
    """The value that fills a corner and a good part of an image that is no CT, as around a brain without its skull."""
    values = [] if looks_like_ct(image) else padding(image, _LEAST_BACKGROUND)
    return values[0] if len(values) == 1 else None


def hu_offset(image: sitk.Image) -> float | None:
    """What to add to a CT's numbers for Hounsfield units: 0, or -1024 where they start at 0; None: not a CT.

    Air (of lungs or of the room) makes a peak well below the soft tissue's, about 1000 below it; other images have
    no such pair of peaks at these places.
    """
    sample = sparse(image).astype(np.float32).ravel()
    sample = sample[~np.isin(sample, [v for v in padding(image) if not -1100 < v < -900])]
    if sample.size < 100:
        return None
    low, high = np.percentile(sample, (1, 99.5))
    if -4096 <= low <= -500 and high > -200:
        return 0.0
    if not (-50 <= low <= 400 and 800 <= high <= 6000):
        return None
    air, tissue, denser = ((low <= sample) & (sample < high) for low, high in ((-50, 400), (874, 1174), (1174, 1474)))
    between = ((sample > 500) & (sample < 824)).mean()
    plain = tissue.mean() > max(0.1, between, 3 * denser.mean()) and air.mean() > 0.05
    return -1024.0 if plain else None


def looks_like_ct(image: sitk.Image) -> bool:
    """Whether the numbers are Hounsfield units."""
    return hu_offset(image) == 0.0


def unseen_values(image: sitk.Image, offset: float = 0.0) -> list[float]:
    """The padding that is not the air that the scanner would have seen; ``offset`` makes values Hounsfield units."""
    return [value for value in padding(image) if value + offset > _DENSE_HU or value + offset < _FAR_HU]


def shown_box(image: sitk.Image) -> Box | None:
    """The box of what a CT shows: without the planes at its sides that padding fills; None where nothing pads it.

    Of other images None: what lies around an organ there says where it ends.
    """
    array, values = sitk.GetArrayViewFromImage(image), padding(image) if looks_like_ct(image) else []
    if not values:
        return None
    box = []
    for axis in range(array.ndim):
        planes = np.moveaxis(array, axis, 0)
        shown = (number for number in range(len(planes)) if not np.isin(planes[number], values).all())
        first = next(shown, 0)
        last = next((n for n in range(len(planes) - 1, first, -1) if not np.isin(planes[n], values).all()), first)
        box.append(slice(first, last + 1))
    whole = all(part.stop - part.start == n for part, n in zip(box, array.shape, strict=True))
    return None if whole else tuple(box)


def in_hu(image: sitk.Image, offset: float) -> sitk.Image:
    """Hounsfield units as float32, with air in the place of what pads the image and is not air."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    for value in unseen_values(image, offset):
        array[array == value] = _AIR_HU - offset
    out = sitk.GetImageFromArray(array + np.float32(offset))
    out.CopyInformation(image)
    return out


def hounsfield(image: sitk.Image, role: str) -> sitk.Image:
    """The image, or in Hounsfield units (with a notice) where it is a CT whose numbers start at 0."""
    offset = hu_offset(image)
    if not offset:
        return image
    notice(f"The {role} image was taken for a CT whose numbers start at 0; 1024 was subtracted.")
    return sitk.ShiftScale(sitk.Cast(image, sitk.sitkFloat32), offset, 1.0)
