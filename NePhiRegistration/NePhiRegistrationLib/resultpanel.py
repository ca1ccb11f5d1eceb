"""The panel's result section: what the views show of a registration, its numbers in words and tables, saving."""

from __future__ import annotations

import qt
import slicer
from nephi.errors import NephiError

from . import display, scene, theme
from .choices import COMPARISONS, OVERLAYS, View
from .i18n import tr as _
from .outputs import Outputs
from .parameters import Parameters
from .summary import Kind, as_html, summary
from .tables import UNIT_COLUMN, fold_centre_ras_mm

RESULT_ATTRIBUTE = "NePhi.Result"  # of forward transform nodes that the selector offers
_FLICKER_MS = 600
_MEANING = {
    View.FIXED: "",
    View.FADE: _("Where both agree, edges are single."),
    View.FLICKER: _("Where both agree, nothing jumps."),
    View.CHECKERBOARD: _("Where both agree, edges continue across the squares."),
    View.DIFFERENCE: _(
        "Grey: equal. Bright: {other} is denser than fixed; dark: it is less dense. "
        "A lung with more air differs throughout."
    ),
    View.JACOBIAN: display.JACOBIAN_TEXT,
    View.CONSISTENCY: _(
        "Distance in mm between a point and where it lands when it is mapped to the moving volume and back. "
        "High values: do not trust the match there. The coloured area is the mask that was compared."
    ),
}
_COLORS = {Kind.GOOD: theme.GREEN, Kind.NEUTRAL: theme.GREY, Kind.NOTICE: theme.BLUE, Kind.ATTENTION: theme.RED}
_NEEDED = ("inverse", "warped", "jacobian", "fields_disagreement", "statistics", "folds", "report_text")


class ResultPanel:
    def __init__(self, ui):
        self.ui = ui
        self.outputs: Outputs | None = None
        self._finished: dict[str, Outputs] = {}  # of this session, with the engine's files, by ID of the transform
        self.stale = False  # whether what is shown has left the scene since the last update
        self._fixed_id = ""  # of the volume below what is shown
        self._shown: dict[str, tuple] = {}  # what the views were last told, by topic
        self._flicker = qt.QTimer()
        self._flicker.interval = _FLICKER_MS
        self._flicker.connect("timeout()", self._flick)
        ui.resultSelector.addAttribute("vtkMRMLGridTransformNode", RESULT_ATTRIBUTE)
        ui.foldsTable.connect("cellClicked(int,int)", self._jump_to_fold)
        ui.histogramButton.connect("clicked(bool)", self._show_histogram)
        ui.saveButton.connect("clicked(bool)", self._save)

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

    def forget(self) -> None:
        """The scene is being closed: its nodes are not touched again."""
        self.rest()
        self.outputs = None
        self._finished.clear()
        self._shown.clear()

    def rest(self) -> None:
        """Nothing changes by itself while another module is open."""
        self._flicker.stop()

    def update(self, p: Parameters) -> None:
        """Show what the parameters say; what has not changed is left as the user may have arranged it."""
        outputs = self._find(p.result)
        if outputs is None or self.outputs is None or outputs.forward is not self.outputs.forward:
            self._leave()
            self.outputs, self._fixed_id = outputs, outputs.fixed.GetID() if outputs is not None else ""
            self._fill()
        self.stale = False
        if outputs is not None:
            self._show_view(p)
            self._show_grid(p)
        self._say(p)

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
        if self._shown:
            display.clear(slicer.mrmlScene, slicer.mrmlScene.GetNodeByID(self._fixed_id))
        self._shown.clear()

    # what the views show

    def _show_view(self, p: Parameters) -> None:
        out, view = self.outputs, p.view
        before = p.before and view in COMPARISONS
        depends = {
            View.FADE: (p.opacity,),
            View.JACOBIAN: (p.opacity, p.legend),
            View.CONSISTENCY: (p.opacity, p.legend),
        }
        if view is View.FLICKER:
            if not self._flicker.active:
                self._flicker.start()
        else:
            self._flicker.stop()
        wanted = (view, before, *depends.get(view, ()))
        if self._shown.get("view") == wanted:
            return
        self._shown["view"] = wanted
        other = out.moving if before else out.warped
        if view is not View.JACOBIAN:
            display.show_jacobian(out, False)
        if view is not View.CONSISTENCY:
            display.show_fields_disagreement(out, False)
        opacity = 1.0 if view is View.FLICKER else p.opacity
        display.show_comparison(out.fixed, other, view.term if view in COMPARISONS else "", opacity)
        if view is View.JACOBIAN:
            display.show_jacobian(out, True, p.opacity, p.legend)
        elif view is View.CONSISTENCY:
            display.show_fields_disagreement(out, True, p.opacity, p.legend)

    def _show_grid(self, p: Parameters) -> None:
        wanted = (p.grid, p.grid_mode, p.grid_spacing_mm, p.grid_2d, p.grid_3d, p.legend)
        if self._shown.get("grid") != wanted:
            self._shown["grid"] = wanted
            out = self.outputs
            display.show_grid(out.forward, out.fixed, p.grid, p.grid_mode.term, *wanted[2:])

    def _flick(self) -> None:
        if self.outputs is not None and self.outputs.forward.GetScene() is not None:
            display.flicker(self.outputs.forward.GetScene())

    # words, tables

    def _say(self, p: Parameters) -> None:
        ui, view = self.ui, p.view
        ui.qaWidget.visible = self.outputs is not None
        ui.summaryLabel.text = self._summary() if self.outputs else _no_result(p)
        overlay = view in OVERLAYS
        for widget in (ui.opacityLabel, ui.opacitySlider):
            widget.visible = overlay or view is View.FADE
        ui.legendCheckBox.visible = overlay or p.grid
        ui.beforeCheckBox.visible = view in COMPARISONS
        ui.meaningLabel.text = _MEANING[view].format(other=_("moving") if p.before else _("warped"))
        ui.meaningLabel.visible = bool(_MEANING[view])
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
            (ui.numbersTable, out.statistics, UNIT_COLUMN),
            (ui.foldsTable, out.folds, None),
            (ui.lobesTable, out.ventilation, None),
        )
        for i, (table, node, unit_column) in enumerate(tables):
            ui.tablesTabWidget.setTabEnabled(i, _fill_table(table, node, unit_column) > 0)
        count = ui.foldsTable.rowCount
        title = _("Folds ({count})").format(count=count) if count else _("Folds (none)")
        ui.tablesTabWidget.setTabText(1, title)
        ui.tablesTabWidget.setCurrentIndex(0)
        ui.histogramButton.enabled = out.histogram is not None

    def _jump_to_fold(self, row: int, _column: int) -> None:
        out = self.outputs
        display.jump(out.forward.GetScene(), fold_centre_ras_mm(out.folds, row))

    def _show_histogram(self, _checked: bool = False) -> None:
        slicer.modules.plots.logic().ShowChartInLayout(self.outputs.histogram)

    def _save(self, _checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder for the result"))
        if not folder:
            return
        try:
            place, missing = self.outputs.save(folder)
        except (NephiError, OSError) as error:
            slicer.util.errorDisplay(_("The result could not be saved: {reason}").format(reason=error))
            return
        text = _("Saved in {folder}.").format(folder=place)
        if missing:
            text += " " + _("Not saved, as they are gone since the scene was loaded: {names}.").format(
                names=", ".join(missing)
            )
        slicer.util.infoDisplay(text)


def readable(widget, rgb: tuple) -> str:
    """The colour as text on the widget's ground, in light and dark themes."""
    ground = widget.palette.window().color()
    return theme.readable(rgb, (ground.red() / 255, ground.green() / 255, ground.blue() / 255))


def _is_whole(outputs: Outputs) -> bool:
    """Whether all that is shown of a result, and what it was made from, is still in the scene."""
    scene = outputs.forward.GetScene()
    if scene is None:
        return False
    needed = (outputs.fixed, outputs.moving, *(getattr(outputs, part) for part in _NEEDED))
    return all(node is not None and node.GetScene() is scene for node in needed)


def _no_result(p: Parameters) -> str:
    if p.result is None:
        return _("After a registration its quality is shown here.")
    return _("This is no complete result: nodes that belong to it were removed from the scene.")


def _fill_table(widget, node, unit_column: int | None) -> int:
    """The rows of a table node into a table widget; how many."""
    titles, rows = _texts(node.GetTable(), unit_column) if node is not None else ([], [])
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


def _texts(table, unit_column: int | None) -> tuple[list[str], list[list[str]]]:
    """Titles and rows; a unit goes beside the number in the column before it, as the panel is narrow."""
    columns = range(table.GetNumberOfColumns())
    titles = [table.GetColumnName(j) for j in columns]
    rows = [[table.GetValue(i, j).ToString() for j in columns] for i in range(table.GetNumberOfRows())]
    if unit_column is not None:
        j = unit_column
        rows = [[*row[: j - 1], f"{row[j - 1]} {row[j]}".strip(), *row[j + 1 :]] for row in rows]
        titles.pop(j)
    return titles, rows
