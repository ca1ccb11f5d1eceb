"""Slices of DICOM images, from files or the frames of one: whether they form one regular stack, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError

SERIES = "0020|000e"  # the tag of the series' UID, which an image of many files keeps
_OFF, _OFF_MM = (
    0.15,
    0.1,
)  # largest deviation of a slice from its position, relative to the slice spacing, and at most this
_COSINES = 5e-3  # by which stated ones may differ from those of right angles
_TURNED = 2e-3  # difference of direction cosines from which on slices are oriented differently


@dataclass(frozen=True)
class Slice:
    """The header of one DICOM image file, or of one of its frames."""

    path: Path
    series: str
    uid: str
    size: tuple[int, ...]
    pixel: int
    spacing_mm: np.ndarray  # in the slice
    axes: np.ndarray  # (3, 2): directions of rows and columns
    position_lps_mm: np.ndarray | None
    tags: dict[str, str]
    components: int = 1
    frame: int = 0  # counted from 1; 0: the whole file

    @property
    def kinds(self) -> list[str]:
        return self.tags["0008|0008"].upper().replace(" ", "").split("\\")

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[:, 0], self.axes[:, 1])

    @property
    def name(self) -> str:
        return f"frame {self.frame}" if self.frame else self.path.name

    @property
    def flaw(self) -> str:
        """Why ITK reads other values or another place than a file states, or takes its own for what is not stated."""
        stored, high = self.tags["0028|0101"], self.tags["0028|0102"]
        if stored.isdigit() and high.isdigit() and int(high) != int(stored) - 1:
            return "keeps its values in other bits (High Bit) than its reader takes"
        if (slope := numbers(self.tags["0028|1053"])) is not None and not slope.all():
            return "states a rescale slope of 0, for which its reader takes 1"
        if self.tags["0028|3000"]:
            return "states its values by a table (Modality LUT), which its reader leaves out; convert it first"
        if self.tags["0008|0060"] == "CT" and self.tags["0028|0004"] == "MONOCHROME1":
            return "is a CT in MONOCHROME1, whose values its reader inverts"
        if "MOSAIC" in self.kinds:
            return "is a mosaic, many slices side by side in one picture; convert it first, such as by dcm2niix"
        if self.size[2] > 1 or self.position_lps_mm is None:
            return ""
        place, axes = numbers(self.tags["0020|0032"]), numbers(self.tags["0020|0037"])
        if axes is None or len(axes) != 6:
            return "states no orientation (Image Orientation)"
        if self.spacing_stated_mm is None:
            return "has no pixel spacing"
        if not np.allclose(self.spacing_stated_mm, self.spacing_mm[:2], rtol=1e-3):
            return "states a pixel spacing that its reader does not take"
        differ = np.abs(axes.reshape(2, 3).T - self.axes).max() > _COSINES
        if differ or place is None or len(place) != 3 or np.abs(place - self.position_lps_mm).max() > _OFF_MM:
            return "states a place or an orientation that cannot be"
        return ""

    @property
    def spacing_stated_mm(self) -> np.ndarray | None:
        """Spacing between columns and between rows, from the first tag that has it."""
        for key in ("0028|0030", "0018|1164", "0018|2010"):
            if (spacing := numbers(self.tags[key])) is not None:
                return spacing[::-1] if len(spacing) == 2 and (spacing > 0).all() else None
        return None


def numbers(text: str) -> np.ndarray | None:
    """The values of an element of numbers as text; None if it has none."""
    try:
        return np.array(text.split("\\"), float)
    except ValueError:
        return None


class Irregular(NephiError):
    """A series whose slices form no regular stack."""


def turned(files: list[Slice]) -> list[Slice]:
    """The slices that are not oriented as most are."""
    axes = np.array([file.axes for file in files])
    usual = np.median(axes, axis=0)
    return [file for file, a in zip(files, axes, strict=True) if np.abs(a - usual).max() > _TURNED]


def in_order(files: list[Slice], where: str) -> list[Slice]:
    """Sorted along the normal. Raises Irregular unless they are stacked at equal distances."""
    if len(files) == 1:
        return files
    normal = files[0].normal
    files = sorted(files, key=lambda file: float(file.position_lps_mm @ normal))
    places = np.array([file.position_lps_mm for file in files])
    along = places @ normal
    steps = np.diff(along)
    same = np.flatnonzero(steps < max(1e-3, 0.05 * float(np.median(steps))))
    if len(same):
        if len(same) < 0.2 * len(files):
            pair = f"{files[same[0]].name} and {files[same[0] + 1].name}"
            raise Irregular(f"{where}: {pair} are two different slices at the same position; remove one")
        differ = [name for name, tag in (("acquisition", "0020|0012"), ("temporal position", "0020|0100"),
                  ("echo time", "0018|0081"), ("trigger time", "0018|1060"))
                  if len({f.tags[tag] for f in files}) > 1]  # fmt: skip
        by = f", which differ by {', '.join(differ)}" if differ else ""
        raise Irregular(
            f"{where}: {len(same)} of {len(files)} slices lie at the same position as another: several phases or "
            f"echoes in one series{by}; put one in a folder of its own"
        )
    step = float(np.median(steps))
    sideways = places - places[0] - np.outer(along - along[0], normal)
    if np.abs(sideways).max() > (off := min(_OFF * step, _OFF_MM)):
        drift = float(np.linalg.norm(sideways[-1])) / float(along[-1] - along[0])
        line = np.outer(along - along[0], sideways[-1]) / (along[-1] - along[0])
        if np.abs(sideways - line).max() <= off:
            raise Irregular(
                f"{where}: the slices are sheared by {np.degrees(np.arctan(drift)):.2g} degrees against their stack "
                "(gantry tilt); resample it to a straight grid first"
            )
        raise Irregular(f"{where}: the slices are shifted sideways against each other, by up to "
                         f"{np.abs(sideways).max():.3g} mm")  # fmt: skip
    if np.abs(along - np.polyval(_line(along), np.arange(len(along)))).max() > off:
        wide = int(np.argmax(steps))
        missing = steps / step
        if np.abs(missing - missing.round()).max() < 0.1:
            raise Irregular(
                f"{where}: {int(missing.round().sum()) - len(steps)} slices are missing, the first between "
                f"{files[int(np.flatnonzero(missing.round() > 1)[0])].name} and the next ({steps[wide]:.4g} mm apart "
                f"instead of {step:.4g})"
            )
        raise Irregular(
            f"{where}: the slices are spaced unevenly, {steps.min():.4g} to {steps.max():.4g} mm, widest between "
            f"{files[wide].name} and {files[wide + 1].name}; resample them to an even grid first"
        )
    return files


def _line(along: np.ndarray) -> np.ndarray:
    """Spacing and first place of the even places that are nearest to these."""
    return np.polyfit(np.arange(len(along)), along, 1)


def placed(image: sitk.Image, files: list[Slice]) -> sitk.Image:
    """The image, at the even places that are nearest to its slices', with their series."""
    axes = np.c_[files[0].axes, files[0].normal]
    u, _, v = np.linalg.svd(axes)  # cosines of a few digits
    first = np.asarray(files[0].position_lps_mm)
    step, place = _line(np.array([file.position_lps_mm for file in files]) @ files[0].normal)
    image.SetOrigin((first + (place - first @ files[0].normal) * files[0].normal).tolist())
    image.SetSpacing([*files[0].spacing_mm[:2].tolist(), float(step)])
    image.SetMetaData(SERIES, files[0].series)
    image.SetDirection((u @ v if np.abs(u @ v - axes).max() < 1e-3 else axes).ravel().tolist())
    return image


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
