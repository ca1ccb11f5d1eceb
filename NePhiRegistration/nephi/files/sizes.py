"""Whether what a file announces can be true, before memory is taken for it."""

from __future__ import annotations

import zlib
from pathlib import Path

from ..errors import NephiError

_TRUSTED = 2**30  # bytes that any header may announce
_DEFLATE = 1100  # no file can hold more than about this many times its own bytes
_LIKELY = 100  # of more than _TRUSTED bytes; a CT is packed 2 to 4 times


def check_memory(announced: int, path: Path, role: str) -> None:
    """Raise NephiError where ``path`` can hardly hold the ``announced`` bytes of voxels, or memory cannot."""
    held = path.stat().st_size
    if announced > held * _DEFLATE + 2**16 or (announced > _TRUSTED and announced > held * _LIKELY):
        raise NephiError(
            f"{role}: {path} holds {held} bytes, its header announces {announced / 1e9:.3g} GB of voxels; "
            "the file is cut off or damaged"
        )
    if announced > _TRUSTED and (free := available_memory()) is not None and announced > free:
        raise NephiError(
            f"{role}: {path} needs {announced / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are free; "
            "resample the image to larger voxels or crop it"
        )


def available_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_OPEN = 2**32 - 1  # length of a sequence that ends with a mark


def lengths_fit(path: Path, read: int = 2**15) -> bool:
    """Whether the elements of a DICOM file, little-endian and up to the first open sequence, end within the file.

    GDCM takes memory for whatever length an element announces.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        data = file.read(read)
    if data[128:132] != b"DICM":
        return True  # without the preamble: GDCM decides
    if _DEFLATED not in data[132:1024]:
        return _elements_fit(data, 132, size)
    unpacker = zlib.decompressobj(wbits=-15)
    start, length = 144 + int.from_bytes(data[140:144], "little"), 0
    inner = b""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            while not unpacker.eof and (part := file.read(read)):
                while part and length <= max(_TRUSTED, size * _LIKELY):
                    found = unpacker.decompress(part, 2**20)
                    inner, length = inner or found, length + len(found)
                    part = unpacker.unconsumed_tail
                if part:
                    return False  # unpacks to far more than any image
    except zlib.error:
        return False
    return unpacker.eof and _elements_fit(inner, 0, length)


_DEFLATED = b"1.2.840.10008.1.2.1.99"


def _elements_fit(data: bytes, at: int, size: int) -> bool:
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 6]
        if not (kind.isalpha() and kind.isupper()):
            length, head = int.from_bytes(data[at + 4 : at + 8], "little"), 8
        elif kind in _LONG:
            length, head = int.from_bytes(data[at + 8 : at + 12], "little"), 12
        else:
            length, head = int.from_bytes(data[at + 6 : at + 8], "little"), 8
        if length == _OPEN:
            return True
        at += head + length
        if at > size:
            return False
    return True
