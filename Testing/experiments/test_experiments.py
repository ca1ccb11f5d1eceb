"""Every experiment in miniature, and the page of results against its CSV files."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import environment
from experiments import results
from experiments.experiment import SIZES, experiments, main, read_csv

EXPERIMENTS = {experiment.name: experiment for experiment in experiments()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs_in_miniature(name, tmp_path, request):
    """Rows for the CSV, a figure that is not blank, and a section in words and numbers from them."""
    experiment = EXPERIMENTS[name]
    if experiment.about.real:
        request.getfixturevalue("data")
    assert set(experiment.about.sizes) == set(SIZES)
    assert main([name, "--out", str(tmp_path), "--size", "mini"]) == 0
    rows = read_csv(tmp_path / f"{name}.csv")
    assert rows and all(None not in row.values() for row in rows)
    with Image.open(tmp_path / f"{name}.png") as figure:
        assert min(figure.size) > 100
        assert len(figure.convert("RGB").getcolors(1 << 24)) > 20
    text = results.section(experiment, rows)
    assert experiment.about.title in text and f"results/{name}.png" in text
    assert "nan" not in text.split("\n\n```sh")[0].lower().split()


def test_the_page_is_what_the_csv_files_give():
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if results.measured(one)])
def test_the_page_s_files_are_small(name):
    assert (results.TABLES / f"{name}.png").stat().st_size < 100_000
    assert (results.TABLES / f"{name}.csv").stat().st_size < 100_000


def test_a_command_says_what_is_wrong(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "oasis_slices", "--out", str(tmp_path / "out"), "--size", "mini"],
        env=environment() | {"NEPHI_DATA": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "NEPHI_DATA" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
