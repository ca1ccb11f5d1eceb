"""A registration on one page: a self-contained HTML file to read, print and send.

The page says what is known and what is not; matplotlib draws its pictures and is optional.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..files.folder import ResultFolder
from ..files.writing import write_text
from .pictures import Images, curve_sections, image_sections, number

_MOST_FOLDS = 20  # rows of their table
_NO_PICTURES = "<p>matplotlib is missing: <code>pip install nephi[report]</code> adds the pictures.</p>"


def write_report(
    folder: str | Path,
    *,
    report: dict,
    fixed: sitk.Image,
    warped: sitk.Image,
    moving_before: sitk.Image,
    jacobian: sitk.Image,
    displacement: sitk.Image,
    fixed_mask: sitk.Image | None = None,
    expected_error: sitk.Image | None = None,
    history: Sequence[dict] = (),
    landmark_errors: dict[str, np.ndarray] | None = None,
) -> None:
    """Write ``report.html`` into ``folder``, created if necessary.

    fixed, warped (moving image after registration), moving_before (after alignment only), jacobian
    (determinant of the forward map) and fixed_mask lie on the fixed grid; displacement (vectors, LPS
    mm, forward map) and expected_error (mm) may lie on a coarser one. ``landmark_errors``: (n,) mm,
    keys before and after. ``history``: dicts of step, loss and terms. Every entry of ``report`` is shown.
    """
    images = Images(fixed, warped, moving_before, jacobian, displacement, fixed_mask, expected_error)
    try:
        import matplotlib.figure  # noqa: F401 (only whether it is there)

        pictures = [*image_sections(images), *curve_sections(history, landmark_errors)]
    except ImportError:
        pictures = [_NO_PICTURES]
    body = [*_headline(report, landmark_errors), *pictures, *_tables(report)]
    write_text(ResultFolder(Path(folder)).page, _PAGE.replace("$BODY", "\n".join(body)))


def _headline(report: dict, landmark_errors: dict | None) -> Iterator[str]:
    fixed, moving = (_name(report.get("files", report).get(k), f"the {k} image") for k in ("fixed", "moving"))
    yield "<h1>Registration report</h1>"
    yield f'<p class="lead"><b>{moving}</b> (moving) was registered to <b>{fixed}</b> (fixed).</p>'
    yield from _verdict(report)
    yield _list(_summary(report, landmark_errors), "lead")
    if report.get("warnings"):
        yield f'<div class="warning"><b>Warnings</b>{_list(escape(str(w)) for w in report["warnings"])}</div>'


def _list(lines: Iterable[str], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _name(value, otherwise: str) -> str:
    value = (value.get("path") or value.get("name")) if isinstance(value, dict) else value
    return escape(Path(str(value)).name if value else otherwise)


def _verdict(report: dict) -> Iterator[str]:
    verdict = report.get("verdict")
    if verdict is None:
        return
    outcome = escape(str(verdict["outcome"]))
    reasons, setter = _list(escape(str(r)) for r in verdict["reasons"]), escape(str(verdict["tolerances"]["set_by"]))
    yield f"""<div class="verdict {outcome.lower()}"><b>{outcome}</b>{reasons}
        <p>By the tolerances of {setter}. The verdict rests on signals from the images; it does not replace a look at
        the pictures.</p></div>"""


def _summary(report: dict, landmark_errors: dict | None) -> Iterator[str]:
    tre, expected = report.get("tre_mm") or {}, report.get("error_estimate_mm")
    for when, errors in (landmark_errors or {}).items():
        tre = {when: {"mean": float(np.mean(errors)), "max": float(np.max(errors))}} | tre
    before, after = tre.get("before"), tre.get("after")
    if after:
        change = ""
        if before:
            way = "down" if after["mean"] < before["mean"] else "<b>up</b>"
            change = f"{way} from {before['mean']:.2f} mm (alignment only) to "
        words = (("median", "median"), ("p95", "95 % are below"), ("max", "the worst is"))
        rest = ", ".join(f"{text} {after[key]:.2f} mm" for key, text in words if key in after)
        yield f"""Landmark error (TRE): {change}<b>{after["mean"]:.2f} mm</b> on average ({rest}).
            It holds where the landmarks lie; elsewhere look at the pictures."""
    elif expected:
        yield f"""No landmarks were given: the accuracy is estimated, not measured. <b>The expected error is
            {expected["mean"]:.2f} mm</b> on average; 95 % of errors are expected below a bound that is
            {expected["bound_mean"]:.2f} mm on average."""
    else:
        yield """No landmarks were given, so <b>the accuracy is not known</b>. The pictures show whether
            visible structures meet, not whether the map is right between them."""
    folds = report.get("folds") or {}
    if folds.get("percent") == 0:
        yield "No folds: the Jacobian determinant is above 0 at every voxel looked at."
    elif folds.get("percent"):
        count = f" ({number(folds['count'])} voxels)" if "count" in folds else ""
        yield f"""<b>Folds: {number(folds["percent"])} %{count}</b>. There the map turns tissue inside out
            and must not be trusted; the Jacobian maps show it in magenta."""
    for entry, title in (
        ("inverse_consistency_mm", "Inverse consistency (forward, then inverse transform)"),
        ("fields_disagreement_mm", "Disagreement of the two fields (forward, then inverse field)"),
    ):
        if (apart := report.get(entry)) is not None:
            parts = apart if isinstance(apart, dict) else {"mean": apart}
            text = ", ".join(f"{escape(str(k))} {number(v)} mm" for k, v in parts.items() if k != "n")
            yield f"{title}: {text}."
    time_s = report.get("time_s")
    if time_s is not None:
        time_s = time_s if isinstance(time_s, dict) else {"wall": time_s}
        yield f"Time: {', '.join(f'{escape(str(k))} {number(v)} s' for k, v in time_s.items())}."


def _tables(report: dict) -> Iterator[str]:
    """Everything in the report: errors before and after, regions and folds first, then numbers, settings, versions.

    The histogram of the determinant is left to report.json.
    """
    report = {k: v for k, v in report.items() if k != "warnings"}
    tre = report.pop("tre_mm", None) or {}
    names = list(dict.fromkeys(name for column in tre.values() for name in column))
    rows = [(name, *(column.get(name, "") for column in tre.values())) for name in names]
    yield _table("Landmark error (TRE) in mm", rows, ("", *tre))
    regions = report.pop("regions", None) or []
    yield _table("Regions", [tuple(r.values()) for r in regions], tuple(regions[0]) if regions else ())
    folds = dict(report.pop("folds", None) or {})
    regions = folds.pop("regions", None) or []
    title = "Folded regions" + (f" (the largest {_MOST_FOLDS} of {len(regions)})" if len(regions) > _MOST_FOLDS else "")
    yield _table(title, [tuple(r.values()) for r in regions[:_MOST_FOLDS]], tuple(regions[0]) if regions else ())
    jacobian = {k: v for k, v in (report.pop("jacobian", None) or {}).items() if k != "histogram"}
    report |= {"folds": folds, "jacobian": jacobian}
    last = {title: report.pop(title, None) or {} for title in ("settings", "versions")}
    for title, content in ({"numbers": report} | last).items():
        yield _table(title.capitalize(), list(_flat(content)))


def _table(title: str, rows: list[tuple], head: tuple = ()) -> str:
    if not rows:
        return ""
    cells = ["".join(f"<th>{escape(str(c))}</th>" for c in head)]
    cells += ["".join(f"<td>{number(c)}</td>" for c in row) for row in rows]
    return f"<h2>{title}</h2><table>{''.join(f'<tr>{row}</tr>' for row in cells if row)}</table>"


def _flat(content, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all leaves of nested dicts and of lists of dicts."""
    many = isinstance(content, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in content)
    if isinstance(content, dict) or many:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content, 1):
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Registration report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem; margin: auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
p { margin: .3rem 0 .7rem; max-width: 50rem } ul { padding-left: 1.3rem; margin: .3rem 0; max-width: 50rem }
.lead { font-size: 1.05rem } .warning { background: #fff4d6; border: 1px solid #d98e00; padding: .3rem 1rem }
img { max-width: 100%; display: block } figure { margin: 0 } figcaption { font-size: .85rem; color: #555 }
.views { display: grid; gap: .6rem; grid-auto-flow: column; grid-auto-columns: minmax(0, 440px) }
.rows2 { grid-template-rows: auto auto } .views img { width: 100% }
@media (max-width: 40rem) { .views { grid: none } .rows2 { grid-template-columns: 1fr 1fr } }
.verdict { border-left: .5rem solid; padding: .4rem 1rem; margin: .6rem 0 } .verdict > b { font-size: 1.3rem }
.pass { border-color: #1a7f37; background: #e8f5ec } .check { border-color: #d98e00; background: #fff4d6 }
.fail { border-color: #b3261e; background: #fbe9e7 }
.legend { display: block; width: 20rem; max-width: 100%; margin-bottom: .4rem; font-size: .85rem }
.legend img { width: 100%; height: 1rem } .ticks { display: flex; justify-content: space-between }
.fold { background: #f0f; color: #fff; padding: 0 .3rem; print-color-adjust: exact }
table { border-collapse: collapse; font-size: .9rem } tr { border-bottom: 1px solid #ddd; text-align: left }
td, th { padding: .15rem .8rem .15rem 0; overflow-wrap: anywhere } section, figure { break-inside: avoid }
</style></head><body>
$BODY
</body></html>
"""
