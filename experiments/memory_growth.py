"""Peak memory against image size, in training and in the optimisation of one pair, voxels and NePhi (Fig. 3)."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from nephi.errors import NephiError

from benchmarks import environment

from .experiment import About, Rows, column, panels, select

NAMES = {"nephi": "NePhi", "nephi_paper": "NePhi, published sizes", "voxel": "voxel field",
         "features": "features alone", "gradicon": "GradICON", "gradicon_multi": "GradICON (multi)"}  # fmt: skip


def run(device: torch.device, sizes: tuple[int, ...], training: tuple[int, ...]) -> Rows:
    """On the CPU whatever ``device``: it is the resident size of a process that is measured."""
    peers = os.environ.get("NEPHI_PEER_PYTHON")
    if training and peers is None:
        raise NephiError("GradICON is measured, too: set NEPHI_PEER_PYTHON (benchmarks/requirements.txt)")
    rows = []
    if sizes:
        found = table_of("memory", sizes, sys.executable, "--iterations", "5")
        rows += [row | {"where": "optimisation"} for row in found]
    if training:
        found = table_of("training_memory", training, peers)
        rows += [row | {"where": "training"} for row in found]
    return [{key: row[key] for key in ("where", "method", "size", "peak_mb")} for row in rows]


def table_of(benchmark: str, sizes: tuple[int, ...], python: str, *more: str) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", f"benchmarks.{benchmark}", "--sizes", *map(str, sizes), *more, "--out", folder]
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
        with open(Path(folder) / f"{benchmark}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return [row | {"size": int(row["size"]), "peak_mb": float(row["peak_mb"])} for row in rows]


def lines(rows: Rows, where: str) -> dict[str, dict[int, float]]:
    mine = select(rows, where=where)
    return {
        method: {row["size"]: row["peak_mb"] for row in select(mine, method=method)}
        for method in dict.fromkeys(column(mine, "method"))
    }


def draw(rows: Rows):
    wheres = list(dict.fromkeys(column(rows, "where")))
    figure, axes = panels(len(wheres), width=4.2, height=3.2)
    for one, where in zip(axes, wheres, strict=True):
        for method, line in lines(rows, where).items():
            one.plot(list(line), list(line.values()), "o-", label=NAMES[method])
        one.set(title=where, xlabel="voxels per side", ylabel="peak memory [MB]", xscale="log", yscale="log")
        one.set_xticks(list(line), [str(size) for size in line])
        one.minorticks_off()
        one.legend(fontsize=7)
    return figure


def table(rows: Rows) -> Rows:
    return [
        {"where": row["where"], "method": NAMES[row["method"]], "voxels per side": row["size"],
         "peak memory [MB]": f"{row['peak_mb']:.0f}"}
        for row in rows
    ]  # fmt: skip


def reading(rows: Rows) -> str:
    said = []
    for where, ours, theirs in (("optimisation", "nephi", "voxel"), ("training", "nephi", "gradicon")):
        found = lines(rows, where)
        both = [m in found for m in (ours, theirs)]
        if all(both):
            size = max(set(found[ours]) & set(found[theirs]))
            part = found[ours][size] / found[theirs][size]
            said.append(f"{where}: {NAMES[ours]} takes {part:.2f} of {NAMES[theirs]}'s memory at {size} per side")
    shown = "; ".join(said) or "too few methods to compare"
    return f"{shown}. As published, memory grows with the images themselves, not with the maps."


ABOUT = About(
    order=4,
    title="Memory against image size",
    data=(
        "Optimisation: generated textures, working grid as fine as the image, beyond the images. Training: one step of "
        "one pair of random images, beyond the imports. Peak resident size of a process on the CPU."
    ),
    published=(
        "Fig. 3: at 175 per side 2,466 MB (NePhi) against 6,394 MB (GradICON, single resolution) and 13,482 MB "
        "(multi-resolution) in training; voxel methods grow with the number of voxels, NePhi much slower."
    ),
    full="The same, and 384 voxels per side.",
    sizes={
        "mini": {"sizes": (48, 64), "training": ()},
        "reduced": {"sizes": (96, 128, 192, 256), "training": (87, 128, 175)},
        "full": {"sizes": (96, 128, 192, 256, 384), "training": (87, 128, 175)},
    },
)
