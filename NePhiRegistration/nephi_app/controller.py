"""What happens in a session: files become nodes, a registration runs, its result is shown and saved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib import display, sample
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.job import LogicError
from NePhiRegistrationLib.logic import Logic, Run
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.words import duration

from . import texts
from .applied import stem
from .batches import Batches
from .dialog import SAVE, SAVE_MADE, Dialog
from .files import Served, parent, plain
from .inputs import OWN, Inputs
from .presets import Presets, own_presets
from .results import Results
from .roles import BATCH, OPENED, ROLES, USES
from .slices import Slices
from .state import of_scans
from .views import Views
from .windows import Windows

_POLL_S = 0.3
_SCANS = ("fixed", "moving")
_OF_PAIRS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "regions",
             "moving_regions")  # fmt: skip
_ENDING = "Ending the session"
_AS_THEY_LIE = "The moving scan over the fixed one, as they lie."
_AS_FAR = "The moving scan over the fixed one, as far as it is registered."
_INPUTS = ("masks", "preset", "model", "device", "align", "names", "segment", "guide_sd_mm", "running")


class Controller:
    """One scene and the actions on it; ``temporary``: the folder for runs, ``end()`` ends everything."""

    def __init__(
        self, server: Any, served: Served, temporary: Path, views: Views, dialog: Dialog, end: Callable[[], None]
    ):
        self.server, self.state, self.served, self.views = server, server.state, served, views
        self.scene = views.scene
        self.logic = Logic(self.scene, temporary=temporary)
        self.dialog, self.slices, self._end = dialog, Slices(self.state, views), end
        self.inputs = Inputs(self.scene, self.state, own_presets(), served)
        self.presets = Presets(server, self.inputs, self._fail)
        self.run: Run | None = None
        self._asked = ""
        self._wanted = ("", "", "")  # role, path and series of the pending question
        self._tasks: set[asyncio.Task] = set()  # asyncio alone would let go of them
        self.results = Results(server, served, views, self._start)
        self.windows = Windows(self.state, self.inputs, self.results, views.render)
        self.batches = Batches(server, served, self.logic, self.inputs, self._fail, self._start)
        server.trigger("open_pair")(self.open_pair)
        for name in ("name_it", "choose", "drop", "register", "cancel", "jump", "ask", "answer"):
            server.trigger(name)(getattr(self, name))
        server.trigger("fit")(self.slices.fit)
        self.state.change(*_INPUTS)(self._say_problem)
        self.state.change("layout")(lambda layout, **_: views.choose(layout))
        self.state.change("live")(self._show_live)

    def begin(self) -> None:
        """What goes on by itself; the choices of a page that was there before are taken up."""
        self.views.make()
        self.views.choose(self.state.layout)
        with self.state:
            self._say_problem()
        self._start(self._list_devices())
        self._start(self.results.flicker())

    # files

    def name_it(self, key: str = "") -> None:
        """Open the dialog to save the result that is shown or, by its ``key``, what it was applied to."""
        if key and (name := self.results.choose_file(key)):
            self.dialog.open(SAVE_MADE, name)
        elif not key and (outputs := self.results.chosen) is not None:
            self.dialog.open(SAVE, plain(f"{stem(outputs.moving.GetName())} registered"))

    async def choose(self, path: str, series: str = "") -> None:
        """Open what was chosen in the dialog for its role; ``series``: the UID of one of a DICOM folder."""
        role = self.state.dialog
        if role not in OPENED or self.state.busy or self.run is not None:
            return
        if role in _SCANS and self.results.found:
            self._question("open", self._loss("Opening another scan"), "Open")
            self._wanted = (role, path, series)
            return
        await self._open(role, path, series)

    async def _open(self, role: str, path: str, series: str) -> None:
        name, uids = self.dialog.name(path, series), (series,) if series else ()
        with self.state:
            self.state.busy = f"Opening {name}"
        try:
            file = self.served.whole(path)
            if file.is_dir() and not series:
                found = await asyncio.to_thread(_series, file, OPENED[role].text.lower())
                if len(found) > 1:
                    self.dialog.offer(found, path)
                    return
            if role in USES:
                await self.results.applied.add(role, file, name, uids)
                self.windows.draw()
            elif role == BATCH:
                self.batches.take(file)
            else:
                loaded = await self.inputs.load(role, file, name, uids)
        except (NephiError, nodes.FrameError) as error:
            self._fail(str(error))
            return
        finally:
            with self.state:
                self.state.busy = ""
        if role in _SCANS:
            self.results.drop()
        with self.state:
            if role in ROLES:
                self.inputs.take(role, loaded)
            self.state.dialog = ""
            self.state.error = ""
            if file.is_dir():  # the next scan lies beside the series, and results are not saved among its files
                self.state.dialog_path = parent(path)
        if role in _SCANS:
            self._show_scans()

    def open_pair(self, name: str) -> None:
        """Open a result of the list of pairs with its scans, instead of the current ones."""
        if self.state.busy or self.run is not None:
            return
        if self.results.unsaved:
            self._question("pair", self._loss("Opening this result"), "Open")
            self._wanted = (name, "", "")
        else:
            self._start(self._open_pair(name))

    async def _open_pair(self, name: str) -> None:
        if self.state.busy:  # pressed twice
            return
        with self.state:
            self.state.busy = f"Opening {name}"
        try:
            case, folder = self.batches.case(name)
            found = {role: file for role, file in case.files.items() if role in _OF_PAIRS}
            self.results.drop()
            for role in ROLES:
                self.inputs.forget(role)
            for role, file in found.items():
                path = self.served.whole(self.served.relative(file.resolve()))
                self.inputs.take(role, await self.inputs.load(role, path, path.name, case.series))
            self._show_scans()
            outputs = Outputs.opened(folder, *(self.inputs.nodes[role] for role in _SCANS))
        except (NephiError, nodes.FrameError, OSError) as error:
            self._fail(f"{name}: {error}")
            return
        finally:
            with self.state:
                self.state.busy = ""
        with self.state:
            self.state.error, self.state.inputs_open = "", False
            self.state.masks = "files" if any("mask" in role for role in found) else self.state.masks
        self._add(outputs, name, saved=True)

    def drop(self, role: str) -> None:
        """No longer use this mask, list or file."""
        if role in ROLES and role not in _SCANS and self.run is None:
            self.inputs.forget(role)

    async def _open_phantom(self) -> None:
        if self.state.busy:  # pressed twice
            return
        with self.state:
            self.state.busy = "Generating the chest"
        phantom = await asyncio.to_thread(_phantom)
        self.results.drop()
        for role in ROLES:
            self.inputs.forget(role)
        made = sample.add_nodes(self.scene, phantom)
        roles = (*_SCANS, *(f"{side}_mask" for side in _SCANS), *(f"{side}_landmarks" for side in _SCANS))
        with self.state:
            for role, node in zip(roles, made, strict=True):
                self.inputs.take(role, node)
            self.state.masks, self.state.busy, self.state.error = "files", "", ""
        self._show_scans()

    # a run

    def _say_problem(self, **_: Any) -> None:
        self.state.reason = self.inputs.problem()
        estimate = None if self.state.reason else self.logic.estimate(self.inputs.job())
        self.state.estimate = "" if estimate is None else texts.cost(estimate)

    def register(self) -> None:
        if self.run is not None or self.state.busy or self.batches.running:
            return
        if reason := self.inputs.problem():
            self._fail(reason)
            return
        try:
            self.run = self.logic.start(self.inputs.job())
        except LogicError as error:
            self._fail(str(error))
            return
        self._show_live()
        with self.state:
            self.state.error = self.state.note = ""
            self.state.running, self.state.percent, self.state.left = True, 0, ""
            self.state.stage = of_scans(self.run.stage_text)
        self._start(self._watch(self.run))

    def _show_live(self, **_: Any) -> None:
        """As far as it is, or what was shown before."""
        if self.run is None:
            return
        self.run.show_live(self.state.live)
        with self.state:
            self.state.meaning = _AS_FAR if self.state.live else "" if self.results.found else _AS_THEY_LIE

    def cancel(self) -> None:
        if self.run is not None:
            self.run.cancel()

    def close(self) -> None:
        """End what runs."""
        self.cancel()
        self.batches.stop()

    async def _watch(self, run: Run) -> None:
        while run.poll():
            with self.state:
                self.state.stage, self.state.percent = of_scans(run.stage_text), round(100 * run.fraction)
                self.state.left = "" if run.seconds_left is None else f"about {duration(run.seconds_left)} left"
            self.views.render()
            await asyncio.sleep(_POLL_S)
        self.run = None
        with self.state:
            self.state.running = False
            if run.outputs is None:
                self.state.error = run.error
                self.state.note = "" if run.error else "The registration was cancelled; nothing was changed."
        if run.outputs is not None:
            preset = self.state.preset.removeprefix(OWN)
            text = f"{time.strftime('%H:%M')}, {preset}, masks: {self.state.masks}"
            self.state.inputs_open = False
            self._add(run.outputs, text)
        else:
            with self.state:
                self.state.meaning = _AS_THEY_LIE
            self.results.show(again=True)
        self.views.render()

    def _add(self, outputs: Outputs, text: str, saved: bool = False) -> None:
        fixed, moving = (self.inputs.nodes.get(f"{side}_landmarks") for side in _SCANS)
        self.results.add(outputs, None if None in (fixed, moving) else (fixed, moving), text, saved)
        self.windows.draw()

    # the views

    def _show_scans(self) -> None:
        """The scan that is there, or both as they lie."""
        self.views.make()
        fixed, moving = (self.inputs.nodes.get(role) for role in ("fixed", "moving"))
        shown = moving if fixed is None else fixed
        display.show_comparison(shown, moving, display.FADE if shown is not moving and moving is not None else "")
        self.windows.offer()
        with self.state:
            self.state.has_images = True
            self.state.meaning = _AS_THEY_LIE if fixed is not None and moving is not None else ""
        self.views.show_slices_in_3d(True)
        self.slices.fit()

    def jump(self, point_ras_mm: list[float]) -> None:
        display.jump(self.scene, [float(value) for value in point_ras_mm])

    # questions

    def ask(self, what: str) -> None:
        """Do what loses something after a question, and at once where nothing is lost."""
        texts = {"phantom": ("Opening the generated chest", "Open"), "end": (_ENDING, "End")}
        if what not in texts:
            return
        text, yes = texts[what]
        if what == "end" or self.results.found:
            self._question(what, self._loss(text), yes)
        else:
            self._start(self._open_phantom())

    def _question(self, what: str, text: str, yes: str) -> None:
        self._asked = what
        with self.state:
            self.state.dialog, self.state.question, self.state.question_yes = "", text, yes

    def _loss(self, doing: str) -> str:
        batch = self.batches.running and doing == _ENDING
        running = " and stops the registration" if self.run is not None or batch else ""
        unsaved = len(self.results.unsaved)
        which = "the result that has not been saved" if unsaved == 1 else f"{unsaved} results that have not been saved"
        lost = f" discards {which}{running}." if unsaved else f" closes the scans that are open{running}."
        return doing + lost

    async def answer(self, yes: bool) -> None:
        asked, self._asked = self._asked, ""
        with self.state:
            self.state.question = ""
        if yes and asked == "phantom" and self.run is None:
            await self._open_phantom()
        elif yes and asked == "end":
            self.close()
            with self.state:
                self.state.ended = True
            await asyncio.sleep(0.5)  # until the page has it
            self._end()
        elif yes and asked == "open":
            await self._open(*self._wanted)
        elif yes and asked == "pair" and self.run is None:
            await self._open_pair(self._wanted[0])

    # helpers

    async def _list_devices(self) -> None:
        try:
            found = await asyncio.to_thread(self.logic.devices)
        except LogicError as error:
            self._fail(str(error))
            return
        with self.state:
            self.state.devices = [
                *self.state.devices,
                *({"value": device["name"], "text": device["label"]} for device in found),
            ]

    def _fail(self, text: str) -> None:
        with self.state:
            self.state["dialog_error" if self.state.dialog else "error"] = self.served.without_root(text)

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _series(folder: Path, role: str) -> list[Any]:
    from nephi.files.dicom_series import dicom_series

    return dicom_series(folder, role)


def _phantom() -> Any:
    from nephi.synthetic.phantom import make_phantom

    return make_phantom()
