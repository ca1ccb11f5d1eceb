"""Regularisers: penalties on the maps themselves, at sparse points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..maps.jacobian import exact_jacobian, finite_jacobian
from ..settings import REGULARISERS, RegularitySettings
from ..space.interpolate import constant

_BENDING_STEPS = 2.0  # over which slopes are compared
_BENDING_VOXEL_MM = 2.0  # side of a voxel for which ``bending_mm`` is meant
_MOST_BENDING = 6.0  # times as much, in coarser voxels
_LEAST_BENDING_MM = 0.1  # smaller values have no effect, but cost time


class Regulariser:
    """A penalty on both maps of a pair. Subclasses need ``penalty`` alone; an instance is passed to ``register``.

    ``exact``: the maps are differentiated at the points instead of taking differences; a stencil is then one point.
    """

    exact = False

    def stencil(self, dimension: int, step: float) -> Tensor:
        """Offsets (k, d) from a point, in cube units, at which the maps are needed; the first is zero.

        By default the point and one ``step`` ahead along each axis, as ``finite_jacobian`` takes them.
        """
        centre = torch.zeros(1, dimension)
        return centre if self.exact else torch.cat([centre, step * torch.eye(dimension)])

    def around(self, points: Tensor, step: float) -> Tensor:
        """(..., n, k, d): where the maps are needed for points (..., n, d); by default the stencil around each."""
        offsets = self.stencil(points.shape[-1], step).tolist()
        return points[..., None, :] + constant(offsets, points.device, points.dtype)

    def penalty(self, maps: Callable[[Tensor], Tensor], points: Tensor, values: Tensor, step: float) -> Tensor:
        """A scalar. ``points`` (2, n, k, d): those of ``around``, the same for both maps; ``values``: the maps there.

        ``maps`` takes points (2, n, d), entry 0 through the forward map and entry 1 through the inverse one. If
        ``exact``, the points carry gradients.
        """
        raise NotImplementedError

    def jacobian(self, values: Tensor, points: Tensor, step: float) -> Tensor:
        """Jacobians (2, n, d, d) of values (2, n, k, d) on the stencils, row = output."""
        if self.exact:
            return exact_jacobian(values[..., 0, :], points)[..., 0, :, :]
        return finite_jacobian(values, step)


def squared_deviation(jacobian: Tensor) -> Tensor:
    """Mean squared Frobenius norm of J - Id of Jacobians (..., d, d)."""
    d = jacobian.shape[-1]
    identity = constant([[float(i == j) for j in range(d)] for i in range(d)], jacobian.device, jacobian.dtype)
    return F.mse_loss(jacobian, identity.expand_as(jacobian)) * d**2


class GradICON(Regulariser):
    """Both compositions of the maps have the identity as Jacobian (Tian et al. 2023; paper, Eq. 3).

    ``bending``: a length in steps. The bending energy is added, times its square: slopes that change by 1 over this
    length count as much as a Jacobian that is off by 1. At each point it is taken along one axis; the axes take turns.
    """

    def __init__(self, exact: bool = False, bending: float = 0.0):
        self.exact, self.bending = exact, bending

    def around(self, points: Tensor, step: float) -> Tensor:
        """With ``bending``, a second stencil follows, ahead of the first."""
        here = super().around(points, step)
        if not self.bending:
            return here
        n, d = points.shape[-2:]
        ahead = [[[_BENDING_STEPS * step * (axis == turn % d) for axis in range(d)]] for turn in range(n)]
        return torch.cat([here, here + constant(ahead, points.device, points.dtype)], -2)

    def penalty(self, maps: Callable[[Tensor], Tensor], points: Tensor, values: Tensor, step: float) -> Tensor:
        d, k = points.shape[-1], points.shape[-2] // (2 if self.bending else 1)
        # points are the same for both entries, so entry 0 is phi(psi(x)) and entry 1 is psi(phi(x))
        back = values[..., :k, :].flip(0)
        composed = maps(back.flatten(1, 2)).reshape(back.shape)
        strength = d**3 * (self.bending / _BENDING_STEPS) ** 2  # d axes take turns; of d x d slopes the mean
        if self.exact:
            folding = squared_deviation(exact_jacobian(composed[..., 0, :], points)[..., 0, :, :])
            if not self.bending:
                return folding
            here, ahead = (exact_jacobian(values[..., at, :], points)[..., at, :, :] for at in range(2))
            return torch.add(folding, (ahead - here).square().mean(), alpha=strength)
        if not self.bending:
            return _mean_square(composed, _slopes(k, d / step), _identity(d))
        # both in one product: the slopes of the composition, and the differences of those of the map
        less, none = _slopes(k, -((2 * strength) ** 0.5) / step), [0.0] * k
        weights = [row + 2 * none for row in _slopes(k, 2**0.5 * d / step)]
        weights += [none + row + [-w for w in row] for row in less]
        wanted = [[2**0.5 * v for v in row] for row in _identity(d)] + [[0.0] * d] * d
        return _mean_square(torch.cat([composed, values], 2), weights, wanted)


def _identity(d: int) -> list[list[float]]:
    """(d, d): d times the identity matrix, as a mean of d x d squares weighs it."""
    return [[float(d * (i == j)) for j in range(d)] for i in range(d)]


def _slopes(k: int, factor: float) -> list[list[float]]:
    """(k - 1, k): differences along each axis of values on a stencil, times a factor."""
    return [[-factor, *(factor * (i == j) for j in range(k - 1))] for i in range(k - 1)]


def _mean_square(values: Tensor, weights: list[list[float]], wanted: list[list[float]]) -> Tensor:
    """Mean square of the combinations (r, k) of values (..., k, d) on stencils, minus the wanted ones (r, d)."""
    k, d = values.shape[-2:]
    flat, kind = values.reshape(-1, k, d), (values.device, values.dtype)
    found = torch.bmm(constant(weights, *kind).expand(len(flat), -1, -1), flat)
    return F.mse_loss(found, constant(wanted, *kind).expand_as(found))


class Diffusion(Regulariser):
    """Squared gradient of the displacement."""

    def __init__(self, exact: bool = False):
        self.exact = exact

    def penalty(self, maps: Callable[[Tensor], Tensor], points: Tensor, values: Tensor, step: float) -> Tensor:
        return squared_deviation(self.jacobian(values, points, step))


class Bending(Regulariser):
    """Bending energy: second differences of the map, mixed ones twice (Rueckert et al. 1999)."""

    def stencil(self, dimension: int, step: float) -> Tensor:
        eye = step * torch.eye(dimension)
        mixed = [eye[i : i + 1] + eye[j : j + 1] for i in range(dimension) for j in range(i)]
        return torch.cat([super().stencil(dimension, step), -eye, *mixed])

    def penalty(self, maps: Callable[[Tensor], Tensor], points: Tensor, values: Tensor, step: float) -> Tensor:
        d = points.shape[-1]
        centre, ahead, behind = values[..., :1, :], values[..., 1 : d + 1, :], values[..., d + 1 : 2 * d + 1, :]
        total = ((ahead - 2 * centre + behind) / step**2).square().sum((-1, -2)).mean()
        k = 2 * d + 1
        for i in range(d):
            for j in range(i):
                mixed = values[..., k, :] - values[..., 1 + i, :] - values[..., 1 + j, :] + values[..., 0, :]
                total = total + 2 * (mixed / step**2).square().sum(-1).mean()
                k += 1
        return total


class NoRegulariser(Regulariser):
    """Nothing is asked of the maps."""

    def stencil(self, dimension: int, step: float) -> Tensor:
        return torch.zeros(1, dimension)

    def penalty(self, maps: Callable[[Tensor], Tensor], points: Tensor, values: Tensor, step: float) -> Tensor:
        return values.new_zeros(())


REGULARISERS.add("gradicon", lambda s: GradICON(s.exact, s.bending_mm / s.step_mm))
REGULARISERS.add("diffusion", lambda s: Diffusion(s.exact))
REGULARISERS.add("bending", lambda s: Bending())
REGULARISERS.add("none", lambda s: NoRegulariser())


def fitted(settings: RegularitySettings, voxel_mm: float, scale: float) -> RegularitySettings:
    """The settings of a pair: lengths times ``scale``, and less bending where fewer voxels determine it.

    ``voxel_mm``: side of a cube with the volume of a voxel. ``bending_mm`` grows with the square of this volume, which
    was best for pairs with voxels of 1.7 to 5 mm (docs/method.md).
    """
    coarse = voxel_mm / (_BENDING_VOXEL_MM * scale)
    bending_mm = settings.bending_mm * min(coarse**6, _MOST_BENDING)
    bending_mm *= scale if bending_mm > _LEAST_BENDING_MM else 0.0
    return replace(settings, step_mm=settings.step_mm * scale, bending_mm=bending_mm)


def make_regulariser(settings: RegularitySettings) -> Regulariser:
    """The regulariser named in the settings. Raises NephiError if it is unknown."""
    return REGULARISERS.make(settings.name, settings)
