"""Similarities: how alike two images are at points that are said to correspond."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.coarse import gradient
from ..images.volume import local_offsets, mind_ssc, smoothed
from ..settings import SIMILARITIES, SimilaritySettings


class Similarity:
    """What is compared, and how. Subclasses need ``compare`` alone; an instance is passed to ``register``.

    ``patch``: whether the voxels around a point are compared, 3 along each axis, instead of the point alone.
    ``means``: whether the features are weighted means of intensities, so that they can be made of those alone that
    count.
    """

    patch = False
    means = False

    def prepare(self, image: Any, dilation: int, device: torch.device | str | None = None) -> Tensor:
        """Features (z, y, x, c), float or uint8 (255 for 1), of an image (z, y, x) in its window, 0 to 1.

        The image is read by slices of its first axis; ``dilation``: distance in voxels over which features look, where
        they do. By default the intensities themselves.
        """
        return torch.as_tensor(image[:]).to(device, torch.float32)[..., None]

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        """The loss of values (..., n, c) against reference values, where points (..., n, 1) count by their weights.

        Of several directions (...) the mean. Values carry gradients; with ``patch``, c are the voxels around a point.
        """
        raise NotImplementedError

    def reach(self, dilation: int) -> int:
        """Voxels over which the features of a place look; what must not count keeps that distance from all points.

        By default as far as ``dilation``, one voxel more, and the patch; ``means`` leave out what does not count.
        """
        return int(self.patch) + (0 if self.means else dilation + 1)

    def offsets(self, dimension: int) -> Tensor | None:
        """(k, d) voxels around a point that are compared, moved along without rotation; None: the point alone."""
        return local_offsets(dimension) if self.patch else None


def point_shares(weight: Tensor) -> Tensor:
    """Weights (..., n, 1) of points so that their sum is 1, or 0 where none counts."""
    return weight / weight.sum(-2, keepdim=True).clamp(min=1e-6)


class _Intensities(Similarity):
    """Compares intensities, each of ``blurs`` (standard deviations in voxels) a channel of its own."""

    means = True

    def __init__(self, blurs: tuple[float, ...] = (0.0,)):
        self.blurs = blurs

    def prepare(self, image: Any, dilation: int, device: torch.device | str | None = None) -> Tensor:
        values = torch.as_tensor(image[:]).to(device)
        return torch.stack([smoothed(values, blur) for blur in self.blurs], -1)


class MeanSquares(_Intensities):
    """Mean squared difference over points and channels."""

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        squares, most = F.mse_loss(values, reference, reduction="none"), weight.mean(-2, keepdim=True)
        return (squares * (weight / most.clamp(min=1e-9))).mean()


class Mind(MeanSquares):
    """MIND self-similarity context (Heinrich et al. 2013); contrast below ``noise`` (of the window) does not count."""

    means = False

    def __init__(self, noise: float = 0.015):
        self.noise = noise

    def prepare(self, image: Any, dilation: int, device: torch.device | str | None = None) -> Tensor:
        return mind_ssc(image, dilation, self.noise, device)

    def reach(self, dilation: int) -> int:
        return dilation + 1  # to the neighbours, and their patches


class NCC(_Intensities):
    """1 - normalised cross-correlation over all points (paper, section 4.3), averaged over the channels."""

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        share = point_shares(weight)

        def mean(x: Tensor) -> Tensor:
            return (x * share).sum(-2, keepdim=True)

        a, b = values - mean(values), reference - mean(reference)
        return (1 - mean(a * b) / (mean(a.square()) * mean(b.square()) + 1e-12).sqrt()).mean()


class LNCC(_Intensities):
    """1 - normalised cross-correlation of the patch around each point."""

    patch = True

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        a, b = values - values.mean(-1, keepdim=True), reference - reference.mean(-1, keepdim=True)
        norm = (a.square().mean(-1, keepdim=True) * b.square().mean(-1, keepdim=True) + 1e-8).sqrt()
        agreement = (a * b).mean(-1, keepdim=True) / norm * point_shares(weight)
        return 1 - agreement.sum(-2).mean()


class MutualInformation(_Intensities):
    """1 - mutual information of both images over that of each with itself, averaged over the channels.

    From the joint histogram of each step's points, in which a value falls on the nearest ``bins`` as a quadratic
    B-spline weighs them, so that it has derivatives (Thevenaz and Unser 2000).
    """

    def __init__(self, bins: int = 24, blurs: tuple[float, ...] = (0.0,)):
        super().__init__(blurs)
        self.bins = bins

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        share = point_shares(weight)[..., None]
        a, b = self._parts(values), self._parts(reference)
        with torch.no_grad():
            most = (_information(a, a * share) + _information(b, b * share)) / 2
        return (1 - _information(a, b * share) / most.clamp(min=1e-6)).mean()

    def _parts(self, values: Tensor) -> Tensor:
        """(..., n, c, bins): how much of each value (..., n, c), 0 to 1, falls into each bin; their sum is 1."""
        middle = torch.arange(self.bins, device=values.device, dtype=values.dtype)
        away = (1 + (self.bins - 3) * values.clamp(0, 1)[..., None] - middle).abs()
        return 0.5 * (1.5 - away).clamp(min=0).square() - 1.5 * (0.5 - away).clamp(min=0).square()


def _information(a: Tensor, b: Tensor) -> Tensor:
    """Mutual information (..., c) in nats of parts (..., n, c, bins), one of them times the points' shares."""
    joint = torch.einsum("...nci,...ncj->...cij", a, b)
    apart = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    return (torch.xlogy(joint, joint.clamp(min=1e-12)) - torch.xlogy(joint, apart.clamp(min=1e-12))).sum((-1, -2))


class NGF(Similarity):
    """Normalised gradient fields: edges point along the same line, whatever the contrast (Haber and Modersitzki 2006).

    Squared difference of the gradients' outer products; ``noise``: in units of the image's mean gradient where there
    is any, the length below which a gradient does not count.
    """

    def __init__(self, noise: float = 1.0):
        self.noise = noise

    def prepare(self, image: Any, dilation: int, device: torch.device | str | None = None) -> Tensor:
        slopes = gradient(torch.as_tensor(image[:]).to(device, torch.float32))  # (d, ...)
        squares = slopes.square().sum(0)
        lengths = squares.sqrt()
        some = lengths > 1e-3
        edge = self.noise * lengths[some].mean() if some.any() else lengths.new_ones(())
        slopes = slopes / (squares + edge.square()).sqrt()
        d = len(slopes)
        # off the diagonal a product counts twice
        return torch.stack(
            [slopes[i] * slopes[j] * (1 if i == j else 2**0.5) for i in range(d) for j in range(i, d)], -1
        )

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        squares = F.mse_loss(values, reference, reduction="none").sum(-1, keepdim=True)
        return (squares * point_shares(weight)).sum() * (values.shape[-2] / squares.numel())


SIMILARITIES.add("mind", lambda s: Mind(s.noise))
SIMILARITIES.add("mse", lambda s: MeanSquares(s.blurs))
SIMILARITIES.add("ncc", lambda s: NCC(s.blurs))
SIMILARITIES.add("lncc", lambda s: LNCC())
SIMILARITIES.add("mi", lambda s: MutualInformation(s.bins, s.blurs))
SIMILARITIES.add("ngf", lambda s: NGF(s.noise))


def make_similarity(settings: SimilaritySettings) -> Similarity:
    """The similarity that the settings name; raises NephiError if there is none."""
    return SIMILARITIES.make(settings.name, settings)
