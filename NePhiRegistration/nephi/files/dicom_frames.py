"""The frames of a DICOM file with many slices, each with the place that the file states for it.

ITK looks at the first frames alone: of frames that are out of order, missing or of several phases it makes a stack of
even spacing, and it always takes the last for the one above the others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import NephiError
from .dicom_elements import Elements, elements, is_complete
from .dicom_stack import Irregular, Slice, numbers


def _element(group: int, number: int) -> bytes:
    return group.to_bytes(2, "little") + number.to_bytes(2, "little")


_SHARED, _EACH = _element(0x5200, 0x9229), _element(0x5200, 0x9230)
_PLACE = _element(0x0020, 0x9113), _element(0x0020, 0x0032)
_ORIENTATION = _element(0x0020, 0x9116), _element(0x0020, 0x0037)
_SPACING = _element(0x0028, 0x9110), _element(0x0028, 0x0030)
_SLOPE, _INTERCEPT = ((_element(0x0028, 0x9145), _element(0x0028, number)) for number in (0x1053, 0x1052))
_SEQUENCES = frozenset([_SHARED, _EACH, *(group for group, _ in (_PLACE, _ORIENTATION, _SPACING, _SLOPE))])
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # classes of secondary captures with frames, whose groups ITK does not look at
_OFFSETS = _element(0x3004, 0x000C)  # of the planes of a dose
_SLICES = "(0054,0080)"  # the dimension of a scintigram's frames if they are slices


def frames(file: Slice, where: str) -> list[Slice]:
    """A slice for each frame, in the file's order; raises Irregular where it is not stated where they all lie."""
    found = elements(file.path, _SEQUENCES)
    if found is not None and not is_complete(file.path):
        raise NephiError(f"{where}: {file.path.name} is cut off or damaged")
    if found is None:
        raise Irregular(f"{where}: it cannot be looked up where the frames of {file.name} lie; convert it first")
    if found.get(_EACH):
        return _of_groups(file, found, where)
    step = _steps(file, found, where)
    first = file.position_lps_mm
    return [
        replace(file, size=(*file.size[:2], 1), position_lps_mm=first + along * file.normal, frame=k)
        for k, along in enumerate(step.tolist(), 1)
    ]


def _of_groups(file: Slice, found: Elements, where: str) -> list[Slice]:
    shared: Elements = (found.get(_SHARED) or [{}])[0]
    each: list[Elements] = found[_EACH]
    made, scales = [], set()
    for k, group in enumerate(each, 1):
        place, axes, spacing = (_value(group, shared, *what) for what in (_PLACE, _ORIENTATION, _SPACING))
        if place is None or axes is None or spacing is None or [len(place), len(axes), len(spacing)] != [3, 6, 2]:
            raise Irregular(f"{where}: frame {k} states no position, orientation or pixel spacing")
        scale = [_value(group, shared, *what) for what in (_SLOPE, _INTERCEPT)]
        scales.add(tuple(None if one is None else float(one[0]) for one in scale))
        made.append(
            replace(
                file,
                size=(*file.size[:2], 1),
                spacing_mm=np.array([*spacing[::-1], 1.0]),
                axes=axes.reshape(2, 3).T,
                position_lps_mm=place,
                frame=k,
            )
        )
    if len(scales) > 1:
        raise Irregular(f"{where}: the frames have scales of their own (Rescale Slope), of which its reader takes one")
    if len(made) != file.size[2]:
        raise Irregular(f"{where} has {file.size[2]} frames but describes {len(made)}; it is damaged")
    slope, intercept = scales.pop()
    if file.tags["0008|0016"].startswith(_CAPTURE) and (1 if slope is None else slope, intercept or 0) != (1, 0):
        raise Irregular(f"{where} states a scale for its frames (Rescale Slope) where its reader does not look")
    stated = {"0028|1053": slope, "0028|1052": intercept}
    tags = {**file.tags, **{key: str(value) for key, value in stated.items() if value is not None}}
    return [replace(one, tags=tags) for one in made]


def _value(group: Elements, shared: Elements, sequence: bytes, tag: bytes) -> np.ndarray | None:
    for items in (group.get(sequence), shared.get(sequence)):
        if items:
            return numbers(items[0].get(tag, b"").decode("latin-1").strip(" \0"))
    return None


def _steps(file: Slice, found: Elements, where: str) -> np.ndarray:
    """How far above the first frame each of them lies, in mm, in a file without a group of elements for each."""
    count = file.size[2]
    if _OFFSETS in found:
        offsets = numbers(found[_OFFSETS].decode("latin-1").strip(" \0"))
        if offsets is not None and len(offsets) == count and offsets[0] == 0:
            return offsets
        raise Irregular(f"{where}: the offsets of the planes are not those of {count} planes from the first one on")
    step = numbers(file.tags["0018|0088"])
    if step is None or len(step) != 1 or step[0] <= 0 or file.tags["0028|0009"].lower() not in ("", _SLICES):
        raise Irregular(f"{where}: the frames state no position; they may be a film, or several phases")
    return step[0] * np.arange(count)
