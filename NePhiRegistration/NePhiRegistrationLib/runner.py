"""The engine's process: started, listened to and ended, with the whole tree of processes below it."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
from pathlib import Path

from nephi import process

_PANEL_WORDS = {  # for what the engine calls by its options
    "with --fixed-mask": "as fixed mask",
    "with --moving-mask": "as moving mask",
    "--align moments": "the first alignment by centre and size of the lungs",
    "--align centres": "the first alignment by centres",
    "--device cpu": "the CPU",
}


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
        """Whole lines that came since the last call: JSON objects of stdout, then other text of both."""
        return [*map(_message, self._out.lines()), *self._error.lines()]

    def end(self) -> None:
        """Kill the process and everything it started; returns when it is gone."""
        atexit.unregister(self.end)
        process.end(self._process)


def failure(code: int, log: list[str]) -> str:
    """What went wrong, in one line for the user, from the exit code and the log."""
    said = [line for line in log if line.startswith("nephi: ")]
    if said:
        return in_panel_words(said[-1].removeprefix("nephi: "))
    text = "\n".join(log)
    last = next((line for line in reversed(log) if line.strip()), "")
    if "No module named 'torch'" in text:
        return "PyTorch is not installed for the engine: install it with the PyTorch extension."
    if "No module named" in last:
        return f"A Python package of the engine is missing: {last.partition(': ')[2] or last}."
    if "OutOfMemoryError" in text or "CUDA out of memory" in text:
        return "The graphics card ran out of memory: choose the CPU or another card, or a faster preset."
    if code == -9 or code == 137:
        return "The engine was ended by the system, most likely because memory ran out: choose a faster preset."
    return f"The engine stopped unexpectedly (exit code {code}): {last or 'it said nothing'}"


def in_panel_words(text: str) -> str:
    """What the engine says to a user of the command line, for one who has no options to give."""
    for option, words in _PANEL_WORDS.items():
        text = text.replace(option, words)
    return text


class _Tail:
    """The lines that a growing file got since the last look; an unfinished one waits."""

    def __init__(self, path: Path):
        self.path, self._position = path, 0

    def lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._position)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        return whole.decode("utf-8", "replace").splitlines() if newline else []


def _message(line: str) -> dict | str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return entry if isinstance(entry, dict) else line
