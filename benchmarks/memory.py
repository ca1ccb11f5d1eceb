"""Peak memory against image size: nephi against a voxel displacement field under the same loss.

    python -m benchmarks.memory --sizes 96 128 192 256 384 --out results
    python -m benchmarks.memory --dense

Each run is a process of its own. The working grid is as fine as the image (the worst case), the images are
textures moved by a smooth known map, and both methods minimise MIND at 2,000 points and GradICON at 64 points in
both directions; the voxel method holds a forward and a backward displacement at every voxel and optimises both with
Adam. Memory is the process's peak resident size above what it held with the two images loaded. Writes memory.csv,
memory.md and memory.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from . import environment

METHODS = ("features", "nephi", "voxel")
SIDE_MM = 320.0


def make_pair(size: int):
    """Two int16 images of size^3 over 320 mm: a texture, and the texture moved by up to 8 mm."""
    import numpy as np
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    texture = sitk.GetImageFromArray(rng.normal(0, 300, (64, 64, 64)).astype(np.float32))
    texture.SetSpacing([SIDE_MM / 63] * 3)
    control = sitk.GetImageFromArray(rng.uniform(-8, 8, (4, 4, 4, 3)), isVector=True)
    control.SetSpacing([SIDE_MM / 3] * 3)
    frame = ([size] * 3, [0.0] * 3, [SIDE_MM / (size - 1)] * 3, list(np.eye(3).ravel()))

    def on_grid(transform):
        size_, origin, spacing, direction = frame
        moved = sitk.Resample(texture, size_, transform, sitk.sitkLinear, origin, spacing, direction, 0.0)
        return sitk.Cast(moved, sitk.sitkInt16)

    return on_grid(sitk.Transform(3, sitk.sitkIdentity)), on_grid(sitk.DisplacementFieldTransform(control))


def run(method: str, size: int, iterations: int) -> dict:
    from dataclasses import replace

    import torch
    from nephi.both import Both
    from nephi.device import peak_memory_mb
    from nephi.fitting.fit import Adam, fit
    from nephi.fitting.objective import Objective
    from nephi.fitting.similarity import make_similarity
    from nephi.images.image_pair import ImagePair
    from nephi.registration import register
    from nephi.settings import Features, FitSettings, Level, MindSettings, Sampling, Settings
    from nephi.space.affine import Affine

    from .voxel_maps import VoxelMaps

    torch.set_num_threads(2)
    fixed, moving = make_pair(size)
    before = peak_memory_mb()
    spacing = SIDE_MM / (size - 1)
    similarity = MindSettings(points=Sampling(0.0, 2000, 2000), finest=0.5)
    levels = (Level(features=Features(spacing, 2)),)
    settings = Settings(align="none", levels=levels, similarity=similarity, fit=FitSettings(iterations=iterations))
    if method == "nephi":
        register(fixed, moving, settings=settings, auto_mask=False, device="cpu")
    else:
        pair = ImagePair.of(Both(fixed, moving), Both(None, None), Affine.identity(3), similarity)
        volumes = pair.volumes(levels[0].features, make_similarity(similarity).prepare, "cpu")
        if method == "voxel":
            upper = torch.tensor(pair.cube.half_extents_cube, dtype=torch.float32)
            maps = VoxelMaps(volumes[0].volume.shape[:-1], upper)
            regularity = replace(settings.regularity, weight=0.5)
            generator = torch.Generator().manual_seed(0)
            objective = Objective(similarity, regularity, pair.cube.unit_mm, generator)
            fit(lambda step: objective(maps, [volumes]), Adam(maps.parameters(), settings.fit))
    return {"method": method, "size": size, "peak_mb": peak_memory_mb() - before, "images_mb": 2 * 2 * size**3 / 1e6}


def held_mb() -> float:
    """Resident now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def run_dense(size_xyz: tuple[int, int, int] = (512, 512, 300)) -> dict:
    """Registers two CTs and evaluates displacement at every voxel and the exact determinant in a mask of a quarter."""
    import time

    import numpy as np
    import SimpleITK as sitk
    from nephi.device import limit_threads, peak_memory_mb
    from nephi.registration import register
    from nephi.settings import PRESETS
    from nephi.space.grid import Grid

    limit_threads(2)
    extent_mm = (358.4, 358.4, 300.0)
    frame = {"size": list(size_xyz), "spacing": [e / n for e, n in zip(extent_mm, size_xyz, strict=True)]}
    fixed, moving = (sitk.GaussianSource(sitk.sitkInt16, scale=800, mean=[180.0 + shift, 180.0, 150.0],
                                         sigma=[60.0, 80.0, 70.0], **frame) - 900 for shift in (0.0, 4.0))  # fmt: skip
    mask = fixed > -700
    base, started = held_mb(), time.perf_counter()
    result = register(
        fixed, moving, fixed_mask=mask, moving_mask=mask, settings=PRESETS["fast"], auto_mask=False, device="cpu"
    )
    registered = peak_memory_mb() - base
    grid = Grid.of(fixed)
    field = result.displacement(grid)
    jacobian = result.dense_jacobian(grid, mask)
    return {
        "voxels": int(np.prod(size_xyz)),
        "in_mask": int(sitk.GetArrayViewFromImage(mask).sum()),
        "field_and_jacobian_mb": (field.nbytes + jacobian.nbytes) / 1e6,
        "peak_beyond_images_mb": {"registered": registered, "dense": peak_memory_mb() - base},
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 192, 256, 384])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--dense", action="store_true", help="only: a dense field of a 512 x 512 x 300 CT")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dense:
        print(json.dumps(run_dense(), indent=1))
        return
    if options.child:
        print(json.dumps(run(options.child[0], int(options.child[1]), options.iterations)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in options.sizes:
        for method in METHODS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.memory",
                "--child",
                method,
                str(size),
                "--iterations",
                str(options.iterations),
            ]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            row = json.loads(done.stdout) if done.returncode == 0 else {"method": method, "size": size}
            row["bytes_a_voxel_and_image"] = row.get("peak_mb", float("nan")) * 1e6 / size**3 / 2
            rows.append(row)
            print(row if done.returncode == 0 else f"{method} {size}: {done.stderr[-500:]}", flush=True)
    write(rows, options.out)


def write(rows: list[dict], out: Path) -> None:
    with open(out / "memory.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["method", "size", "peak_mb", "images_mb", "bytes_a_voxel_and_image"])
        writer.writeheader()
        writer.writerows(rows)
    sizes = sorted({row["size"] for row in rows})
    peak = {(row["method"], row["size"]): row.get("peak_mb") for row in rows}
    lines = ["| voxels per side | " + " | ".join(METHODS) + " |", "|---:|" + "---:|" * len(METHODS)]
    for size in sizes:
        cells = [f"{peak[m, size]:.0f}" if peak.get((m, size)) is not None else "failed" for m in METHODS]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    (out / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        known = [s for s in sizes if peak.get((method, s)) is not None]
        axes.plot(known, [peak[method, s] for s in known], "o-", label=method)
    axes.plot(sizes, [24 * s**3 / 1e6 for s in sizes], "k:", label="12 bytes per voxel and image")
    axes.set(xlabel="voxels per side", ylabel="peak memory beyond the images [MB]", xscale="log", yscale="log")
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "memory.png", dpi=130)


if __name__ == "__main__":
    main()
