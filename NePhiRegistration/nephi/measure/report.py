"""The report of a registration, in one form for ``register``, ``evaluate`` and ``batch``.

A registration aligns the images by an affine map and then deforms them. Errors and overlaps are given *unaligned* (the
images as they lie), *before* (after the alignment only) and *after* (registered). Of a transform whose alignment is not
known there is no *before*.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Summary:
    """Statistics of ``n`` values."""

    mean: float
    median: float
    p95: float
    max: float
    n: float


@dataclass(frozen=True)
class LandmarkError:
    """Target registration error in mm: distance of corresponding landmarks.

    ``doubt``: why the landmarks themselves may be wrong, in words, as their errors are what such errors look like.
    """

    after: Summary
    unaligned: Summary | None = None
    before: Summary | None = None  # after the alignment only
    within_2_mm: float | None = None  # share of the landmarks whose error is at most 2 mm, after the registration
    within_voxel: float | None = None  # the same, at most the diagonal of the fixed image's voxel
    voxel_diagonal_mm: float | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class SurfaceDistance:
    """Surface distance of two masks in mm: mean and 95th percentile (see ``surface_distance``)."""

    mean: float
    hausdorff_95: float


@dataclass(frozen=True)
class Overlap:
    """Dice coefficient of the warped moving mask and the fixed one."""

    after: float
    before: float | None = None  # after the alignment only


@dataclass(frozen=True)
class Folds:
    """Voxels whose Jacobian determinant is not above 0, in the fixed mask (``where``: mask) or the fixed image (image).

    ``exact``: by the derivatives of the map; else by central differences between voxels. ``regions``: the largest
    connected ones, see ``fold_regions``.
    """

    percent: float
    count: int
    where: str = "image"
    exact: bool = False
    regions: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class VolumeChange:
    """The volume of the fixed mask, of the same tissue in the moving image, and their ratio."""

    fixed_ml: float
    moving_ml: float
    ratio: float


@dataclass(frozen=True)
class ErrorEstimate:
    """Expected error in mm in the fixed mask (without one, in the image), from the result and the images alone.

    ``bound_mean`` and ``bound_p95``: of the bound that 95 % of errors keep. ``above_5_mm``: share of the region whose
    expected error is larger. ``likeness``: correlation of blocks of the images at the coarse scale, its median.
    ``agreement``: share of these blocks that match there and back. ``unseen``: share of the region that the moving
    image does not show. ``calibrated``: the images are of the kind that the estimate was calibrated for.
    ``clear_agreement``: as ``agreement``, without blocks that fit nearly as well where they lie (None: the same).
    """

    mean: float
    median: float
    p95: float
    max: float
    bound_mean: float
    bound_p95: float
    above_5_mm: float
    likeness: float
    agreement: float
    unseen: float
    calibrated: bool
    clear_agreement: float | None = None


@dataclass(frozen=True)
class Verdict:
    """PASS, CHECK or FAIL, with the reasons and the tolerances."""

    outcome: str
    reasons: list[str]
    tolerances: dict[str, Any]
    criteria: list[dict] | None = None  # name, found, tolerated (as text) and kept, for each that could be judged


@dataclass(frozen=True)
class Report:
    """All measures of a registration and how it was made. Unknown entries are None and omitted in the JSON."""

    folds: Folds
    jacobian: dict[str, Any]  # statistics of the determinant and its histogram, where the folds are counted
    verdict: Verdict | None = None  # if the images are available
    error_estimate_mm: ErrorEstimate | None = None  # if the images are available
    tre_mm: LandmarkError | None = None  # where landmarks are given
    landmarks: list[dict] | None = None  # one by one: number, fixed place (LPS mm), error in mm at each state, ...
    dice: Overlap | None = None  # where both masks are given
    surface_mm: SurfaceDistance | None = None  # of the masks, where both are given, after the registration
    labels: list[dict] | None = None  # where label maps of both images are given, see ``label_agreement``
    inverse_consistency_mm: Summary | None = None  # |inverse(forward(x)) - x| of the transforms, where both are given
    fields_disagreement_mm: Summary | None = None  # the same of a registration's two fields, before their consensus
    volume: VolumeChange | None = None  # where the fixed mask is given
    non_diffeomorphic: dict[str, float] | None = None  # see ``non_diffeomorphic_volume``; of transform files alone
    regions: list[dict] | None = None  # one by one, see ``measured_regions``
    guidance: dict[str, Any] | None = None  # how far the result is from its guidance
    warnings: list[str] = field(default_factory=list)
    alignment: dict[str, Any] | None = None  # method, matrix and offset_mm
    device: str | None = None
    configured: list[str] | None = None  # as text: which settings were adapted to the pair, and why
    settings: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    files: dict[str, str] | None = None
    inputs: dict[str, Any] | None = None  # see ``fingerprints``
    provenance: dict[str, Any] | None = None  # hashes of the files, series, seed, date
    outputs: list[str] | None = None  # what was written, of ``nephi.files.folder.OUTPUTS``; None: all by default
    transform_error_mm: dict[str, Any] | None = None  # error of writing the maps on grids
    jacobian_error: dict[str, float] | None = None  # of the determinant in the mask; None where it is exact
    time_s: dict[str, float] | None = None  # wall and cpu of the whole run, registration_wall
    peak_memory_mb: float | None = None
    peak_gpu_memory_mb: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Raises ValueError for text that is not a report."""
        try:
            return _built(cls, current(json.loads(text)))
        except (AttributeError, RecursionError, TypeError) as error:
            raise ValueError(f"not a report: {error}") from None


def current(data: dict[str, Any]) -> dict[str, Any]:
    """A report under the current names: disagreement of the fields used to be called inverse consistency."""
    if "settings" not in data or "fields_disagreement_mm" in data or "inverse_consistency_mm" not in data:
        return data
    data = dict(data)
    data["fields_disagreement_mm"] = data.pop("inverse_consistency_mm")
    if data.get("outputs") is not None:
        data["outputs"] = ["disagreement" if name == "consistency" else name for name in data["outputs"]]
    return data


def _plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    parts = {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    return {name: part for name, part in parts.items() if part is not None}


_hints = functools.cache(typing.get_type_hints)  # slow; cached, as it is the same for every report of a batch


def _built(kind: type, data: dict[str, Any]) -> Any:
    """The inverse of ``_plain``: a dataclass, with those nested in it, from plain dictionaries."""
    kinds, parts = _hints(kind), dict(data)
    for name, value in parts.items():
        options = typing.get_args(kinds[name]) if isinstance(kinds.get(name), types.UnionType) else (kinds.get(name),)
        inner = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if inner is not None and value is not None:
            parts[name] = _built(typing.cast(type, inner), value)
        if name in kinds and not _fits(parts[name], kinds[name]):
            raise TypeError(f"{name} is {value!r}")
    return kind(**parts)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON, with dataclasses already built, has the type of its field."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is types.UnionType:
        return any(_fits(value, option) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(part, inner[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, inner[1]) for part in value.values())
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
