"""What a batch costs besides its pairs, what a killed one repeats, what cohorts cost: ``python -m benchmarks.cohort``.

python -m benchmarks.cohort plan --pairs 1000        seconds to plan a list of which every pair is finished
python -m benchmarks.cohort overhead --pairs 8       CPU and wall time of a batch beside that of its engines
python -m benchmarks.cohort resume --pairs 8         pairs that a killed and resumed batch registers twice
python -m benchmarks.cohort scale --cpu-seconds 30   hours and gigabytes of cohorts, by a simulated scheduler
python -m benchmarks.cohort size                     megabytes of the transform of a CT of 512 x 512 x 400 voxels
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.cli.batch import run_batch
from nephi.cli.convert import pair_of
from nephi.files.cases import fingerprints, read_pairs
from nephi.files.formats import write_format
from nephi.result import Registration
from nephi.settings import PRESETS, Settings
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

_ROLES = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")


def listed(folder: Path, count: int, dimension: int = 2) -> Path:
    """A list of ``count`` pairs, all of one phantom."""
    (folder / "data").mkdir(parents=True)
    make_phantom(dimension=dimension).write(folder / "data")
    files = [f"data/{role}{'.csv' if 'landmarks' in role else '.nii.gz'}" for role in _ROLES]
    rows = [["name", *_ROLES], *([f"pair{k:05}", *files] for k in range(count))]
    (folder / "pairs.csv").write_text("\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def batch(pairs: Path, output: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), "--output", str(output), "--no-report"]
    return [*command, "--threads", "1", "--iterations", "2", *arguments]


def plan(folder: Path, count: int) -> dict:
    """All pairs but the first get its report, with their own inputs."""
    pairs, output = listed(folder, count), folder / "out"
    (folder / "one.csv").write_text("\n".join(pairs.read_text(encoding="utf-8").splitlines()[:2]), encoding="utf-8")
    subprocess.run(batch(folder / "one.csv", output), check=True, stdout=subprocess.DEVNULL)
    first, *others = read_pairs(pairs)
    report = json.loads((output / first.name / "report.json").read_text(encoding="utf-8"))
    for pair in others:
        (output / pair.name).mkdir()
        report["inputs"] = fingerprints(pair.files, True, "auto")
        (output / pair.name / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(batch(pairs, output), check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.count("(earlier)") == count, done.stdout[-500:]
    return {"pairs": count, "wall_s": wall, "cpu_s": after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime}


def overhead(folder: Path, count: int) -> dict:
    """``busy``: of this process while it runs the batch; ``idle_s``: in which no engine runs, from file times."""
    pairs = read_pairs(listed(folder, count))
    settings = Settings(**vars(PRESETS["fast"]))
    before, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    wall = time.perf_counter()
    rows = run_batch(pairs, folder / "out", settings, threads=1, outputs=(), device="cpu", tell=lambda _: None)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    engines = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    inside = sum(row["seconds"] for row in rows)  # from the engine's first line to its last
    return {
        "pairs": count,
        "engines_cpu_s": engines,
        "batch_cpu_s_per_pair": own / count,
        "batch_cpu_percent": 100 * own / engines,
        "wall_s_per_pair_beside_the_engine": (wall - inside) / count,
    }


def resume(folder: Path, count: int) -> dict:
    """Killed when half of the pairs are done; a pair made twice has two times of change."""
    pairs, output = listed(folder, count), folder / "out"
    made: dict[str, set[int]] = {}

    def look() -> None:
        for report in output.glob("*/report.json"):
            made.setdefault(report.parent.name, set()).add(report.stat().st_mtime_ns)

    for last in (False, True):
        child = subprocess.Popen(batch(pairs, output, "--jobs", "2"), stdout=subprocess.DEVNULL)
        while child.poll() is None:
            look()
            if not last and len(made) >= count // 2:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            time.sleep(0.02)
        look()
    return {"pairs": count, "finished": len(made), "registered_twice": sum(len(times) > 1 for times in made.values())}


def simulate(
    pairs: int, slots: int, seconds: float, start_s: float, per_job: int, killed: float, seed: int = 0
) -> dict:
    """Jobs of ``per_job`` pairs in ``slots``; a part ``killed`` of them ends at a random moment and is run again.

    A killed job repeats the pair that was under way. Times of pairs vary by a fifth.
    """
    rng = np.random.default_rng(seed)
    jobs = [per_job] * (pairs // per_job) + ([pairs % per_job] if pairs % per_job else [])
    free = [0.0] * slots
    busy = 0.0
    while jobs:
        left = jobs.pop()
        began = heapq.heappop(free)
        times = seconds * rng.lognormal(-0.02, 0.2, left)
        length = start_s + times.sum()
        if rng.random() < killed:
            length *= rng.random()
            done = int(np.searchsorted(start_s + np.cumsum(times), length))
            jobs.append(left - done)
        busy += length
        heapq.heappush(free, began + length)
    return {"pairs": pairs, "busy_hours": busy / 3600, "wall_hours": max(free) / 3600}


def scale(seconds: float, megabytes: float, slots: int) -> list[dict]:
    rows = []
    for pairs in (10, 1000, 100_000):
        per_job = max(1, pairs // 1000)
        row = simulate(pairs, min(slots, pairs), seconds, 5.0, per_job, 0.1)
        rows.append(row | {"slots": min(slots, pairs), "storage_GB": pairs * megabytes / 1000})
    return rows


def size(result: Path) -> list[dict]:
    """The registration of a result folder, on a CT of 512 x 512 x 400 voxels over the same box."""
    registration = Registration.load(result)
    corner, far = registration.fixed_grid.to_lps_mm([[0, 0, 0], np.array(registration.fixed_grid.size) - 1])
    sides = np.abs((far - corner) @ registration.fixed_grid.axes)
    spacing = tuple((sides / np.array([511, 511, 399])).tolist())
    grid = Grid((512, 512, 400), spacing, registration.fixed_grid.origin_lps_mm, registration.fixed_grid.direction)
    registration.fixed_grid = grid
    points = grid.to_lps_mm(np.random.default_rng(3).uniform(0, 1, (10_000, 3)) * (np.array(grid.size) - 1))
    rows = []
    for name, good_mm in (("itk", None), ("compact", 0.05)):
        pair = pair_of(registration, good_mm)
        field = pair.forward
        with tempfile.TemporaryDirectory() as folder:
            file = write_format(name, pair, Path(folder) / "one")[0]
            transform = sitk.ReadTransform(str(file))
            moved = np.array([transform.TransformPoint(p) for p in points.tolist()])
            error = np.linalg.norm(moved - registration.forward(points), axis=1)
            mean, high = float(error.mean()), float(np.percentile(error, 99))
            rows.append({"format": name, "nodes": list(field.grid.size), "spacing_mm": list(field.grid.spacing_mm),
                         "MB": file.stat().st_size / 1e6, "mean_error_mm": mean, "p99_error_mm": high})  # fmt: skip
    rows.append({"format": "model alone", "MB": (result / "registration.safetensors").stat().st_size / 1e6})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "overhead", "resume", "scale", "size"))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--cpu-seconds", type=float, default=30.0, help="of a pair (scale)")
    parser.add_argument("--megabytes", type=float, default=50.0, help="of a pair's folder (scale)")
    parser.add_argument("--slots", type=int, default=100, help="jobs that run at the same time (scale)")
    parser.add_argument("--result", type=Path, help="folder of a registration (size)")
    options = parser.parse_args()
    if options.what == "scale":
        found = scale(options.cpu_seconds, options.megabytes, options.slots)
    elif options.what == "size":
        found = size(options.result)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = {"plan": plan, "overhead": overhead, "resume": resume}[options.what](Path(folder), options.pairs)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
