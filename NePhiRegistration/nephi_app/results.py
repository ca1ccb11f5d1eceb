"""The results of a session: what is shown of the chosen one, whether it is accepted, where it is saved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib import compared, display, review
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.choices import COMPARISONS, OVERLAYS, View
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.shown import Shown, meaning
from NePhiRegistrationLib.summary import summary
from NePhiRegistrationLib.surface import surface_model

from . import texts
from .applied import Applied
from .dialog import SAVE, SAVE_MADE
from .dicom import DicomFiles
from .dicom import problem as dicom_problem
from .files import Served
from .landmarks import Landmarks
from .state import of_scans
from .views import Views

_FLICKER_S = 0.6
_DRAWN_S = 0.3
_TWICE_S = 1.0  # within which a button that was pressed again was meant once
_LOOKS = ("view", "before", "opacity", "legend", "beyond", "grid", "grid_mode", "grid_spacing", "grid_3d")


class Results:
    """``start`` begins work of the server's loop and keeps it."""

    def __init__(self, server: Any, served: Served, views: Views, start: Callable[[Any], None]):
        self.state, self.served, self.views, self._start = server.state, served, views, start
        self.scene = views.scene
        self.found: dict[str, Outputs] = {}  # by the ID of the forward transform
        self.unsaved: set[str] = set()
        self.landmarks = Landmarks(server, views)
        self.applied = Applied(server, views, lambda: self.show(again=True), self._leave)
        self._saving = ""  # which of the nodes made by applying the result
        self._models: dict[str, Any] = {}  # the surface of what was compared
        self._shown: Shown | None = None
        self._signed_s = float("-inf")
        for name in ("sign", "save"):
            server.trigger(name)(getattr(self, name))
        server.trigger("show_again")(self._back)
        self.state.change(*_LOOKS)(self.show)
        self.state.change("outline")(self._show_outline)
        self.state.change("layout")(self._fit_legends)
        self.state.change("result")(self._choose)

    @property
    def chosen(self) -> Outputs | None:
        return self.found.get(self.state.result)

    def add(self, outputs: Outputs, landmarks: tuple[Any, Any] | None, text: str, saved: bool = False) -> None:
        """Show a registration; ``text`` tells it from others, ``landmarks`` are its two lists."""
        key = outputs.forward.GetID()
        self.found[key] = outputs
        self.landmarks.keep(outputs, landmarks)
        if not saved:
            self.unsaved.add(key)
        with self.state:
            self.state.results = [*self.state.results, {"value": key, "text": text}]
            self.state.result = key
            names = [one["text"] for one in self.state.results]
            self.state.compared = texts.compared(names, list(self.found.values()))

    def _choose(self, result: str, **_: Any) -> None:
        outputs = self.found.get(result)
        if self._shown is not None:
            self.state.former_result = self._shown.outputs.forward.GetID()
        self.landmarks.show(outputs)
        self.applied.show(outputs)
        if self._shown is not None:
            self._shown.leave()
            self._shown = None
        self._show_surface(True)
        with self.state:
            self.state.has_result = outputs is not None
            if outputs is None:
                self.state.verdict, self.state.lines, self.state.tables = {}, [], []
                return
            self.state.verdict = texts.verdict(outputs)
            lines = summary(outputs.report, outputs.jacobian.GetSpacing(), nodes.in_hounsfield(outputs.warped))
            self.state.lines = [{"sign": x.kind.value, "kind": x.kind.name, "text": of_scans(x.text)} for x in lines]
            self.state.tables = texts.result_tables(outputs)
            if self.state.table not in ("landmarks", *(one["name"] for one in self.state.tables if one["rows"])):
                self.state.table = "numbers"
            self.state.looks = texts.looks(outputs)
            self.state.has_page = self.page_file() is not None
            self.state.dicom_reason = dicom_problem(outputs)
            self.state.with_dicom = self.state.with_dicom and not self.state.dicom_reason
            self._say_reviews()
        self._shown = Shown(outputs)
        self.show()
        self._add_surface(outputs)
        with self.state:
            self.state.has_outline = result in self._models

    def _back(self) -> None:
        """From a landmark's scan to what was chosen to be shown."""
        self.landmarks.show(self.chosen)
        self.show(again=True)

    def show(self, again: bool = False, **_: Any) -> None:
        if self._shown is None:
            return
        s, view = self.state, View[self.state.view]
        if self.applied.leave_views() or again:
            self._shown.forget()
            self._show_surface(True)
        self._shown.show(view, s.before, s.opacity, s.legend, s.beyond)
        self._shown.show_grid(s.grid, s.grid_mode, s.grid_spacing, True, s.grid_3d, s.legend)
        self.views.smooth_lines(s.grid)
        grid_text = display.grid_text(self._shown.outputs.forward) if s.grid else ""
        with s:
            s.can_before = view in COMPARISONS
            s.has_opacity = view in OVERLAYS or view is View.FADE
            s.has_legend = view in OVERLAYS or s.grid
            s.meaning = of_scans(" ".join(filter(None, [meaning(view, s.before, self._shown.outputs), grid_text])))
        self.views.tidy_legends()  # before anything is drawn
        self._start(self._tidy())

    def _fit_legends(self, **_: Any) -> None:
        """To the size that views have in another layout."""
        if self._shown is not None:
            self._start(self._tidy())

    async def _tidy(self) -> None:
        self.views.render()
        await asyncio.sleep(_DRAWN_S)  # a legend that has just been made takes its size when it has been drawn
        self.views.tidy_legends()
        self.views.render()

    async def flicker(self) -> None:
        while True:
            await asyncio.sleep(_FLICKER_S)
            if self._shown is not None and self.state.view == View.FLICKER.name and not self.state.running:
                display.flicker(self.scene)

    def _add_surface(self, outputs: Outputs) -> None:
        """What was compared, in 3D and, if that is wanted, as an outline in the slices."""
        inside, key = compared.in_mask(outputs), outputs.forward.GetID()
        if inside is None or key in self._models:
            return
        to_world = nodes.ijk_to_world(outputs.fields_disagreement)
        self._models[key] = surface_model(self.scene, inside, to_world, "Compared region")
        self._show_outline()

    def _leave(self, fixed: bool) -> None:
        """Nothing of it in the views, which show something else; ``fixed``: in the fixed scan."""
        if self._shown is not None:
            self._shown.leave()
        self._show_surface(fixed)

    def _show_surface(self, on: bool) -> None:
        """That of the result that is chosen, which lies in the fixed scan."""
        for key, model in self._models.items():
            model.GetDisplayNode().SetVisibility(on and key == self.state.result)

    def _show_outline(self, **_: Any) -> None:
        for model in self._models.values():
            model.GetDisplayNode().SetVisibility2D(bool(self.state.outline))
        self.views.render()

    def drop(self) -> None:
        with self.state:
            self.state.result, self.state.results = "", []
        self._choose("")
        self.landmarks.forget()
        self.applied.forget()
        with self.state:
            self.state.former_result, self.state.compared = "", {}
        for model in self._models.values():
            nodes.remove(self.scene, model)
        for outputs in self.found.values():
            for node in outputs.nodes():
                nodes.remove(self.scene, node)
        for held in (self._models, self.found, self.unsaved):
            held.clear()

    def sign(self, accepted: bool) -> None:
        """Accept or reject the result that is shown, with the name and comment that are given."""
        outputs = self.chosen
        if outputs is None or time.monotonic() - self._signed_s < _TWICE_S:
            return
        try:
            review.sign(outputs, bool(accepted), str(self.state.reviewer), str(self.state.review_comment))
        except ValueError as error:
            with self.state:
                self.state.review_error = str(error)
            return
        self._signed_s = time.monotonic()
        self.unsaved.add(self.state.result)
        with self.state:
            self.state.review_comment = ""
            self._say_reviews()

    def _say_reviews(self) -> None:
        self.state.review_error = ""
        self.state.reviews = [one.text for one in reversed(review.reviews(self.found[self.state.result]))]

    def page_file(self) -> Path | None:
        """The report with pictures of the result that is shown; None where there is none."""
        outputs = self.chosen
        page = None if outputs is None or outputs.folder is None else outputs.folder / "report.html"
        return page if page is not None and page.is_file() else None

    def write(self, folder: Path) -> Path:
        """The result that is shown into ``folder``; where it is. Raises NephiError and OSError."""
        outputs = self.found[self.state.result]
        objects = DicomFiles(outputs, self.applied.of_result()) if self.state.with_dicom else None
        place, _missing = outputs.save(folder)
        self.landmarks.write(place)
        self.applied.write(place)
        if objects is not None:
            objects.write(place)
        return place

    def choose_file(self, key: str) -> str:
        """The name that is offered for what the result was applied to, which ``save`` then writes; "" for none."""
        self._saving = key
        return self.applied.made[key].file_name if key in self.applied.made else ""

    def save(self) -> None:
        """What the dialog is open for."""
        if self.state.dialog == SAVE_MADE:
            self._save_file()
            return
        key = self.state.result
        if self.state.dialog != SAVE or key not in self.found:  # or pressed twice
            return
        try:
            folder = self.served.new_folder(self.state.dialog_path, self.state.save_name)
            place = self.write(folder)
        except (NephiError, OSError) as error:
            with self.state:
                self.state.dialog_error = f"The result could not be saved: {error}"
            return
        self.unsaved.discard(key)
        with self.state:
            self.state.dialog, self.state.note = "", f"Saved in {self.served.relative(place)}."

    def _save_file(self) -> None:
        made = self.applied.made.get(self._saving)
        if made is None:
            return
        try:
            ending = "".join(Path(made.file_name).suffixes[-2:])
            path = self.served.new_file(
                self.state.dialog_path, self.state.save_name.strip().removesuffix(ending) + ending
            )
            made.write(path)
        except (NephiError, OSError) as error:
            with self.state:
                self.state.dialog_error = f"It could not be saved: {error}"
            return
        with self.state:
            self.state.dialog, self.state.note = "", f"Saved as {self.served.relative(path)}."
