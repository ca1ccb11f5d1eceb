"""How well a model registers the validation pairs of triangles and circles.

    python -m benchmarks.shapes2d_score --model shapes2d-solid --steps 100 --pairs 1000 --out results

Dice and folds before, of the prediction alone, and after some optimisation steps from it, over the first pairs of
the validation set; folds are pixels whose exact Jacobian determinant is not above 0. The optimisation minimises what
the training did. Prints a table and, with --out, writes shapes.csv with one line per pair.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nephi.config import decode
from nephi.errors import NephiError
from nephi.learning.dataset import SHAPES, Shapes
from nephi.learning.model import Model, about
from nephi.learning.validate import overlap
from nephi.settings import FitSettings, RegularitySettings

from .optimise import Start, optimise

STATES = ("before", "prediction", "optimised")


def score(model: Model, data: Shapes, pairs: int, regularity: RegularitySettings, fit: FitSettings) -> list[dict]:
    """One row per pair and state."""
    rows = []
    for k in range(pairs):
        sample = data[k]
        before = {"dice": overlap(sample.labels, sample, sample.voxel_centres()), "folds_percent": 0.0}
        prediction = Start.predicted(model, sample)
        results = {"before": before, "prediction": prediction.measure(sample)}
        if fit.iterations:
            done = optimise(prediction, sample, model.settings.similarity, regularity, fit)
            results["optimised"] = done.measure(sample)
        rows += [{"pair": k, "state": state, **values} for state, values in results.items()]
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| state | pairs | Dice | least Dice | folds [%] | pairs with folds |", "|---|---:|---:|---:|---:|---:|"]
    for state in STATES:
        mine = [row for row in rows if row["state"] == state]
        if mine:
            dice, folds = (np.array([row[key] for row in mine]) for key in ("dice", "folds_percent"))
            lines.append(
                f"| {state} | {len(mine)} | {dice.mean():.3f} | {dice.min():.3f} | {folds.mean():.4f} "
                f"| {np.count_nonzero(folds)} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="shapes2d-solid, shapes2d-hollow, or a model file")
    parser.add_argument("--data", choices=SHAPES, help="by default what the model was trained on")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=0, help="of the optimisation from the prediction")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        model = Model.load(options.model)
        trained = about(options.model)["settings"]
        regularity = decode(RegularitySettings(), trained["regularity"])
        hollow = (options.data or trained["data"]) == SHAPES[1]
        data = Shapes(hollow, model.settings, validation=True, count=options.pairs)
    except NephiError as error:
        print(error, file=sys.stderr)
        return 2
    fit = replace(FitSettings(), iterations=options.steps, learning_rate=options.learning_rate)
    started = time.perf_counter()
    rows = score(model, data, options.pairs, regularity, fit)
    print(table(rows))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        with open(options.out / "shapes.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["pair", "state", "dice", "folds_percent"])
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
