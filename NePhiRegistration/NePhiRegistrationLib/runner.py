"""The process of the engine: starts it, reads its output, and ends it with all its child processes."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
from pathlib import Path

from nephi import process

from .i18n import tr as _


def find_python() -> str:
    """Slicer's own interpreter, or the one that runs this."""
    return shutil.which("PythonSlicer") or sys.executable


class EngineProcess:
    """A process whose output goes to two files in ``folder``: reading them never blocks and needs no thread."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path):
        self._out, self._error = _Tail(folder / "stdout.txt"), _Tail(folder / "stderr.txt")
        with self._out.path.open("wb") as out, self._error.path.open("wb") as error:
            self._process = process.start(command, stdout=out, stderr=error, environment=environment, folder=folder)
        self.pid = self._process.pid
        atexit.register(self.end)

    def exit_code(self) -> int | None:
        return self._process.poll()

    def messages(self) -> list[dict | str]:
        """Whole lines that came since the last call: JSON objects of stdout, then other text of both.

        Raises OSError with one line where the folder is gone, as when somebody empties the one for temporary files.
        """
        try:
            return [*map(_message, self._out.lines()), *self._error.lines()]
        except FileNotFoundError:
            text = _("The folder of the registration was removed while it ran: {folder}")
            raise OSError(text.format(folder=self._out.path.parent)) from None

    def end(self) -> None:
        """Kill the process and everything it started; returns when it is gone."""
        atexit.unregister(self.end)
        process.end(self._process)


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
