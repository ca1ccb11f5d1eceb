"""RT structure sets: ``nephi structures``, and their part of ``nephi warp``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
from ..files.regions import check_frame, label_map
from ..paths import check_file, output_file
from ..result import Registration
from ..space.grid import Grid
from .convert import TransformFile


def structures_command(options) -> int:
    path = check_file(options.input, "structure set")
    if not is_structure_set(path):
        raise NephiError(f"{path} is not an RT structure set")
    found = read_structures(path)
    if options.output is None:
        for structure in found:
            parts = (len(structure.contours), "contours"), (len(structure.points_lps_mm), "points")
            print(f"{structure.name:<24} {', '.join(f'{n} {what}' for n, what in parts if n)}")
        return 0
    target = output_file(options.output)
    if not options.reference:
        raise NephiError("give --reference: the image that defines the grid of the label map")
    series = tuple(options.series)
    grid = Grid.of(read_volume(options.reference, "reference image", series))
    if Path(options.reference).is_dir():
        check_frame(found, read_series(Path(options.reference), series).frame, str(path))
    chosen = [_named(found, name, path) for name in options.roi] or [one for one in found if one.contours]
    write_image(label_map(chosen, grid, str(path)), target)
    for label, structure in enumerate(chosen, 1):
        print(f"{label:>3}  {structure.name}")
    return 0


def _named(found: list[Structure], name: str, path: Path) -> Structure:
    of_name = [structure for structure in found if structure.name == name and structure.contours]
    if len(of_name) != 1:
        there = ", ".join(structure.name for structure in found if structure.contours)
        raise NephiError(f"{path} has {len(of_name)} regions named '{name}'; its regions are: {there or 'none'}")
    return of_name[0]


def warp_structures(result: Registration | TransformFile, options) -> None:
    """Warp an RT structure set and write it in the frame of reference of the fixed series."""
    if not options.dicom:
        raise NephiError(
            "a structure set is warped to a structure set: give --dicom and the folder of the fixed series"
        )
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
            notice(
                f"The points of {structure.name} were left out: a single transform maps images this way, but not "
                "points."
            )
            points = points[:0]
        elif len(points):
            points = (result.forward if options.inverse else result.inverse)(points)
        if contours or len(points):
            warped.append(replace(structure, contours=contours, points_lps_mm=points))
    write_structures(warped, target, read_series(Path(options.dicom), series))
