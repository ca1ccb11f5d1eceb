"""One page of tables out of the results of several benchmarks: all pairs, all methods.

python -m benchmarks.overview RESULTS... > table.md

Each RESULTS is a folder that ``benchmarks.peers``, ``benchmarks.contrast`` or ``benchmarks.brain`` has written
(``results.json``). Of a pair and method with rows in several of them, the last counts. First comes a line for each
pair, then a table for each, whose lowest mean TRE (of pairs without landmarks: highest Dice) is bold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .peers import COLUMNS, OWN, cell

SHOWN = ("tre_mean", "tre_median", "tre_p95", "dice", "folds", "log_jacobian_sd", "inverse_consistency", "cpu_s",
         "peak_memory_mb")  # fmt: skip
PRESETS = ("fast", "balanced")
Rows = dict[str, dict]  # method -> row


def collected(folders: list[Path]) -> dict[str, Rows]:
    """Pair -> its rows, in the order of the folders; what a folder repeats takes the place of what there was."""
    found: dict[str, Rows] = {}
    for folder in folders:
        for row in json.loads((folder / "results.json").read_text())["results"]:
            found.setdefault(row["pair"], {})[row["method"]] = row
    return found


def measure(rows: Rows) -> str:
    """The key of what the methods of a pair are compared by."""
    return "tre_mean" if any(row["landmarks"] for row in rows.values()) else "dice"


def ranked(rows: Rows) -> list[str]:
    """The methods that ended, the best first; those that differ in no digit shown are in the order of the rows."""
    key = measure(rows)
    worse = 1 if key == "tre_mean" else -1
    return sorted((m for m, row in rows.items() if "error" not in row), key=lambda m: worse * float(cell(rows[m], key)))


def is_own(method: str) -> bool:
    return method.split("-")[0] in OWN


def summary(pairs: dict[str, Rows]) -> list[str]:
    """Lines of a table with a line for each pair: the presets beside the best peer, CPU seconds beside greedy's."""
    heading = ["pair", "", *PRESETS, "best peer", *(f"{name} [s]" for name in (*PRESETS, "greedy")), "fast / greedy"]
    lines = ["| " + " | ".join(heading) + " |", "|---" * 2 + "|---:" * (len(heading) - 2) + "|"]
    for name, rows in pairs.items():
        key, order = measure(rows), ranked(rows)
        own = [next((rows[m] for m in (f"{o}-{preset}" for o in OWN) if m in rows), {}) for preset in PRESETS]
        best = next((m for m in order if not is_own(m)), None)
        peer = "-" if best is None else f"{cell(rows[best], key)} {best}"
        if best is not None and rows[best]["folds"]:
            peer += f", {rows[best]['folds']:.0f} folds"
        greedy = next((rows[m] for m in ("greedy", "greedy_nmi") if m in rows and "error" not in rows[m]), {})
        ratio = f"{own[0]['cpu_s'] / greedy['cpu_s']:.2f}" if greedy and own[0] else "-"
        values = [cell(row, key) for row in own] + [peer] + [f"{row['cpu_s']:.0f}" if row else "-" for row in own]
        values += [f"{greedy['cpu_s']:.0f}" if greedy else "-", ratio]
        lines.append(f"| `{name}` | {'mm' if key == 'tre_mean' else 'Dice'} | " + " | ".join(values) + " |")
    return [*lines, ""]


def table(name: str, rows: Rows) -> list[str]:
    """Lines of the table of one pair, own methods first."""
    one, key, order = next(iter(rows.values())), measure(rows), ranked(rows)
    lines = [f"### `{name}`", ""]
    if one["landmarks"]:
        lines += [f"{one['landmarks']} points, {one['tre_aligned_mm']:.2f} mm apart before.", ""]
    shown = [k for k in SHOWN if any(row.get(k) is not None for row in rows.values())]
    lines += ["| method | " + " | ".join(COLUMNS[k][0] for k in shown) + " |", "|---" + "|---:" * len(shown) + "|"]
    for method in sorted(rows, key=lambda m: not is_own(m)):
        row = rows[method]
        if "error" in row:
            lines.append(f"| {method} | {row['error'].split(';')[0]} |" + " |" * (len(shown) - 1))
            continue
        values = {k: cell(row, k) for k in shown}
        if values[key] == cell(rows[order[0]], key):
            values[key] = f"**{values[key]}**"
        lines.append(f"| {method} | " + " | ".join(values.values()) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    pairs = collected(parser.parse_args().results)
    print("\n".join([*summary(pairs), *(line for name, rows in pairs.items() for line in table(name, rows))]))


if __name__ == "__main__":
    main()
