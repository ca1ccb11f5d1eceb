"""Maps from points to points: the neural fields, voxel fields, and their composition.

Points in here live in the registration cube (see ``space.Cube``), one row a point, x first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import NephiError
from ..settings import FieldSettings
from ..space.interpolate import constant, interpolate

FORWARD, INVERSE = 0, 1
LINEAR_CUBE = 0.06  # displacement for a local code of 1, where there is a linear term


class Code:
    """Latent codes of a batch of pairs: a global vector and a local grid that covers the cube (paper, Eq. 4).

    ``global_code`` (b, g); ``local_code`` (b, l, (z,) y, x): nodes between minus ``upper_cube`` (d,) and it,
    interpolated by B-splines; beyond the border the nearest border value holds.
    """

    def __init__(self, global_code: Tensor, local_code: Tensor, upper_cube: Tensor):
        self.global_code, self.local_code, self.upper_cube = global_code, local_code, upper_cube

    @property
    def batch(self) -> int:
        return len(self.global_code)

    @property
    def size(self) -> tuple[int, ...]:
        """Nodes along x, y (, z)."""
        return tuple(reversed(self.local_code.shape[2:]))

    def to(self, device) -> Code:
        return Code(*(t.to(device) for t in (self.global_code, self.local_code, self.upper_cube)))

    def at(self, points_cube: Tensor, degree: int = 1) -> Tensor:
        """Local code at points (2, b * n, d), pair after pair -> (2, b * n, l), by B-splines of degree 1 or 2."""
        return self.bound(degree)(points_cube / self.upper_cube)

    def bound(self, degree: int) -> Callable[[Tensor], Tensor]:
        """``at`` for several calls while the code stays the same, of points in units of ``upper_cube``."""
        # one row a node, in one piece: reading rows of a transposed table takes fifteen times as long
        table = self.local_code.movedim(1, -1).flatten(1, -2).contiguous()
        tables = [table.squeeze(0)] if self.batch == 1 else table.unbind()
        half = constant([(n - 1) / 2 for n in self.size], table.device, table.dtype)

        def at(points: Tensor) -> Tensor:
            two, many, d = points.shape
            position = torch.addcmul(half, points, half)
            if len(tables) == 1:
                return interpolate(tables, position.reshape(1, -1, d), self.size, degree).reshape(two, many, -1)
            # a group for each pair
            by_pair = position.reshape(two, len(tables), -1, d).transpose(0, 1).flatten(1, 2)
            found = interpolate(tables, by_pair, self.size, degree).unflatten(1, (two, -1)).transpose(0, 1)
            return found.reshape(two, many, -1)

        return at

    def resampled(self, size: Sequence[int], degree: int = 1) -> Tensor:
        """The local code on another number of nodes along x, y (, z)."""
        nodes = points_between(self.upper_cube, size)[None].repeat(1, self.batch, 1)
        values = self.at(nodes, degree).reshape(self.batch, *reversed(size), -1)
        return values.movedim(-1, 1).contiguous()

    def prior(self) -> Tensor:
        """Mean norm of the global code plus mean norm over the grid (paper, Eq. 5)."""
        tiny = 1e-12  # a zero code has no gradient of its norm
        norms = (t.square().sum(1) + tiny for t in (self.global_code, self.local_code))
        return sum(norm.sqrt().mean() for norm in norms)


class HybridCode(nn.Module, Code):
    """The code of one pair as parameters, at first those of ``start``."""

    def __init__(self, start: Code):
        nn.Module.__init__(self)
        self.register_buffer("upper_cube", start.upper_cube.clone())
        self.global_code = nn.Parameter(start.global_code.detach().clone())
        self.local_code = _parameter(start.local_code)

    def refine(self, size: Sequence[int], degree: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Put the local code on other nodes; returns the old parameter and the new one."""
        old = self.local_code
        self.local_code = _parameter(self.resampled(size, degree))
        return old, self.local_code


def _parameter(local_code: Tensor) -> nn.Parameter:
    """Laid out node by node, as it is read."""
    layout = torch.channels_last if local_code.ndim == 4 else torch.channels_last_3d
    return nn.Parameter(local_code.detach().clone().contiguous(memory_format=layout))


def nodes(half_sides: Iterable[float], spacing: float) -> tuple[int, ...]:
    """Nodes of the local code along x, y (, z), at most ``spacing`` apart; both in the cube's unit, or in mm."""
    return tuple(math.ceil(2 * float(half) / spacing) + 1 for half in half_sides)


def zero_code(settings: FieldSettings, upper_cube: Tensor, size: tuple[int, ...], batch: int = 1) -> Code:
    """All zeros: what a code is before anything is known."""
    local = upper_cube.new_zeros(batch, settings.local_code, *reversed(size))
    return Code(upper_cube.new_zeros(batch, settings.global_code), local, upper_cube)


@torch.no_grad()
def code_like(maps: Maps, settings: FieldSettings, size: tuple[int, ...]) -> Code:
    """A code whose linear term alone moves points nearly as the maps of one pair do: by what they do at its nodes."""
    code = zero_code(settings, maps.code.upper_cube, size)
    nodes = points_between(code.upper_cube, size)
    moved = torch.cat([maps.one(nodes, way) - nodes for way in (FORWARD, INVERSE)], 1)
    code.local_code[0, : moved.shape[1]] = moved.T.reshape(-1, *reversed(size)) / LINEAR_CUBE
    return code


def points_between(upper_cube: Tensor, size: Sequence[int]) -> Tensor:
    """(n, d) points_cube, ``size`` of them evenly along each axis from minus ``upper_cube`` (d,) to it, x fastest."""
    axes = [
        torch.linspace(-float(u), float(u), n, device=upper_cube.device) for u, n in zip(upper_cube, size, strict=True)
    ]
    mesh = torch.meshgrid(*reversed(axes), indexing="ij")
    return torch.stack(list(reversed(mesh)), -1).reshape(-1, len(axes))


class NeuralFields(nn.Module):
    """The forward field phi and the backward field psi: same structure, separate weights, one code.

    Both are evaluated in one batched product: points (2, n, d), entry 0 through phi and entry 1
    through psi; with the codes of b pairs n / b points of each, pair after pair. Each is
    ``x + f(x, z(x))`` with modulated periodic activations over Fourier features; the last layer starts
    at zero, so both maps start at the identity. Beyond the cube the displacement of its border holds.
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
        self.linear = None
        if s.linear:  # at first: channels 0 to d - 1 move the forward map, d to 2 d - 1 the inverse one
            linear = torch.zeros(2, s.local_code, dimension)
            for way in (FORWARD, INVERSE):
                linear[way, way * dimension : (way + 1) * dimension] = LINEAR_CUBE * torch.eye(dimension)
            self.linear = nn.Parameter(linear)

    def _modulate(self, x: Tensor) -> Tensor:
        return torch.sin(self.settings.omega * x) if self.settings.modulation == "sine" else torch.relu(x)

    def one(self, points_cube: Tensor, code: Code, way: int) -> Tensor:
        """Points (n, d) of one pair through one of the two fields (FORWARD or INVERSE)."""
        return self._bound(code, lambda parameter: parameter[way : way + 1])(points_cube[None])[0]

    def forward(self, points_cube: Tensor, code: Code) -> Tensor:
        return self.bound(code)(points_cube)

    def bound(self, code: Code) -> Callable[[Tensor], Tensor]:
        """``forward`` with this code, for several calls: what depends on the code alone is worked out once."""
        return self._bound(code, lambda parameter: parameter)

    def _bound(self, code: Code, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``own``: of a parameter of both fields, what belongs to those that the points go through."""
        s, fields = self.settings, len(own(self.out))
        weight, start = self._input_layer(code, own)
        bands, local_at = self.bands * code.upper_cube[:, None], code.bound(s.code_degree)

        def evaluate(points_cube: Tensor) -> Tensor:
            points, d = points_cube.shape[1:]
            unit = points_cube / code.upper_cube
            # the border itself is inside, so that it has the slope of its inner side
            inside = nn.functional.hardtanh(unit, -1 - 1e-6, 1 + 1e-6).reshape(-1, d)
            embedding = torch.sin(torch.addmm(self.phase, inside, bands)).reshape(fields, points, -1)
            each = 1 if code.batch == 1 else points // code.batch
            inputs = torch.cat([embedding, local_at(unit)], -1)
            first = torch.baddbmm(start.expand(-1, -1, each, -1).flatten(1, 2), inputs, weight)
            signal, gate, shift = first.split([s.width, s.width, d], -1)
            signal = torch.sin(signal)
            skip = gate = self._modulate(gate)
            for w_s, b_s, w_m, b_m in zip(
                self.synthesis, self.synthesis_bias, self.modulation, self.modulation_bias, strict=True
            ):
                gate = self._modulate(torch.baddbmm(own(b_m), gate, own(w_m))) + skip
                signal = torch.sin(s.omega * torch.baddbmm(own(b_s), signal, own(w_s))) * gate
            return torch.baddbmm(points_cube + shift, signal, own(self.out))

        return evaluate

    def _input_layer(self, code: Code, own: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Everything that is linear in the Fourier features or in the local code, as one layer.

        Weight (fields, features + local, 2 * width + d) to the synthesis network, the modulation network and the
        displacement, and its bias (fields, b, 1, the same) with what depends on a pair's global code.
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


class VoxelFields(nn.Module):
    """Displacements at voxels: the local code itself, channels 0 to d - 1 forward, d to 2 d - 1 inverse.

    In the place of ``NeuralFields``; has no weights. Its values, in units of 0.06 of the cube, are spline coefficients.
    """

    def __init__(self, settings: FieldSettings, dimension: int = 3):
        super().__init__()
        self.settings, self.dimension = settings, dimension

    def one(self, points_cube: Tensor, code: Code, way: int) -> Tensor:
        return self(points_cube[None], code, way)[0]

    def bound(self, code: Code) -> Callable[[Tensor], Tensor]:
        return partial(self, code=code)

    def forward(self, points_cube: Tensor, code: Code, first: int = FORWARD) -> Tensor:
        values, d = LINEAR_CUBE * code.at(points_cube, self.settings.code_degree), self.dimension
        moved = [values[k, :, (first + k) * d : (first + k + 1) * d] for k in range(len(values))]
        return points_cube + torch.stack(moved)

    @torch.no_grad()
    def with_inverse(self, code: Code, rounds: int = 8) -> Code:
        """The code of one pair with another inverse part: the forward map undoes it, nearly, at the nodes."""
        d, local, nodes = self.dimension, code.local_code.clone(), points_between(code.upper_cube, code.size)
        code = Code(code.global_code, local, code.upper_cube)
        for _ in range(rounds):
            gap = nodes - self.one(self.one(nodes, code, INVERSE), code, FORWARD)
            local[:, d:] += gap.T.reshape(1, d, *local.shape[2:]) / LINEAR_CUBE
        return code


def moves_points(settings: FieldSettings) -> bool:
    """Whether the local code moves points by itself: its first channels forward, the next ones backward."""
    return settings.kind == "voxel" or settings.linear


def check_local_code(settings: FieldSettings, dimension: int) -> None:
    """Raise NephiError where the local code should move the points by itself, and has no channels for that."""
    if settings.kind == "voxel" and settings.local_code != 2 * dimension:
        raise NephiError(f"settings: field.kind voxel needs field.local_code of {2 * dimension}")
    if settings.linear and settings.local_code < 2 * dimension:
        raise NephiError(f"settings: field.linear needs field.local_code of at least {2 * dimension}")


def make_fields(
    settings: FieldSettings, half_size_mm: float, dimension: int, generator: torch.Generator | None = None
) -> NeuralFields | VoxelFields:
    """The fields that the settings ask for; raises NephiError as ``check_local_code``."""
    check_local_code(settings, dimension)
    if settings.kind == "voxel":
        return VoxelFields(settings, dimension)
    return NeuralFields(settings, half_size_mm, dimension, generator)


class Maps:
    """The forward and the inverse map of a batch of pairs, functions of points: fields with a code.

    ``outer``: what they are composed with, if anything.
    """

    outer: Maps | None = None

    def __init__(self, fields: NeuralFields | VoxelFields, code: Code):
        self.fields, self.code = fields, code

    def __call__(self, points_cube: Tensor) -> Tensor:
        """(2, b * n, d): entry 0 through the forward maps, entry 1 through the inverse ones."""
        return self.fields(points_cube, self.code)

    def bound(self) -> Callable[[Tensor], Tensor]:
        """The same function for several calls in a row, while neither fields nor code change."""
        return self.fields.bound(self.code)

    def one(self, points_cube: Tensor, way: int) -> Tensor:
        """Points (n, d) of one pair through one map."""
        return self.fields.one(points_cube, self.code, way)

    def to(self, device) -> Maps:
        return Maps(self.fields.to(device), self.code.to(device))

    @torch.no_grad()
    def solve(self, points_cube: Tensor, rounds: int = 5, way: int = FORWARD, near: Tensor | None = None) -> Tensor:
        """The points that one map of one pair takes to these (n, d): a better inverse than the other map.

        ``near``: where the other map takes them, if that is known already.
        """
        found = self.one(points_cube, 1 - way) if near is None else near
        for _ in range(rounds):
            found = found + points_cube - self.one(found, way)
        return found


class Composed(Maps):
    """``inner``, then ``outer`` from its side of the moving image; the inverse goes the way back.

    forward(x) = outer.forward(inner.forward(x)), inverse(y) = inner.inverse(outer.inverse(y)): where both parts are
    inverses of each other, so are the two. Fields and code are those of the inner maps.
    """

    def __init__(self, inner: Maps, outer: Maps):
        super().__init__(inner.fields, inner.code)
        self.inner, self.outer = inner, outer

    def to(self, device) -> Composed:
        return Composed(self.inner.to(device), self.outer.to(device))

    def __call__(self, points_cube: Tensor) -> Tensor:
        return self._through(self.inner, points_cube)

    def bound(self) -> Callable[[Tensor], Tensor]:
        return partial(self._through, self.inner.bound())

    def _through(self, inner: Callable[[Tensor], Tensor], points_cube: Tensor) -> Tensor:
        moved = inner(torch.stack([points_cube[FORWARD], self.outer.one(points_cube[INVERSE], INVERSE)]))
        return torch.stack([self.outer.one(moved[FORWARD], FORWARD), moved[INVERSE]])

    def one(self, points_cube: Tensor, way: int) -> Tensor:
        first, then = (self.inner, self.outer) if way == FORWARD else (self.outer, self.inner)
        return then.one(first.one(points_cube, way), way)


def composed(inner: Maps, outer: Maps | None) -> Maps:
    return inner if outer is None else Composed(inner, outer)
