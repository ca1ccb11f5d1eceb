"""How far the start, or the whole registration, holds on scans as they come: disturbed, and without masks.

Every disturbance changes one scan of a pair, or both, and moves the landmarks along, so that the truth stays known;
landmarks that a scan no longer shows are left out. The reference is the undisturbed pair with its masks.

    python -m benchmarks.robustness                            # the start only: alignment, about a minute a pair
    python -m benchmarks.robustness --preset fast --pairs popi_4dct
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.both import ROLES, Both
from nephi.images.align import align
from nephi.images.hounsfield import hounsfield
from nephi.registration import register
from nephi.settings import PRESETS
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

from .pairs import PAIRS, data_folder, read_landmarks

BASES = ("breathhold_case01", "breathhold_case02", "lung_ct_followup", "popi_4dct")
AIR_HU = -1000.0
FACTOR, MARGIN_MM = 1.25, 0.3  # a disturbed pair without masks may be this much worse than the plain one with masks


@dataclass(frozen=True)
class Scan:
    image: sitk.Image
    points_lps_mm: np.ndarray
    mask: sitk.Image | None = None

    def with_array(self, change: Callable[[np.ndarray], np.ndarray]) -> Scan:
        array = np.ascontiguousarray(change(sitk.GetArrayFromImage(self.image)), np.float32)
        return replace(self, image=Grid.of(self.image).image(array))


Change = Callable[[Scan], Scan]


def shifted(*offset_mm: float) -> Change:
    def change(scan: Scan) -> Scan:
        image = sitk.Image(scan.image)
        image.SetOrigin((np.array(image.GetOrigin()) + offset_mm).tolist())
        return replace(scan, image=image, points_lps_mm=scan.points_lps_mm + offset_mm)

    return change


def turned(axis: int, degrees: float) -> Change:
    """The patient is turned about the middle of the scan; the scan is as large as it has to be."""

    def change(scan: Scan) -> Scan:
        grid = Grid.of(scan.image)
        centre = grid.corners_lps_mm().mean(0)
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        matrix, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
        corners = (grid.corners_lps_mm() - centre) @ matrix.T + centre
        along = corners @ grid.axes
        size = np.ceil((along.max(0) - along.min(0)) / grid.spacing_mm).astype(int) + 1
        origin = grid.axes @ along.min(0)
        larger = Grid(tuple(map(int, size)), grid.spacing_mm, tuple(map(float, origin)), grid.direction)
        back = sitk.AffineTransform(3)
        back.SetCenter(centre.tolist())
        back.SetMatrix(matrix.T.ravel().tolist())
        image = larger.resample(scan.image, back, outside=AIR_HU)
        return replace(scan, image=image, points_lps_mm=(scan.points_lps_mm - centre) @ matrix.T + centre)

    return change


def cut(axis: int, low: float, high: float) -> Change:
    """The part of the scan between two fractions of its extent along an axis of the patient (x to the left)."""

    def change(scan: Scan) -> Scan:
        image = sitk.DICOMOrient(scan.image, "LPS")
        part = [slice(None)] * 3
        part[axis] = slice(int(low * image.GetSize()[axis]), int(high * image.GetSize()[axis]))
        return replace(scan, image=image[tuple(part)])

    return change


def thick(spacing_mm: float) -> Change:
    def change(scan: Scan) -> Scan:
        factor = max(1, round(spacing_mm / scan.image.GetSpacing()[2]))
        return replace(scan, image=sitk.BinShrink(scan.image, [1, 1, factor]))

    return change


def noisy(scan: Scan) -> Scan:
    random = np.random.default_rng(0)
    return scan.with_array(lambda a: a + random.normal(0, 60, a.shape))


def raised(scan: Scan) -> Scan:
    return scan.with_array(lambda a: a + 1024)


def inverted(scan: Scan) -> Scan:
    return scan.with_array(lambda a: 1000 - a)


def stored(orientation: str) -> Change:
    return lambda scan: replace(scan, image=sitk.DICOMOrient(scan.image, orientation))


def circle(value: float) -> Change:
    def fill(array: np.ndarray) -> np.ndarray:
        _, y, x = np.indices(array.shape, sparse=True)
        (h, w), array = array.shape[1:], array.copy()
        outside = np.hypot((2 * x - w + 1) / w, (2 * y - h + 1) / h) > 1.0
        array[np.broadcast_to(outside, array.shape)] = value
        return array

    return lambda scan: scan.with_array(fill)


def padded(value: float, voxels: tuple[int, int, int] = (12, 12, 6)) -> Change:
    return lambda scan: replace(scan, image=sitk.ConstantPad(scan.image, voxels, voxels, value))


def slab_above(scan: Scan) -> Scan:
    """Room air above the patient's head, joined to the trachea and to the room."""
    n = max(1, round(40 / scan.image.GetSpacing()[2]))
    return replace(scan, image=sitk.ConstantPad(sitk.DICOMOrient(scan.image, "LPS"), [0, 0, 0], [0, 0, n], AIR_HU))


# name: what is done to the moving scan, and whether to the fixed one as well
DISTURBANCES: dict[str, tuple[Change, bool]] = {
    "none": (lambda scan: scan, False),
    "shift 80 mm": (shifted(0, 0, 80), False),
    "shift 80 mm across": (shifted(60, -53, 0), False),
    **{f"turn {d} about {'xyz'[a]}": (turned(a, d), False) for a in (0, 2) for d in (15, 30, 45)},
    "lower part cut": (cut(2, 0.35, 1), False),
    "upper part cut": (cut(2, 0, 0.65), False),
    "side cut": (cut(0, 0.4, 1), False),
    "lower part cut in both": (cut(2, 0.35, 1), True),
    "slices of 6 mm": (thick(6), False),
    "slices of 8 mm": (thick(8), False),
    "noise of 60 HU": (noisy, False),
    "HU + 1024": (raised, False),
    "HU + 1024 in both": (raised, True),
    "stored as LIP": (stored("LIP"), False),
    "stored as PSR": (stored("PSR"), False),
    **{f"circle of {v}": (circle(v), False) for v in (0, -2000, -3024, 3071)},
    "canvas of 0": (padded(0), False),
    "room air around": (padded(AIR_HU), False),
    "slab of air above": (slab_above, False),
    "inverted contrast": (inverted, False),
}


def base(name: str) -> Both[Scan]:
    """A pair of the data, or the procedural ``phantom``."""
    if name == "phantom":
        p = make_phantom(size=(72, 64, 64), spacing_mm=4.5, seed=1)
        image = [sitk.Cast(i, sitk.sitkFloat32) for i in (p.fixed, p.moving)]
        return Both(
            Scan(image[0], p.fixed_landmarks_lps_mm, p.fixed_mask),
            Scan(image[1], p.moving_landmarks_lps_mm, p.moving_mask),
        )
    pair, data = PAIRS[name], data_folder()

    def scan(image: str, landmarks: str, mask: str | None) -> Scan:
        points = read_landmarks(data / landmarks)
        given = None if mask is None else sitk.ReadImage(str(data / mask), sitk.sitkUInt8)
        voxels = sitk.ReadImage(str(data / image), sitk.sitkFloat32)
        return Scan(voxels, points[: len(points) - pair.dropped_landmarks], given)

    return Both(
        scan(pair.fixed, pair.fixed_landmarks, pair.fixed_mask),
        scan(pair.moving, pair.moving_landmarks, pair.moving_mask),
    )


def seen(scan: Scan) -> np.ndarray:
    """Which landmarks lie in the scan."""
    index = Grid.of(scan.image).to_index(scan.points_lps_mm)
    return ((index >= -0.5) & (index <= np.array(scan.image.GetSize()) - 0.5)).all(1)


def measure(scans: Both[Scan], preset: str | None, masks: Both[sitk.Image | None]) -> dict:
    """TRE in mm over the landmarks that both scans show, and the CPU seconds."""
    both = seen(scans.fixed) & seen(scans.moving)
    images, began = scans.map(lambda scan: scan.image), time.process_time()
    if preset is None:
        forward, how = align(images.map(hounsfield, ROLES), masks, "auto")
    else:
        fixed_mask, moving_mask = masks
        result = register(*images, fixed_mask=fixed_mask, moving_mask=moving_mask, settings=PRESETS[preset])
        forward, how = result.forward, result.alignment
    seconds = time.process_time() - began
    errors = np.linalg.norm(forward(scans.fixed.points_lps_mm[both]) - scans.moving.points_lps_mm[both], axis=1)
    return {"tre_mm": float(errors.mean()), "landmarks": int(both.sum()), "alignment": how, "cpu_s": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", help=f"of {', '.join(BASES)}, phantom; default: all whose data are there")
    parser.add_argument("--only", nargs="+", default=list(DISTURBANCES), help="names of disturbances")
    parser.add_argument("--preset", help="register with this preset; default: the start only")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    there = [name for name in BASES if (data_folder() / PAIRS[name].fixed).exists()]
    figures: dict[str, dict] = {}
    for name in options.pairs or there or ["phantom"]:
        plain = base(name)
        masks = plain.map(lambda scan: scan.mask)
        reference = measure(plain, options.preset, masks)
        limit = FACTOR * reference["tre_mm"] + MARGIN_MM
        print(
            f"{name}: {reference['tre_mm']:.2f} mm with masks ({reference['alignment']}), limit {limit:.2f}", flush=True
        )
        figures[name] = {"with masks": reference}
        for label in options.only:
            change, both = DISTURBANCES[label]
            scans = Both(change(plain.fixed) if both else plain.fixed, change(plain.moving))
            try:
                got = measure(scans, options.preset, Both(None, None))
            except Exception as error:  # a failure is a figure, too
                print(f"  {label:24} {type(error).__name__}: {error}", flush=True)
                figures[name][label] = {"error": str(error)}
                continue
            got["held"] = got["tre_mm"] <= limit
            figures[name][label] = got
            mark = "" if got["held"] else "  <- lost"
            print(f"  {label:24} {got['tre_mm']:7.2f} mm  {got['alignment']:8} {got['cpu_s']:5.1f} s{mark}", flush=True)
        held = [entry.get("held", False) for label, entry in figures[name].items() if label != "with masks"]
        print(f"  {sum(held)} of {len(held)} hold", flush=True)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
