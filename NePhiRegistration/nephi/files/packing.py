"""Streams of gzip files, by the package ``isal`` where it is installed, which takes less than half of zlib's time.

Either reads what the other has written.
"""

from __future__ import annotations

import zlib
from typing import Any

try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None

_GZIP = 16 + zlib.MAX_WBITS
DAMAGED = (EOFError, zlib.error, *([] if isal_zlib is None else [isal_zlib.error]))  # what reading may raise


def unpacker() -> Any:
    """One member of a gzip file, as ``zlib.decompressobj``; its checksum is compared at the end."""
    return (isal_zlib or zlib).decompressobj(_GZIP)


def packer(whole_numbers: bool) -> Any:
    """A gzip file, as ``zlib.compressobj``; ``whole_numbers``: voxels that are mostly noise."""
    if isal_zlib is not None:
        return isal_zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    # in noise a search for repetitions finds next to nothing
    strategy = zlib.Z_RLE if whole_numbers else zlib.Z_DEFAULT_STRATEGY
    return zlib.compressobj(1, zlib.DEFLATED, _GZIP, zlib.DEF_MEM_LEVEL, strategy)
