"""What makes millimetres of the signals: a linear model of logarithms, and how far above it 95 % of errors stay.

Its numbers, calibration.json, come from generated breathing with known maps; the file says by which command.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEAST_MM = 0.1  # added to errors before their logarithm is taken
BLUR = 0.5  # voxels: nobody can say to better than that where a point lies; added to the bound in quadrature
_MOST_MM = 40.0  # larger expected errors are not told apart


@dataclass(frozen=True)
class Model:
    """``weights``: of the features, by name, and of ``one``; ``knots``: expected mm, and the bound in units of it,
    before the voxel comes in."""

    weights: dict[str, float]
    knots: tuple[tuple[float, float], ...]

    def errors(
        self, features: np.ndarray, names: tuple[str, ...], voxel_mm: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected error and its bound (n,), in mm, by features (n, k) of these names; ``voxel_mm``: side of a voxel
        of the coarser image, one or (n,)."""
        log = features @ np.array([self.weights[name] for name in names]) + self.weights["one"]
        expected = np.clip(np.exp(log) - LEAST_MM, LEAST_MM / 2, _MOST_MM)
        at, times = np.array(self.knots, float).T
        return expected, np.hypot(expected * np.interp(np.log(expected), np.log(at), times), BLUR * voxel_mm)


def _read() -> Model:
    data = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return Model(data["weights"], tuple(map(tuple, data["knots"])))


MODEL = _read()
