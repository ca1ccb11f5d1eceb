"""What is compared: volumes of features on a working grid, and their values at points."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from itertools import combinations, product

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import in_threads
from ..space.grid import slabs
from ..space.interpolate import constant, interpolate

_ROWS = 256  # points whose surroundings are compared at a time: they stay in a CPU's cache
_MORE_ROWS = 4096  # on a GPU
_SLAB_VOXELS = 1_500_000  # processed at a time, to bound the memory needed beside the result
_TILE_VOXELS = 400_000  # of these, by a CPU: they stay in its cache


def mind_ssc(image, dilation: int = 1, noise: float = 0.01, device=None) -> Tensor:
    """MIND self-similarity context (Heinrich et al. 2013), 3x3x3 patches, quantised to bytes.

    image (z, y, x) or (y, x), scaled to about [0, 1], a tensor or anything read by slices of its first axis;
    returns (..., 12) or (..., 4) uint8.
    ``noise`` is the standard deviation (in the image's scale) below which contrast is ignored.

    A channel compares two neighbours at distance sqrt(2) * dilation. The twelve channels need only
    six maps of squared differences: opposite pairs differ by the same vector and are shifted copies.
    """
    d, n = len(image.shape), image.shape[0]
    out = torch.empty(*image.shape, 2 * d * (d - 1), dtype=torch.uint8, device=device)
    pad = 2 * dilation + 1
    for rows in slabs(image.shape, _SLAB_VOXELS, 2 * pad):
        first, last = max(0, rows.start - pad), min(n, rows.stop + pad)
        slab = torch.as_tensor(image[first:last]).to(device, torch.float32)
        ends = [first - rows.start + pad, rows.stop + pad - last]
        slab = F.pad(slab[None, None], [pad, pad] * (d - 1) + ends, mode="replicate")[0, 0]
        side = max(2 * pad, math.isqrt(_TILE_VOXELS // out.shape[-2])) if slab.device.type == "cpu" else max(slab.shape)
        tiles = [[slice(k, k + side) for k in range(0, n, side)] for n in (rows.stop - rows.start, *image.shape[1:2])]

        def made(tile: tuple[slice, ...], slab: Tensor = slab) -> tuple[tuple[slice, ...], Tensor]:
            around = slab[tuple(slice(part.start, part.stop + 2 * pad) for part in tile)]
            return tile, _mind_slab(around, dilation, pad, noise)

        for tile, values in in_threads(made, product(*tiles), slab.device):
            out[rows][tile] = values
    return out


def _mind_slab(x: Tensor, dilation: int, pad: int, noise: float) -> Tensor:
    d = x.ndim
    inner = [n - 2 * pad for n in x.shape]

    distances, channel = x.new_empty(2 * d * (d - 1), *inner), 0  # channels first: rows are worked on in one piece
    for i, j in combinations(range(d), 2):
        for sign in (-1, 1):
            # E(y) = (I(y) - I(y + step))^2 with step = dilation * (e_i + sign * e_j), patch-summed
            a = b = x
            for axis, step in ((i, dilation), (j, sign * dilation)):
                n = x.shape[axis] - dilation
                a = a.narrow(axis, 0 if step > 0 else dilation, n)
                b = b.narrow(axis, dilation if step > 0 else 0, n)
            e = (a - b).square_()
            start = [-pad] * d  # index of e's first entry, relative to the inner part
            if sign < 0:
                start[j] += dilation
            for axis in range(d):
                n = e.shape[axis] - 2
                e = (e.narrow(axis, 0, n) + e.narrow(axis, 1, n)).add_(e.narrow(axis, 2, n))
                start[axis] += 1
            e /= 3**d
            first = [0] * d
            first[j] = -sign * dilation
            second = [0] * d
            second[i] = -dilation
            for shift in (first, second):
                part = e
                for axis in range(d):
                    part = part.narrow(axis, shift[axis] - start[axis], inner[axis])
                distances[channel] = part
                channel += 1
    variance = distances.mean(0).clamp_(min=2 * noise**2)
    distances -= distances.amin(0)
    distances /= variance.neg_()
    return distances.exp_().mul_(255).round_().to(torch.uint8).movedim(0, -1)


def smoothed(image: Tensor, deviation: float) -> Tensor:
    """An image (z, y, x) or (y, x) under a Gaussian of this standard deviation in voxels; only voxels inside count.

    Thin structures then attract each other over about this distance.
    """
    if deviation == 0:
        return image
    first, *between, last = (_gaussian(n, deviation).to(image) for n in image.shape)
    image = (first @ image.flatten(1)).reshape(image.shape)
    for weights in between:  # slice by slice, as along the other axes without a copy of the image
        image = torch.bmm(weights.expand(len(image), -1, -1), image)
    return image @ last.T


@lru_cache(maxsize=16)
def _gaussian(n: int, deviation: float) -> Tensor:
    """(n, n): row i are the weights of all places at place i, their sum 1."""
    places = torch.arange(n)
    weights = torch.exp(-((places[:, None] - places) / deviation).square() / 2)
    return weights / weights.sum(1, keepdim=True)


def sample_linear(volume: Tensor, points_index: Tensor) -> Tensor:
    """Values (n, c) of a volume (..., y, x, c) at continuous voxel indices (n, d), x first.

    Beyond the border the value of the border is used, with zero gradient.
    """
    size = tuple(reversed(volume.shape[:-1]))
    return interpolate([volume.reshape(-1, volume.shape[-1])], points_index[None], size)[0]


def local_offsets(dimension: int) -> Tensor:
    """(3^d, d) voxel offsets of the patch that local NCC looks at, spaced by one voxel."""
    axis = torch.arange(-1, 2)
    return torch.stack(torch.meshgrid(*[axis] * dimension, indexing="ij"), -1).reshape(-1, dimension)


class Volume:
    """Features of one image on a working grid in the cube, where points are drawn and values are read.

    ``volume`` (z, y, x, c); voxel (0, 0, 0) lies at ``lower_cube`` and the spacing is ``spacing_cube``
    along all axes. ``mask`` (z, y, x) says where points are drawn (None, or an empty one: everywhere; read by slices).
    ``view`` is the matrix, offset and size that take cube points to the source image's voxel index, to know what
    lies inside its field of view; ``seen_through``: a map (points_cube (n, d) -> the same) that they go through
    before, where the image was seen through one. ``distance``: another volume, of the mask's distance map.
    ``excluded`` (z, y, x), bool: where features see what must not count; such places weigh nothing.
    """

    _MOST = 1_000_000  # most voxels to draw from; of a larger mask every n-th is used

    def __init__(
        self,
        volume: Tensor,
        lower_cube: Tensor,
        spacing_cube: float,
        mask,
        view=None,
        distance=None,
        seen_through=None,
        excluded: Tensor | None = None,
    ):
        self.volume, self.lower, self.spacing = volume, lower_cube, spacing_cube
        self.extents = tuple(reversed(volume.shape[:-1]))  # voxels along x, y (, z)
        self.size = torch.tensor(self.extents, device=volume.device)
        self.view, self.distance, self.seen_through = view, distance, seen_through
        self.excluded = None if excluded is None else excluded.reshape(-1)
        self.chosen: Tensor | None = None  # of the voxels in a row, those that are drawn from
        self.voxels = volume[..., 0].numel()
        if mask is not None:
            plane = math.prod(mask.shape[1:])
            parts = [
                torch.nonzero(torch.as_tensor(mask[rows]).reshape(-1))[:, 0].int() + rows.start * plane
                for rows in slabs(mask.shape, _SLAB_VOXELS)
            ]
            chosen = torch.cat(parts)
            if len(chosen) > self._MOST:
                chosen = chosen[torch.linspace(0, len(chosen) - 1, self._MOST, device=chosen.device).long()]
            self.chosen = chosen if len(chosen) else None

    def to(self, device) -> Volume:
        for name in ("volume", "lower", "size", "chosen", "excluded"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))
        self.view = None if self.view is None else tuple(v.to(device) for v in self.view)
        self.distance = None if self.distance is None else self.distance.to(device)
        return self

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n random voxel centres: points_cube (n, d) and index_xyz (n, d)."""
        return self._places(torch.randint(self._many, (n,), generator=generator, device=self.volume.device))

    def spread(self, share: float, least: int) -> tuple[Tensor, Tensor]:
        """A share of the voxel centres, evenly spread over those that ``draw`` draws from, as that returns them.

        At least ``least``, where there are that many.
        """
        count = min(self._many, max(least, round(share * self._many)))
        entries = torch.linspace(0, self._many - 1, count, dtype=torch.double).round().long()
        return self._places(entries.to(self.volume.device))

    @property
    def _many(self) -> int:
        return self.voxels if self.chosen is None else len(self.chosen)

    def _places(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """points_cube (n, d) and index_xyz (n, d) of entries (n,) of the voxels that are drawn from."""
        flat = flat if self.chosen is None else self.chosen[flat].long()
        along = []
        for extent in self.extents[:-1]:
            along.append(flat % extent)
            flat = flat // extent
        index = torch.stack([*along, flat], -1)
        return index * self.spacing + self.lower, index

    def nearest(self, points_cube: Tensor) -> Tensor:
        """index_xyz (n, d) of the voxels nearest to points (n, d), as whole numbers within the volume."""
        index = ((points_cube - self.lower) / self.spacing).round().long()
        return torch.minimum(index.clamp(min=0), self.size - 1)

    def dense_mask(self) -> Tensor:
        """(voxels,) bool: where points are drawn, in the order of ``flat``."""
        if self.chosen is None:
            return torch.ones(self.voxels, dtype=torch.bool, device=self.volume.device)
        mask = torch.zeros(self.voxels, dtype=torch.bool, device=self.volume.device)
        mask[self.chosen.long()] = True
        return mask

    def distances(self, index_xyz: Tensor, steps: Tensor, reference: Tensor) -> Tensor:
        """Mean squared differences (n, m^d) of reference values (n, c) to those around voxels (n, d).

        Around each voxel lie all those that are one of ``steps`` (m,), whole numbers, away along each axis, in the
        order of ``itertools.product``; beyond the border the border's value holds.
        """
        table, scale = self.volume.flatten(0, -2), 255 if self.volume.dtype == torch.uint8 else 1
        channels, last = table.shape[1], (self.size - 1)[:, None]
        mean = reference.new_full((channels, 1), 1 / (channels * scale**2))
        found = reference.new_empty(len(index_xyz), len(steps) ** index_xyz.shape[1])
        rows = _ROWS if table.device.type == "cpu" else _MORE_ROWS
        for index, wanted, out in zip(*(t.split(rows) for t in (index_xyz, scale * reference, found)), strict=True):
            node = torch.minimum((index[:, :, None] + steps).clamp_(min=0), last)  # (rows, d, m)
            flat, stride = node[:, 0], 1
            for axis, extent in enumerate(self.extents[:-1], 1):
                stride *= extent
                flat = (flat[:, :, None] + stride * node[:, axis, None]).flatten(1)
            values = table.index_select(0, flat.reshape(-1)).to(mean.dtype).unflatten(0, flat.shape)
            out.copy_((values.sub_(wanted[:, None]).square_() @ mean)[..., 0])
        return found

    def flat(self, index: Tensor) -> Tensor:
        """Position of voxels (..., d) in the volume laid out in a row."""
        flat = index[..., -1]
        for axis in range(index.shape[-1] - 2, -1, -1):
            flat = flat * self.extents[axis] + index[..., axis]
        return flat

    def at_voxels(self, index_xyz: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Stored values (n, c) at voxels (n, d); with offsets (k, d) the patches (n, k * c)."""
        if offsets is not None:
            index_xyz = index_xyz[:, None] + offsets.to(index_xyz.device)
            index_xyz = torch.minimum(index_xyz.clamp(min=0), self.size - 1)
        values = self.volume.reshape(-1, self.volume.shape[-1])[self.flat(index_xyz)]
        return self._scaled(values).reshape(len(index_xyz), -1)

    def at(self, points_cube: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Interpolated values (n, c) at points (n, d); with offsets the patches (n, k * c)."""
        index = (points_cube - self.lower) / self.spacing
        if offsets is not None:
            index = (index[:, None] + offsets.to(index.device)).reshape(-1, index.shape[-1])
        return self._scaled(sample_linear(self.volume, index)).reshape(len(points_cube), -1)

    def _scaled(self, values: Tensor) -> Tensor:
        return values.float() / 255 if self.volume.dtype == torch.uint8 else values

    def inside(self, points_cube: Tensor) -> Tensor:
        """(n, 1): 1 where a point lies inside the source image's field of view and counts, else 0."""
        return (
            self._in_view(points_cube)
            if self.excluded is None
            else self._in_view(points_cube) * self.counts(points_cube)
        )

    def counts(self, points_cube: Tensor) -> Tensor:
        """(n, 1): 0 where features see excluded regions, else 1."""
        if self.excluded is None:
            return torch.ones_like(points_cube[:, :1])
        return (~self.excluded[self.flat(self.nearest(points_cube))])[:, None].to(points_cube)

    def _in_view(self, points_cube: Tensor) -> Tensor:
        if self.view is None:
            return torch.ones_like(points_cube[:, :1])
        matrix, offset, size = self.view
        if self.seen_through is not None:
            points_cube = self.seen_through(points_cube)
        index = points_cube @ matrix.T + offset
        return ((index >= 0) & (index <= size - 1)).all(-1, keepdim=True).to(points_cube)


class VolumePair(tuple[Volume, Volume]):
    """The features of the fixed and of the moving image on one working grid, read in both directions at once.

    Entry 0 of points and values belongs to the forward direction (fixed points, seen in the moving image), entry 1 to
    the inverse one. Raises ValueError where the two lie on different grids.
    """

    def __new__(cls, fixed: Volume, moving: Volume) -> VolumePair:
        if fixed.volume.shape != moving.volume.shape:
            raise ValueError("the features of a pair must lie on one grid")
        return super().__new__(cls, (fixed, moving))

    def draw(self, steps: int, n: int, generator: torch.Generator, offsets: Tensor | None = None):
        """n random voxel centres per step and image: points_cube (steps, 2, n, d) and their values (steps, 2, n, c)."""
        points, values = [], []
        for volume in self:
            at, index = volume.draw(steps * n, generator)
            points.append(at.unflatten(0, (steps, n)))
            values.append(volume.at_voxels(index, offsets).unflatten(0, (steps, n)))
        return torch.stack(points, 1), torch.stack(values, 1)

    def at(self, mapped_cube: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Values (2, n, c) at mapped points (2, n, d): of the moving image, then of the fixed one."""
        fixed, moving = self
        position = torch.add(self._origin, mapped_cube, alpha=1 / fixed.spacing)
        if offsets is not None:
            position = (position[:, :, None] + offsets.to(position.device)).flatten(1, 2)
        tables = [volume.volume.reshape(-1, volume.volume.shape[-1]) for volume in (moving, fixed)]
        scale = 1 / 255 if fixed.volume.dtype == torch.uint8 else 1.0
        return interpolate(tables, position, fixed.extents, scale=scale).reshape(*mapped_cube.shape[:2], -1)

    def inside(self, mapped_cube: Tensor) -> Tensor:
        """(2, n, 1): 1 where a mapped point (2, n, d) lies in the other image's field of view and counts, else 0."""
        fixed, moving = self
        if any(v.view is None or v.seen_through is not None for v in self):
            return torch.stack([moving.inside(mapped_cube[0]), fixed.inside(mapped_cube[1])])
        matrix, offset, last = self._views
        index = torch.baddbmm(offset, mapped_cube, matrix)
        first = constant((0,), index.device, index.dtype)
        seen = (index == torch.clamp(index, first, last)).all(-1, keepdim=True).to(mapped_cube.dtype)
        if fixed.excluded is None and moving.excluded is None:
            return seen
        return seen * torch.stack([moving.counts(mapped_cube[0]), fixed.counts(mapped_cube[1])])

    @cached_property
    def _origin(self) -> Tensor:
        """(d,): voxel index of the cube's centre."""
        return -self[0].lower / self[0].spacing

    @cached_property
    def _views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both views, the moving image's first: matrices (2, d, d), to be multiplied from the left, offsets and last
        voxels (2, 1, d)."""
        views = [self[1].view, self[0].view]
        matrix, offset, size = (torch.stack(parts) for parts in zip(*views, strict=True))
        return matrix.transpose(1, 2).contiguous(), offset[:, None], (size - 1)[:, None]
