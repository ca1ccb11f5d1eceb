"""Maps from points to points: the neural fields and what is composed with them.

Points in here live in the registration cube (see ``space.Cube``), one row a point, x first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .settings import FieldSettings

FORWARD, INVERSE = 0, 1


class HybridCode(nn.Module):
    """Latent code of one pair: a global vector and a local grid that covers the cube (paper, Eq. 4).

    The grid holds ``size`` nodes along x, y (, z) between ``lower_cube`` and ``upper_cube`` and is
    interpolated linearly; beyond its border the nearest border value holds.
    """

    def __init__(self, settings: FieldSettings, upper_cube: Tensor, size: tuple[int, ...]):
        super().__init__()
        self.size = tuple(size)
        self.register_buffer("upper_cube", upper_cube.clone())
        self.global_code = nn.Parameter(torch.zeros(settings.global_code))
        self.local_code = nn.Parameter(torch.zeros(1, settings.local_code, *reversed(self.size)))

    def at(self, points_cube: Tensor) -> Tensor:
        """Local code at points (..., d) -> (..., channels)."""
        shape = points_cube.shape
        grid = (points_cube / self.upper_cube).reshape(1, *[1] * (shape[-1] - 1), -1, shape[-1])
        code = nn.functional.grid_sample(self.local_code, grid, padding_mode="border", align_corners=True)
        return code.reshape(self.local_code.shape[1], -1).T.reshape(*shape[:-1], -1)

    def prior(self) -> Tensor:
        """Mean norm of the global code plus mean norm over the grid (paper, Eq. 5)."""
        tiny = 1e-12  # a zero code has no gradient of its norm
        return (self.global_code.square().sum() + tiny).sqrt() + (self.local_code.square().sum(1) + tiny).sqrt().mean()


class NeuralFields(nn.Module):
    """The forward field phi and the backward field psi: same structure, separate weights, one code.

    Both are evaluated in one batched product: points (2, n, d), entry 0 through phi and entry 1
    through psi. Each is ``x + f(x, z(x))`` with modulated periodic activations over Fourier
    features; the last layer starts at zero, so both maps start at the identity.
    """

    def __init__(self, settings: FieldSettings, half_size_mm: float, dimension: int = 3, generator=None):
        super().__init__()
        s, w = settings, settings.width
        self.settings = settings
        bands = torch.randn(dimension, s.frequencies, generator=generator)
        bands = 2 * math.pi * bands * (half_size_mm / s.wavelength_mm)
        # sine and cosine of each band in one call: cos(x) = sin(x + pi / 2)
        self.register_buffer("bands", torch.cat([bands, bands], 1))
        phase = torch.tensor([0.0, math.pi / 2]).repeat_interleave(s.frequencies)
        self.register_buffer("phase", phase, persistent=False)
        features, code = 2 * s.frequencies, s.global_code + s.local_code

        def uniform(*shape, bound):
            return nn.Parameter((torch.rand(2, *shape, generator=generator) * 2 - 1) * bound)

        first = 1.0 if s.modulation == "sine" else math.sqrt(features + code)
        first = first / (features + code)
        hidden_sine = math.sqrt(6 / w) / s.omega
        hidden = hidden_sine if s.modulation == "sine" else math.sqrt(6 / w)
        self.synthesis_in = uniform(features, w, bound=1 / features)
        self.synthesis_in_bias = uniform(1, w, bound=1 / math.sqrt(features))
        self.modulation_in = uniform(features, w, bound=first)
        self.modulation_local = uniform(s.local_code, w, bound=first)
        self.modulation_global = uniform(s.global_code, w, bound=first)
        self.modulation_in_bias = uniform(1, w, bound=1 / math.sqrt(features + code))
        layers = range(s.hidden_layers)
        self.synthesis = nn.ParameterList([uniform(w, w, bound=hidden_sine) for _ in layers])
        self.synthesis_bias = nn.ParameterList([uniform(1, w, bound=1 / math.sqrt(w)) for _ in layers])
        self.modulation = nn.ParameterList([uniform(w, w, bound=hidden) for _ in layers])
        self.modulation_bias = nn.ParameterList([uniform(1, w, bound=1 / math.sqrt(w)) for _ in layers])
        self.out = nn.Parameter(torch.zeros(2, w, dimension))
        self.out_bias = nn.Parameter(torch.zeros(2, 1, dimension))

    def _modulate(self, x: Tensor) -> Tensor:
        return torch.sin(self.settings.omega * x) if self.settings.modulation == "sine" else torch.relu(x)

    def one(self, points_cube: Tensor, code: HybridCode, way: int) -> Tensor:
        """Points (n, d) through one of the two fields (FORWARD or INVERSE)."""
        return self._run(points_cube[None], code, slice(way, way + 1))[0]

    def forward(self, points_cube: Tensor, code: HybridCode) -> Tensor:
        return self._run(points_cube, code, slice(None))

    def _run(self, points_cube: Tensor, code: HybridCode, which: slice) -> Tensor:
        def layer(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
            return torch.baddbmm(bias[which], x, weight[which])

        embedding = torch.sin(points_cube @ self.bands + self.phase)
        shift = self.modulation_in_bias + code.global_code[None, None] @ self.modulation_global
        # the two networks read the same features: one product; the local code adds its own part
        weight = torch.cat([self.synthesis_in, self.modulation_in], -1)
        both = layer(torch.cat([self.synthesis_in_bias, shift], -1), embedding, weight)
        signal, gate = both.split(self.settings.width, -1)
        signal = torch.sin(signal)
        skip = gate = self._modulate(torch.baddbmm(gate, code.at(points_cube), self.modulation_local[which]))
        for w_s, b_s, w_m, b_m in zip(
            self.synthesis, self.synthesis_bias, self.modulation, self.modulation_bias, strict=True
        ):
            gate = self._modulate(layer(b_m, gate, w_m)) + skip
            signal = torch.sin(self.settings.omega * layer(b_s, signal, w_s)) * gate
        return points_cube + layer(self.out_bias, signal, self.out)
