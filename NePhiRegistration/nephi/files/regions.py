"""Reads regions with their names, such as the lobes of the lungs, from the files of segmentation programs."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..paths import check_file
from ..space.grid import Grid
from .dicom_segmentations import is_segmentation, read_segmentation
from .dicom_structures import Structure, filled, is_structure_set, read_structures
from .image import open_image
from .masks import check_regions
from .nifti import SUFFIXES as NIFTI
from .nifti import read_extensions
from .segments import LabelMap, region_names, with_names

_HALF, _MOSTLY = 128, 192  # of the 255 of a voxel within a region
# the table of labels that Workbench (Caret) keeps in a NIfTI file, and TotalSegmentator with its option --ml
_TABLE = re.compile(rb"<Label\s[^>]*?Key=\"(\d+)\"[^>]*>(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))</Label>", re.DOTALL)


def read_regions(path: str | Path, image: sitk.Image, role: str = "regions", frame: str = "") -> sitk.Image:
    """A label map (0: no region) on the image's grid, with names in its header (``segments.region_names``).

    Reads label maps in any image format, segmentations of Slicer, DICOM segmentations and RT structure sets. ``frame``:
    UID of the image's frame of reference, if known. Raises NephiError for any other file, for regions elsewhere, and
    for overlapping regions.
    """
    file = check_file(path, role, "file or folder")
    if is_structure_set(file):
        drawn = [one for one in read_structures(file) if one.contours]
        check_frame(drawn, frame, role)
        return check_regions(label_map(drawn, Grid.of(image), role), image, role)
    if is_segmentation(file):
        found = read_segmentation(file)
        return check_regions(with_names(found.labels, found.names), image, role)
    labels = open_image(file, role)
    if file.name.lower().endswith(NIFTI) and not region_names(labels):
        table = {int(key): _text(name or other) for key, name, other in _TABLE.findall(read_extensions(file))}
        labels = with_names(labels, {label: name for label, name in table.items() if label and name})
    return check_regions(labels, image, role)


def _text(name: bytes) -> str:
    return unescape(name.decode("utf-8", "replace")).strip()


def check_frame(structures: list[Structure], frame: str, role: str) -> None:
    """Raise NephiError for structures in another frame of reference than the image, if both are known."""
    if frame and (other := [one.name for one in structures if one.frame not in ("", frame)]):
        raise NephiError(f"{role}: {', '.join(other)} is in another frame of reference than the image")


def label_map(structures: list[Structure], grid: Grid, role: str) -> sitk.Image:
    """Labels 1, 2, ... on the grid, with their names; a voxel belongs to the region with the largest share of it."""
    if grid.dimension != 3:
        raise NephiError(f"{role}: the image is 2D; structure sets are 3D")
    if not structures:
        raise NephiError(f"{role}: the structure set contains no contours")
    labels, most = np.zeros(grid.shape, np.uint16), np.zeros(grid.shape, np.uint8)
    cores = LabelMap(grid.shape, role)
    for label, structure in enumerate(structures, 1):
        share = sitk.GetArrayFromImage(grid.resample(filled(structure)))
        if share.max() < _HALF:
            raise NephiError(f"{role}: {structure.name} does not lie within the image")
        cores.add(structure.name, share >= _MOSTLY)
        larger = (share >= _HALF) & (share > most)
        labels[larger], most[larger] = label, share[larger]
    return with_names(grid.image(labels), {label: one.name for label, one in enumerate(structures, 1)})
