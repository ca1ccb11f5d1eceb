"""Rigid and affine refinement of a start by damped least squares, scored in both directions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..both import Both
from ..space.affine import Affine
from .coarse import Coarse

LEAST_OVERLAP = 0.3  # part of the smaller image's body that both must see
OVERLAP_POWER = 0.25  # of that part, by which scores are weighed
_KEPT_OVERLAP = 0.9  # of a start's, at least
_SURELY = 0.99  # of what is read from a place, from which it was seen
_LENGTH_MM = 150.0  # at which a turn moves a point as far as a translation
_STRAIN = 0.1  # standard deviation of what an affine map is expected to stretch by, before the images are asked
_ALIKE_MM = 60.0  # of a large body: over which what an affine map leaves, a deformation, is alike
_POINTS = 8000  # compared in each direction at each step, about


class AffineFit:
    """Levenberg-Marquardt steps of a start; an image may gain or lose brightness, contrast and the contrast's sign.

    Compared are the points of each image's region, with the other image where that was seen: what surrounds a region
    does not count. What affine maps leave is a deformation, alike over a distance: so many residuals tell no more than
    one, and against the little that a thin slab tells of its stretching, no stretching is expected. ``regions``:
    (z, y, x) of each image. ``scale``: of that distance, for small bodies.
    """

    def __init__(self, images: Both[Coarse], regions: Both[Tensor], scale: float = 1.0):
        self.points, self.values = zip(
            *images.map(lambda image, region: image.points(region, _POINTS), regions), strict=True
        )
        self.sloped = images.map(Coarse.with_slopes)
        sizes = regions.map(lambda region: float(region.sum()))
        # what a point of each image stands for, as a part of the smaller region
        self.share = [
            n / max(1, len(points)) / max(1.0, min(sizes)) for n, points in zip(sizes, self.points, strict=True)
        ]
        self.centre = self.points[0].double().mean(0).numpy()
        cells = [(points / (_ALIKE_MM * scale)).floor() for points in self.points]
        self.cells = [torch.unique(cell, dim=0, return_inverse=True)[1] for cell in cells]  # (n,) of each point

    def score(self, affine: Affine) -> float:
        """From 0 to 1; less of an overlap tells less."""
        return _score(*self._compared(affine)[:2])

    def _compared(self, affine: Affine) -> tuple[float, float, list[tuple[Tensor, ...]]]:
        """Mean absolute correlation and part that both see, in both directions (0 where that is too little), and per
        direction the read values (c + c d, n), which of them are seen (n,), the standardised values (c, n) of both
        images and the spread (c, 1) of those that were read."""
        agreements, parts = [], []
        states: list[tuple[Tensor, ...]] = []
        for way, forward in enumerate((affine, affine.inverse())):
            matrix, offset = (torch.as_tensor(v, dtype=torch.float32) for v in (forward.matrix, forward.offset_mm))
            read = self.sloped[1 - way].at(self.points[way] @ matrix.T + offset)
            weights = (read[-1] > _SURELY).float()
            values = self.values[way]
            a, _ = _standard(values, weights)
            b, spread = _standard(read[: len(values)], weights)
            ncc = (a * b).sum(1) / weights.sum().clamp(min=1.0)
            agreements.append(float(ncc.abs().mean()))
            parts.append(float(weights.sum()) * self.share[way])
            states.append((read[:-1], weights, a, b, spread))
        enough = min(parts) >= LEAST_OVERLAP
        return float(np.mean(agreements)) if enough else 0.0, float(np.mean(parts)), states

    def refined(self, start: Affine, rigid: bool, steps: int) -> Affine:
        """The best of the steps' maps: by its score, less what it stretches more than the start does."""
        d = len(start.offset_mm)
        damped, generators = 0.02, _generators(d, rigid)
        stretched = torch.stack([(g + g.T) / 2 for g in generators]).flatten(1) / _LENGTH_MM
        best, (agreement, part, states) = start, self._compared(start)
        least = _KEPT_OVERLAP * part
        for _ in range(steps):
            if not agreement:
                break
            here = best(self.centre)
            normal, right = self._equations(best, states, here, generators)
            # of a squared strain, as agreement; the squared residuals are twice what agreement lacks, each
            cost = 0.0 if rigid else (1 - agreement) / self._cells(states) / _STRAIN**2
            strain, weight = _strain(best, start), 2 * cost * float(sum(a.shape[0] * w.sum() for _, w, a, *_ in states))
            normal[d:, d:] += weight * stretched @ stretched.T
            right[d:] -= weight * stretched @ torch.as_tensor(strain, dtype=torch.float32).flatten()
            damping = torch.diag(normal.diagonal() * damped + 1e-6)
            step = torch.linalg.solve(normal + damping, right).double().numpy()
            change = sum(p * g.double().numpy() for p, g in zip(step[d:], generators, strict=True)) / _LENGTH_MM
            turn = np.eye(d) + change
            new = (orthogonal(turn) if rigid else turn) @ best.matrix
            affine = Affine(new, here + step[:d] - new @ self.centre)
            compared = self._compared(affine)
            lost = cost * float(np.square(_strain(affine, start)).sum() - np.square(strain).sum())
            if _score(*compared[:2]) > _score(agreement, part) + lost and compared[1] > least:
                best, (agreement, part, states), damped = affine, compared, damped / 3
            else:
                damped *= 8
        return best

    def _cells(self, states: list[tuple[Tensor, ...]]) -> float:
        """How many parts of the regions, each as large as deformations are alike over, were compared."""
        return float(
            np.mean([len(cells[w > 0].unique()) for cells, (_, w, *_) in zip(self.cells, states, strict=True)])
        )

    def _equations(self, affine: Affine, states: list, here: np.ndarray, generators: list[Tensor]):
        """Of a step that is made after ``affine``, about the moving point ``here``: normal matrix and right side."""
        d = len(here)
        middle = torch.as_tensor(here, dtype=torch.float32)
        back = torch.as_tensor(np.linalg.inv(affine.matrix), dtype=torch.float32)
        normal, right = torch.zeros(()), torch.zeros(())
        all_at_once = torch.stack(generators, -1).transpose(0, 1).reshape(d, -1)
        for way, (read, weights, a, b, spread) in enumerate(states):
            c = len(a)
            sign = ((a * b).sum(1, keepdim=True) >= 0).float() * 2 - 1
            slope = (read[c:].reshape(c, d, -1) * weights / spread[..., None]).permute(0, 2, 1)  # (c, n, d)
            if way == 0:
                matrix, offset = (torch.as_tensor(v, dtype=torch.float32) for v in (affine.matrix, affine.offset_mm))
                at = self.points[0] @ matrix.T + offset
            else:  # a step of the moving points is one of the fixed points the other way
                slope, at = -slope @ back, self.points[1]
            around = (at - middle) / _LENGTH_MM
            motion = (around @ all_at_once).reshape(-1, d, len(generators))  # (n, d, k)
            jacobian = torch.cat([slope, torch.einsum("cnd,ndk->cnk", slope, motion)], -1).flatten(0, 1)
            residual = (sign * a - b).reshape(-1)
            normal, right = normal + jacobian.T @ jacobian, right + jacobian.T @ residual
        return normal, right


def _standard(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and spread 1 over the weights, and the spread (c, 1)."""
    total = weights.sum().clamp(min=1.0)
    centred = (values - (values * weights).sum(1, keepdim=True) / total) * weights
    spread = (centred.square().sum(1, keepdim=True) / total).sqrt().clamp(min=1e-4)
    return centred / spread, spread


def _score(agreement: float, part: float) -> float:
    return agreement * min(part, 1.0) ** OVERLAP_POWER


def _strain(affine: Affine, start: Affine) -> np.ndarray:
    """By how much a map stretches more than its start did, (d, d) symmetric, in the moving image's frame."""
    u, s, _ = np.linalg.svd(affine.matrix @ np.linalg.inv(start.matrix))
    return u @ np.diag(s - 1) @ u.T


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(matrix)
    return u @ v


def _generators(d: int, rigid: bool) -> list[Tensor]:
    out = []
    for i in range(d):
        for j in range(d):
            g = torch.zeros(d, d)
            g[i, j] = 1.0
            if rigid and i < j:
                g[j, i] = -1.0
                out.append(g)
            elif not rigid:
                out.append(g)
    return out
