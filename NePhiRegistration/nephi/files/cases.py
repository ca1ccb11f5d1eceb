"""Lists of pairs of files, and fingerprints that show whether the files have changed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import NephiError
from ..paths import read_text_file, resolved
from .tables import rows_of

# guidance of a registration: given for both images or for neither, and given singly
GUIDES_OF_BOTH = ("guide_landmarks", "guide_labels")
GUIDES = ("fixed_exclude", "moving_exclude", "rigid_mask", "volume_mask", "initial")
ROLES = (
    "fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "regions",
    "moving_regions", "fixed_labels", "moving_labels",
    *(f"{image}_{kind}" for kind in GUIDES_OF_BOTH for image in ("fixed", "moving")), *GUIDES,
)  # fmt: skip
# read only in training: points that are known to correspond
TRAINING_ROLES = ("fixed_points", "moving_points")
SUMMARY, SETTINGS = OF_BATCH = "summary.csv", "settings.json"  # files next to the folders of the pairs
_SERIES = "series"  # column of the DICOM series to read
_MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "none", "null")  # cells that pandas and spreadsheets leave empty


def fingerprints(
    files: Mapping[str, str | Path | None],
    auto_mask: bool,
    align: str,
    roles: tuple[str, ...] = ROLES,
    model: str | None = None,
    series: Iterable[str] = (),
) -> dict:
    """The entry ``inputs`` of ``report.json``: path, size and modification time of every file given.

    ``files``: by the names in ``roles``; ``align`` and ``model`` count where they are files; ``series``: of DICOM, in
    any order. A file that is missing has only its path.
    """
    found: dict = {role: _fingerprint(Path(path)) for role in roles if (path := files.get(role))}
    if Path(align).is_file():
        found["align"] = _fingerprint(Path(align))
    if model and Path(model).is_file():
        found["model"] = _fingerprint(Path(model))
    if named := sorted(set(series)):
        found[_SERIES] = named
    return {**found, "auto_mask": auto_mask}


def _fingerprint(path: Path) -> dict:
    path = resolved(path)
    parts = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]  # a folder of DICOM files
    try:
        stats = [part.stat() for part in parts]
    except OSError:
        stats = []
    if not stats:
        return {"path": str(path)}
    size, changed = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    return {"path": str(path), "bytes": size, "modified_ns": changed}


@dataclass(frozen=True)
class Case:
    """A row of the list: a name, which is its folder's, the files by role, and DICOM series, as for ``read_image``."""

    name: str
    files: dict[str, Path]
    series: tuple[str, ...] = ()


def read_pairs(path: str | Path) -> list[Case]:
    """The rows of a CSV file (comma, semicolon or tab); its paths are relative to it. Raises NephiError.

    A list for training serves as well: its further columns are read, and of use there only.
    """
    path = Path(path)
    rows = _rows(path)
    if len(rows) < 2:
        raise NephiError(f"{path} lists no pairs: expected a header line with the column names and one line per pair")
    head, known = [name.lower() for name in rows[0]], ("name", *ROLES, *TRAINING_ROLES, _SERIES)
    wrong = [name for name in head if name not in known] + [name for name in known[:3] if name not in head]
    if wrong or len(set(head)) < len(head):
        columns = f"name, fixed, moving and any of {', '.join(known[3:])}"
        raise NephiError(f"{path}: the columns must be {columns}; check {', '.join(wrong) or 'those given twice'}")
    pairs = []
    for row in rows[1:]:
        if len(row) > len(head):
            raise NephiError(f"{path}: the row of '{row[0]}' has {len(row)} cells, the header {len(head)}")
        cells = dict(zip(head, row, strict=False))
        name, series = cells.pop("name"), cells.pop(_SERIES, "").split()
        files = {role: path.parent / Path(cell).expanduser() for role, cell in cells.items() if cell}
        pairs.append(Case(name, files, tuple(series)))
    seen = set()
    for name in (pair.name for pair in pairs):
        if name.lower() in OF_BATCH:
            raise NephiError(f"{path}: '{name}' cannot be a pair's name: it is the name of a file of the batch")
        if not name or name.startswith(".") or name.endswith(".") or any(c in '/\\:*?"<>|' for c in name):
            raise NephiError(f"{path}: '{name}' cannot be a pair's name: its folder gets the same name")
        if name.lower() in seen:
            raise NephiError(f"{path}: two pairs are named '{name}'")
        seen.add(name.lower())
    return pairs


def _rows(path: Path) -> list[list[str]]:
    """The cells of a list, as editors, spreadsheets and pandas write it: head first, without the index of the rows."""
    data = read_text_file(path, "list of pairs")
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        raise NephiError(f"cannot read the list of pairs {path}: it is not UTF-8 text") from None
    if "\0" in text:
        raise NephiError(f"{path} contains NUL characters: it is not a list of pairs in UTF-8, or it is damaged")
    lines = text.splitlines()
    if lines and lines[0].lower().startswith("sep="):  # the line that declares the separator for Excel
        lines = lines[1:]
    separator = max(",;\t", key=lines[0].count) if lines else ","
    try:
        rows = [[cell.strip() for cell in row] for row in rows_of(lines, separator)]
    except csv.Error as error:
        raise NephiError(f"cannot read the list of pairs {path}: {error}") from None
    rows = [["" if cell.lower() in _MISSING else cell for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    for row in rows:
        while row and not row[-1]:  # a spreadsheet fills all rows up
            row.pop()
    index = len(rows) > 1 and re.fullmatch(r"(unnamed: \d+)?", rows[0][0].lower()) is not None
    if index and all(re.fullmatch(r"\d+", row[0]) for row in rows[1:]):
        rows = [row[1:] for row in rows]
    return rows
