"""Interpolation between the codes of two pairs, of the global and of the local one apart (Fig. 9)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nephi.learning.dataset import Shapes
from nephi.learning.model import Model
from nephi.learning.pair_tensors import PairTensors
from nephi.learning.validate import folds_percent, mapped
from nephi.maps.code import Code
from nephi.maps.maps import FieldMap
from torch import Tensor

from .experiment import About, Rows, column, mean, panels, select, trained
from .shapes2d import training

SHIPPED, PUBLISHED = "all deeper maps", "one map"  # what the encoder makes the local code from
PARTS = ("affine", "rest", "whole")
NODES = 13  # of the deformed grid in the figure, per side
DRAWN = (0.0, 0.5, 1.0)  # mixtures in the figure


def run(device: torch.device, count: int, ratios: int, train_steps: int, batch: int) -> Rows:
    """A row for each model, each two pairs, and each ratio of the global and of the local code: the part of the way
    from the first pair's map to the last one's that is gone, of the maps' affine parts, of what remains, and of the
    whole; for the first two pairs also the deformed grid."""
    models = {
        SHIPPED: Model.load("shapes2d-hollow", device),
        PUBLISHED: as_published(device, train_steps, batch),
    }
    steps, rows = [k / (ratios - 1) for k in range(ratios)], []
    for name, model in models.items():
        for k, samples in enumerate(two_pairs(model, count)):
            samples = [sample.to(device) for sample in samples]
            codes = [model.predict(sample).code for sample in samples]
            points = samples[0].voxel_centres()
            ends = [split(points, mapped(FieldMap(model.fields, code), points) - points) for code in codes]
            for of_global in steps:
                for of_local in steps:
                    maps = FieldMap(model.fields, between(*codes, of_global, of_local))
                    parts = split(points, mapped(maps, points) - points)
                    row = {"local code from": name, "pairs": k, "global": of_global, "local": of_local}
                    row["folds_percent"] = folds_percent(maps, samples[0])
                    for part_name, part, first, last in zip(PARTS, parts, *ends, strict=True):
                        way = last - first
                        row[part_name] = float(((part - first) * way).sum() / way.square().sum())
                    shown = k == 0 and {of_global, of_local} <= set(DRAWN)
                    rows.append({**row, "grid": deformed_grid(maps, device) if shown else ""})
    return rows


def as_published(device: torch.device, steps: int, batch: int) -> Model:
    """A model whose local code comes from one map of the encoder, as in the paper, trained for a few steps."""
    settings = training("hollow")
    encoder = replace(settings.model.encoder, context=False, local_level=3)
    settings = replace(
        settings,
        model=replace(settings.model, encoder=encoder),
        batch=batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        return trained(settings, steps, Path(folder), device)


def two_pairs(model: Model, count: int) -> list[tuple[PairTensors, PairTensors]]:
    """The first pairs of the training set, two and two, as the paper takes them."""
    data = Shapes(True, model.settings, validation=False, count=2 * count)
    return [(data[2 * k], data[2 * k + 1]) for k in range(count)]


def between(first: Code, last: Code, of_global: float, of_local: float) -> Code:
    return Code(
        torch.lerp(first.global_code, last.global_code, of_global),
        torch.lerp(first.local_code, last.local_code, of_local),
        first.half_extents_cube,
    )


def split(points: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a displacement (n, d): the affine map that fits it best, what remains, and the whole."""
    basis = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    affine = basis @ torch.linalg.lstsq(basis, displacement).solution
    return affine, displacement - affine, displacement


def deformed_grid(maps: FieldMap, device: torch.device) -> str:
    """Where the nodes of a regular grid go: x and y in thousandths of the cube's unit, node after node."""
    axis = torch.linspace(-1, 1, NODES, device=device)
    nodes = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return " ".join(str(round(1000 * value)) for value in mapped(maps, nodes).reshape(-1).tolist())


def draw(rows: Rows):
    """For each model: deformed grids between the first two maps, and how far the maps have come, over all."""
    models, side = list(dict.fromkeys(column(rows, "local code from"))), len(DRAWN)
    figure, axes = panels(2 * side, len(models) * 2, 1.35, 2.0)
    for one in axes:
        one.remove()
    cells = figure.add_gridspec(side * len(models), 2 * side)
    for block, name in enumerate(models):
        mine = select(rows, **{"local code from": name})
        for line, of_local in enumerate(reversed(DRAWN)):
            for place, of_global in enumerate(DRAWN):
                one = figure.add_subplot(cells[block * side + line, place])
                (row,) = select(mine, pairs=0, **{"global": of_global, "local": of_local})
                grid = np.array(row["grid"].split(), float).reshape(NODES, NODES, 2) / 1000
                for lines in (grid, grid.swapaxes(0, 1)):
                    one.plot(lines[..., 0].T, lines[..., 1].T, color="#1f5f8b", linewidth=0.5)
                one.set(xlim=(-1.3, 1.3), ylim=(1.3, -1.3), xticks=[], yticks=[], aspect="equal")
                one.set_title(f"global {of_global:g}, local {of_local:g}", fontsize=6)
        curves = figure.add_subplot(cells[block * side : (block + 1) * side, side:])
        for moved, still, style in (("global", "local", "o-"), ("local", "global", "s--")):
            for part, colour in zip(PARTS[:2], ("tab:blue", "tab:orange"), strict=True):
                steps = sorted(set(column(mine, moved)))
                way = [mean(select(mine, **{moved: step, still: 0}), part) for step in steps]
                curves.plot(steps, way, style, color=colour, label=f"{part}, {moved} code exchanged", markersize=4)
        curves.set_title(f"local code from {name}", fontsize=9)
        curves.set(xlabel="ratio of the code that is exchanged", ylabel="part of the way", ylim=(-0.1, 1.1))
        curves.grid(alpha=0.3)
        curves.legend(fontsize=7)
    return figure


def corners(rows: Rows, part: str) -> tuple[float, float]:
    """Part of the way with the global code exchanged alone, and with the local one."""
    return mean(select(rows, **{"global": 1, "local": 0}), part), mean(select(rows, **{"global": 0, "local": 1}), part)


def table(rows: Rows) -> Rows:
    return [
        {
            "local code from": model,
            "of the map": part_name,
            "global code exchanged": f"{100 * corners(select(rows, **{'local code from': model}), part)[0]:.0f} %",
            "local code exchanged": f"{100 * corners(select(rows, **{'local code from': model}), part)[1]:.0f} %",
        }
        for model in (PUBLISHED, SHIPPED)
        for part, part_name in zip(PARTS, ("affine part", "what remains", "whole displacement"), strict=True)
    ]


def reading(rows: Rows) -> str:
    shipped, published = (select(rows, **{"local code from": name}) for name in (SHIPPED, PUBLISHED))
    return (
        "Maps change smoothly between both pairs. With the local code from one map of the encoder, as published, the "
        f"global code carries {100 * corners(published, 'affine')[0]:.0f} % of the way of the affine part and "
        f"{100 * corners(published, 'rest')[0]:.0f} % of that of the rest: the published trend. The model that comes "
        f"with NePhi is another case: its global code carries {100 * corners(shipped, 'affine')[0]:.0f} and "
        f"{100 * corners(shipped, 'rest')[0]:.0f} %. The reason is its encoder, which makes the local code from all "
        "deeper maps (`context`): a local code that sees the whole image leaves the global one little to say. Folds "
        f"over all mixtures: {mean(published, 'folds_percent'):.3f} and {mean(shipped, 'folds_percent'):.3f} %."
    )


ABOUT = About(
    order=8,
    title="Interpolation of the latent space",
    data=(
        "Training pairs of hollow shapes, two and two; `shapes2d-hollow`, and a model trained for a few hundred steps "
        "whose local code comes from one map of the encoder, as in the paper. A displacement is split into the affine "
        "map that fits it best and what remains. The table shows how much of the way from the first pair's map to the "
        "second one's is gone when only the global or only the local code is exchanged (projected on the difference of "
        "both maps; 100 % is the whole way), as a mean over the twos."
    ),
    published=(
        "Fig. 9, one example: maps change smoothly between both pairs, and with the global code the global deformation "
        "becomes more and more that of the second pair, so that both codes hold different levels."
    ),
    full="More pairs, and the second model trained as long as the first.",
    sizes={
        "mini": {"count": 1, "ratios": 3, "train_steps": 2, "batch": 2},
        "reduced": {"count": 6, "ratios": 5, "train_steps": 300, "batch": 16},
        "full": {"count": 500, "ratios": 5, "train_steps": 5000, "batch": 16},
    },
)
