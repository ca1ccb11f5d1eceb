"""The dialog in which files and folders are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nephi.errors import NephiError

from .files import Served
from .roles import OPENED, Kind

if TYPE_CHECKING:
    from nephi.files.dicom_series import Series

SAVE, SAVE_MADE = "save", "save_made"  # stand beside the roles of what is opened
_TITLES = {SAVE: "Save the result", SAVE_MADE: "Save as a file"}


class Dialog:
    def __init__(self, server: Any, served: Served):
        self.state, self.served = server.state, served
        for name in ("browse", "enter"):
            server.trigger(name)(getattr(self, name))

    def browse(self, role: str) -> None:
        """For a file of this role."""
        if role in OPENED:
            self.open(role)

    def open(self, role: str, save_name: str = "") -> None:
        """For a file of this role, or to save under that name; where it was last."""
        with self.state:
            self.state.dialog, self.state.save_name = role, save_name
            self.state.dialog_title = _TITLES.get(role) or OPENED[role].text
            self.state.dialog_series = role in OPENED and OPENED[role].kind is Kind.SCAN
        self.enter(self.state.dialog_path)

    def enter(self, path: str) -> None:
        """List a folder; where that is gone, the one that is served, with the reason."""
        role = self.state.dialog
        try:
            entries, more = self.served.entries(path, OPENED[role].kind.endings if role in OPENED else ())
        except NephiError as error:
            if path:
                self.enter("")
            with self.state:
                self.state.dialog_error = str(error)
            return
        parts = Path(path).parts
        paths = [Path(*parts[: i + 1]) for i in range(len(parts))]
        with self.state:
            self.state.dialog_path, self.state.dialog_error, self.state.series = path, "", []
            self.state.dialog_parts = [{"name": self.state.root_name, "path": ""}] + [
                {"name": part.name, "path": part.as_posix()} for part in paths
            ]
            self.state.entries = [{"name": e.name, "path": e.path, "folder": e.folder} for e in entries]
            self.state.more_entries = more

    def offer(self, found: list[Series], path: str) -> None:
        """The series of the DICOM folder, for one to be chosen."""
        with self.state:
            self.state.series_path = path
            self.state.series = [
                {"uid": one.uid, "name": _name(one), "text": f"{_name(one)}, {one.images} images"} for one in found
            ]

    def name(self, path: str, series: str) -> str:
        """What is opened is called that: the file or folder, and the series where one was chosen."""
        folder = Path(path).name or self.state.root_name
        return ", ".join([folder, *(one["name"] for one in self.state.series if one["uid"] == series)])


def _name(series: Series) -> str:
    return series.description or series.uid
