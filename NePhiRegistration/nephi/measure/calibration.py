"""Calibration of the error estimate in mm: a log-linear model of the signals, and a bound above it for 95 % of errors.

Its numbers, calibration.json, come from results whose true error is known; the file says by which command.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import of_json
from ..errors import NephiError
from ..paths import read_text_file

LEAST_MM = 0.1  # added to errors before their logarithm is taken
BLUR = 0.5  # voxels: uncertainty of the position of any point; added to the bound in quadrature
FEATURES = (
    "mean shift", "shift", "wide shift", "asymmetry", "coarse shift", "strain", "excess strain",
    "all: median of shift", "all: median of coarse asymmetry",
)  # fmt: skip
_LARGEST = 1e3  # magnitude of the model's coefficients
_MOST_MM = 40.0  # larger expected errors are cut off here


@dataclass(frozen=True)
class Model:
    """``weights``: of the features, by name, and of ``one``; ``knots``: expected mm, and the bound in units of it,
    before the voxel comes in."""

    weights: dict[str, float]
    knots: tuple[tuple[float, float], ...]

    def errors(
        self, features: np.ndarray, names: tuple[str, ...], voxel_mm: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected error and its bound (n,), in mm, from features (n, k) with these names.

        ``voxel_mm``: side of a voxel of the coarser image, one or (n,).
        """
        log = features @ np.array([self.weights[name] for name in names]) + self.weights["one"]
        expected = np.clip(np.exp(log) - LEAST_MM, LEAST_MM / 2, _MOST_MM)
        at, times = np.array(self.knots, float).T
        return expected, np.hypot(expected * np.interp(np.log(expected), np.log(at), times), BLUR * voxel_mm)


def read_model(path: Path) -> Model:
    """The model in a file. Raises NephiError if it is missing or damaged: the installation is incomplete."""
    text = read_text_file(path, "calibration")
    try:
        data = of_json(text)
        weights = {name: _number(data["weights"][name]) for name in (*FEATURES, "one")}
        knots = tuple((_number(at), _number(times)) for at, times in data["knots"])
    except (ValueError, TypeError, LookupError, OverflowError):
        raise NephiError(f"{path} is damaged; reinstall NePhi") from None
    at, times = np.array(knots).reshape(-1, 2).T
    ordered = len(at) > 1 and at[0] > 0 and (np.diff(at) > 0).all() and (times >= 1).all()
    if not ordered or len(data["weights"]) != len(weights) or min(weights[name] for name in FEATURES) < 0:
        raise NephiError(f"{path} is damaged: its values are not a calibration; reinstall NePhi")
    return Model(weights, knots)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise ValueError(value)
    return float(value)


MODEL = read_model(Path(__file__).with_suffix(".json"))
