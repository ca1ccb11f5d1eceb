"""What other precisions and PyTorch's compiler make of the optimisation on a CPU.

    python -m benchmarks.step --pair FIXED MOVING --masks FIXED MOVING --landmarks FIXED MOVING --out results

Registers the pair from the same start once for each kind, each in a process of its own, on one thread:

- ``bytes``: as nephi has them, features in bytes; ``float16``, ``bfloat16``, ``float32``: the same features in these
- ``autocast``: products of the networks in bfloat16, by ``torch.autocast``
- ``compiled``: the step's objective by ``torch.compile`` (inductor; needs a C++ compiler)

Prints and writes (``step.json``) CPU seconds of the features, of the first steps (a fifth) and of each of the others,
the peak memory, and the mean target registration error of the fields' forward map, not smoothed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from . import environment

KINDS = ("bytes", "float16", "bfloat16", "float32", "autocast", "compiled")


def run(kind: str, options: argparse.Namespace) -> dict:
    import contextlib

    import nephi.fitting.optimise as optimise
    import numpy as np
    import torch
    from nephi.both import Both
    from nephi.device import limit_threads, peak_memory_mb
    from nephi.files.image import read_image
    from nephi.files.landmarks import read_landmarks
    from nephi.files.masks import read_mask
    from nephi.fitting.regularity import make_regulariser
    from nephi.fitting.similarity import Mind
    from nephi.images.align import align
    from nephi.images.image_pair import ImagePair
    from nephi.settings import preset
    from nephi.space.grid import Grid

    class Other(Mind):
        def prepare(self, image, dilation, device=None):
            found = super().prepare(image, dilation, device)
            return found if kind not in ("float16", "bfloat16", "float32") else (found / 255).to(getattr(torch, kind))

    limit_threads(1)
    images = Both(*(read_image(path, "image") for path in options.pair))
    masks = Both(*(read_mask(path, image, "mask") for path, image in zip(options.masks, images, strict=True)))
    settings = preset(options.preset)
    affine = align(images, masks, "moments").affine
    pair = ImagePair.of(images, masks, affine, settings.similarity)
    similarity = Other(settings.similarity.noise)
    own = optimise.Optimisation(
        pair, settings, None, similarity, make_regulariser(settings.regularity), torch.device("cpu")
    )
    seconds, ends = {"features": 0.0}, {}
    begin = own._begin

    def timed(*arguments) -> None:
        started = time.process_time()
        begin(*arguments)
        seconds["features"] += time.process_time() - started

    own._begin = timed
    if kind == "compiled":
        own.objective = _Compiled(own.objective, torch.compile(own.objective.__call__, dynamic=False))
    first = settings.fit.iterations // 5

    def recorded(entry: dict) -> None:
        ends[entry["step"]] = time.process_time() - seconds["features"], entry["step"]

    with torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else contextlib.nullcontext():
        started = time.process_time()
        own.run(recorded)
    steps = sorted(ends)
    at = min(steps, key=lambda step: abs(step - first))
    fixed, moving = (
        read_landmarks(path, Grid.of(image)) for path, image in zip(options.landmarks, images, strict=True)
    )
    with torch.no_grad():
        mapped = own.maps.forward(torch.as_tensor(own.cube.to_cube(fixed), dtype=torch.float32)).numpy()
    error = np.linalg.norm(affine(own.cube.to_lps_mm(mapped)) - moving, axis=1)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "kind": kind,
        "features_s": seconds["features"],
        "first_s": ends[at][0] - started + children.ru_utime + children.ru_stime,
        "first_steps": at,
        "step_ms": 1e3 * (ends[steps[-1]][0] - ends[at][0]) / (steps[-1] - at),
        "peak_mb": peak_memory_mb(),
        "tre_mm": float(error.mean()),
    }


class _Compiled:
    """An objective whose call is another's."""

    def __init__(self, objective, call):
        self._objective, self._call = objective, call

    def __getattr__(self, name: str):
        return getattr(self._objective, name)

    def __call__(self, *arguments, **named):
        return self._call(*arguments, **named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pair", "masks", "landmarks"):
        parser.add_argument(f"--{name}", nargs=2, required=True, metavar=("FIXED", "MOVING"))
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(options.child, options)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in options.kinds:
        command = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--child", kind]
        done = subprocess.run(command, env=environment() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            print(f"{kind}: failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True
        )
        (options.out / "step.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
