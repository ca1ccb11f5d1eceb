"""``python -m nephi.cli.owned FOLDER ARGUMENTS``: ``nephi`` that ends with the owner of a run folder."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ..process import end_with_owner
from .entry import main

if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    threading.Thread(target=end_with_owner, args=(Path(folder),), daemon=True).start()
    raise SystemExit(main(arguments))
