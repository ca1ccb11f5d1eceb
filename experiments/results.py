"""Writes docs/results.md from docs/results/*.csv: a section for every experiment of this folder.

    python -m experiments.results

Every experiment (see ``experiment.py``) is a section, in the order of its number. With ``--check`` nothing
is written, and the exit code is 1 if the page is not what the CSV files give.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import ROOT

from .experiment import Experiment, Rows, experiments, read_csv

PAGE = ROOT / "docs" / "results.md"
TABLES = ROOT / "docs" / "results"
HEAD = """# The paper's experiments, measured

Each section is one experiment of Tian et al. (*NePhi: Neural Deformation Fields for Approximately Diffeomorphic Medical
Image Registration*, ECCV 2024), repeated with this code at a reduced size, next to what the paper shows. The numbers
are ours, measured on the data that is named; they come from the CSV file of the section, and this page from them:

<!-- not run: it writes this page -->
```sh
python -m experiments.results
```

Every experiment has three sizes: `--size mini` shows in seconds that it runs, `reduced` made what is below, and `full`
is the paper's, meant for a GPU (`--device cuda`). [CONTRIBUTING](../CONTRIBUTING.md) says what to install.
"""


def measured(experiment: Experiment) -> bool:
    return (TABLES / f"{experiment.name}.csv").is_file()


def page() -> str:
    """All sections; what has no CSV file is named at the end."""
    done = [section(one, read_csv(TABLES / f"{one.name}.csv")) for one in experiments() if measured(one)]
    left = [f"- {one.about.title}: `{command(one)}`" for one in experiments() if not measured(one)]
    return "\n".join([HEAD, *done, *(["## Not measured yet\n", *left, ""] if left else [])])


def command(experiment: Experiment) -> str:
    return f"python -m experiments {experiment.name} --out docs/results"


def section(experiment: Experiment, rows: Rows) -> str:
    parts = [
        f"## {experiment.about.order}. {experiment.about.title}",
        f"**Measured on.** {experiment.about.data}",
        f"**Published.** {experiment.about.published}",
        f"**Here.** {experiment.reading(rows)}",
        markdown(experiment.table(rows)),
        f"![{experiment.about.title}](results/{experiment.name}.png)",
        f"[{experiment.name}.csv](results/{experiment.name}.csv), made by",
        "<!-- not run: minutes to hours; Testing/experiments runs it in miniature -->\n"
        f"```sh\n{command(experiment)}\n```",
        f"`--size full`: {experiment.about.full}",
    ]
    return "\n\n".join(parts) + "\n"


def markdown(rows: Rows) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    options = parser.parse_args()
    text = page()
    if options.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("up to date" if same else f"{PAGE} is not what the CSV files give: run this without --check")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
