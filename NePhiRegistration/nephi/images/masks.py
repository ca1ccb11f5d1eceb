"""Detection of CTs, the intensity window and the lungs."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..settings import BODY_MM
from ..space.grid import Grid

CT_WINDOW = (-1000.0, 200.0)
LUNG_THRESHOLD_HU = -400.0
_LEAST_PART = 0.01


def looks_like_ct(image: sitk.Image) -> bool:
    """Hounsfield units by their range: air well below zero and nothing far below -4000."""
    array = sitk.GetArrayViewFromImage(image)[:: max(1, image.GetSize()[-1] // 16)]
    low, high = np.percentile(array[..., ::4, ::4], (1, 99.5))
    return bool(-4096 <= low <= -500 and high > -200)


def choose_window(image: sitk.Image, mask: sitk.Image | None = None) -> tuple[float, float]:
    """Intensities to map to 0..1: -1000..200 HU for CT, else the 1st to 99th percentile of the non-zero values."""
    if looks_like_ct(image):
        return CT_WINDOW
    array = sitk.GetArrayViewFromImage(image)
    step = tuple(slice(None, None, max(1, n // 128)) for n in array.shape)
    values = array[step][sitk.GetArrayViewFromImage(mask)[step] != 0] if mask is not None else array[step]
    values = values if values.size else array  # a small mask may slip through the steps
    values = values[values != 0] if (values != 0).any() else values
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return (low, high) if low < high else (float(array.min()), float(array.max()))


def lung_mask(image: sitk.Image, threshold: float = LUNG_THRESHOLD_HU) -> sitk.Image | None:
    """Lungs of a CT by threshold: air inside the body, its two largest parts, vessels filled in.

    Works at about 3 mm and comes back on the image's grid; None where no plausible lung is found
    (less than 200 ml), so that a caller can continue without a mask. The trachea may stay in. In an image
    shorter than ``BODY_MM`` all lengths are scaled down.
    """
    grid = Grid.of(image)
    d = grid.dimension
    scale = min(1.0, grid.longest_side_mm / BODY_MM)  # of all lengths, for small bodies
    shrink = [max(1, min(int(3.0 * scale / s), n)) for s, n in zip(grid.spacing_mm, grid.size, strict=True)]
    small = sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), shrink)
    air = small < threshold
    # air outside the body touches the sides (not the top and bottom, where a cut lung may end)
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.BinaryMorphologicalOpening(air, [1] * d)))
    outside: set[int] = set()
    for axis in range(d - 2, d) if d == 3 else range(d):
        outside.update(np.unique(np.take(labels, [0, -1], axis=axis)))
    inside = sitk.GetImageFromArray((~np.isin(labels, list(outside | {0}))).astype(np.uint8))
    inside.CopyInformation(small)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(inside), sortByObjectSize=True)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(parts)
    volumes = [shape.GetPhysicalSize(label) for label in (1, 2) if shape.HasLabel(label)]
    floor = 200e3 if d == 3 else 1000.0
    if scale < 1:  # the least part of a field of view that lungs would fill
        floor = _LEAST_PART * grid.voxel_volume_mm3 * float(np.prod(grid.size))
    if not volumes or volumes[0] < floor:
        return None
    two = len(volumes) == 2 and volumes[1] > 0.2 * volumes[0]
    lungs = sitk.Cast(sitk.And(parts >= 1, parts <= (2 if two else 1)), sitk.sitkUInt8)
    radius = [max(1, round(6.0 * scale / s)) for s in small.GetSpacing()]
    lungs = sitk.BinaryMorphologicalClosing(lungs, radius)
    lungs = sitk.BinaryFillhole(lungs)
    smooth = grid.resample(sitk.Cast(lungs, sitk.sitkFloat32)) > 0.5
    return sitk.Cast(smooth, sitk.sitkUInt8)


def mask_box(mask: sitk.Image) -> tuple[slice, ...]:
    """The box of a mask that is not 0, as slices of its array (z first)."""
    array = sitk.GetArrayViewFromImage(mask)
    planes = np.flatnonzero([plane.any() for plane in array])
    box = [slice(int(planes[0]), int(planes[-1]) + 1)]
    flat = np.bitwise_or.reduce(array[box[0]], axis=0)
    for axis in range(flat.ndim):
        rows = np.flatnonzero(flat.any(tuple(a for a in range(flat.ndim) if a != axis)))
        box.append(slice(int(rows[0]), int(rows[-1]) + 1))
    return tuple(box)


def region_lps_mm(image: sitk.Image, mask: sitk.Image | None) -> np.ndarray:
    """Corners (n, d) of the mask's bounding box, or of the image."""
    grid = Grid.of(image)
    if mask is None:
        return grid.corners_lps_mm()
    box = mask_box(mask)[::-1]
    low, high = (np.array([getattr(part, end) for part in box]) for end in ("start", "stop"))
    corners = np.stack(np.meshgrid(*zip(low, high - 1, strict=True), indexing="ij"), -1)
    return grid.to_lps_mm(corners.reshape(-1, grid.dimension))
