"""Containers and workflows: what they copy exists, what they install is declared, their commands are the parser's."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from nephi.cli.parser import command_parser
from nephi.synthetic.phantom import make_phantom

ROOT = Path(__file__).parents[2]
PIPELINES = ROOT / "pipelines"
DOCKERFILE, APPTAINER = PIPELINES / "Dockerfile", PIPELINES / "nephi.def"
NEXTFLOW, SNAKEMAKE = PIPELINES / "nextflow" / "main.nf", PIPELINES / "snakemake" / "Snakefile"


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile: name and arguments."""
    lines = re.sub(r"\\\n", " ", text(path)).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip() and line[0] != "#"]


def test_the_dockerfile_copies_what_is_there_and_starts_nephi():
    found = instructions(DOCKERFILE)
    assert {name for name, _ in found} <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    assert found[0][0] == "FROM" and ("ENTRYPOINT", '["nephi"]') in found
    sources = [source for name, value in found if name == "COPY" for source in value.split()[:-1]]
    assert "NePhiRegistration" in sources and all((ROOT / source).exists() for source in sources)
    kept = {line[1:] for line in text(ROOT / ".dockerignore").splitlines() if line.startswith("!")}
    assert set(sources) == kept  # nothing else is sent to the builder, and nothing of it is left out


def test_apptainer_copies_the_same():
    section = re.search(r"%files\n(.*?)\n\n", text(APPTAINER), re.DOTALL)[1]
    sources = [line.split()[0] for line in section.splitlines()]
    assert all((ROOT / source).exists() for source in sources)
    assert set(sources) == {line[1:] for line in text(ROOT / ".dockerignore").splitlines() if line.startswith("!")}


@pytest.mark.parametrize("path", [DOCKERFILE, APPTAINER], ids=lambda path: path.name)
def test_containers_install_extras_that_exist(path):
    declared = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    extras = re.search(r"pip install [^\n]*\[([\w,]+)\]", text(path))[1].split(",")
    assert set(extras) <= set(declared) and {"cluster", "formats", "dicom"} <= set(extras)


def commands(path: Path) -> list[list[str]]:
    """The nephi commands of a workflow, with 1 for numbers and words for the rest that it fills in."""
    joined = re.sub(r'"\n\s*"', "", text(path))
    found = []
    for line in re.findall(r'^\s*"?(nephi (?:batch|summarise)[^\n]*?)\s*\|\|', joined, re.MULTILINE):
        line = re.sub(r"\$?\{(params\.)?options\}|\$\{params\.options\}|\{params\.options\}", "", line)
        line = re.sub(r"\$?\{(task\.cpus|threads|shard|wildcards\.shard|params\.shards)\}", "1", line)
        found.append(shlex.split(re.sub(r"\$?\{[^}]*\}", "word", line))[1:])
    return found


@pytest.mark.parametrize("path", [NEXTFLOW, SNAKEMAKE], ids=lambda path: path.name)
def test_workflows_use_commands_that_exist(path):
    found = commands(path)
    assert sorted(words[0] for words in found) == ["batch", "summarise"]
    for words in found:
        command_parser().parse_args(words)
    (batch,) = (command_parser().parse_args(words) for words in found if words[0] == "batch")
    assert batch.shard == "1/1"


@pytest.mark.parametrize("path", [NEXTFLOW.with_name("nextflow.config"), SNAKEMAKE], ids=lambda path: path.name)
def test_options_of_the_test_profile_exist(path):
    options = re.search(r"options ?= ?['\"](--preset [^'\"]*)['\"]", text(path))[1]
    command_parser().parse_args(["batch", "pairs.csv", "--output", "out", *shlex.split(options)])


def pairs(folder: Path) -> Path:
    make_phantom((96, 80), 4.0, dimension=2).write(folder / "data")
    rows = ["name,fixed,moving", *(f"{name},data/fixed.nii.gz,data/moving.nii.gz" for name in "abc")]
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def run(command: list[str], folder: Path) -> None:
    core = str(ROOT / "NePhiRegistration")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": core, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(folder / "out" / "summary.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["status"]) for row in rows] == [("a", "done"), ("b", "done"), ("c", "done")]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("snakemake"), reason="snakemake is not installed")
def test_snakemake_runs_the_test_profile(tmp_path):
    config = ["output=out", "shards=2", "options=--preset fast --iterations 2 --no-report"]
    command = ["snakemake", "-s", str(SNAKEMAKE), "--cores", "1", "--config", f"pairs={pairs(tmp_path)}", *config]
    (tmp_path / "data").mkdir(exist_ok=True)
    run(command, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nextflow"), reason="nextflow is not installed")
def test_nextflow_runs_the_test_profile(tmp_path):
    command = ["nextflow", "run", str(NEXTFLOW.parent), "-profile", "test"]
    run([*command, "--pairs", str(pairs(tmp_path)), "--output", "out"], tmp_path)
