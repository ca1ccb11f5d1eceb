"""The engine as a child process: its environment, its process group and its end, which comes with its parent's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from .runfolder import RunFolder, wait_for_owner

_FOLDER = Path(__file__).resolve().parents[1]  # contains the package
PATIENCE_S = 5.0  # between asking a process to end and ending it


def engine_command(*arguments: str, python: str = sys.executable, owner: RunFolder | None = None) -> list[str]:
    """``nephi`` with ``arguments``; it ends with the process that holds ``owner``, and then removes that folder."""
    engine = ["nephi"] if owner is None else ["nephi.cli.owned", str(owner.path)]
    return [python, "-m", *engine, *arguments]


def engine_environment(environment: dict[str, str] | None = None) -> dict[str, str]:
    """``environment`` (default: this process's) in which this very package is imported and no output is buffered."""
    environment = dict(os.environ if environment is None else environment)
    # site-packages is found anyway; put first it would hide packages on the user's path
    if _FOLDER.name not in ("site-packages", "dist-packages"):
        path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(_FOLDER), *([path] if path else [])])
    return environment | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls the GPUs that a process with this environment sees."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [number.strip() for number in given.split(",") if number.strip() and number.strip() != "-1"]
    try:
        listed = answer(["nvidia-smi", "--list-gpus"], timeout_s=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed if line.startswith("GPU "))]


def start(
    command: list[str],
    *,
    stdout: IO[bytes],
    stderr: IO[bytes],
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` as the leader of a process group, in ``folder``; raises OSError if it cannot be started."""
    # the interpreter may be a launcher: its children, and theirs, have to end with it
    if sys.platform == "win32":
        flags, session = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP, False
    else:
        flags, session = 0, True
    return subprocess.Popen(
        command,
        env=engine_environment() if environment is None else environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=session,
        creationflags=flags,
    )


def answer(
    command: list[str], environment: dict[str, str] | None = None, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """What a short command writes, without a console window; raises OSError and subprocess.TimeoutExpired."""
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, creationflags=flags
    )


def end(process: subprocess.Popen[bytes], patience_s: float = 0.0) -> None:
    """End a process and everything it started; returns when it is gone.

    With ``patience_s`` it is first asked to end, and has that long to remove its scratch files (POSIX).
    """
    if sys.platform == "win32":
        if process.poll() is None:
            answer(["taskkill", "/F", "/T", "/PID", str(process.pid)])
    else:
        if patience_s > 0 and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # also where the leader itself has ended
    process.wait()


def end_with_owner(folder: Path) -> None:
    """In the engine: wait for the end of the folder's owner, then end this process and everything it started."""
    wait_for_owner(folder)
    if sys.platform != "win32" and os.getsid(0) == os.getpgrp():  # begun by ``start``: the group is its own
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
