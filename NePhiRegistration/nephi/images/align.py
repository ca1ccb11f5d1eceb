"""Alignment before the field: one affine map from the fixed to the moving image, in LPS mm."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import SimpleITK as sitk

from ..both import Both, complete
from ..errors import NephiError, collected_notices, notice
from ..files.transform import as_affine, read_affine
from ..settings import ALIGNMENTS, BODY_MM
from ..space.affine import Affine
from ..space.grid import Grid
from .masks import mask_box
from .search import Search

_SETTLED_MM = 13.0  # that the refinement may move the masks' moments; right ones were moved by 3-9, wrong by 17-51
LEAST_AGREEMENT = 0.4  # of lungs that were found, as a Dice coefficient after the alignment
_LEAST_LEAD = 0.03  # of the best start's score before that of the best one elsewhere
_LARGEST_SCALE = 2.0
# Of lungs along an axis: what breathing can do. From full exhalation to full inhalation the diaphragm moves by up to
# 10 cm, which makes lungs of about 20 cm 1.5 times as long; along the other axes they change less, as the chest's girth
# does by about a tenth.
LARGEST_BREATH = 1.6
_LARGEST_GIRTH = 1.3  # along all axes alike


@dataclass(frozen=True)
class Alignment:
    """One affine map from fixed to moving points, the method that made it, and of a search: what it started from, in
    words, its score (0..1), and its lead over the best start elsewhere (the whole score where there is none)."""

    affine: Affine
    method: str
    start: str | None = None
    score: float | None = None
    lead: float | None = None


def align(
    images: Both[sitk.Image],
    masks: Both[sitk.Image | None],
    method: str,
    lungs: Both[sitk.Image] | None = None,
) -> Alignment:
    """The alignment by a method.

    - ``none``: identity.
    - ``centres``: the masks' centres of mass on each other (without masks, the images' centres).
    - ``moments``: centres and the standard deviation along each axis of the fixed image's frame; for
      lungs, whose inhale is larger than their exhale.
    - ``affine``: twelve parameters by mutual information, from ``moments`` or ``centres``.
    - ``auto``: ``moments`` where masks are given on both sides and the images confirm it: refined on images and
      masks it stays where it is. Else ``search``, over turns and translations with partial overlap; its start is
      refined to twelve parameters. ``lungs`` that were found in the images, and may be none, are no masks; where
      they do not agree after the search, or scale by more than breathing does, it is tried whether the images fit
      better by their moments.
    - a path: a linear transform file, fixed -> moving (.tfm, .txt, .h5, .mat as ITK reads them).
    """
    dimension, given = images.fixed.GetDimension(), complete(*masks)
    if method == "auto":
        return _automatic(images, given, lungs)
    if method not in ALIGNMENTS:
        return Alignment(read_affine(method, dimension), "given")
    if method == "none":
        return Alignment(Affine.identity(dimension), method)
    if method == "moments" and not given:
        raise NephiError("alignment 'moments' needs a mask of both images; give masks or use --align centres")
    if not given:
        start = Affine(np.eye(dimension), _centre(images.moving) - _centre(images.fixed))
        return Alignment(start if method == "centres" else _affine(images, None, start), method)
    axes = Grid.of(images.fixed).axes
    (cf, sf), (cm, sm) = given.map(lambda mask: _moments(mask, axes))
    scale = np.ones(dimension)
    if method != "centres":
        scale = np.clip(sm / sf, 1 / _LARGEST_SCALE, _LARGEST_SCALE)
        if not np.allclose(scale, sm / sf):
            notice(
                f"The masks differ in extent by more than {_LARGEST_SCALE:g} times along an axis; the alignment "
                "scales by no more than that."
            )
    matrix = axes @ np.diag(scale) @ axes.T
    start = Affine(matrix, cm - matrix @ cf)
    return Alignment(_affine(images, given.fixed, start) if method == "affine" else start, method)


def _centre(image: sitk.Image) -> np.ndarray:
    return Grid.of(image).corners_lps_mm().mean(0)


def _automatic(images: Both[sitk.Image], masks: Both[sitk.Image] | None, lungs: Both[sitk.Image] | None) -> Alignment:
    search = Search(images, masks)
    starts = {"the headers": Affine.identity(images.fixed.GetDimension())}
    if masks:
        with collected_notices() as notes:
            moments = align(images, Both(*masks), "moments")
        if search.stays(moments.affine, _SETTLED_MM):
            for note in notes:
                notice(note)
            return moments
        starts["the masks' moments"] = moments.affine
    found = search.best(starts)
    if lungs:
        with collected_notices():
            own = align(images, Both(*lungs), "moments").affine
        # the search does not reach what differs by more than patients do, as by a wrong voxel spacing
        if masks_agreement(lungs, found.affine) < LEAST_AGREEMENT or beyond_breathing(own):
            found = search.better(found, "the lungs' moments", own)
    if found.lead < _LEAST_LEAD:
        notice("The alignment is uncertain: another one fits almost as well; check the result, or use --align centres.")
    return Alignment(found.affine, "search", found.start, found.score, found.lead)


def beyond_breathing(affine: Affine) -> bool:
    """Whether a map of lungs scales by more than breathing does, along an axis or along all of them."""
    scales = affine.scales()
    return any(s.max() > LARGEST_BREATH or s.min() > _LARGEST_GIRTH for s in (scales, 1 / scales))


def masks_agreement(masks: Both[sitk.Image], affine: Affine) -> float:
    """Dice coefficient of the masks after an alignment, on about 48 voxels per axis of the fixed image."""
    grid = Grid.of(masks.fixed)
    coarse = grid.coarsened(grid.longest_side_mm / 48)
    nearest, transforms = sitk.sitkNearestNeighbor, (None, affine.transform())
    a, b = (
        sitk.GetArrayFromImage(coarse.resample(mask, transform, nearest)) != 0
        for mask, transform in zip(masks, transforms, strict=True)
    )
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def _moments(mask: sitk.Image, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass in LPS mm and standard deviation along ``axes``, from the mask's projections along its axes."""
    grid = Grid.of(mask)
    box = mask_box(mask)
    array = sitk.GetArrayViewFromImage(mask)[box]
    d = grid.dimension
    first, second = np.zeros(d), np.zeros((d, d))
    for i, j in combinations(range(d), 2):  # axes of the array, z first
        others = tuple(axis for axis in range(d) if axis not in (i, j))
        counts = array.sum(others, dtype=np.uint32).astype(float)
        total, along = counts.sum(), [np.arange(n, dtype=float) for n in counts.shape]
        for axis, place, marginal in ((i, along[0], counts.sum(1)), (j, along[1], counts.sum(0))):
            first[axis], second[axis, axis] = marginal @ place / total, marginal @ place**2 / total
        second[i, j] = second[j, i] = along[0] @ counts @ along[1] / total
    first, second = first[::-1], second[::-1, ::-1]  # x first
    mean = first + [part.start for part in reversed(box)]
    step = axes.T @ grid.axes * np.asarray(grid.spacing_mm)
    covariance = step @ (second - np.outer(first, first)) @ step.T
    return grid.to_lps_mm(mean), np.sqrt(np.maximum(np.diag(covariance), 1e-6))


def _affine(images: Both[sitk.Image], fixed_mask: sitk.Image | None, start: Affine) -> Affine:
    """Mutual information's optimum from ``start``; raises NephiError if the optimisation fails."""
    fixed, moving = images
    scale = min(1.0, Grid.of(fixed).longest_side_mm / BODY_MM)  # of all lengths, for small bodies
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, 20000 / np.prod(fixed.GetSize())), seed=1)
    if fixed_mask is not None:
        around = [max(1, round(10 * scale / s)) for s in fixed.GetSpacing()]
        method.SetMetricFixedMask(sitk.BinaryDilate(fixed_mask, around))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(scale, 1e-4 * scale, 200, relaxationFactor=0.7)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2 * scale, scale])
    transform = start.transform()
    transform.SetCenter(_centre(fixed))
    transform.SetTranslation(start(_centre(fixed)) - _centre(fixed))
    method.SetInitialTransform(transform, inPlace=True)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # several would add the metric's parts in any order, so that no two runs ended alike; the method's own number does
    # not reach the metric
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        method.Execute(sitk.Cast(fixed, sitk.sitkFloat32), sitk.Cast(moving, sitk.sitkFloat32))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise NephiError(f"affine alignment failed ({reason}); use --align moments, centres or none") from None
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return as_affine(transform)
