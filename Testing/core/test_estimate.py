"""The estimate before a run: its direction, its size against measured runs, and that it costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nephi
import pytest
from nephi.measure.estimate import estimate
from nephi.settings import PRESETS
from nephi.synthetic.phantom import make_phantom

_LUNGS = ((199, 192, 163), (1.8, 1.8, 2.0)) * 2
_CHEST = ((512, 512, 400), (0.7, 0.7, 0.8)) * 2
# wall-clock seconds on two idle cores and MB, as report.json gave them for a breath-hold pair of this size
_MEASURED = {"fast": (18, 894), "balanced": (22, 874)}


@pytest.mark.parametrize("name", _MEASURED)
def test_it_is_within_a_factor_of_two_of_what_was_measured(name):
    seconds, memory_mb = _MEASURED[name]
    found = estimate(PRESETS[name], *_LUNGS)
    assert seconds / 2 < found.seconds < 2 * seconds
    assert memory_mb / 1.5 < found.memory_mb < 1.5 * memory_mb


def test_a_fine_image_too():
    """A chest of 512 x 512 x 400 voxels: 32 CPU seconds and 1,500 MB (benchmarks/full_size.py)."""
    found = estimate(PRESETS["fast"], *_CHEST)
    assert 32 / 1.5 < found.seconds < 1.5 * 32 and 1500 / 1.5 < found.memory_mb < 1.5 * 1500


def test_more_work_takes_more():
    presets = [estimate(PRESETS[name], *_LUNGS) for name in ("fast", "balanced", "accurate", "paper")]
    assert [e.seconds for e in presets] == sorted(e.seconds for e in presets)
    assert [e.memory_mb for e in presets] == sorted(e.memory_mb for e in presets)
    small, large = (estimate(PRESETS["balanced"], *images) for images in (_LUNGS, _CHEST))
    assert large.seconds > small.seconds and large.memory_mb > small.memory_mb
    balanced = PRESETS["balanced"]
    longer = replace(balanced, fit=replace(balanced.fit, iterations=2 * balanced.fit.iterations))
    assert estimate(longer, *_LUNGS).seconds > 1.2 * small.seconds


def test_files_take_longer_without_the_package_that_packs_them():
    """By a process that has it, and one in which it cannot be imported."""
    found = []
    for package in ("types.SimpleNamespace(error=Exception)", "None"):
        code = (
            f"import sys, types; sys.modules['isal.isal_zlib'] = {package}\n"
            "from nephi.measure.estimate import stages; from nephi.settings import PRESETS\n"
            f"import json; print(json.dumps(stages(PRESETS['fast'], *{_CHEST[:3]})))"
        )
        here = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1])}
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here)
        found.append(json.loads(out.stdout))
    quick, slow = found
    differ = {name for name in quick if quick[name] != slow[name]}
    assert differ == {"reading", "writing", "warping"}
    assert all(quick[name] < slow[name] for name in differ)


def test_two_dimensions_and_a_gpu():
    flat = estimate(PRESETS["fast"], (128, 128), (1.5, 1.5), (120, 130), (1.0, 1.0))
    assert 1 < flat.seconds < 30 and 300 < flat.memory_mb < 700
    gpu = estimate(PRESETS["fast"], *_LUNGS, device="cuda:0")
    assert 0 < gpu.memory_mb < estimate(PRESETS["fast"], *_LUNGS).memory_mb


@pytest.mark.slow
def test_a_run_of_this_machine_takes_about_the_memory(tmp_path):
    """Memory, as it does not depend on what else the machine does; in a process of its own for its peak."""
    phantom = make_phantom((96, 88, 88), 3.0)
    phantom.write(tmp_path)
    command = [sys.executable, "-m", "nephi", "register", tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    command += ["--output", tmp_path / "out", "--preset", "fast", "--iterations", "10", "--progress", "none"]
    here = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1])}
    subprocess.run(command, check=True, capture_output=True, env=here, timeout=120)
    peak_mb = json.loads((tmp_path / "out" / "report.json").read_text())["peak_memory_mb"]
    images = [(i.GetSize(), i.GetSpacing()) for i in (phantom.fixed, phantom.moving)]
    found = estimate(PRESETS["fast"], *images[0], *images[1])
    assert peak_mb / 2 < found.memory_mb < 2 * peak_mb


@pytest.mark.parametrize(
    "module",
    [
        "nephi",
        "nephi.settings",
        "nephi.process",
        "nephi.measure.estimate",
        "nephi.learning.shipped",
        "nephi.files.cases",
    ],
)
def test_nothing_heavy_is_imported(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'SimpleITK', 'numpy') if m in sys.modules])"
    here = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here).stdout
    assert out.strip() == "[]"
