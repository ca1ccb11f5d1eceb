"""What is compared: volumes of features on a working grid, and their values at points."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 4096  # points whose surroundings are compared at a time
_SLAB_VOXELS = 1_500_000  # worked on at a time: bounds what is held beside the result


def slabs(shape, least: int = 1):
    """(start, stop) along the first axis, in parts of at most about 1.5 million voxels."""
    depth = max(least, _SLAB_VOXELS // math.prod(shape[1:]))
    for start in range(0, shape[0], depth):
        yield start, min(start + depth, shape[0])


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
    for start, stop in slabs(image.shape, 2 * pad):
        first, last = max(0, start - pad), min(n, stop + pad)
        slab = torch.as_tensor(image[first:last]).to(device, torch.float32)
        ends = [first - start + pad, stop + pad - last]
        slab = F.pad(slab[None, None], [pad, pad] * (d - 1) + ends, mode="replicate")[0, 0]
        out[start:stop] = _mind_slab(slab, dilation, pad, noise)
    return out


def _mind_slab(x: Tensor, dilation: int, pad: int, noise: float) -> Tensor:
    d = x.ndim
    inner = [n - 2 * pad for n in x.shape]

    def crop(t: Tensor, margin: int, offset) -> Tensor:
        """The part of t (which starts at -margin) that starts at offset and has the inner shape."""
        for axis in range(d):
            t = t.narrow(axis, margin + offset[axis], inner[axis])
        return t

    distances = []
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
                e = e.narrow(axis, 0, n) + e.narrow(axis, 1, n) + e.narrow(axis, 2, n)
                start[axis] += 1
            first = [0] * d
            first[j] = -sign * dilation
            second = [0] * d
            second[i] = -dilation
            for shift in (first, second):
                part = e
                for axis in range(d):
                    part = part.narrow(axis, shift[axis] - start[axis], inner[axis])
                distances.append(part)
    stack = torch.stack(distances, -1)
    stack /= 3**d
    variance = stack.mean(-1, keepdim=True).clamp_(min=2 * noise**2)
    stack -= stack.amin(-1, keepdim=True)
    stack /= variance
    return stack.neg_().exp_().mul_(255).round_().to(torch.uint8)


def smoothed(image: Tensor, deviation: float) -> Tensor:
    """An image (z, y, x) or (y, x) under a Gaussian of this standard deviation in voxels; only voxels inside count.

    Thin structures then attract each other over about this distance.
    """
    if deviation == 0:
        return image
    for axis, n in enumerate(image.shape):
        weights = _gaussian(n, deviation).to(image)
        image = torch.tensordot(weights, image, dims=([1], [axis])).movedim(0, axis)
    return image


@lru_cache(maxsize=16)
def _gaussian(n: int, deviation: float) -> Tensor:
    """(n, n): row i are the weights of all places at place i, their sum 1."""
    places = torch.arange(n)
    weights = torch.exp(-((places[:, None] - places) / deviation).square() / 2)
    return weights / weights.sum(1, keepdim=True)


class _Linear(torch.autograd.Function):
    """Linear interpolation of a channels-last volume, differentiated with respect to the points only."""

    @staticmethod
    def forward(ctx, volume: Tensor, points_index: Tensor) -> Tensor:
        d = points_index.shape[-1]
        shape = volume.shape[:-1]
        upper = torch.tensor([n - 1 for n in reversed(shape)], dtype=points_index.dtype, device=points_index.device)
        clamped = torch.minimum(points_index.clamp(min=0), upper)
        base = torch.minimum(clamped.floor(), upper - 1).clamp_(min=0)
        fraction = clamped - base
        strides = torch.ones(d, dtype=torch.long)
        for axis in range(1, d):
            strides[axis] = strides[axis - 1] * shape[d - axis]
        base = base.long()
        first = base[:, 0]
        for axis in range(1, d):
            first = first + base[:, axis] * int(strides[axis])
        offsets = torch.zeros(1, dtype=torch.long, device=volume.device)
        for axis in range(d):
            step = int(strides[axis]) if shape[d - 1 - axis] > 1 else 0
            offsets = torch.cat([offsets, offsets + step])
        index = first[:, None] + offsets  # corner bits: x is the lowest
        flat = volume.reshape(-1, volume.shape[-1])
        n = index.shape[0]
        if flat.dtype == torch.uint8 and flat.shape[1] % 4 == 0:  # four bytes at a time
            corners = flat.view(torch.int32).index_select(0, index.reshape(-1)).view(torch.uint8)
        else:
            corners = flat.index_select(0, index.reshape(-1))
        corners = corners.reshape(n, 2**d, -1).to(points_index.dtype)
        weights = _corner_weights(fraction)
        inside = points_index == clamped
        ctx.save_for_backward(corners, fraction, inside)
        return torch.bmm(weights[:, None], corners)[:, 0]

    @staticmethod
    def backward(ctx, grad: Tensor):
        corners, fraction, inside = ctx.saved_tensors
        scalar = torch.bmm(corners, grad[..., None])[..., 0]  # (n, 2^d)
        d = fraction.shape[1]
        grads = []
        cube = scalar.reshape(-1, *[2] * d)  # axes (n, ..., y, x)
        for axis in range(d):
            part = cube.select(d - axis, 1) - cube.select(d - axis, 0)
            others = [a for a in range(d) if a != axis]
            for a in others:  # x first, which is always the last axis left
                f = fraction[:, a].reshape(-1, *[1] * (part.ndim - 2))
                part = part[..., 0] * (1 - f) + part[..., 1] * f
            grads.append(part)
        return None, torch.stack(grads, -1) * inside


def _corner_weights(fraction: Tensor) -> Tensor:
    weights = torch.ones_like(fraction[:, :1])
    for axis in range(fraction.shape[1]):
        f = fraction[:, axis : axis + 1]
        weights = torch.cat([weights * (1 - f), weights * f], 1)
    return weights


def sample_linear(volume: Tensor, points_index: Tensor) -> Tensor:
    """Values (n, c) of a volume (..., y, x, c) at continuous voxel indices (n, d), x first.

    Beyond the border the nearest border value holds, with zero gradient.
    """
    return _Linear.apply(volume, points_index)


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
    """

    _MOST = 1_000_000  # voxels kept to draw from: a random part of a larger mask is as good

    def __init__(
        self, volume: Tensor, lower_cube: Tensor, spacing_cube: float, mask, view=None, distance=None, seen_through=None
    ):
        self.volume, self.lower, self.spacing = volume, lower_cube, spacing_cube
        self.size = torch.tensor(tuple(reversed(volume.shape[:-1])), device=volume.device)
        self.view, self.distance, self.seen_through = view, distance, seen_through
        self.chosen = self._squares = None
        self.voxels = volume[..., 0].numel()
        if mask is not None:
            plane = math.prod(mask.shape[1:])
            parts = [
                torch.nonzero(torch.as_tensor(mask[start:stop]).reshape(-1))[:, 0].int() + start * plane
                for start, stop in slabs(mask.shape)
            ]
            chosen = torch.cat(parts)
            if len(chosen) > self._MOST:
                chosen = chosen[torch.linspace(0, len(chosen) - 1, self._MOST, device=chosen.device).long()]
            self.chosen = chosen if len(chosen) else None

    def to(self, device) -> Volume:
        for name in ("volume", "lower", "size", "chosen"):
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

        So many at least, where there are as many.
        """
        count = min(self._many, max(least, round(share * self._many)))
        entries = torch.linspace(0, self._many - 1, count, device=self.volume.device, dtype=torch.double)
        return self._places(entries.round().long())

    @property
    def _many(self) -> int:
        return self.voxels if self.chosen is None else len(self.chosen)

    def _places(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """points_cube (n, d) and index_xyz (n, d) of entries (n,) of the voxels that are drawn from."""
        flat = flat if self.chosen is None else self.chosen[flat].long()
        index = []
        for extent in self.size[:-1].tolist():
            index.append(flat % extent)
            flat = flat // extent
        index = torch.stack([*index, flat], -1)
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

    def distances(self, index_xyz: Tensor, reference: Tensor) -> Tensor:
        """Mean squared differences (n, k) of the values at voxels (n, k, d) to reference values (n, c)."""
        index = self.flat(torch.minimum(index_xyz.clamp(min=0), self.size - 1).long())
        flat, channels = self.volume.reshape(-1, self.volume.shape[-1]), self.volume.shape[-1]
        if self._squares is None:  # |a - b|^2 = |a|^2 - 2 ab + |b|^2, the last once for all
            parts = [self._scaled(flat[start:stop]).square().sum(-1) for start, stop in slabs(flat.shape)]
            self._squares = torch.cat(parts)
        products = torch.empty(index.shape, device=index.device)
        for start in range(0, len(index), _ROWS):
            rows = slice(start, start + _ROWS)
            values = self._scaled(flat.index_select(0, index[rows].reshape(-1)))
            values = values.reshape(*index[rows].shape, channels)
            products[rows] = torch.bmm(values, reference[rows, :, None])[..., 0]
        squares = self._squares[index] + reference.square().sum(-1, keepdim=True)
        return ((squares - 2 * products) / channels).clamp_(min=0)

    def flat(self, index: Tensor) -> Tensor:
        """Position of voxels (..., d) in the volume laid out in a row."""
        flat = index[..., -1]
        for axis in range(index.shape[-1] - 2, -1, -1):
            flat = flat * int(self.size[axis]) + index[..., axis]
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
        """(n, 1): 1 where a point lies inside the source image's field of view, else 0."""
        if self.view is None:
            return torch.ones_like(points_cube[:, :1])
        matrix, offset, size = self.view
        if self.seen_through is not None:
            points_cube = self.seen_through(points_cube)
        index = points_cube @ matrix.T + offset
        return ((index >= 0) & (index <= size - 1)).all(-1, keepdim=True).to(points_cube)
