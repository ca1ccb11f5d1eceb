"""NePhi and its peers on the same pairs; docs/benchmarks.md says what is measured and how to run it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Environment of a child process that imports this package and nephi, whichever Python runs it."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "NePhiRegistration")))
    return {**os.environ, "PYTHONPATH": path}
