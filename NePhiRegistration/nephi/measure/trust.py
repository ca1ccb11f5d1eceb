"""The expected error of a registration in mm and a bound that holds for 95 %, from the result and its images alone.

Signals measured at points of the mask (``nephi.measure.signals``) are pooled around each place where the error is asked
for, beside what they are in the whole mask, and a small calibrated model (``nephi.measure.calibration``) makes
millimetres of them. It was calibrated on CTs of the lungs; elsewhere it is a guide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..device import in_threads
from ..images.masks import binary
from ..images.warp import linear_through
from ..space.grid import Grid
from .calibration import FEATURES, MODEL, Model
from .report import ErrorEstimate
from .signals import Signals

_POOL_MM = 6.0  # standard deviation of the weights around a place; of the wider ones twice as much
_LEAST_MM, _LEAST_RATIO = 0.1, 0.02  # smaller differences are ignored
_LEAST_LOG = -80.0  # of a weight: subnormal numbers are many times slower
_ROWS = 128  # points processed at a time: their weights stay in the cache
_MAP_MM = 5.0  # between the voxels of the map
_LARGE_MM = 5.0
_AS_WELL = 0.05  # of a correlation: a block that fits this much worse than at best fits nearly as well
_SAME = 1.0  # voxels of the coarse scale: shifts nearer to each other are the same


@dataclass(frozen=True)
class Errors:
    """Expected error, and the bound that holds for 95 % of errors, in mm, at n points."""

    expected_mm: np.ndarray
    bound_mm: np.ndarray


def features(signals: Signals, places_lps_mm: np.ndarray) -> np.ndarray:
    """(n, k): what the model reads at places (n, d), named in ``FEATURES``, as logarithms; the excess strain is the
    square of one.

    First what was found near the place, then, the same for all, in the whole mask.
    """
    s = signals
    shift, coarse_shift = (np.linalg.norm(v, axis=1) for v in (s.shifts_mm, s.coarse_shifts_mm))
    trust = (np.clip(s.best, 0.0, 1.0) ** 2 / (1 + (s.asymmetry_mm / s.scale) ** 2) + 1e-3).astype(np.float32)
    d, trust = s.shifts_mm.shape[1], trust[:, None]
    # weighted means are sums of values divided by sums of weights, all of one product
    values = np.column_stack([trust * s.shifts_mm, trust * shift[:, None], trust, s.asymmetry_mm, s.strain])
    fine, far, apart = (_with_ones(v).T.contiguous() for v in (values, values[:, d : d + 2], coarse_shift[:, None]))
    fine_points, coarse_points, places = (
        torch.from_numpy(((v - s.points_lps_mm.mean(0)) / (_POOL_MM * s.scale)).astype(np.float32))
        for v in (s.points_lps_mm, s.coarse_points_lps_mm, places_lps_mm)
    )

    def pooled(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = _near(rows / 2, fine_points / 2, _LEAST_LOG / 4)
        of_wide = far @ wide.T  # with the few columns first, a fifth of the time
        near = wide.square_().square_()  # a Gaussian half as wide
        return fine @ near.T, of_wide, apart @ _near(rows, coarse_points).T

    parts = zip(*in_threads(pooled, places.split(_ROWS)), strict=True)
    of_fine, of_wide, of_coarse = (torch.cat(part, 1).T.double().numpy() for part in parts)
    trusted, plain = of_fine[:, : d + 1] / of_fine[:, d + 1 : d + 2], of_fine[:, d + 2 : -1] / of_fine[:, -1:]
    lengths = np.column_stack(
        [
            np.linalg.norm(trusted[:, :-1], axis=1), trusted[:, -1], of_wide[:, 0] / of_wide[:, 1], plain[:, 0],
            of_coarse[:, 0] / of_coarse[:, 1],
        ]
    )  # fmt: skip
    strain = np.log(plain[:, 1:] + _LEAST_RATIO)
    # a large motion strains the whole mask; what a wrong start leaves behind stands out of it, and there the error is
    # more than what shifts of a limited reach tell: the excess counts by its square
    excess = np.maximum(strain - np.log(np.median(s.strain) + _LEAST_RATIO), 0) ** 2
    whole = np.array([np.median(shift), np.median(s.coarse_asymmetry_mm)])
    everywhere = np.log(whole / s.scale + _LEAST_MM)
    return np.column_stack(
        [
            np.log(lengths / s.scale + _LEAST_MM),
            strain,
            excess,
            np.broadcast_to(everywhere, (len(lengths), len(everywhere))),
        ]
    )


def _near(places: Tensor, points: Tensor, least: float = _LEAST_LOG) -> Tensor:
    """(n, m) weights of the points around each place, both in units of the deviation; the nearest has 1.

    ``least``: the smallest logarithm of a weight.
    """
    halves = torch.addmm(points.square().sum(1) / -2, places, points.T)  # minus half the squared distances, but for
    halves -= halves.amax(1, keepdim=True)  # common to all points
    return halves.clamp_(min=least).exp_()


def _with_ones(values: np.ndarray) -> Tensor:
    """(m, k + 1): values (m, k), and a column whose sums are those of the weights."""
    return torch.from_numpy(np.column_stack([values, np.ones(len(values))]).astype(np.float32))


@dataclass(frozen=True)
class Trust:
    """The estimated error of a registration: at any point, as volumes, and as summary numbers."""

    signals: Signals
    grid: Grid  # of the volumes
    inside: np.ndarray  # (z, y, x) bool: the nodes of the grid in and next to the mask
    inner: np.ndarray  # (k,) bool: those of the inside nodes that lie in the mask
    errors: Errors  # (k,) at the inside nodes
    model: Model

    @classmethod
    def of(cls, signals: Signals, fixed_grid: Grid, mask: sitk.Image | None, model: Model = MODEL) -> Trust:
        """On a coarse grid over the fixed image."""
        grid = fixed_grid.coarsened(_MAP_MM * signals.scale)
        share = np.ones(grid.shape, np.float32)
        if mask is not None:
            share = linear_through(binary(mask), grid, None)
            if not share.any():  # thinner than the grid
                share[:] = 1
        inside = share > 0
        places = grid.to_lps_mm(np.argwhere(inside)[:, ::-1])
        inner = share[inside] >= 0.5
        inner = inner if inner.any() else np.ones_like(inner)
        return cls(signals, grid, inside, inner, _errors(signals, places, model), model)

    def errors_at(self, points_lps_mm: np.ndarray) -> Errors:
        """At points (n, d) of the fixed image."""
        return _errors(self.signals, np.asarray(points_lps_mm, float), self.model)

    @property
    def expected(self) -> sitk.Image:
        """Expected error in mm (float32), 0 outside the mask."""
        return self._image(self.errors.expected_mm)

    @property
    def bound(self) -> sitk.Image:
        """The bound that holds for 95 % of errors, in mm (float32), 0 outside the mask."""
        return self._image(self.errors.bound_mm)

    def _image(self, values: np.ndarray) -> sitk.Image:
        volume = np.zeros(self.grid.shape, np.float32)
        volume[self.inside] = values
        return self.grid.image(volume)

    def share_above(self, mm: float) -> float:
        """The summary over the mask."""
        return float((self.errors.expected_mm[self.inner] > mm).mean())

    def estimate(self) -> ErrorEstimate:
        s, expected, bound = self.signals, self.errors.expected_mm[self.inner], self.errors.bound_mm[self.inner]
        same = s.coarse_asymmetry_mm < _SAME * s.coarse_voxel_mm
        clear = same | (s.coarse_best - s.coarse_here > _AS_WELL)
        return ErrorEstimate(
            mean=float(expected.mean()),
            median=float(np.median(expected)),
            p95=float(np.percentile(expected, 95)),
            max=float(expected.max()),
            bound_mean=float(bound.mean()),
            bound_p95=float(np.percentile(bound, 95)),
            above_5_mm=self.share_above(_LARGE_MM),
            likeness=float(np.median(s.coarse_best)),
            agreement=float(same.mean()),
            unseen=s.unseen,
            calibrated=s.lungs and self.grid.dimension == 3,
            clear_agreement=float(same.sum() / max(1, clear.sum())),
        )


def _errors(signals: Signals, places_lps_mm: np.ndarray, model: Model) -> Errors:
    expected, bound = model.errors(features(signals, places_lps_mm), FEATURES, signals.voxel_mm / signals.scale)
    return Errors(expected * signals.scale, bound * signals.scale)
