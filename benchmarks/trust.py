"""What NePhi says of its own results, against the truth: verdicts, expected errors and their bounds.

A result is *right* where its true error is at most 2 mm on average and above 5 mm at no more than 5 % of the points
(or the longest side of a voxel, where that is more), *wrong* where it is above 3 mm on average, above 5 mm at more than
10 % of the points, or where nothing corresponds; what lies between is neither. Generated pairs are asked at 300
points of the lungs, the others at their landmarks; the bounds count at the landmarks of the pairs of ``PAIRS``.

Each result is judged by a model that no result of the same patient took part in, neither in its fit nor in its bound.
Results of data whose licence does not allow every use (``Case.teaches``) take part in no model.

    python -m benchmarks.trust                       # tables: generated pairs, and those with landmarks or other seeds
    python -m benchmarks.trust --calibrate           # and writes the model of all to nephi/measure/calibration.json
    python -m benchmarks.trust --without strain      # the tables without a signal
    python -m benchmarks.trust --in-use --only popi  # by nephi's own model, which was fitted to most of them
    python -m benchmarks.trust --in-use --cases "chest:301 turned"  # other seeds, in a state of ``trust_cases``
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nephi.measure.calibration
import numpy as np
import SimpleITK as sitk
from nephi.measure.calibration import BLUR, LEAST_MM, MODEL, Model
from nephi.measure.evaluate import shown_masks
from nephi.measure.quality import dice, fold_summary, summary
from nephi.measure.report import Folds, Overlap, Report, Summary
from nephi.measure.signals import Signals
from nephi.measure.trust import FEATURES, Trust, features
from nephi.measure.verdict import CHECK, FAIL, PASS, judged
from nephi.result import Registration
from nephi.space.grid import Grid

from .trust_cases import CALIBRATION, JUDGED, Case, result

UNRELATED_MM = 20.0  # stands in for the error where nothing corresponds
MOST_MM = 40.0  # an error beyond it counts as this one
RIGHT_MM, WRONG_MM, LARGE_MM = 2.0, 3.0, 5.0
RIGHT_SHARE, WRONG_SHARE = 0.05, 0.1
_LEAST_TIMES = 1.5  # the expected error is the bound: a voxel does not explain as much where voxels are finer


@dataclass(frozen=True)
class Measured:
    """A result without its images: what the verdict goes by, and the true error in mm (None: nothing corresponds)."""

    signals: Signals
    grid: Grid
    mask: sitk.Image | None
    voxel_mm: float
    report: Report
    points_lps_mm: np.ndarray
    error_mm: np.ndarray | None
    seconds: float  # of CPU time, for the signals

    @property
    def right(self) -> bool | None:
        """None: neither right nor wrong."""
        if self.error_mm is None:
            return False
        mean, large = self.error_mm.mean(), (self.error_mm > max(LARGE_MM, self.voxel_mm)).mean()
        if mean > WRONG_MM or large > WRONG_SHARE:
            return False
        return True if mean <= max(RIGHT_MM, self.voxel_mm) and large <= RIGHT_SHARE else None


def measured(case: Case, cache: Path) -> Measured | None:
    """From the cache if it is there; None where NePhi refused to register the pair."""
    file = cache / f"{case.file}.measured"
    if not file.exists():
        found = result(case, cache)
        file.write_bytes(pickle.dumps(None if found is None else _measured(*found)))
    return pickle.loads(file.read_bytes())


def _measured(pair, r) -> Measured:
    transform, began = r.transform(), time.process_time()
    trust = r.trust(*pair.images, transform)
    seconds, points = time.process_time() - began, trust.signals.points_lps_mm
    error, places = None, points[:300]
    if pair.points_lps_mm is not None:
        places, there = pair.points_lps_mm
        error = np.linalg.norm(r.forward(places) - there, axis=1)
    report = measures(r, transform, points)
    return Measured(trust.signals, r.fixed_grid, r.fixed_mask, voxel_mm(r), report, places, error, seconds)


def measures(r: Registration, transform: sitk.Transform, points_lps_mm: np.ndarray) -> Report:
    """What the verdict asks of a result besides the expected error, at points (n, 3) of the fixed mask."""
    jacobian = r.jacobian_determinant(points_lps_mm)
    counted = fold_summary(jacobian)
    overlap = None
    if r.fixed_mask is not None and r.moving_mask is not None:
        fixed = sitk.GetArrayViewFromImage(r.fixed_mask)
        overlap = Overlap(dice(*shown_masks(r.fixed_grid, fixed, r.moving_mask, transform)))
    low, high = np.percentile(jacobian, (1, 99))
    apart = np.linalg.norm(r.inverse(r.forward(points_lps_mm)) - points_lps_mm, axis=1)
    return Report(
        folds=Folds(counted["percent"], int(counted["count"])),
        jacobian={"p1": float(low), "p99": float(high)},
        dice=overlap,
        fields_disagreement_mm=Summary(**summary(apart)),
    )


def voxel_mm(r: Registration) -> float:
    return max(*r.fixed_grid.spacing_mm, *r.moving_grid.spacing_mm)


# ---- calibration -------------------------------------------------------------------------------------------------


class Calibration:
    """Models of results whose true error is known, and of those of all but some subjects.

    Only results that may take part do (``Case.teaches``), and each case counts alike. No weight is negative: more of a
    signal never means less error. Those of the features ``without`` are 0.
    """

    def __init__(self, found: dict[Case, Measured], without: Collection[str] = ()) -> None:
        used = np.array([name not in without for name in FEATURES], float)
        self._known = [
            (case.subjects, m, used * features(m.signals, m.points_lps_mm)) for case, m in found.items() if case.teaches
        ]
        self._fits: dict[frozenset[str], dict[str, float]] = {}

    def model(self, out: frozenset[str] = frozenset()) -> Model:
        """Of the results of all subjects but ``out``: the errors' logarithms by least squares, and quantiles of what is
        left where each result is expected without its own subjects."""
        rest = [known for known in self._known if not known[0] & out and known[1].error_mm is not None]
        expected = [_flat(self._weights(out | its)).errors(x, FEATURES, 0.0)[0] for its, _, x in rest]
        voxels_mm = [np.full(len(x), m.signals.voxel_mm) for _, m, x in rest]
        knots = _knots(*map(np.concatenate, (expected, [m.error_mm for _, m, _ in rest], voxels_mm)))
        return Model(self._weights(out), knots)

    def _weights(self, out: frozenset[str]) -> dict[str, float]:
        if out not in self._fits:
            self._fits[out] = _fitted([(m, x) for its, m, x in self._known if not its & out])
        return self._fits[out]


def _flat(weights: dict[str, float]) -> Model:
    """Without a bound."""
    return Model(weights, ((1.0, 1.0), (2.0, 1.0)))


def _fitted(cases: list[tuple[Measured, np.ndarray]]) -> dict[str, float]:
    """Weights by cases and their features (n, k)."""
    x = np.concatenate([x for _, x in cases])
    errors = [_true(m) for m, _ in cases]
    y = np.log(np.concatenate(errors) + LEAST_MM)
    rows = np.concatenate([np.full(len(e), 1 / len(e)) for e in errors])
    weights, one = _least_squares(x, y, rows / rows.sum())
    # what exp(mean of logarithms) misses of the mean
    expected = np.exp(x @ weights + one)
    one += float(np.log(np.average(np.clip(np.concatenate(errors) / expected, 0, 10), weights=rows)))
    names = dict(zip(FEATURES, (round(float(w), 4) for w in weights), strict=True))
    return {**names, "one": round(one, 4)}


def _true(m: Measured) -> np.ndarray:
    if m.error_mm is None:
        return np.full(len(m.points_lps_mm), UNRELATED_MM)
    return np.minimum(m.error_mm, MOST_MM)


def _least_squares(x: np.ndarray, y: np.ndarray, rows: np.ndarray, ridge: float = 0.01) -> tuple[np.ndarray, float]:
    """Weights (k,), none below 0, and the constant, by coordinate descent; ``rows``: what each row counts, 1 in all."""
    middle = rows @ x
    spread = np.sqrt(rows @ (x - middle) ** 2) + 1e-9
    z, mean = (x - middle) / spread, rows @ y
    a = (z * rows[:, None]).T @ z + ridge * np.eye(len(spread))
    b, w = (z * rows[:, None]).T @ (y - mean), np.zeros(len(spread))
    for _ in range(2000):
        before = w.copy()
        for k in range(len(w)):
            w[k] = max(0.0, w[k] + (b[k] - a[k] @ w) / a[k, k])
        if np.abs(w - before).max() < 1e-7:
            break
    w = w / spread
    return w, float(mean - middle @ w)


def _knots(expected: np.ndarray, errors: np.ndarray, voxels_mm: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Expected errors, and the 95 % quantile of the true error, as far as the voxel does not explain it, in units of
    them, smoothed over a third of the range."""
    order = np.argsort(expected)
    unexplained = np.sqrt(np.maximum(errors**2 - (BLUR * voxels_mm) ** 2, 0))
    expected, ratio = expected[order], (unexplained / expected)[order]
    knots = []
    for share in np.linspace(0.05, 0.95, 10):
        part = slice(int(max(0, share - 0.08) * len(order)), int(min(1, share + 0.08) * len(order)))
        times = max(_LEAST_TIMES, float(np.quantile(ratio[part], 0.95)))
        at = round(float(np.median(expected[part])), 3)
        if not knots or at > knots[-1][0]:  # the largest expected errors are all the same
            knots.append((at, round(times, 3)))
    return tuple(knots)


# ---- the table ---------------------------------------------------------------------------------------------------


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def table(cases: list[Case], cache: Path, model_of: Callable[[Case], Model]) -> dict:
    """Prints a line per case, by its model, and what they come to; returns the figures."""
    rows, pooled = [], []
    print(f"{'case':44} {'true':>6} {'expected':>8} {'bound':>6} {'rank':>5} {'within':>6}  verdict")
    for case in cases:
        m = measured(case, cache)
        if m is None:
            print(f"{case.name:44} refused: the images do not overlap")
            rows.append({"case": case.name, "kind": case.kind, "right": False, "verdict": "refused"})
            continue
        trust = Trust.of(m.signals, m.grid, m.mask, model_of(case))
        estimate = trust.estimate()
        report = judged(m.report, estimate, trust.share_above, m.voxel_mm)
        there = trust.errors_at(m.points_lps_mm)
        row = {
            "case": case.name,
            "kind": case.kind,
            "right": m.right,
            "verdict": report.verdict.outcome,
            "reasons": report.verdict.reasons,
            "expected_mm": estimate.mean,
            "bound_mm": estimate.bound_mean,
            "cpu_s": m.seconds,
        }
        text = f"{'none':>6} {estimate.mean:8.2f} {estimate.bound_mean:6.2f} {'':5} {'':6}"
        if m.error_mm is not None:
            pooled.append((case, there.expected_mm, there.bound_mm, m.error_mm))
            within = float((m.error_mm <= there.bound_mm).mean())
            row |= {
                "true_mm": float(m.error_mm.mean()),
                "expected_there_mm": float(there.expected_mm.mean()),
                "rank": rank_correlation(there.expected_mm, m.error_mm),
                "within": within,
            }
            text = f"{m.error_mm.mean():6.2f} {estimate.mean:8.2f} {estimate.bound_mean:6.2f}"
            text += f" {row['rank']:5.2f} {100 * within:5.0f} %"
        rows.append(row)
        kind = {True: "right", False: "wrong", None: "between"}[m.right]
        print(f"{case.name:44} {text}  {report.verdict.outcome} ({kind}) {report.verdict.reasons[0][:70]}", flush=True)
    figures = _figures(rows, pooled)
    print(json.dumps(figures, indent=1))
    return {"figures": figures, "rows": rows}


def _figures(rows: list[dict], pooled: list) -> dict:
    right, wrong = ([row for row in rows if row["right"] is kind] for kind in (True, False))
    figures: dict = {
        "right": len(right),
        "right that pass": sum(row["verdict"] == PASS for row in right),
        "wrong": len(wrong),
        "wrong that pass": sum(row["verdict"] == PASS for row in wrong),
        "wrong that fail": sum(row["verdict"] in (FAIL, "refused") for row in wrong),
        "wrong to check": sum(row["verdict"] == CHECK for row in wrong),
    }
    landmarks = [entry for entry in pooled if entry[0].landmarks]
    alike = [entry for entry in pooled if entry[0].state not in ("mirrored", "cut")]
    for name, entries in (("all", pooled), ("all but mirrored and cut", alike), ("landmarks", landmarks)):
        if entries:
            expected, bound, error = (np.concatenate([e[k] for e in entries]) for k in (1, 2, 3))
            figures[f"rank correlation, {name}"] = round(rank_correlation(expected, error), 3)
            figures[f"within the bound, {name}"] = round(float((error <= bound).mean()), 3)
    known = [row for row in right if "true_mm" in row]
    figures["right, by kind"] = {
        kind: _of_kind([row for row in known if row["kind"] == kind])
        for kind in dict.fromkeys(row["kind"] for row in known)
    }
    return figures


def _of_kind(rows: list[dict]) -> dict:
    """What right results of a kind come to, as means."""
    true, expected, there, within, rank = (
        np.array([row[name] for row in rows])
        for name in ("true_mm", "expected_mm", "expected_there_mm", "within", "rank")
    )
    return {
        "pass": f"{sum(row['verdict'] == PASS for row in rows)} of {len(rows)}",
        "true mm": round(float(true.mean()), 3),
        "expected mm in the region": round(float(expected.mean()), 3),
        "expected by true at the points, geometric mean": round(float(np.exp(np.log(there / true).mean())), 3),
        "within the bound": round(float(within.mean()), 3),
        "rank correlation": round(float(rank.mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("trust-cache"), help="folder for registrations")
    parser.add_argument("--calibrate", action="store_true", help="write the model of all results that teach")
    parser.add_argument("--without", nargs="+", default=[], choices=FEATURES, help="signals that are left out")
    parser.add_argument("--in-use", action="store_true", help="judge by nephi's own model and fit none")
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="judge these instead: a pair, a state")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    if options.calibrate and (options.without or options.in_use):
        parser.error("--calibrate goes with neither --without nor --in-use")
    if options.without and options.in_use:
        parser.error("--without does not go with --in-use")
    if options.in_use:

        def model_of(case: Case) -> Model:
            return MODEL
    else:
        known = {case: measured(case, options.cache) for case in (*CALIBRATION, *JUDGED)}
        calibration = Calibration({case: m for case, m in known.items() if m is not None}, options.without)
        of_subjects = cache(calibration.model)

        def model_of(case: Case) -> Model:
            return of_subjects(case.subjects)

    if options.calibrate:
        model = calibration.model()
        target = Path(nephi.measure.calibration.__file__).with_suffix(".json")
        text = {"made_by": "python -m benchmarks.trust --calibrate", "weights": model.weights, "knots": model.knots}
        target.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        print(f"written to {target}")
    found = {}
    named = [Case(*name.split(" ", 1)) for name in options.cases]
    for name, cases in [("named", named)] if named else [("generated", CALIBRATION), ("judged", JUDGED)]:
        print(f"{name}:")
        shown = [case for case in cases if not options.only or options.only in case.name]
        found[name] = table(shown, options.cache, model_of)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
