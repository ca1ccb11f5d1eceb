"""The generated reference is complete: every setting, every command and every module is on a page."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import typing
from pathlib import Path

import nephi
import pytest
from nephi.cli.parser import command_parser
from nephi.learning.settings import MatchingSettings, TrainSettings
from nephi.limits import split
from nephi.settings import PRESETS, IntensitySettings, Settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
CORE = Path(nephi.__file__).parent


def load_hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()


def built(page: str) -> str:
    """A page as the site has it, before it becomes HTML."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return HOOKS._GENERATED.sub(lambda m: HOOKS.GENERATORS[m[1]](*m[2].split()), text)


def held(value, found: dict) -> dict:
    """The settings objects in a settings object, by class; found by their values, not by their types."""
    if dataclasses.is_dataclass(value):
        found[type(value)] = value
        for one in dataclasses.fields(value):
            held(getattr(value, one.name), found)
    elif isinstance(value, tuple):
        for item in value:
            held(item, found)
    return found


SETTINGS = held(TrainSettings(), held(Settings(), {}))
SETTINGS |= {kind: None for cls in tuple(SETTINGS) for kind in (*cls.__mro__[:-1], *cls.__subclasses__())}
SETTINGS |= dict.fromkeys((IntensitySettings, MatchingSettings))


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_row_with_type_and_default(cls):
    page = built("settings.md")
    assert page.count(f"### {cls.__name__} {{") == 1
    section = page.split(f"### {cls.__name__} {{")[1].split("\n### ")[0].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"| `{one.name}`" for one in dataclasses.fields(cls)]
    for row, one in zip(rows, dataclasses.fields(cls), strict=True):
        kind, default, limits = " | ".join(row[1:-3]), row[-3], row[-2]  # a type may hold the sign that divides cells
        assert kind.strip("`") and "Annotated" not in kind and default and row[-1].strip(" |"), one.name
        declared = split(typing.get_type_hints(cls, include_extras=True)[one.name])[1]
        assert all(str(limit) in limits for limit in declared), one.name


def test_comments_and_defaults_are_those_of_the_code():
    page = built("settings.md")
    assert "| `wavelength_mm` | `float` | `250.0` | above 0 | scale of the Fourier features |" in page
    assert "| `save_every` | `int` | `200` | 1 or more | steps between" in page
    assert re.search(r"\| `fit` \| `FitSettings` \| \[FitSettings\]\(#fitsettings\)<br>`iterations: 10000`", page)


def test_presets_are_told_apart():
    lines = built("settings.md").splitlines()
    (row,) = (line for line in lines if line.startswith("| `fit.iterations`"))
    assert [int(n) for n in re.findall(r"`(\d+)`", row)] == [one.fit.iterations for one in PRESETS.values()]
    assert not any(line.startswith("| `fit.seed`") for line in lines)  # the same in all


def test_every_command_has_its_help():
    page = built("cli-help.md")
    (commands,) = (a for a in command_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        section = page.split(f"## nephi {name}\n")[1].split("\n## ")[0]
        assert all(option in section for action in parser._actions for option in action.option_strings), name


def test_every_module_is_on_a_page():
    identifiers = {}
    for page in REFERENCE.glob("*.md"):
        identifiers |= dict.fromkeys(
            re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE), page
        )
    for path in CORE.rglob("*.py"):
        parts = path.relative_to(CORE).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__", "version"):
            continue
        name = f"nephi.{parts[0]}"
        assert name in identifiers, f"docs/reference has no page of {name}"
        if len(parts) > 1:
            assert "show_submodules: true" in identifiers[name].read_text(encoding="utf-8"), name


def test_the_public_face_is_complete():
    listed = re.findall(r"^::: nephi\.(\w+)$", (REFERENCE / "nephi.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(set(nephi.__all__) - {"__version__"})


def test_settings_that_the_training_page_names_exist():
    """Its table is a choice of entries by hand; each has to be one."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.split("## 4. Write the settings")[1].split("## 5.")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    entries = [entry for row in rows for entry in re.findall(r"`([\w.]+)`", row)]
    assert len(entries) > 20
    for entry in entries:
        value = TrainSettings()
        for part in entry.split("."):
            kinds = [kind() for base in type(value).__mro__[1:-1] for kind in base.__subclasses__()]  # of other kinds
            value = next((one for one in (value, *kinds) if hasattr(one, part)), value)
            assert hasattr(value, part), entry
            value = getattr(value, part)
