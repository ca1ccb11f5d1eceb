"""Checks that the elements of a DICOM file end where they should, before a library allocates memory for them.

pydicom reads a truncated sequence as if complete; GDCM allocates whatever length an element announces.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

from .sizes import LIKELY, TRUSTED

_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_KINDS = (*_LONG, *b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_OPEN = 2**32 - 1  # length of a sequence or item that ends with a mark
_ITEM, _ITEM_ENDS, _SEQUENCE_ENDS = b"\xfe\xff\0\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
Order = Literal["little", "big"]
_START = 132  # after the preamble
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = b"1.2.840.10008.1.2.2\0"
_PIXELS = b"\xe0\x7f\x10\0"
_SHORT = 2**16  # bytes of a value that is of interest
_SHAPE = {b"\x28\0\2\0": "samples", b"\x28\0\x08\0": "frames", b"\x28\0\x10\0": "rows", b"\x28\0\x11\0": "columns",
          b"\x28\0\0\1": "bits"}  # fmt: skip


def lengths_fit(path: Path, read: int = 2**15) -> bool:
    """Whether the first elements of a DICOM file end within it, and its pixels are as many as it states."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        data = file.read(read)
    if data[128:_START] != b"DICM":
        return data[:2] != b"\x08\0" or _fit(data, 0, size)  # without the preamble, where it begins as most do
    if _DEFLATED in data[_START:1024]:
        parts, length = _unpacked(path, data, keep=read)
        return parts is not None and _fit(parts, 0, length)
    return _fit(data, _START, size, "big" if _BIG_ENDIAN in data[_START:1024] else "little")


def is_complete(path: Path) -> bool:
    """Whether a DICOM file, little-endian, ends with its last element, and all its open sequences with their marks."""
    if (opened := _opened(path)) is None:
        return False
    data, at = opened
    try:
        _end(data, at, _is_implicit(data, at), inner=False)
    except _Cut:
        return False
    return True


Elements = dict[bytes, Any]  # by tag as in the file: bytes, or of a sequence a list of such


def elements(path: Path, sequences: frozenset[bytes]) -> Elements | None:
    """The elements before the pixels, and those inside of some sequences; long values are left out.

    None for a file that is cut, big-endian or has no preamble.
    """
    if (opened := _opened(path)) is None:
        return None
    data, at = opened
    if _BIG_ENDIAN in data[_START:at]:
        return None
    try:
        return _elements(data, at, len(data), _is_implicit(data, at), sequences)[0]
    except _Cut:
        return None


def has_element(path: Path, tag: bytes, read: int = 2**16) -> bool:
    """Whether a little-endian file contains an element; unless deflated, one that begins early in it."""
    with open(path, "rb") as file:
        head = file.read(read)
    return (tag in head or _DEFLATED in head[_START:1024]) and tag in (elements(path, frozenset([tag])) or {})


def _elements(data: bytes, at: int, end: int, implicit: bool, sequences: frozenset[bytes]) -> tuple[Elements, int]:
    """The elements from ``at`` on, and where they end: at the pixels, an item's mark or ``end``. Raises _Cut."""
    found: Elements = {}
    while at + 8 <= end and (tag := data[at : at + 4]) != _PIXELS:
        if tag == _ITEM_ENDS:
            return found, at + 8
        length, head = _head(data, at, implicit)
        value = at + head
        if tag in sequences:
            found[tag], at = _items(data, value, length, implicit, sequences)
        elif length == _OPEN:
            at = _end_of_items(data, value, implicit or data[at + 4 : at + 6] == b"UN")
        else:
            at = value + length
            if length <= _SHORT:
                found[tag] = data[value:at]
        if at > end:
            raise _Cut
    return found, at


def _items(
    data: bytes, at: int, length: int, implicit: bool, sequences: frozenset[bytes]
) -> tuple[list[Elements], int]:
    items: list[Elements] = []
    end = len(data) if length == _OPEN else at + length
    while at + 8 <= end:
        mark, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if mark == _SEQUENCE_ENDS and length == _OPEN:
            return items, at
        if mark != _ITEM:
            raise _Cut
        item, ended = _elements(data, at, end if size == _OPEN else at + size, implicit, sequences)
        items.append(item)
        at = ended if size == _OPEN else at + size
    if length == _OPEN or at != end:
        raise _Cut
    return items, at


class _Cut(Exception):
    pass


def _opened(path: Path) -> tuple[bytes, int] | None:
    """Bytes of the dataset, unpacked if deflated, and its start; None without a preamble or if unreadable."""
    data = path.read_bytes()
    if data[128:_START] != b"DICM":
        return None
    if _DEFLATED not in data[_START:1024]:
        return data, _dataset(data)
    parts, _ = _unpacked(path, data)
    return None if parts is None else (parts, 0)


def _unpacked(path: Path, data: bytes, keep: int = TRUSTED) -> tuple[bytes | None, int]:
    """The first ``keep`` bytes of a deflated dataset, and its length; None where it is cut or larger than any image."""
    unpacker = zlib.decompressobj(wbits=-15)
    size, length, kept, read = path.stat().st_size, 0, bytearray(), 2**15
    try:
        with open(path, "rb") as file:
            file.seek(_dataset(data))
            while not unpacker.eof and (part := file.read(read)):
                while part and length <= max(TRUSTED, size * LIKELY):
                    found = unpacker.decompress(part, 2**20)
                    kept += found[: max(0, keep - length)]
                    length += len(found)
                    part = unpacker.unconsumed_tail
                if part:
                    return None, length
    except zlib.error:
        return None, length
    return (bytes(kept) if unpacker.eof else None), length


def _dataset(data: bytes) -> int:
    """Where the dataset begins, after the elements of the file itself."""
    at = _START
    while data[at : at + 2] == b"\2\0" and at + 8 <= len(data):
        length, head = _head(data, at, implicit=False)
        at += head + length
    return at


def _is_implicit(data: bytes, at: int) -> bool:
    """Whether the elements of a dataset do not name their kinds."""
    return data[at + 4 : at + 6] not in _KINDS


def _head(data: bytes, at: int, implicit: bool, order: Order = "little") -> tuple[int, int]:
    """The length of an element's value and of its header."""
    kind = data[at + 4 : at + 6]
    if implicit or kind not in _KINDS:
        return int.from_bytes(data[at + 4 : at + 8], order), 8
    if kind in _LONG:
        return int.from_bytes(data[at + 8 : at + 12], order), 12
    return int.from_bytes(data[at + 6 : at + 8], order), 8


def _fit(data: bytes, at: int, size: int, order: Order = "little") -> bool:
    if at == _START:
        at = _dataset(data)
    implicit = _is_implicit(data, at)
    stated: dict[str, bytes] = {}
    while at + 8 <= len(data):
        tag = _tag(data, at, order)
        length, head = _head(data, at, implicit, order)
        if length == _OPEN:
            try:
                at = _end_of_items(data, at + head, implicit or data[at + 4 : at + 6] == b"UN", order)
            except _Cut:  # further on than was read, or packed pixels, which have a length of their own
                return True
            continue
        if tag == _PIXELS:
            return at + head + length <= size and _least_bytes(stated, order) <= length
        if tag in _SHAPE:
            stated[_SHAPE[tag]] = data[at + head : at + head + length]
        at += head + length
        if at > size:
            return False
    return True


def _least_bytes(stated: dict[str, bytes], order: Order) -> int:
    """Expected bytes of unpacked pixels (0: unknown); if there are fewer, GDCM reads uninitialised memory."""
    rows, columns, bits, samples = (
        int.from_bytes(stated.get(name, b""), order) for name in ("rows", "columns", "bits", "samples")
    )
    frames = stated.get("frames", b"").strip(b" \0") or b"1"
    if samples > 1 or not frames.isdigit():  # of colours some share their values
        return 0
    return (rows * columns * bits * int(frames) + 7) // 8


def _end(data: bytes, at: int, implicit: bool, inner: bool, order: Order = "little") -> int:
    """Where a dataset ends: with the file, or, ``inner``, with the mark of an item's end. Raises _Cut."""
    while at < len(data):
        if at + 8 > len(data):
            if not inner and not any(data[at:]):  # filled up
                return len(data)
            raise _Cut
        if inner and _tag(data, at, order) == _ITEM_ENDS:
            return at + 8
        length, head = _head(data, at, implicit, order)
        # of unknown elements that are open the items are implicit
        at = (
            _end_of_items(data, at + head, implicit or data[at + 4 : at + 6] == b"UN", order)
            if length == _OPEN
            else at + head + length
        )
    if inner or at > len(data):
        raise _Cut
    return at


def _end_of_items(data: bytes, at: int, implicit: bool, order: Order = "little") -> int:
    while at + 8 <= len(data):
        mark, length = _tag(data, at, order), int.from_bytes(data[at + 4 : at + 8], order)
        at += 8
        if mark == _SEQUENCE_ENDS:
            return at
        if mark != _ITEM:
            raise _Cut
        at = _end(data, at, implicit, True, order) if length == _OPEN else at + length
    raise _Cut


def _tag(data: bytes, at: int, order: Order) -> bytes:
    """A tag as in little-endian files."""
    tag = data[at : at + 4]
    return tag if order == "little" else tag[1::-1] + tag[:1:-1]
