"""``python -m NePhiRegistrationLib.engine LOCK ARGUMENTS``: ``nephi`` that ends with the application.

LOCK is the file that the application holds locked (see ``runfolder.py``). Once the lock is free, the application is
gone: the folder is removed and this process group ended.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from NePhiRegistrationLib.runfolder import try_lock

_SECONDS = 1.0


def end_with(lock: Path) -> None:
    """Wait until the lock is free or its folder gone, then end everything."""
    try:
        file = os.open(lock, os.O_RDWR)
        while lock.exists() and not try_lock(file):
            time.sleep(_SECONDS)
    except OSError:
        pass
    shutil.rmtree(lock.parent, ignore_errors=True)
    if os.name == "posix" and os.getsid(0) == os.getpgrp():  # the application made a session of its own for it
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(Path(sys.argv.pop(1)),), daemon=True).start()
    runpy.run_module("nephi", run_name="__main__", alter_sys=True)
