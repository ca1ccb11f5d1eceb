"""What can be wrong with scans as they come, done to a pair whose truth is known: landmarks and masks move along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from nephi.both import Both
from nephi.images.masks import lung_mask
from nephi.space.grid import Grid

AIR_HU = -1000.0


@dataclass(frozen=True)
class Scan:
    image: sitk.Image  # float32
    points_lps_mm: np.ndarray
    mask: sitk.Image

    def with_array(self, change: Callable[[np.ndarray], np.ndarray]) -> Scan:
        array = np.ascontiguousarray(change(sitk.GetArrayFromImage(self.image)), np.float32)
        return replace(self, image=Grid.of(self.image).image(array))

    def with_images(self, change: Callable[[sitk.Image], sitk.Image]) -> Scan:
        """``change`` of the image and of the mask."""
        return replace(self, image=change(self.image), mask=change(self.mask))

    def seen(self) -> np.ndarray:
        """(n,) bool: which landmarks lie in the scan."""
        index = Grid.of(self.image).to_index(self.points_lps_mm)
        return ((index >= -0.5) & (index <= np.array(self.image.GetSize()) - 0.5)).all(1)


Change = Callable[[Scan], Scan]


def shifted(*offset_mm: float) -> Change:
    def moved(image: sitk.Image) -> sitk.Image:
        image = sitk.Image(image)
        image.SetOrigin((np.array(image.GetOrigin()) + offset_mm).tolist())
        return image

    return lambda scan: replace(scan.with_images(moved), points_lps_mm=scan.points_lps_mm + offset_mm)


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
        return Scan(
            larger.resample(scan.image, back, outside=AIR_HU),
            (scan.points_lps_mm - centre) @ matrix.T + centre,
            larger.resample(scan.mask, back, sitk.sitkNearestNeighbor),
        )

    return change


def cut(axis: int, low: float, high: float) -> Change:
    """The part of the scan between two fractions of its extent along an axis of the patient (x to the left)."""

    def part(image: sitk.Image) -> sitk.Image:
        image = sitk.DICOMOrient(image, "LPS")
        kept = [slice(None)] * 3
        kept[axis] = slice(int(low * image.GetSize()[axis]), int(high * image.GetSize()[axis]))
        return image[tuple(kept)]

    return lambda scan: scan.with_images(part)


def thick(spacing_mm: float) -> Change:
    def change(scan: Scan) -> Scan:
        factor = max(1, round(spacing_mm / scan.image.GetSpacing()[2]))
        return scan.with_images(lambda image: sitk.BinShrink(image, [1, 1, factor]))

    return change


def noisy(scan: Scan) -> Scan:
    random = np.random.default_rng(0)
    return scan.with_array(lambda a: a + random.normal(0, 60, a.shape))


def raised(scan: Scan) -> Scan:
    return scan.with_array(lambda a: a + 1024)


def inverted(scan: Scan) -> Scan:
    return scan.with_array(lambda a: 1000 - a)


def stored(orientation: str) -> Change:
    return lambda scan: scan.with_images(lambda image: sitk.DICOMOrient(image, orientation))


def circle(value: float) -> Change:
    def fill(array: np.ndarray) -> np.ndarray:
        _, y, x = np.indices(array.shape, sparse=True)
        (h, w), array = array.shape[1:], array.copy()
        outside = np.hypot((2 * x - w + 1) / w, (2 * y - h + 1) / h) > 1.0
        array[np.broadcast_to(outside, array.shape)] = value
        return array

    return lambda scan: scan.with_array(fill)


def padded(value: float, before: tuple[int, int, int] = (12, 12, 6), after: tuple[int, int, int] | None = None):
    """Voxels of one value around the scan."""
    after = before if after is None else after
    return lambda scan: replace(
        scan,
        image=sitk.ConstantPad(scan.image, before, after, value),
        mask=sitk.ConstantPad(scan.mask, before, after, 0),
    )


def slab_above(scan: Scan) -> Scan:
    """Room air above the patient's head, joined to the trachea and to the room."""
    upright = stored("LPS")(scan)
    return padded(AIR_HU, (0, 0, 0), (0, 0, max(1, round(40 / upright.image.GetSpacing()[2]))))(upright)


def on_a_table(scan: Scan) -> Scan:
    """A table of 20 mm under the patient, as long as the scan, with air around."""
    upright = stored("LPS")(scan)
    step = upright.image.GetSpacing()[1]
    under = [max(1, round(mm / step)) for mm in (10, 20, 30)]
    larger = padded(AIR_HU, (0, 0, 0), (0, sum(under), 0))(upright)
    rows = larger.image.GetSize()[1]

    def table(array: np.ndarray) -> np.ndarray:
        array[:, rows - under[1] - under[2] : rows - under[2]] = 150.0
        return array

    return larger.with_array(table)


def with_contrast(scan: Scan) -> Scan:
    """A contrast medium in the heart and the large vessels between the lungs, and in the vessels within them."""
    # at about 4 mm: what closing by 40 mm fills between the lungs
    shrink = [max(1, round(4.0 / s)) for s in scan.mask.GetSpacing()]
    small = sitk.BinShrink(sitk.Cast(scan.mask, sitk.sitkFloat32), shrink) > 0.5
    small = sitk.ConstantPad(small, [12] * 3, [12] * 3, 0)
    chest = sitk.BinaryMorphologicalClosing(small, [10] * 3)
    weight = sitk.GetArrayFromImage(Grid.of(scan.image).resample(sitk.Cast(chest, sitk.sitkFloat32)))
    return scan.with_array(lambda a: a + 250 * weight * np.clip((a + 300) / 300, 0, 1))


@dataclass(frozen=True)
class Disturbance:
    """``change`` is done to the scans ``of`` the pair; ``masks``: the registration is given their masks."""

    change: Change
    of: str = "moving"
    masks: bool = False

    def __call__(self, scans: Both[Scan]) -> Both[Scan]:
        fixed, moving = scans
        return Both(
            self.change(fixed) if self.of in ("fixed", "both") else fixed,
            self.change(moving) if self.of in ("moving", "both") else moving,
        )


_CUTS = {"lower part": cut(2, 0.35, 1), "upper part": cut(2, 0, 0.65), "side": cut(0, 0.4, 1)}
_PADDING = (0, -1024, -2000, -32768, 3071)

DISTURBANCES: dict[str, Disturbance] = {
    "none": Disturbance(lambda scan: scan),
    "shift 80 mm": Disturbance(shifted(0, 0, 80)),
    "shift 80 mm across": Disturbance(shifted(60, -53, 0)),
    **{f"turn {d} about {'xyz'[a]}": Disturbance(turned(a, d)) for a in (0, 2) for d in (15, 30, 45)},
    "turn 30 about y": Disturbance(turned(1, 30)),
    **{f"{name} cut in {of}": Disturbance(change, of) for name, change in _CUTS.items() for of in ("moving", "both")},
    "lower part cut in fixed": Disturbance(_CUTS["lower part"], "fixed"),
    **{f"slices of {mm} mm": Disturbance(thick(mm)) for mm in (6, 8)},
    "noise of 60 HU": Disturbance(noisy, "both"),
    **{f"HU + 1024 in {of}": Disturbance(raised, of) for of in ("moving", "fixed", "both")},
    **{f"stored as {order}": Disturbance(stored(order)) for order in ("LIP", "PSR", "RAI")},
    **{f"circle of {v}": Disturbance(circle(v), "both" if v == 0 else "moving") for v in (0, -2000, -3024, 3071)},
    "HU + 1024, circle of 0": Disturbance(lambda scan: circle(0)(raised(scan))),
    **{f"canvas of {v}": Disturbance(padded(v)) for v in _PADDING},
    "air around": Disturbance(padded(AIR_HU)),
    "slab of air above": Disturbance(slab_above),
    "table": Disturbance(on_a_table),
    "contrast medium": Disturbance(with_contrast),
    "inverted contrast": Disturbance(inverted),
    **{f"turn 30 about {'xyz'[a]}, masks": Disturbance(turned(a, 30), masks=True) for a in (0, 2)},
    **{
        f"{name} cut in {of}, masks": Disturbance(change, of, masks=True)
        for name, change in _CUTS.items()
        for of in ("moving", "fixed", "both")
    },
    "shift 80 mm, masks": Disturbance(shifted(0, 0, 80), masks=True),
}


def found_mask(image: sitk.Image) -> sitk.Image:
    """The lungs, for pairs without masks of their own."""
    mask = lung_mask(image)
    if mask is None:
        raise SystemExit("no lungs found in an undisturbed scan")
    return mask
