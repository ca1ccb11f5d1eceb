"""DIR-Lab's lung CT with 300 landmarks a case: reading, converting and scoring; ``nephi dirlab``.

``copdgene``: ten breath-hold pairs of COPD patients; Castillo et al., Phys Med Biol 2013, 58:2861. ``4dct``: ten
4D CT, of which the end-inhale (T00) and end-exhale (T50) phases; Castillo et al., Phys Med Biol 2009, 54:1849.
Sizes, spacings and file names are those of www.dir-lab.com, where the images must be asked for; the folders may be
nested in any way, as files are found by their names.

An image is raw, 16-bit little-endian, x fastest, and without a header: rows run to the patient's left, columns
to the back and slices to the feet. A stored value is HU + 1024; what lies outside the scanner's circle is stored
as about -2000 and becomes air. Landmarks are voxel indices from 1 (``landmarks.py``).

The fixed image is the exhale one unless ``fixed="inhale"``: its landmarks are carried to the moving image, where the
target registration error is measured. DIR-Lab's own variant first snaps the carried landmark to the nearest voxel
centre, as the observers could mark only those; it makes small errors smaller, so that both numbers are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..paths import check_file
from ..space.grid import Grid
from .image import write_image
from .landmarks import read_landmarks, write_landmarks
from .writing import output_folder, replaced, write_csv

PAIRS = "pairs.csv"
PHASES = ("exhale", "inhale")
_AIR, _OFFSET = -1024, 1024


@dataclass(frozen=True)
class CaseGeometry:
    """Voxels of both images, and the published mean distance of the landmarks before registration."""

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    distance_mm: float


@dataclass(frozen=True)
class Collection:
    """One of the two data sets; the patterns of the file names lack the case's number and take any capitals."""

    prefix: str
    images: dict[str, str]  # by phase
    landmarks: dict[str, str]
    cases: dict[int, CaseGeometry]

    def name(self, number: int) -> str:
        return f"{self.prefix}{number}"


def _cases(rows: list[tuple[int, int, float, float]]) -> dict[int, CaseGeometry]:
    """From rows of columns (= rows), slices, mm in the slice and the published distance."""
    return {
        number: CaseGeometry((side, side, slices), (mm, mm, 2.5), distance)
        for number, (side, slices, mm, distance) in enumerate(rows, 1)
    }


COLLECTIONS = {
    "copdgene": Collection(
        "copd",
        {"exhale": r"copd{}_eBHCT\.img", "inhale": r"copd{}_iBHCT\.img"},
        {"exhale": r"copd{}_300_eBH_xyz_r1\.txt", "inhale": r"copd{}_300_iBH_xyz_r1\.txt"},
        _cases([
            (512, 121, 0.625, 26.33), (512, 102, 0.645, 21.79), (512, 126, 0.652, 12.64), (512, 126, 0.590, 29.58),
            (512, 131, 0.647, 30.08), (512, 119, 0.633, 28.46), (512, 112, 0.625, 21.60), (512, 115, 0.586, 26.46),
            (512, 116, 0.664, 14.86), (512, 135, 0.742, 21.81),
        ]),
    ),
    "4dct": Collection(
        "case",  # case1_T00_s.img, case2_T00-ssm.img, case6_T00.img; Case1_300_..., case6_dirLab300_...
        {"exhale": r"case{}_T50(_s|-ssm)?\.img", "inhale": r"case{}_T00(_s|-ssm)?\.img"},
        {"exhale": r"case{}_(dirLab)?300_T50_xyz\.txt", "inhale": r"case{}_(dirLab)?300_T00_xyz\.txt"},
        _cases([
            (256, 94, 0.97, 3.89), (256, 112, 1.16, 4.34), (256, 104, 1.15, 6.94), (256, 99, 1.13, 9.83),
            (256, 106, 1.10, 7.48), (512, 128, 0.97, 10.89), (512, 136, 0.97, 11.03), (512, 128, 0.97, 14.99),
            (512, 128, 0.97, 7.92), (512, 120, 0.97, 7.30),
        ]),
    ),
}  # fmt: skip


def case_grid(collection: str, number: int) -> Grid:
    """The voxels of both images of a case, in the stored order; the first voxel's centre is the origin."""
    case = case_of(collection, number)
    return Grid(case.size, case.spacing_mm, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))


def read_image(folder: str | Path, collection: str, number: int, phase: str) -> sitk.Image:
    """The exhale or inhale image of a case, int16 HU, on ``case_grid``.

    Raises NephiError where the file is missing, there more than once or not of the case's size.
    """
    case, path = case_of(collection, number), _found(folder, collection, number, phase, "images")
    path = check_file(path, "image")
    try:
        if (held := path.stat().st_size) != 2 * np.prod(case.size):
            voxels = " x ".join(map(str, case.size))
            raise NephiError(f"{path} has {held} bytes; {voxels} voxels of 2 bytes are {2 * np.prod(case.size)}")
        values = np.fromfile(path, "<i2")
    except OSError as error:
        raise NephiError(f"cannot read the image {path}: {error.strerror}") from None
    values = np.maximum(values, _AIR + _OFFSET).astype(np.int16) - np.int16(_OFFSET)
    return case_grid(collection, number).image(values.reshape(case.size[::-1]))


def read_pair(folder: str | Path, collection: str, number: int, fixed: str = "exhale") -> tuple[sitk.Image, sitk.Image]:
    """The (fixed, moving) images of a case; see ``read_image``."""
    first, second = _order(fixed)
    return read_image(folder, collection, number, first), read_image(folder, collection, number, second)


def read_case_landmarks(
    folder: str | Path, collection: str, number: int, fixed: str = "exhale"
) -> tuple[np.ndarray, np.ndarray]:
    """The (fixed, moving) landmarks of a case, both (n, 3) points_lps_mm on ``case_grid``; no image is read.

    Raises NephiError if a file is missing, ambiguous or not a landmark file, if the two differ in length, or if a
    landmark lies outside the image.
    """
    grid = case_grid(collection, number)
    paths = [_found(folder, collection, number, phase, "landmarks") for phase in _order(fixed)]
    points = [read_landmarks(path, grid) for path in paths]
    if len(points[0]) != len(points[1]):
        raise NephiError(f"{paths[0]} contains {len(points[0])} landmarks, {paths[1].name} {len(points[1])}")
    for path, points_lps_mm in zip(paths, points, strict=True):
        index_xyz = grid.to_index(points_lps_mm)
        if (index_xyz < -0.5).any() or (index_xyz > np.array(grid.size) - 0.5).any():
            raise NephiError(f"{path} contains landmarks outside {grid.size} voxels: it belongs to another image")
    return points[0], points[1]


def write_pairs(
    folder: str | Path,
    collection: str,
    output: str | Path,
    cases: Iterable[int] | None = None,
    fixed: str = "exhale",
    tell: Callable[[str], None] = print,
) -> Path:
    """Images as .nii.gz and landmarks as .csv (LPS mm) in ``output``, and ``pairs.csv`` for ``nephi batch``.

    The voxels keep the stored order, so that DIR-Lab's own landmark files go with the written images too.
    Without ``cases`` all ten. Returns the path of ``pairs.csv``; raises NephiError as the readers do, before
    anything is written where a file is missing, and where ``output`` cannot be written to.
    """
    known, order = COLLECTIONS[collection], _order(fixed)
    numbers = list(known.cases if cases is None else cases)
    for number in numbers:
        for phase in order:
            _found(folder, collection, number, phase, "images")
    landmarks = {number: read_case_landmarks(folder, collection, number, fixed) for number in numbers}
    rows = []
    with output_folder(output) as place, replaced(place, last=PAIRS) as scratch:
        for number in numbers:
            name = known.name(number)
            for phase, points_lps_mm in zip(order, landmarks[number], strict=True):
                write_image(read_image(folder, collection, number, phase), scratch / f"{name}_{phase}.nii.gz")
                write_landmarks(scratch / f"{name}_{phase}.csv", points_lps_mm)
            rows.append([name, *(f"{name}_{phase}{suffix}" for suffix in (".nii.gz", ".csv") for phase in order)])
            tell(f"{name}: {len(landmarks[number][0])} landmarks, fixed {order[0]}, moving {order[1]}")
        write_csv(scratch / PAIRS, [["name", "fixed", "moving", "fixed_landmarks", "moving_landmarks"], *rows])
    return place / PAIRS


def _order(fixed: str) -> tuple[str, str]:
    """The phases of the fixed and the moving image."""
    if fixed not in PHASES:
        raise NephiError(f"the fixed image must be one of {', '.join(PHASES)}, not '{fixed}'")
    return (fixed, PHASES[1 - PHASES.index(fixed)])


def case_of(collection: str, number: int) -> CaseGeometry:
    if collection not in COLLECTIONS:
        raise NephiError(f"there is no DIR-Lab set '{collection}'; the sets are {', '.join(COLLECTIONS)}")
    cases = COLLECTIONS[collection].cases
    if number not in cases:
        raise NephiError(f"{collection} has no case {number}; the cases are {min(cases)} to {max(cases)}")
    return cases[number]


def _found(folder: str | Path, collection: str, number: int, phase: str, what: str) -> Path:
    """The one file of that kind anywhere in ``folder``: the distributed folders are named in many ways."""
    folder, pattern = Path(folder), getattr(COLLECTIONS[collection], what)[phase].format(number)
    if not folder.is_dir():
        raise NephiError(f"no such folder: {folder}")
    paths = sorted(path for path in folder.rglob("*") if re.fullmatch(pattern, path.name, re.IGNORECASE))
    if not paths:
        example = re.sub(r"\(.*?\)\?|\\", "", pattern)
        raise NephiError(f"{collection} case {number}: no {phase} {what[:-1]} file like {example} in {folder}")
    if len(paths) > 1:
        raise NephiError(f"{collection} case {number}: keep one of {paths[0]} and {paths[1]}")
    return paths[0]
