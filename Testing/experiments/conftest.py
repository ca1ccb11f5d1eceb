"""What the experiments' tests share: few shapes, so that drawing them takes no time, and the real data's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as when a module is run as a script


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    import common  # noqa: F401  the package is on its path
    from nephi import dataset, train

    monkeypatch.setattr(dataset, "TRAINING", (50, 1))
    monkeypatch.setattr(dataset, "VALIDATION", (10, 2))
    monkeypatch.setattr(train, "_writer", lambda *_: None)  # TensorBoard takes seconds to load


@pytest.fixture
def data() -> Path:
    """Folder of the real images: NEPHI_DATA, else shared/data beside the project; needed where CI is set."""
    import common  # noqa: F401  the package is on its path
    from pairs import data_folder

    folder = data_folder()
    if not folder.is_dir():
        message = f"no real data at {folder}; set NEPHI_DATA"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder
