"""Previews of the unfinished result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..errors import NephiError
from ..files.folder import ResultFolder
from ..files.image import write_image
from ..result import Registration


class Preview:
    """Writes the current displacement on a coarse grid over the fixed image, for a viewer.

    ``folder/preview.nrrd`` (LPS mm, fixed -> moving, alignment included) is replaced at once, at most every
    ``seconds``; leaving the ``with`` block removes it.
    """

    _SPACING_MM = 10.0

    def __init__(self, folder: Path, seconds: float, progress: Callable[[str, float, dict], None]):
        self.path = ResultFolder(folder.resolve()).preview
        self.seconds, self.tell, self.next = seconds, progress, 0.0

    def __call__(self, stage: str, fraction: float, registration: Registration) -> None:
        if time.perf_counter() < self.next:
            return
        grid = registration.fixed_grid.coarsened(self._SPACING_MM * registration.length_scale)
        try:
            write_image(grid.image(registration.displacement(grid), vector=True), self.path)
        except NephiError:
            return  # on Windows a reader may hold the last one; the next will do
        self.tell(stage, fraction, {"preview": str(self.path)})
        self.next = time.perf_counter() + self.seconds

    def final(self, registration: Registration) -> None:
        """The finished result, whenever the last one was written."""
        self.next = 0.0
        self("optimising", 1.0, registration)

    def __enter__(self) -> Preview:
        return self

    def __exit__(self, *_) -> None:
        self.path.unlink(missing_ok=True)
