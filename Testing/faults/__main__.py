"""``python -m Testing.faults``: damaged files, killed runs, full disks and random geometry; prints a table.

python -m Testing.faults --fuzz 5000 --faults 1000 --properties 300 --out table.json
python -m Testing.faults --again fuzz:nrrd:17          # one case alone
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from nephi.files.writing import write_text

from .parts import KINDS, PARTS
from .pool import LINE, RIGHT, SKIPPED, WRONG, Outcome, run


def cases_of(counts: dict[str, int], seed: int, only: str = "") -> list[tuple[str, str, int]]:
    """(part, kind, seed), each part's count shared evenly among its kinds."""
    cases = []
    for part, count in counts.items():
        kinds = [kind for kind in KINDS[part] if only in f"{part}:{kind}"]
        cases += [(part, kinds[i % len(kinds)], seed + i // len(kinds)) for i in range(count) if kinds]
    return cases


def table(outcomes: list[Outcome]) -> str:
    """Tries, right, one line, not tried, wrong of every kind and in all, as a table in Markdown."""
    lines = ["| kind | tries | right | one line | not tried | wrong |", "|---|---:|---:|---:|---:|---:|"]
    rows: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for name in (f"{outcome.part}: {outcome.kind}", f"**{outcome.part}, all**"):
            rows.setdefault(name, Counter())[outcome.result] += 1
    for name, row in sorted(rows.items(), key=lambda item: item[0].strip("*").replace(", all", "~")):
        tries = row.total() - row[SKIPPED]
        lines.append(f"| {name} | {tries} | {row[RIGHT]} | {row[LINE]} | {row[SKIPPED]} | {row[WRONG]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m Testing.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="damaged and hostile files")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="kills and full disks")
    parser.add_argument("--properties", type=int, default=0, metavar="N", help="randomly drawn geometry")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", metavar="TEXT", help="only kinds whose PART:KIND contains it")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the outcomes as JSON; those of earlier sittings are kept"
    )
    parser.add_argument("--again", metavar="PART:KIND:SEED", help="run one case here and print what happened")
    options = parser.parse_args()
    if options.again:
        part, kind, seed = options.again.split(":")
        print(json.dumps(asdict(PARTS[part](kind, int(seed))), indent=2))
        return 0
    outcomes: list[Outcome] = []
    if options.out and options.out.is_file():
        outcomes = [Outcome(**entry) for entry in json.loads(options.out.read_text(encoding="utf-8"))]
    done = {(o.part, o.kind, o.seed) for o in outcomes}
    counts = {"fuzz": options.fuzz, "fault": options.faults, "property": options.properties}
    cases = [case for case in cases_of(counts, options.seed, options.only) if case not in done]
    saved = time.monotonic()

    def keep() -> None:
        if options.out:
            write_text(options.out, json.dumps([asdict(o) for o in outcomes], indent=1))

    def tell(outcome: Outcome) -> None:
        nonlocal saved
        outcomes.append(outcome)
        if outcome.result == WRONG:
            print(f"{outcome.part}:{outcome.kind}:{outcome.seed}  {outcome.how}  {outcome.said[:600]}", flush=True)
        if time.monotonic() - saved > 10:
            saved = time.monotonic()
            keep()

    run(cases, options.jobs, tell)
    keep()
    print(table(outcomes))
    return int(any(outcome.result == WRONG for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
