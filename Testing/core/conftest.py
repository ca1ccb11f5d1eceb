"""What the core tests share: two threads, small phantoms and short settings."""

from __future__ import annotations

import csv
import os

# threads that wait without spinning: on a busy machine small steps take a fifth of the time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nephi.config import of_kind
from nephi.device import limit_threads
from nephi.files.landmarks import write_landmarks
from nephi.settings import PRESETS, Features, Level, SimilaritySettings
from nephi.synthetic.phantom import Phantom, make_phantom

limit_threads(min(2, torch.get_num_threads()))  # one with OMP_NUM_THREADS=1, as where several processes run the tests


@pytest.fixture(scope="session")
def phantom_2d() -> Phantom:
    return make_phantom(dimension=2)


@pytest.fixture(scope="session")
def phantom_3d() -> Phantom:
    return make_phantom(size=(80, 72, 72), spacing_mm=4.0)


@pytest.fixture(scope="session")
def short():
    """``fast`` with n iterations and one level."""

    def settings(iterations: int, spacing_mm: float = 2.5, **similarity):
        levels = similarity.pop("levels", (Level(0.0, Features(spacing_mm, 2), 2.0),))
        name = similarity.pop("name", "mind")
        return replace(
            PRESETS["fast"],
            levels=levels,
            similarity=replace(of_kind(SimilaritySettings(), name), **similarity),
            fit=replace(PRESETS["fast"].fit, iterations=iterations),
        )

    return settings


@pytest.fixture(scope="session")
def training_pairs(tmp_path_factory) -> Path:
    """A list of three 2D phantoms with masks, landmarks and known points."""
    folder = tmp_path_factory.mktemp("pairs")
    roles = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "fixed_points",
             "moving_points")  # fmt: skip
    rows = [["name", *roles]]
    for seed in range(3):
        phantom = make_phantom((96, 80), 4.0, dimension=2, seed=seed)
        phantom.write(folder / str(seed))
        points = phantom.fixed_landmarks_lps_mm + 5
        write_landmarks(folder / str(seed) / "fixed_points.csv", points)
        write_landmarks(folder / str(seed) / "moving_points.csv", phantom.forward(points))
        rows.append([f"p{seed}", *(f"{seed}/{r}{'.nii.gz' if i < 4 else '.csv'}" for i, r in enumerate(roles))])
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "pairs.csv"


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real pairs: NEPHI_DATA, else shared/data beside the project; needed where CI is set."""
    folder = Path(os.environ.get("NEPHI_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        message = f"no real data at {folder}; set NEPHI_DATA"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder


@pytest.fixture(params=["isal", "zlib"])
def packed_by(request, monkeypatch):
    """gzip files by either of the libraries that pack them."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr("nephi.files.packing.isal_zlib", None)
