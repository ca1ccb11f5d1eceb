"""Images on a device, resampled onto working grids there, as ``slices.Slices`` does with SimpleITK on the CPU."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional as F

from ..space.affine import Affine
from ..space.grid import Grid
from ..space.interpolate import interpolate
from .slices import GridSlices, averaging

_POINTS = 2**18  # interpolated at a time
_KEPT = (torch.uint8, torch.int16, torch.float32)  # sent to the device as they are


class DeviceImage:
    """The voxels of an image on a device; sent there once, as they are stored where that is exact."""

    def __init__(self, image: sitk.Image, device: torch.device):
        array = sitk.GetArrayFromImage(image)
        self.whole_numbers = np.issubdtype(array.dtype, np.integer)
        values = torch.from_numpy(array)
        self.values = (values if values.dtype in _KEPT else values.float()).to(device)
        self.grid, self.image = Grid.of(image), image
        self._averaged: dict[tuple[int, ...], Tensor] = {}

    def averaged(self, factor: tuple[int, ...]) -> Tensor:
        """Means of blocks of ``factor`` voxels along x, y (, z); incomplete blocks at the end are cut off."""
        if max(factor) == 1:
            return self.values
        if factor not in self._averaged:
            pool = (F.avg_pool2d, F.avg_pool3d)[len(factor) - 2]
            means = pool(self.values[None, None].float(), factor[::-1])[0, 0]
            self._averaged[factor] = (means + 0.5).floor() if self.whole_numbers else means  # as ITK
        return self._averaged[factor]


class DeviceSlices(GridSlices[Tensor]):
    """An image on a working grid, resampled a few slices at a time: ``slices[start:stop]`` is float32 (z, y, x).

    The image is averaged first where the grid is coarser. ``affine`` takes points of the grid to points of the image;
    ``outside`` is the value beyond it. The same values as ``image.Slices`` gives, to a thousandth of a grey value.
    """

    def __init__(self, image: DeviceImage, grid: Grid, affine: Affine | None = None, outside: float = 0.0):
        super().__init__(grid)
        factor = averaging(grid, image.grid.spacing_mm, image.grid.size)
        self._values, self._outside = image.averaged(factor), outside

        def index(index_xyz: np.ndarray) -> np.ndarray:
            """Continuous index in the averaged image of one in the grid."""
            points = grid.to_lps_mm(index_xyz)
            points = points if affine is None else affine(points)
            return (image.grid.to_index(points) - (np.array(factor) - 1) / 2) / factor

        self._first = index(np.zeros(grid.dimension))
        self._step = index(np.eye(grid.dimension)) - self._first  # row: along one axis of the grid

    def _resampled(self, start: int, stop: int) -> Tensor:
        device, double = self._values.device, torch.double  # single precision is too coarse for positions
        step = torch.tensor(self._step, device=device, dtype=double)
        position = torch.tensor(self._first, device=device, dtype=double)
        shape = (stop - start, *self.shape[1:])
        ends = [(start, stop), *((0, n) for n in shape[1:])]
        counts = [torch.arange(low, high, device=device, dtype=double) for low, high in ends]
        for axis, count in enumerate(counts):  # of the array: z first
            along = step[len(counts) - 1 - axis]
            position = position + (count[:, None] * along).reshape(-1, *[1] * (len(counts) - 1 - axis), len(along))
        size = tuple(reversed(self._values.shape))
        table = [self._values.reshape(-1, 1)]
        last = torch.tensor(size, device=device, dtype=double) - 0.5
        out = []
        for part in position.reshape(-1, len(counts)).split(_POINTS):
            values = interpolate(table, part[None], size)[0, :, 0]
            out.append(torch.where(((part >= -0.5) & (part < last)).all(-1), values, self._outside).float())
        return torch.cat(out).reshape(shape)
