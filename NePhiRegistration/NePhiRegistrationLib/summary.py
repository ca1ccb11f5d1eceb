"""The result in a few lines, each with whether it is good, neutral, worth knowing, or a reason to look closer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from html import escape

from .i18n import tr as _
from .review import reviews
from .verdict import judgement
from .words import duration, in_panel_words, is_notice


class Kind(Enum):
    """The sign before a line."""

    GOOD, NEUTRAL, NOTICE, ATTENTION = "\u2714", "\u2022", "\u2139", "\u26a0"


@dataclass(frozen=True)
class Line:
    kind: Kind
    text: str


def summary(report: dict, spacing_mm: tuple[float, ...], hounsfield: bool) -> list[Line]:
    """What a reader wants to know first.

    ``spacing_mm``: of the fixed volume; ``hounsfield``: whether it looks like a CT. The verdict is ``judgement``'s.
    """
    lines = [_compared(report, hounsfield), _expected(report), _folds(report["folds"])]
    if "tre_mm" in report:
        lines.append(_landmarks(report["tre_mm"], sum(s * s for s in spacing_mm) ** 0.5))
    lines.append(_forward_backward(report["fields_disagreement_mm"], max(spacing_mm)))
    if "volume" in report:
        lines.append(_volumes(report["volume"]))
    lines += [Line(Kind.NOTICE if is_notice(w) else Kind.ATTENTION, in_panel_words(w)) for w in report["warnings"]]
    return sorted(filter(None, lines), key=lambda line: line.kind is not Kind.ATTENTION)


def compared_results(results: list) -> tuple[list[str], list[list[str]]]:
    """Titles and a row of texts for each of several ``Outputs``, which should have distinct names."""
    titles = [
        _("Result"),
        _("Verdict"),
        _("Review"),
        _("Expected (mm)"),
        _("TRE (mm)"),
        _("Folds (%)"),
        _("Preset"),
        _("Time"),
    ]
    rows = []
    for outputs in results:
        report, judged = outputs.report, judgement(outputs.report)
        expected = report.get("error_estimate_mm", {}).get("mean")
        tre = report.get("tre_mm", {}).get("after", {}).get("mean")
        numbers = ["-" if mm is None else f"{mm:.2f}" for mm in (expected, tre)]
        verdict = "-" if judged is None else f"{judged.sign} {judged.title}"
        folds = f"{report['folds']['percent']:.3g}"
        preset = str(report.get("settings", {}).get("preset", "-"))
        time = duration(report["time_s"]["wall"])
        signed = reviews(outputs)
        review = signed[-1].verdict if signed else "-"
        rows.append([outputs.forward.GetName(), verdict, review, *numbers, folds, preset, time])
    return titles, rows


def as_html(lines: list[Line], colors: dict[Kind, str]) -> str:
    """Rich text for a label; ``colors``: of the signs."""
    sign = '<div><span style="color:{color}">{sign}</span>&nbsp;{text}</div>'
    return "".join(
        sign.format(color=colors[line.kind], sign=line.kind.value, text=escape(unbroken(line.text), quote=False))
        for line in lines
    )


def unbroken(text: str) -> str:
    """The text with non-breaking percentages."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _expected(report: dict) -> Line | None:
    """Already judged by the verdict."""
    if "error_estimate_mm" not in report:
        return None
    estimate = report["error_estimate_mm"]
    text = _(
        "Expected error: mean {mean} mm, at the worst place {largest} mm. "
        "True errors may be larger: their upper 95 % limit is {bound} mm on average."
    )
    numbers = {"mean": f"{estimate['mean']:.1f}", "largest": f"{estimate['max']:.1f}"}
    return Line(Kind.NEUTRAL, text.format(**numbers, bound=f"{estimate['bound_mean']:.1f}"))


def _compared(report: dict, hounsfield: bool) -> Line | None:
    if "volume" in report:
        if "dice" in report:
            return None
        return Line(Kind.NOTICE, _("Only the fixed volume had a mask; all of the moving volume was compared."))
    if hounsfield and report.get("inputs", {}).get("auto_mask"):
        text = _(
            "No lungs were found: the whole image was compared, with air and table. "
            "All numbers and colours are of the whole image; choose masks if these are lungs."
        )
        return Line(Kind.ATTENTION, text)
    return Line(Kind.NOTICE, _("No mask: the whole image was compared, and all numbers and colours are of all of it."))


def _folds(folds: dict) -> Line:
    if folds["count"] == 0:
        return Line(Kind.GOOD, _("No folds."))
    count, percent = len(folds["regions"]), f"{folds['percent']:.3g}"
    if count == 1:
        text = _("Folded in 1 place, {percent} % of the voxels: see Folds.")
    else:
        text = _("Folded in {count} places, {percent} % of the voxels: see Folds.")
    return Line(Kind.ATTENTION, text.format(count=count if count < 100 else "100+", percent=percent))


def _landmarks(tre_mm: dict, diagonal_mm: float) -> Line:
    """Good only where the mean is within a voxel's diagonal and no landmark is off by more than two."""
    before, after = tre_mm["before"]["mean"], tre_mm["after"]["mean"]
    numbers = {
        "before": f"{before:.1f}",
        "after": f"{after:.1f}",
        "largest": f"{tre_mm['after']['max']:.1f}",
        "diagonal": f"{diagonal_mm:.1f}",
    }
    text = _("Landmark error (TRE): mean {before} mm before, {after} mm after; largest {largest} mm after")
    kind = Kind.GOOD if tre_mm["after"]["max"] <= 2 * diagonal_mm else Kind.NEUTRAL
    if after > diagonal_mm:
        kind = Kind.ATTENTION
        if after >= before:
            text = _(
                "Landmark error (TRE): mean {before} mm before, {after} mm after; largest {largest} mm after. "
                "The registration did not lower it"
            )
        else:
            text = _(
                "Landmark error (TRE): mean {before} mm before, {after} mm after; largest {largest} mm after. "
                "The mean is above a voxel's diagonal ({diagonal} mm)"
            )
    return Line(kind, text.format(**numbers) + ".")


def _forward_backward(error_mm: dict, voxel_mm: float) -> Line:
    numbers = {"mean": f"{error_mm['mean']:.2g}", "largest": f"{error_mm['max']:.2g}", "voxel": f"{voxel_mm:.2g}"}
    text = _("Forward-backward difference: mean {mean} mm, largest {largest} mm.")
    if error_mm["mean"] <= voxel_mm:
        return Line(Kind.NEUTRAL, text.format(**numbers))
    text = _(
        "Forward-backward difference: mean {mean} mm, largest {largest} mm. "
        "The mean is above the voxel size ({voxel} mm): do not trust the match."
    )
    return Line(Kind.ATTENTION, text.format(**numbers))


def _volumes(volume: dict) -> Line:
    fixed, moving = volume["fixed_ml"] / 1000, volume["moving_ml"] / 1000
    text = _("Volume of the mask: {fixed} L fixed, {moving} L moving ({change} L, {percent} %).")
    numbers = {
        "fixed": f"{fixed:.2f}",
        "moving": f"{moving:.2f}",
        "change": f"{moving - fixed:+.2f}",
        "percent": f"{100 * (moving / fixed - 1):+.0f}",
    }
    return Line(Kind.NEUTRAL, text.format(**numbers))
