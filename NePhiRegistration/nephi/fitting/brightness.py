"""What makes the intensities of two images comparable: a curve from one to the other, and lines in small windows.

The lines are those of a local correlation (Cachier et al. 2003, Avants et al. 2008), of which each voxel is asked at
once what it should show.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.volume import smoothed

_OVER = 4.0  # voxels: deviation of the Gaussian over which both images are made as bright as each other
_FLAT = 1e-3  # variance of intensities, of what is too flat to say how
_GAIN = (0.3, 3.0)
_NEAR = 2  # voxels: half side of the windows whose correlation is compared
_LOCALLY_FLAT = 1e-4  # variance of intensities in such a window
_WINDOWS, _SEED = 4000, 9  # windows that are drawn at most
_FAR = 0.5  # difference of intensities that counts at most
_BINS = 32  # of a curve
# what is misaligned, or between two voxels, blurs a curve: it is found where the image it leads to is flat (squared
# slopes a voxel), from a sharper copy of that (part of its second differences)
_STEEP, _SHARPER = 1e-2, 0.15
_BEGUN = 3  # times that the first curve is found, each from images made as bright by the one before
_LEAST = 0.2  # share of the variance that a curve explains; of less it is no relation
_WHOLE = 0.99  # of a sampled voxel, whose neighbours all show something


class Curve:
    """What one image would show in the contrast of the other, found anew in each round.

    The image that explains more of the other than the other way round is taken to the other's contrast: of a T1 and a
    T2 image of a brain the T1 one, as two tissues of it share their brightness in T2. Their borders to an empty
    background are not compared.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, factor: int):
        self.fixed, self.factor = fixed, factor
        self.shown = [(one > 0).to(one) for one in (fixed, moving)]
        self.from_fixed: bool | None = None
        self.model: Tensor | None = None

    def __call__(self, seen: Tensor, shown: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both images in one contrast, and the weights, of the moving image as the map has it, and what it shows."""
        weight = weight * _eroded(self.shown[0] * (shown > _WHOLE))
        first = self.from_fixed is None
        if self.from_fixed is None:
            shares = [_curve(x, y, weight)[1] for x, y in ((self.fixed, seen), (seen, self.fixed))]
            self.from_fixed = shares[0] >= shares[1]
        given, other = (self.fixed, seen) if self.from_fixed else (seen, self.fixed)
        for _ in range(_BEGUN if first else 1):
            bright = other if self.model is None else self._as_bright(other, self.model, weight)
            self.model, share = _curve(given, bright, weight)
        assert self.model is not None
        bright = self._as_bright(other, self.model, weight)
        fixed, seen = (self.model, bright) if self.from_fixed else (bright, self.model)
        return fixed, seen, weight * float(share > _LEAST)

    def _as_bright(self, values: Tensor, model: Tensor, weight: Tensor) -> Tensor:
        return as_bright(values, _sharper(model), weight * _flatness(model), self.factor)


def as_bright(values: Tensor, other: Tensor, weight: Tensor, factor: int) -> Tensor:
    """Values under the line that makes them most like others in their surroundings; 0 is the background and stays.

    So a coil's shading and different gains move nothing. Where values hardly vary, the line has the slope that makes
    both images as bright as each other in all. ``factor``: voxels between two nodes.
    """
    share = weight * (values > 0) * (other > 0)
    parts = [share, share * values, share * other, share * values.square(), share * values * other]
    whole = ((share * other.square()).sum() / parts[3].sum().clamp(min=1e-8)).sqrt().clamp(*_GAIN)
    around = [smoothed(halved(part) if factor > 1 else part, _OVER / factor) for part in parts]
    some = around[0].clamp(min=1e-4)
    a, b, aa, ab = (part / some for part in around[1:])
    slope = (ab - a * b + _FLAT * whole) / ((aa - a * a).clamp(min=0) + _FLAT)
    slope = slope.clamp(*_GAIN)
    line = torch.stack([slope, b - slope * a])
    if factor > 1:
        mode = "trilinear" if values.ndim == 3 else "bilinear"
        line = F.interpolate(line[None], values.shape, mode=mode, align_corners=True)[0]
    return (values * line[0] + line[1]) * (values > 0)


def correlated(fixed: Tensor, seen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the moving image should show for small windows of both to be correlated, and its weight at each voxel.

    In each window the line from the moving image to the fixed one that fits best leaves a squared difference. The
    gradient of their sum is that of the weighted squared difference between ``seen`` and what is returned. A coil's
    shading and gains hardly change it; windows whose correlation is negative count nothing.
    """
    given = weight, weight * fixed, weight * seen, weight * seen.square(), weight * fixed * seen
    count, mean_fixed, mean_seen, squares, products = map(_in_windows, given)
    count = count.clamp(min=1e-3)
    mean_fixed, mean_seen = mean_fixed / count, mean_seen / count
    variance = (squares / count - mean_seen.square()).clamp(min=0) + _LOCALLY_FLAT
    gain = ((products / count - mean_fixed * mean_seen) / variance).clamp(min=0)
    offset = mean_fixed - gain * mean_seen
    gains, squared_gains, offsets = map(_in_windows, (gain, gain.square(), gain * offset))
    wanted = (fixed * gains - offsets) / squared_gains.clamp(min=1e-6)
    return seen + (wanted - seen).clamp(-_FAR, _FAR), weight * squared_gains


class Windows:
    """Small windows of a fixed image at random places, by whose correlation maps are compared that differ little.

    ``at`` (d, n, k): indices of their voxels, x first.
    """

    def __init__(self, fixed: Tensor, weight: Tensor):
        d, device = fixed.ndim, fixed.device
        last = torch.tensor([n - 1 - _NEAR for n in reversed(fixed.shape)], device=device)
        counted = torch.nonzero(weight > 0).flip(1)  # x first
        counted = counted[((counted >= _NEAR) & (counted <= last)).all(1)]
        generator = torch.Generator().manual_seed(_SEED)  # of the CPU: the same windows on every device
        chosen = torch.randperm(len(counted), generator=generator)[:_WINDOWS].to(device)
        side = torch.arange(-_NEAR, _NEAR + 1, device=device)
        offsets = torch.stack(torch.meshgrid(*[side] * d, indexing="ij"), -1).reshape(-1, d)
        at = counted[chosen][:, None] + offsets
        values = fixed[tuple(at.flip(-1).unbind(-1))]
        values = values - values.mean(1, keepdim=True)
        telling = values.square().mean(1) > _FLAT
        self.at = at[telling].movedim(-1, 0).to(fixed)
        self.fixed = F.normalize(values[telling], dim=1)

    def lack(self, seen: Tensor) -> float:
        """One minus the mean squared correlation with the moving image (n, k) there; negative ones count as such."""
        seen = F.normalize(seen - seen.mean(1, keepdim=True), dim=1)
        correlation = (self.fixed * seen).sum(1)
        return 1 - float((correlation * correlation.abs()).mean())


def _in_windows(values: Tensor) -> Tensor:
    """Means (...) over the window around each place; what is beyond the border counts as 0."""
    for axis in range(values.ndim):
        n, sums = values.shape[axis], values.clone()
        for k in range(1, min(_NEAR, n - 1) + 1):
            sums.narrow(axis, k, n - k).add_(values.narrow(axis, 0, n - k))
            sums.narrow(axis, 0, n - k).add_(values.narrow(axis, k, n - k))
        values = sums.div_(2 * _NEAR + 1)
    return values


def halved(values: Tensor) -> Tensor:
    """Every second voxel of an odd number along each axis, each the mean over its surroundings."""
    for axis, n in enumerate(values.shape):
        even = values.index_select(axis, torch.arange(0, n, 2, device=values.device))
        odd = values.index_select(axis, torch.arange(1, n, 2, device=values.device))
        first, last = odd.narrow(axis, 0, 1), odd.narrow(axis, odd.shape[axis] - 1, 1)
        values = even / 2 + (torch.cat([first, odd], axis) + torch.cat([odd, last], axis)) / 4
    return values


def slopes(values: Tensor) -> Tensor:
    """Central differences (d, ...) along x, y (, z); 0 at the border."""
    out = values.new_zeros(values.ndim, *values.shape)
    for j in range(values.ndim):
        axis = values.ndim - 1 - j
        n = values.shape[axis] - 2
        out[j].narrow(axis, 1, n).copy_((values.narrow(axis, 2, n) - values.narrow(axis, 0, n)) / 2)
    return out


def _curve(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """The mean of y for each value of x, 0 to 1, at each place, and the share of y's variance that it explains."""
    bins, w = _Bins(x), weight * _flatness(y)
    total, mean = w.sum().clamp(min=1e-8), (w * y).sum() / w.sum().clamp(min=1e-8)
    count, sums = bins.smooth(w), bins.smooth(w * _sharper(y))
    few = 1e-3 * total / _BINS
    curve = bins.at((sums + few * mean) / (count + few))
    whole, mean = weight.sum().clamp(min=1e-8), (weight * y).sum() / weight.sum().clamp(min=1e-8)
    variance = (weight * (y - mean).square()).sum() / whole
    return curve, float(1 - (weight * (y - curve).square()).sum() / whole / variance.clamp(min=1e-8))


class _Bins:
    """Between which two of the bins' middles each value lies."""

    def __init__(self, x: Tensor):
        at = x.clamp(0, 1) * (_BINS - 1)
        self.low = at.floor().clamp(max=_BINS - 2).long()
        self.part = at - self.low

    def smooth(self, values: Tensor) -> Tensor:
        """Sums of values in each bin, under a Gaussian of one bin."""
        low = self.low.flatten()
        sums = torch.bincount(low, (values * (1 - self.part)).flatten(), _BINS)
        sums += torch.bincount(low + 1, (values * self.part).flatten(), _BINS)
        middle = torch.arange(_BINS, device=low.device)
        return torch.exp(-((middle[:, None] - middle).square()) / 2).to(values) @ sums.to(values)

    def at(self, curve: Tensor) -> Tensor:
        """The curve at each place, linear between the bins."""
        return torch.lerp(curve[self.low], curve[self.low + 1], self.part)


def _flatness(values: Tensor) -> Tensor:
    return (_STEEP / (_STEEP + slopes(values).square().sum(0))).sqrt()


def _sharper(values: Tensor) -> Tensor:
    out = values.clone()
    for axis, n in enumerate(values.shape):
        before, middle, after = (values.narrow(axis, first, n - 2) for first in range(3))
        out.narrow(axis, 1, n - 2).sub_(_SHARPER * (before - 2 * middle + after))
    return out


def _eroded(mask: Tensor) -> Tensor:
    pool = F.max_pool3d if mask.ndim == 3 else F.max_pool2d
    return -pool(-mask[None, None], 3, 1, 1)[0, 0]
