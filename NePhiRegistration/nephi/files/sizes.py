"""Checks the size that a file announces, before memory is allocated for it."""

from __future__ import annotations

from pathlib import Path

from ..errors import NephiError

TRUSTED = 2**30  # bytes that any header may announce
_DEFLATE = 1100  # highest plausible compression
LIKELY = 100  # of more than TRUSTED bytes; a CT is packed 2 to 4 times


def check_memory(announced: int, path: Path, role: str) -> None:
    """Raise NephiError if ``path`` or the memory can hardly hold the ``announced`` bytes of voxels."""
    held = path.stat().st_size
    if announced > held * _DEFLATE + 2**16 or (announced > TRUSTED and announced > held * LIKELY):
        raise NephiError(
            f"{role}: {path} has {held} bytes, but its header announces {announced / 1e9:.3g} GB of voxels; "
            "the file is cut off or damaged"
        )
    if announced > TRUSTED and (free := available_memory()) is not None and announced > free:
        raise NephiError(
            f"{role}: {path} needs {announced / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB is free; "
            "resample the image to larger voxels or crop it"
        )


def available_memory() -> int | None:
    """Bytes of memory available without swapping; None if unknown."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
