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
    points_lps_mm: np.ndarray  # NaN where the scan has the place, but not the tissue
    mask: sitk.Image

    def with_array(self, change: Callable[[np.ndarray], np.ndarray]) -> Scan:
        array = np.ascontiguousarray(change(sitk.GetArrayFromImage(self.image)), np.float32)
        return replace(self, image=Grid.of(self.image).image(array))

    def with_images(self, change: Callable[[sitk.Image], sitk.Image]) -> Scan:
        """``change`` of the image and of the mask."""
        return replace(self, image=change(self.image), mask=change(self.mask))

    def without(self, part: np.ndarray, value: float) -> Scan:
        """One value in a part (z, y, x) of the scan, with no landmarks and no mask there."""
        grid = Grid.of(self.image)
        index = np.nan_to_num(np.round(grid.to_index(self.points_lps_mm)), nan=-1.0).astype(int)
        inside = ((index >= 0) & (index < grid.size)).all(1)
        gone = inside & part[tuple(np.clip(index, 0, np.array(grid.size) - 1).T[::-1])]
        array, mask = sitk.GetArrayFromImage(self.image), sitk.GetArrayFromImage(self.mask)
        array[part], mask[part] = value, 0
        points = np.where(gone[:, None], np.nan, self.points_lps_mm)
        return Scan(grid.image(array), points, grid.image(mask))

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


def together(*changes: Change) -> Change:
    """One after the other; what one of them takes from the scan is not shown by a larger one that another makes."""

    def change(scan: Scan) -> Scan:
        for each in changes:
            scan = each(scan)
            scan = replace(scan, points_lps_mm=np.where(scan.seen()[:, None], scan.points_lps_mm, np.nan))
        return scan

    return change


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def mapped(matrix: np.ndarray) -> Change:
    """The patient is mapped about the middle of the scan; the scan is as large as it has to be."""

    def change(scan: Scan) -> Scan:
        grid = Grid.of(scan.image)
        centre = grid.corners_lps_mm().mean(0)
        corners = (grid.corners_lps_mm() - centre) @ matrix.T + centre
        along = corners @ grid.axes
        size = np.ceil((along.max(0) - along.min(0)) / grid.spacing_mm).astype(int) + 1
        origin = grid.axes @ along.min(0)
        larger = Grid(tuple(map(int, size)), grid.spacing_mm, tuple(map(float, origin)), grid.direction)
        back = sitk.AffineTransform(3)
        back.SetCenter(centre.tolist())
        back.SetMatrix(np.linalg.inv(matrix).ravel().tolist())
        return Scan(
            larger.resample(scan.image, back, outside=AIR_HU),
            (scan.points_lps_mm - centre) @ matrix.T + centre,
            larger.resample(scan.mask, back, sitk.sitkNearestNeighbor),
        )

    return change


def turned(axis: int, degrees: float) -> Change:
    return mapped(rotation(axis, degrees))


def sheared(degrees: float) -> Change:
    """Slices of a tilted gantry, stored as if it had not been."""
    matrix = np.eye(3)
    matrix[1, 2] = np.tan(np.deg2rad(degrees))
    return mapped(matrix)


def oblique(*turns: tuple[int, float]) -> Change:
    """The patient is turned with the axes of the scan: its voxels stay, its direction is oblique."""
    matrix = np.linalg.multi_dot([np.eye(3), *(rotation(*turn) for turn in turns)])

    def change(scan: Scan) -> Scan:
        centre = Grid.of(scan.image).corners_lps_mm().mean(0)

        def placed(image: sitk.Image) -> sitk.Image:
            grid, image = Grid.of(image), sitk.Image(image)
            image.SetDirection((matrix @ grid.axes).ravel().tolist())
            image.SetOrigin((matrix @ (np.array(grid.origin_lps_mm) - centre) + centre).tolist())
            return image

        moved = scan.with_images(placed)
        return replace(moved, points_lps_mm=(scan.points_lps_mm - centre) @ matrix.T + centre)

    return change


def cut(axis: int, low: float, high: float) -> Change:
    """The part of the scan between two fractions of its extent along an axis of the patient (x to the left)."""

    def part(image: sitk.Image) -> sitk.Image:
        image = sitk.DICOMOrient(image, "LPS")
        kept = [slice(None)] * 3
        kept[axis] = slice(int(low * image.GetSize()[axis]), int(high * image.GetSize()[axis]))
        return image[tuple(kept)]

    return lambda scan: scan.with_images(part)


def thick(spacing_mm: float, axes: tuple[int, ...] = (2,)) -> Change:
    def change(scan: Scan) -> Scan:
        spacing = scan.image.GetSpacing()
        factors = [max(1, round(spacing_mm / spacing[axis])) if axis in axes else 1 for axis in range(3)]
        return scan.with_images(lambda image: sitk.BinShrink(image, factors))

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


def clipped(low_hu: float, high_hu: float, to: tuple[float, float] | None = None, whole: bool = False) -> Change:
    """Between two Hounsfield units, and these made the ends of another range, rounded to whole numbers or not."""
    low, high = to or (low_hu, high_hu)

    def change(array: np.ndarray) -> np.ndarray:
        part = (np.clip(array, low_hu, high_hu) - low_hu) / (high_hu - low_hu)
        values = low + (high - low) * part
        return np.round(values) if whole else values

    return lambda scan: scan.with_array(change)


def sized(factor: float) -> Change:
    """Of a smaller or larger patient: every length times a factor."""

    def change(scan: Scan) -> Scan:
        def scaled(image: sitk.Image) -> sitk.Image:
            image = sitk.Image(image)
            image.SetSpacing([factor * mm for mm in image.GetSpacing()])
            image.SetOrigin([factor * mm for mm in image.GetOrigin()])
            return image

        return replace(scan.with_images(scaled), points_lps_mm=factor * scan.points_lps_mm)

    return change


def misread(*factors: float) -> Change:
    """Spacings in the header times factors, so that the scan's lengths in mm are wrong."""

    def spaced(image: sitk.Image) -> sitk.Image:
        image = sitk.Image(image)
        image.SetSpacing((np.array(image.GetSpacing()) * factors).tolist())
        return image

    def change(scan: Scan) -> Scan:
        wrong = scan.with_images(spaced)
        index = Grid.of(scan.image).to_index(scan.points_lps_mm)
        return replace(wrong, points_lps_mm=Grid.of(wrong.image).to_lps_mm(index))

    return change


def soft(scan: Scan) -> Scan:
    """As a smooth reconstruction kernel shows it."""
    return replace(scan, image=sitk.SmoothingRecursiveGaussian(scan.image, 1.5))


def circle(value: float, radius: float = 1.0) -> Change:
    """One value beyond a circle, whose radius is a part of half the slice's sides."""

    def change(scan: Scan) -> Scan:
        shape = Grid.of(scan.image).shape
        _, y, x = np.indices(shape, sparse=True)
        h, w = shape[1:]
        outside = np.hypot((2 * x - w + 1) / w, (2 * y - h + 1) / h) > radius
        return scan.without(np.broadcast_to(outside, shape), value)

    return change


def lungs_alone(value: float) -> Change:
    """One value beyond the lungs."""

    def change(scan: Scan) -> Scan:
        inside = sitk.GetArrayViewFromImage(scan.mask) != 0
        return scan.with_array(lambda a: np.where(inside, a, value))

    return change


def filled(scan: Scan) -> Scan:
    """An effusion: fluid in the lower and rear part of the right lung."""
    upright = stored("LPS")(scan)
    lung = sitk.GetArrayFromImage(upright.mask) != 0
    z, y, x = (np.arange(n) for n in lung.shape)
    right = x < np.flatnonzero(lung.any((0, 1))).mean()
    zs, ys = np.flatnonzero(lung.any((1, 2))), np.flatnonzero(lung.any((0, 2)))
    level = np.add.outer((zs[-1] - z) / (zs[-1] - zs[0]), (y - ys[0]) / (ys[-1] - ys[0])) > 1.15
    return upright.without(lung & level[..., None] & right, 15.0)


def longer(mm: float, at_top: bool) -> Change:
    """More of the body, as at the scan's end, with tissue in the place of what is not."""

    def change(scan: Scan) -> Scan:
        upright = stored("LPS")(scan)
        count = max(1, round(mm / upright.image.GetSpacing()[2]))
        around = ((0, 0, 0), (0, 0, count)) if at_top else ((0, 0, count), (0, 0, 0))
        larger = padded(AIR_HU, *around)(upright)
        end = sitk.GetArrayViewFromImage(upright.image)[-1 if at_top else 0]
        tissue = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray((end > -300).astype(np.uint8)))) > 0
        random = np.random.default_rng(0)
        added = slice(-count, None) if at_top else slice(0, count)

        def fill(array: np.ndarray) -> np.ndarray:
            array[added] = np.where(tissue, 40.0, end) + random.normal(0, 20, array[added].shape)
            return array

        return larger.with_array(fill)

    return change


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
    fixed_change: Change | None = None  # another one, of the fixed scan

    def __call__(self, scans: Both[Scan]) -> Both[Scan]:
        fixed, moving = scans
        of_fixed = self.fixed_change or (self.change if self.of in ("fixed", "both") else None)
        return Both(
            of_fixed(fixed) if of_fixed else fixed,
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
    # where the patient lies, and how the scan is stored
    "origin lost": Disturbance(shifted(200, -300, 1000)),
    "prone": Disturbance(turned(2, 180)),
    "on the side": Disturbance(turned(2, 90)),
    "turn 60 about z": Disturbance(turned(2, 60)),
    "turn 20 about x, y and z": Disturbance(mapped(rotation(0, 20) @ rotation(1, 20) @ rotation(2, 20))),
    "oblique, stored as PSR": Disturbance(together(stored("PSR"), oblique((0, 20), (1, 15), (2, -25)))),
    "gantry tilt of 15": Disturbance(sheared(15)),
    # what of the patient is shown
    "upper part cut in fixed, lower in moving": Disturbance(cut(2, 0.2, 1), fixed_change=cut(2, 0, 0.8)),
    "cut on all sides": Disturbance(together(*(cut(axis, 0.2, 0.8) for axis in range(3)))),
    "one side alone": Disturbance(cut(0, 0.5, 1)),
    "narrow circle of -2000": Disturbance(circle(-2000, 0.65)),
    "narrow circle of 0": Disturbance(circle(0, 0.65)),
    "more below": Disturbance(longer(150, at_top=False)),
    "more above": Disturbance(longer(100, at_top=True)),
    "much air": Disturbance(padded(AIR_HU, (60, 60, 15))),
    "effusion": Disturbance(filled),
    # what the numbers are
    "voxels of 5 mm": Disturbance(thick(5, (0, 1, 2))),
    "soft kernel": Disturbance(soft),
    "clipped to -1000..400": Disturbance(clipped(-1000, 400), "both"),
    "0..4095": Disturbance(together(raised, clipped(0, 4095))),
    "8 bits": Disturbance(clipped(-1350, 150, (0, 255), whole=True)),
    "8 bits in both": Disturbance(clipped(-1350, 150, (0, 255), whole=True), "both"),
    "inverted 8 bits": Disturbance(clipped(-1000, 400, (255, 0), whole=True)),
    "inverted 8 bits in both": Disturbance(clipped(-1000, 400, (255, 0), whole=True), "both"),
    "8 bits of soft tissue in both": Disturbance(clipped(-160, 240, (0, 255), whole=True), "both"),
    "16 bits of -1024..1500": Disturbance(clipped(-1024, 1500, (0, 65535), whole=True)),
    "of a child in both": Disturbance(sized(0.45), "both"),
    "0 to 1 in both": Disturbance(clipped(-1000, 400, (0, 1)), "both"),
    "lungs alone, 0 around": Disturbance(lungs_alone(0)),
    "lungs alone in both, -1000 around": Disturbance(lungs_alone(-1000), "both"),
    # two at a time
    "turn 30 about y, lower part cut": Disturbance(together(turned(1, 30), _CUTS["lower part"])),
    "upper part cut, turn 30 about x": Disturbance(together(_CUTS["upper part"], turned(0, 30))),
    "side cut, turn 30 about z": Disturbance(together(_CUTS["side"], turned(2, 30))),
    "HU + 1024, canvas of 0": Disturbance(together(raised, padded(0))),
    "prone, HU + 1024, circle of 0": Disturbance(together(turned(2, 180), raised, circle(0))),
    "table, turn 30 about y": Disturbance(together(on_a_table, turned(1, 30))),
    "contrast medium, slices of 6 mm": Disturbance(together(with_contrast, thick(6))),
    "narrow circle of -2000, turn 30 about y": Disturbance(together(circle(-2000, 0.65), turned(1, 30))),
    "noise of 60 HU, lower part cut": Disturbance(together(noisy, _CUTS["lower part"]), "both"),
}

# wrong headers, of which the registration is to tell
SPACINGS: dict[str, Disturbance] = {
    "none": Disturbance(lambda scan: scan),
    **{f"slice spacing x {f} in {o}": Disturbance(misread(1, 1, f), o) for f in (2, 0.5) for o in ("moving", "fixed")},
    "spacing from front to back x 2": Disturbance(misread(1, 2, 1)),
    **{f"all spacings x {f}": Disturbance(misread(f, f, f)) for f in (0.6, 0.65, 1.5)},
}


def found_mask(image: sitk.Image) -> sitk.Image:
    """The lungs, for pairs without masks of their own."""
    mask = lung_mask(image)
    if mask is None:
        raise SystemExit("no lungs found in an undisturbed scan")
    return mask
