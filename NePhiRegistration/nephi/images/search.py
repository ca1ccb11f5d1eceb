"""A search for the start: every turn on a grid with every translation at once, the best refined.

For a turn, the normalised cross-correlation over what both images see (Padfield, IEEE TIP 2012) comes by fast Fourier
transforms for all translations, partial overlaps included. Images are compared by their intensities and by the length
of their gradients, each by the correlation's absolute value, so that the contrast may be inverted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from ..both import Both
from ..settings import BODY_MM
from ..space.affine import Affine
from ..space.grid import Grid
from .hounsfield import hu_offset, in_hu, sparse
from .masks import CT_WINDOW

_COARSE_MM, _FINE_MM = 14.0, 8.0  # of a large body
_LEAST_OVERLAP = 0.3  # part of the smaller image that both must see
_REFINED = 3  # turns that are refined
_TURNS_DEG = (-45, -30, -15, 15, 30, 45)
_STEPS = 8
_STRAIN_COST = 0.005
_POINTS = 16000  # compared at each step, about


@dataclass(frozen=True)
class Found:
    """The best start, its score (0..1) and how far the best start elsewhere stays behind."""

    affine: Affine
    score: float
    lead: float


@dataclass(frozen=True)
class _Sampled:
    """Features (c, z, y, x) on a grid along the patient's axes, and where (z, y, x) the image was."""

    features: Tensor
    seen: Tensor
    spacing_mm: float
    origin_lps_mm: np.ndarray

    @property
    def size_xyz(self) -> np.ndarray:
        return np.array(self.seen.shape[::-1])

    @property
    def centre_lps_mm(self) -> np.ndarray:
        return self.origin_lps_mm + (self.size_xyz - 1) / 2 * self.spacing_mm

    def points_lps_mm(self) -> np.ndarray:
        index_zyx = np.stack(np.nonzero(self.seen.numpy() > 0.5), -1)
        return self.origin_lps_mm + index_zyx[:, ::-1] * self.spacing_mm

    def at(self, points_lps_mm: Tensor) -> Tensor:
        """Features and whether they are seen, (c + 1, ...), at points (..., d)."""
        d, size = self.seen.ndim, torch.as_tensor(self.size_xyz, dtype=torch.float32)
        index = (points_lps_mm - torch.as_tensor(self.origin_lps_mm, dtype=torch.float32)) / self.spacing_mm
        place = (2 * index / (size - 1).clamp(min=1) - 1).reshape(1, *[1] * (d - 1), -1, d)
        volume = torch.cat([self.features, self.seen[None]])[None]
        return functional.grid_sample(volume, place, align_corners=True).reshape(
            len(volume[0]), *points_lps_mm.shape[:-1]
        )


def _blurred(values: Tensor) -> Tensor:
    """Binomial filter (1, 2, 1) along each axis of (c, ...), the edge repeated."""
    for axis in range(1, values.ndim):
        n = values.shape[axis]
        before = values.index_select(axis, torch.arange(-1, n - 1).clamp(min=0))
        after = values.index_select(axis, torch.arange(1, n + 1).clamp(max=n - 1))
        values = (before + 2 * values + after) / 4
    return values


def _gradient(values: Tensor) -> Tensor:
    """(...) -> (d, ...), per voxel, x first."""
    axes = [a for a in range(values.ndim) if values.shape[a] > 1]
    parts = dict(zip(axes, torch.gradient(values, dim=axes), strict=True))
    return torch.stack([parts.get(a, torch.zeros_like(values)) for a in reversed(range(values.ndim))])


def _prepared(image: sitk.Image) -> sitk.Image:
    """Values from 0 to 1, what pads a CT as air."""
    offset = hu_offset(image)
    if offset is not None:
        return sitk.IntensityWindowing(in_hu(image, offset), *CT_WINDOW, 0.0, 1.0)
    low, high = (float(v) for v in np.percentile(sparse(image), (1, 99)))
    high = high if high > low else low + 1.0
    return sitk.IntensityWindowing(sitk.Cast(image, sitk.sitkFloat32), low, high, 0.0, 1.0)


def _reduced(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Averaged over blocks of at most this size: much finer voxels would only cost."""
    grid = Grid.of(image)
    shrink = [max(1, min(int(spacing_mm / s), n)) for s, n in zip(grid.spacing_mm, grid.size, strict=True)]
    return sitk.BinShrink(image, shrink) if max(shrink) > 1 else image


def _sampled(image: sitk.Image, spacing_mm: float) -> _Sampled:
    """``image``: prepared. Averaged, then resampled over the box that holds anything but its background."""
    grid = Grid.of(image)
    d = grid.dimension
    small = _reduced(image, spacing_mm)
    corners = grid.corners_lps_mm()
    low, high = corners.min(0), corners.max(0)
    size = np.maximum(np.round((high - low) / spacing_mm), 1).astype(int) + 1
    out = Grid(tuple(map(int, size)), (spacing_mm,) * d, tuple(map(float, low)), tuple(np.eye(d).ravel()))
    sitk_array = sitk.GetArrayFromImage(out.resample(small, outside=-9.0))
    seen = sitk_array > -0.5
    values = torch.from_numpy(np.where(seen, sitk_array, np.median(sitk_array[seen]) if seen.any() else 0.0)).float()
    values = _blurred(values[None])[0]
    edges = _gradient(values).norm(dim=0)
    inner = torch.from_numpy(seen).float()
    # where the image ends there is no edge of the patient
    inner_edges = edges * (_blurred(inner[None])[0] > 0.99)
    box = []
    strong = (inner_edges > 0.05).numpy()
    for axis in range(d):
        rows = np.flatnonzero(strong.any(tuple(a for a in range(d) if a != axis)))
        n, margin = strong.shape[axis], 3
        first, last = (rows[0], rows[-1]) if rows.size else (0, n - 1)
        box.append(slice(max(0, int(first) - margin), min(n, int(last) + margin + 1)))
    part = tuple(box)
    start = np.array([s.start for s in reversed(box)])
    features = torch.stack([values, inner_edges.sqrt()])[(slice(None), *part)]
    return _Sampled(features * inner[part], inner[part], spacing_mm, low + start * spacing_mm)


def _rotation(axis: int, degrees: float, d: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix, (i, j) = np.eye(d), [a for a in range(3) if a != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def _turns(d: int) -> Iterator[np.ndarray]:
    yield np.eye(d)
    for axis in range(3) if d == 3 else (2,):
        for degrees in (*_TURNS_DEG, 90, -90, 180):
            if abs(degrees) != 90 or axis == 2:
                yield _rotation(axis, degrees, d)


def _fast(n: int) -> int:
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


class _Correlation:
    """Scores of a fixed image against turned moving ones, at every translation in voxels."""

    def __init__(self, fixed: _Sampled, largest: np.ndarray):
        self.fixed = fixed
        self.shape = tuple(_fast(int(n)) for n in (np.array(fixed.seen.shape) + largest[::-1] - 1))
        self.axes = tuple(range(-fixed.seen.ndim, 0))
        self.mask, self.values, self.squares = (
            self._transformed(v) for v in (fixed.seen[None], fixed.features, fixed.features**2)
        )

    def _transformed(self, values: Tensor) -> Tensor:
        return torch.fft.rfftn(values, s=self.shape, dim=self.axes)

    def best(self, moving: Tensor, seen: Tensor) -> tuple[float, np.ndarray]:
        """The highest score and its translation, x first: fixed voxel i is on moving voxel i + translation."""
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
        part = count[0] / min(float(self.fixed.seen.sum()), float(seen.sum()))
        score = torch.where(part > _LEAST_OVERLAP, _weighed(ncc, part), 0.0)
        index = np.array(np.unravel_index(int(score.argmax()), self.shape))
        index = np.where(index > np.array(self.fixed.seen.shape) - 1, index - np.array(self.shape), index)
        return float(score.max()), -index[::-1]


def _weighed(ncc: Tensor, part: Tensor) -> Tensor:
    """One score of the channels' correlations; less of an overlap tells less."""
    return ncc.abs().mean(0) * part.clamp(max=1.0) ** 0.25


class _Refinement:
    """Levenberg-Marquardt steps of a start, which may gain or lose brightness, contrast and the contrast's sign."""

    def __init__(self, fixed: _Sampled, moving: _Sampled):
        points, values = fixed.points_lps_mm(), fixed.features[:, fixed.seen > 0.5]
        step = max(1, round(len(points) / _POINTS)) | 1  # odd: no plane of the grid is left out
        self.points, self.values = torch.as_tensor(points[::step], dtype=torch.float32), values[:, ::step]
        self.least = min(float(fixed.seen.sum()), float(moving.seen.sum())) / step
        slopes = [_gradient(channel) / moving.spacing_mm for channel in moving.features]
        features = torch.cat([moving.features, *slopes])
        self.moving = _Sampled(features, moving.seen, moving.spacing_mm, moving.origin_lps_mm)
        self.centre = fixed.centre_lps_mm

    def _state(self, affine: Affine) -> tuple[Tensor, Tensor, float]:
        matrix, offset = (torch.as_tensor(v, dtype=torch.float32) for v in (affine.matrix, affine.offset_mm))
        read = self.moving.at(self.points @ matrix.T + offset)
        weights = (read[-1] > 0.5).float()
        return read[:-1], weights, float(weights.sum()) / self.least

    def score(self, affine: Affine) -> float:
        read, weights, part = self._state(affine)
        if part < _LEAST_OVERLAP:
            return 0.0
        a, b = self._standard(self.values, weights)[0], self._standard(read[: len(self.values)], weights)[0]
        ncc = (a * b).sum(1) / weights.sum()
        return float(_weighed(ncc, torch.tensor(part)))

    @staticmethod
    def _standard(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        total = weights.sum().clamp(min=1.0)
        centred = (values - (values * weights).sum(1, keepdim=True) / total) * weights
        spread = (centred.square().sum(1, keepdim=True) / total).sqrt().clamp(min=1e-4)
        return centred / spread, spread

    def refined(self, start: Affine, rigid: bool, steps: int = _STEPS) -> Affine:
        """The best of the steps' maps."""
        d, c = len(start.offset_mm), len(self.values)
        best, highest, damped = start, self.score(start), 0.02
        length = 150.0
        for _ in range(steps):
            read, weights, part = self._state(best)
            if part < _LEAST_OVERLAP:
                break
            a, _ = self._standard(self.values, weights)
            b, spread = self._standard(read[:c], weights)
            sign = ((a * b).sum(1, keepdim=True) >= 0).float() * 2 - 1
            slope = (read[c:].reshape(c, d, -1) * weights / spread[..., None]).permute(0, 2, 1)  # (c, n, d)
            matrix = torch.as_tensor(best.matrix, dtype=torch.float32)
            around = (self.points - torch.as_tensor(self.centre, dtype=torch.float32)) @ matrix.T / length
            generators = _generators(d, rigid)
            motion = torch.stack([around @ g.T for g in generators], -1)  # (n, d, k)
            turn = torch.einsum("cnd,ndk->cnk", slope, motion)
            jacobian = torch.cat([slope, turn], -1).reshape(-1, d + len(generators))
            residual = (sign * a - b).reshape(-1)
            normal = jacobian.T @ jacobian
            damping = torch.diag(normal.diagonal() * damped + 1e-6)
            if not rigid:  # a strain costs, as what the field does better should be left to it
                damping[d:, d:] += torch.eye(len(generators)) * normal.diagonal()[d:].mean() * _STRAIN_COST
            step = torch.linalg.solve(normal + damping, jacobian.T @ residual).double().numpy()
            here = best(self.centre)
            change = sum(p * g.double().numpy() for p, g in zip(step[d:], generators, strict=True)) / length
            new = (_orthogonal(np.eye(d) + change) if rigid else np.eye(d) + change) @ best.matrix
            affine = Affine(new, here + step[:d] - new @ self.centre)
            score = self.score(affine)
            if score > highest:
                best, highest, damped = affine, score, damped / 3
            else:
                damped *= 8
        return best


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
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


def search(images: Both[sitk.Image], starts: dict[str, Affine]) -> Found:
    """The best affine map from fixed to moving points, over turns, translations and the given starts."""
    d = images.fixed.GetDimension()
    scale = min(1.0, max(Grid.of(image).longest_side_mm for image in images) / BODY_MM)
    prepared = images.map(lambda image: _prepared(_reduced(image, _FINE_MM / 4 * scale)))
    fixed, moving = prepared.map(lambda image: _sampled(image, _COARSE_MM * scale))
    centre, spacing = moving.centre_lps_mm, moving.spacing_mm
    half = (moving.size_xyz - 1) / 2 * spacing
    candidates: list[tuple[float, Affine]] = []
    boxes = [(turn, np.ceil(np.abs(turn.T) @ half / spacing).astype(int) * 2 + 1) for turn in _turns(d)]
    largest = np.max([size for _, size in boxes], axis=0)
    correlation = _Correlation(fixed, largest)
    for turn, size in boxes:
        # a grid that turns with the patient: its point p is the moving image's turn @ (p - centre) + centre
        origin = centre - (size - 1) / 2 * spacing
        axes = [torch.arange(n, dtype=torch.float32) * spacing + o for n, o in zip(size, origin, strict=True)]
        points = torch.stack(torch.meshgrid(*reversed(axes), indexing="ij")[::-1], -1)
        around, matrix = torch.as_tensor(centre, dtype=torch.float32), torch.as_tensor(turn, dtype=torch.float32)
        read = moving.at((points - around) @ matrix.T + around)
        seen = (read[-1] > 0.5).float()
        score, translation = correlation.best(read[:-1] * seen, seen)
        offset = origin - fixed.origin_lps_mm + translation * spacing
        candidates.append((score, Affine(turn, turn @ (offset - centre) + centre)))
    candidates.sort(key=lambda entry: -entry[0])
    fixed, moving = prepared.map(lambda image: _sampled(image, _FINE_MM * scale))
    refinement = _Refinement(fixed, moving)
    chosen = [affine for _, affine in candidates[:_REFINED]] + list(starts.values())
    refined = [refinement.refined(affine, rigid=True) for affine in chosen]
    scores = [refinement.score(affine) for affine in refined]
    order = np.argsort(scores)[::-1]
    best = refined[order[0]]
    some = refinement.points.numpy()[::20]
    apart = [scores[i] for i in order if np.linalg.norm(refined[i](some) - best(some), axis=1).mean() > 20.0 * scale]
    final = refinement.refined(best, rigid=False, steps=2 * _STEPS)
    return Found(final, refinement.score(final), scores[order[0]] - (apart[0] if apart else 0.0))
