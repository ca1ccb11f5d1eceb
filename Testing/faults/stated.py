"""What a damaged file states, read another way than NePhi's: by ITK itself, or by the few lines here."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from . import samples

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def by_itk(path: Path) -> Any:
    return samples.plain(sitk.ReadImage(str(path)))


def nifti(path: Path) -> Any:
    """The voxels as ITK reads them, placed by sform where there is one, which a notice says if qform differs a little.

    Of a compressed file the checksum decides; its content may then state another image.
    """
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if path.suffix == ".hdr":
        found = by_itk(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            (copy := Path(folder) / "a.nii").write_bytes(raw)
            found = by_itk(copy)
    slope = struct.unpack_from("<f", raw, 112)[0]
    if raw[344:346] in (b"n+", b"ni") and 0 < abs(slope) < np.finfo(float).eps:  # for which ITK takes 1
        found["voxels"] = found["voxels"] * slope
    is_nifti = raw[344:346] in (b"n+", b"ni")
    if is_nifti and struct.unpack_from("<h", raw, 254)[0] > 0 and len(found["spacing_mm"]) == 3:
        rows = np.array([-1.0, -1.0, 1.0])[:, None] * np.reshape(struct.unpack_from("<12f", raw, 280), (3, 4))
        unit = {1: 1000.0, 3: 1e-3}.get(raw[123] & 7, 1.0)
        spacing = np.linalg.norm(rows[:, :3], axis=0)
        if np.abs(spacing * unit / found["spacing_mm"] - 1).max() < 0.01:
            found |= {"spacing_mm": spacing * unit, "origin_lps_mm": rows[:, 3] * unit}
    return _as_given(path, found)


_NRRD_KINDS = {"short": "<i2", "float": "<f4", "double": "<f8", "unsigned char": "u1", "uchar": "u1", "uint8": "u1",
               "signed char": "i1", "int": "<i4", "ushort": "<u2", "int16": "<i2", "unsigned short": "<u2"}  # fmt: skip


def nrrd(path: Path) -> Any:
    data = path.read_bytes()
    head, _, body = data.partition(b"\n\n")  # of .nhdr too, where the voxels may stand as well
    fields = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    if "data file" in fields:
        body = (path.parent / fields["data file"]).read_bytes()
    if fields["encoding"] in ("gzip", "gz"):
        body = gzip.decompress(body)
    size = [int(n) for n in fields["sizes"].split()]
    kind = np.dtype(_NRRD_KINDS[fields["type"]])
    if fields.get("endian", "little") == "big":
        kind = kind.newbyteorder(">")
    array = np.frombuffer(body, kind).reshape(size[::-1]).astype(float)
    vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
    axes = np.array([[float(v) for v in vector.split(",")] for vector in vectors]).T
    origin = np.array([float(v) for v in fields["space origin"].strip("()").split(",")])
    flip = {"left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1),
            "left-anterior-superior": (1, -1, 1)}[fields["space"].lower()]  # fmt: skip
    axes, origin = np.array(flip)[:, None] * axes, np.array(flip) * origin
    return _placed(path, array, axes, origin)


def _placed(path: Path, array: np.ndarray, axes: np.ndarray, origin: np.ndarray) -> dict[str, Any]:
    spacing = np.linalg.norm(axes, axis=0)
    place = {"spacing_mm": spacing, "origin_lps_mm": origin, "direction": (axes / spacing).ravel()}
    return _as_given(path, {**place, "voxels": array})


def _as_given(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Masks and label maps count on their image's grid: inside from 0.5 on, or all labels; outside where NaN."""
    if not path.name.startswith(("mask", "regions", "labels")):
        return found
    array, is_mask = np.nan_to_num(found["voxels"]), path.name.startswith("mask")
    if is_mask:
        array = (array >= 0.5 if (array % 1).any() else array != 0).astype(float)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(found["spacing_mm"].tolist())
    image.SetOrigin(found["origin_lps_mm"].tolist())
    image.SetDirection(found["direction"].tolist())
    wanted = samples.plain(samples.GRID)
    if all(np.allclose(found[key], wanted[key], rtol=1e-5, atol=1e-5) for key in found if key != "voxels") and (
        image.GetSize() == samples.GRID.GetSize()
    ):
        return {**found, "voxels": array}
    shrunk = image.GetSize() != samples.GRID.GetSize() and is_mask
    how = sitk.sitkLinear if shrunk else sitk.sitkNearestNeighbor
    array = sitk.GetArrayFromImage(sitk.Resample(image, samples.GRID, sitk.Transform(), how, 0.0))
    return {**wanted, "voxels": (array >= 0.5).astype(float) if shrunk else array}


_META_KINDS = {"MET_SHORT": "<i2", "MET_FLOAT": "<f4", "MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "<u2",
               "MET_INT": "<i4", "MET_UINT": "<u4", "MET_DOUBLE": "<f8"}  # fmt: skip


def meta(path: Path) -> Any:
    data = path.read_bytes()
    mark = re.search(rb"ElementDataFile\s*=\s*([^\n]*)\n", data)
    assert mark is not None
    fields = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", data[: mark.end()].decode("latin-1"), re.M))
    body = data[mark.end() :] if mark[1].strip() == b"LOCAL" else (path.parent / mark[1].decode().strip()).read_bytes()
    if fields.get("CompressedData") == "True":
        body = zlib.decompress(body)
    kind = np.dtype(_META_KINDS[fields["ElementType"]])
    if "True" in (fields.get("BinaryDataByteOrderMSB"), fields.get("ElementByteOrderMSB")):
        kind = kind.newbyteorder(">")
    array = np.frombuffer(body, kind).reshape([int(n) for n in fields["DimSize"].split()][::-1]).astype(float)
    d = array.ndim
    spacing = np.array([float(v) for v in fields.get("ElementSpacing", "1 " * d).split()])
    axes = np.array([float(v) for v in fields.get("TransformMatrix", " ".join(map(str, np.eye(d).ravel()))).split()])
    origin = np.array([float(v) for v in fields.get("Offset", "0 " * d).split()])
    return _placed(path, array, axes.reshape(d, d).T * spacing, origin)


def dicom(path: Path) -> Any:
    """Every slice by itself, those that there are by their position."""
    slices = [sitk.ReadImage(str(file)) for file in sorted(path.parent.iterdir())]
    slices.sort(key=lambda image: image.GetOrigin()[2])
    voxels = np.concatenate([sitk.GetArrayFromImage(image) for image in slices]).astype(float)
    places = np.array([image.GetOrigin() for image in slices])
    steps = np.diff(places[:, 2])
    if np.ptp(steps) > 0.3 or np.ptp(places[:, :2], axis=0).max() > 0.1:
        raise ValueError("an uneven stack")
    spacing = np.array([*slices[0].GetSpacing()[:2], steps.mean()])
    # the nearest even stack has its first slice a little beside the first file's
    first = np.polyfit(np.arange(len(places)), places[:, 2], 1)
    spacing[2] = first[0]
    origin = np.array([*places[0, :2], first[1]])
    return {"spacing_mm": spacing, "origin_lps_mm": origin, "direction": np.array(slices[0].GetDirection()),
            "voxels": voxels}  # fmt: skip


def rows(path: Path) -> Any:
    """Three numbers a line, as any reader of tables sees them."""
    name = path.name
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    if name.endswith(".mrk.json"):
        markup = json.loads(text)["markups"][0]
        turn = -1.0 if str(markup.get("coordinateSystem")).upper() in ("RAS", "0") else 1.0
        return np.array([point["position"] for point in markup["controlPoints"]], float) * (turn, turn, 1)
    if name.endswith(".vtk"):
        words = text.split("\n", 4)[4].split()
        return np.array(words[3 : 3 + 3 * int(words[1])], float).reshape(-1, 3)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    lines = lines[2:] if "elastix" in name else lines
    if name == "points.csv" or lines[:1] == ["x,y,z"]:
        lines = lines[1:]
    cells = [re.split(r"[,;\s]+", line.strip()) for line in lines]
    if name.endswith(".fcsv"):
        cells = [row[1:4] for row in (re.split(",", line) for line in lines)]
        ras = re.search(r"^# CoordinateSystem = (\S*)", text, re.M)
        turn = 1.0 if ras is not None and ras[1] in ("1", "LPS") else -1.0
        return np.array(cells, float) * (turn, turn, 1)
    points = np.array(cells, float)
    if "dirlab" in name:
        return np.array([samples.GRID.TransformContinuousIndexToPhysicalPoint(p) for p in (points - 1).tolist()])
    return points


def transform(path: Path) -> Any:
    """By the numbers in the file: all of them are there, and ITK gives these to the transform."""
    data = path.read_bytes()
    if path.suffix == ".h5":
        return _h5(path, data)
    made = sitk.ReadTransform(str(path))
    if path.suffix == ".mat":
        held = [v for v in struct.unpack(f"<{len(data) // 8}d", data[: len(data) // 8 * 8]) if v]
        return samples.through(made) if held else None
    text = data.decode("latin-1")
    held = [np.array(re.findall(_NUMBER, line.partition(":")[2]), float)
            for line in text.splitlines() if line.startswith("Parameters")]  # fmt: skip
    kinds = re.findall(r"^Transform: (\w+)", text, re.M)
    parts = [made]
    if made.GetTransformEnum() == sitk.sitkComposite:
        whole = sitk.CompositeTransform(made)
        parts = [whole.GetNthTransform(i) for i in range(whole.GetNumberOfTransforms())]
        kinds = [kind for kind in kinds if not kind.startswith("Composite")]
    if [len(h) for h in held] != [len(p.GetParameters()) for p in parts] or len(kinds) != len(parts):
        return None
    agree = all(np.allclose(h, p.GetParameters()) for h, p in zip(held, parts, strict=True))
    return samples.through(made) if agree else None


def _h5(path: Path, data: bytes) -> Any:
    """The numbers of each part stand in the file as they are, one part more for a composite itself."""
    made = sitk.ReadTransform(str(path))
    parts = [made]
    if made.GetTransformEnum() == sitk.sitkComposite:
        whole = sitk.CompositeTransform(made)
        parts = [whole.GetNthTransform(i) for i in range(whole.GetNumberOfTransforms())]
    held = [np.asarray(part.GetParameters(), "<f8").tobytes() for part in parts]
    named = data.count(b"TransformType") == len(parts) + (parts[0] is not made)
    return samples.through(made) if named and all(len(data) > len(h) and h in data for h in held) else None


def settings(path: Path) -> Any:
    """The file's entries over the defaults."""
    data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    if path.name == "train.json":
        from dataclasses import asdict

        base = json.loads(json.dumps(asdict(samples.TrainSettings())))
    else:
        name = data.get("preset", "balanced")
        base = json.loads(samples.PRESETS[name].to_json())
    return _over(base, data)


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in entries}) < len(entries):
        raise ValueError("an entry stands there twice")
    return dict(entries)


def _over(base: Any, data: Any) -> Any:
    if isinstance(base, dict) and isinstance(data, dict):
        # the entries of another kind of encoder or similarity do not hold; a file of our own names all of its own kind
        other = any(data.get(tag, base.get(tag)) != base.get(tag) for tag in ("kind", "name"))
        return {**({} if other else base), **{key: _over(base.get(key), value) for key, value in data.items()}}
    return data


def pairs(path: Path) -> Any:
    found = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=","):
            cells = {key.strip().lower(): (value or "").strip() for key, value in row.items()}
            name = cells.pop("name")
            if name or any(cells.values()):
                series = cells.pop("series", "").split()
                files = {
                    key: os.path.relpath(path.parent / value, path.parent) for key, value in cells.items() if value
                }
                found.append([name, series, files])
    return found


def log(path: Path) -> Any:
    """Every line of the steps to keep that is whole."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            entry = json.loads(line)
            if entry["step"] <= 12:
                found.append(entry)
        except (ValueError, TypeError, KeyError):
            pass
    return found


def report(path: Path) -> Any:
    """The same JSON; None (a report that is not trusted, so that the pair is registered again) is always right."""
    from nephi.cli.batch import finished_report

    if finished_report(path.parent, samples.Case("p", {}), samples.SHORT, True) is None:
        return None
    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
