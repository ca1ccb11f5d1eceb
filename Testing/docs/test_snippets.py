"""The pages' snippets run: every block of shell and Python, page by page, in the order in which they stand.

A block with a title is written to the file of that name. One that can't run here has the reason in a comment before
it, ``<!-- not run: ... -->``; its nephi commands are still checked against the parser. Pages run on small phantoms
under the names that they use; registrations and trainings take a few steps.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nephi
import pytest
import SimpleITK as sitk
from nephi.cli import main
from nephi.cli.parser import command_parser
from nephi.commission.record import Limits
from nephi.config import decode
from nephi.learning.settings import TrainSettings
from nephi.measure.verdict import Tolerances
from nephi.registration import register
from nephi.settings import PRESETS, Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"\n]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# few steps: the commands are tested, not what comes of them
SHORT = """
nephi() {
  case "$*" in
    *--iterations*) command nephi "$@";;
    train*|register*|batch*) command nephi "$@" --iterations 2;;
    *) command nephi "$@";;
  esac
}
"""
FEW_STEPS = ["--iterations", "2"]


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    title: str | None
    text: str
    reason: str | None  # why it is not run

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, m.start("language")) + 1, m["language"], m["title"], m["text"], m["reason"])
        for m in FENCE.finditer(text)
    ]


BLOCKS = {page: blocks(page) for page in PAGES}
ALL = [block for found in BLOCKS.values() for block in found]
RUN = [page for page in PAGES if any(b.language in ("sh", "python") and not b.reason for b in BLOCKS[page])]


def lines(text: str) -> list[str]:
    """Of a block of shell, those that are continued as one."""
    return text.replace("\\\n", " ").splitlines()


def commands(text: str) -> list[list[str]]:
    """The words of every nephi command in a block of shell."""
    found = []
    for line in lines(text):
        for part in re.split(r"&&|;|\(|\)|\|", line):
            words = shlex.split(part, comments=True)
            words = words[words.index("-m") + 1 :] if "-m" in words else words
            if len(words) > 1 and (words[0] == "nephi" or words[0].endswith("/bin/nephi")):
                found.append(words[1:])
    return found


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """What the pages call a user's files: a pair in the folder itself, and three cases."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate((".", "case01", "case02", "case03")):
        case = folder / name
        phantom = nephi.make_phantom(size=(36, 32, 32), spacing_mm=8.5, seed=seed)
        phantom.write(case)
        for role, phase in (("fixed", "exhale"), ("moving", "inhale")):
            (case / f"{role}.nii.gz").rename(case / f"{phase}.nii.gz")
            (case / f"{role}_mask.nii.gz").rename(case / f"{phase}_lungs.nii.gz")
            shutil.copy(case / f"{role}_landmarks.csv", case / f"{phase[0]}.csv")
            (case / f"{role}_landmarks.csv").rename(case / f"{phase}.csv")
        lobes = sitk.ConnectedComponent(phantom.fixed_mask)
        sitk.WriteImage(lobes, str(case / "lobes.nii.gz"))
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch) -> Path:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, preset in list(PRESETS.items()):
        monkeypatch.setitem(PRESETS, name, replace(preset, fit=replace(preset.fit, iterations=2)))
    monkeypatch.setitem(register.__kwdefaults__, "settings", PRESETS["balanced"])
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_run(page, folder):
    names: dict = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        if block.reason:
            continue
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
        elif block.language == "sh":
            run_shell(block)


def run_shell(block: Block) -> None:
    """By bash; commands of nephi alone in this process, which has loaded what each would take seconds to load."""
    found = [words for line in lines(block.text) if (words := shlex.split(line, comments=True))]
    if all(words[0] == "nephi" and not set("$|&;<>*()`") & set("".join(words)) for words in found):
        for words in found:
            few = words[1] in ("register", "batch", "train") and FEW_STEPS[0] not in words
            assert main(words[1:] + FEW_STEPS * few) == 0, f"{block.place}: {' '.join(words)}"
        return
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    shell = ["bash", "-euo", "pipefail", "-c", SHORT + block.text]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.place}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_pages_have_snippets():
    assert len(RUN) >= 6 and sum(not b.reason and b.language in ("sh", "python") for b in ALL) >= 30


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.place)
def test_block_is_well_formed(block):
    assert block.language in ("sh", "python", "json", "csv", "text"), "every block names its language"
    if block.language == "python":
        compile(block.text, block.place, "exec")
    elif block.language == "json":
        data = json.loads(block.text)
        kinds = {"data": TrainSettings(), "p95_mm": Limits(), "set_by": Tolerances()}
        decode(next((kind for entry, kind in kinds.items() if entry in data), Settings()), data)  # every entry exists
    elif block.language == "csv":
        widths = {len(row) for row in csv.reader(block.text.splitlines())}
        assert len(widths) == 1
    elif block.language == "sh":
        for words in commands(block.text):
            command_parser().parse_args([re.sub(r"^\$\w+$", "1", word) for word in words])
        for module in re.findall(r"python3? -m ((?:benchmarks|experiments)[\w.]*)", block.text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_fence_is_found():
    for page, found in BLOCKS.items():
        assert 2 * len(found) == len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)), page
