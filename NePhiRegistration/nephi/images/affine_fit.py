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
_STRAIN_COST = 0.005
_POINTS = 8000  # compared in each direction at each step, about


class AffineFit:
    """Levenberg-Marquardt steps of a start; an image may gain or lose brightness, contrast and the contrast's sign.

    Compared are the points of each image's region, with the other image where that was seen: what surrounds a region
    does not count. ``regions``: (z, y, x) of each image.
    """

    def __init__(self, images: Both[Coarse], regions: Both[Tensor]):
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

    def score(self, affine: Affine) -> float:
        """From 0 to 1; less of an overlap tells less."""
        agreement, part, _ = self._compared(affine)
        return agreement * min(part, 1.0) ** OVERLAP_POWER

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
        """The best of the steps' maps."""
        d = len(start.offset_mm)
        damped, generators = 0.02, _generators(d, rigid)
        best, (highest, part, states) = start, self._compared(start)
        least = _KEPT_OVERLAP * part
        for _ in range(steps):
            if not highest:
                break
            here = best(self.centre)
            normal, right = self._equations(best, states, here, generators)
            damping = torch.diag(normal.diagonal() * damped + 1e-6)
            if not rigid:  # a strain costs, as what the field does better should be left to it
                damping[d:, d:] += torch.eye(len(generators)) * normal.diagonal()[d:].mean() * _STRAIN_COST
            step = torch.linalg.solve(normal + damping, right).double().numpy()
            change = sum(p * g.double().numpy() for p, g in zip(step[d:], generators, strict=True)) / _LENGTH_MM
            turn = np.eye(d) + change
            new = (orthogonal(turn) if rigid else turn) @ best.matrix
            affine = Affine(new, here + step[:d] - new @ self.centre)
            score, part, there = self._compared(affine)
            if score > highest and part > least:
                best, highest, states, damped = affine, score, there, damped / 3
            else:
                damped *= 8
        return best

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
