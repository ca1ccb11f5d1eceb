"""Every reader of NePhi with damaged files: read as it was, refused in one line, or wrong.

A file that is accepted with other content than it had is right only if another reading of the damaged file
(``stated``) says the same: then the damage made another valid file, which no reader can tell, or a notice has told what
of it was left out or changed, and the other reading does the same. Every notice names the file, its folder or its role.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nephi.errors import NephiError, collected_notices

from . import exchanged, kept, objects, samples, stated
from .damage import damaged
from .pool import LINE, RIGHT, WRONG, Outcome, limit_memory

_MOST_BYTES = 4 * 10**9


@dataclass(frozen=True)
class Reader:
    """``make``: writes whole files into a folder, the first is the one to damage; ``read``: through NePhi's door."""

    make: Callable[[Path, np.random.Generator], Path]
    read: Callable[[Path], Any]
    stated: Callable[[Path], Any] | None = None
    head: int = 0  # bytes that hold the header; 0: all of the file


_R = Reader
READERS: dict[str, Reader] = {
    "image .nii": _R(samples.image(".nii"), samples.read_image, stated.nifti, 352),
    "image .nii.gz": _R(samples.image(".nii.gz"), samples.read_image, stated.nifti),
    "image .hdr": _R(samples.image(".hdr"), samples.read_image, stated.nifti, 352),
    "image .nrrd": _R(samples.image(".nrrd"), samples.read_image, stated.nrrd, 500),
    "image .nrrd, packed": _R(samples.image(".nrrd", True), samples.read_image, stated.nrrd, 500),
    "image .nhdr": _R(samples.image(".nhdr"), samples.read_image, stated.nrrd),
    "image .mha": _R(samples.image(".mha"), samples.read_image, stated.meta, 400),
    "image .mha, packed": _R(samples.image(".mha", True), samples.read_image, stated.meta, 400),
    "image .mhd": _R(samples.image(".mhd"), samples.read_image, stated.meta),
    "image .vtk": _R(samples.image(".vtk"), samples.read_image, stated.by_itk, 250),
    "image .png": _R(samples.png, samples.read_image, stated.by_itk),
    "image .tif": _R(samples.tif, samples.read_image, stated.by_itk),
    "DICOM folder": _R(samples.dicom, samples.read_image_beside, stated.dicom, 1500),
    "DICOM file": _R(samples.dicom, samples.read_volume, stated.by_itk, 1500),
    "mask .nii.gz": _R(samples.mask(".nii.gz"), samples.read_mask, stated.nifti),
    "mask .nrrd": _R(samples.mask(".nrrd"), samples.read_mask, stated.nrrd, 500),
    "regions .mha": _R(samples.mask(".mha"), samples.read_regions, stated.meta, 400),
    **{
        f"landmarks {name}": _R(samples.landmarks(name), samples.read_landmarks, stated.rows)
        for name in (".csv", "3 columns.csv", ".fcsv", ".mrk.json", "elastix.txt", "dirlab.txt", ".vtk")
    },
    **{
        f"transform {name}": _R(samples.transform(name), samples.read_transform, stated.transform, head)
        for name, head in (
            ("affine.h5", 0),
            ("field.h5", 3000),
            ("composite.h5", 0),
            ("affine.tfm", 0),
            ("composite.txt", 0),
            ("rigid.tfm", 0),
            ("affine.mat", 0),
            ("bspline.tfm", 0),
        )
    },  # fmt: skip
    "transform field.nrrd": _R(samples.transform("field.nrrd"), samples.read_transform, stated.nrrd, 400),
    "alignment .tfm": _R(samples.transform("affine.tfm"), samples.read_affine, stated.transform),
    "settings .json": _R(samples.settings, samples.read_settings, stated.settings),
    "training settings .json": _R(samples.train_settings, samples.read_train_settings, stated.settings),
    "pairs .csv": _R(samples.pairs, samples.read_pairs, stated.pairs),
    "registration": _R(samples.registration, samples.read_registration, None, 3000),
    "model": _R(samples.model, samples.read_model, None, 3000),
    "resume state": _R(samples.state, samples.read_state, None, 3000),
    "training cache": _R(samples.cache, samples.read_cache, None, 2000),
    "training log": _R(samples.log, samples.read_log, stated.log),
    "report .json": _R(samples.report, samples.read_report, stated.report),
    **{kind: _R(*reader) for kind, reader in (exchanged.READ | objects.READ | kept.READ).items()},
}


@functools.cache
def _others() -> list[bytes]:
    """Whole files of other kinds, to stand under a wrong name."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for i, kind in enumerate(("image .nii", "image .nrrd", "landmarks .csv", "settings .json",
        "transform affine.tfm",
                                  "registration", "pairs .csv", "image .png")):  # fmt: skip
            (place := Path(folder) / str(i)).mkdir()
            made.append(READERS[kind].make(place, np.random.default_rng(5)).read_bytes())
    return made


def fuzz(kind: str, seed: int) -> Outcome:
    """One damaged file, drawn from ``seed``, through its reader."""
    reader, rng = READERS[kind], np.random.default_rng([seed, len(kind), sum(kind.encode())])
    others = _others()
    folder = Path(tempfile.mkdtemp(prefix="nephi-faults-"))
    here = os.getcwd()
    try:
        path = reader.make(folder, rng)
        whole = reader.read(path)
        if whole is None:  # then nothing that comes could be found wrong
            return Outcome("fuzz", kind, seed, WRONG, "undamaged", "it is not read")
        if seed % 10 == 0 and reader.stated is not None and not same(whole, again := reader.stated(path)):
            return Outcome("fuzz", kind, seed, WRONG, "undamaged", f"{_short(whole)} is stated as {_short(again)}")
        how = damaged(path, rng, reader.head, others)
        limit_memory_once()
        _forget_peak()
        try:
            with collected_notices() as notices:
                found = reader.read(path)
        except NephiError as error:
            said = str(error)
            wrong = "\n" in said or "too little memory" in said
            return Outcome("fuzz", kind, seed, WRONG if wrong else LINE, how, said[:300])
        except Exception as error:
            return Outcome("fuzz", kind, seed, WRONG, how, f"{type(error).__name__}: {str(error)[:300]}")
        if (peak := _peak()) > _MOST_BYTES:
            return Outcome("fuzz", kind, seed, WRONG, how, f"{peak / 1e9:.1f} GB")
        told = "; ".join(notices)[:300]
        if not all(_about(path, kind, text) for text in notices):
            return Outcome("fuzz", kind, seed, WRONG, how, f"a notice of something else: {told}")
        if same(whole, found):
            return Outcome("fuzz", kind, seed, RIGHT, how, told)
        try:
            agree, why = reader.stated is not None and same(again := reader.stated(path), found), ""
        except Exception as error:
            agree, why = False, f"{type(error).__name__}: {error}"
        if agree:
            return Outcome("fuzz", kind, seed, RIGHT, how, f"another valid file {told}".strip())
        why = why or (f"stated as {_short(again)}" if reader.stated is not None else "")
        said = f"{'with the notice ' + told if told else 'silently'} {_short(found)} instead of {_short(whole)}; {why}"
        return Outcome("fuzz", kind, seed, WRONG, how, said)
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)


def _about(path: Path, kind: str, notice: str) -> bool:
    """Whether a notice names the file, its folder or what the file was given as."""
    role = kind.partition(" .")[0].partition(",")[0]
    given = (f"{role}:", f"{role} ", f"{role.partition(' ')[0]}:")  # a transform in the format of another program
    return any(name in notice for name in (path.name, str(path.parent), *given))


@functools.cache
def limit_memory_once() -> None:
    limit_memory()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def same(a: Any, b: Any) -> bool:
    """Equal in structure; numbers to the rounding of the file formats."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True))
    if isinstance(a, float) and isinstance(b, (int, float)) and abs(b) < 1e300:
        return bool(np.isclose(a, b, rtol=1e-5, atol=1e-9, equal_nan=True))
    return bool(a == b)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, np.ndarray) and value.size > 9:
        return f"array{value.shape} around {np.nanmean(value):g}"
    return (json.dumps(value, default=str) if not isinstance(value, np.ndarray) else str(value.tolist()))[:120]
