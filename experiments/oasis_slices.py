"""2D brain slices (OASIS): a model trained on pairs of 80 of them, scored on pairs of the other 20."""

from __future__ import annotations

import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nephi.config import decode
from nephi.errors import NephiError
from nephi.learning.dataset import open_data
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.settings import TrainSettings
from nephi.settings import FitSettings

from benchmarks.optimise import Start, optimise
from benchmarks.pairs import data_folder

from .experiment import About, Rows, column, mean, panels, select, trained

TRAINED, ALL = 80, 100
STATES = ("before", "prediction", "optimised", "from scratch")
SETTINGS = {
    "model": {
        "dimension": 2,
        "half_size_mm": 64.0,
        "cube_margin_mm": 0.0,
        "align": "none",
        "field": {
            "width": 64,
            "frequencies": 32,
            "wavelength_mm": 64.0,
            "global_code": 32,
            "local_code": 32,
            "code_degree": 1,
            "linear": True,
        },
        "encoder": {"size": 128, "local_level": 2, "context": True},
        "similarity": {
            "name": "ncc",
            "points": 400,
            "blurs": [0.0, 2.0],
            "window": [0.0, 1.0],
        },
        "features": {"spacing_mm": 1.0},
    },
    "fit": {"learning_rate": 0.001, "beta2": 0.99},
    "regularity": {"weight": 0.3},
    "batch": 8,
    "augmentation": {"rotation_deg": 5.0, "scale": 0.05, "shift": 0.03},
}


def slices() -> list[Path]:
    folder = data_folder() / "brain_2d"
    files = sorted(folder.glob("*.nrrd"))
    if len(files) < ALL:
        raise NephiError(f"{folder} holds {len(files)} slices, {ALL} are needed: set NEPHI_DATA to the data folder")
    return files[:ALL]


def write_list(path: Path, files: list[Path], count: int, seed: int) -> Path:
    """``count`` random pairs of different slices as a list for training."""
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "fixed", "moving"])
        for k in range(count):
            fixed, moving = rng.choice(len(files), 2, replace=False)
            writer.writerow([f"pair{k:04d}", files[fixed], files[moving]])
    return path


def run(device: torch.device, train_pairs: int, train_steps: int, scored: int, steps: int) -> Rows:
    files, rows = slices(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = decode(TrainSettings(), SETTINGS)
        settings = replace(
            settings,
            data=str(write_list(folder / "training.csv", files[:TRAINED], train_pairs, 0)),
            validation=str(write_list(folder / "scored.csv", files[TRAINED:], scored, 1)),
        )
        model = trained(settings, train_steps, folder, device)
        data = open_data(settings.validation, settings.model, folder / "cache", True)
        for k in range(len(data)):
            sample = data[k].to(device)
            nothing = Start.fresh(model.settings.field, sample, 2, model.settings.half_size_mm)
            predicted = Start.predicted(model, sample)
            fresh = Start.fresh(
                model.settings.field, sample, predicted.maps.code.size[0], model.settings.half_size_mm, k
            )
            fit = FitSettings(iterations=steps, learning_rate=3e-3, seed=k)
            how = model.settings.similarity, settings.regularity, fit
            ends = [optimise(start, sample, *how) for start in (predicted, fresh)]
            for state, start in zip(STATES, (nothing, predicted, *ends), strict=True):
                rows.append({"pair": sample.name, "state": state, "ncc": ncc(start, sample), **start.measure(sample)})
    return rows


@torch.no_grad()
def ncc(start: Start, sample: PairTensors) -> float:
    """Correlation over all pixels of the fixed image with the moving one seen through the forward map."""
    warped = sample.at(sample.scaled.moving, start.maps.forward(sample.voxel_centres()))
    return float(np.corrcoef(sample.scaled.fixed.reshape(-1).cpu(), warped.cpu())[0, 1])


def draw(rows: Rows):
    figure, (similar, folds) = panels(2)
    for axes, key, name in ((similar, "ncc", "NCC"), (folds, "folds_percent", "folds [% of pixels]")):
        axes.boxplot(
            [column(select(rows, state=state), key) for state in STATES],
            tick_labels=[s.replace(" ", "\n") for s in STATES],
        )
        axes.tick_params(axis="x", labelsize=8)
        axes.set_ylabel(name)
    folds.set_ylim(bottom=0)
    return figure


def table(rows: Rows) -> Rows:
    out = []
    for state in STATES:
        mine = select(rows, state=state)
        out.append(
            {
                "state": state,
                "pairs": len(mine),
                "NCC": f"{mean(mine, 'ncc'):.4f}",
                "least NCC": f"{min(column(mine, 'ncc')):.4f}",
                "folds [%]": f"{mean(mine, 'folds_percent'):.4f}",
                "pairs with folds": sum(value > 0 for value in column(mine, "folds_percent")),
            }
        )
    return out


def reading(rows: Rows) -> str:
    at = {state: mean(select(rows, state=state), "ncc") for state in STATES}
    folds = {state: mean(select(rows, state=state), "folds_percent") for state in STATES}
    return (
        f"The prediction alone raises the correlation from {at['before']:.3f} to {at['prediction']:.3f}, the "
        f"optimisation from there to {at['optimised']:.3f}; as many steps from scratch reach "
        f"{at['from scratch']:.3f}. Folds: {folds['prediction']:.3f}, {folds['optimised']:.3f} and "
        f"{folds['from scratch']:.3f} % of the pixels."
    )


ABOUT = About(
    order=9,
    title="2D brain slices: prediction and optimisation",
    data=(
        "100 slices of OASIS brains, 128 x 128 at 1 mm: a model trained on random pairs of the first 80, scored on "
        "random pairs of the last 20, without any alignment. The weights are not kept."
    ),
    published="The paper has no such experiment in 2D (its brains are 3D).",
    full="More training pairs and steps.",
    sizes={
        "mini": {"train_pairs": 3, "train_steps": 2, "scored": 2, "steps": 3},
        "reduced": {"train_pairs": 200, "train_steps": 500, "scored": 12, "steps": 100},
        "full": {"train_pairs": 5000, "train_steps": 20_000, "scored": 200, "steps": 400},
    },
    real=True,
)
