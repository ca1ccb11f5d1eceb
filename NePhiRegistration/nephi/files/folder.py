"""The result folder: the names of its files, and their replacement as one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import NephiError

_FORMER_REGISTRATION = "model.safetensors"  # until 0.1, when trained models alone kept that name


def prepare_folder(folder: str | Path) -> Path:
    """The output folder, created if necessary; raises NephiError if it cannot be written to."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NephiError(f"cannot write to output folder {folder}: {error.strerror}") from None
    return folder


@dataclass(frozen=True)
class ResultFolder:
    """The files of one registration in the folder ``path``; a file need not exist."""

    path: Path

    @property
    def transform(self) -> Path:
        """Fixed -> moving points, an ITK transform."""
        return self.path / "transform.h5"

    @property
    def inverse_transform(self) -> Path:
        return self.path / "inverse_transform.h5"

    @property
    def warped(self) -> Path:
        return self.path / "warped.nii.gz"

    @property
    def jacobian(self) -> Path:
        return self.path / "jacobian.nii.gz"

    @property
    def inverse_consistency(self) -> Path:
        return self.path / "inverse_consistency.nii.gz"

    @property
    def registration(self) -> Path:
        """Both maps, to be evaluated again at any resolution; of an older result by the name it had then."""
        former = self.path / _FORMER_REGISTRATION
        path = self.path / "registration.safetensors"
        return former if former.is_file() and not path.is_file() else path

    @property
    def report(self) -> Path:
        """All numbers as JSON. It is written last: where it exists, the result is complete."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report with pictures, for people."""
        return self.path / "report.html"

    @property
    def preview(self) -> Path:
        """The displacement so far, while the registration runs."""
        return self.path / "preview.nrrd"

    @property
    def log(self) -> Path:
        """Output of the process that registered a pair of a batch."""
        return self.path / "nephi.log"

    @contextmanager
    def replaced(self) -> Iterator[ResultFolder]:
        """A scratch folder whose files move into this one together at the end; an exception leaves nothing."""
        scratch = ResultFolder(Path(tempfile.mkdtemp(dir=self.path, prefix=".nephi-")))
        try:
            yield scratch
            files = sorted(scratch.path.iterdir(), key=lambda file: file == scratch.report)
            self.report.unlink(missing_ok=True)  # a report stands only beside a complete result
            for file in files:
                os.replace(file, self.path / file.name)
        finally:
            shutil.rmtree(scratch.path, ignore_errors=True)
