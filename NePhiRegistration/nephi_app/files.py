"""The folder that the application may read and write, and what of it is listed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nephi.errors import NephiError

MOST_ENTRIES = 2000


@dataclass(frozen=True)
class Entry:
    """A line of the list; ``path`` is relative to the folder that is served, with / between its parts."""

    name: str
    path: str
    folder: bool


class Served:
    """One folder and what is below it. Links that lead out of it are as if they did not exist."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def path(self, relative: str) -> Path:
        """The file or folder of this name below the root; raises NephiError where it is not, or leads out of it."""
        if "\0" in relative:
            raise NephiError("this is not a file name")
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root) or not path.exists():
            raise NephiError(f"{relative or 'the folder'} does not exist in the served folder")
        return path

    def whole(self, relative: str) -> Path:
        """``path`` of what is to be read; raises NephiError also where what is read with it leads out of the root."""
        path = self.path(relative)
        if not self.holds(path):
            raise NephiError(f"{path.name}: a file that belongs to it may be outside the served folder")
        return path

    def entries(self, relative: str, endings: tuple[str, ...] = ()) -> tuple[list[Entry], bool]:
        """Folders, then files with one of the ``endings`` (none: no file), and whether there are more than are listed.

        Raises NephiError for what is not a folder below the root, or cannot be read.
        """
        folder = self.path(relative)
        if not folder.is_dir():
            raise NephiError(f"{relative} is not a folder")
        found = []
        try:
            for item in folder.iterdir():
                is_folder = item.is_dir()
                if item.name.startswith(".") or not (is_folder or item.name.lower().endswith(endings or ("\0",))):
                    continue
                if self._is_below(item):
                    found.append(Entry(item.name, item.relative_to(self.root).as_posix(), is_folder))
        except OSError as error:
            raise NephiError(f"{relative or 'the folder'} cannot be read: {error.strerror}") from None
        found.sort(key=lambda entry: (not entry.folder, _natural(entry.name)))
        return found[:MOST_ENTRIES], len(found) > MOST_ENTRIES

    def new_folder(self, relative: str, name: str) -> Path:
        """A folder to write into, which need not exist yet; raises NephiError for a name that leads elsewhere."""
        return self._new(relative, name, "folder")

    def new_file(self, relative: str, name: str) -> Path:
        """A file to write, which must not exist yet; raises NephiError."""
        path = self._new(relative, name, "file")
        if path.exists() or path.is_symlink():
            raise NephiError(f"{path.name} exists already: choose another name")
        return path

    def _new(self, relative: str, name: str, what: str) -> Path:
        name = name.strip()
        if not name or name in (".", "..") or re.search(r'[\\/\0:*?"<>|]', name):
            raise NephiError(f"a name for the {what} is needed, without / and other special characters")
        path = self.path(relative) / name
        if not self._is_below(path):
            raise NephiError(f"{name} leads out of the served folder")
        return path

    def holds(self, path: Path) -> bool:
        """Whether this lies below the root, with all that is read with it, whether or not it exists.

        Links count as what they lead to. Voxels in several files, whose names only their reader knows, may be anywhere.
        """
        if not self._is_below(path):
            return False
        try:
            return all(part is not None and self._is_below(part) for part in _read_with(path))
        except NephiError:
            return True  # a header that its reader refuses, too

    def _is_below(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)

    def without_root(self, text: str) -> str:
        """A message in which files are named from the root on, as the page names them."""
        return text.replace(f"{self.root}{os.sep}", "")

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _read_with(path: Path) -> list[Path | None]:
    """The files of a folder, and the other file of a scan in two; None for several. Raises NephiError."""
    from nephi.files.headers import META, NRRD, voxel_file

    name = path.name.lower()
    if path.is_dir():
        return list(path.iterdir())
    if name.endswith((".hdr", ".img")):
        return [path.with_suffix(ending) for ending in (".hdr", ".img", ".img.gz")]
    if name.endswith((*META, *NRRD)):
        return [voxel_file(path, path.name)]
    return []


def plain(name: str) -> str:
    """A name that a file may have."""
    return re.sub(r'[\\/\0:*?"<>|]', "_", name).strip(" .") or "result"


def parent(relative: str) -> str:
    return relative.rpartition("/")[0]


def _natural(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name.lower()) if part]
