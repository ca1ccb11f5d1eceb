"""What happens in a session: files become nodes, a registration runs, its result is shown and saved."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib import display, sample
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.job import LogicError
from NePhiRegistrationLib.logic import Logic, Run
from NePhiRegistrationLib.words import duration

from . import state
from .dialog import SAVE, Dialog
from .files import Served
from .inputs import OWN, Inputs
from .presets import Presets, own_presets
from .results import Results
from .roles import ROLES
from .slices import Slices
from .views import Views

_POLL_S = 0.3
_SCANS = ("fixed", "moving")
_INPUTS = ("masks", "preset", "model", "device", "align", "names", "segment", "guide_sd_mm", "running")


class Controller:
    """One scene and what is done with it; ``temporary``: where the runs' folders are made."""

    def __init__(self, server: Any, served: Served, temporary: Path, views: Views):
        self.server, self.state, self.served, self.views = server, server.state, served, views
        self.scene = views.scene
        self.logic = Logic(self.scene, temporary=temporary)
        self.dialog, self.slices = Dialog(self.state, served), Slices(self.state, views)
        self.inputs = Inputs(self.scene, self.state, own_presets())
        self.presets = Presets(server, self.inputs, self._fail)
        self.run: Run | None = None
        self._asked = ""
        self._wanted = ("", "", "")  # role, path and series of what was asked about
        self._begun = False
        self.ended = asyncio.Event()  # by the user
        self._tasks: set[asyncio.Task] = set()  # asyncio alone would let go of them
        self.results = Results(server, served, views, self._start)
        for name in ("begin", "browse", "choose", "drop", "register", "cancel", "jump", "ask", "answer"):
            server.trigger(name)(getattr(self, name))
        server.trigger("enter")(self.dialog.enter)
        server.trigger("fit")(self.slices.fit)
        self.state.change(*_INPUTS)(self._say_problem)
        self.state.change("layout")(lambda layout, **_: views.choose(layout))
        self.state.change("ct_window")(lambda **_: self._set_window())
        self.state.change("live")(lambda **_: self.run and self.run.show_live(self.state.live))

    def begin(self) -> None:
        """A page can be used, the first or another: make what it did not wait for."""
        if not self._begun:
            self._begun = True
            self.views.make()
            self._start(self._list_devices())
            self._start(self.results.flicker())

    # files

    def browse(self, role: str) -> None:
        if role == SAVE and (outputs := self.results.chosen) is not None:
            self.dialog.open(role, f"{outputs.moving.GetName()} registered".replace("/", "_"))
        elif role in ROLES:
            self.dialog.open(role)

    async def choose(self, path: str, series: str = "") -> None:
        """Open what was chosen in the dialog for its role; ``series``: the UID of one of a DICOM folder."""
        role = self.state.dialog
        if role not in ROLES or self.state.busy or self.run is not None:
            return
        if role in _SCANS and self.results.found:
            self._question("open", self._loss("Opening another scan"), "Open")
            self._wanted = (role, path, series)
            return
        await self._open(role, path, series)

    async def _open(self, role: str, path: str, series: str) -> None:
        name = Path(path).name or self.state.root_name
        with self.state:
            self.state.busy = f"Opening {name}"
        try:
            file = self.served.path(path)
            if file.is_dir() and not series:
                found = await asyncio.to_thread(_series, file, ROLES[role].text.lower())
                if len(found) > 1:
                    self.dialog.offer(found, path)
                    return
            loaded = await self.inputs.load(role, file, name, series)
        except (NephiError, nodes.FrameError) as error:
            self._fail(str(error))
            return
        finally:
            with self.state:
                self.state.busy = ""
        if role in _SCANS:
            self.results.drop()
        with self.state:
            self.inputs.take(role, loaded)
            self.state.dialog = ""
            self.state.error = ""
        if role in _SCANS:
            self._show_scans()

    def drop(self, role: str) -> None:
        """No longer use this mask, list or file."""
        if role in ROLES and role not in _SCANS and self.run is None:
            self.inputs.forget(role)

    async def _open_phantom(self) -> None:
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
        self.state.estimate = "" if estimate is None else state.cost(estimate)

    def register(self) -> None:
        if self.run is not None or self.state.busy:
            return
        try:
            self.run = self.logic.start(self.inputs.job())
        except LogicError as error:
            self._fail(str(error))
            return
        self.run.show_live(self.state.live)
        with self.state:
            self.state.error = self.state.note = ""
            self.state.running, self.state.percent, self.state.left = True, 0, ""
            self.state.stage = self.run.stage_text
        self._start(self._watch(self.run))

    def cancel(self) -> None:
        if self.run is not None:
            self.run.cancel()

    async def _watch(self, run: Run) -> None:
        while run.poll():
            with self.state:
                self.state.stage, self.state.percent = run.stage_text, round(100 * run.fraction)
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
            fixed, moving = (self.inputs.nodes.get(f"{side}_landmarks") for side in _SCANS)
            preset = self.state.preset.removeprefix(OWN)
            text = f"{time.strftime('%H:%M')}, {preset}, masks: {self.state.masks}"
            self.state.inputs_open = False
            self.results.add(run.outputs, None if None in (fixed, moving) else (fixed, moving), text)
        else:
            self.results.show(again=True)
        self.views.render()

    # the views

    def _show_scans(self) -> None:
        """The scan that is there, or both as they lie."""
        self.views.make()
        fixed, moving = (self.inputs.nodes.get(role) for role in ("fixed", "moving"))
        shown = moving if fixed is None else fixed
        display.show_comparison(shown, moving, display.FADE if shown is not moving and moving is not None else "")
        hounsfield = any(volume is not None and nodes.in_hounsfield(volume) for volume in (fixed, moving))
        with self.state:
            self.state.has_images = True
            self.state.windows = state.windows(hounsfield)
        self._set_window()
        self.views.show_slices_in_3d(True)
        self.slices.fit()

    def _set_window(self) -> None:
        low_high = state.CT_WINDOWS[self.state.ct_window]
        results = [outputs.warped for outputs in self.results.found.values()]
        for volume in (self.inputs.nodes.get("fixed"), self.inputs.nodes.get("moving"), *results):
            if volume is not None and nodes.in_hounsfield(volume):
                volume.GetDisplayNode().SetAutoWindowLevel(False)
                volume.GetDisplayNode().SetWindowLevelMinMax(*low_high)
        self.views.render()

    def jump(self, point_ras_mm: list[float]) -> None:
        display.jump(self.scene, [float(value) for value in point_ras_mm])

    # questions

    def ask(self, what: str) -> None:
        """Do what loses something after a question, and at once where nothing is lost."""
        texts = {"phantom": ("Opening the generated chest", "Open"), "end": ("Ending the session", "End")}
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
        running = " and stops the registration" if self.run is not None else ""
        unsaved = len(self.results.unsaved)
        which = "the result that has not been saved" if unsaved == 1 else f"{unsaved} results that have not been saved"
        lost = f" discards {which}{running}." if unsaved else f" closes the scans that are open{running}."
        return doing + lost

    async def answer(self, yes: bool) -> None:
        asked = self._asked
        with self.state:
            self.state.question = ""
        if yes and asked == "phantom" and self.run is None:
            await self._open_phantom()
        elif yes and asked == "end":
            self.cancel()
            with self.state:
                self.state.ended = True
            await asyncio.sleep(0.5)  # until the page has it
            self.ended.set()
        elif yes and asked == "open":
            await self._open(*self._wanted)
        self._asked = ""

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
            self.state["dialog_error" if self.state.dialog else "error"] = text

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
