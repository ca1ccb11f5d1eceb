"""Texts and tables of results, costs and views for the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from NePhiRegistrationLib import tables
from NePhiRegistrationLib.choices import View
from NePhiRegistrationLib.summary import compared_results
from NePhiRegistrationLib.verdict import judgement
from NePhiRegistrationLib.words import duration, in_panel_words
from slicer.util import arrayFromVTKMatrix

from .state import item, of_scans

_BESIDE = 4  # columns of numbers that the panel is wide enough for


def looks(outputs: Any) -> list[dict]:
    """What the views can show of a result."""
    return [item(v.name, v.label()) for v in View if v is not View.ERROR or outputs.error_map is not None]


def verdict(outputs: Any) -> dict:
    """The engine's verdict with its reasons and what to look at; empty where there is none."""
    judged = judgement(outputs.report)
    if judged is None:
        return {}
    views = {view.term: view.name for view in View}
    places = [item(views.get(place, place), judged.place_name(place)) for place in judged.places]
    return {
        "outcome": judged.outcome,
        "text": f"{judged.sign} {judged.title}",
        "reasons": [of_scans(in_panel_words(reason)) for reason in judged.reasons],
        "places": places,
    }


def compared(names: list[str], results: list[Any]) -> dict:
    """A row per measure and a column per result, as a page is narrow; empty for fewer than two."""
    if len(results) < 2:
        return {}
    titles, rows = compared_results(results)
    return {"columns": ["", *names], "rows": [list(row) for row in zip(titles, *rows, strict=True)][1:]}


def result_tables(outputs: Any) -> list[dict]:
    """Name, title, columns, rows of text and, where a row is a place, the points in RAS mm to jump to.

    ``parts``: the columns of each of the tables, one below the other, that all of them are shown in.
    """
    numbers_columns, numbers = tables.texts(outputs.statistics, tables.UNIT_COLUMN)
    folds_columns, folds = tables.texts(outputs.folds)
    count = len(folds)
    made = [
        _table("numbers", "Numbers", numbers_columns, numbers),
        _table("folds", f"Folds ({count})" if count else "No folds", folds_columns, folds,
               [list(tables.fold_centre_ras_mm(outputs.folds, row)) for row in range(count)]),
    ]  # fmt: skip
    if outputs.ventilation is not None:
        columns, rows = tables.texts(outputs.ventilation)
        made.append(_table("regions", "Regions", columns, rows) | {"parts": _beside_the_first(len(columns))})
    return made


def cost(estimate: Any) -> str:
    return f"About {duration(estimate.seconds)} and {estimate.memory_mb / 1000:.1f} GB of memory."


def letters(slice_node: Any) -> str:
    """What of the patient lies left, right, at the top and at the bottom of a slice view."""
    axes_ras = arrayFromVTKMatrix(slice_node.GetSliceToRAS())[:3, :2]
    right, top = (_letter(axes_ras[:, i]) for i in (0, 1))
    left, bottom = (_letter(-axes_ras[:, i]) for i in (0, 1))
    return left + right + top + bottom


def _letter(direction_ras: np.ndarray) -> str:
    axis = int(np.abs(direction_ras).argmax())
    return ("RL", "AP", "SI")[axis][0 if direction_ras[axis] > 0 else 1]


def _table(name: str, title: str, columns: list, rows: list, points: list | None = None) -> dict:
    parts = [list(range(len(columns)))]
    return {"name": name, "title": title, "columns": columns, "rows": rows, "points": points or [], "parts": parts}


def _beside_the_first(count: int) -> list[list[int]]:
    """The columns after the first, as many beside it as the panel has room for."""
    return [[0, *range(first, min(first + _BESIDE, count))] for first in range(1, count, _BESIDE)]
