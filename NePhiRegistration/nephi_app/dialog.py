"""The dialog in which files and folders are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nephi.errors import NephiError

from .files import IMAGES, POINTS, Served
from .state import ROLES

SAVE = "save"  # stands beside the roles of inputs
_ENDINGS = {SAVE: (), "fixed_landmarks": POINTS, "moving_landmarks": POINTS}


class Dialog:
    def __init__(self, state: Any, served: Served):
        self.state, self.served = state, served

    def open(self, role: str, save_name: str = "") -> None:
        """For an input of this role, or to save under that name; where it was last."""
        with self.state:
            self.state.dialog, self.state.dialog_title = role, ROLES.get(role, "Save the result")
            self.state.save_name = save_name
        self.enter(self.state.dialog_path)

    def enter(self, path: str) -> None:
        """List a folder; where that is gone, the one that is served, with the reason."""
        try:
            entries, more = self.served.entries(path, _ENDINGS.get(self.state.dialog, IMAGES))
        except NephiError as error:
            if path:
                self.enter("")
            with self.state:
                self.state.dialog_error = str(error)
            return
        parts = Path(path).parts
        paths = [Path(*parts[: i + 1]) for i in range(len(parts))]
        with self.state:
            self.state.dialog_path, self.state.dialog_error = path, ""
            self.state.dialog_parts = [{"name": self.state.root_name, "path": ""}] + [
                {"name": part.name, "path": part.as_posix()} for part in paths
            ]
            self.state.entries = [{"name": e.name, "path": e.path, "folder": e.folder} for e in entries]
            self.state.more_entries = more
