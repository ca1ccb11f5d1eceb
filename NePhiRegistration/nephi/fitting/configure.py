"""Settings that follow the pair: what is measured of both images, and what a preset becomes by it.

A preset says how much is spent, at most; which similarity, nodes, levels, points, steps and weight of regularity that
takes depends on the images. Pairs of CTs keep the preset's own values, which were chosen on chests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..both import Both
from ..config import of_kind
from ..images.coarse import blurred
from ..images.hounsfield import background, looks_like_ct, lungs_share, sparse
from ..images.image_pair import ImagePair
from ..settings import EVERY_ENTRY, PRESETS, Features, Level, Sampling, Settings, SimilaritySettings

_RELATED_MM = 6.0  # at which the intensities are compared: what is still misaligned blurs their relation
_SHOWN = 0.08  # of the window: what is darker in both images is taken for background
_BINS = 16
_LEAST_PLACES = 8 * _BINS
# share of the variance, and of what a rising line leaves of it, that a curve explains besides: in one contrast at most
# 0.03 and, where only outlines agree, 0.08; of two contrasts at least 0.09 and 0.16
_NOT_LINEAR, _LEFT = 0.05, 0.12
# share that is left by a rising curve: shading and noise bend the relation of one contrast (at most 0.001 was left),
# that of two contrasts falls somewhere (at least 0.01, of T1 and T2 0.02 and more)
_FALLS = 0.005
# voxels: thin structures attract each other over some distance, too
_BLURS = {"ncc": (0.0, 1.0, 3.0), "mi": (0.0, 2.0)}
_APART = 4.0  # voxels between two nodes
_FINEST_MM = 1.0
_FINE_MM = 2.5  # voxels from which on finer nodes tell nothing
_PART_MM = 300.0  # a head is no longer; of trunks, whose organs slide, the refinement made one worse
# of a side of an image that cuts through the body: how bright, and how much of it; a head is cut at the neck alone
_AIR, _CUT, _CUTS = 0.15, 0.25, 1
_MOST_OF_IT = 0.5  # of an organ alone, that its mask covers
_NODES_A_POINT, _MOST_POINTS = 4, 1500  # on liver MR, 3,000 points cost twice the time and gained nothing
# of an organ alone, before the refinement: nodes and points, weight of regularity and its points a step
_FIRST_NODES_MM, _FIRST_POINTS, _WEIGHT, _CHECKED = 6.0, 1500, 0.5, 128
_LEVELS = tuple(
    Level(start, Features(mm, 1), factor) for start, mm, factor in ((0.0, 8.0, 4.0), (0.15, 4.0, 2.0), (0.4, 2.0, 1.0))
)
# at nodes, at voxels, and where these are nodes; where nodes are further apart than fine voxels, rounds at nodes made
# known maps worse, and the last ones follow what such nodes cannot, as thin cortex; many at nodes are worth it to
# organs alone only: on a knee with a known map six ended at 0.47 mm, two at 0.31, the optimisation at 0.38
_ROUNDS, _ROUNDS_AT_VOXELS = {"fast": (2, 5, 0), "balanced": (6, 6, 0)}, (0, 6, 4)
_ROUNDS_BY_CURVE = (0, 6, 0)  # later ones follow what the curve between two contrasts gets wrong
_LUNGS = 0.1  # part of a CT, but for the air around it, that lungs take: 0.03 of an abdomen below them
_SOFT_TISSUE_HU = (-200.0, 250.0)  # from fat to tissue with contrast agent
# of the preset's steps, before rounds where voxels are nodes, which find the rest (in voxels of 1 mm, where there are
# none, Dice of two people lost 0.004)
_STEPS = 0.55


@dataclass(frozen=True)
class Character:
    """What is measured of a pair after its alignment, lengths as of a large body.

    ``ct``: which images are in Hounsfield units. ``linear``, ``rising``, ``curved``: share of the variance of one
    image's intensities that a rising line, a rising curve, or any curve, over the other's explains; the latter two of
    whichever explains more.
    ``alone``: both show an organ, all of which is compared, and nothing around it, as brains without their skulls, in
    fine voxels.
    ``detailed``: both are no larger than heads and show all of what they show, but for one side that cuts it, as the
    neck is; without masks, in voxels that are fine along each axis. ``nodes``: how many fit into what is compared, four
    voxels apart.
    """

    ct: Both[bool]
    linear: float
    rising: float
    curved: float
    alone: bool
    detailed: bool
    voxel_mm: float
    nodes: int
    dimension: int

    @classmethod
    def of(cls, pair: ImagePair) -> Character:
        sides_mm = np.ptp(pair.cube.to_cube(pair.region_lps_mm), axis=0) * pair.cube.unit_mm
        values = pair.images.map(background)
        shown = min(_shown(image, value) for image, value in zip(pair.images, values, strict=True))
        nodes = int(shown * np.prod(sides_mm / (_APART * pair.voxel_mm) + 1))
        alone = None not in values and bool(pair.voxel_mm <= _FINE_MM * pair.scale)
        alone = alone and all(pair.images.map(_all_of_it, pair.masks, values))
        coarsest_mm = max(side for image in pair.images for side in image.GetSpacing())
        small = bool(sides_mm.max() <= _PART_MM and coarsest_mm <= _FINE_MM * pair.scale)
        detailed = small and len(sides_mm) == 3 and pair.masks == Both(None, None)
        detailed = detailed and all(_sides_cut(*both) <= _CUTS for both in zip(pair.images, pair.windows, strict=True))
        voxel_mm = pair.voxel_mm / pair.scale
        ct = pair.images.map(looks_like_ct)
        return cls(ct, *_related(pair), alone, detailed, voxel_mm, nodes, len(sides_mm))

    @property
    def contrasts_differ(self) -> bool:
        if self.ct.fixed != self.ct.moving:
            return True
        besides = self.curved - self.linear
        return besides > max(_NOT_LINEAR, _LEFT * (1 - self.linear)) and self.curved - self.rising > _FALLS


def configured(pair: ImagePair, settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The settings as the pair needs them, and in words what was decided, and why.

    What was set by hand stays: entries that ``kept`` lists, and those that differ from the preset's. So do all entries
    of the preset ``paper``, for pairs of CTs, and where a model predicts.
    """
    s = settings
    if s.preset not in PRESETS or s.preset == "paper" or s.model is not None or EVERY_ENTRY in s.kept:
        return s, ()
    if not all(pair.images.map(looks_like_ct)):
        decisions = _decisions(Character.of(pair), s)
    elif pair.masks == Both(None, None) and (air := max(pair.images.map(lungs_share))) < _LUNGS:
        decisions = _of_soft_tissue(air)
    else:
        return s, ("both images are CTs: all values are the preset's",)
    out, said = s, []
    for entry, value, why in decisions:
        if _is_free(s, entry):
            out = _changed(out, entry, value)
            said += [why] if why else []
    return out, tuple(said)


def _of_soft_tissue(air: float) -> Iterator[tuple[str, Any, str]]:
    """Of CTs without lungs: the window that shows them takes the contrast of everything else."""
    low, high = _SOFT_TISSUE_HU
    yield "similarity.name", "ncc", f"similarity ncc: both images are CTs without lungs ({air:.0%} of them could be)"
    yield "similarity.window", _SOFT_TISSUE_HU, f"intensities from {low:g} to {high:g} HU"


def _decisions(is_: Character, s: Settings) -> Iterator[tuple[str, Any, str]]:
    """Entry, value and reason in words."""
    base = PRESETS[s.preset]
    if is_.contrasts_differ:
        name = "mi" if is_.dimension == 2 else "mind"
        kinds = "a CT and another image" if is_.ct.fixed != is_.ct.moving else "of different contrast"
        measured = f"a curve explains {is_.curved:.2f} of the variance, a line {is_.linear:.2f}"
        yield "similarity.name", name, f"similarity {name}: the images are {kinds} ({measured})"
    elif is_.alone:
        why = f"the images are of one contrast (a line explains {is_.linear:.2f} of the variance), an organ alone"
        yield "similarity.name", "ncc", f"similarity ncc: {why}"
    else:
        why = f"the images are of one contrast (a line explains {is_.linear:.2f} of the variance)"
        yield "similarity.name", s.similarity.name, f"similarity {s.similarity.name}: {why}"
    yield "smooth", 0.0, ""  # both measured on CTs of the chest alone
    yield "regularity.bending_mm", 0.0, ""
    if is_.contrasts_differ:
        if is_.alone and is_.dimension == 3:  # heads became worse: 0.82 instead of 0.77 mm
            yield from _refined(is_, s)
        return
    if is_.alone:
        yield "field.code_spacing_mm", _FIRST_NODES_MM, f"nodes {_FIRST_NODES_MM:g} mm apart, levels of 8, 4 and 2 mm"
        yield "levels", _LEVELS, ""
        yield "similarity.points", Sampling.of_number(_FIRST_POINTS), ""
        yield (
            "regularity.weight",
            _WEIGHT,
            f"regularity {_WEIGHT:g}, at {_CHECKED} points: the refinement does the rest",
        )
        yield "regularity.points", Sampling.of_number(_CHECKED), ""
    else:
        apart = min(base.field.code_spacing_mm, _APART * is_.voxel_mm)
        yield "field.code_spacing_mm", apart, f"nodes {apart:.3g} mm apart: voxels of {is_.voxel_mm:.2g} mm"
        points = int(np.clip(is_.nodes // _NODES_A_POINT, base.similarity.points.least, _MOST_POINTS))
        yield "similarity.points", Sampling.of_number(points), f"{points} points a step: room for {is_.nodes} nodes"
        if not is_.detailed and points > base.similarity.points.most and _is_free(s, "similarity.points"):
            steps = round(base.fit.iterations * base.similarity.points.most / points)
            yield "fit.iterations", steps, f"{steps} steps, for as many points in all as the preset's"
    yield from _refined(is_, s)


def _refined(is_: Character, s: Settings) -> Iterator[tuple[str, Any, str]]:
    """The refinement of organs alone and of heads, which compares intensities."""
    if not ((is_.alone or is_.detailed) and _is_free(s, "similarity.name")):
        return
    fast = s.fit.iterations < PRESETS["balanced"].fit.iterations
    # finer nodes than two voxels apart followed noise: 1.02 instead of 0.85 mm on a known map
    finest = float(max(_FINEST_MM, is_.voxel_mm))
    rounds = _ROUNDS["balanced" if is_.alone and not fast else "fast"]
    many, fine, last = rounds if 2 * finest <= _FINE_MM else _ROUNDS_AT_VOXELS
    if is_.contrasts_differ:
        many, fine, last = _ROUNDS_BY_CURVE
        yield "dense.curve", True, "the refinement takes one image to the other's contrast"
    elif last:
        steps = round(_STEPS * PRESETS[s.preset].fit.iterations)
        yield "fit.iterations", steps, f"{steps} steps before the refinement"
    at_nodes = f"{many} rounds of refinement at voxels of {2 * finest:.3g} mm, " if many else ""
    yield "dense.spacing_mm", finest, ""
    yield "dense.rounds", many, ""
    as_nodes = f", {last} more whose nodes they are" if last else ""
    yield "dense.fine_rounds", fine, f"{at_nodes}{fine} rounds of refinement at voxels of {finest:.3g} mm{as_nodes}"
    yield "dense.voxel_rounds", last, ""


def _is_free(s: Settings, entry: str) -> bool:
    """Whether an entry was left to the preset."""
    if any(entry == one or entry.startswith(f"{one}.") or one.startswith(f"{entry}.") for one in s.kept):
        return False
    base = PRESETS[s.preset]
    if entry == "similarity.name":  # another kind would lose what was set of this one
        same = replace(s.similarity, points=base.similarity.points) == base.similarity
        shared = {f"similarity.{name}" for name in SimilaritySettings.__dataclass_fields__}
        return same and not any(one.startswith("similarity.") and one not in shared for one in s.kept)
    part, _, name = entry.partition(".")
    mine, its = getattr(s, part), getattr(base, part)
    return (getattr(mine, name, None) == getattr(its, name)) if name else mine == its


def _changed(s: Settings, entry: str, value: Any) -> Settings:
    part, _, name = entry.partition(".")
    if not name:
        return replace(s, **{part: value})
    inner = getattr(s, part)
    if entry == "similarity.name":
        other = inner if value == inner.name else of_kind(inner, value)
        return replace(s, similarity=replace(other, blurs=_BLURS[value]) if value in _BLURS else other)
    return replace(s, **{part: replace(inner, **{name: value})})


def _shown(image: sitk.Image, value: float | None) -> float:
    """Part of an image that is not its background."""
    return 1.0 if value is None else float((sparse(image) != value).mean())


def _all_of_it(image: sitk.Image, mask: sitk.Image | None, background: float | None) -> bool:
    """Whether a mask, if there is one, covers most of what is not background: lungs do not cover a chest."""
    return mask is None or bool((sparse(mask)[sparse(image) != background] != 0).mean() > _MOST_OF_IT)


def _sides_cut(image: sitk.Image, window: tuple[float, float]) -> int:
    """How many sides of an image cut through what it shows: a good part of their voxels is brighter than air."""
    values, (low, high) = sitk.GetArrayViewFromImage(image), window
    sides = [values.take(end, axis) for axis in range(values.ndim) for end in (0, -1)]
    return sum(bool((side > low + _AIR * (high - low)).mean() > _CUT) for side in sides)


def _related(pair: ImagePair) -> tuple[float, float, float]:
    """Shares of the variance that a rising line, a rising curve and any curve explain, over places that both images
    show."""
    grid = pair.working_grid(_RELATED_MM)
    values = [torch.from_numpy(np.asarray(pair.seen_on(grid, way, 0.0)[0][:])) for way in (0, 1)]
    smooth = blurred(torch.stack(values))
    use = (smooth.amax(0) > _SHOWN) & torch.from_numpy(pair.both_see(grid))
    a, b = smooth[:, use].double().numpy()
    if len(a) < _LEAST_PLACES or not (a.std() > 0 and b.std() > 0):
        return 1.0, 1.0, 1.0  # nothing tells them apart
    linear = max(0.0, float(np.corrcoef(a, b)[0, 1])) ** 2
    rising, curved = np.maximum(_explained(a, b), _explained(b, a))
    return linear, max(linear, float(rising)), max(linear, float(curved))


def _explained(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Share of y's variance that lies between the means of bins of x, neighbours joined until they rise, and of all:
    the correlation ratio, adjusted for its bins."""
    bins = np.digitize(x, np.unique(np.quantile(x, np.linspace(0, 1, _BINS + 1)[1:-1])))
    counts = np.bincount(bins)
    sums, counts = np.bincount(bins, y)[counts > 0], counts[counts > 0]
    joined: list[np.ndarray] = []  # sums and counts
    for part in np.stack([sums, counts], -1):
        joined.append(part)
        while len(joined) > 1 and joined[-2][0] / joined[-2][1] >= joined[-1][0] / joined[-1][1]:
            joined[-2:] = [joined[-2] + joined[-1]]

    def share(sums: np.ndarray, counts: np.ndarray) -> float:
        between = (counts * (sums / counts - y.mean()) ** 2).sum() / (len(y) * y.var())
        return float(1 - (1 - between) * (len(y) - 1) / (len(y) - len(counts)))

    return share(*np.stack(joined, -1)), share(sums, counts)
