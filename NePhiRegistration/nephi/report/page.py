"""A registration on one page: a self-contained HTML file to read, print and send.

The page says what is known and what is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..files.folder import ResultFolder
from ..files.writing import write_text
from .html import bullets, document, leaves, prose, rows_table, table
from .pictures import Images, curve_sections, image_sections, number

_REGIONS = {  # tables of regions that fit a page beside each other's columns: heads, by their entry in the report
    "volume": {
        "fixed_ml": "fixed (mL)",
        "moving_ml": "moving (mL)",
        "volume_fixed_ml": "fixed (mL)",
        "volume_moving_ml": "moving (mL)",
        "change_ml": "change (mL)",
        "change_percent": "change (%)",
        "mean_jacobian": "mean |J|",
    },
    "air and ventilation": {
        "air_fixed_ml": "air, fixed (mL)",
        "air_moving_ml": "air, moving (mL)",
        "ventilation_jacobian": "ventilation by |J|",
        "ventilation_hu": "ventilation by density",
        "mass_ratio": "mass ratio",
    },
    "agreement with the moving image": {
        "moving_region_ml": "drawn in moving (mL)",
        "before_dice": "Dice, aligned",
        "dice": "Dice, registered",
        "before_surface_mm": "surfaces, aligned (mm)",
        "surface_mm": "surfaces, registered (mm)",
        "before_hausdorff_95_mm": "Hausdorff 95 %, aligned (mm)",
        "hausdorff_95_mm": "Hausdorff 95 %, registered (mm)",
    },
}
_STATES = {"unaligned": "not aligned", "before": "aligned", "after": "registered"}  # of the images, in their order
_STATISTICS = {"p95": "95th percentile", "max": "maximum", "n": "landmarks"}
_MOST_FOLDS = 20  # rows of their table


def write_report(
    folder: str | Path,
    *,
    report: dict,
    fixed: sitk.Image,
    warped: sitk.Image,
    moving: sitk.Image,
    alignment: sitk.Transform,
    jacobian: sitk.Image,
    displacement: sitk.Image,
    fixed_mask: sitk.Image | None = None,
    expected_error: sitk.Image | None = None,
    history: Sequence[dict] = (),
) -> None:
    """Write ``report.html`` into ``folder``, created if necessary.

    fixed, warped (moving image after registration) and fixed_mask lie on the fixed grid, jacobian (determinant of the
    forward map) on it or on a box of it, around which it is 1; displacement (vectors, LPS mm, forward map) and
    expected_error (mm) may lie on a coarser one. alignment takes fixed points to points of moving. ``history``: dicts
    of step, loss and terms.
    Every entry of ``report`` is shown.
    """
    images = Images(fixed, warped, moving, alignment, jacobian, displacement, fixed_mask, expected_error)
    pictures = [*image_sections(images), *curve_sections(history, _landmark_errors(report))]
    body = [*_headline(report), *pictures, *_tables(report)]
    write_text(ResultFolder(Path(folder)).page, document("Registration report", body))


def _landmark_errors(report: dict) -> dict[str, np.ndarray]:
    """(n,) mm of every landmark, before (after the alignment alone) and after the registration."""
    rows = report.get("landmarks") or []
    return {when: np.array([row[f"{when}_mm"] for row in rows]) for when in ("before", "after") if rows}


def _headline(report: dict) -> Iterator[str]:
    fixed, moving = (_name(report.get("files", report).get(k), f"the {k} image") for k in ("fixed", "moving"))
    yield "<h1>Registration report</h1>"
    yield f'<p class="lead"><b>{moving}</b> (moving) was registered to <b>{fixed}</b> (fixed).</p>'
    yield from _verdict(report)
    yield bullets(_summary(report), "lead")
    if report.get("warnings"):
        yield f'<div class="warning"><b>Warnings</b>{bullets(map(prose, report["warnings"]))}</div>'


def _name(value, otherwise: str) -> str:
    value = (value.get("path") or value.get("name")) if isinstance(value, dict) else value
    return escape(Path(str(value)).name if value else otherwise)


def _verdict(report: dict) -> Iterator[str]:
    verdict = report.get("verdict")
    if verdict is None:
        return
    outcome = escape(str(verdict["outcome"]))
    reasons, setter = bullets(map(prose, verdict["reasons"])), escape(str(verdict["tolerances"]["set_by"]))
    rows = [
        (c["name"], c["found"], c["tolerated"], "yes" if c["kept"] else "NO") for c in verdict.get("criteria") or []
    ]
    criteria = table("", rows, ("criterion", "found", "tolerated", "kept"))
    yield f"""<div class="verdict {outcome.lower()}"><b>{outcome}</b>{reasons}
        <p>By the tolerances of {setter}. The verdict rests on signals from the images, and on landmarks and regions
        where they are given; it does not replace a look at the pictures.</p>{criteria}</div>"""


def _summary(report: dict) -> Iterator[str]:
    tre, expected = report.get("tre_mm") or {}, report.get("error_estimate_mm")
    before, after = tre.get("before"), tre.get("after")
    if after:
        change = ""
        if before:
            way = "down" if after["mean"] < before["mean"] else "<b>up</b>"
            change = f"{way} from {before['mean']:.2f} mm (alignment only) to "
        words = (("median", "median"), ("p95", "95 % are below"), ("max", "the worst is"))
        rest = ", ".join(f"{text} {after[key]:.2f} mm" for key, text in words if key in after)
        if "within_2_mm" in tre:
            rest += f"; {100 * tre['within_2_mm']:.0f} % of the landmarks are within 2 mm"
            rest += (
                f", {100 * tre['within_voxel']:.0f} % within a voxel's diagonal of {tre['voxel_diagonal_mm']:.2f} mm"
            )
        yield f"""Landmark error (TRE): {change}<b>{after["mean"]:.2f} mm</b> on average ({rest}).
            It holds where the landmarks lie; elsewhere look at the pictures."""
    elif expected:
        yield f"""No landmarks were given: the accuracy is estimated, not measured. <b>The expected error is
            {expected["mean"]:.2f} mm</b> on average. True errors may be larger: their upper 95 % limit is
            {expected["bound_mean"]:.2f} mm on average."""
    else:
        yield """No landmarks were given, so <b>the accuracy is not known</b>. The pictures show whether
            visible structures meet, not whether the map is right between them."""
    folds = report.get("folds") or {}
    if folds.get("percent") == 0:
        yield "No folds: the Jacobian determinant is above 0 at every examined voxel."
    elif folds.get("percent"):
        count = f" ({number(folds['count'])} voxels)" if "count" in folds else ""
        yield f"""<b>Folds: {number(folds["percent"])} %{count}</b>. There the map turns tissue inside out
            and must not be trusted; the Jacobian maps show it in magenta."""
    for entry, title in (
        ("inverse_consistency_mm", "Inverse consistency (forward, then inverse transform)"),
        ("fields_disagreement_mm", "Forward-backward difference of the two fields"),
    ):
        if (apart := report.get(entry)) is not None:
            parts = apart if isinstance(apart, dict) else {"mean": apart}
            text = ", ".join(
                f"{'95th percentile' if k == 'p95' else escape(str(k))} {v:.2f} mm"
                for k, v in parts.items()
                if k != "n"
            )
            yield f"{title}: {text}."
    time_s = report.get("time_s")
    if time_s is not None:
        time_s = time_s if isinstance(time_s, dict) else {"wall": time_s}
        units = {
            "wall": "{:.1f} s",
            "cpu": "{:.1f} s of CPU time",
            "registration_wall": "{:.1f} s of registration alone",
        }
        yield f"Time: {', '.join(units[k].format(v) for k, v in time_s.items() if k in units)}."


def _tables(report: dict) -> Iterator[str]:
    """Everything in the report: errors before and after, regions and folds first, then numbers, settings, versions.

    The histogram of the determinant is left to report.json.
    """
    report = {k: v for k, v in report.items() if k != "warnings"}
    tre = dict(report.pop("tre_mm", None) or {})
    tre.pop("doubt", None)  # a warning, or a reason of the verdict
    report |= {f"landmarks {k.replace('_', ' ')}": v for k, v in tre.items() if not isinstance(v, dict)}
    columns = {words: tre[state] for state, words in _STATES.items() if isinstance(tre.get(state), dict)}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [(_STATISTICS.get(name, name), *(column.get(name, "") for column in columns.values())) for name in names]
    yield table("Landmark error (TRE) in mm", rows, ("", *columns))
    for title, entry in (("Labels", "labels"), ("Regions", "regions")):
        yield from _of_regions(title, report.pop(entry, None) or [])
    folds = dict(report.pop("folds", None) or {})
    regions = folds.pop("regions", None) or []
    title = "Folded regions" + (f" (the largest {_MOST_FOLDS} of {len(regions)})" if len(regions) > _MOST_FOLDS else "")
    yield rows_table(title, regions[:_MOST_FOLDS])
    each = rows_table("", report.pop("landmarks", None))
    if each:
        yield f"<details><summary>Every landmark</summary>{each}</details>"
    jacobian = {k: v for k, v in (report.pop("jacobian", None) or {}).items() if k != "histogram"}
    report |= {"folds": folds, "jacobian": jacobian}
    verdict = report.get("verdict") or {}
    report |= {"verdict": {k: v for k, v in verdict.items() if k != "criteria"}} if verdict else {}
    provenance = dict(report.pop("provenance", None) or {})
    files = [(role, f.get("path"), f.get("sha256", "not read")) for role, f in provenance.pop("files", {}).items()]
    yield table("Provenance", files, ("file", "path", "SHA-256"))
    yield table("" if files else "Provenance", list(leaves(provenance)))
    last = {title: report.pop(title, None) or {} for title in ("settings", "versions")}
    for title, content in ({"numbers": report} | last).items():
        all_of_it = table("", list(leaves(content)))
        yield f"<details><summary>All {title}</summary>{all_of_it}</details>" if all_of_it else ""


def _of_regions(title: str, rows: list[dict]) -> Iterator[str]:
    """Tables of a few columns each, of what is known of regions."""
    for subject, words in _REGIONS.items():
        known = [{head: row[entry] for entry, head in words.items() if entry in row} for row in rows]
        named = [{"region": row.get("name") or f"label {row['label']}"} for row in rows]
        if any(known):
            yield rows_table(f"{title}: {subject}", [name | row for name, row in zip(named, known, strict=True)])
