"""What the core tests share: two threads, small phantoms and short settings."""

from __future__ import annotations

import os

# threads that wait without spinning: on a busy machine small steps take a fifth of the time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from nephi.phantom import Phantom, make_phantom
from nephi.settings import PRESETS, SimilaritySettings, Stage

torch.set_num_threads(2)
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(2)


@pytest.fixture(scope="session")
def phantom_2d() -> Phantom:
    return make_phantom(dimension=2)


@pytest.fixture(scope="session")
def phantom_3d() -> Phantom:
    return make_phantom(size=(80, 72, 72), spacing_mm=4.0)


@pytest.fixture(scope="session")
def short():
    """``fast`` with n iterations and one stage."""

    def settings(iterations: int, spacing_mm: float = 2.5, **similarity):
        stage = Stage(0.0, spacing_mm, 2)
        return replace(
            PRESETS["fast"],
            similarity=SimilaritySettings(**{"stages": (stage,), **similarity}),
            fit=replace(PRESETS["fast"].fit, iterations=iterations),
        )

    return settings


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real pairs: NEPHI_DATA, else shared/data beside the project; needed where CI is set."""
    folder = Path(os.environ.get("NEPHI_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        message = f"no real data at {folder}; set NEPHI_DATA"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder
