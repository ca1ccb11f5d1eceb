"""The engine's report as tables and a plot of the scene."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import vtk

from .scene import add

MEASURE, VALUE, UNIT, MEANING = "Measure", "Value", "Unit", "Meaning"
CENTRE_RAS_MM = ("R (mm)", "A (mm)", "S (mm)")


def statistics_table(scene, report: dict, name: str):
    """One row a number of the report: measure, value, unit and what it means."""
    rows = [(measure, round(value, digits), unit, text) for measure, value, digits, unit, text in _numbers(report)]
    columns = {title: [row[i] for row in rows] for i, title in enumerate((MEASURE, VALUE, UNIT, MEANING))}
    return make_table(scene, name, columns)


def fold_table(scene, report: dict, name: str):
    """One row a connected folded region, largest first, with its centre in world RAS mm."""
    regions = report["folds"]["regions"]
    centres_ras_mm = [(-x, -y, z) for x, y, z in (region["centre_lps_mm"] for region in regions)]
    columns: dict[str, list] = {
        "Voxels": [region["voxels"] for region in regions],
        "Volume (mm³)": [round(region["volume_mm3"], 2) for region in regions],
        "Lowest |J|": [round(region["min_jacobian"], 3) for region in regions],
    }
    columns |= {title: [round(c[i], 2) for c in centres_ras_mm] for i, title in enumerate(CENTRE_RAS_MM)}
    return make_table(scene, name, columns)


def fold_centre_ras_mm(table, row: int) -> tuple[float, float, float]:
    """Where the folded region of this row lies, in world RAS mm."""
    return tuple(table.GetTable().GetColumnByName(title).GetValue(row) for title in CENTRE_RAS_MM)


def ventilation_table(scene, report: dict, names: dict[int, str], name: str):
    """One row a region (lobe): volume in the fixed and in the moving image and its change."""
    rows = report["regions"]
    columns = {
        "Region": [names.get(row["label"], f"label {row['label']}") for row in rows],
        "Fixed (ml)": [round(row["volume_fixed_ml"], 1) for row in rows],
        "Moving (ml)": [round(row["volume_moving_ml"], 1) for row in rows],
        "Change (ml)": [round(row["change_ml"], 1) for row in rows],
        "Change (%)": [round(row["change_percent"], 1) for row in rows],
        "Mean |J|": [round(row["mean_jacobian"], 3) for row in rows],
    }
    return make_table(scene, name, columns)


def histogram_nodes(scene, report: dict, name: str) -> tuple:
    """Chart, series and table of how many voxels have which Jacobian determinant."""
    histogram = report["jacobian"]["histogram"]
    edges, counts = histogram["edges"], histogram["counts"]
    x, y = "|J|", "Voxels"
    centres = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    table = make_table(scene, f"{name} values", {x: centres, y: [float(count) for count in counts]})
    series = add(scene, "vtkMRMLPlotSeriesNode", f"{name} series")
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName(x)
    series.SetYColumnName(y)
    series.SetPlotType(series.PlotTypeScatterBar)
    series.SetColor(0.35, 0.45, 0.6)
    chart = add(scene, "vtkMRMLPlotChartNode", name)
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle("Volume change, fixed to moving")
    chart.SetXAxisTitle("Jacobian determinant |J| (1: none, above 1: expansion, 0 or less: fold)")
    chart.SetYAxisTitle("Voxels")
    chart.SetLegendVisibility(False)
    return chart, series, table


def make_table(scene, name: str, columns: dict[str, list]):
    """A table node whose columns hold text, whole numbers or numbers, as their values are."""
    node = add(scene, "vtkMRMLTableNode", name)
    for title, values in columns.items():
        node.AddColumn(_column(title, values))
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)
    return node


def write_csv(node, path: Path) -> None:
    table = node.GetTable()
    columns = [table.GetColumn(i) for i in range(table.GetNumberOfColumns())]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(column.GetName() for column in columns)
        writer.writerows([column.GetValue(row) for column in columns] for row in range(table.GetNumberOfRows()))


def _column(title: str, values: list) -> vtk.vtkAbstractArray:
    kinds = {str: vtk.vtkStringArray, int: vtk.vtkIntArray, float: vtk.vtkDoubleArray}
    column = kinds[type(values[0]) if values else float]()
    column.SetName(title)
    for value in values:
        column.InsertNextValue(value)
    return column


def _numbers(report: dict) -> Iterable[tuple[str, float, int, str, str]]:
    """Measure, value, decimals, unit, meaning; what it means in few words, as the panel is narrow."""
    folds, jacobian = report["folds"], report["jacobian"]
    where = "mask" if "volume" in report else "image"
    yield "Folded voxels", float(folds["count"]), 0, "", "should be 0"
    yield "Folded part", folds["percent"], 4, "%", f"of the {where}"
    yield "|J| lowest", jacobian["min"], 3, "", "below 1 shrinks"
    yield "|J| mean", jacobian["mean"], 3, "", "moving per fixed"
    yield "|J| highest", jacobian["max"], 3, "", "above 1 expands"
    if "volume" in report:
        fixed, moving = report["volume"]["fixed_ml"] / 1000, report["volume"]["moving_ml"] / 1000
        yield "Fixed volume", fixed, 3, "l", "of the mask"
        yield "Moving volume", moving, 3, "l", "same tissue"
        yield "Volume change", moving - fixed, 3, "l", "fixed to moving"
        yield "Volume change", 100 * (moving / fixed - 1), 1, "%", "of fixed volume"
    if "tre_mm" in report:
        for state, text in (("before", "aligned only"), ("after", "registered")):
            for key in ("mean", "max"):
                yield f"TRE {state}, {key}", report["tre_mm"][state][key], 2, "mm", text
    error = report["inverse_consistency_mm"]
    for key in ("mean", "max"):
        yield f"There and back, {key}", error[key], 2, "mm", "inverse consistency"
    if "dice" in report:
        for state, text in (("before", "aligned only"), ("after", "masks overlap")):
            yield f"Dice {state}", report["dice"][state], 3, "", text
    yield "Time", report["time_s"]["wall"], 1, "s", "of the whole run"
