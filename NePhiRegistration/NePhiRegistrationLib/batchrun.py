"""A list of pairs that is registered in a process of its own, watched by polling, and its table."""

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
COLUMNS = {
    "name": _("Pair"),
    "verdict": _("Verdict"),
    "expected_error_mm": _("Expected (mm)"),
    "tre_mm": _("TRE (mm)"),
}
_STATUS = {"waiting": _("waiting"), "running": _("running"), "failed": _("failed"), "interrupted": _("stopped")}


def rows(output: Path, names: list[str], running: bool) -> list[dict[str, str]]:
    """The current table of a batch in its folder: name, status, error, verdict, ...; empty if there is none.

    A pair that was being registered when its batch ended counts as stopped.
    """
    try:
        with (output / _SUMMARY).open(encoding="utf-8", newline="") as file:
            found = {row["name"]: row for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error):
        return []
    known = [found[name] for name in names if name in found]
    return [row | ({} if running or row["status"] != "running" else {"status": "interrupted"}) for row in known]


def cells(row: dict[str, str]) -> list[str]:
    """What a row shows in ``COLUMNS``."""
    return [_cell(row, column) for column in COLUMNS]


def _cell(row: dict[str, str], column: str) -> str:
    value = row.get(column) or ""
    if column.endswith("_mm"):
        return f"{float(value):.2f}" if value else "-"
    if column == "verdict" and row["status"] != "done":
        return _STATUS.get(row["status"], row["status"])
    return value or "-"


class BatchRun:
    """What ``nephi batch`` does with the settings of ``job``, whose volumes it does not need.

    ``sequence``: a sequence node and its reference phase from 0 on, which take the place of the list ``pairs``.
    Pairs of a list that an earlier batch finished are not registered again. Raises LogicError with one line where it
    cannot begin.
    """

    def __init__(self, logic, pairs: str, output: str, job: Job, sequence: tuple | None = None):
        if not output or not (pairs or sequence):
            raise LogicError(_("Choose a list of pairs or a sequence, and a folder for the results."))
        self.output, self.running, self.stopped, self.error = Path(output), True, False, ""
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
        """Process new output; True while it runs."""
        if not self.running:
            return False
        code = self._process.exit_code()  # before its last words are read
        try:
            self.log += [str(message) for message in self._process.messages()]
        except OSError as error:
            self._end()
            self.error = str(error)
            return False
        if code is not None:
            self._end()
            if code not in (0, 1):  # 1: some pairs failed, see the table
                self.error = failure(code, self.log)
        return self.running

    def cancel(self) -> None:
        """Stop the batch and its current pair; finished pairs are kept."""
        if self.running:
            self._end()
            self.stopped = True

    def rows(self) -> list[dict[str, str]]:
        return rows(self.output, self.names, self.running)

    def text(self, folder: str) -> str:
        """The progress as text; ``folder``: the name of the results' folder."""
        if self.error:
            return self.error
        if self.stopped:
            return _("Stopped. Finished pairs are kept; the next start resumes with the others.")
        states = [row["status"] for row in self.rows()]
        counts = {"done": states.count("done"), "failed": states.count("failed"), "all": len(self.names)}
        if self.running:
            return _("{done} of {all} pairs ...").format(**counts)
        text = _("{done} of {all} pairs registered, {failed} failed. They are in {folder}.")
        return text.format(**counts, folder=folder)

    def _end(self) -> None:
        self._process.end()
        self._folder.remove()
        self.running = False
