"""The result section of the panel: the display of a registration, its measures as text and tables, saving."""

from __future__ import annotations

from html import escape

import qt
import slicer
from nephi.errors import NephiError

from . import display, scene, theme
from .applypanel import ApplyPanel
from .choices import COMPARISONS, OVERLAYS, View
from .i18n import tr as _
from .landmarkpanel import LandmarkPanel
from .outputs import Outputs
from .parameters import Parameters
from .review import reviews_of
from .reviewpanel import ReviewPanel
from .shown import Shown, meaning
from .summary import Kind, as_html, compared_results, summary, unbroken
from .tables import UNIT_COLUMN, fold_centre_ras_mm, texts
from .verdict import FOLDS, LANDMARKS, REGIONS, Judgement, judgement
from .waiting import wait_cursor
from .words import in_panel_words

RESULT_ATTRIBUTE = "NePhi.Result"  # of forward transform nodes that the selector offers
_FLICKER_MS = 600
_COLORS = {Kind.GOOD: theme.GREEN, Kind.NEUTRAL: theme.GREY, Kind.NOTICE: theme.BLUE, Kind.ATTENTION: theme.RED}
_REGIONLESS = _("Choose lobes or other regions, or a fixed mask with several segments, before the registration.")
_NEEDED = ("inverse", "warped", "jacobian", "fields_disagreement", "statistics", "folds", "report_text")


class ResultPanel:
    def __init__(self, ui):
        self.ui = ui
        self.outputs: Outputs | None = None
        self._finished: dict[str, Outputs] = {}  # of this session, with the engine's files, by ID of the transform
        self.stale = False  # whether displayed nodes were removed since the last update
        self._shown: Shown | None = None  # the last display of ``outputs``
        self._flicker = qt.QTimer()
        self._flicker.interval = _FLICKER_MS
        self._flicker.connect("timeout()", self._flick)
        self._landmarks, self._use = LandmarkPanel(ui, self._show_again), ApplyPanel(ui)
        self._review = ReviewPanel(ui, self._reviewed)
        self._parameters: Parameters | None = None
        self._results: list = []  # forward transforms, row by row
        self._listed: tuple = ()
        ui.resultsTable.connect("cellClicked(int,int)", self._choose_result)
        ui.resultSelector.addAttribute("vtkMRMLGridTransformNode", RESULT_ATTRIBUTE)
        ui.verdictLabel.connect("linkActivated(QString)", self._look_at)
        ui.foldsTable.connect("cellClicked(int,int)", self._jump_to_fold)
        ui.histogramButton.connect("clicked(bool)", self._show_histogram)
        ui.saveButton.connect("clicked(bool)", self._save)
        ui.removeResultButton.connect("clicked(bool)", self._remove)

    def add(self, outputs: Outputs) -> None:
        """A registration that has just ended."""
        outputs.forward.SetAttribute(RESULT_ATTRIBUTE, "1")
        self._finished[outputs.forward.GetID()] = outputs

    def drop_removed(self) -> None:
        """A node has left the scene: let go of results that are no longer whole, and of the engine's files.

        The scene is not touched before the next ``update``, as the event comes from the middle of a removal.
        """
        self._finished = {key: outputs for key, outputs in self._finished.items() if _is_whole(outputs)}
        if self.outputs is not None and not _is_whole(self.outputs):
            self.outputs, self.stale = None, True
            self._let_go()

    def forget(self) -> None:
        """The scene is being closed: its nodes are not touched again."""
        self.rest()
        self.outputs = None
        self._let_go()
        self._finished.clear()
        self._shown, self._results, self._listed = None, [], ()

    def _let_go(self) -> None:
        self._landmarks.forget()
        self._use.update(None)
        self._review.update(None)
        if self._shown is not None:
            self._shown.let_go()

    def rest(self) -> None:
        """No automatic changes while another module is open."""
        self._flicker.stop()

    def update(self, p: Parameters) -> None:
        """Show the parameters; unchanged parts are left as the user may have arranged them."""
        self._parameters = p
        outputs = self._find(p.result)
        if outputs is None or self.outputs is None or outputs.forward is not self.outputs.forward:
            self._leave()
            self.outputs, self._shown = outputs, None if outputs is None else Shown(outputs)
            self._fill()
        self.stale = False
        if outputs is not None:
            with wait_cursor():
                self._show_view(p)
                self._show_grid(p)
        self._say(p)
        self._use.update(self.outputs)
        self._review.update(self.outputs)
        self._list_results(p)
        self.follow(p)

    def follow(self, p: Parameters) -> None:
        """What may change without a word from the parameter node, as landmarks that are dragged."""
        self._landmarks.update(p, self.outputs)

    def _find(self, forward) -> Outputs | None:
        """The result of this transform, if all that is shown of it is still in the scene."""
        if forward is None:
            return None
        outputs = self._finished.get(forward.GetID())
        if outputs is None or outputs.forward is not forward:
            outputs = Outputs.find(forward)
        return outputs if outputs is not None and _is_whole(outputs) else None

    def _leave(self) -> None:
        """Take what is shown of the result that is left out of the views, which show its fixed volume alone."""
        self.rest()
        if self._shown is not None:
            self._shown.leave()
            self._shown = None

    # the content of the views

    def _show_view(self, p: Parameters) -> None:
        if p.view is not View.FLICKER:
            self._flicker.stop()
        elif not self._flicker.active:
            self._flicker.start()
        self._shown.show(p.view, p.before, p.opacity, p.legend, p.beyond)

    def _show_again(self) -> None:
        """After something else was in the views."""
        self._shown.forget()
        self.update(self._parameters)

    def _show_grid(self, p: Parameters) -> None:
        self._shown.show_grid(p.grid, p.grid_mode.term, p.grid_spacing_mm, p.grid_2d, p.grid_3d, p.legend)

    def _flick(self) -> None:
        if self.outputs is not None and self.outputs.forward.GetScene() is not None:
            display.flicker(self.outputs.forward.GetScene())

    # words, tables

    def _say(self, p: Parameters) -> None:
        ui, view = self.ui, p.view
        ui.qaWidget.visible = self.outputs is not None
        ui.summaryLabel.text = self._summary() if self.outputs else _no_result(p)
        judged = judgement(self.outputs.report) if self.outputs else None
        ui.verdictLabel.visible = judged is not None
        if judged is not None:
            ui.verdictLabel.styleSheet = _banner(judged.ground_rgb)
            ui.verdictLabel.text = _as_banner(judged)
        overlay = view in OVERLAYS
        for widget in (ui.opacityLabel, ui.opacitySlider):
            widget.visible = overlay or view is View.FADE
        ui.legendCheckBox.visible = overlay or p.grid
        ui.beyondCheckBox.visible = view is View.ERROR
        ui.beforeCheckBox.visible = view in COMPARISONS
        ui.meaningLabel.text = unbroken(meaning(view, p.before, self.outputs))
        ui.meaningLabel.visible = bool(ui.meaningLabel.text)
        for widget in (
            ui.gridModeComboBox,
            ui.gridSpacingLabel,
            ui.gridSpacingSlider,
            ui.grid2dCheckBox,
            ui.grid3dCheckBox,
        ):
            widget.visible = p.grid
        ui.gridMeaningLabel.text = display.grid_text(self.outputs.forward) if self.outputs and p.grid else ""
        ui.gridMeaningLabel.visible = p.grid

    def _summary(self) -> str:
        out, label = self.outputs, self.ui.summaryLabel
        lines = summary(out.report, out.jacobian.GetSpacing(), scene.in_hounsfield(out.warped))
        return as_html(lines, {kind: readable(label, rgb) for kind, rgb in _COLORS.items()})

    def _fill(self) -> None:
        """The tables of a result; tabs without content are greyed."""
        ui, out = self.ui, self.outputs
        if out is None:
            return
        tables = (
            (ui.numbersTable, out.statistics, UNIT_COLUMN, "", ""),
            (ui.foldsTable, out.folds, None, "", _("The map folds nowhere.")),
            (ui.lobesTable, out.ventilation, None, _("Lobes, lungs or other regions, one by one."), _REGIONLESS),
        )
        for i, (table, node, unit_column, there, absent) in enumerate(tables):
            ui.tablesTabWidget.setTabEnabled(i, _fill_table(table, node, unit_column) > 0)
            ui.tablesTabWidget.setTabToolTip(i, there if table.rowCount else absent)
        count = ui.foldsTable.rowCount
        title = _("Folds ({count})").format(count=count) if count else _("No folds")
        ui.tablesTabWidget.setTabText(1, title)
        ui.tablesTabWidget.setCurrentIndex(0)
        ui.histogramButton.enabled = out.histogram is not None

    def _look_at(self, place: str) -> None:
        """A link of the verdict: shows where its reason can be seen."""
        ui = self.ui
        tables = {FOLDS: ui.foldsTab, LANDMARKS: ui.landmarksTab, REGIONS: ui.lobesTab}
        if place in tables:
            ui.tablesTabWidget.setCurrentWidget(tables[place])
        else:
            views = [view.term for view in View]
            self.ui.viewComboBox.setCurrentIndex(views.index(place))

    def _list_results(self, p: Parameters) -> None:
        """A row for each result of the scene, to be compared and chosen."""
        forwards = scene.of_class(slicer.mrmlScene, "vtkMRMLGridTransformNode")
        forwards = [node for node in forwards if node.GetAttribute(RESULT_ATTRIBUTE)]
        wanted = tuple((node.GetID(), node.GetName(), len(reviews_of(node))) for node in forwards)
        if self._listed == wanted:
            return
        self._listed = wanted
        found = [self._find(node) for node in forwards]
        results = [outputs for outputs in found if outputs is not None]
        self._results = [outputs.forward for outputs in results]
        titles, rows = compared_results(results)
        _fill_rows(self.ui.resultsTable, titles, rows)

    def _reviewed(self) -> None:
        self._review.update(self.outputs)
        self._list_results(self._parameters)

    def _choose_result(self, row: int, _column: int) -> None:
        self._parameters.result = self._results[row]

    def _jump_to_fold(self, row: int, _column: int) -> None:
        out = self.outputs
        display.jump(out.forward.GetScene(), fold_centre_ras_mm(out.folds, row))

    def _remove(self, _checked: bool = False) -> None:
        """Remove the result. The previous one is shown then, or the views as before the first one."""
        p, out = self._parameters, self.outputs
        text = _(
            "Remove the result {name} from the scene, with its transforms, volumes, tables and reviews? "
            "Its inputs stay, and so does what was saved in a folder."
        ).format(name=out.forward.GetName())
        if under := out.under():
            names = ", ".join(node.GetName() for node in under)
            text += "\n\n" + _("What lies under its transforms returns to its own place: {names}.").format(names=names)
        if not slicer.util.confirmOkCancelDisplay(text):
            return
        mrml, others = out.forward.GetScene(), [node for node in self._results if node is not out.forward]
        p.result = others[-1] if others else None
        self._finished.pop(out.forward.GetID(), None)
        out.remove()
        if not others:
            display.show_layers(mrml, out.layers)
        self.update(p)

    def _show_histogram(self, _checked: bool = False) -> None:
        slicer.modules.plots.logic().ShowChartInLayout(self.outputs.histogram)

    def _save(self, _checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder for the result"))
        if not folder:
            return
        try:
            with wait_cursor():
                place, missing = self.outputs.save(folder)
        except (NephiError, OSError) as error:
            slicer.util.errorDisplay(_("The result could not be saved: {reason}").format(reason=error))
            return
        text = _("Saved in {folder}.").format(folder=place)
        if missing:
            text += " " + _("Not saved, because they were lost when the scene was loaded: {names}.").format(
                names=", ".join(missing)
            )
        slicer.util.infoDisplay(text)


def readable(widget, rgb: tuple) -> str:
    """The colour as text on the widget's ground, in light and dark themes."""
    ground = widget.palette.window().color()
    return theme.readable(rgb, (ground.red() / 255, ground.green() / 255, ground.blue() / 255))


def _banner(ground_rgb: tuple) -> str:
    return (
        f"background-color: {theme.as_hex(ground_rgb)}; color: {theme.on(ground_rgb)}; "
        "padding: 6px; border-radius: 4px;"
    )


def _as_banner(judged: Judgement) -> str:
    """Rich text: sign and verdict, the reasons, and links to the corresponding displays."""
    reasons = escape(unbroken(" ".join(in_panel_words(reason) for reason in judged.reasons)), quote=False)
    text = f"<b>{judged.sign}&nbsp;{judged.title}.</b> {reasons}"
    link = '<a href="{place}" style="color:{color}">{name}</a>'
    color = theme.on(judged.ground_rgb)
    links = [link.format(place=place, color=color, name=judged.place_name(place)) for place in judged.places]
    return text + ("<br/>" + _("Look at: {places}").format(places=", ".join(links)) if links else "")


def _is_whole(outputs: Outputs) -> bool:
    """Whether all displayed nodes of a result, and its inputs, are still in the scene."""
    scene = outputs.forward.GetScene()
    if scene is None:
        return False
    needed = (outputs.fixed, outputs.moving, *(getattr(outputs, part) for part in _NEEDED))
    return all(node is not None and node.GetScene() is scene for node in needed)


def _no_result(p: Parameters) -> str:
    if p.result is None:
        return _("After a registration its quality is shown here.")
    return _("This result is incomplete: nodes that belong to it were removed from the scene.")


def _fill_table(widget, node, unit_column: int | None) -> int:
    """The rows of a table node into a table widget; how many."""
    return _fill_rows(widget, *(texts(node, unit_column) if node is not None else ([], [])))


def _fill_rows(widget, titles: list[str], rows: list[list[str]]) -> int:
    widget.setRowCount(len(rows))
    widget.setColumnCount(len(titles))
    widget.setHorizontalHeaderLabels([title.replace(" (", "\n(") for title in titles])
    for i, row in enumerate(rows):
        for j, text in enumerate(row):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            widget.setItem(i, j, item)
    widget.resizeColumnsToContents()
    widget.resizeRowsToContents()
    return len(rows)
