"""Images resampled through a transform, or through a displacement on a coarse grid, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from ..device import in_threads
from ..errors import notice
from ..files.transform import displacement_transform
from ..space.grid import Grid
from .sampling import aligned_places, displaced_places, interpolated_at, neighbours

_EXACT = (np.int8, np.uint8, np.int16, np.uint16, np.float32)  # types that single precision represents exactly
_SAMPLED, _MOST_LABELS = 64, 64  # voxels along each axis, and most values of what may be a label map
_TOGETHER = 8  # output slices that share the input slices they are read from
_MOST_ROWS = 2**16  # that one slice reads from: with more, single precision has errors of 1/256 voxel


def warn_of_side(image: sitk.Image, fixed: Grid, moving: Grid, inverse: bool) -> None:
    """A notice if a fixed image is warped as the moving one, or, with ``inverse``, the other way round."""
    own, other = (fixed, moving) if inverse else (moving, fixed)
    given = Grid.of(image)
    if given.same_as(other) and not given.same_as(own):
        here, there = ("moving", "fixed") if inverse else ("fixed", "moving")
        notice(
            f"The input image has the grid of the {here} image, but it is warped as a {there} one; "
            f"{'without' if inverse else 'with'} --inverse (inverse={not inverse}) it is warped as a {here} one."
        )


def warn_of_blank(image: sitk.Image, warped: sitk.Image) -> None:
    """A notice if the warped image shows nothing of the input image."""
    before, after = sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(warped)
    if after.min() == after.max() and before.min() != before.max():
        notice(
            "The warped image shows nothing of the input image: the map takes it elsewhere. Check that it is of this "
            "patient, in the frame of the registered images, and warped in the intended direction."
        )


def warn_of_labels(image: sitk.Image) -> None:
    """A notice if an image that was interpolated linearly looks like a label map."""
    array = sitk.GetArrayViewFromImage(image)
    steps = tuple(max(1, n // _SAMPLED) for n in array.shape)
    some = array[tuple(slice(None, None, step) for step in steps)]
    values = np.unique(some) if np.issubdtype(array.dtype, np.integer) else np.empty(0)
    if 2 < len(values) <= _MOST_LABELS:
        notice(
            f"The input image has only {len(values)} values and was interpolated; if it is a label map, give --labels "
            "(labels=True), otherwise values between its labels arise."
        )


def warped_slices(
    image: sitk.Image, grid: Grid, displacement_mm: np.ndarray, coarse: Grid, outside: float
) -> Iterator[np.ndarray]:
    """The image on ``grid`` through a displacement, slice by slice: (y, x) of the image's type, interpolated linearly.

    ``displacement_mm`` (z, y, x, d) maps the nodes of ``coarse``, which covers the same box as ``grid``, into the
    image, and is linear between them. ``outside``: the value beyond the image. Integers are rounded. Positions differ
    from those of ITK by at most 1/256 of a voxel, at a third of its cost.
    """
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.type not in _EXACT or min(array.shape) < 2 or min(grid.shape) < 2 or array.ndim != 3:
        yield from _by_itk(image, grid, displacement_mm, coarse, outside)
        return
    positions = np.empty(displacement_mm.shape, np.float32)  # (z, y, x, d), indices of the image, x first
    for z in range(len(positions)):
        points = coarse.slab_lps_mm(z, z + 1).reshape(displacement_mm.shape[1:]) + displacement_mm[z]
        positions[z] = Grid.of(image).to_index(points)
    along = positions[..., 2]
    if (along.max((1, 2)) - along.min((1, 2))).max() * array.shape[1] > _MOST_ROWS / 2:
        yield from _by_itk(image, grid, displacement_mm, coarse, outside)
        return
    whole_numbers = np.issubdtype(array.dtype, np.integer)
    places = np.linspace(0, len(positions) - 1, grid.shape[0])
    spread = (along.max((1, 2)) - along.min((1, 2))).max() + 2 * _TOGETHER
    many = _TOGETHER if spread * array.shape[1] < _MOST_ROWS else 1
    between = [_Interpolation.of(positions.shape[axis], grid.shape[axis]) for axis in (1, 2)]

    def warped(start: int) -> list[np.ndarray]:
        some = places[start : start + many]
        below = np.minimum(some.astype(int), len(positions) - 2)
        tall, made = _Tall(array, along[below[0] : below[-1] + 2]), []
        for place, node in zip(some, below, strict=True):
            nodes = torch.from_numpy(positions[node : node + 2])
            values = tall.read(torch.lerp(nodes[0], nodes[1], float(place - node)), between, outside)
            made.append((values.round_() if whole_numbers else values).numpy().astype(array.dtype))
        return made

    for slices in in_threads(warped, range(0, len(places), many)):
        yield from slices


def linear_through(image: sitk.Image, grid: Grid, transform: sitk.Transform | None, outside: float = 0.0) -> np.ndarray:
    """An image (z, y, x; float32) on ``grid`` through ``transform``, interpolated linearly, as in ITK.

    ``outside``: the value beyond the image. A displacement field is evaluated in single precision, with an error below
    a ten-thousandth of a voxel.
    """
    array, own = sitk.GetArrayViewFromImage(image), Grid.of(image)
    out = np.empty(grid.shape, np.float32)
    places = aligned_places(own, grid, transform) if array.dtype.type in _EXACT else None
    if places is not None:
        for row, values in zip(out, interpolated_at(array, places, grid.size, outside), strict=True):
            row[...] = values
        return out
    found = displaced_places(transform, grid, own) if array.dtype.type in _EXACT else None
    if found is None:
        return sitk.GetArrayFromImage(grid.resample(image, transform, sitk.sitkLinear, outside, sitk.sitkFloat32))
    size, table = array.shape[::-1], torch.from_numpy(array.astype(np.float32))[None, None]

    def read(index: list[np.ndarray]) -> np.ndarray:
        seen = np.logical_and.reduce([(k >= -0.5) & (k < n - 0.5) for k, n in zip(index, size, strict=True)])
        # grid_sample has -1 and 1 at the first and last voxel
        unit = [k * np.float32(2 / max(n - 1, 1)) - np.float32(1) for k, n in zip(index, size, strict=True)]
        position = torch.from_numpy(np.stack(unit, -1))[None, None]
        values = functional.grid_sample(table, position, padding_mode="border", align_corners=True)
        return np.where(seen, values.reshape(unit[0].shape).numpy(), np.float32(outside))

    for row, values in zip(out, in_threads(read, found), strict=True):
        row[...] = values
    return out


@dataclass(frozen=True)
class _Interpolation:
    """Linear interpolation at evenly spaced positions from the first to the last node along an axis."""

    below: Tensor
    part: Tensor

    @classmethod
    def of(cls, nodes: int, count: int) -> _Interpolation:
        below, part, _ = neighbours(np.linspace(0, nodes - 1, count), nodes)
        return cls(torch.from_numpy(below), torch.from_numpy(part))

    def __call__(self, values: Tensor, axis: int) -> Tensor:
        part = self.part.reshape(-1, *[1] * (values.ndim - 1 - axis))
        low, high = (values.index_select(axis, self.below + k) for k in (0, 1))
        return low.lerp_(high, part)


class _Tall:
    """Slices of an image, stacked to one tall 2D image of two channels: each slice and the one above it.

    Reading both in 2D is several times faster than interpolating in 3D.
    """

    def __init__(self, array: np.ndarray, along: np.ndarray):
        """``along``: indices of the slices to read."""
        depth, height, width = array.shape
        self.size = width, height, depth
        self.first = int(np.clip(along.min(), 0, depth - 2))
        self.last = max(self.first + 2, min(int(np.clip(along.max(), 0, depth - 1)) + 2, depth))
        tall = torch.from_numpy(np.array(array[self.first : self.last], np.float32))
        self.rows = (len(tall) - 1) * height
        strides = (0, height * width, width, 1)
        self.pair = tall.as_strided((1, 2, self.rows, width), strides)

    def read(self, nodes: Tensor, between: list[_Interpolation], outside: float) -> Tensor:
        """Values (y, x) at indices given at nodes (j, i, 3) and interpolated linearly between them along y and x."""
        size = torch.tensor(self.size)
        width, height, depth = self.size
        low, high = nodes.amin((0, 1)), nodes.amax((0, 1))
        # in grid_sample's units: -1 and 1 at the first and last voxel
        unit = nodes.new_tensor([2 / (width - 1), 2 / (self.rows - 1), 1.0])
        first = nodes.new_tensor([-1.0, -1.0, -float(self.first)])
        scaled = (nodes * unit + first).movedim(-1, 0).contiguous()
        along_y, along_x = between
        places = along_y(along_x(scaled, 2), 1)
        x, y, z = places
        unseen = None
        for axis, along in enumerate((x, y, z)):
            if low[axis] < -0.5 or high[axis] >= size[axis] - 0.5:
                start, end = ((edge * unit[axis] + first[axis]).item() for edge in (-0.5, size[axis] - 0.5))
                values = along.numpy()  # numpy compares in a fifth of torch's time
                beyond = np.logical_or(values < start, values >= end)
                unseen = beyond if unseen is None else np.logical_or(unseen, beyond, out=unseen)
        if low[1] < 0 or high[1] > height - 1:
            y.clamp_(-1.0, -1.0 + float(unit[1]) * (height - 1))
        z.clamp_(0, self.last - 1 - self.first)
        below = z.floor().clamp_(max=self.last - 2 - self.first)
        y.add_(below, alpha=float(unit[1]) * height)
        grid = places[None, :2].movedim(1, -1)
        read = functional.grid_sample(self.pair, grid, padding_mode="border", align_corners=True)[0]
        found = torch.lerp(read[0], read[1], z.sub_(below))
        if unseen is not None:
            np.copyto(found.numpy(), np.float32(outside), where=unseen)
        return found


def _by_itk(
    image: sitk.Image, grid: Grid, displacement_mm: np.ndarray, coarse: Grid, outside: float
) -> Iterator[np.ndarray]:
    transform = displacement_transform(displacement_mm, coarse)
    for start in range(0, grid.shape[0], 32):
        part = grid.slices(start, min(start + 32, grid.shape[0])) if grid.dimension == 3 else grid
        yield from sitk.GetArrayFromImage(part.resample(image, transform, sitk.sitkLinear, outside))
        if grid.dimension == 2:
            return
