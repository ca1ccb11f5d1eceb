"""The engine's report as tables and a plot of the scene."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import vtk
from nephi.files.writing import write_csv

from .i18n import tr as _
from .scene import add

UNIT_COLUMN = 2  # of the statistics
_CENTRE_COLUMNS = (3, 4, 5)  # of the folds, in RAS mm


def statistics_table(scene, report: dict, name: str):
    """One row per number of the report: measure, value, unit and meaning."""
    rows = [(measure, round(value, digits), unit, text) for measure, value, digits, unit, text in _numbers(report)]
    titles = (_("Measure"), _("Value"), _("Unit"), _("Meaning"))
    return make_table(scene, name, {title: [row[i] for row in rows] for i, title in enumerate(titles)})


def fold_table(scene, report: dict, name: str):
    """One row a connected folded region, largest first, with its centre in world RAS mm."""
    regions = report["folds"]["regions"]
    centres_ras_mm = [(-x, -y, z) for x, y, z in (region["centre_lps_mm"] for region in regions)]
    columns: dict[str, list] = {
        _("Voxels"): [region["voxels"] for region in regions],
        _("Volume (mm³)"): [round(region["volume_mm3"], 2) for region in regions],
        _("Lowest Jacobian"): [round(region["min_jacobian"], 3) for region in regions],
    }
    titles = (_("R (mm)"), _("A (mm)"), _("S (mm)"))
    columns |= {title: [round(c[i], 2) for c in centres_ras_mm] for i, title in enumerate(titles)}
    return make_table(scene, name, columns)


def fold_centre_ras_mm(table, row: int) -> tuple[float, float, float]:
    """Where the folded region of this row lies, in world RAS mm."""
    return tuple(table.GetTable().GetColumn(i).GetValue(row) for i in _CENTRE_COLUMNS)


def ventilation_table(scene, report: dict, name: str):
    """One row a region (lobe): volume in the fixed and in the moving image, its change, and what else is known.

    That is the ventilation by the density of CTs, and, where the moving image has the same regions, how well they meet.
    """
    rows = report["regions"]
    columns = {
        _("Region"): [row.get("name") or _("label {number}").format(number=row["label"]) for row in rows],
        _("Fixed (mL)"): [round(row["volume_fixed_ml"], 1) for row in rows],
        _("Moving (mL)"): [round(row["volume_moving_ml"], 1) for row in rows],
        _("Change (mL)"): [round(row["change_ml"], 1) for row in rows],
        _("Change (%)"): [round(row["change_percent"], 1) for row in rows],
        _("Mean Jacobian"): [round(row["mean_jacobian"], 3) for row in rows],
    }
    further = (
        (_("Ventilation by density (%)"), "ventilation_hu", 100, 1),
        (_("Dice"), "dice", 1, 3),
        (_("Surfaces (mm)"), "surface_mm", 1, 2),
    )
    for title, entry, times, digits in further:
        if any(row.get(entry) is not None for row in rows):
            values = [row.get(entry) for row in rows]
            columns[title] = ["-" if value is None else f"{times * value:.{digits}f}" for value in values]
    return make_table(scene, name, columns)


def histogram_nodes(scene, report: dict, name: str) -> tuple:
    """Chart, series and table of how many voxels have which Jacobian determinant."""
    histogram = report["jacobian"]["histogram"]
    edges, counts = histogram["edges"], histogram["counts"]
    x, y = _("Jacobian"), _("Voxels")
    centres = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    table = make_table(
        scene, _("{name}: values").format(name=name), {x: centres, y: [float(count) for count in counts]}
    )
    series = add(scene, "vtkMRMLPlotSeriesNode", _("{name}: series").format(name=name))
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName(x)
    series.SetYColumnName(y)
    series.SetPlotType(series.PlotTypeScatterBar)
    series.SetColor(0.35, 0.45, 0.6)
    chart = add(scene, "vtkMRMLPlotChartNode", name)
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(_("Volume change, fixed to moving"))
    chart.SetXAxisTitle(_("Jacobian determinant (1: none, above 1: expansion, 0 or less: fold)"))
    chart.SetYAxisTitle(y)
    chart.SetLegendVisibility(False)
    return chart, series, table


def make_table(scene, name: str, columns: dict[str, list]):
    """A table node with columns of text, integers or numbers, by the type of their values."""
    node = add(scene, "vtkMRMLTableNode", name)
    for title, values in columns.items():
        node.AddColumn(_column(title, values))
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)
    return node


def texts(node, unit_column: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Titles and rows; units are put next to the numbers of the column before, as a panel is narrow."""
    table = node.GetTable()
    columns = range(table.GetNumberOfColumns())
    titles = [table.GetColumnName(j) for j in columns]
    rows = [[table.GetValue(i, j).ToString() for j in columns] for i in range(table.GetNumberOfRows())]
    if unit_column is not None:
        j = unit_column
        rows = [[*row[: j - 1], f"{row[j - 1]} {row[j]}".strip(), *row[j + 1 :]] for row in rows]
        titles.pop(j)
    return titles, rows


def write_table(node, path: Path) -> None:
    table = node.GetTable()
    columns = [table.GetColumn(i) for i in range(table.GetNumberOfColumns())]
    rows = ([column.GetValue(row) for column in columns] for row in range(table.GetNumberOfRows()))
    write_csv(path, [[column.GetName() for column in columns], *rows])


def _column(title: str, values: list) -> vtk.vtkAbstractArray:
    kinds = {str: vtk.vtkStringArray, int: vtk.vtkIntArray, float: vtk.vtkDoubleArray}
    column = kinds[type(values[0]) if values else float]()
    column.SetName(title)
    for value in values:
        column.InsertNextValue(value)
    return column


def _numbers(report: dict) -> Iterable[tuple[str, float, int, str, str]]:
    """Measure, value, decimals, unit, meaning; the meaning in few words, as the panel is narrow."""
    folds, jacobian = report["folds"], report["jacobian"]
    yield _("Folded voxels"), float(folds["count"]), 0, "", _("should be 0")
    where = _("of the mask") if "volume" in report else _("of the image")
    yield _("Folded fraction"), folds["percent"], 4, "%", where
    yield _("Jacobian, min"), jacobian["min"], 3, "", _change(jacobian["min"])
    yield _("Jacobian, mean"), jacobian["mean"], 3, "", _change(jacobian["mean"])
    yield _("Jacobian, max"), jacobian["max"], 3, "", _change(jacobian["max"])
    if "volume" in report:
        fixed, moving = report["volume"]["fixed_ml"] / 1000, report["volume"]["moving_ml"] / 1000
        yield _("Fixed volume"), fixed, 3, "L", _("of the mask")
        yield _("Moving volume"), moving, 3, "L", _("same tissue")
        yield _("Volume change"), moving - fixed, 3, "L", _("fixed to moving")
        yield _("Volume change"), 100 * (moving / fixed - 1), 1, "%", _("of fixed")
    if "tre_mm" in report:
        before, after = report["tre_mm"]["before"], report["tre_mm"]["after"]
        yield _("TRE before, mean"), before["mean"], 2, "mm", _("aligned only")
        yield _("TRE before, max"), before["max"], 2, "mm", _("aligned only")
        yield _("TRE after, mean"), after["mean"], 2, "mm", _("registered")
        yield _("TRE after, max"), after["max"], 2, "mm", _("registered")
    error = report["inverse_consistency_mm"]
    yield _("Inverse consistency, mean"), error["mean"], 2, "mm", _("forward, then inverse")
    yield _("Inverse consistency, max"), error["max"], 2, "mm", _("forward, then inverse")
    error = report["fields_disagreement_mm"]
    yield _("Forward-backward, mean"), error["mean"], 2, "mm", _("difference of the two directions")
    yield _("Forward-backward, max"), error["max"], 2, "mm", _("difference of the two directions")
    if "dice" in report:
        yield _("Dice before"), report["dice"]["before"], 3, "", _("aligned only")
        yield _("Dice after"), report["dice"]["after"], 3, "", _("masks overlap")
    yield _("Time"), report["time_s"]["wall"], 1, "s", _("of the whole run")


def _change(ratio: float) -> str:
    """What a Jacobian determinant means, from fixed to moving."""
    if ratio <= 0:
        return _("folded")
    percent = 100 * (ratio - 1)
    return f"{percent:+.0f} %".replace("-", "\u2212")
