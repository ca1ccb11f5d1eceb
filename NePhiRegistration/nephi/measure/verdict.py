"""The verdict on a registration, PASS, CHECK or FAIL, with reasons as text, by tolerances that a site can set.

The defaults follow the practice of the field (AAPM TG-132: target registration error and consistency within 2 mm or a
voxel, none above 5 mm; Dice 0.8 to 0.9; no Jacobian determinant of 0 or less, and no implausible one).
Landmarks and regions are used if they are given, but are not required.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..config import set_by_site
from ..limits import Above, NotNegative, Positive, Share
from .report import ErrorEstimate, Report, Verdict

PASS, CHECK, FAIL = OUTCOMES = ("PASS", "CHECK", "FAIL")
_LEAST_AGREEMENT, _GOOD_AGREEMENT = 0.5, 0.75  # shares of blocks that match there and back
# of images that the expected error is not calibrated for: right results had 0.36 and more, images of other parts of the
# body mostly less than this
_HARDLY_ANY = 0.1
_NEAR_LARGE = 0.6  # times a large error: an expected error above this may be a large one
_MOSTLY = 0.5  # share of the region with large errors, above which the registration fails
_ALMOST_ALL = 0.9  # of the region: if the moving image does not show this share, the rest says too little
_DICE_APART = 0.2  # below the least Dice coefficient: a failure
_FOLDED_PERCENT = 1.0  # above the tolerated one: a failure


@dataclass(frozen=True)
class Tolerances:
    """The tolerances of the verdict. Within all of them a registration passes; far beyond one it fails; else: check."""

    set_by: str = "NePhi's defaults, after AAPM TG-132"  # who is responsible for these numbers
    mean_mm: Positive = 2.0  # expected or measured mean error; at least the longest side of a voxel
    large_mm: Positive = 5.0  # a large error; at least the longest side of a voxel
    large_share: Share = 0.1  # of the region, with an expected error above 0.6 of large_mm
    consistency_mm: Positive = 2.0  # mean, of both transforms and of both fields; at least the longest side of a voxel
    dice: Share = 0.85  # of the masks, if there are two
    folded_percent: NotNegative = 0.0  # voxels of the region whose Jacobian determinant is 0 or less
    jacobian: tuple[Positive, Positive] = (0.1, 6.0)  # range of 98 % of the determinants in the region
    unseen_share: Share = 0.25  # of the region, which the moving image does not show
    fail_factor: Annotated[float, Above(1)] = 2.0  # times a tolerance in mm: beyond this it fails

    def to_dict(self) -> dict[str, Any]:
        """As read from a JSON file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def contradiction(self) -> str:
        low, high = self.jacobian
        return "" if low < high else f"jacobian is {list(self.jacobian)}, must be [low, high] with low < high"


def read_tolerances(path: str | Path | None) -> Tolerances:
    """Tolerances from a JSON file (None: the defaults).

    Missing entries keep their defaults; ``set_by`` is then the file's name. Raises NephiError for an unreadable file,
    an unknown entry or a value out of range.
    """
    return set_by_site(Tolerances, path, "tolerances")


def judged(
    report: Report,
    estimate: ErrorEstimate,
    share_above: Callable[[float], float],
    voxel_mm: float,
    tolerances: Tolerances | None = None,
) -> Report:
    """The report with the expected error and the verdict.

    ``share_above``: the share of the region with an expected error above a number of mm. ``voxel_mm``: the longest side
    of a voxel of either image. A warning that is a reason of the verdict is not repeated among the warnings.
    """
    t = tolerances or Tolerances()
    mean_mm, large_mm, consistency_mm = (max(mm, voxel_mm) for mm in (t.mean_mm, t.large_mm, t.consistency_mm))
    found = [
        *_of_landmarks(report, mean_mm, large_mm, t),
        *_of_guidance(report),
        *_of_regions(report, mean_mm, t),
        *_of_images(estimate, t),
        *_of_error(estimate, mean_mm, large_mm, share_above, t),
        *_of_map(report, consistency_mm, t),
    ]
    criteria = [{"name": f.name, "found": f.found, "tolerated": f.tolerated, "kept": f.outcome == PASS} for f in found]
    worst = sorted(found, key=lambda finding: -OUTCOMES.index(finding.outcome))
    reasons = [finding.reason for finding in worst if finding.outcome != PASS] or [_kept(report, estimate)]
    verdict = Verdict(worst[0].outcome, list(dict.fromkeys(reasons)), t.to_dict(), criteria)
    warnings = [text for text in report.warnings if text not in reasons]
    return replace(report, verdict=verdict, error_estimate_mm=estimate, warnings=warnings)


@dataclass(frozen=True)
class _Finding:
    """One criterion: the value found, the tolerance, the outcome and its reason."""

    outcome: str
    name: str
    found: str
    tolerated: str
    reason: str


def _kept(report: Report, estimate: ErrorEstimate) -> str:
    measured = _independent(report)
    of_landmarks = f"{_mean_at(measured)}. " if measured else ""
    return (
        f"{of_landmarks}The expected error is {estimate.mean:.1f} mm on average, the upper 95 % limit of the true "
        f"error {estimate.bound_mean:.1f} mm on average. All tolerances are met."
    )


def _beyond(value: float, tolerated: float, factor: float) -> str:
    return PASS if value <= tolerated else FAIL if value > factor * tolerated else CHECK


def _independent(report: Report) -> list[dict]:
    """The landmarks that did not guide the registration, the farthest first."""
    rows = [row for row in report.landmarks or [] if not row.get("guided")]
    return sorted(rows, key=lambda row: -row["after_mm"])


def _mean_mm(rows: list[dict]) -> float:
    return sum(row["after_mm"] for row in rows) / len(rows)


def _mean_at(rows: list[dict]) -> str:
    landmarks = f"{len(rows)} landmarks is {_mean_mm(rows):.1f} mm on average"
    return f"The error at {landmarks}" if len(rows) > 1 else f"The error at the landmark is {_mean_mm(rows):.1f} mm"


def _of_landmarks(report: Report, mean_mm: float, large_mm: float, t: Tolerances) -> Iterator[_Finding]:
    """A single landmark may be misplaced: on its own it can't make a registration fail."""
    rows = _independent(report)
    if not rows or report.tre_mm is None:
        return
    doubt, (farthest, *others) = report.tre_mm.doubt, rows
    mean, largest, large = _mean_mm(rows), farthest["after_mm"], sum(row["after_mm"] > large_mm for row in rows)
    outcome = _beyond(mean, mean_mm, t.fail_factor)
    alone = not others or _beyond(_mean_mm(others), mean_mm, t.fail_factor) != FAIL
    yield _Finding(
        CHECK if outcome == FAIL and alone else outcome,
        "landmarks, mean error",
        f"{mean:.2f} mm",
        f"{mean_mm:.2f} mm or less",
        doubt or f"{_mean_at(rows)} (tolerance {mean_mm:.1f} mm). Check the landmarks, the farthest first.",
    )
    yield _Finding(
        CHECK if large else PASS,
        "landmarks, largest error",
        f"{largest:.2f} mm",
        f"{large_mm:.2f} mm or less",
        doubt
        or f"Landmark {farthest['number']} is the farthest, {largest:.1f} mm away (tolerance {large_mm:.1f} mm, "
        f"exceeded by {large} of {len(rows)}): it may be misplaced, or the map is wrong there.",
    )


def _of_guidance(report: Report) -> Iterator[_Finding]:
    """Guiding landmarks are no independent measure, but a map that misses them is suspect."""
    if (guided := (report.guidance or {}).get("landmarks")) is not None:
        count, within, most_mm = int(guided["after"]["n"]), guided["within"], guided["after"]["max"]
        yield _Finding(
            PASS if within == count else CHECK,
            "guiding landmarks within their standard deviation",
            f"{within} of {count}",
            "all",
            f"{count - within} of the {count} guiding landmarks end farther away than their standard deviation, by "
            f"up to {most_mm:.2f} mm: check that they correspond.",
        )


def _of_regions(report: Report, mean_mm: float, t: Tolerances) -> Iterator[_Finding]:
    """Regions or labels of both images, by their surfaces: small and thin ones overlap little even if all is right."""
    apart = {_name(row): row["surface_mm"] for row in _in_both(report) if row["surface_mm"] is not None}
    if apart:
        farthest = max(apart, key=apart.__getitem__)
        many = sum(mm > mean_mm for mm in apart.values())
        yield _Finding(
            CHECK if many else PASS,
            "regions, largest mean surface distance",
            f"{apart[farthest]:.2f} mm ({farthest})",
            f"{mean_mm:.2f} mm or less",
            f"The surfaces of {many} of {len(apart)} regions are more than {mean_mm:.1f} mm apart on average, those of "
            f"{farthest} {apart[farthest]:.1f} mm. Check whether the map or the segmentation is wrong.",
        )
    # regions without a surface within one of the images
    overlaps = {_name(row): row["dice"] for row in _in_both(report) if row["surface_mm"] is None}
    if overlaps:
        least = min(overlaps, key=overlaps.__getitem__)
        yield _Finding(
            PASS if overlaps[least] >= t.dice else CHECK,
            "regions without a surface, least Dice coefficient",
            f"{overlaps[least]:.3f} ({least})",
            f"{t.dice:.2f} or more",
            f"Regions hardly overlap, {least} with a Dice coefficient of {overlaps[least]:.2f} (at least "
            f"{t.dice:.2f} is expected): one of the images may not show all of it.",
        )


def _in_both(report: Report) -> Iterator[dict]:
    yield from (row for row in report.regions or [] if row.get("moving_region_ml"))
    yield from (row for row in report.labels or [] if row["fixed_ml"] and row["moving_ml"])


def _name(row: dict) -> str:
    return row.get("name") or f"label {row['label']}"


def _of_images(estimate: ErrorEstimate, t: Tolerances) -> Iterator[_Finding]:
    """Whether the images agree at all under the map."""
    agreement = f"{100 * estimate.agreement:.0f} %"
    # smooth or noisy images fit equally well in many places, which does not speak against the map
    clear = estimate.agreement if estimate.clear_agreement is None else estimate.clear_agreement
    poor = max(estimate.agreement, clear) < (_LEAST_AGREEMENT if estimate.calibrated else _HARDLY_ANY)
    yield _Finding(
        FAIL if poor else CHECK if estimate.agreement < _GOOD_AGREEMENT else PASS,
        "blocks of the images that fit each other",
        agreement,
        f"{100 * _GOOD_AGREEMENT:.0f} % or more",
        f"The images do not match under the map: only {agreement} of their blocks fit each other. Check that they "
        "show the same patient and region, and check the alignment."
        if poor
        else f"Only {agreement} of the images' blocks fit each other: little structure, much noise or a wrong match. "
        "Look at the checkerboard.",
    )
    unseen = f"{100 * estimate.unseen:.0f} %"
    # what is shown can be right however little it is, and is judged by itself
    yield _Finding(
        PASS if estimate.unseen <= t.unseen_share else FAIL if estimate.unseen > _ALMOST_ALL else CHECK,
        "region that the moving image does not show",
        unseen,
        f"{100 * t.unseen_share:.0f} % or less",
        f"The moving image does not show {unseen} of the region: nothing is known there.",
    )


def _of_error(
    estimate: ErrorEstimate, mean_mm: float, large_mm: float, share_above: Callable[[float], float], t: Tolerances
) -> Iterator[_Finding]:
    """What is not calibrated for such images asks for a check at most."""
    mean, near_mm = _beyond(estimate.mean, mean_mm, t.fail_factor), _NEAR_LARGE * large_mm
    share = share_above(near_mm)
    near = PASS if share <= t.large_share else FAIL if share_above(large_mm) > _MOSTLY else CHECK
    far = FAIL in (mean, near)
    if not estimate.calibrated:
        mean, near = (CHECK if outcome == FAIL else outcome for outcome in (mean, near))
    lost = "It is so large that the alignment may be lost. " if far else ""
    yield _Finding(
        PASS if estimate.calibrated else CHECK,
        "expected error calibrated for such images",
        "yes" if estimate.calibrated else "no",
        "yes",
        "The expected error was calibrated on 3D CTs of the lungs; for these images it is only a guide. "
        f"{lost}Check the pictures.",
    )
    yield _Finding(
        mean,
        "expected error, mean",
        f"{estimate.mean:.2f} mm",
        f"{mean_mm:.2f} mm or less",
        f"The expected error is {estimate.mean:.1f} mm on average (tolerance {mean_mm:.1f} mm).",
    )
    yield _Finding(
        near,
        f"region with an expected error above {near_mm:.1f} mm",
        f"{100 * share:.1f} %",
        f"{100 * t.large_share:.0f} % or less",
        f"The expected error is above {near_mm:.1f} mm in {100 * share:.0f} % of the region "
        f"(tolerance {100 * t.large_share:.0f} %): there it may be above {large_mm:.1f} mm. Look at the error map.",
    )


def _of_map(report: Report, consistency_mm: float, t: Tolerances) -> Iterator[_Finding]:
    if report.dice is not None:
        found = report.dice.after
        yield _Finding(
            PASS if found >= t.dice else FAIL if found < t.dice - _DICE_APART else CHECK,
            "Dice coefficient of the masks",
            f"{found:.3f}",
            f"{t.dice:.2f} or more",
            f"The masks overlap with a Dice coefficient of {found:.2f} (at least {t.dice:.2f} is expected).",
        )
    folds = report.folds
    some = folds.percent > t.folded_percent
    yield _Finding(
        PASS if not some else FAIL if folds.percent > t.folded_percent + _FOLDED_PERCENT else CHECK,
        "folded voxels",
        f"{folds.count} ({folds.percent:.2g} %)",
        f"{t.folded_percent:g} % or less",
        f"The map folds in {folds.count} voxels ({folds.percent:.2g} %): tissue is turned inside out there.",
    )
    low, high = t.jacobian
    least, most = report.jacobian["p1"], report.jacobian["p99"]
    yield _Finding(
        CHECK if least < low or most > high else PASS,
        "98 % of the Jacobian determinants",
        f"{least:.2f} to {most:.2f}",
        f"{low:g} to {high:g}",
        f"The volume changes by factors from {least:.2f} to {most:.2f}: this is implausible for tissue.",
    )
    parts = (
        (
            "inverse-consistency error",
            "Forward and inverse transform do not undo each other: they",
            report.inverse_consistency_mm,
        ),
        (
            "forward-backward difference",
            "The two directions do not agree: forward and inverse field",
            report.fields_disagreement_mm,
        ),
    )
    for name, what, apart in parts:
        if apart is not None:
            yield _Finding(
                _beyond(apart.mean, consistency_mm, t.fail_factor),
                f"{name}, mean",
                f"{apart.mean:.2f} mm",
                f"{consistency_mm:.2f} mm or less",
                f"{what} differ by {apart.mean:.1f} mm on average (tolerance {consistency_mm:.1f} mm).",
            )
