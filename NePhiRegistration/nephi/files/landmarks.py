"""Landmark files to and from points_lps_mm, (n, d) float64, x first; row i of two files is one landmark.

| file | frame |
|---|---|
| .csv | LPS mm: columns x,y[,z] or l,p[,s], or no header and 2 or 3 numbers a row; RAS mm: r,a[,s] |
| .fcsv (Slicer) | as its ``CoordinateSystem`` says (0 or RAS, 1 or LPS); RAS without it, as in Slicer |
| .mrk.json (Slicer) | as each markup's ``coordinateSystem`` says; LPS without it |
| .txt, .pts (elastix) | first line ``point``: LPS mm; ``index``: voxel index from 0, x first, of the image |
| .vtk (legacy, ASCII) | LPS mm, or RAS if the title line has Slicer's ``SPACE=RAS`` |
| RT structure set (DICOM) | LPS mm: the points in it, in its order |
| .txt (DIR-Lab) | bare rows of 3 numbers: voxel index from 1, x first, of the image; see ``_dirlab`` |
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..paths import read_text_file
from ..space.grid import Grid
from .dicom_objects import is_dicom
from .dicom_structures import structure_points
from .tables import rows_of
from .writing import write_text

_COLUMNS = {("x", "y", "z"): False, ("l", "p", "s"): False, ("r", "a", "s"): True}  # True: RAS
_FARTHEST_MM = 1e6
_SLICERS_HEADER = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_SLICERS_COLUMNS = 14  # that Slicer names; then it writes whether a point is placed (2), and another number
_DECIMAL_COMMA = re.compile(r"^([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)$")
_FRAMES = {"0": "RAS", "1": "LPS", "2": "IJK"}


def read_landmarks(path: str | Path, image: sitk.Image | Grid | None = None) -> np.ndarray:
    """Read a landmark file (formats: see the module) as points_lps_mm (n, d), float64.

    ``image``, or its Grid, is the image that the landmarks lie in. Files of voxel indices need it; with a 2D
    image the third column, which must then be 0 throughout, is dropped. Raises NephiError for a missing file,
    an unknown format, no points, a wrong number of columns, undefined points and values that are not finite.
    """
    path = Path(path)
    grid = Grid.of(image) if isinstance(image, sitk.Image) else image
    if is_dicom(path):
        points = structure_points(path)
    else:
        text = _text(path)
        if not text.strip():
            raise NephiError(f"{path} contains no landmarks: the file is empty.")
        points = _reader(path, text)(path, text, grid)
    if len(points) == 0:
        raise NephiError(f"{path} contains no landmarks.")
    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all(1)))
        raise NephiError(f"Landmark {row + 1} of {path} is not finite: {points[row].tolist()}.")
    if grid is not None and points.shape[1] != grid.dimension:
        if grid.dimension == 3 or points[:, 2:].any():
            raise NephiError(f"{path} holds {points.shape[1]}D landmarks, but the image is {grid.dimension}D.")
        points = np.ascontiguousarray(points[:, :2])
    if np.abs(points).max() > _FARTHEST_MM:
        row = int(np.argmax(np.abs(points).max(1)))
        raise NephiError(f"Landmark {row + 1} of {path} lies too far away: {points[row].tolist()} mm.")
    if grid is not None:
        _tell_outside(path, points, grid)
    return points


def read_deviations(path: str | Path) -> np.ndarray | None:
    """The column ``sd`` (n,), in mm, of a .csv of landmarks; None without one. Raises NephiError."""
    path = Path(path)
    rows = _csv_rows(_text(path), path) if path.suffix.lower() == ".csv" else []
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "sd" not in header:
        return None
    return _numbers(path, _picked(path, rows[1:], [header.index("sd")], len(header)), (1,))[:, 0]


def names_of_points(path: str | Path) -> list[str]:
    """Names of the points in a file, in order: labels of Slicer, or name, label or id of a .csv; may be empty."""
    path = Path(path)
    if is_dicom(path):
        return []
    text = _text(path)
    reader = _reader(path, text)
    if reader is _markups:
        lists = [markup.get("controlPoints") or [] for markup in json.loads(text)["markups"]]
        return [str(point.get("label", "")) for row in lists for point in row]
    if reader not in (_csv, _fcsv):
        return []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    rows = _csv_rows(lines, path)
    header = _SLICERS_HEADER.split(",") if reader is _fcsv else [cell.strip().lower() for cell in rows.pop(0)]
    column = next((header.index(name) for name in ("name", "label", "id") if name in header), None)
    return [] if column is None else [row[column] for row in rows if len(row) > column]


def _text(path: Path) -> str:
    """In UTF-8, UTF-16 or Latin-1, as spreadsheets write them."""
    data = read_text_file(path, "landmarks")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
        if any(letter in text for letter in "0123456789"):
            return text
    if b"\0" in data:
        raise NephiError(f"{path} is not a text file; landmarks are read from text formats only.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _tell_outside(path: Path, points: np.ndarray, grid: Grid) -> None:
    def outside(points_lps_mm: np.ndarray) -> int:
        index_xyz = grid.to_index(points_lps_mm)
        return int(((index_xyz < -1) | (index_xyz > np.array(grid.size))).any(1).sum())

    if count := outside(points):
        turned = outside(_to_lps(points, True)) < count / 2
        frame = "they would lie inside if x and y had the other sign (RAS for LPS)" if turned else (
            "look whether they belong to it and in which frame they are"
        )  # fmt: skip
        notice(f"{count} of {len(points)} landmarks of {path} lie outside their image; {frame}.")


def write_landmarks(path: str | Path, points_lps_mm: np.ndarray) -> None:
    """Write (n, d) points_lps_mm, in LPS and without loss, as .csv, .fcsv or .mrk.json by the file's name.

    The Slicer formats know 3D only: 2D points get z = 0. Raises NephiError for another file name, points that
    are not (n, 2) or (n, 3) or not finite, and a folder that cannot be written to.
    """
    path, points = Path(path), np.asarray(points_lps_mm, float)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or len(points) == 0:
        raise NephiError(f"Landmarks must be an array (n, 2) or (n, 3) of LPS mm, not {points.shape}.")
    if not np.isfinite(points).all():
        raise NephiError("The landmarks have values that are not finite and cannot be written.")
    name = path.name.lower()
    if name.endswith(".csv"):
        rows = [",".join("xyz"[: points.shape[1]]), *(",".join(map(repr, row)) for row in points.tolist())]
        text = "\n".join(rows) + "\n"
    elif name.endswith(".fcsv"):
        text = _fcsv_text(_in_3d(points))
    elif name.endswith(".mrk.json"):
        text = _markups_text(_in_3d(points))
    else:
        raise NephiError(f"Landmarks are written as .csv, .fcsv or .mrk.json, not as {path.name}.")
    write_text(path, text)


def _reader(path: Path, text: str):
    """The reader for this content or, where the content is ambiguous, for this file name."""
    name, start = path.name.lower(), text.lstrip()[:40].lower()
    if start.startswith("# vtk datafile"):
        return _vtk
    if start.startswith("# markups") or name.endswith(".fcsv"):
        return _fcsv
    if start.startswith("{"):
        return _markups
    if start.split()[0] in ("point", "index"):
        return _elastix
    if name.endswith(".csv"):
        return _csv
    if name.endswith(".txt") and _is_number(start.split()[0]):
        return _dirlab
    raise NephiError(
        f"{path} is not in a known landmark format: "
        ".csv, .fcsv, .mrk.json, elastix points, legacy VTK points or DIR-Lab .txt."
    )


def _csv(path: Path, text: str, grid: Grid | None) -> np.ndarray:
    rows = _csv_rows(text, path)
    header = [cell.strip().lower() for cell in rows[0]]
    if all(map(_is_number, header)):
        return _numbers(path, rows, (2, 3))
    for names, ras in _COLUMNS.items():
        found = [name for name in names if name in header]
        if found == list(names) or found == list(names[:2]):
            if twice := [name for name in found if header.count(name) > 1]:
                raise NephiError(f"{path} has several columns '{twice[0]}'; keep one.")
            columns = [header.index(name) for name in found]
            defined = header.index("defined") if "defined" in header else None
            if defined is not None and any(row[defined : defined + 1] == ["0"] for row in rows[1:]):
                raise NephiError(f"{path} contains an undefined landmark; place it or delete it.")
            return _to_lps(_numbers(path, _picked(path, rows[1:], columns, len(header)), (len(columns),)), ras)
    raise NephiError(f"{path} has no columns x, y and, in 3D, z (LPS mm); its header is {','.join(rows[0])}.")


def _fcsv(path: Path, text: str, grid: Grid | None) -> np.ndarray:
    """Slicer takes the columns after the first for x, y and z, whatever the header says."""
    frame, width = "RAS", _SLICERS_COLUMNS  # Slicer's default without an entry in the header
    for line in text.splitlines():
        key, _, value = line.lstrip("# ").partition("=")
        if line.startswith("#") and key.strip() == "CoordinateSystem":
            frame = value.strip()
        elif line.startswith("#") and key.strip() == "columns":
            names = [name.strip().lower() for name in value.split(",")]
            if names[1:4] != list("xyz"):
                raise NephiError(
                    f"The columns of {path} do not begin with id,x,y,z, as Slicer's do; repair its header."
                )
            width = len(names)
    rows = _csv_rows("\n".join(line for line in text.splitlines() if not line.startswith("#")), path)
    for i, row in enumerate(rows, 1):
        status = row[width].strip() if len(row) == width + 2 and width == _SLICERS_COLUMNS else ""
        if status in ("0", "1", "3"):
            raise NephiError(f"{path} contains an undefined landmark; place it or delete it.")
        # a number with a decimal comma takes two cells
        if status != "2" and len(row) not in (4, width) and not all("." in cell for cell in row[1:4]):
            raise NephiError(_surplus(path, i, row, width))
    return _to_lps(_numbers(path, _picked(path, rows, [1, 2, 3]), (3,)), _is_ras(path, frame))


def _markups(path: Path, text: str, grid: Grid | None) -> np.ndarray:
    try:
        markups = json.loads(text)["markups"]
        control_points = [markup.get("controlPoints") or [] for markup in markups]
        states = [point.get("positionStatus", "defined") for row in control_points for point in row]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NephiError(f"{path} is not a Slicer markups file, or it is damaged.") from None
    # Leaving a point out would pair all later rows with the wrong partner.
    if not_placed := [i for i, state in enumerate(states, 1) if state != "defined"]:
        raise NephiError(f"{path} has control points without a position, {not_placed}; place or delete them.")
    parts = [np.empty((0, 3))]
    for markup, row in zip(markups, control_points, strict=True):
        units = markup.get("coordinateUnits", "mm")
        if "mm" not in (units if isinstance(units, list) else [units]):
            raise NephiError(f"The markups of {path} are in {units}; save them in mm.")
        points = _numbers(path, [point.get("position") for point in row], (3,))
        parts.append(_to_lps(points, _is_ras(path, markup.get("coordinateSystem", "LPS"))))
    return np.concatenate(parts)


def _elastix(path: Path, text: str, grid: Grid | None) -> np.ndarray:
    rows = _words(text)
    header = rows.pop(0)
    if len(header) == 1 and rows:
        header += rows.pop(0)
    if len(header) != 2 or not header[1].isdecimal():
        raise NephiError(f"{path} must start with a line 'point' or 'index' and a line with the count.")
    if int(header[1]) != len(rows):
        raise NephiError(f"{path} announces {header[1]} landmarks, but contains {len(rows)}.")
    points = _numbers(path, rows, (2, 3))
    return points if header[0].lower() == "point" or not rows else _index_to_lps_mm(path, points, grid)


def _dirlab(path: Path, text: str, grid: Grid | None) -> np.ndarray:
    """Voxel indices as DIR-Lab distributes them (Castillo et al., Phys Med Biol 2013, 58:2861).

    They count from 1, in the order in which the voxels of the distributed raw image are stored. Its slices
    run from the head to the feet (z is large at the diaphragm, where the landmarks move most), opposite to
    LPS. So ``image`` must hold the voxels in that order, with a direction that says how they lie,
    diag(1, 1, -1); an image that was converted with its slices reversed puts the landmarks in wrong places.
    """
    return _index_to_lps_mm(path, _numbers(path, _words(text), (3,)) - 1, grid)


def _vtk(path: Path, text: str, grid: Grid | None) -> np.ndarray:
    lines = text.splitlines()
    if len(lines) < 4 or lines[2].strip().upper() != "ASCII":
        raise NephiError(f"{path} is not an ASCII VTK file; save it as legacy ASCII VTK.")
    words = " ".join(lines[3:]).split()
    upper = [word.upper() for word in words]
    try:
        at = upper.index("POINTS")
        count = int(words[at + 1])
        values = [_number(word) for word in words[at + 3 : at + 3 + 3 * count]]
        points = np.reshape(np.array(values), (count, 3))
    except (ValueError, IndexError):
        raise NephiError(f"{path} has no complete list of POINTS with three numbers each.") from None
    return _to_lps(points, "SPACE=RAS" in lines[1])


def _is_ras(path: Path, frame: str) -> bool:
    frame = _FRAMES.get(str(frame), str(frame).upper())
    if frame not in ("RAS", "LPS"):
        raise NephiError(f"The coordinate system of {path} is {frame}; save it in Slicer as LPS or RAS.")
    return frame == "RAS"


def _to_lps(points: np.ndarray, ras: bool) -> np.ndarray:
    return points * np.where(np.arange(points.shape[1]) < 2, -1.0, 1.0) if ras else points


def _index_to_lps_mm(path: Path, index_xyz: np.ndarray, grid: Grid | None) -> np.ndarray:
    if grid is None:
        raise NephiError(f"{path} contains voxel indices: also give the image that they belong to.")
    if index_xyz.shape[1] != grid.dimension:
        raise NephiError(f"{path} holds {index_xyz.shape[1]}D indices, but the image is {grid.dimension}D.")
    return grid.to_lps_mm(index_xyz)


def _csv_rows(text: str, path: Path) -> list[list[str]]:
    """Cells between commas, semicolons or tabs; with the latter two a number may have a decimal comma."""
    lines = [line for line in text.splitlines() if line.strip()]
    separator = next((mark for mark in ";\t" if lines and mark in lines[0]), ",")
    try:
        rows = rows_of(lines, separator)
    except csv.Error as error:
        raise NephiError(f"{path} is not a table: {error}.") from None
    if separator != ",":
        rows = [[_DECIMAL_COMMA.sub(r"\1.\2", cell.strip()) for cell in row] for row in rows]
    return [row for row in rows if any(cell.strip() for cell in row)]


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def _picked(path: Path, rows: list[list[str]], columns: list[int], width: int | None = None) -> list[list[str]]:
    """The cells of the columns; rows must not have more than ``width`` cells."""
    for i, row in enumerate(rows, 1):
        if len(row) <= max(columns):
            raise NephiError(f"Landmark {i} of {path} has {len(row)} columns, too few.")
        if width is not None and any(cell.strip() for cell in row[width:]):
            raise NephiError(_surplus(path, i, row, width))
    return [[row[column] for column in columns] for row in rows]


def _surplus(path: Path, number: int, row: list[str], width: int) -> str:
    return (
        f"Landmark {number} of {path} has {len(row)} columns, the header {width}; numbers may have decimal "
        "commas: save them with points, or the columns with semicolons between them."
    )


def _numbers(path: Path, rows: list, widths: tuple[int, ...]) -> np.ndarray:
    """(n, d) of rows that must all have the same length, one of ``widths``; (0, d) for no rows."""
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) not in widths or len(row) != len(rows[0]):
            have = len(row) if isinstance(row, list) else "no"
            need = " or ".join(map(str, widths))
            raise NephiError(f"Landmark {i + 1} of {path} has {have} columns, but each needs {need}.")
    if not rows:
        return np.empty((0, widths[0]))
    try:
        return np.array([[_number(cell) for cell in row] for row in rows])
    except (TypeError, ValueError):
        raise NephiError(f"{path} contains a coordinate that is not a number.") from None


def _number(cell: Any) -> float:
    """As a table or JSON writes it; Python's own also takes 1_5 and true."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        raise ValueError(cell)
    try:
        return float(cell)
    except OverflowError:  # an integer in JSON with hundreds of digits
        raise ValueError(cell) from None


def _is_number(word: str) -> bool:
    try:
        _number(word)
    except ValueError:
        return False
    return True


def _in_3d(points: np.ndarray) -> np.ndarray:
    return np.pad(points, ((0, 0), (0, 3 - points.shape[1])))


def _fcsv_text(points: np.ndarray) -> str:
    lines = [
        "# Markups fiducial file version = 5.0",
        "# CoordinateSystem = LPS",
        f"# columns = {_SLICERS_HEADER}",
    ]
    for i, row in enumerate(points.tolist(), 1):
        lines.append(f"{i},{','.join(map(repr, row))},1,0,0,0,1,1,0,L-{i},,")
    return "\n".join(lines) + "\n"


def _markups_text(points: np.ndarray) -> str:
    control_points = [
        {"id": str(i), "label": f"L-{i}", "position": row, "positionStatus": "defined"}
        for i, row in enumerate(points.tolist(), 1)
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    content = {
        "@schema": schema + "markups-schema-v1.0.0.json#",
        "markups": [
            {
                "type": "Fiducial",
                "coordinateSystem": "LPS",
                "coordinateUnits": "mm",
                "controlPoints": control_points,
            }
        ],
    }
    return json.dumps(content, indent=1) + "\n"
