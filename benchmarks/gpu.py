"""Is nephi right on this GPU, how fast is it, and what does it do there?

python -m benchmarks.gpu --out results                            # a procedural chest, its map known exactly
python -m benchmarks.gpu --out results --pair FIXED MOVING --masks FIXED MOVING --landmarks FIXED MOVING

Prints a line per check and writes ``gpu.json``; exits 1 if the GPU and the CPU differ by more than 0.02 mm in mean TRE,
beyond what repeated runs on the GPU differ by, or if anything folds. Seconds are wall-clock, without file reading and
writing but for the command line; ``cold`` is the first run in the process, ``warm`` the median of the next ones.
Needs the package alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nephi
import numpy as np
import SimpleITK as sitk
import torch
from nephi.files.masks import read_mask
from torch.profiler import ProfilerActivity, profile

MODELS = ("lung", "lung-m")
AGREEMENT_MM = 0.02
_PROFILED_STEPS = 60


class Check:
    """One pair, registered on one device; what is found is printed and kept."""

    def __init__(self, options: argparse.Namespace):
        self.out, self.device, self.runs = options.out, options.device, options.runs
        self.found: dict[str, dict] = {}
        self.faults: list[str] = []
        if options.pair:
            self.images = [nephi.read_image(path) for path in options.pair]
            self.masks = [read_mask(p, i, "mask") for p, i in zip(options.masks, self.images, strict=True)]
            self.landmarks = [nephi.read_landmarks(p, i) for p, i in zip(options.landmarks, self.images, strict=True)]
        else:
            chest = nephi.make_phantom(size=(160, 144, 144), spacing_mm=2.0)
            self.images, self.masks = [chest.fixed, chest.moving], [chest.fixed_mask, chest.moving_mask]
            self.landmarks = [chest.fixed_landmarks_lps_mm, chest.moving_landmarks_lps_mm]

    def note(self, name: str, **values) -> None:
        self.found[name] = values
        print(f"{name}: {json.dumps(values)}", flush=True)
        (self.out / "gpu.json").write_text(json.dumps(self.found, indent=1))

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def register(self, settings: nephi.Settings, device: str | None = None, progress=None) -> nephi.Registration:
        fixed_mask, moving_mask = self.masks
        given = {"fixed_mask": fixed_mask, "moving_mask": moving_mask, "settings": settings, "progress": progress}
        return nephi.register(*self.images, **given, device=device or self.device)

    def tre_mm(self, result: nephi.Registration) -> float:
        fixed, moving = self.landmarks
        return float(np.linalg.norm(result.forward(fixed) - moving, axis=1).mean())

    def folds(self, result: nephi.Registration) -> int:
        """At 100,000 voxel centres of the fixed mask, exactly."""
        inside = np.argwhere(sitk.GetArrayViewFromImage(self.masks[0]))
        chosen = inside[np.random.default_rng(0).permutation(len(inside))[:100_000]]
        return int((result.jacobian_determinant(result.fixed_grid.to_lps_mm(chosen[:, ::-1])) <= 0).sum())

    def timed(self, settings: nephi.Settings, progress=None) -> tuple[nephi.Registration, float]:
        self.wait()
        started = time.perf_counter()
        result = self.register(settings, progress=progress)
        self.wait()
        return result, time.perf_counter() - started

    def phases(self, settings: nephi.Settings) -> dict[str, float]:
        """Seconds at which each phase begins in a warm run; telling of the phases makes it a little slower."""
        begins: dict[str, float] = {}
        started = time.perf_counter()

        def progress(phase: str, fraction: float, terms: dict) -> None:
            if phase not in begins:
                self.wait()
                begins[phase] = round(time.perf_counter() - started, 3)

        self.timed(settings, progress)
        return {**begins, "end": round(time.perf_counter() - started, 3)}

    def measure(self, name: str, settings: nephi.Settings, on_cpu: bool) -> None:
        """Cold and warm seconds, agreement with itself and with the CPU, folds, memory, launches."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
        runs = [self.timed(settings) for _ in range(1 + self.runs)]
        errors = [self.tre_mm(result) for result, _ in runs]
        entry = {
            "cold_s": round(runs[0][1], 3),
            "warm_s": round(statistics.median(seconds for _, seconds in runs[1:]), 3),
            "tre_mm": [round(error, 4) for error in errors],
            "folds": self.folds(runs[0][0]),
            "phases_s": self.phases(settings),
        }
        moved = [result.forward(self.landmarks[0]) for result, _ in runs]
        entry["runs_differ_mm"] = round(float(max(np.abs(m - moved[0]).max() for m in moved)), 4)
        if self.device.startswith("cuda"):
            entry["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e6)
            entry |= self.launches(settings)
        if on_cpu:
            entry["cpu_tre_mm"] = round(self.tre_mm(self.register(settings, "cpu")), 4)
            gap, spread = abs(entry["cpu_tre_mm"] - statistics.mean(errors)), max(errors) - min(errors)
            if gap > AGREEMENT_MM + spread:
                self.faults.append(f"{name}: {gap:.3f} mm between {self.device} and CPU, {spread:.3f} mm between runs")
        if entry["folds"]:
            self.faults.append(f"{name}: {entry['folds']} folds")
        self.note(name, **entry)

    def launches(self, settings: nephi.Settings) -> dict[str, dict[str, int]]:
        """Of a short run through all stages: a profile of every step takes minutes to sum up."""
        short = dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, iterations=_PROFILED_STEPS))
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            self.register(settings if settings.fit.iterations == 0 else short)
            self.wait()
        events = seen.key_averages()
        (self.out / "profile.txt").write_text(events.table(sort_by="cuda_time_total", row_limit=40))
        counted = {"kernels": "LaunchKernel", "graphs": "GraphLaunch", "waits": "Synchronize"}
        found = {name: sum(e.count for e in events if key in e.key) for name, key in counted.items()}
        return {f"launches_of_{_PROFILED_STEPS}_steps": found}

    def command_line(self, preset: str) -> None:
        """A process of its own, with reading, writing and the report."""
        files = {"fixed": self.images[0], "moving": self.images[1]}
        files |= {"fixed-mask": self.masks[0], "moving-mask": self.masks[1]}
        for name, image in files.items():
            sitk.WriteImage(image, str(self.out / f"{name}.nii.gz"))
        images = [str(self.out / f"{role}.nii.gz") for role in ("fixed", "moving")]
        masks = [
            word for name in ("fixed-mask", "moving-mask") for word in (f"--{name}", str(self.out / f"{name}.nii.gz"))
        ]
        command = [sys.executable, "-m", "nephi", "register", *images, *masks, "--preset", preset]
        for kind, flags in (("", []), (" without report", ["--no-report"])):
            started = time.perf_counter()
            target = ["--output", str(self.out / "registered"), "--device", self.device, "--progress", "none"]
            done = subprocess.run([*command, *target, *flags], capture_output=True, text=True)
            seconds = round(time.perf_counter() - started, 2)
            self.note(f"command line, {preset}{kind}", seconds=seconds, exit=done.returncode, stderr=done.stderr[-300:])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--presets", nargs="+", default=["fast", "balanced", "accurate"])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--runs", type=int, default=3, help="warm runs")
    for name in ("pair", "masks", "landmarks"):
        parser.add_argument(f"--{name}", nargs=2, metavar=("FIXED", "MOVING"), help="files")
    options = parser.parse_args(arguments)
    if options.pair and not (options.masks and options.landmarks):
        parser.error("--pair needs --masks and --landmarks")
    options.out.mkdir(parents=True, exist_ok=True)
    check = Check(options)
    card = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "none"
    check.note("machine", gpu=card, torch=torch.__version__, device=options.device)
    for preset in options.presets:
        check.measure(preset, nephi.PRESETS[preset], on_cpu=options.device != "cpu" and preset != "accurate")
    base = nephi.PRESETS["balanced"]
    alone = dataclasses.replace(base, fit=dataclasses.replace(base.fit, iterations=0))
    for model in options.models:
        check.measure(f"{model} alone", dataclasses.replace(alone, model=model), on_cpu=False)
    check.command_line(options.presets[0])
    for fault in check.faults:
        print(f"WRONG {fault}")
    return 1 if check.faults else 0


if __name__ == "__main__":
    sys.exit(main())
