"""What a trained model predicts, and what optimising from there saves.

    python -m benchmarks.prediction --model lung --out results

For each pair: TRE after the alignment, of the prediction alone, and after some optimisation steps from the
prediction and from scratch, with folds. Each run is a process of its own, whose CPU and wall-clock seconds and memory
are those of all of it, start and files included (``registration_s``: wall-clock seconds of the registration alone).
Writes prediction.csv and prediction.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from . import environment, pairs, process_cost

FIGURES = ("steps", "aligned_mm", "tre_mm", "median_mm", "folds", "cpu_s", "wall_s", "registration_s", "memory_mb")
COLUMNS = ("pair", "start", *FIGURES, "note")


def run(name: str, model: str | None, steps: int, preset: str, threads: int | None = None) -> dict:
    """One registration of the original images, as a user would run it."""
    pair, data = pairs.PAIRS[name], pairs.data_folder()
    command = [sys.executable, "-m", "nephi", "register", str(data / pair.fixed), str(data / pair.moving)]
    for role in ("fixed_landmarks", "moving_landmarks", "fixed_mask", "moving_mask"):
        if getattr(pair, role):
            command += [f"--{role.replace('_', '-')}", str(data / getattr(pair, role))]
    command += ["--preset", preset, "--iterations", str(steps), "--no-report", "--progress", "none"]
    command += ["--model", model] if model else []
    command += ["--threads", str(threads)] if threads else []
    with tempfile.TemporaryDirectory() as folder:
        out, result, log = (Path(folder) / file for file in ("out", "cost.json", "log"))
        measure = [sys.executable, "-S", "-E", process_cost.__file__, str(result), str(log), "0"]
        subprocess.run([*measure, *command, "--output", str(out)], check=True, env=environment())
        cost = json.loads(result.read_text(encoding="utf-8"))
        if cost["exit_code"]:
            raise SystemExit(log.read_text(encoding="utf-8")[-2000:])
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "pair": name,
        "start": "prediction" if model else "nothing",
        "steps": steps,
        "aligned_mm": report["tre_mm"]["before"]["mean"],
        "tre_mm": report["tre_mm"]["after"]["mean"],
        "median_mm": report["tre_mm"]["after"]["median"],
        "folds": report["folds"]["count"],
        "cpu_s": cost["cpu_s"],
        "wall_s": cost["wall_s"],
        "registration_s": report["time_s"]["registration_wall"],
        "memory_mb": cost["peak_memory_mb"],
        "note": " ".join(text for text in report["warnings"] if "prediction" in text),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name of a shipped model, or a model file")
    parser.add_argument("--pairs", nargs="+", default=["breathhold_case01", "breathhold_case02", "lung_ct_followup"])
    parser.add_argument("--preset", default="balanced")
    parser.add_argument(
        "--steps", type=int, nargs="*", default=[300, 900], help="of the optimisation; none: the prediction alone"
    )
    parser.add_argument("--threads", type=int, help="of each run; default: as many as nephi takes by itself")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.pairs:
        runs = [(options.model, 0), *((start, n) for n in options.steps for start in (options.model, None))]
        for model, steps in runs:
            rows.append(run(name, model, steps, options.preset, options.threads))
            print(rows[-1], flush=True)
            write(rows, options.out)


def write(rows: list[dict], out: Path) -> None:
    with open(out / "prediction.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * len(FIGURES) + "---|"]
    for row in rows:
        cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    (out / "prediction.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
