"""Extension from outside the package: the examples run, and what they add by name is known everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

import nephi
import numpy as np
import pytest
import torch
from nephi import registry, settings

EXAMPLES = Path(__file__).parents[2] / "examples"
CORE = Path(nephi.__file__).parents[1]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Callable[[str], tuple[str, Path]]:
    """What an example prints, and the folder in which it ran, once."""

    @cache
    def of(name: str) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp(name)
        return output_of(name, folder), folder

    return of


def output_of(name: str, folder: Path) -> str:
    path = os.pathsep.join([str(CORE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def errors_mm(output: str) -> list[float]:
    return [float(value) for value in re.findall(r"mean error ([\d.]+) mm", output)]


def test_every_example_is_short_and_run_here():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_similarity", "own_regulariser", "own_field", "own_encoder", "own_data"}
    for path in EXAMPLES.glob("*.py"):
        assert len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 25, path.name


@pytest.mark.parametrize("name, most_mm", [("own_similarity", 0.4), ("own_regulariser", 0.6), ("own_field", 1.3)])
def test_what_is_added_registers(name, most_mm, outcome):
    """The moments alone leave 2.4 mm."""
    errors = errors_mm(outcome(name)[0])
    assert errors and all(0 < error < most_mm for error in errors)


def test_a_result_loads_where_its_similarity_is_not_known(outcome):
    result = nephi.Registration.load(outcome("own_similarity")[1] / "registration.safetensors")
    assert result.settings.similarity.name == "MutualInformation" not in nephi.SIMILARITIES
    chest = nephi.make_phantom(dimension=2)
    gaps = result.forward(chest.fixed_landmarks_lps_mm) - chest.moving_landmarks_lps_mm
    assert np.linalg.norm(gaps, axis=1).mean() < 0.4


def test_an_own_encoder_is_saved_and_loaded_by_its_name(tmp_path):
    assert "parameters" in output_of("own_encoder", tmp_path)
    with pytest.raises(nephi.NephiError, match="encoder.kind is 'mean', must be one of published, matching"):
        nephi.Model.load(tmp_path / "model.safetensors")


def test_own_data_is_trained_on(tmp_path):
    assert "after step 4" in output_of("own_data", tmp_path)
    assert (tmp_path / "trained" / "model.safetensors").is_file()


def test_an_unknown_name_is_one_line():
    unknown = replace(nephi.PRESETS["fast"].similarity, name="mutual")
    with pytest.raises(nephi.NephiError, match="similarity.name is 'mutual', must be one of mind, lncc, ncc, mse"):
        settings.check(replace(nephi.PRESETS["fast"], similarity=unknown))


def test_two_things_cannot_have_one_name():
    with pytest.raises(nephi.NephiError, match="similarity 'mind' already"):
        nephi.SIMILARITIES.add("mind", lambda settings: nephi.Similarity())


def test_another_package_adds_by_an_entry_point(monkeypatch):
    """A settings file may then name it, though nothing of that package was imported before."""
    names = registry.Registry("penalty", "regularity.name", "none")
    point = EntryPoint("outside", "torch.nn:Identity", "nephi.penalty")
    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda **which: asked.append(which) or [point])
    assert isinstance(names.make("outside"), torch.nn.Identity) and "outside" in names
    assert asked == [{"group": "nephi.penalty", "name": "outside"}]
