"""One page of tables out of the results of several benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import overview


def row(pair: str, method: str, tre: float | None = None, dice: float | None = None, **more) -> dict:
    numbers = {"tre_mean": tre, "dice": dice, "folds": 0, "cpu_s": 10.0, "peak_memory_mb": 500.0, **more}
    return {"pair": pair, "method": method, "landmarks": 40 if tre else 0, "tre_aligned_mm": 5.0, **numbers}


def written(folder: Path, *rows: dict) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"results": rows}))
    return folder


def test_later_rows_count_and_the_best_is_told(tmp_path: Path) -> None:
    stopped = {"pair": "liver", "method": "ants", "landmarks": 40, "tre_aligned_mm": 5.0,
               "error": "stopped after 600 CPU seconds; see log"}  # fmt: skip
    folders = [
        written(tmp_path / "a", row("liver", "nephi-fast", 1.9), row("liver", "greedy", 1.5, cpu_s=20.0),
                row("liver", "elastix", 1.2, folds=7), stopped),
        written(tmp_path / "b", row("liver", "nephi-fast", 1.11), row("liver", "nephi-balanced", 1.0),
                row("brain", "nephi-fast", dice=0.7), row("brain", "nephi-balanced", dice=0.71),
                row("brain", "greedy", dice=0.71)),
    ]  # fmt: skip
    pairs = overview.collected(folders)
    lines = overview.summary(pairs)
    assert lines[2] == "| `liver` | mm | 1.11 | 1.00 | 1.20 elastix, 7 folds | 10 | 10 | 20 | 0.50 |"
    assert lines[3] == "| `brain` | Dice | 0.700 | 0.710 | 0.710 greedy | 10 | 10 | 10 | 1.00 |"

    liver = overview.table("liver", pairs["liver"])
    assert [line.split(" | ")[0] for line in liver[6:-1]] == [
        "| nephi-fast", "| nephi-balanced", "| greedy", "| elastix", "| ants"]  # fmt: skip
    assert "| nephi-balanced | **1.00** |" in liver[7] and "stopped after 600 CPU seconds" in liver[-2]
    assert "Dice" not in liver[4]  # nobody has one

    brain = overview.table("brain", pairs["brain"])
    assert sum("**0.710**" in line for line in brain) == 2
