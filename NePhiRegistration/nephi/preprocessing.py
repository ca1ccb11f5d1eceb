"""The pair before its maps are fitted: checked images, masks and the affine alignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .both import ROLES, Both, complete
from .errors import NephiError, notice
from .files.image import check_image
from .files.masks import check_mask
from .fitting.guidance import PointMaps
from .fitting.initial import affine_part
from .images.align import LARGEST_BREATH, LEAST_AGREEMENT, Alignment, align, beyond_breathing, masks_agreement
from .images.hounsfield import hounsfield, looks_like_ct, shown_box
from .images.image_pair import ImagePair
from .images.lungs import find_lungs
from .images.unseen import abrupt_boxes, unseen
from .settings import SimilaritySettings
from .space.grid import Box, Grid

_DIRECTIONS = ("from right to left", "from front to back", "from head to foot")  # x, y and z in LPS


@dataclass(frozen=True)
class Preprocessed:
    """Two images with masks, given or ``found`` by the lungs (for these roles), and their affine alignment.

    ``shown``, ``seen``: the images and masks without padding. ``blank``: masks of what these parts do not show.
    """

    masks: Both[sitk.Image | None]
    found: tuple[str, ...]
    shown: Both[sitk.Image]
    seen: Both[sitk.Image | None]
    blank: Both[sitk.Image | None]
    alignment: Alignment

    def pair(self, similarity: SimilaritySettings, excluded: Both[sitk.Image | None]) -> ImagePair:
        """The pair that the maps are fitted to, without the regions covered by the masks in ``excluded``."""
        affine, trusted = self.alignment.affine, not self.found
        excluded = self.shown.map(_within, excluded).map(_either, self.blank)
        return ImagePair.of(self.shown, self.seen, affine, similarity, trusted=trusted, excluded=excluded)


def checked_images(images: Both[sitk.Image]) -> Both[sitk.Image]:
    """Both images, CTs in HU. Raises NephiError if they can't be registered."""
    fixed, moving = images = images.map(lambda image, role: check_image(image, f"{role} image"), ROLES)
    if fixed.GetDimension() != moving.GetDimension():
        raise NephiError(
            f"the fixed image is {fixed.GetDimension()}D and the moving image {moving.GetDimension()}D; "
            "both must have the same dimension"
        )
    if _are_same(images):
        notice("The fixed and the moving image are identical, voxel by voxel; check that this is intended.")
    return images.map(hounsfield, ROLES)


def preprocess(
    images: Both[sitk.Image],
    given: Both[sitk.Image | None],
    method: str,
    initial: sitk.Transform | PointMaps | None,
    auto_mask: bool,
    report: Callable[[str], None],
) -> Preprocessed:
    """The masks of both images and their alignment by a ``method`` or from an ``initial`` transform.

    ``given``: masks. Where one is missing, lungs are segmented instead (``auto_mask``); they are dropped if they do not
    agree after the alignment. ``report`` is called with each phase. Raises NephiError for masks that do not fit their
    images.
    """
    report("masks")
    masks, found = _masks(images, given, auto_mask)
    report("alignment")
    shown, seen = _shown(images, masks)
    sides = _parts(shown, seen, abrupt_boxes(shown)) if method == "auto" and initial is None else (shown, seen)
    if initial is not None:
        alignment = Alignment(affine_part(initial, Grid.of(images.fixed), masks.fixed), "initial")
    elif found and method == "auto":
        # the lungs found may be the air of the room: they are no reason to skip the search
        alignment = align(sides[0], Both(None, None), method, complete(*sides[1]))
    else:
        alignment = align(*sides, method)
    lungs = complete(*masks)
    if lungs and (found or alignment.method == "search") and _disagree(lungs, alignment):
        if found:
            masks, found = _masks(images, given, auto_mask=False)
            shown, seen = _shown(images, masks)
            notice("The lungs found in the images do not agree after the alignment; they are not used.")
        else:
            notice("The masks do not agree after the alignment; check the masks and the alignment.")
    elif lungs and images.fixed.GetDimension() == 3 and all(looks_like_ct(image) for image in images):
        _check_sizes(alignment)
    cut = unseen(shown, alignment.affine)
    shown, seen = _parts(shown, seen, cut.map(lambda found: found[0]))
    blank = shown.map(_within, cut.map(lambda found: found[1]))
    return Preprocessed(masks, found, shown, seen, blank, alignment)


def _check_sizes(alignment: Alignment) -> None:
    """A notice if the lungs differ in size by more than breathing explains, for instance as a voxel spacing is
    wrong."""
    if not beyond_breathing(alignment.affine):
        return
    scales, larger, other = alignment.affine.scales(), *ROLES.swapped
    if scales.max() * scales.min() < 1:
        scales, larger, other = 1 / scales, other, larger
    along = scales > LARGEST_BREATH**0.5  # even an isotropic factor is estimated differently along each axis
    times = float(np.exp(np.log(scales[along]).mean()))
    where = "in all directions" if along.all() else " and ".join(np.array(_DIRECTIONS)[along])
    notice(
        f"The lungs of the {larger} image are {times:.1f} times as large {where} as those of the {other} image, more "
        "than breathing explains: is the voxel spacing in the headers right?"
    )


def _disagree(masks: Both[sitk.Image], alignment: Alignment) -> bool:
    return masks_agreement(masks, alignment.affine) < LEAST_AGREEMENT


def _are_same(images: Both[sitk.Image]) -> bool:
    """Whether both images have the same grid and the same values."""
    if not Grid.of(images.fixed).same_as(Grid.of(images.moving)):
        return False
    fixed, moving = images.map(sitk.GetArrayViewFromImage)
    return np.array_equal(fixed[::16], moving[::16]) and np.array_equal(fixed, moving)


def _masks(
    images: Both[sitk.Image], given: Both[sitk.Image | None], auto_mask: bool
) -> tuple[Both[sitk.Image | None], tuple[str, ...]]:
    """Both masks, checked, and the roles of the images whose mask is of detected lungs; both images have one or
    neither."""
    masks = images.map(
        lambda image, mask, role: None if mask is None else check_mask(mask, image, f"{role} mask"), given, ROLES
    )
    if not (auto_mask and images.fixed.GetDimension() == 3):
        return masks, ()
    cts = images.map(looks_like_ct)
    first = find_lungs(images.fixed) if masks.fixed is None else masks.fixed
    if first is None and not all(cts):  # nothing is said of the other image's lungs, nor are they used
        return masks, ()
    detected = Both(first, find_lungs(images.moving) if masks.moving is None else masks.moving)
    if complete(*detected) is None:
        without = [role for role, mask in zip(ROLES, detected, strict=True) if mask is None]
        if all(cts):
            notice(f"No lungs were found in the {' and the '.join(without)} image; the whole images are registered.")
        return masks, ()
    shapes = [role for role, ct, mask in zip(ROLES, cts, masks, strict=True) if mask is None and not ct]
    if shapes:
        notice(
            f"The lungs of the {' and the '.join(shapes)} image, which is not in Hounsfield units, were found by their "
            "shape; check the masks."
        )
    return detected, tuple(role for role, mask in zip(ROLES, masks, strict=True) if mask is None)


def _shown(
    images: Both[sitk.Image], masks: Both[sitk.Image | None]
) -> tuple[Both[sitk.Image], Both[sitk.Image | None]]:
    """CTs and masks cropped to what is no padding, so that padding does not drive the alignment."""
    return _parts(images, masks, images.map(shown_box))


def _parts(
    images: Both[sitk.Image], masks: Both[sitk.Image | None], boxes: Both[Box | None]
) -> tuple[Both[sitk.Image], Both[sitk.Image | None]]:
    """Both images and masks within boxes; whole where there is none, or where it would leave nothing of the mask."""

    def part(image: sitk.Image, mask: sitk.Image | None, box: Box | None) -> sitk.Image:
        if box is None or (mask is not None and not sitk.GetArrayViewFromImage(mask)[box].any()):
            return image
        start, stop = ([f(one) for one in reversed(box)] for f in (lambda s: s.start, lambda s: s.stop))
        return sitk.RegionOfInterest(image, [b - a for a, b in zip(start, stop, strict=True)], start)

    parts = images.map(part, masks, boxes)
    return parts, parts.map(_within, masks)


def _within(part: sitk.Image, mask: sitk.Image | None) -> sitk.Image | None:
    """A mask on the grid of a part of its image."""
    if mask is None or mask.GetSize() == part.GetSize():
        return mask
    start = mask.TransformPhysicalPointToIndex(part.GetOrigin())
    return sitk.RegionOfInterest(mask, part.GetSize(), start)


def _either(one: sitk.Image | None, other: sitk.Image | None) -> sitk.Image | None:
    if one is None or other is None:
        return other if one is None else one
    return sitk.Or(sitk.Cast(one != 0, sitk.sitkUInt8), other)
