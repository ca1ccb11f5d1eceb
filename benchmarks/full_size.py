"""What a full-size CT costs, phase by phase: a pair resampled to 512 x 512 x 400 voxels, registered without masks.

    python -m benchmarks.full_size --pair FIXED MOVING [--landmarks FIXED MOVING] --out results
    python -m benchmarks.full_size --pair FIXED MOVING --out results --presets balanced --options --outputs transform

The images are resampled over their field of view, with noise as in a CT of thin slices, as int16, into a temporary
folder (or ``--folder``, where they are kept and found again). Each run is ``nephi register`` as a process of its own.
CPU and wall-clock seconds of each stage are read as the stages follow each other, the peak memory at their ends; the
first stage holds the start of Python and the imports. ``told`` compares the time left that was told with what came.
Prints a table and writes ``full_size.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import environment

SIZE = (512, 512, 400)
NOISE_HU = 10.0


def made(paths: list[str], folder: Path, size: tuple[int, ...]) -> list[Path]:
    """The images on that many voxels, as files."""
    import numpy as np
    import SimpleITK as sitk

    files = [folder / f"{role}_{'x'.join(map(str, size))}.nii.gz" for role in ("fixed", "moving")]
    for number, (path, file) in enumerate(zip(paths, files, strict=True)):
        if file.exists():
            continue
        image = sitk.ReadImage(path, sitk.sitkFloat32)
        old = np.array(image.GetSize()) - 1
        spacing = (old * image.GetSpacing() / (np.array(size) - 1)).tolist()
        image = sitk.Resample(
            image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection()
        )
        array, rng = sitk.GetArrayFromImage(image), np.random.default_rng(number)
        for part in array:
            part += NOISE_HU * rng.standard_normal(part.shape, np.float32)
        fine = sitk.GetImageFromArray(np.rint(array).astype(np.int16))
        fine.CopyInformation(image)
        sitk.WriteImage(fine, str(file), True, 1)
    return files


def child(arguments: list[str]) -> None:
    """``nephi register``; the cost of each stage on the last line."""
    import nephi.cli.progress as progress
    from nephi.cli import main
    from nephi.device import peak_memory_mb

    stages: list[dict] = []
    started = time.perf_counter()

    class Recorded(progress.Progress):
        def __call__(self, stage: str, fraction: float, terms: dict) -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            now = {
                "stage": stage,
                "fraction": fraction,
                "cpu": usage.ru_utime + usage.ru_stime,
                "wall": time.perf_counter() - started,
                "memory_mb": peak_memory_mb(),
                "preview": "preview" in terms,
            }
            stages.append(now)
            super().__call__(stage, fraction, terms)

    progress.Progress = Recorded  # type: ignore[misc]
    code = main(["register", *arguments, "--progress", "none"])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = {
        "cpu": usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime,
        "wall": time.perf_counter() - started,
        "memory_mb": peak_memory_mb(),
    }
    print(json.dumps({"exit_code": code, "stages": stages, "total": total}))


def by_stage(found: dict) -> list[dict]:
    """CPU and wall-clock seconds of each stage, and the memory's peak so far at its end."""
    marks = [{"stage": "start", "cpu": 0.0, "wall": 0.0, "memory_mb": 0.0}, *found["stages"], {**found["total"]}]
    rows: dict[str, dict] = {}
    for mark, after in zip(marks, marks[1:], strict=False):
        row = rows.setdefault(mark["stage"], {"stage": mark["stage"], "cpu_s": 0.0, "wall_s": 0.0, "peak_mb": 0.0})
        row["cpu_s"] += after["cpu"] - mark["cpu"]
        row["wall_s"] += after["wall"] - mark["wall"]
        row["peak_mb"] = after["memory_mb"]
    return list(rows.values())


def promises(found: dict) -> list[dict]:
    """At tenths of the run: the seconds left by the fraction told, and the seconds that were left."""
    total, out, asked = found["total"]["wall"], [], 1
    for mark in found["stages"]:
        if mark["wall"] < 0.1 * asked * total or mark["fraction"] <= 0 or mark["fraction"] >= 1:
            continue
        left = mark["wall"] / mark["fraction"] * (1 - mark["fraction"])
        out.append({"at_s": mark["wall"], "told_s": left, "left_s": total - mark["wall"]})
        asked = int(10 * mark["wall"] / total) + 1
    return out


def run(files: list[Path], preset: str, more: list[str], out: Path) -> dict:
    arguments = [*map(str, files), "--output", str(out), "--preset", preset, *more]
    command = [sys.executable, "-m", "benchmarks.full_size", "--child", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["exit_code"]:
        raise SystemExit(done.stderr[-2000:])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    first = next((mark for mark in found["stages"] if mark["preview"]), None)
    return {
        "preset": preset,
        "options": more,
        "total": found["total"],
        "first_preview": first and {"cpu_s": first["cpu"], "wall_s": first["wall"]},
        "stages": by_stage(found),
        "told": promises(found),
        "tre_mm": report.get("tre_mm", {}).get("after", {}).get("mean"),
        "folds": report.get("folds", {}).get("count"),
        "files_mb": {file.name: file.stat().st_size / 1e6 for file in sorted(out.iterdir()) if file.is_file()},
    }


def printed(found: dict) -> None:
    total = found["total"]
    print(f"\n{found['preset']} {' '.join(found['options'])}")
    for row in [*found["stages"], {"stage": "total", "cpu_s": total["cpu"], "wall_s": total["wall"]}]:
        peak = row.get("peak_mb", total["memory_mb"])
        print(f"  {row['stage']:<28} {row['cpu_s']:7.2f} CPU s {row['wall_s']:7.2f} s {peak:7.0f} MB")
    if found["first_preview"]:
        print(f"  first preview after {found['first_preview']['cpu_s']:.1f} CPU s")
    told = "; ".join(f"{p['at_s']:.0f} s: {p['told_s']:.0f} told, {p['left_s']:.0f} left" for p in found["told"])
    print(f"  {told}\n  TRE {found['tre_mm']} mm, folds {found['folds']}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", nargs=2, required=True, metavar=("FIXED", "MOVING"))
    parser.add_argument("--landmarks", nargs=2, metavar=("FIXED", "MOVING"), help="in LPS mm")
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, metavar="N")
    parser.add_argument("--presets", nargs="+", default=["fast", "balanced"])
    parser.add_argument("--folder", type=Path, help="where the images are kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=["--no-report"], help="further ones of register")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    more = [*options.options, "--preview", "5"]
    if options.landmarks:
        more += ["--fixed-landmarks", options.landmarks[0], "--moving-landmarks", options.landmarks[1]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = made(options.pair, folder, tuple(options.size))
        found = []
        for preset in options.presets:
            found.append(run(files, preset, more, Path(temporary) / "out"))
            printed(found[-1])
            (options.out / "full_size.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
