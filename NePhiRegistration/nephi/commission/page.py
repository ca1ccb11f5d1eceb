"""The record of a commissioning as a page to read, print and keep."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..report.html import bullets, document, leaves, table
from ..report.pictures import jacobian_rgb, picture
from .battery import Outcome

_STEP_MM = 3.0  # between the pixels of the pictures


def page_of(record: dict[str, Any], outcomes: list[Outcome]) -> str:
    """HTML."""
    return document("Commissioning record", _body(record, outcomes))


def _body(record: dict[str, Any], outcomes: list[Outcome]) -> Iterator[str]:
    passed, limits, machine = record["passed"], record["limits"], record["machine"]
    yield "<h1>Commissioning record</h1>"
    yield f"""<p class="lead">nephi {escape(record["versions"]["nephi"])} on <b>{escape(machine["name"])}</b>,
        {escape(machine["device"])}, {escape(record["date"])}{", quick" if record["quick"] else ""}</p>"""
    wrong = [f"{case['name']}: {escape(text)}" for case in record["cases"] for text in case["missed"]]
    yield f"""<div class="verdict {"pass" if passed else "fail"}"><b>{"PASSED" if passed else "NOT PASSED"}</b>
        {bullets(wrong or ["All limits are met, and every verdict is right."])}
        <p>Limits set by: {escape(limits["set_by"])}. Digital phantoms show how the software does on this machine;
        they do not replace tests with scans of the site's own scanners.</p></div>"""
    columns = [_numbers(case) for case in record["cases"]]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    yield table("Cases", rows, ("", *(case["name"] for case in record["cases"])))
    yield """<p>Errors at 2,000 random points of the lungs, against the exact map. |J|: root mean square error, bias and
        correlation of the Jacobian determinant.</p>"""
    for case, outcome in zip(record["cases"], outcomes, strict=True):
        yield f"<h2>{escape(case['name'])}</h2><p>{escape(case['about'])}</p>{bullets(map(escape, case['reasons']))}"
        yield from _pictures(outcome)
    yield table("Limits", list(leaves(limits)))
    yield table("Machine", list(leaves(machine)))
    yield table("Versions", list(leaves(record["versions"])))
    yield f"""<h2>Signature</h2><p>SHA-256 of the content of commission.json:<br><code>{record["sha256"]}</code><br>
        <code>nephi commission --check commission.json</code> tells whether it was changed.</p>
        <p>Name, date, signature: ______________________________</p>"""
    yield table("Settings", list(leaves(record["settings"])))


def _numbers(case: dict) -> dict[str, object]:
    """The column of one case; without a true map there are no errors."""
    found: dict[str, object] = {"voxel": " × ".join(f"{s:g}" for s in case["spacing_mm"]) + " mm"}
    for words, name, which in _ERRORS:
        found[words] = f"{case[name][which]:.2f} mm" if name in case else "-"
    for words, which in (("|J|: RMSE", "rmse"), ("|J|: bias", "bias"), ("|J|: correlation", "correlation")):
        found[words] = f"{case['jacobian'][which]:.3f}" if "jacobian" in case else "-"
    found |= {"forward and inverse map differ by": f"{case['inverse_mm']['mean']:.4f} mm", "folds": case["folds"]}
    found |= {"expected error": f"{case['expected_error_mm']:.2f} mm", "verdict": case["verdict"]}
    return found | {"verdict is right": "yes" if case["verdict_right"] else "NO", "limits kept": not case["missed"]}


_ERRORS = (
    ("error after the alignment only, mean", "aligned_tre_mm", "mean"),
    ("error of the map, mean", "tre_mm", "mean"),
    ("95 % are below", "tre_mm", "p95"),
    ("the largest", "tre_mm", "max"),
    ("error of transform.h5, 95 % are below", "file_tre_mm", "p95"),
    ("error of the inverse map, 95 % are below", "inverse_tre_mm", "p95"),
)


def _pictures(outcome: Outcome) -> Iterator[str]:
    """A coronal plane through the lungs: the fixed image, the determinant found and, if known, the true one."""
    pair, result = outcome.pair, outcome.result
    grid, inside = result.fixed_grid, sitk.GetArrayViewFromImage(pair.fixed_mask) != 0
    across = int(inside.sum((0, 2)).argmax())
    steps = [max(1, round(_STEP_MM / s)) for s in (grid.spacing_mm[2], grid.spacing_mm[0])]
    index_zyx = np.stack(np.meshgrid(np.arange(0, grid.size[2], steps[0])[::-1], [across],
                                     np.arange(0, grid.size[0], steps[1]), indexing="ij"), -1)[:, 0]  # fmt: skip
    here = inside[tuple(np.moveaxis(index_zyx, -1, 0))]
    points = grid.to_lps_mm(index_zyx[here][:, ::-1])
    maps = {"|J| as found": result.jacobian_determinant(points)}
    if outcome.case.other is None:
        maps["|J| in truth"] = pair.jacobian(points)
    grey = sitk.GetArrayViewFromImage(pair.fixed)[tuple(np.moveaxis(index_zyx, -1, 0))]
    grey = np.clip((grey.astype(float) + 1000) / 1200, 0, 1)[..., None] * np.full(3, 255)
    spacing = (grid.spacing_mm[0] * steps[1], grid.spacing_mm[2] * steps[0])
    panels = [picture(grey.astype(np.uint8), spacing, "fixed image")]
    for name, values in maps.items():
        rgb = grey.astype(np.uint8).copy()
        rgb[here] = jacobian_rgb(values)
        panels.append(picture(rgb, spacing, name))
    yield f'<section><div class="views">{"".join(panels)}</div></section>'
