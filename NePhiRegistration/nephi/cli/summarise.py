"""``nephi summarise``: one table of all pairs from their folders, whoever registered them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ..config import of_json, read_json
from ..errors import NephiError
from ..files.cases import SETTINGS, SUMMARY, Case, read_pairs
from ..files.folder import ResultFolder
from ..files.writing import is_held, output_folder
from ..paths import read_text_file
from ..settings import from_dict
from .batch import pair_row, report_of, write_summary

_PATIENCE_S = 10.0  # for another process that writes the table at the same moment


def row_in(folder: Path, pair: Case, settings: dict | None) -> dict:
    """The row of ``summary.csv`` that a pair's folder gives; with ``settings``, results of others do not count.

    The status is done, failed, running, interrupted, or waiting where nothing has begun.
    """
    try:
        files = ResultFolder.opened(folder)
    except NephiError as error:
        return pair_row(pair, "interrupted", error=str(error))
    if (failure := _failure(files.failure)) is not None:
        return pair_row(pair, "failed", error=failure[0], seconds=failure[1])
    report = report_of(folder)
    if report is not None and settings in (None, report.settings):
        return pair_row(pair, "done", report)
    if is_held(folder):
        return pair_row(pair, "running")
    if report is not None:
        return pair_row(pair, "waiting", error="its result was made with other settings")
    return pair_row(pair, "interrupted" if files.log.exists() else "waiting")


def _failure(path: Path) -> tuple[str, float | None] | None:
    """The reason and the seconds in a pair's file; None where there is none, or one that is damaged."""
    try:
        failure = of_json(read_text_file(path, "failure"))
        error, seconds = failure["error"], failure["seconds"]
        if not isinstance(error, str) or not (seconds is None or math.isfinite(seconds)):
            return None
        return error, seconds
    except (NephiError, ValueError, KeyError, TypeError, OverflowError):
        return None


def summarise(output: Path, pairs: list[Case] | None = None) -> list[dict]:
    """Write ``output/summary.csv`` from the folders of ``pairs``, by default of all that batches wrote there.

    Returns its rows. Raises NephiError where nothing is there, or while a batch of this machine writes its own table.
    """
    if not output.is_dir():
        raise NephiError(f"no such folder: {output}")
    if pairs is None:
        found = (ResultFolder(path) for path in sorted(output.iterdir()) if path.is_dir())
        made = [f for f in found if f.report.exists() or f.failure.exists() or f.log.exists()]
        pairs = [Case(files.path.name, {}) for files in made]
    if not pairs:
        raise NephiError(f"{output} contains no results of pairs")
    settings = None
    if os.path.lexists(output / SETTINGS):
        settings = read_json(output / SETTINGS)
        from_dict(settings, names=False)
    rows = [row_in(output / pair.name, pair, settings) for pair in pairs]
    with output_folder(output, patience_s=_PATIENCE_S):
        write_summary(rows, output)
    return rows


def summarise_command(options) -> int:
    output = Path(options.folder)
    return ended(summarise(output, read_pairs(options.pairs) if options.pairs else None), output)


def ended(rows: list[dict], output: Path) -> int:
    """Print how many pairs are done; the exit code: 1 where one is not."""
    done = sum(row["status"] == "done" for row in rows)
    print(f"{done} of {len(rows)} pairs done; {output / SUMMARY}")
    return int(done < len(rows))
