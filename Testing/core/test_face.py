"""``import nephi``: what editors complete and type checkers see is what there is."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import nephi
import pytest

WANTED = {
    "register", "Registration", "warp", "transform", "evaluate", "make_phantom", "train", "Model", "Settings",
    "PRESETS", "NephiError", "read_image", "read_landmarks", "__version__",
    "Similarity", "Regulariser", "Fields", "Encoder", "Map", "Code", "PairTensors", "tensors_of",
    "ModelSettings", "EncoderSettings", "PublishedSettings", "MatchingSettings", "TrainSettings",
    "FieldSettings", "SIMILARITIES", "REGULARISERS", "FIELDS", "ENCODERS",
}  # fmt: skip


def test_every_public_name_is_there_and_completes():
    assert set(nephi.__all__) == WANTED and set(dir(nephi)) >= WANTED
    for name in WANTED:
        assert getattr(nephi, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'registre'"):
        nephi.registre  # noqa: B018 (the look-up is what is tested)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(nephi.__file__).read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    seen = {(alias.name, alias.asname, node.module) for node in block.body for alias in node.names}
    assert seen == {(name, name, module) for name, module in nephi._HOMES.items()}
    assert {name for name, _, _ in seen} | {"__version__"} == WANTED
    for name, _, module in seen:
        assert getattr(importlib.import_module(f"nephi.{module}"), name) is getattr(nephi, name)
    assert (Path(nephi.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("module", ["nephi.cli.batch", "nephi.cli.dirlab", "nephi.cli.evaluate"])
def test_commands_that_need_no_torch_do_not_load_it(module):
    """It takes a second and some hundred megabytes."""
    code = f"import sys, {module}; print('torch' in sys.modules)"
    here = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here)
    assert done.stdout.strip() == "False"
