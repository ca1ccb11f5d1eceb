"""The Jacobian determinant of nephi and its peers against the exact one, on generated pairs, from the same alignment.

python -m benchmarks.jacobian --pairs phantom:1 chest:2 fnndsc:3 --methods nephi greedy ants elastix --out DIR

``phantom:1`` is seed 1 of ``nephi demo``'s chest, ``chest:2`` and ``fnndsc:3`` are generated breathing
(``nephi breathe``) of a procedural chest and of a CT of the data folder. Each method's determinant is taken as it is
offered: nephi's map file, of the others central differences of their displacement fields. Errors are those of the whole
map, alignment included, at the voxel centres of the fixed lungs, at least 3 mm inside.
Writes table.md and results.json into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.space.grid import Grid
from nephi.synthetic.breathing import BreathingSettings, breathe
from nephi.synthetic.chest import procedural
from nephi.synthetic.phantom import make_phantom

from . import peers
from .pairs import data_folder, write_prepared
from .scoring import jacobian_determinant, read_map

_RIM_MM = 3.0
_POINTS = 4000  # at which the exact determinant is asked for
HEAD = ("pair", "method", "TRE [mm]", "|J| RMSE", "bias", "correlation", "true |J|", "folds", "CPU [s]")


@dataclass(frozen=True)
class Pair:
    """Images, masks, and the exact map and its determinant at fixed points (n, 3) in LPS mm."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image
    moving_mask: sitk.Image
    forward: Callable[[np.ndarray], np.ndarray]
    jacobian: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, name: str, spacing_mm: float) -> Pair:
        kind, _, seed = name.partition(":")
        number = int(seed)
        if kind == "phantom":
            size = tuple(round(s / spacing_mm) for s in (320, 280, 280))
            p = make_phantom(size, spacing_mm, seed=number)
        else:
            how = BreathingSettings(spacing_mm=spacing_mm, one_lung=0.0, cut=0.0, tidal=0.0, still=0.0)
            if kind == "chest":
                image, lungs = procedural(number, spacing_mm)
            else:
                image, lungs = (sitk.ReadImage(str(data_folder() / f"train_ct/{kind}{part}.nii.gz"))
                                for part in ("", "_mask"))  # fmt: skip
            p = breathe(image, lungs, number, how)
        return cls(p.fixed, p.moving, p.fixed_mask, p.moving_mask, p.forward, p.jacobian)


def places(mask: sitk.Image) -> np.ndarray:
    """(n, 3) voxels, z first, of the lungs away from their rim."""
    inside = sitk.SignedMaurerDistanceMap(mask, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    found = np.argwhere(sitk.GetArrayViewFromImage(inside) >= _RIM_MM)
    return found[np.random.default_rng(0).choice(len(found), min(_POINTS, len(found)), replace=False)]


def score(pair: Pair, at_zyx: np.ndarray, prepared: dict, folder: Path) -> dict:
    """Errors of a result, whose map goes from the fixed to the aligned frame."""
    grid, transform = Grid.of(pair.fixed), read_map(folder)
    points = grid.to_lps_mm(at_zyx[:, ::-1])
    moved = np.array([transform.TransformPoint(p) for p in points.tolist()]) * prepared["scale"] + prepared["offset"]
    if (folder / "jacobian.nii.gz").exists():
        image = sitk.ReadImage(str(folder / "jacobian.nii.gz"))
        values = sitk.GetArrayFromImage(image)
    else:
        image = sitk.ReadImage(str(folder / "displacement.mha"), sitk.sitkVectorFloat32)
        values = jacobian_determinant(image)
    index = np.rint(Grid.of(image).to_index(points)).astype(int)  # the common grid holds the fixed image's voxels
    found = values[tuple(index[:, ::-1].T)].astype(float) * np.prod(prepared["scale"])
    true = pair.jacobian(points)
    return {
        "tre_mm": float(np.linalg.norm(moved - pair.forward(points), axis=1).mean()),
        "rmse": float(np.sqrt(np.mean((found - true) ** 2))),
        "bias": float(np.mean(found - true)),
        "correlation": float(np.corrcoef(found, true)[0, 1]),
        "true_mean": float(true.mean()),
        "true_sd": float(true.std()),
    }


def table(rows: list[dict]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---" + "|---:" * (len(HEAD) - 2) + "|"]
    for r in rows:
        start = f"| {r['pair']} | {r['method']} | "
        if "error" in r:
            lines.append(f"{start}failed: {r['error']} |" + " |" * (len(HEAD) - 3))
            continue
        lines.append(f"{start}{r['tre_mm']:.2f} | {r['rmse']:.4f} | {r['bias']:+.4f} | {r['correlation']:.3f} | "
                     f"{r['true_mean']:.2f} ± {r['true_sd']:.2f} | {r['folds']} | {r['cpu_s']:.0f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pairs", nargs="+", default=["phantom:1", "chest:2", "fnndsc:3"], metavar="KIND:SEED")
    p.add_argument("--methods", nargs="+", default=["nephi", "greedy", "ants", "elastix"],
                   choices=[*peers.OWN, *peers.PEERS])  # fmt: skip
    p.add_argument("--presets", nargs="+", default=["fast", "balanced"])
    p.add_argument("--spacing-mm", type=float, default=2.5, help="of both images")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--peer-python", default=os.environ.get("NEPHI_PEER_PYTHON", sys.executable))
    options = p.parse_args()
    options.out, options.quick, options.networks, options.keep = options.out.resolve(), False, None, True
    options.peer_python = os.path.abspath(options.peer_python)
    return options


def main() -> int:
    options, rows = parse(), []
    for name in options.pairs:
        pair, folder = Pair.of(name, options.spacing_mm), options.out / name.replace(":", "-")
        at_zyx = places(pair.fixed_mask)
        points = Grid.of(pair.fixed).to_lps_mm(at_zyx[:200, ::-1])
        images = (sitk.Cast(image, sitk.sitkFloat32) for image in (pair.fixed, pair.moving))
        masks, landmarks = [pair.fixed_mask, pair.moving_mask], (points, pair.forward(points))
        write_prepared(folder / "input", *images, masks, landmarks, ct=True)
        prepared = json.loads((folder / "input" / "prepared.json").read_text())
        for method, command in peers.commands(options, masked=True).items():
            cost = peers.run(command, folder / "input", folder / method, options, seed=1)
            row = {"pair": name, "method": method, **cost}
            if "error" not in row:
                row |= score(pair, at_zyx, prepared, folder / method)
            rows.append(row)
            (options.out / "results.json").write_text(json.dumps(rows, indent=1))
            (options.out / "table.md").write_text(table(rows))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
