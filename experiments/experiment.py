"""What the experiments share: their form, their command line, their CSV and their figures.

An experiment is a module of this package with an ``ABOUT`` and four functions: ``run(device, **sizes[size])`` gives the
rows of the CSV, ``draw(rows)`` the figure, ``table(rows)`` the rows to print and ``reading(rows)`` how ours compares.
``python -m experiments NAME --out DIR --size SIZE`` writes DIR/NAME.csv and DIR/NAME.png, and ``results.py`` puts all
of them on one page.
"""

from __future__ import annotations

import argparse
import csv
import io
import pkgutil
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from matplotlib.figure import Figure
from nephi.errors import NephiError
from nephi.learning.model import Model
from nephi.learning.settings import TrainSettings
from nephi.learning.state import MODEL
from nephi.learning.train import train
from PIL import Image  # matplotlib's own

SIZES = ("mini", "reduced", "full")  # seconds; a few minutes on two cores; the paper's, for a GPU
Rows = list[dict]


@dataclass(frozen=True)
class About:
    """An experiment in words, and the arguments of its ``run`` by size.

    ``data`` says what is measured on, ``published`` what the paper shows, ``full`` what ``--size full`` changes.
    ``real``: it needs the real images.
    """

    order: int
    title: str
    data: str
    published: str
    full: str
    sizes: dict[str, dict]
    real: bool = False


class Experiment:
    """The experiment that a module of this package describes."""

    def __init__(self, module: ModuleType):
        self.name = module.__name__.rpartition(".")[2]
        self.about: About = module.ABOUT
        self.run, self.draw, self.table, self.reading = module.run, module.draw, module.table, module.reading


def experiments() -> list[Experiment]:
    """All of this package, in the order of their numbers."""
    package = __package__ or "experiments"
    names = [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name != "__main__"]
    modules = [import_module(f"{package}.{name}") for name in names]
    found = [Experiment(module) for module in modules if hasattr(module, "ABOUT")]
    return sorted(found, key=lambda experiment: experiment.about.order)


def main(arguments: list[str] | None = None) -> int:
    known = {experiment.name: experiment for experiment in experiments()}
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Repeats one of the paper's experiments."
    )
    parser.add_argument("name", choices=known)
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV and the figure")
    parser.add_argument("--size", choices=SIZES, default="reduced")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    experiment = known[options.name]
    try:
        rows = experiment.run(torch.device(options.device), **experiment.about.sizes[options.size])
    except (NephiError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and options.device == "cpu":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.out / f"{experiment.name}.csv")
    # what was written is what is drawn, so that the figure can be made again from the CSV
    save(experiment.draw(read_csv(options.out / f"{experiment.name}.csv")), options.out / f"{experiment.name}.png")
    return 0


def trained(settings: TrainSettings, steps: int, folder: Path, device: torch.device) -> Model:
    """A model after this many steps of training in ``folder``; the last state is the one that is kept."""
    settings = replace(
        settings,
        fit=replace(settings.fit, iterations=steps),
        validate_every=steps,
        validation_pairs=1,
        save_every=steps,
    )
    train(settings, folder, device)
    return Model.load(folder / MODEL, device)


def write_csv(rows: Rows, path: Path) -> None:
    """Numbers with five digits: what is beyond is noise."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path) -> Rows:
    """Rows with numbers where there are some; raises NephiError for a file that is not there."""
    if not path.is_file():
        raise NephiError(f"{path} is missing: run python -m experiments {path.stem} --out {path.parent}")
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _number(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def select(rows: Rows, **values) -> Rows:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def column(rows: Rows, key: str) -> list:
    return [row[key] for row in rows]


def mean(rows: Rows, key: str) -> float:
    values = column(rows, key)
    return sum(values) / len(values)


def panels(columns: int, rows: int = 1, width: float = 3.4, height: float = 2.7):
    """A figure and its axes (rows * columns), in the style of all."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.3)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """A PNG of few colours, as lines and letters need no more."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
