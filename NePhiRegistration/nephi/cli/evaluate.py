"""``nephi evaluate``, which needs no torch, and helpers that it shares with the other commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..both import ROLES, Both
from ..errors import NephiError, collected_notices, notice
from ..files.dicom_objects import read_series
from ..files.dicom_structures import is_structure_set
from ..files.image import read_volume
from ..files.landmarks import names_of_points, read_landmarks
from ..files.masks import read_mask
from ..files.regions import read_regions
from ..files.segments import matched
from ..files.transform import read_affine
from ..files.writing import write_text
from ..measure.evaluate import evaluate, write_landmark_errors
from ..paths import output_file
from .progress import tell_notices


def landmark_pair(options, fixed: sitk.Image, moving: sitk.Image | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Fixed and moving landmarks (n, d) in LPS mm, None if not given. Raises NephiError if they do not match."""
    paths = options.fixed_landmarks, options.moving_landmarks
    if not any(paths):
        return None
    if not all(paths):
        raise NephiError("landmarks are needed for both images: give --fixed-landmarks and --moving-landmarks")
    a = read_landmarks(paths[0], fixed)
    with collected_notices() as notices:
        b = read_landmarks(paths[1], fixed if moving is None else moving)
    for text in notices if moving is not None else ():  # without it the expected positions of the points are unknown
        notice(text)
    if a.shape != b.shape:
        raise NephiError(
            f"{len(a)} fixed and {len(b)} moving landmarks: row i of one file must match row i of the other"
        )
    if a.shape[1] != fixed.GetDimension():
        raise NephiError(f"the landmarks are {a.shape[1]}D, but the images are {fixed.GetDimension()}D")
    first, second = map(names_of_points, paths)
    if first != second and len(first) == len(set(first)) and sorted(first) == sorted(second):
        notice(
            f"{paths[0]} and {paths[1]} have the same point names in different orders, but points are matched row by "
            "row; if the names tell which belong together, sort one of the files."
        )
    return a, b


def mask_pair(options, fixed: sitk.Image, moving: sitk.Image | None) -> Both[sitk.Image | None]:
    """The masks on their images' grids, None for one that is not given; raises NephiError as ``read_mask``."""

    def mask(role: str, path: str | None, image: sitk.Image | None) -> sitk.Image | None:
        return read_mask(path, image, f"{role} mask") if path and image is not None else None

    return ROLES.map(mask, Both(options.fixed_mask, options.moving_mask), Both(fixed, moving))


def label_pair(options, fixed: sitk.Image, moving: sitk.Image | None) -> Both[sitk.Image] | None:
    """The label maps of both images with matching numbers, None if not given. Raises NephiError as ``read_regions``."""
    paths = Both(options.fixed_labels, options.moving_labels)
    if not any(paths):
        return None
    if not all(paths) or moving is None:
        raise NephiError("labels are needed for both images: give --fixed-labels, --moving-labels and both images")
    found = paths.map(lambda path, image, role: read_regions(path, image, f"{role} labels"), Both(fixed, moving), ROLES)
    return Both(found.fixed, matched(*found, "labels"))


def region_pair(options, fixed: sitk.Image, moving: sitk.Image) -> Both[sitk.Image | None]:
    """The regions of both images with matching numbers. Raises NephiError as ``read_regions``."""
    if not options.regions:
        if options.moving_regions:
            raise NephiError("--moving-regions needs --regions: the same regions of the fixed image")
        return Both(None, None)
    here = read_regions(options.regions, fixed, "regions", _frame(options, options.regions, options.fixed))
    if not options.moving_regions:
        return Both(here, None)
    frame = _frame(options, options.moving_regions, options.moving)
    there = read_regions(options.moving_regions, moving, "moving regions", frame)
    return Both(here, matched(here, there, "regions"))


def _frame(options, drawn: str, image: str) -> str:
    """Frame of reference of an image that a structure set is drawn in; "" where it is not known, or needs not be."""
    if not (Path(image).is_dir() and is_structure_set(Path(drawn))):
        return ""
    return read_series(Path(image), tuple(options.series)).frame


def evaluate_command(options) -> int:
    output = None if options.output is None else output_file(options.output)
    table = None if options.landmark_errors is None else output_file(options.landmark_errors)
    if table is not None and not options.fixed_landmarks:
        raise NephiError("--landmark-errors needs landmarks: give --fixed-landmarks and --moving-landmarks")
    with collected_notices() as notices:
        fixed = read_volume(options.fixed, "fixed image", tuple(options.series))
        moving = read_volume(options.moving, "moving image", tuple(options.series)) if options.moving else None
        if moving is None and options.moving_mask:
            raise NephiError("--moving-mask needs --moving")
        masks = mask_pair(options, fixed, moving)
        if moving is None and options.moving_landmarks:
            read_landmarks(options.moving_landmarks)  # raises for voxel indices, which need their own image
        landmarks, labels = landmark_pair(options, fixed, moving), label_pair(options, fixed, moving)
        alignment = read_affine(options.alignment, fixed.GetDimension()) if options.alignment else None
    report = evaluate(
        options.transform,
        fixed,
        options.inverse,
        alignment=alignment,
        landmarks=landmarks,
        labels=labels,
        fixed_mask=masks.fixed,
        moving_mask=masks.moving,
    )
    tell_notices([*notices, *report.warnings])
    report = replace(report, warnings=[*notices, *report.warnings])
    if table is not None and report.landmarks is not None:
        write_landmark_errors(table, report.landmarks)
    if output is not None:
        write_text(output, report.to_json())
    else:
        print(report.to_json(), end="")
    return 0
