"""``nephi dirlab``: converts or scores DIR-Lab's lung CT with 300 landmarks a case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import NephiError
from ..files.dirlab import COLLECTIONS, case_grid, case_of, read_case_landmarks, write_pairs
from ..files.folder import ResultFolder
from ..files.transform import read_transform, through
from ..files.writing import write_csv
from ..measure.quality import summary, tre_mm

TABLE = "dirlab.csv"
_MOMENTS = ("mean", "sd", "median", "p95")
COLUMNS = (
    "case", "landmarks", *(f"{when}_{moment}_mm" for when in ("before", "after", "snapped") for moment in _MOMENTS),
)  # fmt: skip


def score(
    folder: str | Path,
    collection: str,
    maps: Mapping[int, Callable[[np.ndarray], np.ndarray]],
    fixed: str = "exhale",
) -> list[dict]:
    """Target registration error of ``maps``, by case: (n, 3) fixed -> moving points_lps_mm on ``case_grid``.

    One row per case with the names in COLUMNS, in mm: ``before``; ``after``; ``snapped``: after, to the nearest voxel
    of the moving image; sd is that of a sample (n - 1). With several cases a last row, case ``all``, is over all
    landmarks: with 300 in every case its means are the means over the cases that papers report. Raises NephiError as
    ``read_case_landmarks``.
    """
    rows, errors = [], []
    for number, forward in maps.items():
        grid = case_grid(collection, number)
        start, target = read_case_landmarks(folder, collection, number, fixed)
        carried = forward(start)
        snapped = grid.to_lps_mm(np.rint(grid.to_index(carried)))
        errors.append([tre_mm(points, target) for points in (start, carried, snapped)])
        rows.append(_row(COLLECTIONS[collection].name(number), errors[-1]))
    return rows + [_row("all", np.concatenate(errors, 1))] if len(rows) > 1 else rows


def _row(name: str, errors_mm: Iterable[np.ndarray]) -> dict:
    values = []
    for errors in errors_mm:
        measured = summary(errors) | {"sd": float(errors.std(ddof=min(1, len(errors) - 1)))}
        values += [measured[moment] for moment in _MOMENTS]
    return dict(zip(COLUMNS, [name, len(errors), *values], strict=True))


def result_maps(
    results: str | Path, collection: str, cases: Iterable[int] | None = None
) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
    """The maps that ``nephi register`` or ``nephi batch`` wrote as DIR/copd1/transform.h5 (or DIR/case1/...).

    Without ``cases``, all that exist. Raises NephiError if one is missing or not a transform, or if there is none.
    """

    wanted = COLLECTIONS[collection].cases if cases is None else cases
    maps: dict[int, Callable[[np.ndarray], np.ndarray]] = {}
    for number in wanted:
        names = (COLLECTIONS[collection].name(number), f"case{number}")
        places = [ResultFolder.opened(Path(results) / name).transform for name in names]
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            maps[number] = partial(through, read_transform(path, 3))
        elif cases is not None:
            raise NephiError(f"case {number} has no result: {places[0]} does not exist")
    if not maps:
        example = COLLECTIONS[collection].name(1)
        raise NephiError(f"no results of {collection} in {results}: {example}/transform.h5 etc. are expected")
    return maps


def table_lines(rows: list[dict]) -> list[str]:
    """The rows of ``score`` as a person reads them."""
    lines = [f"{'TRE in mm':16}{'before':>32}{'after':>32}{'after, at voxels':>32}"]
    lines.append(f"{'case':8}{'points':>8}" + "".join(f"{moment:>8}" for moment in _MOMENTS) * 3)
    for row in rows:
        case, count, *values = (row[column] for column in COLUMNS)
        lines.append(f"{case:8}{count:8}" + "".join(f"{value:8.2f}" for value in values))
    return lines


def dirlab_command(options) -> int:
    folder, collection = options.folder, options.collection
    cases = None if options.cases is None else sorted(set(options.cases))
    for number in cases or ():
        case_of(collection, number)
    if options.pairs:
        pairs = write_pairs(folder, collection, options.pairs, cases, options.fixed)
        print(f"written to {pairs}; next: nephi batch {pairs} --output RESULTS")
        return 0
    rows = score(folder, collection, result_maps(options.results, collection, cases), options.fixed)
    print("\n".join(table_lines(rows)))
    for note in _notes(rows, collection):
        print(f"note: {note}")
    table = Path(options.results) / TABLE
    write_csv(table, [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)])
    print(f"written to {table}")
    return 0


def _notes(rows: list[dict], collection: str) -> list[str]:
    """Where the landmarks are not those that were published, or not in millimetres of the case."""
    known, notes = COLLECTIONS[collection], []
    published = {known.name(number): case.distance_mm for number, case in known.cases.items()}
    for row in rows:
        expected = published.get(row["case"])
        if expected is not None and abs(row["before_mean_mm"] - expected) > 0.01 * expected:
            found = f"{row['before_mean_mm']:.2f} mm before registration, {expected:.2f} mm was published"
            notes.append(f"{row['case']}: the landmarks differ by {found}; check the files")
    return notes
