"""``nephi commission``: a battery of digital phantoms on this machine, and its record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from ..commission.battery import CASES, run
from ..commission.page import page_of
from ..commission.record import read_limits, read_record, record, unchanged
from ..device import choose_device, limit_threads
from ..errors import NephiError
from ..files.writing import output_folder, replaced, write_text
from ..measure.verdict import read_tolerances
from ..settings import preset
from ..version import __version__
from .progress import Progress

RECORD, PAGE = "commission.json", "commission.html"
_SPACING_MM, _QUICK_SPACING_MM = 2.0, 3.0


def commission_command(options) -> int:
    if options.check is not None:
        if options.output is not None:
            raise NephiError("--check only reads a record: do not give a folder")
        return _check(Path(options.check))
    if options.output is None:
        raise NephiError("give a folder for the record, or --check and the file of a record")
    limits, tolerances = read_limits(options.limits), read_tolerances(options.tolerances)
    settings = preset(options.preset or ("fast" if options.quick else "balanced"))
    settings = replace(settings, fit=replace(settings.fit, seed=options.seed))
    device, folder = choose_device(options.device), Path(options.output)
    limit_threads(options.threads)
    outcomes, show = [], Progress(options.progress, started=options.started)
    with output_folder(folder), replaced(folder, last=RECORD) as scratch:
        for number, case in enumerate(CASES):

            def tell(phase: str, fraction: float, terms: dict, number=number, name=case.name) -> None:
                show(f"{name}: {phase}", (number + 0.8 * fraction) / len(CASES), terms)

            spacing_mm = _QUICK_SPACING_MM if options.quick else _SPACING_MM
            outcomes.append(run(case, scratch / case.name, spacing_mm, settings, str(device), tolerances, tell))
        measured = [outcome.measured for outcome in outcomes]
        made = record(measured, limits, settings, str(device), torch.get_num_threads(), options.quick)
        write_text(scratch / PAGE, page_of(made, outcomes))
        write_text(scratch / RECORD, json.dumps(made, indent=1) + "\n")
    show("done", 1.0, {})
    _tell(made)
    print(f"written to   {folder / PAGE}")
    return int(not made["passed"])


def _tell(made: dict) -> None:
    for case in made["cases"]:
        error = f"{case['tre_mm']['mean']:.2f} mm, |J| {case['jacobian']['rmse']:.3f}, " if "tre_mm" in case else ""
        print(f"{case['name']:<16} {error}{case['verdict']}{'; '.join(['', *case['missed']])}")
    print(f"commissioning {'passed' if made['passed'] else 'NOT passed'}")


def _check(path: Path) -> int:
    """Exit code 1 where the record was changed."""
    made = read_record(path)
    if not unchanged(made):
        print(f"{path}: CHANGED since it was written")
        return 1
    print(f"{path}: unchanged since {made['date']}; {'passed' if made['passed'] else 'NOT passed'}")
    if made["versions"]["nephi"] != __version__:
        print(f"It was made with nephi {made['versions']['nephi']}; {__version__} is installed: commission again.")
    return 0
