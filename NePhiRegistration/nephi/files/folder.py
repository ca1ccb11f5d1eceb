"""The result folder: the names of its files, and their replacement as one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import NephiError
from ..journal import recover
from .writing import output_folder, replaced, whole

# optional outputs of a registration, beside its transforms, the maps and report.json
OUTPUTS = (
    "transform", "warped", "jacobian", "exact-jacobian", "log-jacobian", "ventilation", "disagreement", "error-map",
    "report",
)  # fmt: skip
DEFAULT_OUTPUTS = ("transform", "warped", "jacobian", "disagreement", "error-map", "report")
_REGISTRATION = "registration.safetensors"
_FORMER_REGISTRATION = "model.safetensors"  # until 0.1; trained models still use this name
_FORMER = ("inverse_consistency.nii.gz",)  # earlier names of files, which a new result replaces


def check_outputs(outputs: Collection[str]) -> None:
    """Raise NephiError for names that are not among ``OUTPUTS``."""
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown:
        raise NephiError(f"unknown output '{unknown[0]}': choose among {', '.join(OUTPUTS)}")


@dataclass(frozen=True)
class ResultFolder:
    """The files of one registration in the folder ``path``; a file need not exist."""

    path: Path
    _ahead: list[Path] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def opened(cls, path: str | Path) -> ResultFolder:
        """For reading: completes the replacement that a killed run began."""
        recover(path)
        return cls(Path(path))

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
    def fields_disagreement(self) -> Path:
        """How far a point is from itself after the forward and the inverse field, in mm; 0 outside the mask."""
        return self.path / "fields_disagreement.nii.gz"

    @property
    def log_jacobian(self) -> Path:
        return self.path / "log_jacobian.nii.gz"

    @property
    def ventilation(self) -> Path:
        """|J| - 1, 0 outside the mask."""
        return self.path / "ventilation.nii.gz"

    @property
    def ventilation_hu(self) -> Path:
        """The air gained per volume of air, by the images' densities, 0 outside the mask and in vessels."""
        return self.path / "ventilation_hu.nii.gz"

    @property
    def error_map(self) -> Path:
        """Expected error in mm on a coarse grid, 0 outside the mask."""
        return self.path / "error_map.nii.gz"

    @property
    def error_bound(self) -> Path:
        """The bound that 95 % of errors keep, in mm, on the same grid."""
        return self.path / "error_bound.nii.gz"

    @property
    def landmark_errors(self) -> Path:
        """The error at each landmark, where landmarks were given."""
        return self.path / "landmark_errors.csv"

    @property
    def registration(self) -> Path:
        """Both maps, to be evaluated again at any resolution; of an older result by the name it had then."""
        former = self.path / _FORMER_REGISTRATION
        path = self.path / _REGISTRATION
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
    def review(self) -> Path:
        """What people found of this result and signed, as JSON; a new result takes it away."""
        return self.path / "review.json"

    @property
    def preview(self) -> Path:
        """The displacement so far, while the registration runs."""
        return self.path / "preview.nrrd"

    @property
    def log(self) -> Path:
        """Output of the process that registered a pair of a batch."""
        return self.path / "nephi.log"

    @property
    def failure(self) -> Path:
        """Why a pair of a batch has no result: error and seconds, as JSON; gone with the next start."""
        return self.path / "failure.json"

    @property
    def files(self) -> list[Path]:
        """All of a result."""
        return [
            self.transform, self.inverse_transform, self.warped, self.jacobian, self.log_jacobian,
            self.ventilation, self.ventilation_hu, self.fields_disagreement,
            self.error_map, self.error_bound, self.landmark_errors, self.path / _REGISTRATION, self.page, self.report,
        ]  # fmt: skip

    @contextmanager
    def output(self) -> Iterator[ResultFolder]:
        """This process alone writes here in the block; raises NephiError where it could not."""
        with output_folder(self.path):
            for file in self.files:
                if file.is_dir():
                    raise NephiError(f"cannot write {file}: a folder with this name exists")
            with contextlib.suppress(OSError):
                self.preview.unlink()  # of a killed run
            yield self

    @contextmanager
    def replaced(self) -> Iterator[ResultFolder]:
        """A scratch folder whose files replace the older result as one at the end; an exception leaves that."""
        gone = [*(file.name for file in (*self.files, self.failure, self.review)), *_FORMER]
        try:
            with replaced(self.path, gone=gone, last=self.report.name) as scratch:
                yield ResultFolder(scratch)
        except BaseException:
            for place in self._ahead:
                with contextlib.suppress(OSError):
                    place.unlink(missing_ok=True)
            raise
        finally:
            self._ahead.clear()

    @contextmanager
    def shown_ahead(self, files: list[Path]) -> Iterator[None]:
        """Copies of finished files of a scratch folder in their places, where no complete result is there.

        They can be used from then on; where the result is not ``replaced`` in the end, they are removed.
        """
        inner = any(file.parent == self.path for file in files)  # inside another replacement
        places = [] if inner or self.report.exists() else [self.path / file.name for file in files]
        self._ahead.extend(places)
        for file, place in zip(files, places, strict=False):
            with whole(place) as copy:
                shutil.copyfile(file, copy)
        yield
