"""The files a registration is made from, and how to know later that they are still the same."""

from __future__ import annotations

from pathlib import Path

ROLES = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "regions")
# what only training reads: labels of both images, and points that are known to correspond
TRAINING_ROLES = ("fixed_labels", "moving_labels", "fixed_points", "moving_points")


def fingerprints(
    files: dict[str, str | Path | None],
    auto_mask: bool,
    align: str,
    roles: tuple[str, ...] = ROLES,
    model: str | None = None,
) -> dict:
    """What ``report.json`` keeps as ``inputs``: path, bytes and time of change of every file given.

    ``files``: by the names in ``roles``; ``align`` and ``model`` count where they are files. A file that is missing
    has only its path.
    """
    found = {role: _fingerprint(Path(files[role])) for role in roles if files.get(role)}
    if Path(align).is_file():
        found["align"] = _fingerprint(Path(align))
    if model and Path(model).is_file():
        found["model"] = _fingerprint(Path(model))
    return {**found, "auto_mask": auto_mask}


def _fingerprint(path: Path) -> dict:
    path = path.resolve()
    parts = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]  # a folder of DICOM files
    try:
        stats = [part.stat() for part in parts]
    except OSError:
        stats = []
    if not stats:
        return {"path": str(path)}
    size, changed = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    return {"path": str(path), "bytes": size, "modified_ns": changed}
