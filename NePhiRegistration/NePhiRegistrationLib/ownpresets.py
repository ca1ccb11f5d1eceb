"""The user's own presets: settings files with a name, in one folder of the application."""

from __future__ import annotations

import re
from pathlib import Path

from nephi.errors import NephiError
from nephi.settings import Settings

from .i18n import tr as _

_BAD = re.compile(r'[\\/:*?"<>|\x00-\x1f]')
_LONGEST = 80


class OwnPresets:
    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def names(self) -> list[str]:
        return sorted((file.stem for file in self.folder.glob("*.json")), key=str.casefold)

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
