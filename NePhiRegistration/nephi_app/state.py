"""The initial state of the page; imports neither VTK nor Slicer, which are loaded later."""

from __future__ import annotations

import re
from typing import Any

from NePhiRegistrationLib.choices import Alignment, GridMode, Preset, View, models

from .roles import ROLES, USES, picks

SLICES = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}  # names of the views and their orientation
THREE_D = "ThreeD"
_VOLUME = re.compile(r"\b((?:fixed|moving|both|warped|Reading the|None: the) )volume(s?)\b", re.IGNORECASE)


def first(root_name: str, root_path: str) -> dict[str, Any]:
    """The page's state before anything is opened. ``root_name``, ``root_path``: the served folder."""
    return {
        **_page(root_name, root_path),
        **_inputs(),
        **_run(),
        **_views(),
        **_result(),
        **_display(),
        **_batch(),
        **_dialogs(),
    }


def _page(root_name: str, root_path: str) -> dict[str, Any]:
    return {
        "trame__title": "NePhi",
        "ready": False,  # whether the views, and what needs them, are loaded
        "theme": "dark",
        "root_name": root_name,
        "root_path": root_path,
        "error": "",
        "note": "",
        "busy": "",
        "ended": False,
    }


def _inputs() -> dict[str, Any]:
    return {
        "inputs_open": True,
        "picks": picks(),
        "names": dict.fromkeys(ROLES, ""),
        "segments": {},  # of each mask, to choose from, by role
        "segment": dict.fromkeys(ROLES, ""),
        "masks": "auto",
        "preset": Preset.BALANCED.term,
        "presets": [item(p.term, p.label()) for p in Preset],
        "own_preset": "",  # the name under which the settings are to be saved
        "model": "",
        "models": [item(*pair) for pair in models()],
        "guide_sd_mm": 1.0,
        "device": "auto",
        "devices": [item("auto", "Automatic")],
        "align": Alignment.AUTO.term,
        "alignments": [item(a.term, a.label()) for a in Alignment],
        "reason": "",  # why it can't be registered yet
        "estimate": "",
    }


def _run() -> dict[str, Any]:
    return {"running": False, "stage": "", "percent": 0, "left": "", "live": True}


def _views() -> dict[str, Any]:
    return {
        "has_images": False,
        "layout": "four",
        "window": "wide",
        "windows": [],
        "level": 0,
        "width": 1,
        "histogram": {},
        "letters": {},
        **{f"slice_{name}": 0 for name in SLICES},
        **{f"range_{name}": [0, 1, 1] for name in SLICES},  # of the slice: lowest, highest, step
    }


def _result() -> dict[str, Any]:
    return {
        "has_result": False,
        "has_page": False,
        "results": [],
        "result": "",
        "former_result": "",  # the one shown before
        "compared": {},  # the results side by side, columns and rows
        "landmarks": [],  # pairs, the worst first
        "landmark": {},  # the selected point
        "landmarks_judged": True,  # whether the verdict counts them as they are
        "verdict": {},
        "lines": [],
        "with_dicom": False,  # whether DICOM objects are saved and downloaded too
        "dicom_reason": "",  # why DICOM objects can't be written
        "apply_to": "fixed",  # the scan to which further data are mapped
        "uses": [{**item(name, role.text), "hint": role.hint} for name, role in USES.items()],
        "applied": [],  # the data mapped so far
        "reviews": [],  # texts, the latest first
        "reviewer": "",
        "review_comment": "",
        "review_error": "",
        "table": "numbers",
        "tables": [],
    }


def _display() -> dict[str, Any]:
    """How the views show a result."""
    return {
        "view": View.FADE.name,
        "looks": [],
        "meaning": "",
        "before": False,
        "can_before": True,
        "opacity": 0.5,
        "has_opacity": True,
        "legend": True,
        "outline": False,  # of the compared region
        "has_outline": False,
        "beyond": False,
        "has_legend": False,
        "grid": False,
        "grid_mode": GridMode.GRID.term,
        "grid_modes": [item(m.term, m.label()) for m in GridMode],
        "grid_spacing": 12,
        "grid_3d": False,
    }


def _batch() -> dict[str, Any]:
    """A list of pairs."""
    return {
        "batch_list": "",
        "batch_folder": "",  # for the results, next to the list
        "batch_running": False,
        "batch_columns": [],
        "batch_rows": [],
        "batch_text": "",
    }


def _dialogs() -> dict[str, Any]:
    return {
        "dialog": "",
        "dialog_title": "",
        "dialog_series": False,  # whether a DICOM folder can be opened, too
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


def item(value: str, text: str) -> dict:
    return {"value": value, "text": of_scans(text)}


def of_scans(text: str) -> str:
    """A text of Slicer's panel, which calls an image a volume, as the page says it: scan."""
    return _VOLUME.sub(lambda found: found[1] + "scan" + found[2], text)
