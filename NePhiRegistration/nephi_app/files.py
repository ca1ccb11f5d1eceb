"""The folder that the application may read and write, and what of it is listed."""

from __future__ import annotations

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
            raise NephiError("this name is not that of a file")
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root) or not path.exists():
            raise NephiError(f"{relative or 'the folder'} does not exist in the folder that is served")
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
                if item.resolve().is_relative_to(self.root):
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
        if not path.resolve().is_relative_to(self.root):
            raise NephiError(f"{name} leads out of the folder that is served")
        return path

    def holds(self, path: Path) -> bool:
        """Whether this lies below the root, whether or not it exists; links count as what they lead to."""
        return path.resolve().is_relative_to(self.root)

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def parent(relative: str) -> str:
    return relative.rpartition("/")[0]


def _natural(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name.lower()) if part]
