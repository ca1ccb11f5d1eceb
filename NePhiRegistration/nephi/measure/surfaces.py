"""Agreement of labels: overlap and distance of their surfaces."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..files.segments import named, region_names
from ..images.masks import signed_distance_mm
from ..images.sampling import nearest_through
from ..space.grid import Grid
from .quality import dice
from .report import SurfaceDistance

_PERCENTILE = 95.0
_REACHES = (1, 2, 4, 8, 16)  # radii in voxels within which the other surface is searched, in turn
_LOOKS = 4  # voxel reads that cost as much as a distance map takes per voxel
_AT_ONCE = 2**20  # of them


def surface_distance(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]) -> SurfaceDistance | None:
    """Distance of the surfaces of two masks (z, y, x) on one grid (spacing x first) in mm; None where one has none.

    A surface is the voxels of a mask with a neighbour outside; where the mask ends with the image, it is cut, and has
    no surface. ``mean``: over the voxels of both surfaces, of the distance to the other. ``hausdorff_95``: the larger
    of both directions' 95th percentiles.
    """
    either = a | b
    if not (a.any() and b.any()):
        return None
    box = tuple(
        slice(np.flatnonzero(along)[0], np.flatnonzero(along)[-1] + 1)
        for along in (either.any(tuple({*range(a.ndim)} - {axis})) for axis in range(a.ndim))
    )
    # one voxel of margin, so that faces of the box are not taken for the border of the image
    box = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, a.shape, strict=True))
    surfaces = [_surface(mask[box]) for mask in (a, b)]
    if not all(surface.any() for surface in surfaces):
        return None
    there, back = (_distances_mm(one, other, spacing_mm) for one, other in (surfaces, reversed(surfaces)))
    return SurfaceDistance(
        mean=float(np.concatenate([there, back]).mean()),
        hausdorff_95=float(max(np.percentile(distances, _PERCENTILE) for distances in (there, back))),
    )


def _surface(mask: np.ndarray) -> np.ndarray:
    inner = mask.copy()
    for axis in range(mask.ndim):
        first, last = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        inner[first] &= mask[last]
        inner[last] &= mask[first]
    return mask & ~inner


def _distances_mm(surface: np.ndarray, other: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Distance in mm (n,) from each voxel of a surface to another one (z, y, x), on a grid (spacing x first).

    Compared surfaces mostly lie close to each other: the other one is searched from the nearest voxels outwards.
    """
    border, least = max(_REACHES), min(spacing_mm)
    padded = np.pad(other, border)
    at = np.flatnonzero(np.pad(surface, border))
    distances, left = np.full(len(at), np.inf), np.arange(len(at))
    nearer_mm = -1.0
    for reach in _REACHES:
        steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * other.ndim, indexing="ij"), -1)
        steps = steps.reshape(-1, other.ndim)
        apart_mm = np.linalg.norm(steps * spacing_mm[::-1], axis=1)
        ring = np.flatnonzero((apart_mm > nearer_mm) & (apart_mm <= reach * least))
        if len(left) * len(ring) > _LOOKS * other.size:
            break
        ring = ring[np.argsort(apart_mm[ring], kind="stable")]
        over = steps[ring] @ np.array(padded.strides)  # a voxel is a byte
        for some in np.array_split(left, len(left) * len(ring) // _AT_ONCE + 1):
            hit = padded.reshape(-1)[at[some, None] + over]
            first = hit.argmax(1)
            met = hit[np.arange(len(some)), first]
            distances[some[met]] = apart_mm[ring][first[met]]
        left, nearer_mm = left[np.isinf(distances[left])], reach * least
    if len(left):
        distances[left] = _distance_map_mm(other, spacing_mm)[surface][left]
    return distances


def _distance_map_mm(surface: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    image = sitk.GetImageFromArray(surface.astype(np.uint8))
    image.SetSpacing(spacing_mm)
    distance = signed_distance_mm(image)
    return np.maximum(sitk.GetArrayViewFromImage(distance), 0.0)


def label_agreement(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, alignment: sitk.Transform | None
) -> list[dict]:
    """For every label of either map: its volumes, and the agreement of the moving label, warped, with the fixed one.

    Each is a dict of label (and name, where any has one), fixed_ml and moving_ml (of the label maps), dice, surface_mm
    and hausdorff_95_mm, and the same with ``before_``, after the alignment only, where that is known. Distances of what
    is missing are None.
    """
    grid, wanted = Grid.of(fixed), sitk.GetArrayViewFromImage(fixed)
    whole = sitk.GetArrayViewFromImage(moving)
    ways = {"before_": alignment, "": transform}
    warped = {
        when: nearest_through(moving, grid, through, 0.0) for when, through in ways.items() if through is not None
    }
    rows = []
    for label in sorted({*np.unique(wanted).tolist(), *np.unique(whole).tolist()} - {0}):
        here = wanted == label
        row: dict = {
            "label": int(label),
            "fixed_ml": float(here.sum()) * grid.voxel_volume_mm3 / 1000,
            "moving_ml": float((whole == label).sum()) * Grid.of(moving).voxel_volume_mm3 / 1000,
        }
        for when, moved in warped.items():
            there = moved == label
            apart = surface_distance(here, there, grid.spacing_mm)
            row[f"{when}dice"] = dice(here, there) if here.any() or there.any() else 0.0
            row[f"{when}surface_mm"] = None if apart is None else apart.mean
            row[f"{when}hausdorff_95_mm"] = None if apart is None else apart.hausdorff_95
        rows.append(row)
    return named(rows, region_names(moving) | region_names(fixed))
