"""RT structure sets: ``nephi structures``, and what ``nephi warp`` does with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from ..files.dicom_objects import read_series
from ..files.dicom_structures import (
    Structure,
    filled,
    is_structure_set,
    outlined,
    read_structures,
    write_structures,
)
from ..files.image import read_volume, write_image
from ..paths import check_file, output_file
from ..result import Registration
from ..space.grid import Grid
from .convert import TransformFile

_HALF, _MOSTLY = 128, 192  # of the 255 of a voxel within a region
_LITTLE = 0.05  # part of the smaller region by which two may overlap in a label map


def structures_command(options) -> int:
    path = check_file(options.input, "structure set")
    if not is_structure_set(path):
        raise NephiError(f"{path} is no RT structure set")
    found = read_structures(path)
    if options.output is None:
        for structure in found:
            parts = (len(structure.contours), "contours"), (len(structure.points_lps_mm), "points")
            print(f"{structure.name:<24} {', '.join(f'{n} {what}' for n, what in parts if n)}")
        return 0
    target = output_file(options.output)
    if not options.reference:
        raise NephiError("give --reference: the image whose grid the label map is to lie on")
    series = tuple(options.series)
    grid = Grid.of(read_volume(options.reference, "reference image", series))
    if Path(options.reference).is_dir():
        _check_frame(found, read_series(Path(options.reference), series).frame, path)
    chosen = [_named(found, name, path) for name in options.roi] or [one for one in found if one.contours]
    write_image(_label_map(chosen, grid, path), target)
    for label, structure in enumerate(chosen, 1):
        print(f"{label:>3}  {structure.name}")
    return 0


def _named(found: list[Structure], name: str, path: Path) -> Structure:
    of_name = [structure for structure in found if structure.name == name and structure.contours]
    if len(of_name) != 1:
        there = ", ".join(structure.name for structure in found if structure.contours)
        raise NephiError(f"{path} holds {len(of_name)} regions named '{name}'; there are: {there or 'none'}")
    return of_name[0]


def _check_frame(found: list[Structure], frame: str, path: Path) -> None:
    if other := [structure.name for structure in found if structure.frame not in ("", frame)]:
        raise NephiError(f"{path}: {', '.join(other)} lies in another frame of reference than the reference image")


def _label_map(structures: list[Structure], grid: Grid, path: Path) -> sitk.Image:
    """Labels 1, 2, ... on the grid; where regions meet, the one with the larger share of a voxel has it."""
    if grid.dimension != 3:
        raise NephiError("the reference image is 2D; structure sets are 3D")
    if not structures:
        raise NephiError(f"{path} holds no contours")
    labels, most = np.zeros(grid.shape, np.uint16), np.zeros(grid.shape, np.uint8)
    mostly: list[np.ndarray] = []
    for label, structure in enumerate(structures, 1):
        share = sitk.GetArrayFromImage(grid.resample(filled(structure)))
        if share.max() < _HALF:
            raise NephiError(f"{structure.name} of {path} does not lie within the reference image")
        inside = share >= _MOSTLY
        for other, there in zip(structures, mostly, strict=False):
            both, smaller = np.count_nonzero(inside & there), min(np.count_nonzero(inside), np.count_nonzero(there))
            if both > _LITTLE * smaller:
                raise NephiError(f"{other.name} and {structure.name} of {path} overlap; choose some with --roi")
        larger = (share >= _HALF) & (share > most)
        labels[larger], most[larger] = label, share[larger]
        mostly.append(inside)
    return grid.image(labels)


def warp_structures(result: Registration | TransformFile, options) -> None:
    """Write an RT structure set, as it lies in another image, as one in the frame of reference of its series."""
    if not options.dicom:
        raise NephiError("structure sets are warped to structure sets: give --dicom and the folder of the fixed series")
    path, series, target = Path(options.input), tuple(options.series), output_file(options.output)
    grid = Grid.of(read_volume(options.dicom, "reference image", series))
    warped = []
    for structure in read_structures(path):
        contours, points = [], structure.points_lps_mm
        if structure.contours:
            contours = outlined(result.warp(filled(structure), grid, labels=False, inverse=options.inverse))
            if not contours:
                notice(f"{structure.name} does not lie within the image; it was left out.")
        if len(points) and isinstance(result, TransformFile):
            notice(f"The points of {structure.name} were left out: one transform moves images this way, not points.")
            points = points[:0]
        elif len(points):
            points = (result.forward if options.inverse else result.inverse)(points)
        if contours or len(points):
            warped.append(replace(structure, contours=contours, points_lps_mm=points))
    write_structures(warped, target, read_series(Path(options.dicom), series))
