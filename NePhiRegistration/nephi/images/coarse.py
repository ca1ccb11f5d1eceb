"""An image at a coarse scale, for the search for the start: features, where it was seen, and where the body is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from ..space.grid import Grid
from .blocks import shrink_factors
from .hounsfield import CT_WINDOW, far_padding, looks_like_ct, shown_range, unseen_values

_EDGE = 0.04  # change of the prepared values, from the background or between voxels, that marks the body
_FLAT_AIR_HU = -900.0
_LUNG = 0.5  # of a CT's prepared values: -400 HU
_LEAST_INNER = 0.03  # part of the body
_FINEST_PARTS = 2  # voxels of an image along each axis that are averaged for one at a coarse scale, at least


@dataclass(frozen=True)
class Coarse:
    """Features (c, z, y, x) on a grid along the patient's axes, with masks (z, y, x).

    The masks are: the field of view (0 or 1), the body, and the part that matters: a mask, or the air in the body of a
    CT; None where no part does.
    """

    features: Tensor
    seen: Tensor
    body: Tensor
    inner: Tensor | None
    spacing_mm: float
    origin_lps_mm: np.ndarray

    @property
    def size_xyz(self) -> np.ndarray:
        return np.array(self.seen.shape[::-1])

    @property
    def centre_lps_mm(self) -> np.ndarray:
        return self.origin_lps_mm + (self.size_xyz - 1) / 2 * self.spacing_mm

    def at(self, points_lps_mm: Tensor) -> Tensor:
        """Features and whether they are seen, (c + 1, ...), at points (..., d)."""
        d, size = self.seen.ndim, torch.as_tensor(self.size_xyz, dtype=torch.float32)
        index = (points_lps_mm - torch.as_tensor(self.origin_lps_mm, dtype=torch.float32)) / self.spacing_mm
        place = (2 * index / (size - 1).clamp(min=1) - 1).reshape(1, *[1] * (d - 1), -1, d)
        read = functional.grid_sample(self._volume, place, align_corners=True)
        return read.reshape(self._volume.shape[1], *points_lps_mm.shape[:-1])

    @cached_property
    def _volume(self) -> Tensor:
        return torch.cat([self.features, self.seen[None]])[None]

    def points(self, where: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """About ``most`` evenly spaced voxels of a mask (z, y, x): points_lps_mm (n, d) and features (c, n)."""
        index_zyx = torch.nonzero(where)
        index_zyx = index_zyx[:: max(1, round(len(index_zyx) / most)) | 1]  # odd: no plane of the grid is left out
        origin = torch.as_tensor(self.origin_lps_mm, dtype=torch.float32)
        values = self.features[(slice(None), *index_zyx.T)]
        return origin + index_zyx.flip(1).float() * self.spacing_mm, values

    def with_slopes(self) -> Coarse:
        """Each feature is followed by its slopes per mm: (c + c d, ...), x first."""
        slopes = [gradient(channel, self.seen > 0) / self.spacing_mm for channel in self.features]
        return replace(self, features=torch.cat([self.features, *slopes]))

    def near(self, part: Tensor, mm: float) -> Tensor:
        """(z, y, x) bool: within a distance of a part of the grid, and seen."""
        return grown(part, round(mm / self.spacing_mm)) & (self.seen > 0.5)


def blurred(values: Tensor, seen: Tensor | None = None) -> Tensor:
    """Binomial filter (1, 2, 1) along each axis of (c, ...) where a place and both its neighbours were seen (...);
    elsewhere values stay as they are, as a mean over one neighbour alone would be that of another place."""
    seen = torch.ones(values.shape[1:], dtype=torch.bool) if seen is None else seen
    for axis in range(seen.ndim):
        n = seen.shape[axis]
        if n < 3:
            continue
        before, here, after = (values.narrow(axis + 1, k, n - 2) for k in range(3))
        use = seen.narrow(axis, 0, n - 2) & seen.narrow(axis, 1, n - 2) & seen.narrow(axis, 2, n - 2)
        bent = (before - 2 * here + after) / 4 * use
        values = values.clone()
        values.narrow(axis + 1, 1, n - 2).add_(bent)
    return values


def gradient(values: Tensor, seen: Tensor | None = None) -> Tensor:
    """(...) -> (d, ...), per voxel, x first: the mean of the differences to those neighbours along each axis that were
    seen, as the voxel was (0 without any)."""
    seen = torch.ones_like(values, dtype=torch.bool) if seen is None else seen
    slopes = []
    for axis in reversed(range(values.ndim)):
        n = values.shape[axis]
        both = seen.narrow(axis, 0, n - 1) & seen.narrow(axis, 1, n - 1)
        step = (values.narrow(axis, 1, n - 1) - values.narrow(axis, 0, n - 1)) * both
        total, number = torch.zeros_like(values), torch.zeros_like(values)
        for first in (0, 1):
            total.narrow(axis, first, n - 1).add_(step)
            number.narrow(axis, first, n - 1).add_(both)
        slopes.append(total / number.clamp(min=1))
    return torch.stack(slopes)


def grown(part: Tensor, voxels: int) -> Tensor:
    """((z,) y, x) bool: the dilation of a part (0 or 1) by a number of voxels along each axis."""
    found = part.bool()
    for axis in range(found.ndim):
        last, wider = found.shape[axis] - 1, found.clone()
        for step in range(1, min(voxels, last) + 1):
            near, far = wider.narrow(axis, 0, last + 1 - step), wider.narrow(axis, step, last + 1 - step)
            near |= found.narrow(axis, step, last + 1 - step)
            far |= found.narrow(axis, 0, last + 1 - step)
        found = wider
    return found


@dataclass(frozen=True)
class Prepared:
    """Some of an image's voxels: values 0..1, where they were seen (0 or 1), a given mask; ``ct``: Hounsfield units."""

    values: sitk.Image
    seen: sitk.Image
    mask: sitk.Image | None
    ct: bool

    @classmethod
    def of(cls, image: sitk.Image, mask: sitk.Image | None, spacing_mm: float) -> Prepared:
        """``spacing_mm``: the finest scale."""
        steps = [max(1, int(spacing_mm / _FINEST_PARTS / s)) for s in image.GetSpacing()]
        part = tuple(slice(n // 2 if size > n else 0, None, n) for n, size in zip(steps, image.GetSize(), strict=True))
        if max(steps) > 1:
            image, mask = image[part], None if mask is None else mask[part]
        mask = None if mask is None else sitk.Cast(mask != 0, sitk.sitkFloat32)
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        if ct := looks_like_ct(image):
            unseen, (low, high) = _filled(array, unseen_values(image)), CT_WINDOW
        else:
            unseen = np.isin(array, far_padding(image))
            low, high = shown_range(image)
        array -= low
        array /= high - low if high > low else 1.0
        np.clip(array, 0.0, 1.0, out=array)
        array[unseen] = 0.0
        grid = Grid.of(image)
        return cls(grid.image(array), grid.image((~unseen).astype(np.float32)), mask, ct)

    def at_scale(self, spacing_mm: float) -> Coarse:
        """Averaged, then resampled over the box of the body."""
        grid = Grid.of(self.values)
        d = grid.dimension
        shrink = shrink_factors(grid, spacing_mm)
        # beyond the centres of the outermost blocks nothing can be read between two of them
        corners = Grid.of(sitk.BinShrink(self.seen, shrink)).corners_lps_mm()
        low, high = corners.min(0), corners.max(0)
        size = np.maximum(np.floor((high - low) / spacing_mm + 1e-6), 1).astype(int) + 1
        low = low + np.maximum(high - low - (size - 1) * spacing_mm, 0) / 2
        out = Grid(tuple(map(int, size)), (spacing_mm,) * d, tuple(map(float, low)), tuple(np.eye(d).ravel()))

        def resampled(image: sitk.Image) -> Tensor:
            array = sitk.GetArrayFromImage(out.resample(sitk.BinShrink(image, shrink), outside=0.0))
            return torch.from_numpy(array)

        part, sums = resampled(self.seen), resampled(self.values)
        seen = part > 0.5
        values = sums / part.clamp(min=0.1)
        values = blurred(values[None] * seen, seen)[0]
        # where the image ends there is no edge of the patient, nor a place without edges that could tell images apart
        edges = gradient(values, seen).square().sum(0).sqrt()  # a norm over the first axis takes far longer
        body = _body(values, seen, edges, self.ct)
        box = []
        for axis in range(d):
            rows = torch.nonzero(body.movedim(axis, 0).flatten(1).any(1))[:, 0]
            n, margin = body.shape[axis], 3
            first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, n - 1)
            box.append(slice(max(0, first - margin), min(n, last + margin + 1)))
        start = np.array([s.start for s in reversed(box)])
        channels, inner = [values, edges.sqrt()], None
        if self.mask is not None:
            channels.append(blurred(resampled(self.mask)[None], seen)[0])
            inner = channels[-1] > 0.5
        elif self.ct:
            air = (values < _LUNG) & ~grown(~body, 1)
            inner = air if air.sum() >= _LEAST_INNER * body.sum() else None
        where = tuple(box)
        features = torch.stack(channels)[(slice(None), *where)] * seen[where]
        inner = None if inner is None else inner[where]
        return Coarse(features, seen[where].float(), body[where], inner, spacing_mm, low + start * spacing_mm)


def _filled(array: np.ndarray, padding_hu: list[float]) -> np.ndarray:
    """Where Hounsfield units are padding, or air that is constant along x and y: unknown regions."""
    flat = array <= _FLAT_AIR_HU
    for axis in (-1, -2):
        along, alike = np.moveaxis(array, axis, 0), np.zeros(array.shape, bool)
        same, near = along[1:] == along[:-1], np.moveaxis(alike, axis, 0)
        near[1:] |= same
        near[:-1] |= same
        flat &= alike
    for value in padding_hu:
        flat |= array == value
    return flat


def _body(values: Tensor, seen: Tensor, edges: Tensor, ct: bool) -> Tensor:
    """The body: what lies between tissue on both sides along x and along y, of the largest foreground part.

    The background is the value of most of the image border; if the body reaches it, regions with edges count. In a CT
    it is air, even if most of the border cuts through the body.
    """
    d = values.ndim
    sides = torch.cat([values.movedim(a, 0)[[0, -1]].flatten() for a in (d - 1, d - 2)])
    sides_seen = torch.cat([seen.movedim(a, 0)[[0, -1]].flatten() for a in (d - 1, d - 2)])
    shown = sides[sides_seen]
    background = float(shown.median()) if len(shown) and not ct else 0.0
    tissue = seen & (((values - background).abs() > 4 * _EDGE) | (edges > _EDGE))
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(tissue.numpy().astype(np.uint8))))
    if not parts.any():
        return seen
    tissue = torch.from_numpy(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    hull = torch.ones_like(tissue)
    for axis in (d - 1, d - 2):
        before = tissue.int().cummax(axis).values
        after = tissue.flip(axis).int().cummax(axis).values.flip(axis)
        hull &= (before * after) > 0
    return hull & seen
