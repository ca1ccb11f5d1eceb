"""What is minimised for one pair: similarity at sparse points, regularity at its own, code prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..images.volume import VolumePair, local_offsets, mind_ssc, smoothed
from ..maps.fields import FORWARD, INVERSE, Maps
from ..settings import RegularitySettings, SimilaritySettings
from ..space.interpolate import constant

_KNOWN = 1500  # points of a pair whose partners are known, looked at a step
_BLUNT_MM = 0.5

# ---- similarity: prepare an image, then compare values (..., n, c) at n points with weights (..., n, 1);
# of several directions (...) the mean ----


def _shares(weight: Tensor) -> Tensor:
    """Weights (..., n, 1) of the points, their sum 1, or 0 where none counts."""
    return weight / weight.sum(-2, keepdim=True).clamp(min=1e-6)


def _squared(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Mean squared difference over points and channels."""
    squares = nn.functional.mse_loss(a, b, reduction="none")
    return (squares * _shares(weight)).sum() * (a.shape[-2] / a.numel())


def _one_minus_ncc(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """1 - NCC over all points (paper, section 4.3), averaged over the channels."""
    weight = _shares(weight)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(-2, keepdim=True)

    a, b = a - mean(a), b - mean(b)
    return (1 - mean(a * b) / (mean(a.square()) * mean(b.square()) + 1e-12).sqrt()).mean()


def _one_minus_lncc(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """1 - squared-free local NCC: each row is the patch around one point."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norm = (a.square().mean(-1, keepdim=True) * b.square().mean(-1, keepdim=True) + 1e-8).sqrt()
    agreement = (a * b).mean(-1, keepdim=True) / norm * _shares(weight)
    return 1 - agreement.sum(-2).mean()


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
    k, d = values.shape[-2:]
    rows = [[-1 / step, *(float(i == j) / step for j in range(k - 1))] for i in range(d)]
    differences = constant(rows, values.device, values.dtype)  # (d, k): row i is the difference along axis i
    flat = values.reshape(-1, k, d)
    return torch.bmm(differences.expand(len(flat), d, k), flat).reshape(*values.shape[:-2], d, d).transpose(-1, -2)


def exact_jacobian(outputs: Tensor, points: Tensor, create_graph: bool = True) -> Tensor:
    """Jacobian (..., d, d) of outputs (..., d) at the points they were computed from, row = output."""
    rows = [
        torch.autograd.grad(outputs[..., i].sum(), points, create_graph=create_graph, retain_graph=True)[0]
        for i in range(outputs.shape[-1])
    ]
    return torch.stack(rows, -2)


def gradicon(composed_jacobian: Tensor) -> Tensor:
    """Mean squared Frobenius norm of J[phi o psi] - Id over points and both orders (paper, Eq. 3)."""
    return _from_identity(composed_jacobian)


def _from_identity(jacobian: Tensor) -> Tensor:
    """Mean squared Frobenius norm of J - Id of Jacobians (..., d, d)."""
    d = jacobian.shape[-1]
    identity = constant([[float(i == j) for j in range(d)] for i in range(d)], jacobian.device, jacobian.dtype)
    return nn.functional.mse_loss(jacobian, identity.expand_as(jacobian)) * d**2


def regularity(fields, settings: RegularitySettings, points: Tensor, values: Tensor, step: float) -> Tensor:
    """The regulariser's value. ``fields`` maps (2, n, d) -> (2, n, d); ``points`` (2, n, k, d) are the
    stencils and ``values`` the fields there; ``exact`` needs k = 1 and points that carry gradients."""
    d = points.shape[-1]
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
        return _from_identity(jacobian)
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


@dataclass(frozen=True)
class Drawn:
    """Points in the cube of one step, or of several, counted along a leading axis of each tensor.

    ``points`` (2, b, n + m * k, d): the n compared, the images' own, then m of the regulariser with their stencils of
    k; ``reference`` (2, b, n, c): what is seen at the former; ``known`` (2, b, l, d), or None: points that correspond.
    """

    points: Tensor
    reference: Tensor
    stencil: int
    known: Tensor | None = None

    def step(self, number: int) -> Drawn:
        """One step's of several."""
        return self._map(lambda tensor: tensor[number])

    def clone(self) -> Drawn:
        return self._map(Tensor.clone)

    def copy_(self, other: Drawn) -> None:
        """Take the points of another step, in place."""
        for name in ("points", "reference", "known"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine is not None:
                mine.copy_(others)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        known = None if self.known is None else change(self.known)
        return replace(self, points=change(self.points), reference=change(self.reference), known=known)


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

    def points_of(self, volumes: VolumePair) -> int:
        """How many points are compared a step, in each direction."""
        return self.similarity_settings.points.count(volumes[FORWARD].voxels)

    def draw(
        self,
        pairs: Sequence[VolumePair],
        upper_cube: Tensor,
        known: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        steps: int = 1,
    ) -> Drawn:
        """The points of some steps at once: what is random of them, so that a step itself is the same every time.

        ``known``: fixed and moving points_cube (n, d) of each pair that correspond, where they are known.
        """
        n, offsets = self.points_of(pairs[0]), self.similarity.offsets(len(upper_cube))
        drawn = [pair.draw(steps, n, self.generator, offsets) for pair in pairs]
        compared, reference = (torch.stack(parts, 2) for parts in zip(*drawn, strict=True))
        stencils = torch.stack([self._regularity_points(pair, upper_cube, steps) for pair in pairs], 1)
        both = stencils.flatten(2, 3)[:, None].expand(-1, 2, -1, -1, -1)
        return Drawn(torch.cat([compared, both], 3), reference, stencils.shape[3], self._known(known, steps))

    def __call__(
        self,
        maps: Maps,
        pairs: Sequence[VolumePair],
        known: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        drawn: Drawn | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``pairs``: the features of each pair of the maps' batch, all of about one size.

        ``drawn``: one step's points; None: they are drawn, ``known`` as in ``draw``.
        """
        upper = maps.code.upper_cube
        drawn = self.draw(pairs, upper, known).step(0) if drawn is None else drawn
        r, batch, d, n = self.regularity_settings, len(pairs), len(upper), drawn.reference.shape[2]
        x, sparse = drawn.points.split([n, drawn.points.shape[2] - n], 2)  # (2, b, n, d)
        stencils = sparse.reshape(2, -1, drawn.stencil, d)  # (2, b * m, k, d)
        together = drawn.points
        if r.exact:
            stencils = stencils.detach().requires_grad_()
            together = torch.cat([x, stencils.reshape(sparse.shape)], 2)
        parts = [n, sparse.shape[2]]
        if drawn.known is not None:
            together, parts = torch.cat([together, drawn.known], 2), [*parts, drawn.known.shape[2]]
        evaluate = maps.bound()
        mapped, values, *others = evaluate(together.reshape(2, -1, d)).reshape(together.shape).split(parts, 2)
        terms = {"similarity": self._similarity(pairs, drawn.reference, mapped)}
        if self.weights["boundary"] and all(volume.distance is not None for pair in pairs for volume in pair):
            terms["boundary"] = sum(map(self._boundary, pairs, x.unbind(1), mapped.unbind(1))) / batch
        if drawn.known is not None:
            terms["known"] = self._distance_mm(others[0] - drawn.known.flip(0))
        terms["regularity"] = regularity(evaluate, r, stencils, values.reshape(stencils.shape), self.step)
        if r.code_prior:
            terms["code_prior"] = maps.code.prior()
        weighted = [term if self.weights[name] == 1 else self.weights[name] * term for name, term in terms.items()]
        return sum(weighted[1:], weighted[0]), terms

    def misfits(self, candidates: list[Maps | None], volumes: VolumePair, points: int) -> list[float]:
        """The similarity term of one pair through each of some maps; None: through maps that move nothing.

        All at the same points: those, of this many, that are in view through all of them.
        """
        offsets = self.similarity.offsets(len(volumes[FORWARD].lower))
        (x,), (reference,) = volumes.draw(1, points, self.generator, offsets)
        mapped = [x if maps is None else maps(x) for maps in candidates]
        seen = torch.stack([volumes.inside(y) for y in mapped]).amin(0)
        return [
            float(self._compare(volumes, reference, y, seen)) if torch.isfinite(y).all() else math.nan for y in mapped
        ]

    def _known(self, pairs: Sequence[tuple[Tensor, Tensor] | None] | None, steps: int) -> Tensor | None:
        """(steps, 2, b, k, d): as many of each pair's known points, fixed and moving; None where a pair has none."""
        if not self.weights["known"] or pairs is None or any(p is None for p in pairs):
            return None
        chosen = []
        for fixed, moving in pairs:
            which = torch.randint(len(fixed), (steps, _KNOWN), generator=self.generator, device=fixed.device)
            chosen.append(torch.stack([fixed[which], moving[which]], 1))
        return torch.stack(chosen, 2)

    def _distance_mm(self, difference_cube: Tensor) -> Tensor:
        """Mean distance, rounded off below half a millimetre; a cube counts as large as the unit says."""
        squares = (difference_cube * self.unit_mm).square().sum(-1)
        return ((squares + _BLUNT_MM**2).sqrt() - _BLUNT_MM).mean()

    def _regularity_points(self, volumes: VolumePair, upper_cube: Tensor, steps: int) -> Tensor:
        """(steps, m, k, d): half over the whole cube, half where the similarity looks, each with its stencil."""
        r, d = self.regularity_settings, len(upper_cube)
        n = r.points.count(volumes[FORWARD].voxels)
        anywhere = torch.rand((steps, n - n // 2, d), generator=self.generator, device=upper_cube.device) * 2 - 1
        compared = volumes[FORWARD].draw(steps * (n // 2), self.generator)[0].unflatten(0, (steps, n // 2))
        exact = r.exact and r.name != "bending"
        points = torch.cat([anywhere * upper_cube, compared], 1)
        offsets = constant(stencil(r.name, d, self.step, exact).tolist(), upper_cube.device, upper_cube.dtype)
        return points[:, :, None] + offsets

    def _similarity(self, pairs: Sequence[VolumePair], reference: Tensor, mapped: Tensor) -> Tensor:
        """Mean over both directions and all pairs, of reference values (2, b, n, c) and mapped points (2, b, n, d).

        Points that leave the other image's field of view do not count.
        """
        if len(pairs) == 1:
            seen, at = reference.squeeze(1), mapped.squeeze(1)
            return self._compare(pairs[0], seen, at, pairs[0].inside(at.detach()))
        each = zip(pairs, reference.unbind(1), mapped.unbind(1), strict=True)
        return sum(self._compare(pair, seen, at, pair.inside(at.detach())) for pair, seen, at in each) / len(pairs)

    def _compare(self, pair: VolumePair, reference: Tensor, mapped: Tensor, weight: Tensor) -> Tensor:
        offsets = self.similarity.offsets(mapped.shape[-1])
        return self.similarity.compare(pair.at(mapped, offsets), reference, weight)

    def _boundary(self, volumes, x: Tensor, mapped: Tensor) -> Tensor:
        fixed, moving = (v.distance for v in volumes)
        forward = (moving.at(mapped[FORWARD]) - fixed.at(x[FORWARD])).square().mean()
        return (forward + (fixed.at(mapped[INVERSE]) - moving.at(x[INVERSE])).square().mean()) / 2
