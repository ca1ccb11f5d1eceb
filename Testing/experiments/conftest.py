"""What the experiments' tests share: few shapes, so that drawing them takes no time, and the real data's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nephi.learning import dataset, train

from benchmarks.pairs import data_folder


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr(dataset, "TRAINING", (50, 1))
    monkeypatch.setattr(dataset, "VALIDATION", (10, 2))
    monkeypatch.setattr(train, "tensorboard", lambda *_: None)  # TensorBoard takes seconds to load


@pytest.fixture
def data() -> Path:
    """Folder of the real images: NEPHI_DATA, else shared/data beside the project; needed where CI is set."""
    folder = data_folder()
    if not folder.is_dir():
        message = f"no real data at {folder}; set NEPHI_DATA"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder
