"""A folder of DICOM files as one image, by position and orientation of every file.

ITK's own series reader spaces whatever it finds evenly and leaves out what it cannot read. Here slices have to form
one regular stack. What is marked as something else (localizers, copies, reports) is skipped with a notice, and
where it is not certain what to leave out, the folder is refused with the file's name.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..space.grid import Grid
from .dicom_elements import lengths_fit

SERIES = "0020|000e"  # the tag of the series' UID, which an image of many files keeps

_OFF, _OFF_MM = 0.15, 0.1  # part of the slice spacing by which a slice may lie off its place, and at most this
_TURNED = 2e-3  # difference of direction cosines from which on slices are oriented differently
_LEAST = 0.5  # a regular series is preferred to a larger one that is not, down to this part of its slices
_NO_IMAGE = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|66|88|104|481\.[34589])(\.\d+)*)\0?")
_READERS = 8  # headers that are read at once
_ONCE_BYTES = 2**30  # of a folder that is read before its headers are known
_OF_FOLDERS = ("DICOMDIR", "THUMBS.DB")  # what lies in many folders of images


@dataclass(frozen=True)
class _File:
    """What one DICOM image file says of itself."""

    path: Path
    series: str
    uid: str
    size: tuple[int, ...]
    pixel: int
    spacing_mm: np.ndarray  # in the slice
    axes: np.ndarray  # (3, 2): directions of rows and columns
    position_lps_mm: np.ndarray | None
    tags: dict[str, str]

    @property
    def kinds(self) -> list[str]:
        return self.tags["0008|0008"].upper().replace(" ", "").split("\\")

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[:, 0], self.axes[:, 1])

    @property
    def name(self) -> str:
        return self.path.name


_TAGS = ("0008|0008", "0008|103e", "0020|0012", "0020|0100", "0018|0081", "0018|1060", "0028|0120", "0028|0103",
         "0028|1052", "0028|1053")  # fmt: skip
# what has to be alike in all slices for one pass: class, colours, pixel spacing and type, scale, series
_ALIKE = ("0008|0016", "0028|0002", "0028|0004", "0018|1164", "0028|0030", "0028|0100", "0028|0101", "0028|0103",
          "0028|1052", "0028|1053", SERIES)  # fmt: skip
_PLACE = ("0020|0032", "0020|0037", "0008|0018")


class _Irregular(NephiError):
    """A series whose slices form no regular stack."""


def read_dicom(folder: Path, role: str, series: tuple[str, ...] = ()) -> sitk.Image:
    """The series in a folder: the one of ``series``, or the largest regular one, which a notice reports.

    Raises NephiError, with the files' names, for files that cannot be read, missing slices, uneven spacing, tilted
    stacks and several phases, and where two series are equally large.
    """
    if (image := _at_once(folder)) is not None:
        return image
    found: dict[str, list[_File]] = defaultdict(list)
    for file in image_files(folder, role):
        found[file.series].append(file)
    if not found:
        raise NephiError(f"{role}: no DICOM series in folder {folder}")
    where = f"{role}: {folder}"
    named = [uid for uid in found if uid in series]
    if len(named) > 1:
        raise NephiError(f"{where} holds {len(named)} of the series given; name one of them")
    if series and not named and len(found) > 1:
        raise NephiError(f"{where} holds none of the series given, but {_listed(found)}")
    if named or len(found) == 1:
        return _image(_stack(found[named[0] if named else next(iter(found))], where), where)
    stacks, flaws = {}, {}
    for uid, files in found.items():
        try:
            stacks[uid] = _stack(files, where, quiet=True)
        except _Irregular as flaw:
            flaws[uid] = flaw
    counts = {uid: sum(f.size[2] for f in stack) for uid, stack in stacks.items()}
    largest = max(flaws, key=lambda uid: len(found[uid]), default=None)
    best = max(counts, key=counts.__getitem__, default=None)
    if largest is not None and (best is None or counts[best] < _LEAST * len(found[largest])):
        raise NephiError(f"{flaws[largest]} (the largest of {len(found)} DICOM series)")
    assert best is not None  # a series is in order, or has a flaw
    if sum(count == counts[best] for count in counts.values()) > 1:
        raise NephiError(
            f"{role}: {len(found)} DICOM series in {folder}, equally large: {_listed(found)}; "
            "choose one with --series, or put it in a folder of its own"
        )
    notice(f"{where} holds {len(found)} DICOM series, {_listed(found)}; the largest regular one is read, {best}.")
    return _image(_stack(found[best], where), where)


def _at_once(folder: Path) -> sitk.Image | None:
    """The image of a folder that holds one series in order and nothing else, headers and voxels read in one pass.

    None for any other folder, and for one that may be another: its headers are to be looked at first.
    """
    paths = _candidates(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        names = [Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder))]
        large = sum(path.stat().st_size for path in paths) > _ONCE_BYTES
        if large or len(paths) < 2 or set(names) != set(paths) or not all(map(lengths_fit, paths)):
            return None
        reader.SetFileNames([str(name) for name in names])
        image = reader.Execute()
        tags = [{key: _tag(reader, k, key) for key in (*_TAGS, *_ALIKE, *_PLACE)} for k in range(len(names))]
        words = [f"{slice_['0020|0037']}\\{slice_['0020|0032']}".split("\\") for slice_ in tags]
        stated = np.array(words, float).reshape(len(tags), 3, 3).transpose(0, 2, 1)  # rows, columns, position
    except (RuntimeError, MemoryError, OSError, ValueError):
        return None
    del reader  # it shares the image, which would be copied where its place is set
    itk = np.c_[np.reshape(image.GetDirection(), (3, 3))[:, :2], image.GetOrigin()]  # the first slice, as ITK sees it
    alike = all(slice_[key] == tags[0][key] for slice_ in tags for key in _ALIKE)
    if not alike or not np.isfinite(stated).all() or not np.allclose(stated[0], itk, rtol=1e-9, atol=1e-6):
        return None
    size, pixel, spacing = (*image.GetSize()[:2], 1), image.GetPixelID(), np.array(image.GetSpacing())
    files = [_File(path, slice_[SERIES], slice_["0008|0018"], size, pixel, spacing, s[:, :2], s[:, 2], slice_)
             for path, slice_, s in zip(names, tags, stated, strict=True)]  # fmt: skip
    try:
        in_order = image.GetSize()[2] == len(files) and [f.path for f in _stack(files, "", quiet=True)] == names
    except _Irregular:
        return None
    return _placed(_without_padding(image, files[0].tags), files) if in_order else None


def _candidates(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _tag(reader, *key: str | int) -> str:
    return reader.GetMetaData(*key).strip(" \0") if reader.HasMetaDataKey(*key) else ""


def image_files(folder: Path, role: str) -> list[_File]:
    """The images among the files; others are skipped where they are marked or named as something else."""
    paths = _candidates(folder)
    parts = min(_READERS, os.cpu_count() or 1)
    found: dict[Path, _File | None] = {}
    with ThreadPoolExecutor(parts) as pool:
        for part in pool.map(lambda k: {path: _read_header(path) for path in paths[k::parts]}, range(parts)):
            found.update(part)
    files = [file for path in paths if (file := found[path]) is not None]
    others = [path for path in paths if found[path] is None]
    if not files and not any(_is_dicom(path) for path in others):
        return []
    suffixes = {file.path.suffix.lower() for file in files}
    aside = [path for path in others if _is_no_slice(path, suffixes)]
    if damaged := [path.name for path in others if path not in aside]:
        raise NephiError(
            f"{role}: {folder} holds {_some(damaged)} that cannot be read as DICOM "
            "(cut off, empty or something else); repair or remove it"
        )
    if strange := [path.name for path in aside if path.name.upper() not in _OF_FOLDERS]:
        notice(f"{role}: {folder}: {_some(strange)} is not a DICOM image and was skipped.")
    return files


def _read_header(path: Path) -> _File | None:
    """What a file says of itself; None where it cannot be read as a DICOM image."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        if not lengths_fit(path):
            return None
        reader.ReadImageInformation()
    except (RuntimeError, MemoryError):
        return None
    size = reader.GetSize()
    placed = reader.HasMetaDataKey("0020|0032") or size[-1] > 1
    return _File(
        path=path,
        series=_tag(reader, SERIES),
        uid=_tag(reader, "0008|0018"),
        size=(*size, 1)[:3],
        pixel=reader.GetPixelID(),
        spacing_mm=np.array(reader.GetSpacing()),
        axes=np.reshape(reader.GetDirection(), (len(size),) * 2)[:3, :2],
        position_lps_mm=np.array(reader.GetOrigin()) if placed else None,
        tags={key: _tag(reader, key) for key in _TAGS},
    )


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _is_no_slice(path: Path, suffixes: set[str]) -> bool:
    """Whether a file is something else by its DICOM class (reports, structures, DICOMDIR) or by its name."""
    if path.name.upper() in _OF_FOLDERS:
        return True
    with open(path, "rb") as file:
        head = file.read(1024)
    if head[128:132] == b"DICM":
        return _NO_IMAGE.search(head[132:]) is not None
    return path.suffix.lower() not in suffixes and bool(path.suffix) and not path.suffix[1:].isdigit()


def _stack(files: list[_File], where: str, quiet: bool = False) -> list[_File]:
    """The slices of a series in order, each at its place; a single file may hold many. Raises _Irregular."""
    aside: list[tuple[str, str]] = []

    def leave(out: list[_File], why: str) -> list[_File]:
        aside.extend((file.name, why) for file in out)
        gone = {file.path for file in out}
        return [file for file in files if file.path not in gone]

    def only(kind: str, why: str) -> list[_File]:
        """Those that are marked as ``kind`` go where most are not."""
        marked = [file for file in files if kind in file.kinds]
        return leave(marked, why) if len(marked) < len(files) / 2 else files

    files = only("LOCALIZER", "localizer")
    files = only("DERIVED", "derived image")
    files = leave([f for f in files if f.position_lps_mm is None], "no position") if (
        any(f.position_lps_mm is not None for f in files)) else files  # fmt: skip
    seen: set[tuple[str, tuple]] = set()
    copies = []
    for file in files:
        slice_ = (file.uid, () if file.position_lps_mm is None else tuple(file.position_lps_mm))
        copies += [file] if file.uid and slice_ in seen else []
        seen.add(slice_)
    files = leave(copies, "copy of another")
    if any(file.size[2] > 1 for file in files):
        if len(files) > 1:
            raise _Irregular(f"{where} holds several files with many slices each; give the one to use")
        return _told(files, aside, where, quiet)
    if any(file.position_lps_mm is None for file in files):
        raise _Irregular(f"{where}: the slices state no position (Image Position), so that they cannot be put in order")
    for what, key in (
        ("of another size", lambda f: f.size[:2]),
        ("with another pixel spacing", lambda f: tuple(np.round(f.spacing_mm[:2], 4))),
    ):
        most = Counter(map(key, files)).most_common(1)[0][0]
        if odd := [file for file in files if key(file) != most]:
            other, usual = (" x ".join(f"{v:g}" for v in value) for value in (key(odd[0]), most))
            raise _Irregular(f"{where}: {_some([f.name for f in odd])} is {what}, {other} and not {usual}")
    turned = _turned(files)
    if turned:
        raise _Irregular(f"{where}: {_some([f.name for f in turned])} is oriented differently from the other slices")
    return _told(_in_order(files, where), aside, where, quiet)


def _turned(files: list[_File]) -> list[_File]:
    """The slices that are not oriented as most are."""
    axes = np.array([file.axes for file in files])
    usual = np.median(axes, axis=0)
    return [file for file, a in zip(files, axes, strict=True) if np.abs(a - usual).max() > _TURNED]


def _in_order(files: list[_File], where: str) -> list[_File]:
    """Sorted along the normal; raises _Irregular unless they lie one above the other at even distances."""
    if len(files) == 1:
        return files
    normal = files[0].normal
    files = sorted(files, key=lambda file: float(file.position_lps_mm @ normal))
    places = np.array([file.position_lps_mm for file in files])
    along = places @ normal
    steps = np.diff(along)
    same = np.flatnonzero(steps < max(1e-3, 0.05 * float(np.median(steps))))
    if len(same):
        if len(same) < 0.2 * len(files):
            pair = f"{files[same[0]].name} and {files[same[0] + 1].name}"
            raise _Irregular(f"{where}: {pair} are two different slices at the same position; remove one")
        differ = [name for name, tag in (("acquisition", "0020|0012"), ("temporal position", "0020|0100"),
                  ("echo time", "0018|0081"), ("trigger time", "0018|1060"))
                  if len({f.tags[tag] for f in files}) > 1]  # fmt: skip
        by = f", which differ by {', '.join(differ)}" if differ else ""
        raise _Irregular(
            f"{where}: {len(same)} of {len(files)} slices lie at the same position as another: several phases or "
            f"echoes in one series{by}; put one in a folder of its own"
        )
    step = float(np.median(steps))
    sideways = places - places[0] - np.outer(along - along[0], normal)
    if np.abs(sideways).max() > (off := min(_OFF * step, _OFF_MM)):
        drift = float(np.linalg.norm(sideways[-1])) / float(along[-1] - along[0])
        line = np.outer(along - along[0], sideways[-1]) / (along[-1] - along[0])
        if np.abs(sideways - line).max() <= off:
            raise _Irregular(
                f"{where}: the slices are sheared by {np.degrees(np.arctan(drift)):.2g} degrees against their stack "
                "(gantry tilt); resample it to a straight grid first"
            )
        raise _Irregular(f"{where}: the slices are shifted sideways against each other, by up to "
                         f"{np.abs(sideways).max():.3g} mm")  # fmt: skip
    if np.abs(along - np.polyval(_line(along), np.arange(len(along)))).max() > off:
        wide = int(np.argmax(steps))
        missing = steps / step
        if np.abs(missing - missing.round()).max() < 0.1:
            raise _Irregular(
                f"{where}: {int(missing.round().sum()) - len(steps)} slices are missing, the first between "
                f"{files[int(np.flatnonzero(missing.round() > 1)[0])].name} and the next ({steps[wide]:.4g} mm apart "
                f"instead of {step:.4g})"
            )
        raise _Irregular(
            f"{where}: the slices are spaced unevenly, {steps.min():.4g} to {steps.max():.4g} mm, widest between "
            f"{files[wide].name} and {files[wide + 1].name}; resample them to an even grid first"
        )
    return files


def _line(along: np.ndarray) -> np.ndarray:
    """Spacing and first place of the even places that are nearest to these."""
    return np.polyfit(np.arange(len(along)), along, 1)


def _told(files: list[_File], aside: list[tuple[str, str]], where: str, quiet: bool) -> list[_File]:
    if aside and not quiet:
        for why in sorted({why for _, why in aside}):
            names = [name for name, reason in aside if reason == why]
            notice(f"{where}: {_some(names)} was skipped ({why}).")
    return files


def _image(files: list[_File], where: str) -> sitk.Image:
    """The voxels, with the stack's own geometry; padding gets the lowest value beside it."""
    wide = sorted({file.pixel for file in files}, key=lambda p: (p in (sitk.sitkFloat32, sitk.sitkFloat64), p))
    try:
        if len(files) == 1:
            image = sitk.ReadImage(str(files[0].path), imageIO="GDCMImageIO")
        else:
            reader = sitk.ImageSeriesReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileNames([str(file.path) for file in files])
            if len(wide) > 1 or len({(f.tags["0028|1052"], f.tags["0028|1053"]) for f in files}) > 1:
                reader.SetOutputPixelType(sitk.sitkFloat32)  # each slice has a scale of its own
            image = reader.Execute()
    except RuntimeError as error:
        named = [file.name for file in files if file.name in str(error)]
        raise NephiError(f"{where}: {_some(named) if named else 'a slice'} cannot be read; it is damaged") from None
    image = _without_padding(image, files[0].tags)
    return _placed(image, files) if len(files) > 1 else image


def _placed(image: sitk.Image, files: list[_File]) -> sitk.Image:
    """The image, at the even places that are nearest to its slices', with their series."""
    axes = np.c_[files[0].axes, files[0].normal]
    u, _, v = np.linalg.svd(axes)  # cosines of a few digits
    first = np.asarray(files[0].position_lps_mm)
    step, place = _line(np.array([file.position_lps_mm for file in files]) @ files[0].normal)
    image.SetOrigin((first + (place - first @ files[0].normal) * files[0].normal).tolist())
    image.SetSpacing([*files[0].spacing_mm[:2].tolist(), float(step)])
    image.SetMetaData(SERIES, files[0].series)
    image.SetDirection((u @ v if np.abs(u @ v - axes).max() < 1e-3 else axes).ravel().tolist())
    return image


def _without_padding(image: sitk.Image, tags: dict[str, str]) -> sitk.Image:
    """Voxels of the stated padding value, which were not measured, as the lowest that was."""
    try:
        value = int(float(tags["0028|0120"].split("\\")[0]))
        slope, intercept = float(tags["0028|1053"] or 1), float(tags["0028|1052"] or 0)
    except ValueError:
        return image
    value -= 2**16 * (tags["0028|0103"] == "1" and value >= 2**15)
    array = sitk.GetArrayFromImage(image)
    padding = np.abs(array - (value * slope + intercept)) < 0.5 * abs(slope)
    if not padding.any() or padding.all():
        return image
    array[padding] = array[~padding].min()
    return Grid.of(image).image(array)


def _listed(found: dict[str, list[_File]]) -> str:
    def line(uid: str, files: list[_File]) -> str:
        text = files[0].tags["0008|103e"]
        return f"{uid or 'without a UID'} ({len(files)} files{f', {text}' if text else ''})"

    largest = sorted(found.items(), key=lambda item: -len(item[1]))
    return ", ".join(line(*item) for item in largest[:8]) + (", ..." if len(found) > 8 else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
