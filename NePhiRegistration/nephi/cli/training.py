"""The commands that make training data and train."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from ..config import decode, read_json
from ..device import choose_device, limit_threads
from ..errors import NephiError
from ..files.image import read_image
from ..files.masks import read_mask
from ..files.writing import output_folder
from ..learning.settings import TrainSettings
from ..learning.state import MODEL, RESUME
from ..learning.train import train
from ..synthetic.breathing import generate
from .progress import Progress


def train_command(options) -> int:
    settings = TrainSettings()
    if options.settings:
        settings = decode(settings, read_json(options.settings))
    named = {k: getattr(options, k) for k in ("data", "validation", "start", "coarse") if getattr(options, k)}
    changes = {k: getattr(options, k) for k in ("iterations", "seed") if getattr(options, k) is not None}
    settings = replace(settings, fit=replace(settings.fit, **changes), **named)
    if not settings.data:
        raise NephiError("there are no training data: give --data, or data in the settings file")
    limit_threads(options.threads)
    device, tell, folder = choose_device(options.device), Progress(options.progress), Path(options.output)
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes of a launcher, the one that writes
    try:
        with output_folder(options.output) if first else contextlib.nullcontext():
            best = train(settings, folder, device, resume=options.resume, progress=tell)
    except KeyboardInterrupt:
        there = (folder / RESUME).is_file()
        print(f"nephi: interrupted; {'continue with --resume' if there else 'too early to resume'}", file=sys.stderr)
        return 130
    if best:  # of several processes, the first
        print("  ".join(f"{name} {value:.4g}" for name, value in best.items()))
        print(f"written to   {folder / MODEL}")
    return 0


def breathe_command(options) -> int:
    if options.masks and len(options.masks) != len(options.ct):
        raise NephiError(f"{len(options.ct)} CTs and {len(options.masks)} masks: give one for each CT, or none")
    templates = []
    for k, path in enumerate(options.ct):
        image = read_image(path, "CT")
        templates.append((image, read_mask(options.masks[k], image, "mask") if options.masks else None))
    with output_folder(options.output) as folder:
        print(generate(folder, options.count, options.seed, templates))
    return 0
