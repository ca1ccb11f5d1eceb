"""What is minimised for one pair: similarity at sparse points, regularity at its own, code prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..images.volume import VolumePair
from ..maps.code import FORWARD, INVERSE
from ..maps.maps import Composed, FieldMap, Map
from ..settings import RegularitySettings, SimilaritySettings
from .guides import Guide
from .regularity import Regulariser, make_regulariser
from .similarity import Similarity, make_similarity

_KNOWN = 1500  # known corresponding points of a pair, used per step
_BLUNT_MM = 0.5


@dataclass(frozen=True)
class Drawn:
    """Points in the cube of one step, or of several, counted along a leading axis of each tensor.

    ``points`` (2, b, n + m * k, d): the n compared, the images' own, then m of the regulariser with their stencils of
    k; ``reference`` (2, b, n, c): what is seen at the former; ``known`` (2, b, l, d), or None: points that correspond;
    ``guided``: for each guide what it draws, its points (2, 1, g, d) first.
    """

    points: Tensor
    reference: Tensor
    stencil: int
    known: Tensor | None = None
    guided: tuple[tuple[Tensor, ...], ...] = ()

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
        for mine, others in zip(self.guided, other.guided, strict=True):
            for tensor, new in zip(mine, others, strict=True):
                tensor.copy_(new)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        known = None if self.known is None else change(self.known)
        guided = tuple(tuple(map(change, tensors)) for tensors in self.guided)
        return replace(self, points=change(self.points), reference=change(self.reference), known=known, guided=guided)


class Objective:
    """Draws points of one or several pairs; returns the weighted sum and the named terms (paper, Eq. 6 and 7)."""

    def __init__(
        self,
        similarity_settings: SimilaritySettings,
        regularity_settings: RegularitySettings,
        unit_mm: float,
        generator: torch.Generator,
        similarity: Similarity | None = None,
        regulariser: Regulariser | None = None,
        guides: Sequence[Guide] = (),
        guidance_weight: float = 1.0,
    ):
        """``similarity``, ``regulariser``: in the place of those that the settings name. ``guides``: of one pair."""
        self.generator = generator
        self.similarity_settings, self.regularity_settings = similarity_settings, regularity_settings
        self.similarity = similarity or make_similarity(similarity_settings)
        self.regulariser = regulariser or make_regulariser(regularity_settings)
        self.step, self.unit_mm = regularity_settings.step_mm / unit_mm, unit_mm
        self.weights = {
            "similarity": 1.0,
            "boundary": similarity_settings.boundary_weight,
            "regularity": regularity_settings.weight,
            "code_prior": regularity_settings.code_prior,
            "known": 0.0,
            **{guide.name: guidance_weight for guide in guides},
        }
        self.guides = tuple(guides)

    def points_of(self, volumes: VolumePair) -> int:
        """How many points are compared per step, in each direction."""
        return self.similarity_settings.points.count(volumes[FORWARD].voxels)

    def draw(
        self,
        pairs: Sequence[VolumePair],
        half_extents_cube: Tensor,
        known: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        steps: int = 1,
    ) -> Drawn:
        """The points of some steps at once: everything random, so that a step itself is deterministic.

        ``known``: corresponding fixed and moving points_cube (n, d) of each pair, if known.
        """
        n, offsets = self.points_of(pairs[0]), self.similarity.offsets(len(half_extents_cube))
        drawn = [pair.draw(steps, n, self.generator, offsets) for pair in pairs]
        compared, reference = (torch.stack(parts, 2) for parts in zip(*drawn, strict=True))
        stencils = torch.stack([self._regularity_points(pair, half_extents_cube, steps) for pair in pairs], 1)
        both = stencils.flatten(2, 3)[:, None].expand(-1, 2, -1, -1, -1)
        partners, guided = self._known(known, steps), []
        for guide in self.guides:
            places, *further = guide.draw(steps, self.generator)
            guided.append((places[:, :, None].expand(-1, -1, len(pairs), -1, -1), *further))
        return Drawn(torch.cat([compared, both], 3), reference, stencils.shape[3], partners, tuple(guided))

    def __call__(
        self,
        maps: Map,
        pairs: Sequence[VolumePair],
        known: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        drawn: Drawn | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``pairs``: the features of each pair of the maps' batch, all of about one size.

        ``drawn``: one step's points; None: they are drawn, ``known`` as in ``draw``.
        """
        upper = maps.half_extents_cube
        drawn = self.draw(pairs, upper, known).step(0) if drawn is None else drawn
        r, d, n = self.regularity_settings, len(upper), drawn.reference.shape[2]
        x, sparse = drawn.points.split([n, drawn.points.shape[2] - n], 2)  # (2, b, n, d)
        stencils = sparse.reshape(2, -1, drawn.stencil, d)  # (2, b * m, k, d)
        together = drawn.points
        if self.regulariser.exact:
            stencils = stencils.detach().requires_grad_()
            together = torch.cat([x, stencils.reshape(sparse.shape)], 2)
        parts = [n, sparse.shape[2]]
        if drawn.known is not None:
            together, parts = torch.cat([together, drawn.known], 2), [*parts, drawn.known.shape[2]]
        if drawn.guided:
            places = [tensors[0] for tensors in drawn.guided]
            together, parts = torch.cat([together, *places], 2), [*parts, *(part.shape[2] for part in places)]
        evaluate = maps.bound()
        mapped, values, *others = evaluate(together.reshape(2, -1, d)).reshape(together.shape).split(parts, 2)
        terms = {"similarity": self._similarity(pairs, drawn.reference, mapped)}
        if self.weights["boundary"] and all(volume.distance is not None for pair in pairs for volume in pair):
            each = map(self._boundary, pairs, x.unbind(1), mapped.unbind(1))
            terms["boundary"] = torch.stack(list(each)).mean()
        if drawn.known is not None:
            terms["known"] = self._distance_mm(others.pop(0) - drawn.known.flip(0))
        terms["regularity"] = self.regulariser.penalty(evaluate, stencils, values.reshape(stencils.shape), self.step)
        if r.code_prior:
            terms["code_prior"] = _code_prior(maps)
        for guide, (at, *further), there in zip(self.guides, drawn.guided, others, strict=True):
            terms[guide.name] = guide.penalty(evaluate, there.squeeze(1), at.squeeze(1), *further)
        first, *rest = terms
        total = terms[first] if self.weights[first] == 1 else self.weights[first] * terms[first]
        for name in rest:
            total = torch.add(total, terms[name], alpha=self.weights[name])
        return total, terms

    def misfits(self, candidates: list[Map | None], volumes: VolumePair, points: int) -> list[float]:
        """The similarity term of one pair through each of some maps; None: the identity.

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
        """(steps, 2, b, k, d): equally many known points of each pair, fixed and moving; None if a pair has none."""
        if not self.weights["known"] or pairs is None:
            return None
        chosen = []
        for pair in pairs:
            if pair is None:
                return None
            fixed, moving = pair
            which = torch.randint(len(fixed), (steps, _KNOWN), generator=self.generator, device=fixed.device)
            chosen.append(torch.stack([fixed[which], moving[which]], 1))
        return torch.stack(chosen, 2)

    def _distance_mm(self, difference_cube: Tensor) -> Tensor:
        """Mean distance, smoothed below half a millimetre; a cube has the size of ``unit``."""
        squares = (difference_cube * self.unit_mm).square().sum(-1)
        return ((squares + _BLUNT_MM**2).sqrt() - _BLUNT_MM).mean()

    def _regularity_points(self, volumes: VolumePair, half_extents_cube: Tensor, steps: int) -> Tensor:
        """(steps, m, k, d): half over the whole cube, half where the similarity is evaluated; each with its stencil."""
        r, d = self.regularity_settings, len(half_extents_cube)
        n = r.points.count(volumes[FORWARD].voxels)
        anywhere = torch.rand((steps, n - n // 2, d), generator=self.generator, device=half_extents_cube.device) * 2 - 1
        compared = volumes[FORWARD].draw(steps * (n // 2), self.generator)[0].unflatten(0, (steps, n // 2))
        points = torch.cat([anywhere * half_extents_cube, compared], 1)
        return self.regulariser.around(points, self.step)

    def _similarity(self, pairs: Sequence[VolumePair], reference: Tensor, mapped: Tensor) -> Tensor:
        """Mean over both directions and all pairs, of reference values (2, b, n, c) and mapped points (2, b, n, d).

        Points that leave the other image's field of view do not count.
        """
        if len(pairs) == 1:
            seen, at = reference.squeeze(1), mapped.squeeze(1)
            return self._compare(pairs[0], seen, at, pairs[0].inside(at.detach()))
        each = zip(pairs, reference.unbind(1), mapped.unbind(1), strict=True)
        return torch.stack([self._compare(pair, seen, at, pair.inside(at.detach())) for pair, seen, at in each]).mean()

    def _compare(self, pair: VolumePair, reference: Tensor, mapped: Tensor, weight: Tensor) -> Tensor:
        offsets = self.similarity.offsets(mapped.shape[-1])
        return self.similarity.compare(pair.at(mapped, offsets), reference, weight)

    def _boundary(self, volumes, x: Tensor, mapped: Tensor) -> Tensor:
        fixed, moving = (v.distance for v in volumes)
        forward = (moving.at(mapped[FORWARD]) - fixed.at(x[FORWARD])).square().mean()
        return (forward + (fixed.at(mapped[INVERSE]) - moving.at(x[INVERSE])).square().mean()) / 2


def _code_prior(maps: Map) -> Tensor:
    """Paper, Eq. 5, for the code of the maps; 0 for maps without one."""
    own = maps.inner if isinstance(maps, Composed) else maps
    return own.code.prior() if isinstance(own, FieldMap) else maps.half_extents_cube.new_zeros(())
