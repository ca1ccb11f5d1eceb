"""Streams of gzip files, by the package ``isal`` if it is installed, which takes less than half of zlib's time.

Each can read what the other has written.
"""

from __future__ import annotations

import contextlib
import importlib
import zlib
from typing import Any

isal_zlib: Any = None
with contextlib.suppress(ImportError):
    isal_zlib = importlib.import_module("isal.isal_zlib")

QUICK = isal_zlib is not None
_GZIP = 16 + zlib.MAX_WBITS
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, (isal_zlib or zlib).error)  # exceptions of reading


def unpacker() -> Any:
    """One member of a gzip file, as ``zlib.decompressobj``; its checksum is compared at the end."""
    return (isal_zlib or zlib).decompressobj(_GZIP)


def packer(whole_numbers: bool) -> Any:
    """A gzip file, as ``zlib.compressobj``; ``whole_numbers``: voxels that are mostly noise."""
    if isal_zlib is not None:
        return isal_zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    # noise has hardly any repetitions to search for
    strategy = zlib.Z_RLE if whole_numbers else zlib.Z_DEFAULT_STRATEGY
    return zlib.compressobj(1, zlib.DEFLATED, _GZIP, zlib.DEF_MEM_LEVEL, strategy)
