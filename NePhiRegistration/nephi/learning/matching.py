"""The matching encoder: features of one image are searched in the other, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..images.volume import Volume
from ..maps.code import FORWARD, LINEAR_CUBE, Code, nodes, zero_code
from ..maps.fields import Fields
from ..maps.maps import FieldMap
from ..settings import FieldSettings
from .encoder import Encoder
from .pair_tensors import PairTensors
from .settings import MatchingSettings

_SHARPNESS = 8.0  # of the least cost against the mean one
_REACH = 0.06  # a typical step between places, in the cube


class MatchingEncoder(Encoder):
    """Finds the code of one pair in a few rounds, each with the map of the round before.

    A round compares the features at a lattice of points with those around their present partners in the other image,
    averages these costs over neighbourhoods of the lattice, and takes from each where they are least (as dense
    matching does: Siebert et al., ConvexAdam, 2024; Teed and Deng, RAFT, 2020). A small network turns what was found
    in both directions into a change of the code; where the local code moves the points by itself (``field.linear``,
    voxel fields) it only corrects what was found. Nothing is differentiated through the comparison, so that a round
    costs little more in training than in use.
    """

    def __init__(self, settings: MatchingSettings, field: FieldSettings, dimension: int):
        super().__init__()
        self.settings, self.field, w = settings, field, settings.width
        steps = range(-settings.reach, settings.reach + 1)
        offsets = torch.tensor(list(product(steps, repeat=dimension)), dtype=torch.float32)
        self.offsets: Tensor
        self.register_buffer("offsets", offsets, persistent=False)
        convolution = (nn.Conv2d, _Conv3d)[dimension - 2]
        measured = len(settings.windows) * (dimension + 2) + 3
        self.points = nn.Sequential(nn.Linear(measured, w), nn.LeakyReLU(0.2), nn.Linear(w, w), nn.LeakyReLU(0.2))
        self.enter = _block(convolution, 2 * w + field.local_code + 1, w)
        self.down = _block(convolution, w, 2 * w, 2)
        self.deep = nn.Sequential(_block(convolution, 2 * w, 2 * w), _block(convolution, 2 * w, 2 * w))
        self.up = nn.Linear(2 * w, w)
        self.join = _block(convolution, 2 * w, w)
        self.local = convolution(w, field.local_code, 3, padding=1)
        self.whole = nn.Linear(2 * w, field.global_code)
        self.moves = field.moves_points
        if self.moves:
            for last in (self.local, self.whole):  # initially the network adds nothing to the result of the comparison
                for weights in last.parameters():
                    nn.init.zeros_(weights)

    def codes(self, samples: list[PairTensors], fields: Fields) -> list[Code]:
        """The codes of the one pair of the batch after each round."""
        (sample,) = samples
        size = nodes(sample.half_extents_cube, self.settings.node_spacing)
        return self(sample.volumes, fields, zero_code(self.field, sample.half_extents_cube, size))

    def forward(self, pair: tuple[Volume, Volume], fields: Fields, start: Code) -> list[Code]:
        """The codes after each round; ``start`` is that of the identity and gives the grid of nodes."""
        codes, code = [], start
        for step in self.settings.steps:
            code = Code(code.global_code.detach(), code.local_code.detach(), code.half_extents_cube)
            with torch.no_grad():
                maps, (fixed, moving) = FieldMap(fields, code), pair
                found = [
                    self._look(fixed, moving, maps.forward, code, step),
                    self._look(moving, fixed, maps.inverse, code, step),
                ]
            x = [self._to_nodes(self.points(measured), kept, code.size) for measured, kept, _ in found]
            scale = step * pair[FORWARD].spacing / _REACH  # shifts and updates are in units of the step
            x = self.enter(torch.cat([*x, code.local_code, torch.full_like(code.local_code[:, :1], scale)], 1))
            deep = self.deep(self.down(x))
            back = F.interpolate(deep, x.shape[2:], mode="trilinear" if x.ndim == 5 else "bilinear")
            back = self.up(back.movedim(1, -1)).movedim(-1, 1)
            x = self.join(torch.cat([x, back], 1))
            change = self.whole(deep.flatten(2).mean(-1)), self.local(x)
            local = code.local_code + scale * change[1]
            if self.moves:  # the result is already a map, in the channels that displace points
                flow = torch.cat([self._flow(shift, kept, code.size) for _, kept, shift in found], 1) / LINEAR_CUBE
                local = torch.cat([local[:, : flow.shape[1]] + flow, local[:, flow.shape[1] :]], 1)
            code = Code(code.global_code + scale * change[0], local, code.half_extents_cube)
            codes.append(code)
        return codes

    def _look(
        self, here: Volume, there: Volume, through: Callable[[Tensor], Tensor], code: Code, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen (n, c) from the lattice points of the mask, which of the lattice these are, and what the
        comparison over the largest window would add to their map (n, d).

        ``through``: the map found so far, from the one image to the other.
        """
        index = here.nearest(_lattice(code.half_extents_cube, code.size))
        kept = here.dense_mask()[here.flat(index)]
        index = index[kept]
        points = index * here.spacing + here.lower
        mapped = through(points)
        exact = (mapped - there.lower) / there.spacing
        base = exact.round()
        steps = step * torch.arange(-self.settings.reach, self.settings.reach + 1, device=index.device)
        costs = there.distances(base.long(), steps, here.at_voxels(index))
        seen = [there.inside(mapped)]
        for volume, at in ((here.distance, points), (there.distance, mapped)):
            seen.append(torch.zeros_like(points[:, :1]) if volume is None else volume.at(at))
        known = torch.cat([costs, (base - exact) / step], 1) * seen[0]  # points out of view do not count
        for window in self.settings.windows:
            mean = self._around(torch.cat([known, seen[0]], 1), kept, code.size, window)
            costs, rest = mean[:, : len(self.offsets)], mean[:, len(self.offsets) :]
            above = costs - costs.amin(1, keepdim=True)
            likely = torch.softmax(-_SHARPNESS * above / above.mean(1, keepdim=True).clamp(min=1e-6), 1)
            best = likely @ self.offsets
            spread = (likely @ self.offsets.square().sum(1) - best.square().sum(1)).clamp(min=0).sqrt()
            seen += [best + rest, spread[:, None], 10 * costs.amin(1, keepdim=True)]
        return torch.cat(seen, 1), kept, (best + rest) * step * there.spacing

    def _around(self, values: Tensor, kept: Tensor, size: tuple[int, ...], window: int) -> Tensor:
        """Sums of values (n, c + 1) over a window of the lattice, divided by that of their last column: (n, c)."""
        sums = _sums_around(values, kept.reshape([2 * n for n in reversed(size)]), window)
        return sums[:, :-1] / sums[:, -1:].clamp(min=1e-6)

    def _flow(self, shift: Tensor, kept: Tensor, size: tuple[int, ...]) -> Tensor:
        """Shifts (n, d) at the kept lattice points -> (1, d, (z,) y, x) at the nodes, smooth, constant beyond."""
        sums = self._node_means(shift, kept, size)[0].movedim(0, -1)
        flow, held = torch.zeros_like(sums[..., :-1]), torch.zeros_like(sums[..., -1:], dtype=torch.bool)
        for window in (3, 7, 15, 31):  # where the narrow window is empty, the next wider one answers
            around = _box_sums(sums, window)
            some = around[..., -1:] > 1e-3
            flow = torch.where(some & ~held, around[..., :-1] / around[..., -1:].clamp(min=1e-3), flow)
            held |= some
        return flow.movedim(-1, 0)[None]

    def _to_nodes(self, values: Tensor, kept: Tensor, size: tuple[int, ...]) -> Tensor:
        """Values (n, c) at the kept lattice points -> (1, c, (z,) y, x) means at the nodes; 0 without any."""
        means = self._node_means(values, kept, size)
        return means[:, :-1] / means[:, -1:].clamp(min=0.5 ** len(size))

    def _node_means(self, values: Tensor, kept: Tensor, size: tuple[int, ...]) -> Tensor:
        """(1, c + 1, (z,) y, x): mean of the kept values around each node, 0 without any, and the kept share."""
        full = _on_lattice(torch.cat([values, torch.ones_like(values[:, :1])], 1), kept, size)
        for axis in range(full.ndim - 1):  # torch's pooling would first reorder the whole lattice
            before, after = full.unflatten(axis, (-1, 2)).unbind(axis + 1)
            full = (before + after) / 2
        return full.movedim(-1, 0)[None]


def _lattice(half_extents_cube: Tensor, size: tuple[int, ...]) -> Tensor:
    """Two points for every node and axis, a quarter of the nodes' spacing to either side of it: (n, d), x fastest."""
    axes = []
    for u, n in zip(half_extents_cube, size, strict=True):
        h = 2 * u / (n - 1)
        axes.append(torch.arange(2 * n, device=u.device) * h / 2 - u - h / 4)
    mesh = torch.meshgrid(*reversed(axes), indexing="ij")
    return torch.stack([m.reshape(-1) for m in reversed(mesh)], -1)


def _on_lattice(values: Tensor, kept: Tensor, size: tuple[int, ...]) -> Tensor:
    """Values (n, c) at the kept lattice points -> ((z,) y, x, c) on the whole lattice, 0 elsewhere."""
    full = values.new_zeros(len(kept), values.shape[1])
    full[kept] = values
    return full.reshape(*[2 * n for n in reversed(size)], -1)


def _sums_around(values: Tensor, kept: Tensor, window: int) -> Tensor:
    """Values (n, c) at the n kept lattice points ((z,) y, x) -> their sums (n, c) over boxes of ``window`` points.

    Points that are not kept add nothing. Sums along one axis are computed only where those along the next axes need
    them: most of the lattice lies outside the mask.
    """
    values, present = F.pad(values, [0, 0, 0, 1]), kept  # the last row is for points that are not kept
    for axis in range(kept.ndim):
        needed, nothing = kept, len(values) - 1
        for later in range(axis + 1, kept.ndim):
            needed = _windows(needed, later, window, False).any(-1)
        row = torch.full_like(kept, nothing, dtype=torch.long)
        row[present] = torch.arange(nothing, device=kept.device)
        around = _windows(row, axis, window, nothing)[needed]
        around = F.pad(around, [0, 0, 0, 1], value=nothing)
        values, present = F.embedding_bag(around, values, mode="sum"), needed
    return values[:-1]


def _windows(values: Tensor, axis: int, window: int, beyond: int) -> Tensor:
    """Values ((z,) y, x) -> (..., window): those around each place along an axis, and ``beyond`` beyond the border."""
    ends = [0, 0] * (values.ndim - 1 - axis) + [window // 2] * 2
    return F.pad(values, ends, value=beyond).unfold(axis, window, 1)


def _box_sums(values: Tensor, window: int) -> Tensor:
    """Sums (..., y, x, c) of values over a box of ``window`` places along each axis but the last."""
    for axis, n in enumerate(values.shape[:-1]):
        total = values.clone()
        for k in range(1, min(window // 2, n - 1) + 1):
            total.narrow(axis, k, n - k).add_(values.narrow(axis, 0, n - k))
            total.narrow(axis, 0, n - k).add_(values.narrow(axis, k, n - k))
        values = total
    return values


class _Conv3d(nn.Conv3d):
    """The same, several times faster on a CPU: of few voxels PyTorch leaves oneDNN aside, unless tensors are in its
    layout."""

    def forward(self, x: Tensor) -> Tensor:
        plain = torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32
        if plain or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return super().forward(x.to_mkldnn()).to_dense()


def _block(convolution, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        convolution(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2)
    )
