"""What the page knows at first, and the tables that it shows of a result."""

from __future__ import annotations

from typing import Any

import numpy as np
from NePhiRegistrationLib import batchrun, tables
from NePhiRegistrationLib.choices import Alignment, GridMode, Preset, View, models
from NePhiRegistrationLib.summary import compared_results
from NePhiRegistrationLib.verdict import judgement
from NePhiRegistrationLib.words import duration, in_panel_words
from slicer.util import arrayFromVTKMatrix

from .roles import ROLES, USES, picks


def first(root_name: str, root_path: str) -> dict[str, Any]:
    return {
        "trame__title": "NePhi",
        "theme": "dark",
        "root_name": root_name,
        "root_path": root_path,
        "error": "",
        "note": "",
        "busy": "",
        "ended": False,
        # inputs
        "inputs_open": True,
        "picks": picks(),
        "names": dict.fromkeys(ROLES, ""),
        "segments": {},  # that can be chosen of a mask, by role
        "segment": dict.fromkeys(ROLES, ""),
        "masks": "auto",
        "preset": Preset.BALANCED.term,
        "presets": [],
        "own_preset": "",  # the name under which one is to be kept
        "model": "",
        "models": [_item(*pair) for pair in models()],
        "guide_sd_mm": 1.0,
        "device": "auto",
        "devices": [_item("auto", "Automatic")],
        "align": Alignment.AUTO.term,
        "alignments": [_item(a.term, a.label()) for a in Alignment],
        "reason": "",
        "estimate": "",
        # a run
        "running": False,
        "stage": "",
        "percent": 0,
        "left": "",
        "live": True,
        # the views
        "has_images": False,
        "layout": "four",
        "window": "wide",
        "windows": [],
        "level": 0,
        "width": 1,
        "letters": {},
        # a result
        "has_result": False,
        "has_page": False,
        "results": [],
        "result": "",
        "former_result": "",  # that was shown before
        "compared": {},  # the results side by side, columns and rows
        "landmarks": [],  # pairs, the worst first
        "landmark": {},  # the point that is looked at
        "verdict": {},
        "lines": [],
        "with_dicom": False,  # whether DICOM objects are saved and downloaded too
        "dicom_reason": "",  # why there can be none
        "apply_to": "fixed",  # the scan that something else is brought to
        "uses": [{**_item(name, role.text), "hint": role.hint} for name, role in USES.items()],
        "applied": [],  # what was made of it
        "reviews": [],  # texts, the latest first
        "reviewer": "",
        "review_comment": "",
        "review_error": "",
        "table": "numbers",
        "tables": [],
        "view": View.FADE.name,
        "looks": [],
        "meaning": "",
        "before": False,
        "can_before": True,
        "opacity": 0.5,
        "has_opacity": True,
        "legend": True,
        "beyond": False,
        "has_legend": False,
        "grid": False,
        "grid_mode": GridMode.GRID.term,
        "grid_modes": [_item(m.term, m.label()) for m in GridMode],
        "grid_spacing": 12,
        "grid_3d": False,
        # a list of pairs
        "batch_list": "",
        "batch_folder": "",  # beside the list, for the results
        "batch_running": False,
        "batch_columns": list(batchrun.COLUMNS.values()),
        "batch_rows": [],
        "batch_text": "",
        # dialogs
        "dialog": "",
        "dialog_title": "",
        "dialog_path": "",
        "dialog_parts": [],
        "dialog_error": "",
        "entries": [],
        "series": [],
        "series_path": "",
        "more_entries": False,
        "save_name": "",
        "question": "",
        "question_yes": "",
    }


def looks(outputs: Any) -> list[dict]:
    """What the views can show of a result."""
    return [_item(v.name, v.label()) for v in View if v is not View.ERROR or outputs.error_map is not None]


def verdict(outputs: Any) -> dict:
    """The engine's verdict with its reasons and what to look at; empty where there is none."""
    judged = judgement(outputs.report)
    if judged is None:
        return {}
    views = {view.term: view.name for view in View}
    places = [_item(views.get(place, place), judged.place_name(place)) for place in judged.places]
    return {
        "outcome": judged.outcome,
        "text": f"{judged.sign} {judged.title}",
        "reasons": [in_panel_words(reason) for reason in judged.reasons],
        "places": places,
    }


def compared(names: list[str], results: list[Any]) -> dict:
    """A row a measure, a column a result, as a page is narrow; empty where there are no two."""
    if len(results) < 2:
        return {}
    titles, rows = compared_results(results)
    return {"columns": ["", *names], "rows": [list(row) for row in zip(titles, *rows, strict=True)][1:]}


def result_tables(outputs: Any) -> list[dict]:
    """Name, title, columns, rows of text and, where a row is a place, the points in RAS mm to jump to."""
    numbers_columns, numbers = tables.texts(outputs.statistics, tables.UNIT_COLUMN)
    folds_columns, folds = tables.texts(outputs.folds)
    count = len(folds)
    made = [
        _table("numbers", "Numbers", numbers_columns, numbers),
        _table("folds", f"Folds ({count})" if count else "No folds", folds_columns, folds,
               [list(tables.fold_centre_ras_mm(outputs.folds, row)) for row in range(count)]),
    ]  # fmt: skip
    if outputs.ventilation is not None:
        made.append(_table("regions", "Regions", *tables.texts(outputs.ventilation)))
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
    return {"name": name, "title": title, "columns": columns, "rows": rows, "points": points or []}


def _item(value: str, text: str) -> dict:
    return {"value": value, "text": text}
