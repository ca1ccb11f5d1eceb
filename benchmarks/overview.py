"""One table of the results of several benchmarks: all pairs, all methods.

python -m benchmarks.overview RESULTS... > docs/pairs-table.md

Each RESULTS is a folder that ``benchmarks.peers``, ``benchmarks.contrast`` or ``benchmarks.brain`` has written
(``results.json``). Where two of them have a row of the same pair and method, the later one counts. The best TRE (else
Dice) of each pair is bold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .peers import COLUMNS, cell

SHOWN = ("tre_mean", "tre_median", "tre_p95", "dice", "folds", "log_jacobian_sd", "inverse_consistency", "cpu_s",
         "peak_memory_mb")  # fmt: skip
OWN = "nephi"


def collected(folders: list[Path]) -> dict[str, dict[str, dict]]:
    """Pair -> method -> row, in the order of the folders."""
    found: dict[str, dict[str, dict]] = {}
    for folder in folders:
        for row in json.loads((folder / "results.json").read_text())["results"]:
            found.setdefault(row["pair"], {})[row["method"]] = row
    return found


def score(row: dict) -> float | None:
    """What a pair is judged by, less is better: mean TRE in mm, else one minus the Dice overlap; None if it failed."""
    if "error" in row:
        return None
    return row["tre_mean"] if row["tre_mean"] is not None else 1 - row["dice"]


def table(name: str, rows: dict[str, dict]) -> list[str]:
    """Lines of the table of one pair."""
    one = next(iter(rows.values()))
    title = f"### `{name}`"
    before = f"TRE {one['tre_aligned_mm']:.2f} mm before, {one['landmarks']} points." if one["landmarks"] else ""
    lines = [title, "", *([before, ""] if before else [])]
    lines += ["| method | " + " | ".join(COLUMNS[key][0] for key in SHOWN) + " |", "|---" + "|---:" * len(SHOWN) + "|"]
    scores = {method: score(row) for method, row in rows.items()}
    best = min(value for value in scores.values() if value is not None)
    key = "tre_mean" if one["landmarks"] else "dice"
    for method, row in sorted(rows.items(), key=lambda item: not item[0].startswith(OWN)):
        if "error" in row:
            lines.append(f"| {method} | {row['error'].split(';')[0]} |" + " |" * (len(SHOWN) - 1))
            continue
        cells = {shown: cell(row, shown) for shown in SHOWN}
        if cells[key] == cell(next(r for m, r in rows.items() if scores[m] == best), key):
            cells[key] = f"**{cells[key]}**"
        lines.append(f"| {method} | " + " | ".join(cells.values()) + " |")
    return [*lines, ""]


def summary(pairs: dict[str, dict[str, dict]], presets: tuple[str, ...] = ("fast", "balanced")) -> list[str]:
    """Lines of a table of all pairs: the presets of nephi beside the best peer, and CPU time as a part of greedy's."""
    columns = [f"`{preset}`" for preset in presets]
    lines = ["| pair | measure | " + " | ".join(columns) + " | best peer | CPU s " + ", ".join(columns) +
             " | greedy | part of greedy's |", "|---|---|" + "---:|" * len(presets) + "---|---|---:|---:|"]  # fmt: skip
    for name, rows in pairs.items():
        own = [rows.get(f"{OWN}-{preset}") or rows[f"{OWN}_unmasked-{preset}"] for preset in presets]
        peers = {m: r for m, r in rows.items() if not m.startswith(OWN) and score(r) is not None}
        method, peer = min(peers.items(), key=lambda item: score(item[1]))
        key = "tre_mean" if peer["tre_mean"] is not None else "dice"
        folds = f", {peer['folds']} folds" if peer["folds"] else ""
        greedy = next((rows[m] for m in ("greedy", "greedy_nmi") if m in rows), None)
        seconds = greedy["cpu_s"] if greedy else None
        share = ", ".join(f"{row['cpu_s'] / seconds:.2f}" for row in own) if seconds else ""
        lines.append(
            f"| `{name}` | {'TRE, mm' if key == 'tre_mean' else 'Dice'} | " + " | ".join(cell(row, key) for row in own) +
            f" | {cell(peer, key)} ({method}{folds}) | " + ", ".join(f"{row['cpu_s']:.0f}" for row in own) +
            f" | {seconds:.0f} | {share} |" if seconds else ""
        )  # fmt: skip
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    pairs = collected(parser.parse_args().results)
    print("\n".join([*summary(pairs), *(line for name, rows in pairs.items() for line in table(name, rows))]))


if __name__ == "__main__":
    main()
