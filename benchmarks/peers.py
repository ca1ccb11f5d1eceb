"""nephi and its peers on the same pairs, from the same alignment, each in its own process.

python -m benchmarks.peers --pairs main --methods nephi greedy convexadam --out DIR

Writes table.md, table.csv and results.json into DIR. docs/benchmarks.md says what is measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path

from . import environment, pairs, process_cost
from .scoring import evaluate

OWN = ("nephi", "nephi_unmasked")  # each with every preset
PEERS = (
    "greedy", "greedy_nmi", "greedy_unmasked", "convexadam", "convexadam_masked", "ants", "ants_unmasked", "ants_quick",
    "elastix", "elastix_mi", "regix", "fireants",
    "voxel", "bspline_tv", "idir", "lapirn", "gradicon", "gradicon_io", "gradicon_multi", "gradicon_multi_io",
)  # fmt: skip
DEFAULT_METHODS = ("nephi", "greedy", "greedy_unmasked", "convexadam", "convexadam_masked", "ants", "elastix")
PACKAGES = (
    "picsl-greedy", "convexAdam", "antspyx", "itk-elastix", "regix-medical", "fireants", "icon-registration", "torch",
    "SimpleITK",
)  # fmt: skip
LIMIT = "CPU seconds after which a method is stopped and said to be (default: never)"
COLUMNS = {  # key -> heading, format
    "tre_mean": ("TRE mean", ".2f"), "tre_median": ("median", ".2f"), "tre_p95": ("p95 [mm]", ".2f"),
    "folds": ("folds", ".0f"), "folds_own": ("folds (own)", ".0f"), "log_jacobian_sd": ("std of log J", ".2f"),
    "inverse_consistency": ("inverse cons. [mm]", ".3f"), "dice": ("Dice", ".3f"),
    "cpu_s": ("CPU [s]", ".1f"), "wall_s": ("wall [s]", ".1f"), "peak_memory_mb": ("memory [MB]", ".0f"),
}  # fmt: skip


def commands(options: argparse.Namespace, masked: bool) -> dict[str, list[str]]:
    """Method -> command line, with {prepared}, {out} and {seed} left open; without masks, only methods
    that differ from each other."""
    found = {}
    for method in options.methods:
        if method.endswith(("_masked", "_unmasked")) and not masked:
            continue
        if method in OWN:
            masks = "--fixed-mask {prepared}/fixed_mask.nii.gz --moving-mask {prepared}/moving_mask.nii.gz"
            for preset in options.presets:
                line = "-m nephi register {prepared}/fixed.nii.gz {prepared}/moving.nii.gz --output {out}"
                line += f" {masks if masked and method == 'nephi' else ''}"
                line += f" --preset {preset} --align none --progress none"
                found[f"{method}-{preset}"] = [sys.executable, *line.split()]
        else:
            line = f"{method} {{prepared}} {{out}} --threads {options.threads} --seed {{seed}}"
            more = ["--quick"] if options.quick else []
            more += ["--networks", str(options.networks)] if options.networks else []
            found[method] = [options.peer_python, "-m", "benchmarks.runners", *line.split(), *more]
    return found


def run(command: list[str], prepared: Path, out: Path, options: argparse.Namespace, seed: int) -> dict:
    """Run one method once in a process of its own; its scores and cost, or what went wrong."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    variables = {
        **environment(),
        "OMP_NUM_THREADS": str(options.threads),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(options.threads),
    }  # fmt: skip
    command = [part.format(prepared=prepared, out=out, seed=seed) for part in command]
    cost, log = out.with_suffix(".cost.json"), out.with_suffix(".log")
    measure = [sys.executable, "-S", "-E", process_cost.__file__, str(cost), str(log), str(options.limit_s)]
    subprocess.run([*measure, *command], env=variables, cwd=out, check=True)
    result = json.loads(cost.read_text())
    try:
        if options.limit_s and result["cpu_s"] >= 0.99 * options.limit_s:
            raise RuntimeError(f"stopped after {options.limit_s} CPU seconds")
        if result["exit_code"]:
            raise RuntimeError(f"exit code {result['exit_code']}")
        result |= evaluate(prepared, out)
    except (RuntimeError, OSError) as problem:
        result["error"] = f"{problem}; see {log}"
    if not options.keep:
        shutil.rmtree(out)
    return result


def summary(runs: list[dict]) -> dict:
    """Median of every number over the runs that worked; the first error if none did."""
    good = [r for r in runs if "error" not in r]
    if not good:
        return {"error": runs[0]["error"], "runs": 0}
    middle = {}
    for key in good[0]:
        values = [r[key] for r in good if isinstance(r.get(key), int | float)]
        middle[key] = statistics.median(values) if values else None
    return middle | {"runs": len(good)}


def cell(row: dict, key: str) -> str:
    value = row.get(key)
    return "-" if value is None else format(value, COLUMNS[key][1])


def write_tables(out: Path, rows: list[dict], facts: dict) -> None:
    """results.json with every run, table.csv with the medians, table.md for people."""
    (out / "results.json").write_text(json.dumps(facts | {"results": rows}, indent=1))
    keys = ["pair", "method", "landmarks", "tre_raw_mm", "tre_aligned_mm", *COLUMNS, "jacobian_min",
            "jacobian_max", "runs", "error"]  # fmt: skip
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines = []
    for name in dict.fromkeys(row["pair"] for row in rows):
        mine = [row for row in rows if row["pair"] == name]
        one = mine[0]
        lines += [f"### {name}", ""]
        if one["landmarks"]:
            before = f"TRE {one['tre_raw_mm']:.2f} mm raw, {one['tre_aligned_mm']:.2f} mm aligned"
            lines += [f"{one['landmarks']} landmarks; {before}.", ""]
        lines += ["| method | " + " | ".join(h for h, _ in COLUMNS.values()) + " |",
                  "|---" + "|---:" * len(COLUMNS) + "|"]  # fmt: skip
        for row in mine:
            values = f"{row['error'].split(';')[0]} |" + " |" * (len(COLUMNS) - 1) if "error" in row else (
                " | ".join(cell(row, key) for key in COLUMNS) + " |")  # fmt: skip
            lines.append(f"| {row['method']} | {values}")
        lines.append("")
    lines.append(", ".join(f"{key}: {value}" for key, value in facts.items() if key != "packages"))
    (out / "table.md").write_text("\n".join(lines) + "\n")


def record(row: dict, out: Path, rows: list[dict], facts: dict) -> None:
    """Add a row, write the tables again, so that an interrupted run is not lost, and print it."""
    rows.append(row)
    write_tables(out, rows, facts)
    shown = row.get("error") or " ".join(f"{key}={cell(row, key)}" for key in COLUMNS)
    print(f"{row['pair']} {row['method']}: {shown}", flush=True)


def facts_of(options: argparse.Namespace) -> dict:
    """What the numbers depend on besides the methods."""
    code = (
        "import json, sys; from importlib.metadata import version as v; "
        "print(json.dumps({p: v(p) for p in sys.argv[1:]}))"
    )
    packages = {"nephi torch": version("torch")}
    if set(options.methods) - set(OWN):
        asked = subprocess.run([options.peer_python, "-c", code, *PACKAGES], capture_output=True, text=True)
        packages |= json.loads(asked.stdout) if asked.returncode == 0 else {"error": asked.stderr.strip()}
    return {"cpus": os.cpu_count(), "threads": options.threads, "runs": options.runs,
            "region": options.region, "spacing_mm": options.spacing_mm or "native", "quick": options.quick,
            "machine": platform.machine(), "packages": packages}  # fmt: skip


def made_pairs(
    description: str | None,
    cases: Collection[str],
    prepare: Callable[[str, Path, int], pairs.Prepared],
    chosen: Sequence[str],
    methods: Sequence[str],
    presets: Sequence[str],
) -> int:
    """The command of a benchmark that makes its pairs itself; ``prepare(case, folder, seed)`` writes one of them.

    ``chosen``, ``methods``, ``presets``: what it runs by default. Returns the exit code, 1 where a method failed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", default=list(chosen), choices=list(cases))
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=[*OWN, *PEERS])
    parser.add_argument("--presets", nargs="+", default=list(presets))
    parser.add_argument("--settings", type=Path, nargs="*", default=[], help="nephi with each of these files, too")
    parser.add_argument("--seed", type=int, default=1, help="of what is made: motion, noise, shading, heads")
    parser.add_argument("--limit-s", type=int, default=0, help=LIMIT)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer-python", default=os.environ.get("NEPHI_PEER_PYTHON", sys.executable))
    parser.set_defaults(runs=1, quick=False, keep=False, networks=None, region="full", spacing_mm=None)
    options = parser.parse_args()
    options.out = options.out.resolve()
    facts, rows = facts_of(options), []
    for name in options.pairs:
        folder = options.out / name
        prepared = prepare(name, folder / "input", options.seed)
        lines = commands(options, prepared.masked)
        one = next((line for method, line in lines.items() if method.startswith("nephi")), [])
        lines |= {f"nephi-{file.stem}": [*one, "--settings", str(file.resolve())] for file in options.settings}
        for method, command in lines.items():
            done = run(command, folder / "input", folder / method, options, seed=1)
            row = {"pair": name, "method": method, "landmarks": prepared.landmarks,
                   "tre_raw_mm": prepared.tre_raw_mm, "tre_aligned_mm": prepared.tre_aligned_mm,
                   **summary([done]), "command": command, "all_runs": [done]}  # fmt: skip
            record(row, options.out, rows, facts)
    return int(any("error" in row for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["main"], choices=[*pairs.PAIRS, *pairs.GROUPS])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT_METHODS), choices=[*OWN, *PEERS])
    parser.add_argument("--presets", nargs="+", default=["fast", "balanced", "accurate"])
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, logs and prepared files")
    parser.add_argument("--runs", type=int, default=1, help="repeat and report medians")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for every method")
    parser.add_argument("--region", choices=("full", "lungs"), default="full",
                        help="common grid: whole fixed image, or a box around both masks")  # fmt: skip
    parser.add_argument("--spacing-mm", type=float, help="isotropic common grid (default: as fixed)")
    peer_python = os.environ.get("NEPHI_PEER_PYTHON", sys.executable)
    parser.add_argument("--peer-python", default=peer_python, help="Python with requirements.txt installed")
    parser.add_argument("--limit-s", type=int, default=0, help=LIMIT)
    parser.add_argument("--networks", type=Path, help="folder of the weights that train_baselines.py has written")
    parser.add_argument("--quick", action="store_true", help="few iterations of the peers: a smoke test")
    parser.add_argument("--keep", action="store_true", help="keep the fields and transforms of every run")
    options = parser.parse_args()
    options.pairs = list(dict.fromkeys(p for name in options.pairs for p in pairs.GROUPS.get(name, [name])))
    options.out = options.out.resolve()
    options.networks = options.networks and options.networks.resolve()
    if os.sep in options.peer_python:
        options.peer_python = os.path.abspath(options.peer_python)  # not resolved: the link is the venv
    return options


def main() -> int:
    options = parse()
    facts, rows = facts_of(options), []
    for name in options.pairs:
        folder = options.out / name
        prepared = pairs.prepare(name, folder / "input", options.region, options.spacing_mm)
        for method, command in commands(options, prepared.masked).items():
            runs = [run(command, folder / "input", folder / f"{method}_{k}", options, seed=k + 1)
                    for k in range(options.runs)]  # fmt: skip
            row = {"pair": name, "method": method, "landmarks": prepared.landmarks,
                   "tre_raw_mm": prepared.tre_raw_mm, "tre_aligned_mm": prepared.tre_aligned_mm,
                   **summary(runs), "command": command, "all_runs": runs}  # fmt: skip
            record(row, options.out, rows, facts)
    print(f"written: {options.out / 'table.md'}")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
