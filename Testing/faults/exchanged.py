"""Files that NePhi exchanges with other programs, and those of guidance, verdicts and cohorts, as the samples.

What a damaged one states is read by h5py or the few lines here, not by NePhi.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk
from nephi.both import Both
from nephi.cli.convert import _part
from nephi.cli.summarise import row_in
from nephi.files.cases import Case
from nephi.files.formats import Pair, Sampled, write_format
from nephi.files.image import open_image
from nephi.files.landmarks import read_deviations
from nephi.fitting.guidance import Guidance
from nephi.fitting.initial import affine_part
from nephi.measure.verdict import Tolerances, read_tolerances
from nephi.space.affine import Affine
from nephi.space.grid import Grid

from . import samples
from .samples import GRID, Make, through
from .stated import _once, _over, meta, nifti

_RAS = np.array([-1.0, -1.0, 1.0])
FIELD = Grid((7, 6, 5), (1.0, 1.2, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
_MOVING = Grid((9, 8, 7), (1.1, 0.9, 1.7), (-1.0, 2.0, 0.5), tuple(np.eye(3).ravel().tolist()))


def sampled(rng: np.random.Generator) -> Sampled:
    return Sampled(FIELD, rng.normal(0, 1, (*FIELD.shape, 3)).astype("f4"), Affine.identity(3), _MOVING)


def written(name: str) -> Make:
    """A transform in one of the formats of ``nephi convert``."""

    def make(folder: Path, rng: np.random.Generator) -> Path:
        return write_format(name, Pair(sampled(rng)), folder / "made")[0]

    return make


def read_part(path: Path) -> Any:
    """As ``nephi convert`` reads it."""
    return through(_part(path, _MOVING, 3))


def x5(path: Path) -> Any:
    """The numbers that the file holds, on the grid that it names."""
    with h5py.File(path) as file:
        (node,) = file["TransformGroup"].values()
        field, mapping = np.array(node["Transform"], float), np.array(node["Domain/Mapping"], float)
        assert tuple(np.array(node["Domain/Size"]).tolist()) == field.shape[:3]
    return through_field(
        np.transpose(field, (2, 1, 0, 3)) * _RAS, _RAS[:, None] * mapping[:3, :3], _RAS * mapping[:3, 3]
    )


def through_field(field: np.ndarray, matrix: np.ndarray, origin: np.ndarray) -> np.ndarray:
    image = sitk.GetImageFromArray(np.ascontiguousarray(field), isVector=True)
    spacing = np.linalg.norm(matrix, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection((matrix / spacing).ravel().tolist())
    return through(sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64)))


def displacements(path: Path) -> Any:
    """As ITK reads them, which turns to LPS what is marked as displacements in RAS."""
    found = nifti(path)
    return through_field(
        found["voxels"], found["direction"].reshape(3, 3) * found["spacing_mm"], found["origin_lps_mm"]
    )


def fsl(path: Path) -> Any:
    """Of the four axes that ITK reads, in FSL's coordinates: the voxels' places counted from the other end of x."""
    raw = path.read_bytes()
    (plain := path.with_name("plain.nii")).write_bytes(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    image = sitk.ReadImage(str(plain), sitk.sitkFloat64)
    plain.unlink()
    own, grid = image[..., 0], Grid.of(image[..., 0])
    offsets = np.moveaxis(sitk.GetArrayFromImage(image), 0, -1)
    points, field = grid.points_lps_mm(), np.empty((*grid.shape, 3))
    sizes = np.array(own.GetSpacing())
    right = np.linalg.det(grid.axes) > 0
    for at in np.ndindex(*grid.shape):
        here = np.array(at[::-1], float)
        here[0] = own.GetSize()[0] - 1 - here[0] if right else here[0]
        there = (here * sizes + offsets[at]) / np.array(_MOVING.spacing_mm)
        there[0] = _MOVING.size[0] - 1 - there[0]
        field[at] = _MOVING.to_lps_mm(there) - points[at]
    return through_field(field, grid.axes * sizes, np.array(grid.origin_lps_mm))


# ---- guidance, verdicts, cohorts ------------------------------------------------------------------------


def deviations(folder: Path, rng: np.random.Generator) -> Path:
    rows = [f"{x:.3f},{y:.3f},{z:.3f},{sd:.2f}" for x, y, z, sd in rng.uniform(1, 8, (7, 4))]
    (folder / "guides.csv").write_text("\n".join(["x,y,z,sd", *rows]) + "\n", encoding="utf-8")
    return folder / "guides.csv"


def read_guides(path: Path) -> Any:
    """Points and deviations, as they guide a registration of images that hold all of them."""
    grid = sitk.Image((40, 40, 40), sitk.sitkInt16)
    grid.SetOrigin((-10.0, -10.0, -10.0))
    points = samples.nephi_read_landmarks(path, grid)
    found = Guidance((points, points), read_deviations(path)).checked(Both(grid, grid))
    return [found.landmarks_lps_mm[0], found.landmarks_sd_mm]


def guides(path: Path) -> Any:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    points = np.array([[float(row[axis]) for axis in "xyz"] for row in rows])
    return [points, np.array([float(row["sd"]) for row in rows]) if "sd" in rows[0] else None]


def guide_labels(folder: Path, rng: np.random.Generator) -> Path:
    image = sitk.GetImageFromArray(rng.integers(0, 3, GRID.GetSize()[::-1]).astype("u1"))
    image.CopyInformation(GRID)
    for name in ("labels", "other"):
        sitk.WriteImage(image, str(folder / f"{name}.mha"))
    return folder / "labels.mha"


def read_guide_labels(path: Path) -> Any:
    given = open_image(path, "fixed guide labels"), open_image(path.with_name("other.mha"), "moving guide labels")
    return samples.plain(Guidance(labels=given).checked(Both(GRID, GRID)).labels[0])


def read_initial(path: Path) -> Any:
    """The affine part of an initial transform, where it can be inverted."""
    found = affine_part(samples.nephi_read_transform(path, 3), FIELD, None)
    return found(samples._PROBES)


def initial(path: Path) -> Any:
    made = sitk.AffineTransform(sitk.ReadTransform(str(path)))
    assert np.linalg.det(np.reshape(made.GetMatrix(), (3, 3))) > 0
    return through(made)


def tolerances(folder: Path, rng: np.random.Generator) -> Path:
    entries = {**Tolerances("a site").to_dict(), "mean_mm": round(float(rng.uniform(0.5, 3)), 2)}
    (folder / "tolerances.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return folder / "tolerances.json"


def tolerances_stated(path: Path) -> Any:
    data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    return _over({**asdict(Tolerances()), "set_by": path.name, "jacobian": [0.1, 6.0]}, data)


def failure(folder: Path, rng: np.random.Generator) -> Path:
    """Of a pair of a batch, which the table of a cohort is made from."""
    (folder / "failure.json").write_text(json.dumps({"error": "one reason", "seconds": 2.5}), encoding="utf-8")
    return folder / "failure.json"


def read_row(path: Path) -> Any:
    return {k: v for k, v in row_in(path.parent, Case("p", {}), None).items() if v not in (None, "")}


def row(path: Path) -> Any:
    """A damaged one counts as a pair that has not ended."""
    try:
        assert path.is_file()
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
        assert isinstance(data["error"], str) and (data["seconds"] is None or np.isfinite(float(data["seconds"])))
        found = {"name": "p", "status": "failed", "error": data["error"], "seconds": data["seconds"]}
        return {key: value for key, value in found.items() if value not in (None, "")}
    except Exception:
        return {"name": "p", "status": "waiting"}


READ = {
    "transform nifti .nii.gz": (written("nifti"), read_part, displacements, 0),
    "transform compact .h5": (written("compact"), read_part, None, 3000),
    "transform .x5": (written("x5"), read_part, x5, 3000),
    "transform fsl .nii.gz": (written("fsl"), read_part, fsl, 0),
    "guide landmarks .csv": (deviations, read_guides, guides, 0),
    "guide labels .mha": (guide_labels, read_guide_labels, meta, 400),
    "initial transform .tfm": (samples.transform("affine.tfm"), read_initial, initial, 0),
    "tolerances .json": (tolerances, lambda path: read_tolerances(path).to_dict(), tolerances_stated, 0),
    "failure .json": (failure, read_row, row, 0),
}
