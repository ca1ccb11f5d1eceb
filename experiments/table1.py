"""The table of methods: single and multi-resolution, with and without optimisation, next to baselines (Table 1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from nephi.errors import NephiError
from nephi.learning.model import Model
from nephi.settings import PRESETS

from benchmarks import environment

from .experiment import About, Rows, column, mean, panels, select
from .lung_ct import BREATH_HOLDS, Case, registered

OURS = {  # name -> model, whether optimised
    "alignment alone": (None, False),
    "NePhi, from scratch, optimised": (None, True),
    "NePhi (single)": ("lung", False),
    "NePhi (single), optimised": ("lung", True),
    "NePhi (multi)": ("lung-m", False),
    "NePhi (multi), optimised": ("lung-m", True),
}


def run(
    device: torch.device, pairs: tuple[str, ...], ours: tuple[str, ...], iterations: int, baselines: tuple[str, ...]
) -> Rows:
    rows = []
    for name in pairs:
        case = Case.read(name)
        for method in ours:
            model, optimised = OURS[method]
            settings = replace(PRESETS["accurate"], model=model)
            settings = replace(settings, fit=replace(settings.fit, iterations=iterations if optimised else 0))
            result, found = registered(case, settings, device)
            count = (
                sum(p.numel() for p in result.fields.maps.fields.parameters())
                + result.fields.maps.code.local_code.numel()
            )
            found["parameters"] = count
            found["encoder_parameters"] = 0 if model is None else encoder_parameters(model)
            rows.append({"pair": name, "method": method, **found})
    return rows + (peers(pairs, baselines) if baselines and "NEPHI_PEER_PYTHON" in os.environ else [])


def encoder_parameters(name: str) -> int:
    """Of all stages that predict."""
    model = Model.load(name)
    return sum(p.numel() for part, p in model.named_parameters() if "encoder" in part)


def peers(pairs: tuple[str, ...], methods: tuple[str, ...]) -> Rows:
    """Rows of the first benchmark; NEPHI_PEER_PYTHON runs it, NEPHI_NETWORKS holds the weights of what is learned."""
    python = os.environ["NEPHI_PEER_PYTHON"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.peers", "--pairs", *pairs, "--methods", *methods, "--out", folder]
        command += ["--peer-python", python]
        if os.environ.get("NEPHI_NETWORKS"):
            command += ["--networks", os.environ["NEPHI_NETWORKS"]]
        subprocess.run(
            command, env=environment(), stdout=subprocess.DEVNULL
        )  # a method that fails is a row that says so
        results = Path(folder) / "results.json"
        if not results.is_file():
            raise NephiError("the baselines did not run: set NEPHI_PEER_PYTHON (benchmarks/requirements.txt)")
        found = json.loads(results.read_text(encoding="utf-8"))["results"]
    rows = []
    for row in found:
        if "error" in row:
            print(f"{row['pair']} {row['method']}: {row['error']}", file=sys.stderr)
            continue
        rows.append(
            {
                "pair": row["pair"],
                "method": row["method"],
                "aligned_mm": row["tre_aligned_mm"],
                "tre_mm": row["tre_mean"],
                "folds_percent": row["folds_percent"],
                "seconds": row["wall_s"],
                "parameters": "",
                "encoder_parameters": "",
            }
        )
    return rows


def by_method(rows: Rows) -> list[tuple[str, Rows]]:
    names = list(dict.fromkeys(column(rows, "method")))
    return [(name, select(rows, method=name)) for name in names]


def draw(rows: Rows):
    methods = by_method(rows)
    figure, axes = panels(1, width=6.5, height=0.9 + 0.26 * len(methods))
    values = [mean(mine, "tre_mm") for _, mine in methods]
    colours = ["C0" if name in OURS else "0.6" for name, _ in methods]
    places = range(len(methods), 0, -1)
    axes[0].barh(list(places), values, color=colours)
    axes[0].set_yticks(list(places), [name for name, _ in methods], fontsize=8)
    axes[0].set(xlabel="mean TRE [mm]", xscale="log", xlim=(0.1, None))
    for place, value in zip(places, values, strict=True):
        axes[0].annotate(f" {value:.2f}", (value, place), va="center", fontsize=8)
    return figure


def table(rows: Rows) -> Rows:
    return [
        {
            "method": name,
            "mean TRE [mm]": f"{mean(mine, 'tre_mm'):.2f}",
            **{row["pair"]: f"{row['tre_mm']:.2f}" for row in mine},
            "folds [%]": f"{mean(mine, 'folds_percent'):.4f}",
            "parameters: maps": mine[0]["parameters"],
            "encoder": mine[0]["encoder_parameters"],
            "seconds": f"{mean(mine, 'seconds'):.0f}",
        }
        for name, mine in by_method(rows)
    ]


def reading(rows: Rows) -> str:
    found = {name: mean(mine, "tre_mm") for name, mine in by_method(rows)}
    said = [f"the alignment leaves {mean(rows, 'aligned_mm'):.2f} mm"]
    single, multi = found.get("NePhi (single)"), found.get("NePhi (multi)")
    if single and multi:
        said.append(f"multi-resolution prediction leaves {multi / single:.2f} of what the single one does")
    best = min(found, key=found.get)
    close = [f"{name}, {value:.3f}" for name, value in found.items() if name != best and value < found[best] + 0.01]
    said.append(f"the lowest error is that of {best}, {found[best]:.3f} mm")
    if close:
        said.append(f"as good, within a hundredth of a millimetre: {'; '.join(close)}")
    return (
        f"{'; '.join(said)}. Published, the multi-resolution prediction is the better one and stays so after the "
        "optimisation. Seconds are wall clock on a busy CPU and indicate little: the baselines' hold the start of a "
        "process, ours the registration alone."
    )


ABOUT = About(
    order=1,
    title="Methods on breath-hold pairs",
    data=(
        "breathhold_case01 and breathhold_case02; models trained on generated breathing only. Folds in the lungs, ours "
        "by the exact Jacobian. Peak memory of a training step is in experiment 4."
    ),
    published=(
        "Table 1 (DIR-Lab COPDgene, mTRE in mm): initial 23.36; single resolution: GradICON 5.41, optimised 2.10; "
        "NePhi 5.44, optimised 1.73; multi-resolution: LapIRN 4.24, GradICON 1.93, optimised 1.31; NePhi 2.78, "
        "optimised 1.53; PTVReg 0.84."
    ),
    full="Needs nothing more than `reduced`; the baselines run where NEPHI_PEER_PYTHON and NEPHI_NETWORKS are set.",
    sizes={
        "mini": {
            "pairs": BREATH_HOLDS[:1],
            "ours": ("alignment alone", "NePhi (single)"),
            "iterations": 0,
            "baselines": (),
        },
        **{
            size: {
                "pairs": BREATH_HOLDS,
                "ours": tuple(OURS),
                "iterations": 1500,
                "baselines": (
                    "voxel",
                    "bspline_tv",
                    "idir",
                    "lapirn",
                    "gradicon",
                    "gradicon_multi",
                    "gradicon_multi_io",
                ),
            }
            for size in ("reduced", "full")
        },
    },
    real=True,
)
