"""What is minimised for one pair: similarity at sparse points, regularity at its own, code prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import Volume, local_offsets, mind_ssc
from .field import FORWARD, INVERSE, HybridCode, NeuralFields
from .settings import RegularitySettings, SimilaritySettings

# ---- similarity: prepare an image, then compare values (n, c) at n points with weights (n, 1) ----------


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / (weight.sum() * values.shape[-1]).clamp(min=1e-6)


def _squared(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return _mean((a - b).square(), weight)


def _one_minus_ncc(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """1 - NCC over all points (paper, section 4.3)."""
    a, b = a - _mean(a, weight), b - _mean(b, weight)
    norm = (_mean(a.square(), weight) * _mean(b.square(), weight) + 1e-12).sqrt()
    return 1 - _mean(a * b, weight) / norm


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
        return torch.as_tensor(image[:]).to(device)[..., None]

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


# ---- one pair ------------------------------------------------------------------------------------------


class PairObjective:
    """Draws points and returns the named terms and their weighted sum (paper, Eq. 7)."""

    def __init__(
        self,
        fields: NeuralFields,
        code: HybridCode,
        similarity_settings: SimilaritySettings,
        regularity_settings: RegularitySettings,
        unit_mm: float,
        generator: torch.Generator,
    ):
        self.fields, self.code, self.generator = fields, code, generator
        self.similarity_settings, self.regularity_settings = similarity_settings, regularity_settings
        self.similarity = similarity(similarity_settings)
        self.upper = code.upper_cube
        self.step = regularity_settings.step_mm / unit_mm
        exact = regularity_settings.exact and regularity_settings.name != "bending"
        self.stencil = stencil(regularity_settings.name, len(self.upper), self.step, exact).to(self.upper)

    def set_volumes(self, fixed: Volume, moving: Volume) -> None:
        """The features from now on; called again where a stage changes them."""
        self.volumes = (fixed, moving)
        self.similarity_points = self.similarity_settings.points.count(fixed.voxels)
        self.regularity_points = self.regularity_settings.points.count(fixed.voxels)

    def _regularity_points(self) -> Tensor:
        """(n, d): half over the whole cube, half where the similarity looks."""
        n = self.regularity_points
        shape = (n - n // 2, len(self.upper))
        anywhere = torch.rand(shape, generator=self.generator, device=self.upper.device) * 2 - 1
        return torch.cat([anywhere * self.upper, self.volumes[FORWARD].draw(n // 2, self.generator)[0]])

    def __call__(self) -> tuple[Tensor, dict[str, Tensor]]:
        r, d = self.regularity_settings, len(self.upper)
        drawn = [v.draw(self.similarity_points, self.generator) for v in self.volumes]
        x = torch.stack([points for points, _ in drawn])
        sparse = self._regularity_points()[:, None] + self.stencil
        sparse = torch.stack([sparse, sparse])
        if r.exact:
            sparse.requires_grad_()
        n = x.shape[1]
        y = self.fields(torch.cat([x, sparse.reshape(2, -1, d)], 1), self.code)
        terms = {"similarity": self._similarity(drawn, y[:, :n])}
        if self.similarity_settings.boundary_weight and self.volumes[FORWARD].distance is not None:
            terms["boundary"] = self._boundary(x, y[:, :n])
        values = y[:, n:].reshape(sparse.shape)
        terms["regularity"] = regularity(lambda p: self.fields(p, self.code), r, sparse, values, self.step)
        if r.code_prior:
            terms["code_prior"] = self.code.prior()
        weights = {
            "similarity": 1.0,
            "boundary": self.similarity_settings.boundary_weight,
            "regularity": r.weight,
            "code_prior": r.code_prior,
        }
        total = sum(weights[name] * term for name, term in terms.items())
        return total, terms

    def _similarity(self, drawn, mapped: Tensor) -> Tensor:
        """Both directions averaged; points that leave the other image's field of view do not count."""
        fixed, moving = self.volumes
        total = mapped.new_zeros(())
        for way, here, there in ((FORWARD, fixed, moving), (INVERSE, moving, fixed)):
            index = drawn[way][1]
            offsets = self.similarity.offsets(mapped.shape[-1])
            weight = there.inside(mapped[way].detach())
            reference = here.at_voxels(index, offsets)
            total = total + self.similarity.compare(there.at(mapped[way], offsets), reference, weight) / 2
        return total

    def _boundary(self, x: Tensor, mapped: Tensor) -> Tensor:
        fixed, moving = (v.distance for v in self.volumes)
        forward = (moving.at(mapped[FORWARD]) - fixed.at(x[FORWARD])).square().mean()
        return (forward + (fixed.at(mapped[INVERSE]) - moving.at(x[INVERSE])).square().mean()) / 2
