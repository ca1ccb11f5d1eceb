"""What is minimised for one pair: similarity at sparse points, regularity at its own, code prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images.volume import Volume, local_offsets, mind_ssc, smoothed
from ..maps.fields import FORWARD, INVERSE, Maps
from ..settings import RegularitySettings, SimilaritySettings

_KNOWN = 1500  # points of a pair whose partners are known, looked at a step
_BLUNT_MM = 0.5

# ---- similarity: prepare an image, then compare values (n, c) at n points with weights (n, 1) ----------


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / (weight.sum() * values.shape[-1]).clamp(min=1e-6)


def _squared(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return _mean((a - b).square(), weight)


def _one_minus_ncc(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """1 - NCC over all points (paper, section 4.3), averaged over the channels."""
    weight = weight / weight.sum().clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(0)

    a, b = a - mean(a), b - mean(b)
    return (1 - mean(a * b) / (mean(a.square()) * mean(b.square()) + 1e-12).sqrt()).mean()


def _one_minus_lncc(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """1 - squared-free local NCC: each row is the patch around one point."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norm = (a.square().mean(-1, keepdim=True) * b.square().mean(-1, keepdim=True) + 1e-8).sqrt()
    return 1 - _mean((a * b).mean(-1, keepdim=True) / norm, weight)


@dataclass(frozen=True)
class Similarity:
    """A similarity by name: ``prepare`` (image -> channels-last features), the patch read at a point
    (``offsets`` in voxels, moved along without rotation) and ``compare``."""

    prepare: object
    compare: object
    patch: bool = False

    def offsets(self, dimension: int) -> Tensor | None:
        return local_offsets(dimension) if self.patch else None


def similarity(settings: SimilaritySettings) -> Similarity:
    def intensity(image, dilation: int, device=None) -> Tensor:
        values = torch.as_tensor(image[:]).to(device)
        return torch.stack([smoothed(values, blur) for blur in settings.blurs], -1)

    def mind(image, dilation: int, device=None) -> Tensor:
        return mind_ssc(image, dilation, settings.noise, device)

    return {
        "mind": Similarity(mind, _squared),
        "mse": Similarity(intensity, _squared),
        "ncc": Similarity(intensity, _one_minus_ncc),
        "lncc": Similarity(intensity, _one_minus_lncc, patch=True),
    }[settings.name]


# ---- regularity: a stencil around each point and a penalty on the maps' values there ------------------


def stencil(name: str, dimension: int, step: float, exact: bool) -> Tensor:
    """Offsets (k, d) in cube units at which a regulariser needs the maps; the first is zero."""
    eye = torch.eye(dimension) * step
    offsets = [torch.zeros(1, dimension)]
    if not exact and name != "none":
        offsets.append(eye)
    if name == "bending":
        offsets.append(-eye)
        offsets += [eye[i : i + 1] + eye[j : j + 1] for i in range(dimension) for j in range(i)]
    return torch.cat(offsets)


def finite_jacobian(values: Tensor, step: float) -> Tensor:
    """Forward differences: values (..., k, d) on a stencil -> Jacobian (..., d, d), row = output."""
    d = values.shape[-1]
    return ((values[..., 1 : d + 1, :] - values[..., :1, :]) / step).transpose(-1, -2)


def exact_jacobian(outputs: Tensor, points: Tensor, create_graph: bool = True) -> Tensor:
    """Jacobian (..., d, d) of outputs (..., d) at the points they were computed from, row = output."""
    rows = [
        torch.autograd.grad(outputs[..., i].sum(), points, create_graph=create_graph, retain_graph=True)[0]
        for i in range(outputs.shape[-1])
    ]
    return torch.stack(rows, -2)


def gradicon(composed_jacobian: Tensor) -> Tensor:
    """Mean squared Frobenius norm of J[phi o psi] - Id over points and both orders (paper, Eq. 3)."""
    d = composed_jacobian.shape[-1]
    identity = torch.eye(d, dtype=composed_jacobian.dtype, device=composed_jacobian.device)
    return (composed_jacobian - identity).square().sum((-1, -2)).mean()


def regularity(fields, settings: RegularitySettings, points: Tensor, values: Tensor, step: float) -> Tensor:
    """The regulariser's value. ``fields`` maps (2, n, d) -> (2, n, d); ``points`` (2, n, k, d) are the
    stencils and ``values`` the fields there; ``exact`` needs k = 1 and points that carry gradients."""
    d = points.shape[-1]
    identity = torch.eye(d, dtype=points.dtype, device=points.device)
    if settings.name == "none":
        return values.new_zeros(())
    if settings.name == "gradicon":
        composed = fields(values.flip(0).reshape(2, -1, d)).reshape(values.shape)
        # points are the same for both entries, so entry 0 is phi(psi(x)) and entry 1 is psi(phi(x))
        if settings.exact:
            return gradicon(exact_jacobian(composed[..., 0, :], points)[..., 0, :, :])
        return gradicon(finite_jacobian(composed, step))
    if settings.name == "diffusion":
        jacobian = (
            exact_jacobian(values[..., 0, :], points)[..., 0, :, :] if settings.exact else finite_jacobian(values, step)
        )
        return (jacobian - identity).square().sum((-1, -2)).mean()
    # bending energy: second differences of the map, mixed ones twice (Rueckert et al. 1999)
    centre, ahead, behind = values[..., :1, :], values[..., 1 : d + 1, :], values[..., d + 1 : 2 * d + 1, :]
    total = ((ahead - 2 * centre + behind) / step**2).square().sum((-1, -2)).mean()
    k = 2 * d + 1
    for i in range(d):
        for j in range(i):
            mixed = values[..., k, :] - values[..., 1 + i, :] - values[..., 1 + j, :] + values[..., 0, :]
            total = total + 2 * (mixed / step**2).square().sum(-1).mean()
            k += 1
    return total


# ---- pairs ---------------------------------------------------------------------------------------------


class Objective:
    """Draws points of one or several pairs; returns the weighted sum and the named terms (paper, Eq. 6 and 7)."""

    def __init__(
        self,
        similarity_settings: SimilaritySettings,
        regularity_settings: RegularitySettings,
        unit_mm: float,
        generator: torch.Generator,
    ):
        self.generator = generator
        self.similarity_settings, self.regularity_settings = similarity_settings, regularity_settings
        self.similarity = similarity(similarity_settings)
        self.step, self.unit_mm = regularity_settings.step_mm / unit_mm, unit_mm
        self.weights = {
            "similarity": 1.0,
            "boundary": similarity_settings.boundary_weight,
            "regularity": regularity_settings.weight,
            "code_prior": regularity_settings.code_prior,
            "known": 0.0,
        }

    def points_of(self, volumes: tuple[Volume, Volume]) -> int:
        """How many points are compared a step, in each direction."""
        return self.similarity_settings.points.count(volumes[FORWARD].voxels)

    def __call__(
        self,
        maps: Maps,
        pairs: list[tuple[Volume, Volume]],
        known: list[tuple[Tensor, Tensor] | None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``pairs``: the fixed and moving features of each pair of the maps' batch, all of about one size.

        ``known``: fixed and moving points_cube (n, d) of each pair that correspond, where they are known.
        """
        r, upper, batch = self.regularity_settings, maps.code.upper_cube, len(pairs)
        d, n = len(upper), self.points_of(pairs[0])
        drawn = [[v.draw(n, self.generator) for v in volumes] for volumes in pairs]
        x = torch.stack([torch.stack([points for points, _ in one]) for one in drawn], 1)  # (2, b, n, d)
        sparse = torch.cat([self._regularity_points(volumes, upper) for volumes in pairs])
        sparse = torch.stack([sparse, sparse])  # (2, b * m, k, d)
        if r.exact:
            sparse.requires_grad_()
        together = torch.cat([x, sparse.reshape(2, batch, -1, d)], 2)
        truth = self._known(known)
        if truth is not None:
            together = torch.cat([together, truth], 2)
        y = maps(together.reshape(2, -1, d)).reshape(together.shape)
        terms = {"similarity": self._mean(self._similarity, pairs, drawn, y[:, :, :n].unbind(1))}
        if self.weights["boundary"] and all(volume.distance is not None for volumes in pairs for volume in volumes):
            terms["boundary"] = self._mean(self._boundary, pairs, x.unbind(1), y[:, :, :n].unbind(1))
        m = sparse.shape[1] // batch * sparse.shape[2]
        values = y[:, :, n : n + m].reshape(sparse.shape)
        if truth is not None:
            terms["known"] = self._distance_mm(y[:, :, n + m :] - truth.flip(0))
        terms["regularity"] = regularity(maps, r, sparse, values, self.step)
        if r.code_prior:
            terms["code_prior"] = maps.code.prior()
        return sum(self.weights[name] * term for name, term in terms.items()), terms

    def misfits(self, candidates: list[Maps | None], volumes: tuple[Volume, Volume], points: int) -> list[float]:
        """The similarity term of one pair through each of some maps; None: through maps that move nothing.

        All at the same points: those, of this many, that are in view through all of them.
        """
        drawn = [v.draw(points, self.generator) for v in volumes]
        x = torch.stack([at for at, _ in drawn])
        mapped = [x if maps is None else maps(x) for maps in candidates]
        seen = [torch.stack([volumes[1 - way].inside(y[way]) for y in mapped]).amin(0) for way in (FORWARD, INVERSE)]
        return [
            float(self._similarity(volumes, drawn, y, seen)) if torch.isfinite(y).all() else math.nan for y in mapped
        ]

    def _known(self, pairs: list[tuple[Tensor, Tensor] | None] | None) -> Tensor | None:
        """(2, b, k, d): as many of the known points of each pair, fixed and moving; None where some have none."""
        if not self.weights["known"] or pairs is None or any(p is None for p in pairs):
            return None
        chosen = []
        for fixed, moving in pairs:
            which = torch.randint(len(fixed), (_KNOWN,), generator=self.generator, device=fixed.device)
            chosen.append(torch.stack([fixed[which], moving[which]]))
        return torch.stack(chosen, 1)

    def _distance_mm(self, difference_cube: Tensor) -> Tensor:
        """Mean distance, rounded off below half a millimetre; a cube counts as large as the unit says."""
        squares = (difference_cube * self.unit_mm).square().sum(-1)
        return ((squares + _BLUNT_MM**2).sqrt() - _BLUNT_MM).mean()

    @staticmethod
    def _mean(term: Callable[..., Tensor], *by_pair) -> Tensor:
        return sum(map(term, *by_pair)) / len(by_pair[0])

    def _regularity_points(self, volumes: tuple[Volume, Volume], upper_cube: Tensor) -> Tensor:
        """(m, k, d): half over the whole cube, half where the similarity looks, each with its stencil."""
        r, d = self.regularity_settings, len(upper_cube)
        n = r.points.count(volumes[FORWARD].voxels)
        anywhere = torch.rand((n - n // 2, d), generator=self.generator, device=upper_cube.device) * 2 - 1
        points = torch.cat([anywhere * upper_cube, volumes[FORWARD].draw(n // 2, self.generator)[0]])
        exact = r.exact and r.name != "bending"
        return points[:, None] + stencil(r.name, d, self.step, exact).to(upper_cube)

    def _similarity(self, volumes, drawn, mapped: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Both directions averaged; points that leave the other image's field of view do not count.

        ``seen`` (n, 1) for each direction: how much each point counts, where that is known already.
        """
        fixed, moving = volumes
        total = mapped.new_zeros(())
        for way, here, there in ((FORWARD, fixed, moving), (INVERSE, moving, fixed)):
            index = drawn[way][1]
            offsets = self.similarity.offsets(mapped.shape[-1])
            weight = there.inside(mapped[way].detach()) if seen is None else seen[way]
            reference = here.at_voxels(index, offsets)
            total = total + self.similarity.compare(there.at(mapped[way], offsets), reference, weight) / 2
        return total

    def _boundary(self, volumes, x: Tensor, mapped: Tensor) -> Tensor:
        fixed, moving = (v.distance for v in volumes)
        forward = (moving.at(mapped[FORWARD]) - fixed.at(x[FORWARD])).square().mean()
        return (forward + (fixed.at(mapped[INVERSE]) - moving.at(x[INVERSE])).square().mean()) / 2
