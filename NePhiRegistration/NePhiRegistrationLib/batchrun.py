"""A list of pairs that is registered in a process of its own, watched by polling."""

from __future__ import annotations

import csv
from pathlib import Path

from nephi.errors import NephiError
from nephi.files.cases import read_pairs
from nephi.process import engine_command
from nephi.runfolder import RunFolder

from . import phases
from .i18n import tr as _
from .job import Job, LogicError
from .runner import EngineProcess
from .scene import FrameError
from .words import failure

_SUMMARY = "summary.csv"


class BatchRun:
    """What ``nephi batch`` does with the settings of ``job``, whose volumes it does not need.

    ``sequence``: a sequence node and its reference phase from 0 on, which take the place of the list ``pairs``.
    Pairs of a list that an earlier batch finished are not registered again. Raises LogicError with one line where it
    cannot begin.
    """

    def __init__(self, logic, pairs: str, output: str, job: Job, sequence: tuple | None = None):
        if not output or not (pairs or sequence):
            raise LogicError(_("Choose a list of pairs or a sequence, and a folder for the results."))
        self.output, self.running, self.error = Path(output), True, ""
        self.log: list[str] = []
        self._folder = None
        try:
            self._folder = RunFolder(logic.temporary)
            if sequence is not None:
                pairs = str(phases.write_pairs(*sequence, self._folder.path))
            self.names = [case.name for case in read_pairs(pairs)]
            settings = self._folder.path / "settings.json"
            settings.write_text(job.settings().to_json(), encoding="utf-8")
            arguments = ["batch", str(Path(pairs).resolve()), "--output", str(self.output.resolve())]
            arguments += ["--settings", str(settings), "--device", job.device]
            arguments += ["--tolerances", job.tolerances_file] if job.tolerances_file else []
            arguments += [] if job.auto_mask else ["--no-auto-mask"]
            command = engine_command(*arguments, python=logic.python, owner=self._folder)
            self._process = EngineProcess(command, logic.environment, self._folder.path)
        except (NephiError, OSError, FrameError) as error:
            if self._folder is not None:
                self._folder.remove()
            raise LogicError(str(error)) from None

    def poll(self) -> bool:
        """Take in what was said; True while it runs."""
        if not self.running:
            return False
        code = self._process.exit_code()  # before its last words are read
        self.log += [str(message) for message in self._process.messages()]
        if code is not None:
            self._end()
            if code not in (0, 1):  # 1: some pairs failed, as the table says
                self.error = failure(code, self.log)
        return self.running

    def cancel(self) -> None:
        """End it and the pair under way; what is finished stays."""
        if self.running:
            self._end()

    def rows(self) -> list[dict[str, str]]:
        """Of the batch's table as it is now: name, status, error, verdict, ..."""
        try:
            with (self.output / _SUMMARY).open(encoding="utf-8", newline="") as file:
                found = {row["name"]: row for row in csv.DictReader(file)}
        except (OSError, KeyError, UnicodeDecodeError):
            return []
        return [found[name] for name in self.names if name in found]

    def _end(self) -> None:
        self._process.end()
        self._folder.remove()
        self.running = False
