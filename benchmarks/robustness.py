"""How far the start, or the whole registration, holds on scans as they come: disturbed, and without masks.

Every disturbance changes one scan of a pair, or both, and moves the landmarks along, so that the truth stays known;
landmarks that a scan no longer shows are left out. The reference is the undisturbed pair with its masks.

    python -m benchmarks.robustness                            # the start only: alignment, about a minute a pair
    python -m benchmarks.robustness --preset fast --pairs popi_4dct --output rows.json

Without a preset each row has the smaller Dice coefficient, of the two scans, of the lungs that are found with those of
the undisturbed scan, moved along; with one it has the verdict and its first reason, and what the registration noted.
``--table`` prints the rows of such a file as Markdown. ``--spacings`` gives headers wrong spacings instead, and prints
how much the alignments scale along x, y and z and whether the registration tells of it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nephi.both import ROLES, Both, complete
from nephi.errors import NephiError, collected_notices
from nephi.images.align import align
from nephi.images.hounsfield import hounsfield
from nephi.images.lungs import find_lungs
from nephi.measure.quality import dice
from nephi.measure.verdict import judged
from nephi.preprocessing import checked_images, preprocess
from nephi.registration import register
from nephi.result import Registration
from nephi.settings import PRESETS
from nephi.synthetic.phantom import make_phantom

from .disturbances import DISTURBANCES, SPACINGS, Disturbance, Scan, found_mask
from .pairs import PAIRS, data_folder, read_landmarks
from .trust import measures, voxel_mm

BASES = ("breathhold_case01", "breathhold_case02", "lung_ct_followup", "popi_4dct")
FACTOR, MARGIN_MM = 1.25, 0.3  # a disturbed pair without masks may be this much worse than the plain one with masks


def base(name: str) -> Both[Scan]:
    """A pair of the data with masks, or the procedural ``phantom``."""
    if name == "phantom":
        p = make_phantom(size=(72, 64, 64), spacing_mm=4.5, seed=1)
        images = Both(p.fixed, p.moving).map(lambda image: sitk.Cast(image, sitk.sitkFloat32))
        return images.map(
            Scan, Both(p.fixed_landmarks_lps_mm, p.moving_landmarks_lps_mm), Both(p.fixed_mask, p.moving_mask)
        )
    pair, data = PAIRS[name], data_folder()

    def scan(image: str, landmarks: str, mask: str | None) -> Scan:
        points = read_landmarks(data / landmarks)
        voxels = sitk.ReadImage(str(data / image), sitk.sitkFloat32)
        given = found_mask(voxels) if mask is None else sitk.ReadImage(str(data / mask), sitk.sitkUInt8)
        return Scan(voxels, points[: len(points) - pair.dropped_landmarks], given)

    return Both(
        scan(pair.fixed, pair.fixed_landmarks, pair.fixed_mask),
        scan(pair.moving, pair.moving_landmarks, pair.moving_mask),
    )


def measure(scans: Both[Scan], preset: str | None, masks: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """TRE (n,) in mm at all landmarks; the alignment's name, the search's score and lead, the CPU seconds, and with a
    preset the verdict."""
    images, began = scans.map(lambda scan: scan.image), time.process_time()
    given: Both[sitk.Image | None] = scans.map(lambda scan: scan.mask if masks else None)
    if preset is None:
        in_hounsfield = images.map(hounsfield, ROLES)
        lungs = in_hounsfield.map(find_lungs)
        start = align(in_hounsfield, given, "auto", None if masks else complete(*lungs))
        forward = start.affine
    else:
        result = register(*images, fixed_mask=given.fixed, moving_mask=given.moving, settings=PRESETS[preset])
        forward, start = result.forward, result.alignment
    facts = {"alignment": start.method, "score": start.score, "lead": start.lead}
    facts["cpu_s"] = round(time.process_time() - began, 2)
    if preset is None:
        facts["lungs"] = min(lungs.map(_agreement, scans.map(lambda scan: scan.mask)))
    else:
        facts |= _verdict(result, images)
    points = scans.map(lambda scan: scan.points_lps_mm)
    return np.linalg.norm(forward(points.fixed) - points.moving, axis=1), facts


def _agreement(found: sitk.Image | None, mask: sitk.Image) -> float:
    """Dice coefficient of the lungs that are found in an image with its mask."""
    return 0.0 if found is None else dice(*(sitk.GetArrayViewFromImage(part) != 0 for part in (found, mask)))


def _verdict(result: Registration, images: Both[sitk.Image]) -> dict[str, Any]:
    transform = result.transform()
    trust = result.trust(*images, transform)
    report = measures(result, transform, trust.signals.points_lps_mm)
    report = judged(report, trust.estimate(), trust.share_above, voxel_mm(result))
    assert report.verdict is not None
    found = {"verdict": report.verdict.outcome, "reason": report.verdict.reasons[0]}
    return found | {"expected_mm": trust.estimate().mean, "notes": list(result.notes)}


def row(plain: Both[Scan], reference_mm: np.ndarray, disturbance: Disturbance, preset: str | None) -> dict[str, Any]:
    """The disturbed pair against the reference, both at the landmarks that both scans still show."""
    if preset is None and not disturbance.masks:
        plain = plain.map(lambda scan: replace(scan, mask=found_mask(scan.image)))
    scans = disturbance(plain)
    both = scans.fixed.seen() & scans.moving.seen()
    errors_mm, facts = measure(scans, preset, disturbance.masks)
    tre, undisturbed = float(errors_mm[both].mean()), float(reference_mm[both].mean())
    limit = FACTOR * undisturbed + MARGIN_MM
    return {
        "tre_mm": tre,
        "undisturbed_mm": undisturbed,
        "limit_mm": limit,
        "held": tre <= limit,
        "landmarks": int(both.sum()),
        **facts,
    }


def table(figures: dict[str, dict]) -> str:
    """Markdown: a row for each disturbance, and of each pair its error, its limit where that is missed, and the
    verdict."""
    lines = ["| disturbance | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    for label in ["with masks", *DISTURBANCES]:
        rows = [entries.get(label) for entries in figures.values()]
        if any(rows):
            lines.append(f"| {label} | " + " | ".join(map(_cell, rows)) + " |")
    return "\n".join(lines)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return f"refused: {row['error']}"
    missed = "" if row.get("held", True) else f" (limit {row['limit_mm']:.2f})"
    return f"{row['tre_mm']:.2f}{missed} {row['verdict']}"


def spacings(plain: Both[Scan]) -> None:
    """What is said of wrong spacings in headers, a line for each."""
    for label, disturbance in SPACINGS.items():
        images = disturbance(plain).map(lambda scan: scan.image)
        with collected_notices() as notes:
            placed = preprocess(checked_images(images), Both(None, None), "auto", None, True, lambda phase: None)
        told = next((note for note in notes if "spacing" in note), "not told")
        scales = " ".join(f"{scale:.2f}" for scale in placed.alignment.affine.scales())
        print(f"  {label:30} {scales}  {told.partition(' as those')[0]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", help=f"of {', '.join(BASES)}, phantom; default: all whose data are there")
    parser.add_argument("--only", nargs="+", default=list(DISTURBANCES), help="names of disturbances")
    parser.add_argument("--preset", help="register with this preset; default: the start only")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--table", type=Path, nargs="+", help="print the rows of these files and stop")
    parser.add_argument("--spacings", action="store_true", help="what is said of wrong spacings in headers, and stop")
    options = parser.parse_args()
    if options.table:
        merged: dict[str, dict] = {}
        for path in options.table:  # later files count
            for name, entries in json.loads(path.read_text(encoding="utf-8")).items():
                merged.setdefault(name, {}).update(entries)
        print(table(merged))
        return
    there = [name for name in BASES if (data_folder() / PAIRS[name].fixed).exists()]
    figures: dict[str, dict] = {}
    for name in options.pairs or there or ["phantom"]:
        plain = base(name)
        if options.spacings:
            print(name)
            spacings(plain)
            continue
        reference_mm, facts = measure(plain, options.preset, masks=True)
        print(f"{name}: {reference_mm.mean():.2f} mm with masks ({facts['alignment']})", flush=True)
        figures[name] = {"with masks": {"tre_mm": float(reference_mm.mean()), **facts}}
        for label in options.only:
            figures[name][label] = _tried(plain, reference_mm, label, options.preset)
            if options.output:
                options.output.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        held = [entry["held"] for label, entry in figures[name].items() if label != "with masks"]
        print(f"  {sum(held)} of {len(held)} hold", flush=True)


def _tried(plain: Both[Scan], reference_mm: np.ndarray, label: str, preset: str | None) -> dict[str, Any]:
    """A row, which is printed, too; a failure is a figure as well."""
    try:
        got = row(plain, reference_mm, DISTURBANCES[label], preset)
    except NephiError as error:
        print(f"  {label:28} {type(error).__name__}: {error}", flush=True)
        return {"error": str(error), "held": False}
    mark = "" if got["held"] else "  <- lost"
    told = got["verdict"] if preset else f"lungs {got['lungs']:.2f}"
    lead = "" if got["lead"] is None else f"score {got['score']:.3f} lead {got['lead']:.3f}"
    print(
        f"  {label:28} {got['tre_mm']:7.2f} mm "
        f"({got['undisturbed_mm']:.2f} undisturbed, limit {got['limit_mm']:5.2f}) at {got['landmarks']:3d}  "
        f"{got['alignment']:8} {lead:22} {got['cpu_s']:5.1f} s {told}{mark}",
        flush=True,
    )
    for text in [got["reason"], *got["notes"]] if mark and preset else ():
        print(f"      {text}", flush=True)
    return got


if __name__ == "__main__":
    main()
