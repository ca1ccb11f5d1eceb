"""``nephi summarise``: one table of all pairs from their folders, whoever registered them."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import NephiError
from ..files.cases import Case, read_pairs
from ..files.folder import ResultFolder
from ..files.writing import is_held, output_folder
from ..paths import read_text_file
from .batch import SETTINGS, SUMMARY, pair_row, report_of, write_summary

_PATIENCE_S = 10.0  # for another process that writes the table at the same moment


def row_in(folder: Path, pair: Case, settings: dict | None) -> dict:
    """The row of ``summary.csv`` that a pair's folder gives; with ``settings``, results of others do not count.

    The status is done, failed, running, interrupted, or waiting where nothing has begun.
    """
    files = ResultFolder.opened(folder)
    try:
        failure = json.loads(read_text_file(files.failure, "failure"))
        return pair_row(pair, "failed", error=str(failure["error"]), seconds=failure["seconds"])
    except (NephiError, ValueError, KeyError, TypeError):  # there is none
        pass
    report = report_of(folder)
    if report is not None and settings in (None, report.settings):
        return pair_row(pair, "done", report)
    if is_held(folder):
        return pair_row(pair, "running")
    if report is not None:
        return pair_row(pair, "waiting", error="its result was made with other settings")
    return pair_row(pair, "interrupted" if files.log.exists() else "waiting")


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
        raise NephiError(f"{output} holds no results of pairs")
    settings = None
    if (output / SETTINGS).exists():
        try:
            settings = json.loads(read_text_file(output / SETTINGS, "settings"))
        except ValueError:
            raise NephiError(f"settings {output / SETTINGS} are not valid JSON") from None
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
