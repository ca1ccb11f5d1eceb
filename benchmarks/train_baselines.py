"""Trains the networks of the learned baselines, at a size that two CPU cores manage.

    nephi breathe --count 24 --seed 7000 --output generated [--ct ... --masks ...]
    python -m benchmarks.train_baselines lapirn --steps 400 --data generated/pairs.csv --out networks

Writes METHOD.safetensors and METHOD.json (settings, seconds, loss) for each; peers.py reads them with
``--networks`` (docs/benchmarks.md: all commands). The training is not part of a method's time in the benchmark.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from nephi.fitting.fit import Adam, fit
from nephi.settings import FitSettings

from .baselines import gradicon, lapirn
from .baselines.networks import save, training_images

BUILD = {
    "lapirn": lapirn.build,
    "gradicon": partial(gradicon.GradICON, False),
    "gradicon_multi": partial(gradicon.GradICON, True),
}


def train(method: str, pairs: list, size: int, steps: int, rate: float, seed: int, on_record=None):
    """The trained network and the history of its loss; each step sees one pair, either way round."""
    torch.manual_seed(seed)
    network, rng = BUILD[method](size), np.random.default_rng(seed)

    def objective(step: int):
        moving, fixed = pairs[rng.integers(len(pairs))]
        if rng.random() < 0.5:
            moving, fixed = fixed, moving
        return network.train().loss(moving, fixed, step / steps)

    settings = FitSettings(iterations=steps, learning_rate=rate, warm_up=0.02, beta2=0.999)
    return network, fit(objective, Adam(network.parameters(), settings), on_record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+", choices=BUILD)
    parser.add_argument("--data", required=True, help="list of pairs, as nephi breathe writes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=48, help="voxels per side")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = training_images(options.data, options.size, options.out / "cache")
    for method in options.methods:
        started = time.perf_counter()
        network, history = train(
            method, pairs, options.size, options.steps, options.rate, options.seed, lambda e: print(e, flush=True)
        )
        save(network, options.out / f"{method}.safetensors", options.size)
        facts = {**vars(options), "out": str(options.out), "pairs": len(pairs),
                 "seconds": time.perf_counter() - started, "history": history}  # fmt: skip
        (options.out / f"{method}.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
