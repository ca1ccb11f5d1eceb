"""The user's own presets: settings files with a name, in one folder of the application."""

from __future__ import annotations

import re
import time
from pathlib import Path

from nephi.errors import NephiError
from nephi.settings import Settings

from .i18n import tr as _

_BAD = re.compile(r'[\\/:*?"<>|\x00-\x1f]')
_LONGEST = 80
_SETTLED_NS = 2_000_000_000  # the coarsest resolution of modification times in file systems


class OwnPresets:
    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._names: list[str] = []
        self._read_of_ns = -1  # when the folder was changed last, as of the names that are known; -1: not for certain

    def names(self) -> list[str]:
        """Asked for once a second by the panel: the folder is only read where it has changed."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except OSError:
            return []
        if changed_ns != self._read_of_ns:
            settled = time.time_ns() - changed_ns > _SETTLED_NS  # else another change may bear the same time
            self._names = sorted((file.stem for file in self.folder.glob("*.json")), key=str.casefold)
            self._read_of_ns = changed_ns if settled else -1
        return list(self._names)

    def path(self, name: str) -> Path:
        """Raises NephiError for a name that leads elsewhere."""
        if _BAD.search(name):
            raise NephiError(_("There is no preset of that name."))
        return self.folder / f"{name}.json"

    def name_of(self, path: str) -> str:
        """Of a settings file that is one of these; "" for another."""
        return next((name for name in self.names() if path and self.path(name) == Path(path)), "")

    def save(self, name: str, settings: Settings) -> Path:
        """The file, an earlier one of that name replaced; raises ValueError with one line, and OSError."""
        name = name.strip().strip(".")
        if not name or len(name) > _LONGEST or _BAD.search(name):
            raise ValueError(_("Enter a name for the preset, without / and other special characters."))
        self.folder.mkdir(parents=True, exist_ok=True)
        path, part = self.path(name), self.folder / f"{name}.part"
        part.write_text(settings.to_json() + "\n", encoding="utf-8")
        part.replace(path)
        return path

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
