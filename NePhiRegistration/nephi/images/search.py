"""A search for the start: every turn on a grid with every translation at once, the best refined.

For a turn, the normalised cross-correlation over what both images see (Padfield, IEEE TIP 2012) comes by fast Fourier
transforms for all translations, partial overlaps included. Images are compared by their intensities, by the length of
their gradients and by masks, each by the correlation's absolute value, so that the contrast may be inverted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..both import Both, complete
from ..device import in_threads
from ..settings import BODY_MM
from ..space.affine import Affine
from ..space.grid import Grid
from .affine_fit import LEAST_OVERLAP, OVERLAP_POWER, AffineFit
from .coarse import Coarse, Prepared

_COARSE_MM, _FINE_MM = 14.0, 6.0  # of a large body
_AROUND_MM = 40.0  # of the body that the turns are compared on: what lies on air tells, too
_REFINED = 4  # turns that are refined, the best ones
_SHIFT = "a shift"  # the turn by nothing, which is refined in any case
_TURNS_DEG = (-45, -30, -15, 15, 30, 45)
_RIGID_STEPS, _AFFINE_STEPS = 8, 24
_CHECK_STEPS = 8
_LEAST_FIT = 0.35  # score of moments of masks that fit: 0.72 and more where they were right
_SAME = 1e-3  # of scores: images that show nothing do not tell starts apart
_CLEAR_LEAD = 0.1  # of scores, below which what is close is refined further
_ELSEWHERE_MM = 20.0  # mean distance of two starts that are not the same


@dataclass(frozen=True)
class Found:
    """The best start, where it came from, its score (0..1) and how far the best start elsewhere stays behind."""

    affine: Affine
    start: str
    score: float
    lead: float


def _rotation(axis: int, degrees: float, d: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix, (i, j) = np.eye(d), [a for a in range(3) if a != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def _turns(d: int) -> Iterator[tuple[str, np.ndarray]]:
    yield _SHIFT, np.eye(d)
    for axis in range(3) if d == 3 else (2,):
        for degrees in (*_TURNS_DEG, 90, -90, 180):
            if abs(degrees) != 90 or axis == 2:
                yield f"a turn of {degrees} degrees about {'xyz'[axis]}", _rotation(axis, degrees, d)


def _fast(n: int) -> int:
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


class Correlation:
    """Scores of a fixed image against turned moving ones, at every translation in voxels."""

    def __init__(self, features: Tensor, seen: Tensor, largest: np.ndarray):
        self.size, self.seen = np.array(seen.shape), float(seen.sum())
        self.shape = tuple(_fast(int(n)) for n in (self.size + largest[::-1] - 1))
        self.axes = tuple(range(-seen.ndim, 0))
        features = features * seen
        self.mask, self.values, self.squares = (self._transformed(v) for v in (seen[None], features, features**2))

    def _transformed(self, values: Tensor) -> Tensor:
        return torch.fft.rfftn(values, s=self.shape, dim=self.axes)

    def best(self, moving: Tensor, seen: Tensor) -> tuple[float, np.ndarray]:
        """The highest score and its translation, x first: fixed voxel i is on moving voxel i + translation."""
        moving = moving * seen
        mask, values, squares = (self._transformed(v).conj() for v in (seen[None], moving, moving**2))

        def correlated(a: Tensor, b: Tensor) -> Tensor:
            return torch.fft.irfftn(a * b, s=self.shape, dim=self.axes)

        count = correlated(self.mask, mask).clamp(min=1e-3)
        fixed, moving_sum = correlated(self.values, mask), correlated(self.mask, values)
        spread = correlated(self.squares, mask) - fixed**2 / count
        moving_spread = correlated(self.mask, squares) - moving_sum**2 / count
        shared = correlated(self.values, values) - fixed * moving_sum / count
        floor = 1e-4 * count
        ncc = shared / (spread.clamp(min=0) + floor).sqrt() / (moving_spread.clamp(min=0) + floor).sqrt()
        part = count[0] / min(self.seen, float(seen.sum()))
        score = torch.where(part > LEAST_OVERLAP, ncc.abs().mean(0) * part.clamp(max=1.0) ** OVERLAP_POWER, 0.0)
        index = np.array(np.unravel_index(int(score.argmax()), self.shape))
        index = np.where(index > self.size - 1, index - np.array(self.shape), index)
        return float(score.max()), -index[::-1]


def _candidates(fixed: Coarse, moving: Coarse) -> list[tuple[float, str, Affine]]:
    """The best translation of each turn, the best turn first."""
    d = len(moving.size_xyz)
    centre, spacing = moving.centre_lps_mm, moving.spacing_mm
    half = (moving.size_xyz - 1) / 2 * spacing
    boxes = [(name, turn, np.ceil(np.abs(turn.T) @ half / spacing).astype(int) * 2 + 1) for name, turn in _turns(d)]
    near = [image.near(image.body, _AROUND_MM).float() for image in (fixed, moving)]
    correlation = Correlation(fixed.features, near[0], np.max([size for *_, size in boxes], axis=0))
    moving = Coarse(moving.features, near[1], moving.body, moving.inner, spacing, moving.origin_lps_mm)

    def best(box: tuple[str, np.ndarray, np.ndarray]) -> tuple[float, str, Affine]:
        name, turn, size = box
        # a grid that turns with the patient: its point p is the moving image's turn @ (p - centre) + centre
        origin = centre - (size - 1) / 2 * spacing
        axes = [torch.arange(n, dtype=torch.float32) * spacing + o for n, o in zip(size, origin, strict=True)]
        points = torch.stack(torch.meshgrid(*reversed(axes), indexing="ij")[::-1], -1)
        around, matrix = torch.as_tensor(centre, dtype=torch.float32), torch.as_tensor(turn, dtype=torch.float32)
        read = moving.at((points - around) @ matrix.T + around)
        score, translation = correlation.best(read[:-1], (read[-1] > 0.5).float())
        offset = origin - fixed.origin_lps_mm + translation * spacing
        return score, name, Affine(turn, turn @ (offset - centre) + centre)

    return sorted(in_threads(best, boxes), key=lambda entry: -entry[0])


class Search:
    """A pair at the scales of the search. ``masks``: what is compared besides, and where the affine step looks."""

    def __init__(self, images: Both[sitk.Image], masks: Both[sitk.Image] | None = None):
        self.scale = min(1.0, max(Grid.of(image).longest_side_mm for image in images) / BODY_MM)
        given: Both[sitk.Image | None] = Both(*masks) if masks else Both(None, None)
        fine = _FINE_MM * self.scale
        self.prepared = images.map(lambda image, mask: Prepared.of(image, mask, fine), given)
        self.fine = self.prepared.map(lambda image: image.at_scale(fine))
        parts = complete(*self.fine.map(lambda image: image.inner)) or self.fine.map(lambda image: image.body)
        self.affine = AffineFit(
            self.fine, self.fine.map(lambda image, part: image.near(part, 2 * fine), parts), self.scale
        )

    @cached_property
    def rigid(self) -> AffineFit:
        """Where the body is; made when it is asked for, which no start that stays does."""
        return AffineFit(self.fine, self.fine.map(lambda image: image.near(image.body, _FINE_MM * self.scale)))

    def stays(self, start: Affine, mm: float) -> bool:
        """Whether a start fits and a few steps of refinement move it by less than a distance, of a large body."""
        if self.affine.score(start) < _LEAST_FIT:
            return False
        return self.distance_mm(start, self.affine.refined(start, rigid=False, steps=_CHECK_STEPS)) < mm * self.scale

    def distance_mm(self, first: Affine, second: Affine) -> float:
        """Mean over the fixed image's body."""
        some = self.affine.points[0].numpy()[::20]
        return float(np.linalg.norm(first(some) - second(some), axis=1).mean()) if len(some) else 0.0

    def best(self, starts: dict[str, Affine]) -> Found:
        """The best affine map from fixed to moving points, over turns, translations and the given starts."""
        fixed, moving = self.prepared.map(lambda image: image.at_scale(_COARSE_MM * self.scale))
        ranked = [(name, affine) for _, name, affine in _candidates(fixed, moving)]
        # most patients are not turned: a crop that shows little must not rank the shift out
        chosen = ranked[:_REFINED] + [entry for entry in ranked[_REFINED:] if entry[0] == _SHIFT] + list(starts.items())
        refined = list(in_threads(self._rigid, [affine for _, affine in chosen]))
        scores = np.array([self.rigid.score(affine) for affine in refined])
        if self._lead(scores, refined) < _CLEAR_LEAD:  # they may be on their way to the same place
            close = np.flatnonzero(scores > scores.max() - _CLEAR_LEAD)
            for i, affine in zip(close, in_threads(self._rigid, [refined[i] for i in close]), strict=True):
                refined[i], scores[i] = affine, self.rigid.score(affine)
        best = _best(scores)
        final = self.affine.refined(refined[best], rigid=False, steps=_AFFINE_STEPS)
        return Found(final, chosen[best][0], self.affine.score(final), self._lead(scores, refined))

    def better(self, found: Found, name: str, start: Affine) -> Found:
        """Another start, refined, in the place of what was found if the images fit better by it."""
        affine = self.affine.refined(self._rigid(start), rigid=False, steps=_AFFINE_STEPS)
        score = self.affine.score(affine)
        return Found(affine, name, score, score - found.score) if score > found.score else found

    def _rigid(self, start: Affine) -> Affine:
        return self.rigid.refined(start, rigid=True, steps=_RIGID_STEPS)

    def _lead(self, scores: np.ndarray, starts: list[Affine]) -> float:
        """The best start's score before that of the best one elsewhere; the whole score where there is none."""
        best = _best(scores)
        apart = [self.distance_mm(start, starts[best]) > _ELSEWHERE_MM * self.scale for start in starts]
        return float(scores[best] - scores[apart].max(initial=0.0))


def _best(scores: np.ndarray) -> int:
    """The highest; of those as high the last one, as starts that are given come after turns, and the masks' last."""
    return int(np.flatnonzero(scores > scores.max() - _SAME)[-1])
