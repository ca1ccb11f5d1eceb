"""Names of the segments of a label map, in the header, as in Slicer's segmentation files.

The header has ``Segment0_LabelValue``, ``Segment0_Name`` and so on (``.seg.nrrd``); overlapping segments are in layers,
the components of the voxels (``Segment0_Layer``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError

_KEY = re.compile(r"Segment(\d+)_LabelValue")
_LITTLE = 0.05  # part of the smaller region by which two may overlap in a label map


def is_segmentation_of_slicer(image: sitk.Image) -> bool:
    """Whether the header has entries of segments."""
    return any(_KEY.fullmatch(key) for key in image.GetMetaDataKeys())


def region_names(labels: sitk.Image) -> dict[int, str]:
    """Names of the labels, for those that have one in the header."""
    return {label: name for label, name, _layer in _segments(labels) if name}


def with_names(labels: sitk.Image, names: Mapping[int, str]) -> sitk.Image:
    """The label map with these names added to its header."""
    for key, value in header_of(names).items():
        labels.SetMetaData(key, value)
    return labels


def header_of(names: Mapping[int, str]) -> dict[str, str]:
    """Keys and values of a header with the names of labels; without IDs Slicer does not read the names."""
    found: dict[str, str] = {}
    for i, label in enumerate(sorted(names)):
        values = {"ID": f"Segment_{label}", "LabelValue": str(label), "Layer": "0", "Name": names[label]}
        found |= {f"Segment{i}_{what}": value for what, value in values.items()}
    return found


def named(rows: list[dict], names: Mapping[int, str]) -> list[dict]:
    """Rows of a report, each with the name of its label after it, where any has one."""
    if not names:
        return rows
    return [{"label": row["label"], "name": names.get(row["label"], "")} | row for row in rows]


def in_one_layer(image: sitk.Image, role: str) -> sitk.Image:
    """Segments in layers as one label map, numbered in their order; other images are returned unchanged.

    Raises NephiError if two of them overlap by more than their borders.
    """
    segments = _segments(image)
    if image.GetNumberOfComponentsPerPixel() == 1 or not segments:
        return image
    layers = sitk.GetArrayViewFromImage(image)
    regions = LabelMap(layers.shape[:-1], role)
    for label, name, layer in segments:
        if layer >= layers.shape[-1]:
            raise NephiError(f"{role}: the segment '{name}' is in layer {layer}, which the file does not have")
        regions.add(name, layers[..., layer] == label)
    made = sitk.GetImageFromArray(regions.labels)
    made.CopyInformation(image)
    return with_names(made, {number: name for number, (_label, name, _layer) in enumerate(segments, 1)})


class LabelMap:
    """Regions as labels 1, 2, ... of one array, added one after the other; where two meet, the later one remains.

    ``role``: what they are, for errors; without one, regions may overlap.
    """

    def __init__(self, shape: tuple[int, ...], role: str = ""):
        self.labels = np.zeros(shape, np.uint16)
        self._role, self._regions = role, list[tuple[str, int]]()

    def add(self, name: str, here: np.ndarray) -> None:
        """Add a region (a bool array). Raises NephiError if it overlaps another one by more than their borders."""
        size = int(np.count_nonzero(here))
        if self._role:
            for label, overlap in zip(*np.unique(self.labels[here], return_counts=True), strict=True):
                other, other_size = self._regions[label - 1] if label else ("", 0)
                if label and overlap > _LITTLE * min(size, other_size):
                    raise NephiError(
                        f"{self._role}: {other} and {name} overlap, but a label map has only one region at each place; "
                        "give overlapping regions in separate files"
                    )
        self._regions.append((name, size))
        self.labels[here] = len(self._regions)


def matched(fixed: sitk.Image, moving: sitk.Image, role: str) -> sitk.Image:
    """The moving label map, numbered as the fixed labels with the same names; unchanged if either has no names.

    Other regions keep their names and get new numbers. Raises NephiError if no region corresponds.
    """
    names = region_names(fixed), region_names(moving)
    held = [set(np.unique(sitk.GetArrayViewFromImage(labels)).tolist()) - {0} for labels in (fixed, moving)]
    if not all(names):
        if not held[0] & held[1]:
            raise NephiError(f"{role}: the fixed and the moving label map have no label in common")
        return moving
    numbers = {name: label for label, name in names[0].items()}
    if len(numbers) < len(names[0]) or len(set(names[1].values())) < len(names[1]):
        raise NephiError(f"{role}: two regions of one image have the same name; give each a unique name")
    if numbers.keys().isdisjoint(names[1].values()):
        some = ", ".join([*numbers][:3]), ", ".join([*names[1].values()][:3])
        raise NephiError(
            f"{role}: the fixed regions ({some[0]}) and the moving ones ({some[1]}) have no name in common"
        )
    to, free = {}, max(held[0] | held[1] | set(numbers.values())) + 1
    for label in sorted(held[1]):
        to[label] = numbers.get(names[1].get(label, ""), free)
        free += to[label] == free
    made = sitk.GetImageFromArray(
        np.array([to.get(label, 0) for label in range(max(to) + 1)], np.uint16)[sitk.GetArrayViewFromImage(moving)]
    )
    made.CopyInformation(moving)
    return with_names(made, {to[label]: name for label, name in names[1].items() if label in to})


def _segments(image: sitk.Image) -> list[tuple[int, str, int]]:
    """Label, name and layer of each segment that the header names, in its order."""
    found = []
    for place in sorted(int(match[1]) for match in map(_KEY.fullmatch, image.GetMetaDataKeys()) if match):
        values = {
            what: image.GetMetaData(key) if image.HasMetaDataKey(key := f"Segment{place}_{what}") else ""
            for what in ("LabelValue", "Name", "Layer")
        }
        if values["LabelValue"].strip().isdecimal():
            layer = values["Layer"].strip()
            found.append((int(values["LabelValue"]), values["Name"].strip(), int(layer) if layer.isdecimal() else 0))
    return found
