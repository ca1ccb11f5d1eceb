"""The panel's part in which a list of pairs, or the phases of a sequence, are registered."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
from nephi.errors import NephiError

from . import dependencies, phases
from .batchrun import COLUMNS, BatchRun, cells
from .hierarchy import put_beside
from .i18n import tr as _
from .job import Job, LogicError
from .waiting import wait_cursor

_REMEMBERED = {"batchListPathLineEdit": "batch_list", "batchOutputPathLineEdit": "batch_output"}


class BatchPanel:
    def __init__(self, ui, engine, job: Callable[[], Job]):
        """``engine``: the module's ``Logic``; ``job()``: the job described by the panel, whose settings are used."""
        self.ui, self._engine, self._job = ui, engine, job
        self._run: BatchRun | None = None
        self._rows: list[dict[str, str]] = []
        self._phases: tuple | None = None  # the sequence that is registered, and its reference phase from 0 on
        for line, name in _REMEMBERED.items():
            getattr(ui, line).currentPath = str(slicer.app.userSettings().value(f"NePhiRegistration/{name}") or "")
        ui.batchStartButton.connect("clicked(bool)", self._start)
        ui.batchStopButton.connect("clicked(bool)", self._stop)
        self._show(_("The scene is not changed; each result gets its own folder."))

    @property
    def running(self) -> bool:
        return self._run is not None and self._run.running

    def tick(self) -> None:
        if self._run is None or not self.running:
            return
        going_on = self._run.poll()
        added = "" if going_on or self._run.error else self._add_transforms()
        self._show(self._run.text(str(self._run.output)) + added)

    def cancel(self) -> None:
        if self._run is not None:
            self._run.cancel()

    def _start(self, _checked: bool = False) -> None:
        ui, missing = self.ui, dependencies.problem()
        if not missing and dependencies.missing():
            missing = _("Press Apply for one pair first: it installs what is needed.")
        paths = [getattr(ui, line).currentPath for line in _REMEMBERED]
        sequence = ui.batchSequenceSelector.currentNode()
        self._phases = None if sequence is None else (sequence, ui.batchReferenceSpinBox.value - 1)
        try:
            if missing or (self._phases and (missing := phases.problem(*self._phases))):
                raise LogicError(missing)
            with wait_cursor():  # the phases of a sequence are written
                self._run = BatchRun(self._engine, *paths, self._job(), self._phases)
        except LogicError as error:
            slicer.util.errorDisplay(str(error))
            return
        for name, path in zip(_REMEMBERED.values(), paths, strict=True):
            slicer.app.userSettings().setValue(f"NePhiRegistration/{name}", path)
        self._show(_("Starting ..."))

    def _stop(self, _checked: bool = False) -> None:
        self.cancel()
        if self._run is not None:
            self._show(self._run.text(str(self._run.output)))

    def _add_transforms(self) -> str:
        """An additional message if the sequence that was registered still exists."""
        sequence, reference = self._phases or (None, 0)
        if sequence is None or sequence.GetScene() is None:
            return ""
        try:
            with wait_cursor():
                made = phases.add_transforms(sequence, reference, self._run.output)
        except (OSError, NephiError) as error:
            return " " + _("Their transforms could not be read: {reason}").format(reason=error)
        if made is None:
            return ""
        put_beside([made], sequence)
        return " " + _("The sequence {name} holds their transforms.").format(name=made.GetName())

    def _show(self, text: str) -> None:
        ui = self.ui
        ui.batchStatusLabel.text = text
        ui.batchStartButton.enabled, ui.batchStopButton.enabled = not self.running, self.running
        for button, tip in (
            (ui.batchStartButton, _("Register all unfinished pairs with the settings above.")),
            (ui.batchStopButton, _("Stop; finished pairs are kept.")),
        ):
            button.toolTip = (
                tip if button.enabled else _("The list is running.") if self.running else _("Nothing runs.")
            )
        rows = [] if self._run is None else self._run.rows()
        ui.batchTable.visible = bool(rows)
        if rows != self._rows:
            self._rows = rows
            self._fill()

    def _fill(self) -> None:
        table = self.ui.batchTable
        table.setRowCount(len(self._rows))
        table.setColumnCount(len(COLUMNS))
        table.setHorizontalHeaderLabels(list(COLUMNS.values()))
        for i, row in enumerate(self._rows):
            for j, text in enumerate(cells(row)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(row.get("error") or row.get("reasons") or "")
                table.setItem(i, j, item)
        table.resizeColumnsToContents()
        table.resizeRowsToContents()
