"""What NePhi says of its own results, against the truth: verdicts, expected errors and their bounds.

A result is *right* where its true error is at most 2 mm on average and above 5 mm at no more than 5 % of the points
(or the longest side of a voxel, where that is more), *wrong* where it is above 3 mm on average, above 5 mm at more than
10 % of the points, or where nothing corresponds; what lies between is neither. Generated pairs are asked at 300
points of the lungs, the others at their landmarks; the bounds count at the landmarks of the pairs of ``PAIRS``.

    python -m benchmarks.trust                 # the table of the cases that took no part in the calibration
    python -m benchmarks.trust --calibrate     # writes nephi/measure/calibration.json anew, and its own table
    python -m benchmarks.trust --calibrate --without strain    # that table of a model without a signal; writes nothing
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Collection
from dataclasses import dataclass
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
_FOLDS = 7  # of the pairs of the calibration
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


def calibrated(pairs: dict[str, list[Measured]], without: Collection[str] = ()) -> tuple[Model, dict[str, Model]]:
    """The model that fits these results, by pair: their errors' logarithms by least squares, and quantiles of what is
    left where a pair took no part in the fit; and for each pair the model that it took no part in.

    Each case counts alike. No weight is negative: more of a signal never means less error. Those of the features
    ``without`` are 0.
    """
    folds = {name: i % _FOLDS for i, name in enumerate(sorted(pairs))}
    used = np.array([name not in without for name in FEATURES], float)
    cases = [
        (folds[name], m, used * features(m.signals, m.points_lps_mm)) for name, found in pairs.items() for m in found
    ]
    models = [_fitted([(m, x) for its, m, x in cases if its != fold]) for fold in range(_FOLDS)]
    expected = [models[its].errors(x, FEATURES, 0.0)[0] for its, _, x in cases]
    errors = [_true(m) if m.error_mm is None else m.error_mm for _, m, _ in cases]
    voxels_mm = [np.full(len(m.points_lps_mm), m.signals.voxel_mm) for _, m, _ in cases]
    knots = _knots(*map(np.concatenate, (expected, errors, voxels_mm)))
    left_out = {name: Model(models[fold].weights, knots) for name, fold in folds.items()}
    return Model(_fitted([(m, x) for _, m, x in cases]).weights, knots), left_out


def _fitted(cases: list[tuple[Measured, np.ndarray]]) -> Model:
    """Of cases and their features (n, k); without a bound."""
    x = np.concatenate([x for _, x in cases])
    errors = [_true(m) for m, _ in cases]
    y = np.log(np.concatenate(errors) + LEAST_MM)
    rows = np.concatenate([np.full(len(e), 1 / len(e)) for e in errors])
    weights, one = _least_squares(x, y, rows / rows.sum())
    # what exp(mean of logarithms) misses of the mean
    expected = np.exp(x @ weights + one)
    one += float(np.log(np.average(np.clip(np.concatenate(errors) / expected, 0, 10), weights=rows)))
    names = dict(zip(FEATURES, (round(float(w), 4) for w in weights), strict=True))
    return Model({**names, "one": round(one, 4)}, ((1.0, 1.0), (2.0, 1.0)))


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
        for k in range(len(w)):
            w[k] = max(0.0, w[k] + (b[k] - a[k] @ w) / a[k, k])
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
        knots.append((round(float(np.median(expected[part])), 3), round(times, 3)))
    return tuple(knots)


# ---- the table ---------------------------------------------------------------------------------------------------


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def table(cases: list[Case], cache: Path, models: dict[str, Model]) -> dict:
    """Prints a line per case and what they come to; returns the figures. ``models``: of pairs, others than nephi's."""
    rows, pooled = [], []
    print(f"{'case':44} {'true':>6} {'expected':>8} {'bound':>6} {'rank':>5} {'within':>6}  verdict")
    for case in cases:
        m = measured(case, cache)
        if m is None:
            print(f"{case.name:44} refused: the images do not overlap")
            rows.append({"case": case.name, "right": False, "verdict": "refused"})
            continue
        trust = Trust.of(m.signals, m.grid, m.mask, models.get(case.pair, MODEL))
        estimate = trust.estimate()
        report = judged(m.report, estimate, trust.share_above, m.voxel_mm)
        there = trust.errors_at(m.points_lps_mm)
        row = {
            "case": case.name,
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
    for name, entries in (("all", pooled), ("landmarks", landmarks)):
        if entries:
            expected, bound, error = (np.concatenate([e[k] for e in entries]) for k in (1, 2, 3))
            figures[f"rank correlation, {name}"] = round(rank_correlation(expected, error), 3)
            figures[f"within the bound, {name}"] = round(float((error <= bound).mean()), 3)
    known = [row for row in right if "true_mm" in row]
    if known:
        figures["right: true by expected, geometric mean"] = round(
            float(np.exp(np.mean([np.log(row["true_mm"] / row["expected_mm"]) for row in known]))), 3
        )
        figures["right: within the bound, mean"] = round(float(np.mean([row["within"] for row in known])), 3)
        figures["right: rank correlation, mean"] = round(float(np.mean([row["rank"] for row in known])), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("trust-cache"), help="folder for registrations")
    parser.add_argument("--calibrate", action="store_true", help="fit the model anew and write it")
    parser.add_argument("--without", nargs="+", default=[], choices=FEATURES, help="signals that are left out")
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    if options.without and not options.calibrate:
        parser.error("--without needs --calibrate")
    cases, models = JUDGED, {}
    if options.calibrate:
        pairs: dict[str, list[Measured]] = {}
        for case in CALIBRATION:
            found = measured(case, options.cache)
            pairs.setdefault(case.pair, []).extend([] if found is None else [found])
        model, models = calibrated(pairs, options.without)
        if not options.without:
            target = Path(nephi.measure.calibration.__file__).with_suffix(".json")
            text = {"made_by": "python -m benchmarks.trust --calibrate", "weights": model.weights, "knots": model.knots}
            target.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
            print(f"written to {target}")
        print("each pair by a model that it took no part in:")
        cases = CALIBRATION
    cases = [case for case in cases if not options.only or options.only in case.name]
    found = table(cases, options.cache, models)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
