"""The panel's result section: what the views show of a registration, its numbers in words and tables, saving."""

from __future__ import annotations

from html import escape
from pathlib import Path

import qt
import slicer

from . import display
from .outputs import Outputs
from .parameters import Parameters, View
from .runner import in_panel_words
from .tables import UNIT, fold_centre_ras_mm

RESULT_ATTRIBUTE = "NePhi.Result"  # of forward transform nodes that the selector offers
_FLICKER_MS = 600
_COMPARISONS = (View.FADE, View.FLICKER, View.CHECKERBOARD, View.DIFFERENCE)
_MEANING = {
    View.FIXED: "",
    View.FADE: "Where both agree, edges are single.",
    View.FLICKER: "Where both agree, nothing jumps.",
    View.CHECKERBOARD: "Where both agree, edges run on across the squares.",
    View.DIFFERENCE: "Grey: equal. Bright: {other} is denser than fixed; dark: it is less dense. "
    "A lung that holds more air differs all over.",
    View.JACOBIAN: display.JACOBIAN_TEXT,
    View.CONSISTENCY: "How far a point misses its start when it is taken to the moving volume and back, in mm. "
    "High values: don't trust the match there. Coloured is the mask that was used.",
}
_GOOD, _BAD = "#2e8b57", "#c0392b"


class ResultPanel:
    def __init__(self, ui):
        self.ui = ui
        self.outputs: Outputs | None = None
        self._finished: dict[str, Outputs] = {}  # of this session, with the engine's files, by ID of the transform
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
            self.outputs = outputs
            self._fill()
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
        whole = outputs is not None and all(
            node is not None and node.GetScene() is forward.GetScene()
            for node in (outputs.fixed, outputs.moving, *(getattr(outputs, part) for part in _NEEDED))
        )
        return outputs if whole else None

    def _leave(self) -> None:
        """Take what is shown of the result that is left out of the views."""
        self.rest()
        self._shown.clear()
        if self.outputs is not None:
            fixed = self.outputs.fixed if self.outputs.forward.GetScene() is not None else None
            display.clear(slicer.mrmlScene, fixed)

    # what the views show

    def _show_view(self, p: Parameters) -> None:
        out, view = self.outputs, p.view
        before = p.before and view in _COMPARISONS
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
        display.show_jacobian(out, False)
        display.show_inverse_consistency(out, False)
        opacity = 1.0 if view is View.FLICKER else p.opacity
        display.show_comparison(out.fixed, other, view.term if view in _COMPARISONS else "", opacity)
        if view is View.JACOBIAN:
            display.show_jacobian(out, True, p.opacity, p.legend)
        elif view is View.CONSISTENCY:
            display.show_inverse_consistency(out, True, p.opacity, p.legend)

    def _show_grid(self, p: Parameters) -> None:
        wanted = (p.grid, p.grid_mode, p.grid_spacing_mm, p.grid_2d, p.grid_3d)
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
        ui.summaryLabel.text = _summary(self.outputs.report) if self.outputs else _no_result(p)
        overlay = view in (View.JACOBIAN, View.CONSISTENCY)
        for widget in (ui.opacityLabel, ui.opacitySlider):
            widget.visible = overlay or view is View.FADE
        ui.legendCheckBox.visible = overlay
        ui.beforeCheckBox.visible = view in _COMPARISONS
        ui.meaningLabel.text = _MEANING[view].format(other="moving" if p.before else "warped")
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

    def _fill(self) -> None:
        """The tables of a result; tabs without content are greyed."""
        ui, out = self.ui, self.outputs
        if out is None:
            return
        for i, (table, node) in enumerate(
            ((ui.numbersTable, out.statistics), (ui.foldsTable, out.folds), (ui.lobesTable, out.ventilation))
        ):
            ui.tablesTabWidget.setTabEnabled(i, _fill_table(table, node) > 0)
        ui.tablesTabWidget.setTabText(1, f"Folds ({ui.foldsTable.rowCount or 'none'})")
        ui.tablesTabWidget.setCurrentIndex(0)
        ui.histogramButton.enabled = out.histogram is not None

    def _jump_to_fold(self, row: int, _column: int) -> None:
        out = self.outputs
        display.jump(out.forward.GetScene(), fold_centre_ras_mm(out.folds, row))

    def _show_histogram(self, _checked: bool = False) -> None:
        slicer.modules.plots.logic().ShowChartInLayout(self.outputs.histogram)

    def _save(self, _checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, "Folder for the result")
        if not folder:
            return
        try:
            missing = self.outputs.save(folder)
        except OSError as error:
            slicer.util.errorDisplay(f"The result could not be saved: {error}")
            return
        text = f"Saved in {Path(folder)}."
        if missing:
            text += f" No longer there since the scene was loaded, thus not saved: {', '.join(missing)}."
        slicer.util.infoDisplay(text)


_NEEDED = ("inverse", "warped", "jacobian", "inverse_consistency", "statistics", "folds", "report_text")


def _no_result(p: Parameters) -> str:
    if p.result is None:
        return "After a registration its quality is shown here."
    return "This is no complete result: nodes that belong to it were removed from the scene."


def _summary(report: dict) -> str:
    """What a reader wants to know first, a line each, as rich text."""
    lines = []
    folds, error = report["folds"], report["inverse_consistency_mm"]
    if folds["count"] == 0:
        lines.append(_line(True, "No folds."))
    else:
        n = len(folds["regions"])
        places = f"{n} place{'s' if n > 1 else ''}" if n < 100 else "100 places or more"
        lines.append(_line(False, f"Folded in {places}, {folds['percent']:.3g} % of the voxels: see Folds."))
    if "tre_mm" in report:
        before, after = (report["tre_mm"][state]["mean"] for state in ("before", "after"))
        lines.append(_line(after < before, f"Landmark error (mean TRE): {before:.1f} mm before, {after:.1f} mm after."))
    lines.append(_line(None, f"There and back misses by {error['mean']:.2g} mm, at most {error['max']:.2g} mm."))
    if "volume" in report:
        fixed, moving = report["volume"]["fixed_ml"] / 1000, report["volume"]["moving_ml"] / 1000
        change = f"{moving - fixed:+.2f} l, {100 * (moving / fixed - 1):+.0f} %"
        lines.append(_line(None, f"Lung volume {fixed:.2f} l fixed, {moving:.2f} l moving ({change})."))
    lines += [_line(False, escape(in_panel_words(text))) for text in report.get("warnings", [])]
    return "".join(lines)


def _line(good: bool | None, text: str) -> str:
    sign, color = {True: ("\u2714", _GOOD), False: ("\u26a0", _BAD), None: ("\u2022", "#888888")}[good]
    return f'<div><span style="color:{color}">{sign}</span>&nbsp;{text}</div>'


def _fill_table(widget, node) -> int:
    """The rows of a table node into a table widget; how many."""
    titles, rows = _texts(node.GetTable()) if node is not None else ([], [])
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


def _texts(table) -> tuple[list[str], list[list[str]]]:
    """Titles and rows; a unit goes beside its number, as the panel is narrow."""
    columns = range(table.GetNumberOfColumns())
    titles = [table.GetColumnName(j) for j in columns]
    rows = [[table.GetValue(i, j).ToString() for j in columns] for i in range(table.GetNumberOfRows())]
    if UNIT in titles:
        j = titles.index(UNIT)
        rows = [[*row[: j - 1], f"{row[j - 1]} {row[j]}".strip(), *row[j + 1 :]] for row in rows]
        titles.pop(j)
    return titles, rows
