"""A folder of DICOM files as one image, by position and orientation of every file.

ITK's own series reader spaces slices evenly, whatever it finds, and leaves out what it can't read. Here slices must
form one regular stack. Other objects (localizers, copies, reports) are skipped with a notice; where it is not certain
what to skip, the folder is refused and the file is named.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..paths import check_name
from ..space.grid import Grid
from .dicom_elements import has_element, lengths_fit
from .dicom_frames import frames
from .dicom_stack import SERIES, Irregular, Slice, in_order, numbers, placed, some, turned
from .subprocess_reader import read_image_in_subprocess

_LEAST = 0.5  # a regular series is preferred to a larger one that is not, down to this part of its slices
_NO_IMAGE = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|66|88|104|481\.[34589])(\.\d+)*)\0?")
_READERS = 8  # headers that are read at once
_ONCE_BYTES = 2**30  # of a folder that is read before its headers are known
_OF_FOLDERS = ("DICOMDIR", "THUMBS.DB")  # files that many image folders contain


_TAGS = ("0008|0008", "0008|0016", "0008|0060", "0008|103e", "0018|0081", "0018|0088", "0018|1060", "0018|1164",
         "0018|2010", "0020|0012", "0020|0032", "0020|0037", "0020|0100", "0028|0004", "0028|0009", "0028|0030",
         "0028|0101", "0028|0102", "0028|0103", "0028|0120", "0028|0121", "0028|1052", "0028|1053",
         "3004|000e")  # fmt: skip
# what must agree in all slices for a single pass: class, colours, pixel spacing and type, scale, series
_ALIKE = ("0008|0016", "0018|1164", "0028|0002", "0028|0004", "0028|0030", "0028|0100", "0028|0101", "0028|0102",
          "0028|0103", "0028|1052", "0028|1053", SERIES)  # fmt: skip
_PLACE = ("0020|0032", "0020|0037", "0008|0018")
_SERIES_AND_OWN = rb"\x20\0\x0e\0", rb"\x08\0\x18\0"  # UIDs
_HEAD = 2**14  # bytes that contain them
_LOOKUP = b"\x28\0\0\x30"  # a sequence, which ITK does not name


def read_dicom(folder: Path, role: str, series: tuple[str, ...] = ()) -> sitk.Image:
    """The series in a folder: the one of ``series``, or the largest regular one, which a notice reports.

    Raises NephiError, with the files' names, for files that cannot be read, missing slices, uneven spacing, tilted
    stacks and several phases, and where two series are equally large.
    """
    below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not below and (image := _at_once(folder)) is not None:
        return image
    found: dict[str, list[Slice]] = defaultdict(list)
    for file in image_files(folder, role):
        found[file.series].append(file)
    if not found:
        some_below = next((path.parent for path in _dicom_below(below)), None)
        hint = "" if some_below is None else f" itself; give one of the folders in it, such as {some_below}"
        raise NephiError(f"{role}: no DICOM series in folder {folder}{hint}")
    where = f"{role}: {folder}"
    named = [uid for uid in found if uid in series]
    if len(named) > 1:
        raise NephiError(f"{where} contains {len(named)} of the given series; name one of them")
    if series and not named and len(found) > 1:
        raise NephiError(f"{where} contains none of the given series, but {_listed(found)}")
    if named or len(found) == 1:
        only = found[named[0] if named else next(iter(found))]
        _check_whole(only, below, where)
        return _image(_stack(only, where), where)
    stacks, flaws = {}, {}
    for uid, files in found.items():
        try:
            stacks[uid] = _stack(files, where, quiet=True)
        except Irregular as flaw:
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
    notice(f"{where} contains {len(found)} DICOM series, {_listed(found)}; the largest regular one was read, {best}.")
    _check_whole(found[best], below, where)
    return _image(_stack(found[best], where), where)


def _dicom_below(folders: list[Path]) -> Iterator[Path]:
    """The DICOM files in folders and in those in them."""
    for folder in folders:
        for inner, _, names in os.walk(folder):
            yield from (path for name in sorted(names) if (path := Path(inner, name)).is_file() and _is_dicom(path))


def _check_whole(files: list[Slice], below: list[Path], where: str) -> None:
    """Raise NephiError if folders below that of ``files`` contain further slices of their series."""
    uids = {file.uid.encode() for file in files}
    for path in _dicom_below(below):
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        series, own = (re.search(tag + rb"(?:UI..|.{4})([\d.]+)", head, re.DOTALL) for tag in _SERIES_AND_OWN)
        if series is not None and series[1] == files[0].series.encode() and (own is None or own[1] not in uids):
            raise NephiError(f"{where}: further slices of its series are in {path.parent}; put them all in one folder")


def _at_once(folder: Path) -> sitk.Image | None:
    """The image of a folder that contains only one series in order, with headers and voxels read in a single pass.

    None for any other folder, and if in doubt: then the headers must be examined first.
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
        keys = {*_TAGS, *_ALIKE, *_PLACE}
        tags = [_with_lookup(path, {key: _tag(reader, k, key) for key in keys}) for k, path in enumerate(names)]
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
    files = [Slice(path, slice_[SERIES], slice_["0008|0018"], size, pixel, spacing, s[:, :2], s[:, 2], slice_)
             for path, slice_, s in zip(names, tags, stated, strict=True)]  # fmt: skip
    try:
        in_order = image.GetSize()[2] == len(files) and [f.path for f in _stack(files, "", quiet=True)] == names
    except Irregular:
        return None
    return placed(_without_padding(image, files), files) if in_order else None


def _candidates(folder: Path) -> list[Path]:
    return sorted(
        check_name(path, "DICOM") for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )


def _tag(reader, *key: str | int) -> str:
    return reader.GetMetaData(*key).strip(" \0") if reader.HasMetaDataKey(*key) else ""


def _with_lookup(path: Path, tags: dict[str, str]) -> dict[str, str]:
    """The tags, and whether a table (Modality LUT Sequence) is stated for the values in place of a slope."""
    return {**tags, "0028|3000": "SQ" if not tags["0028|1053"] and has_element(path, _LOOKUP) else ""}


def image_files(folder: Path, role: str) -> list[Slice]:
    """The images among the files; others are skipped where they are marked or named as something else."""
    paths = _candidates(folder)
    parts = min(_READERS, os.cpu_count() or 1)
    found: dict[Path, Slice | None] = {}
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
            f"{role}: {folder} contains {some(damaged)} that cannot be read as DICOM "
            "(cut off, empty or another format); repair or remove it"
        )
    if strange := [path.name for path in aside if path.name.upper() not in _OF_FOLDERS]:
        notice(f"{role}: {folder}: {some(strange)} is not a DICOM image and was skipped.")
    return files


def _read_header(path: Path) -> Slice | None:
    """The header of a file; None if it can't be read as a DICOM image."""
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
    has_place = reader.HasMetaDataKey("0020|0032") or size[-1] > 1
    return Slice(
        path=path,
        series=_tag(reader, SERIES),
        uid=_tag(reader, "0008|0018"),
        size=(*size, 1)[:3],
        pixel=reader.GetPixelID(),
        spacing_mm=np.array(reader.GetSpacing()),
        axes=np.reshape(reader.GetDirection(), (len(size),) * 2)[:3, :2],
        position_lps_mm=np.array(reader.GetOrigin()) if has_place else None,
        tags=_with_lookup(path, {key: _tag(reader, key) for key in _TAGS}),
        components=reader.GetNumberOfComponents(),
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


def _stack(files: list[Slice], where: str, quiet: bool = False) -> list[Slice]:
    """The slices of a series in order; a single file may contain many. Raises Irregular."""
    aside: list[tuple[str, str]] = []

    def leave(out: list[Slice], why: str) -> list[Slice]:
        aside.extend((file.name, why) for file in out)
        gone = {file.path for file in out}
        return [file for file in files if file.path not in gone]

    def only(kind: str, why: str) -> list[Slice]:
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
    for why in sorted({file.flaw for file in files} - {""}):
        raise Irregular(f"{where}: {some([file.name for file in files if file.flaw == why])} {why}")
    if any(file.size[2] > 1 for file in files):
        if len(files) > 1:
            raise Irregular(f"{where} holds several files with many slices each; give the one to use")
        files = frames(files[0], where)
    if any(file.position_lps_mm is None for file in files):
        raise Irregular(f"{where}: the slices state no position (Image Position), so that they cannot be put in order")
    for what, key in (
        ("of another size", lambda f: f.size[:2]),
        ("with another pixel spacing", lambda f: tuple(np.round(f.spacing_mm[:2], 4))),
        ("of other colours", lambda f: (f.components, f.tags["0028|0004"])),
    ):
        most = Counter(map(key, files)).most_common(1)[0][0]
        if odd := [file for file in files if key(file) != most]:
            other, usual = (" x ".join(map(_plain, value)) for value in (key(odd[0]), most))
            raise Irregular(f"{where}: {some([f.name for f in odd])} is {what}, {other} and not {usual}")
    if odd := turned(files):
        raise Irregular(f"{where}: {some([f.name for f in odd])} is oriented differently from the other slices")
    return _told(in_order(files, where), aside, where, quiet)


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _told(files: list[Slice], aside: list[tuple[str, str]], where: str, quiet: bool) -> list[Slice]:
    if aside and not quiet:
        for why in sorted({why for _, why in aside}):
            names = [name for name, reason in aside if reason == why]
            notice(f"{where}: {some(names)} was skipped ({why}).")
    return files


def _image(files: list[Slice], where: str) -> sitk.Image:
    """The voxels, with the stack's own geometry; padding gets the lowest value beside it."""
    wide = sorted({file.pixel for file in files}, key=lambda p: (p in (sitk.sitkFloat32, sitk.sitkFloat64), p))
    try:
        if len(files) == 1 or files[0].frame:
            return _arranged(sitk.ReadImage(str(files[0].path), imageIO="GDCMImageIO"), files, where)
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(file.path) for file in files])
        if len(wide) > 1 or len({(f.tags["0028|1052"], f.tags["0028|1053"]) for f in files}) > 1:
            reader.SetOutputPixelType(sitk.sitkFloat32)  # each slice has a scale of its own
        image = reader.Execute()
    except RuntimeError as error:
        named = [file.name for file in files if file.name in str(error)]
        raise NephiError(f"{where}: {some(named) if named else 'a slice'} cannot be read; it is damaged") from None
    return placed(_without_padding(image, files), files)


def _arranged(image: sitk.Image, files: list[Slice], where: str) -> sitk.Image:
    """The image of a single file, its frames in their order."""
    if not files[0].frame:
        return _without_padding(image, files)
    order = [file.frame - 1 for file in files]
    if image.GetDimension() != 3 or image.GetDepth() != len(order):
        raise NephiError(f"{where} has a different number of frames than its header says; it is damaged")
    if order != sorted(order):
        image = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image)[order], isVector=files[0].components > 1)
    dose = numbers(files[0].tags["3004|000e"])  # of one unit, which ITK leaves out
    if dose is not None and not files[0].tags["0028|1053"]:
        image = sitk.Cast(image, sitk.sitkFloat64) * float(dose[0])
    return placed(_without_padding(image, files), files)


def read_dicom_file(path: Path, role: str) -> sitk.Image:
    """The image in a single file, of one frame or many. Raises NephiError, as ``read_dicom`` does."""
    where = f"{role}: {path}"
    image = read_image_in_subprocess(path, role)
    if (file := _read_header(path)) is None:
        raise NephiError(f"{where} is damaged: its DICOM header cannot be read")
    if file.position_lps_mm is not None:
        if file.size[2] == 1:
            notice(f"{where} is a single slice; give its folder to read the whole series.")
        return _arranged(image, _stack([file], where), where)
    if file.flaw:
        raise Irregular(f"{where} {file.flaw}")
    if file.spacing_stated_mm is None:
        notice(f"{where} has no pixel spacing; {file.spacing_mm[0]:g} x {file.spacing_mm[1]:g} mm is assumed.")
    else:  # which ITK looks up at one place for each class
        image.SetSpacing([*file.spacing_stated_mm.tolist(), *image.GetSpacing()[2:]])
    return _without_padding(image, [file])


def _without_padding(image: sitk.Image, files: list[Slice]) -> sitk.Image:
    """Voxels of the stated padding values, which were not measured, as the lowest that was."""
    ranges = [_padding(file.tags) for file in files]
    if not any(ranges) or image.GetNumberOfComponentsPerPixel() > 1:
        return image
    array = sitk.GetArrayFromImage(image)
    padding = np.zeros(array.shape, bool)
    for one, values, found in zip(padding.reshape(len(files), -1), array.reshape(len(files), -1), ranges, strict=True):
        if found is not None:
            one[:] = (values > found[0]) & (values < found[1])
    if not padding.any() or padding.all():
        return image
    array[padding] = array[~padding].min()
    return Grid.of(image).image(array)


def _padding(tags: dict[str, str]) -> tuple[float, float] | None:
    """Between which values a slice is padding."""
    try:
        ends = [int(float(tags[key].split("\\")[0])) for key in ("0028|0120", "0028|0121") if tags[key]]
        slope, intercept = float(tags["0028|1053"] or 1), float(tags["0028|1052"] or 0)
    except (ValueError, OverflowError):
        return None
    if not ends:
        return None
    signed = tags["0028|0103"] == "1"
    found = [(end - 2**16 * (signed and end >= 2**15)) * slope + intercept for end in ends]
    return min(found) - 0.5 * abs(slope), max(found) + 0.5 * abs(slope)


def _listed(found: dict[str, list[Slice]]) -> str:
    def line(uid: str, files: list[Slice]) -> str:
        text = files[0].tags["0008|103e"]
        return f"{uid or 'without a UID'} ({len(files)} files{f', {text}' if text else ''})"

    largest = sorted(found.items(), key=lambda item: -len(item[1]))
    return ", ".join(line(*item) for item in largest[:8]) + (", ..." if len(found) > 8 else "")
