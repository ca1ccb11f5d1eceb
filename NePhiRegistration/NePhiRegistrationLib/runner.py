"""The engine's process: started, listened to and ended, with the whole tree of processes below it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ENGINE_FOLDER = Path(__file__).resolve().parents[1]  # holds the package nephi
_WINDOWS = os.name == "nt"


def find_python() -> str:
    """Slicer's own interpreter, or the one that runs this."""
    return shutil.which("PythonSlicer") or sys.executable


def engine_environment(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment with ``nephi`` on the path; no output waits in a buffer."""
    environment = dict(os.environ if environment is None else environment)
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(ENGINE_FOLDER), *([path] if path else [])])
    return environment | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def answer(command: list[str], environment: dict[str, str] | None = None, seconds: float | None = None):
    """Run a short command to its end without a console window; returns subprocess.CompletedProcess with its texts."""
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False, **_without_console()
    )


def _without_console(own_group: bool = False) -> dict:
    """Arguments that keep Windows from opening a console window; ``own_group``: not ended by the parent's Ctrl-C."""
    if not _WINDOWS:
        return {}
    return {"creationflags": subprocess.CREATE_NO_WINDOW | (subprocess.CREATE_NEW_PROCESS_GROUP if own_group else 0)}


class EngineProcess:
    """A process whose output goes to two files in ``folder``: reading them never blocks and needs no thread."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path):
        self._out, self._error = _Tail(folder / "stdout.txt"), _Tail(folder / "stderr.txt")
        # a group of its own, so that what the process starts can be ended with it
        group = {} if _WINDOWS else {"start_new_session": True}
        with self._out.path.open("wb") as out, self._error.path.open("wb") as error:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                **_without_console(own_group=True),
                **group,
            )
        self.pid = self._process.pid
        atexit.register(self.end)

    def exit_code(self) -> int | None:
        return self._process.poll()

    def messages(self) -> list[dict | str]:
        """Whole lines that came since the last call: JSON objects of stdout, then other text of both.

        Raises OSError where the folder is gone.
        """
        return [*map(_message, self._out.lines()), *self._error.lines()]

    def end(self) -> None:
        """Kill the process and everything it started; returns when it is gone."""
        atexit.unregister(self.end)
        if not _WINDOWS:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # also where the leader itself has ended
        elif self._process.poll() is None:
            answer(["taskkill", "/F", "/T", "/PID", str(self.pid)])
        self._process.wait()


class _Tail:
    """The lines that a growing file got since the last look; an unfinished one waits."""

    def __init__(self, path: Path):
        self.path, self._position = path, 0

    def lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._position)
            whole, newline, _rest = file.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        return whole.decode("utf-8", "replace").splitlines() if newline else []


def _message(line: str) -> dict | str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return entry if isinstance(entry, dict) else line
