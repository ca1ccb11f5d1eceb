"""What a user knows of a pair beyond its images, given to guide the registration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from ..both import ROLES, Both
from ..errors import NephiError, notice
from ..files.masks import check_mask, check_regions
from ..settings import BODY_MM
from ..space.grid import Grid

_LEAST_MM, _LEAST_VOXELS = 5.0, 8  # diameter of a ball, and voxels: a rigid body is as large as both, at least

Images = tuple[sitk.Image | None, sitk.Image | None]


class PointMaps(Protocol):
    """Two maps of points (n, d) in LPS mm; a ``Registration`` is one."""

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Fixed points -> moving points."""

    def inverse(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Moving points -> fixed points."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """What is known beyond the images; pairs are (fixed, moving). How strictly it is followed: ``GuidanceSettings``.

    ``landmarks_lps_mm``: points (n, d) of both images that correspond, row by row; ``landmarks_sd_mm`` (n,): their
    standard deviations, by default that of the settings. ``labels``: label maps of both images with the same labels,
    whose borders are brought together. ``excluded``: what must not count in either image, as lesions or implants.
    ``rigid``: labels on the fixed grid; each connected part of each moves as a rigid body of its own. ``volume_kept``:
    labels on the fixed grid where no volume changes. ``initial``: a transform of points, fixed -> moving, or a
    registration, that is refined; it takes the place of the alignment.
    """

    landmarks_lps_mm: tuple[np.ndarray, np.ndarray] | None = None
    landmarks_sd_mm: np.ndarray | None = None
    labels: tuple[sitk.Image, sitk.Image] | None = None
    excluded: Images = (None, None)
    rigid: sitk.Image | None = None
    volume_kept: sitk.Image | None = None
    initial: sitk.Transform | PointMaps | None = None

    def checked(self, images: Both[sitk.Image]) -> Guidance:
        """The same with every mask and label map on its image's grid, without parts that are too small for a body.

        Raises NephiError for landmarks that do not match or lie outside their images, deviations that are not above 0,
        labels in only one image, empty regions, masks on other grids and transforms of another dimension.
        """
        labels = None
        if self.labels is not None:
            labels = images.map(
                lambda image, one, role: check_regions(one, image, f"{role} guide labels"), Both(*self.labels), ROLES
            )
            _check_same_labels(labels)
        excluded = images.map(
            lambda image, mask, role: None if mask is None else check_mask(mask, image, f"{role} excluded mask"),
            Both(*self.excluded),
            ROLES,
        )
        rigid, kept = (
            None if one is None else check_regions(one, images.fixed, role)
            for one, role in ((self.rigid, "rigid mask"), (self.volume_kept, "volume mask"))
        )
        dimension = images.fixed.GetDimension()
        if isinstance(self.initial, sitk.Transform) and self.initial.GetDimension() != dimension:
            raise NephiError(
                f"the initial transform is {self.initial.GetDimension()}D, but the images are {dimension}D"
            )
        landmarks, deviations = self._landmarks(images)
        return replace(
            self,
            landmarks_lps_mm=landmarks,
            landmarks_sd_mm=deviations,
            labels=labels,
            excluded=excluded,
            rigid=None if rigid is None else _large_enough(rigid),
            volume_kept=kept,
        )

    def _landmarks(self, images: Both[sitk.Image]) -> tuple[tuple[np.ndarray, np.ndarray] | None, np.ndarray | None]:
        if self.landmarks_lps_mm is None:
            if self.landmarks_sd_mm is not None:
                raise NephiError("standard deviations are given, but no landmarks to guide the registration")
            return None, None
        points = Both(*(np.asarray(part, float) for part in self.landmarks_lps_mm))
        dimension, count = images.fixed.GetDimension(), len(points.fixed)
        if points.fixed.shape != points.moving.shape:
            raise NephiError(
                f"{count} fixed and {len(points.moving)} moving landmarks to guide the registration: row i of one "
                "must match row i of the other"
            )
        if points.fixed.ndim != 2 or not count or points.fixed.shape[1] != dimension:
            raise NephiError(f"landmarks to guide the registration must be (n, {dimension}), not {points.fixed.shape}")
        points.map(_check_inside, images, ROLES)
        if self.landmarks_sd_mm is None:
            return points, None
        deviations = np.asarray(self.landmarks_sd_mm, float)
        if deviations.shape != (count,) or not (np.isfinite(deviations) & (deviations > 0)).all():
            raise NephiError(f"give one standard deviation in mm, above 0, for each of the {count} guiding landmarks")
        return points, deviations


NOTHING = Guidance()


def _check_inside(points_lps_mm: np.ndarray, image: sitk.Image, role: str) -> None:
    index_xyz = Grid.of(image).to_index(points_lps_mm)
    outside = ~((index_xyz >= -0.5) & (index_xyz <= np.array(image.GetSize()) - 0.5)).all(1)  # NaN, too
    if outside.any():
        row = int(outside.argmax())
        raise NephiError(
            f"guiding landmark {row + 1} lies outside the {role} image, at "
            f"{', '.join(f'{v:.6g}' for v in points_lps_mm[row])} mm (LPS)"
        )


def _check_same_labels(labels: Both[sitk.Image]) -> None:
    numbers = labels.map(lambda one: set(np.unique(sitk.GetArrayViewFromImage(one)).tolist()))
    fixed, moving = numbers.map(lambda one: one - {0})
    for role, other in (("fixed", fixed - moving), ("moving", moving - fixed)):
        if other:
            some = ", ".join(map(str, sorted(other)[:6])) + (", ..." if len(other) > 6 else "")
            raise NephiError(f"guide labels: {some} only in the {role} label map; give labels that are in both")
    for role, one in zip(ROLES, numbers, strict=True):
        if len(one) == 1:
            raise NephiError(f"guide labels: {one.pop()} fills the whole {role} image, so that it has no border")


def bodies_lps_mm(labels: sitk.Image) -> list[tuple[int, np.ndarray]]:
    """Label and voxel centres (n, d) of each connected part of each label."""
    grid, found = Grid.of(labels), []
    boxes = sitk.LabelShapeStatisticsImageFilter()
    boxes.ComputePerimeterOff()
    boxes.Execute(labels)
    for label in boxes.GetLabels():
        box = np.array(boxes.GetBoundingBox(label)).reshape(2, -1)  # first index and size, x first
        part = sitk.RegionOfInterest(labels, box[1].tolist(), box[0].tolist()) == label
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(part, True))
        index_zyx = np.argwhere(parts)
        which = parts[tuple(index_zyx.T)]
        points = grid.to_lps_mm(index_zyx[which.argsort(kind="stable"), ::-1] + box[0])
        found += [(int(label), one) for one in np.split(points, np.bincount(which)[1:-1].cumsum())]
    return found


def _large_enough(rigid: sitk.Image) -> sitk.Image:
    """The rigid mask without connected parts that are too small for a body, as noise above a threshold, with a notice.

    How small does not depend on the voxels, but for large ones.
    """
    grid, bodies = Grid.of(rigid), bodies_lps_mm(rigid)
    d, radius_mm = grid.dimension, _LEAST_MM / 2 * min(1.0, grid.longest_side_mm / BODY_MM)
    ball = math.pi * radius_mm**2 if d == 2 else 4 / 3 * math.pi * radius_mm**3
    least = max(ball, _LEAST_VOXELS * grid.voxel_volume_mm3)
    small = [points for _, points in bodies if len(points) * grid.voxel_volume_mm3 < least * (1 - 1e-6)]
    limit = f"{least:{'.0f' if least >= 10 else '.2g'}} mm^{d}"
    if len(small) == len(bodies):
        raise NephiError(f"rigid mask: no connected part of it is as large as {limit}")
    if not small:
        return rigid
    notice(
        f"{len(small):,} of the {len(bodies):,} connected parts of the rigid mask will not be kept rigid: they are "
        f"smaller than {limit}."
    )
    array = sitk.GetArrayFromImage(rigid)
    index_xyz = np.rint(grid.to_index(np.concatenate(small))).astype(int)
    array[tuple(index_xyz.T[::-1])] = 0
    return grid.image(array)
