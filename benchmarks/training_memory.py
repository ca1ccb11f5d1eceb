"""Peak memory of one training step against image size: nephi against GradICON under the same loss.

    python -m benchmarks.training_memory --sizes 87 128 175 --out results

Run it with the peers' Python (``requirements.txt``). Each case is a process of its own. A step is the forward and the
backward pass over one pair and the change of the weights, with Adam's moments in place: 1 - NCC in both directions and
gradient inverse consistency of the same weight, batch 1.

- nephi: as ``nephi train`` does by itself (published encoder; 1,000 points compared, 64 regularised), by NCC
- nephi_paper: the paper's fields and sampling (2 % of the voxels, at most 100,000; 0.01 %)
- gradicon: one network of its authors' package, at all voxels
- gradicon_multi: the four networks of the package's lung model

No augmentation. Memory is the process's peak resident size, on the CPU, above what it held after the imports:
images, weights, gradients and Adam's moments included. Writes training_memory.csv, .md and .png.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import environment

METHODS = ("nephi", "nephi_paper", "gradicon", "gradicon_multi")
COLUMNS = ("method", "size", "parameters", "peak_mb", "part_of_gradicon", "part_of_gradicon_multi")
SIZES = (87, 128, 175)
LEAST_SIZE = 65  # six halvings in the published encoder, with batch norm over more than one voxel


def nephi_step(images, as_published: bool) -> tuple[object, Callable]:
    """The model and the loss of a step of ``nephi train``; images (z, y, x), fixed and moving."""
    import torch
    from nephi.fitting.objective import Objective
    from nephi.learning.model import Model
    from nephi.learning.pair_tensors import PairTensors
    from nephi.learning.settings import PublishedSettings, TrainSettings
    from nephi.maps.maps import FieldMap
    from nephi.settings import PRESETS, IntensitySettings

    from .baselines.gradicon import WEIGHT

    size, base, paper = images[0].shape[0], TrainSettings(), PRESETS["paper"]
    encoder = PublishedSettings(size=size)
    settings = replace(base.model, encoder=encoder, similarity=IntensitySettings("ncc"))
    regularity = replace(base.regularity, weight=WEIGHT)
    if as_published:
        settings = replace(settings, field=paper.field, features=paper.levels[0].features, similarity=paper.similarity)
        regularity = replace(paper.regularity, weight=WEIGHT)
    model = Model(settings, torch.Generator().manual_seed(0)).train()
    points = torch.Generator().manual_seed(0)
    objective = Objective(settings.similarity, regularity, settings.half_size_mm, points)
    sample = PairTensors(
        name="",
        intensities=images,
        masks=None,
        distances=None,
        half_extents_cube=torch.ones(3),
        lower_cube=-torch.ones(3),
        spacing_cube=2 / (size - 1),
        similarity=settings.similarity,
        dilation=settings.features.dilation,
    )
    return model, lambda: objective(FieldMap(model.fields, model.codes([sample])[-1]), [sample.volumes])[0]


def gradicon_step(images, multi: bool) -> tuple[object, Callable]:
    import icon_registration

    from .baselines.gradicon import GradICON

    network = GradICON(multi, images[0].shape[0], icon_registration.NCC()).train()
    fixed, moving = (image[None, None] for image in images)
    return network, lambda: network.loss(moving, fixed)[0]


def run(method: str, size: int) -> dict:
    """One case; the process it runs in must not have done anything else."""
    import torch

    if method.startswith("gradicon"):
        import icon_registration  # noqa: F401
    from nephi.device import peak_memory_mb

    from .baselines import gradicon  # noqa: F401  the core comes with it

    torch.manual_seed(0)
    before = peak_memory_mb()
    images = tuple(torch.rand(size, size, size) for _ in range(2))
    if method.startswith("nephi"):
        model, loss = nephi_step(images, as_published=method == "nephi_paper")
    else:
        model, loss = gradicon_step(images, multi=method == "gradicon_multi")
    adam = torch.optim.Adam(model.parameters(), 1e-5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()  # by nothing: from now on there are moments, as in every step but the first
    adam.zero_grad()
    loss().backward()
    adam.step()
    parameters = sum(p.numel() for p in model.parameters())
    return {"method": method, "size": size, "parameters": parameters, "peak_mb": peak_memory_mb() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(options.child[0], int(options.child[1]))))
        return
    if min(options.sizes) < LEAST_SIZE:
        parser.error(f"--sizes must be {LEAST_SIZE} or more: the encoder halves them six times")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in options.sizes:
        for method in options.methods:
            command = [sys.executable, "-m", "benchmarks.training_memory", "--child", method, str(size)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{method} {size}: {done.stderr[-500:]}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    write(rows, options.out)


def write(rows: list[dict], out: Path) -> None:
    peak = {(row["method"], row["size"]): row["peak_mb"] for row in rows}
    for row in rows:
        for other in ("gradicon", "gradicon_multi"):
            most = peak.get((other, row["size"]))
            row[f"part_of_{other}"] = row["peak_mb"] / most if most else None
    with open(out / "training_memory.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    methods, sizes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "size"))
    lines = [
        "| voxels per side | " + " | ".join(f"{m} [MB]" for m in methods) + " |",
        "|---:" * (len(methods) + 1) + "|",
    ]
    lines += [f"| {size} | " + " | ".join(f"{peak[m, size]:.0f}" for m in methods) + " |" for size in sizes]
    (out / "training_memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for method in methods:
        (line,) = axes.plot(sizes, [peak[method, s] for s in sizes], "o-", label=method)
        if method.startswith("gradicon"):
            fifth = [peak[method, s] / 5 for s in sizes]
            axes.plot(sizes, fifth, ":", color=line.get_color(), label=f"a fifth of {method}")
    axes.set(xlabel="voxels per side", ylabel="peak memory of a training step [MB]", xscale="log", yscale="log")
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(out / "training_memory.png", dpi=130)


if __name__ == "__main__":
    main()
