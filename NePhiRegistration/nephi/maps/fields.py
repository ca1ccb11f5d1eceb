"""The two fields of the paper: networks that take a point and the latent code there to the mapped point."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import NephiError
from ..settings import FIELDS, FieldSettings, NeuralSettings, VoxelSettings
from ..space.interpolate import constant
from .code import FORWARD, INVERSE, LINEAR_CUBE, Code

_PARTS = 4096  # points that a CPU evaluates at a time without gradients: they stay in its cache


class Fields(nn.Module):
    """The forward and the inverse map as functions of points and a code. Subclasses need ``forward`` alone.

    Subclasses are made from their FieldSettings, the half side of the cube in mm, its dimension and a generator.
    """

    def __init__(self, settings: FieldSettings):
        super().__init__()
        self.settings = settings

    def forward(self, points_cube: Tensor, code: Code) -> Tensor:
        """(2, b * n, d), pair after pair -> the same: entry 0 through the forward maps, entry 1 the inverse ones."""
        raise NotImplementedError

    def bound(self, code: Code) -> Callable[[Tensor], Tensor]:
        """``forward`` with this code, for several calls: what depends only on the code is computed once."""
        return partial(self, code=code)

    def one(self, points_cube: Tensor, code: Code, way: int) -> Tensor:
        """Points (n, d) of one pair through one of the two maps (FORWARD or INVERSE)."""
        return self(torch.stack([points_cube, points_cube]), code)[way]


class NeuralFields(Fields):
    """The forward field phi and the backward field psi: same structure, separate weights, one code.

    Both are evaluated in one batched product: points (2, n, d), entry 0 through phi and entry 1 through psi; with the
    codes of b pairs n / b points of each, pair after pair. Each is ``x + f(x, z(x))`` with modulated periodic
    activations over Fourier features; the last layer starts at zero, so that both maps start at the identity. Beyond
    the cube the displacement at its border is used.
    """

    bands: Tensor
    phase: Tensor
    settings: NeuralSettings

    def __init__(self, settings: NeuralSettings, half_size_mm: float, dimension: int = 3, generator=None):
        super().__init__(settings)
        s, w = settings, settings.width
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
        self.linear = None
        if s.linear:  # at first: channels 0 to d - 1 move the forward map, d to 2 d - 1 the inverse one
            linear = torch.zeros(2, s.local_code, dimension)
            for way in (FORWARD, INVERSE):
                linear[way, way * dimension : (way + 1) * dimension] = LINEAR_CUBE * torch.eye(dimension)
            self.linear = nn.Parameter(linear)

    def _modulate(self, x: Tensor) -> Tensor:
        return torch.sin(self.settings.omega * x) if self.settings.modulation == "sine" else torch.relu(x)

    def one(self, points_cube: Tensor, code: Code, way: int) -> Tensor:
        through = self._bound(code, lambda parameter: parameter[way : way + 1])
        if torch.is_grad_enabled() or points_cube.device.type != "cpu" or len(points_cube) <= _PARTS:
            return through(points_cube[None])[0]
        return torch.cat([through(part[None])[0] for part in points_cube.split(_PARTS)])

    def forward(self, points_cube: Tensor, code: Code) -> Tensor:
        return self.bound(code)(points_cube)

    def bound(self, code: Code) -> Callable[[Tensor], Tensor]:
        return self._bound(code, lambda parameter: parameter)

    def _bound(self, code: Code, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``own``: selects, from a parameter of both fields, the part of the fields that the points go through."""
        s, fields = self.settings, len(own(self.out))
        weight, start = self._input_layer(code, own)
        bands, local_at = self.bands * code.half_extents_cube[:, None], code.bound(s.code_degree)
        # omega is applied to the weights, which are fewer than the activations
        synthesis = [
            (s.omega * own(w), s.omega * own(b)) for w, b in zip(self.synthesis, self.synthesis_bias, strict=True)
        ]
        modulation = [(own(w), own(b)) for w, b in zip(self.modulation, self.modulation_bias, strict=True)]

        def evaluate(points_cube: Tensor) -> Tensor:
            points, d = points_cube.shape[1:]
            unit = points_cube / code.half_extents_cube
            # the border itself is inside, so that it has the slope of its inner side
            inside = nn.functional.hardtanh(unit, -1 - 1e-6, 1 + 1e-6).reshape(-1, d)
            embedding = torch.sin(torch.addmm(self.phase, inside, bands)).reshape(fields, points, bands.shape[1])
            each = 1 if code.batch == 1 else points // code.batch
            inputs = torch.cat([embedding, local_at(unit)], -1)
            first = torch.baddbmm(start.expand(-1, -1, each, -1).flatten(1, 2), inputs, weight)
            signal, gate, shift = first.split([s.width, s.width, d], -1)
            signal = torch.sin(signal)
            skip = gate = self._modulate(gate)
            for (w_s, b_s), (w_m, b_m) in zip(synthesis, modulation, strict=True):
                gate = self._modulate(torch.baddbmm(b_m, gate, w_m)) + skip
                signal = torch.sin(torch.baddbmm(b_s, signal, w_s)) * gate
            return torch.baddbmm(points_cube + shift, signal, own(self.out))

        return evaluate

    def _input_layer(self, code: Code, own: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """All terms linear in the Fourier features or in the local code, as one layer.

        Weight (fields, features + local, 2 * width + d) to the synthesis network, the modulation network and the
        displacement, and its bias (fields, b, 1, the same) with the terms of a pair's global code.
        """
        d, zero = self.out.shape[-1], constant((0.0,), self.out.device, self.out.dtype)
        fields, features, width = own(self.synthesis_in).shape
        local = self.modulation_local.shape[1]
        linear = zero.expand(fields, local, d) if self.linear is None else own(self.linear)
        from_features = [own(self.synthesis_in), own(self.modulation_in), zero.expand(fields, features, d)]
        from_local = [zero.expand(fields, local, width), own(self.modulation_local), linear]
        weight = torch.cat([torch.cat(from_features, -1), torch.cat(from_local, -1)], 1)
        global_code = code.global_code.expand(fields, -1, -1)
        gate = torch.baddbmm(own(self.modulation_in_bias), global_code, own(self.modulation_global))
        each = (fields, code.batch, -1)
        bias = torch.cat([own(self.synthesis_in_bias).expand(each), gate, own(self.out_bias).expand(each)], -1)
        return weight, bias[:, :, None]


def check_local_code(settings: FieldSettings, dimension: int) -> None:
    """Raise NephiError if the local code should displace points directly, but has too few channels."""
    channels, needed = settings.local_code, 2 * dimension
    if isinstance(settings, VoxelSettings) and channels != needed:
        raise NephiError(f"settings: field.local_code is {channels}, must be {needed} for voxel fields in {dimension}D")
    if settings.moves_points and channels < needed:
        raise NephiError(
            f"settings: field.local_code is {channels}, must be {needed} or more in {dimension}D, where it "
            "displaces the points directly (field.linear)"
        )


FIELDS.add("neural", NeuralFields)
