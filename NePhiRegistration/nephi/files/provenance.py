"""Where a result comes from: hashes of the files that went into it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..paths import resolved
from .cases import ROLES


def hashes(files: Mapping[str, str | Path | None], align: str = "", model: str | None = None) -> dict[str, dict]:
    """Path and SHA-256 of every given file, by the names in ``ROLES``; ``align`` and ``model`` if they are files.

    For a folder of DICOM files: of the sorted hashes of its files, one per line, whatever their names, and their
    number. Unreadable files have only their path.
    """
    given = {role: Path(path) for role in ROLES if (path := files.get(role))}
    given |= {name: Path(path) for name, path in (("align", align), ("model", model)) if path and Path(path).is_file()}
    return {role: _hashed(resolved(path)) for role, path in given.items()}


def _hashed(path: Path) -> dict:
    try:
        if not path.is_dir():
            return {"path": str(path), "sha256": _sha256(path)}
        parts = [_sha256(part) for part in path.iterdir() if part.is_file() and not part.name.startswith(".")]
    except OSError:
        return {"path": str(path)}
    lines = "".join(f"{part}\n" for part in sorted(parts))
    return {"path": str(path), "sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": len(parts)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
