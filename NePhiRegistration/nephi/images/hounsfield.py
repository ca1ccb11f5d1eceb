"""What an image's numbers mean: whether they are Hounsfield units, shifted or inverted, and which value pads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..space.grid import Box

CT_WINDOW = (-1000.0, 200.0)
_AIR_HU = -1000.0
_DENSE_HU = -500.0  # padding is recognised if it is denser than this, or not air at all
_FAR_HU = -1100.0
_AIR, _SOFT = (-1050.0, -700.0), (-150.0, 150.0)  # Hounsfield units
_LUNG_HU = (-950.0, -500.0)
_FAT_HU = -50.0  # fat, and edges of the body, are darker
_MUCH_LESS = 0.5  # as like a CT
_BETWEEN = 0.5  # of a peak: less than this lies between air and soft tissue
_THINNER = 0.1  # of air: noise of 60 HU takes a twentieth below -1100
_LEAST_BACKGROUND = 0.2
LEAST_PADDING = 0.002  # part of an image that one value must fill to be padding
_LINE = 3  # voxels from a corner that padding fills
_SIGNED, _WRAP = 2**15, 2**16  # from which 16-bit values are negative if signed, and the difference


def sparse(image: sitk.Image, side: int = 64) -> np.ndarray:
    """About ``side`` voxels along each axis, evenly spaced (z, y, x): enough to characterise the values of an image."""
    array = sitk.GetArrayViewFromImage(image)
    return array[tuple(slice(None, None, max(1, n // side)) for n in array.shape)]


def lungs_share(image: sitk.Image) -> float:
    """Part of a CT, but for the air around it and padding, that is as dark as lungs."""
    shown = sparse(image)
    shown = shown[(shown > _LUNG_HU[0]) & ~np.isin(shown, padding(image))]
    return float((shown < _LUNG_HU[1]).mean()) if shown.size else 0.0


def padding(image: sitk.Image, least: float = LEAST_PADDING) -> list[float]:
    """Values that fill a corner, all but one direction from it at least, and at least this part of the image."""
    array, sample = sitk.GetArrayViewFromImage(image), np.ascontiguousarray(sparse(image))  # it is read many times
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in array.shape], indexing="ij"), -1).reshape(-1, array.ndim)
    values = {float(array[tuple(index)]) for index in ends if _filled_from(array, index)}
    return sorted(value for value in values if (sample == value).mean() >= least)


def _filled_from(array: np.ndarray, corner: np.ndarray) -> bool:
    """Whether a region of one value starts at the corner; a frequent value of tissue does not form one."""
    alike = 0
    for axis, at in enumerate(corner):
        line = array[(*corner[:axis], slice(None), *corner[axis + 1 :])]
        alike += bool(((line[:_LINE] if at == 0 else line[-_LINE:]) == line[at]).all())
    return alike >= array.ndim - 1


def background(image: sitk.Image) -> float | None:
    """The value that fills a corner and much of an image that is not a CT, as around a brain without its skull."""
    values = [] if looks_like_ct(image) else padding(image, _LEAST_BACKGROUND)
    return values[0] if len(values) == 1 else None


def far_padding(image: sitk.Image) -> list[float]:
    """The padding of an image that is not a CT, whose values are far from all others.

    For instance where an image was resampled onto a larger grid: it shows nothing, not even where the body ends.
    """
    values = [] if looks_like_ct(image) else padding(image)
    sample = sparse(image)
    rest = sample[~np.isin(sample, values)]
    if not values or not rest.size:
        return []
    low, high = np.percentile(rest, (1, 99))
    far = [value for value in values if not 2 * low - high <= value <= 2 * high - low]
    return far if low < high else []


def shown_range(image: sitk.Image) -> tuple[float, float]:
    """1st and 99th percentile of the values that an image other than a CT shows."""
    sample = sparse(image)
    shown = sample[~np.isin(sample, far_padding(image))]
    low, high = np.percentile(shown if shown.size else sample, (1, 99))
    return float(low), float(high)


@dataclass(frozen=True)
class Units:
    """A CT's value is ``slope * value + offset`` in Hounsfield units."""

    slope: float = 1.0
    offset: float = 0.0


HU = Units()


def hu_units(image: sitk.Image) -> Units | None:
    """In which units a CT's numbers are: Hounsfield units, or those plus 1024, or with inverted contrast; None: no CT.

    Air (of lungs or of the room) makes a peak well below the soft tissue's, about 1000 below it; other images have
    no such pair of peaks at these places.
    """
    return _units(sparse(image).astype(np.float32).tobytes(), tuple(padding(image)))


@lru_cache(maxsize=8)  # in a run it is asked twenty times, of the same images
def _units(sparse_values: bytes, pads: tuple[float, ...]) -> Units | None:
    sample = np.frombuffer(sparse_values, np.float32)
    own = sample[~np.isin(sample, [v for v in pads if not -1100 < v < -900])]
    shown = sample[~np.isin(sample, pads)]
    inverted, likeness = _inverted(shown)
    if own.size < 100 or not shown.size:
        return inverted
    if (shown < _FAT_HU).mean() < LEAST_PADDING:  # padding does not make an image a CT
        own = shown
    low, high = np.percentile(own, 1), np.percentile(shown, 99.5)  # lungs that are cut out of the body are little
    if -4096 <= low <= -500 and high > -200:  # padding can be as low, whatever the units
        raised = _like_ct(own - 1024)
        # a canvas of air leaves little soft tissue: inverted contrast is judged without it, too
        if max(_like_ct(own), _like_ct(shown)) > _MUCH_LESS * max(raised, likeness):
            return HU
        return inverted if inverted is not None and likeness > raised else Units(1.0, -1024.0)
    if not (-50 <= low <= 400 and 800 <= high <= 6000):
        return inverted
    air, tissue, denser = ((low <= own) & (own < high) for low, high in ((-50, 400), (874, 1174), (1174, 1474)))
    between = ((own > 500) & (own < 824)).mean()
    plain = tissue.mean() > max(0.1, between / _BETWEEN, 3 * denser.mean()) and air.mean() > 0.05
    return Units(1.0, -1024.0) if plain else inverted


def _share(hu: np.ndarray, low: float, high: float) -> float:
    return float(((low < hu) & (hu < high)).mean())


def _like_ct(hu: np.ndarray) -> float:
    """0..1: how much of it is air and soft tissue, if it is both."""
    return float(np.sqrt(_share(hu, *_AIR) * _share(hu, *_SOFT)))


def _inverted(sample: np.ndarray) -> tuple[Units | None, float]:
    """The units of a CT with inverted contrast, and how much it then resembles a CT.

    Something denser than soft tissue must be present, as the background of other images is at the end of their values;
    and only noise may be thinner than air, as the brightest part of other images extends beyond any peak.
    """
    if sample.size < 100:
        return None, 0.0
    least = float(-sample.max())
    offsets, ordered = -1000.0 - least - np.arange(-200.0, 1200.0, 25.0), np.sort(sample)

    def shares(low: float, high: float) -> np.ndarray:
        """For each offset, the share of the sample whose Hounsfield units, offset - value, lie between the two."""
        ends = np.searchsorted(ordered, offsets - high, "right"), np.searchsorted(ordered, offsets - low, "left")
        return (ends[1] - ends[0]) / len(ordered)

    likeness = np.sqrt(shares(*_AIR) * shares(*_SOFT))
    best = int(np.median(np.flatnonzero(likeness >= 0.99 * likeness.max())))
    hu = np.float32(offsets[best]) - sample
    soft, between, denser = _share(hu, *_SOFT), _share(hu, -500, -200), _share(hu, 150, 450)
    air, thinner = _share(hu, *_AIR), float((hu < _FAR_HU).mean())
    peaks = air > max(0.05, between / _BETWEEN, thinner / _THINNER) and soft > max(0.1, between, 3 * denser)
    there = peaks and (hu > 150).mean() > 0.002
    return (Units(-1.0, float(offsets[best])), float(likeness[best])) if there else (None, 0.0)


def looks_like_ct(image: sitk.Image) -> bool:
    """Whether the numbers are Hounsfield units."""
    return hu_units(image) == HU


def unseen_values(image: sitk.Image, units: Units = HU) -> list[float]:
    """The padding that is not the air that the scanner would have seen, in the image's own units."""
    in_hounsfield = {value: units.slope * value + units.offset for value in padding(image)}
    return [value for value, hu in in_hounsfield.items() if hu > _DENSE_HU or hu < _FAR_HU]


def shown_box(image: sitk.Image) -> Box | None:
    """The box of a CT without the planes at its sides that are all padding; None without padding.

    None for other images: their surroundings show where an organ ends.
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


def in_hu(image: sitk.Image, units: Units) -> sitk.Image:
    """Hounsfield units as float32, with air instead of padding that is not air."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    unseen = np.isin(array, unseen_values(image, units))
    array *= np.float32(units.slope)
    array += np.float32(units.offset)
    array[unseen] = _AIR_HU
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    return out


def _wrapped(image: sitk.Image) -> bool:
    """Whether the values are a CT's but for negative ones, which are those of unsigned numbers of 16 bits."""
    sample = sparse(image).astype(np.float32)
    high = sample >= _SIGNED
    if not (high.any() and sample.max() < _WRAP and sample.min() >= 0) or (sample[~high] >= _SIGNED / 2).any():
        return False
    pads = tuple(value - _WRAP * (value >= _SIGNED) for value in padding(image))
    return _units(np.where(high, sample - _WRAP, sample).astype(np.float32).tobytes(), pads) == HU


def hounsfield(image: sitk.Image, role: str) -> sitk.Image:
    """The image; a CT whose values start at 0 or are inverted is converted to Hounsfield units, with a notice.

    Raises NephiError for a CT whose negative values were stored without sign, which can't be used as it is.
    """
    if _wrapped(image):
        raise NephiError(
            f"{role} image: a CT whose negative values were stored without sign (64536 for -1000); subtract 65536 from "
            "values above 32767, or convert the scan again"
        )
    units = hu_units(image)
    if units is None or units == HU:
        return image
    if units.slope < 0:
        notice(f"The {role} image seems to be a CT with inverted contrast; it was converted to Hounsfield units.")
    else:
        notice(f"The {role} image seems to be a CT whose values start at 0; 1024 was subtracted.")
    return sitk.ShiftScale(sitk.Cast(image, sitk.sitkFloat32), units.offset / units.slope, units.slope)
