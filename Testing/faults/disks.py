"""Small file systems in memory (tmpfs), to be filled; Linux, and root."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

_AMPLE = 64 << 20  # bytes, more than any command writes


def mounted(disk: Path) -> str:
    """Make the folder a file system of its own; returns why that is not possible, else ""."""
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_AMPLE}", "tmpfs", str(disk)], capture_output=True, text=True
        )
    except OSError as error:
        return f"mount: {error.strerror}"
    return made.stderr.strip()


def unmount(disk: Path) -> None:
    subprocess.run(["umount", str(disk)], check=True)


def taken(folder: Path) -> int:
    """Pages of the file system of a folder that are in use."""
    system = os.statvfs(folder)
    return system.f_blocks - system.f_bfree


def filled(folder: Path, pages: int) -> Path:
    """A file beside the folder that leaves so many pages of their file system."""
    with open(folder.parent / "other", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, (os.statvfs(folder).f_bfree - pages) * resource.getpagesize())
    return folder.parent / "other"
