"""Registers a list of pairs in Slicer's own Python, without a window:

    Slicer --no-splash --no-main-window --python-script NePhiRegistrationLib/batch.py pairs.csv --output DIR

Arguments and results are those of ``nephi batch``, whose code this runs; ``sys.executable`` is PythonSlicer here, so
that every pair is registered by a process of its own and torch is not loaded into the application.
"""

import signal
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    folder = str(Path(__file__).resolve().parents[1])  # contains the core package
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from nephi.cli import main as nephi

    # an embedded interpreter may leave Ctrl-C to the application, which would not end the pairs' processes
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return nephi(["batch", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
