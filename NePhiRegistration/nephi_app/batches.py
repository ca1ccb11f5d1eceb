"""A list of pairs in the page: chosen, registered, stopped, gone on with, and one of its results opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib import batchrun
from NePhiRegistrationLib.batchrun import BatchRun
from NePhiRegistrationLib.job import LogicError
from NePhiRegistrationLib.logic import Logic

from .files import Served, parent
from .inputs import Inputs

_POLL_S = 1.0


class Batches:
    """``fail`` shows the user one line; ``start`` starts a task of the server's loop and keeps it."""

    def __init__(
        self,
        server: Any,
        served: Served,
        logic: Logic,
        inputs: Inputs,
        fail: Callable[[str], None],
        start: Callable[[Any], None],
    ):
        self.state, self.served, self.logic, self.inputs = server.state, served, logic, inputs
        self._fail, self._start = fail, start
        self._cases: dict[str, Any] = {}  # of the list that was chosen
        self._run: BatchRun | None = None
        server.trigger("start_batch")(self.start)
        server.trigger("stop_batch")(self.stop)
        self.state.change("batch_folder")(self._tell)
        self.state.batch_columns = list(batchrun.COLUMNS.values())

    @property
    def running(self) -> bool:
        return self._run is not None and self._run.running

    def take(self, path: Path) -> None:
        """A list was chosen. Raises NephiError if it is invalid or names files outside the served folder."""
        if self.running:
            raise NephiError("a list of pairs is being registered: stop it first")
        self._cases = self._read(path)
        self._run = None
        with self.state:
            self.state.batch_list = self.served.relative(path)
            self.state.batch_folder = f"{path.stem} results"
        self._tell()

    def case(self, name: str) -> tuple[Any, Path]:
        """A pair that is done, and the folder of its result. Raises NephiError where either leads out of the folder."""
        case, output = self._cases.get(name), self._output()
        if case is None or output is None:
            raise NephiError("there is no such result")
        self._check(case, output)
        return case, self.served.whole(self.served.relative(output / name))

    def start(self) -> None:
        if self.running or self.state.running or not self.state.batch_list:
            return
        try:
            job = self.inputs.checked()
            path = self.served.path(self.state.batch_list)
            self._cases = self._read(path)  # its current state
            output = self.served.new_folder(parent(self.state.batch_list), self.state.batch_folder)
            for case in self._cases.values():
                self._check(case, output)
            self._run = BatchRun(self.logic, str(path), str(output), job)
        except (NephiError, LogicError) as error:
            self._fail(str(error))
            return
        with self.state:
            self.state.error, self.state.batch_running = "", True
        self._tell()
        self._start(self._watch(self._run))

    def stop(self) -> None:
        """Stop the current pair; finished pairs are kept."""
        if self._run is not None:
            self._run.cancel()
        self._tell()

    async def _watch(self, run: BatchRun) -> None:
        while run.poll():
            self._tell()
            await asyncio.sleep(_POLL_S)
        self._tell()

    def _read(self, path: Path) -> dict[str, Any]:
        from nephi.files.cases import read_pairs

        cases = {case.name: case for case in read_pairs(path)}
        for case in cases.values():
            self._check(case)
        return cases

    def _check(self, case: Any, output: Path | None = None) -> None:
        places = [*case.files.values(), *([] if output is None else [output / case.name])]
        for place in places:
            if not self.served.holds(place):
                raise NephiError(f"{case.name}: {place.name} is not in the served folder")

    def _output(self) -> Path | None:
        try:
            return self.served.new_folder(parent(self.state.batch_list), self.state.batch_folder)
        except NephiError:
            return None

    def _tell(self, **_: Any) -> None:
        run, output = self._run, self._output()
        rows = [] if output is None else batchrun.rows(output, list(self._cases), self.running)
        listed = [
            {
                "cells": batchrun.cells(row),
                "name": row["name"],
                "done": row["status"] == "done",
                "why": self.served.without_root(row.get("error") or row.get("reasons") or ""),
            }
            for row in rows
        ]
        if run is None or run.output != output:
            count = len(self._cases)
            text = f"{count} pair{'s' if count > 1 else ''}" if count else ""
        else:
            text = run.text(self.served.relative(run.output))
        known = {"batch_running": self.running, "batch_rows": listed, "batch_text": text}
        with self.state:
            self.state.update(known)
