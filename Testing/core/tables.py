"""The table of a batch as it was written."""

from __future__ import annotations

import csv
from pathlib import Path

from nephi.cli.batch import COLUMNS


def table(output: Path) -> dict[str, dict]:
    """The rows of ``summary.csv`` by the pair's name."""
    with open(output / "summary.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == COLUMNS
        return {row["name"]: row for row in reader}
