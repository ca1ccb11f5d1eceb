"""The encoder of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import NephiError
from ..maps.code import Code
from ..maps.fields import Fields
from ..settings import FieldSettings
from .encoder import Encoder
from .pair_tensors import PairTensors
from .settings import PublishedSettings

_LEAST_SIDE = 3  # of the last map of the published encoder


class PublishedEncoder(Encoder):
    """images (b, 2, *size) -> Code: 3.07 M parameters at 175^3 voxels, with the local code from the 128 x 6^3 map."""

    def __init__(self, settings: PublishedSettings, field: FieldSettings, dimension: int):
        super().__init__()
        self.settings, self.dimension = settings, dimension
        convolution = (nn.Conv2d, nn.Conv3d)[dimension - 2]
        side, channels, inputs = settings.size, list(settings.channels), 2
        layers, level = [], 0
        while level < len(channels) or (side > _LEAST_SIDE and not settings.any_size):
            outputs = channels[min(level, len(channels) - 1)]
            layers.append(
                nn.Sequential(
                    convolution(inputs, outputs, 3, stride=2, padding=1),
                    _norm(settings.norm, outputs, dimension),
                    nn.LeakyReLU(0.2),
                )
            )
            side, inputs, level = (side + 1) // 2, outputs, level + 1
        self.layers = nn.ModuleList(layers)
        side = _LEAST_SIDE if settings.any_size else side
        self.hidden = nn.Linear(inputs * side**dimension, settings.hidden)
        self.out = nn.Linear(settings.hidden, field.global_code)
        self.local: nn.Module
        if settings.context:
            seen = sum(channels[min(level, len(channels) - 1)] for level in range(settings.local_level, len(layers)))
            self.local = nn.Sequential(
                convolution(seen, settings.width, 3, padding=1),
                nn.LeakyReLU(0.2),
                convolution(settings.width, field.local_code, 3, padding=1),
            )
        else:
            self.local = convolution(channels[settings.local_level], field.local_code, 3, padding=1)

    def codes(self, samples: list[PairTensors], fields: Fields) -> list[Code]:
        """One round for all pairs of a batch; raises NephiError if their cubes have different proportions."""
        upper = samples[0].half_extents_cube
        if any(not torch.allclose(sample.half_extents_cube, upper, atol=1e-3) for sample in samples[1:]):
            raise NephiError("the pairs of a batch have cubes of different proportions: set batch to 1")
        return [self(torch.stack([sample.images(self.settings.size) for sample in samples]), upper)]

    def forward(self, images: Tensor, half_extents_cube: Tensor) -> Code:
        x, maps = images, []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        source = maps[self.settings.local_level]
        if self.settings.context:
            mode = ("bilinear", "trilinear")[self.dimension - 2]
            deeper = maps[self.settings.local_level + 1 :]
            source = torch.cat([source, *(F.interpolate(m, source.shape[2:], mode=mode) for m in deeper)], 1)
        local = self.local(source)
        if self.settings.any_size:
            x = (F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[self.dimension - 2](x, _LEAST_SIDE)
        return Code(self.out(F.leaky_relu(self.hidden(x.flatten(1)), 0.2)), local, half_extents_cube)


def _norm(name: str, channels: int, dimension: int) -> nn.Module:
    if name == "batch":
        return (nn.BatchNorm2d, nn.BatchNorm3d)[dimension - 2](channels)
    return nn.GroupNorm(min(8, channels), channels)
