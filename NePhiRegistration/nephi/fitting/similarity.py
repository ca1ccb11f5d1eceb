"""Similarities: how alike two images are at points that are said to correspond."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.volume import local_offsets, mind_ssc, smoothed
from ..settings import SIMILARITIES, SimilaritySettings

_SEEN = 3  # standard deviations of a Gaussian beyond which it sees nothing


class Similarity:
    """What is compared, and how. Subclasses need ``compare`` alone; an instance is passed to ``register``.

    ``patch``: whether the voxels around a point are compared, 3 along each axis, instead of the point alone.
    """

    patch = False

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
        """Voxels over which the features of a place look; what is excluded keeps that distance from all points.

        By default as far as ``dilation``, one voxel more, and the patch.
        """
        return dilation + 1 + int(self.patch)

    def offsets(self, dimension: int) -> Tensor | None:
        """(k, d) voxels around a point that are compared, moved along without rotation; None: the point alone."""
        return local_offsets(dimension) if self.patch else None


def point_shares(weight: Tensor) -> Tensor:
    """Weights (..., n, 1) of points so that their sum is 1, or 0 where none counts."""
    return weight / weight.sum(-2, keepdim=True).clamp(min=1e-6)


class _Intensities(Similarity):
    """Compares intensities, each of ``blurs`` (standard deviations in voxels) a channel of its own."""

    def __init__(self, blurs: tuple[float, ...] = (0.0,)):
        self.blurs = blurs

    def prepare(self, image: Any, dilation: int, device: torch.device | str | None = None) -> Tensor:
        values = torch.as_tensor(image[:]).to(device)
        return torch.stack([smoothed(values, blur) for blur in self.blurs], -1)

    def reach(self, dilation: int) -> int:
        return math.ceil(_SEEN * max(self.blurs))


class MeanSquares(_Intensities):
    """Mean squared difference over points and channels."""

    def compare(self, values: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        squares = F.mse_loss(values, reference, reduction="none")
        return (squares * point_shares(weight)).sum() * (values.shape[-2] / values.numel())


class Mind(MeanSquares):
    """MIND self-similarity context (Heinrich et al. 2013); contrast below ``noise`` (of the window) does not count."""

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


SIMILARITIES.add("mind", lambda s: Mind(s.noise))
SIMILARITIES.add("mse", lambda s: MeanSquares(s.blurs))
SIMILARITIES.add("ncc", lambda s: NCC(s.blurs))
SIMILARITIES.add("lncc", lambda s: LNCC())


def make_similarity(settings: SimilaritySettings) -> Similarity:
    """The similarity that the settings name; raises NephiError if there is none."""
    return SIMILARITIES.make(settings.name, settings)
