"""Guidance beside what else takes part: other guidance, a refinement, sliding, scans that are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from detail import GRID, MM, moved_slice
from nephi import Guidance, register
from nephi.both import Both
from nephi.fitting.optimise import Optimisation
from nephi.fitting.regularity import make_regulariser
from nephi.fitting.similarity import make_similarity
from nephi.fitting.sliding import Side, border_of
from nephi.images.image_pair import ImagePair
from nephi.maps.jacobian import exact_jacobian
from nephi.measure.quality import dice
from nephi.report.guidance import measured_guidance
from nephi.settings import PRESETS, DenseSettings
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

FAST = PRESETS["fast"]
ALONE = replace(FAST, align="none", kept=("all",), fit=replace(FAST.fit, iterations=30))
REFINED = replace(ALONE, dense=DenseSettings(rounds=8, fine_rounds=6, voxel_rounds=2, spacing_mm=MM))


def disc(grid: Grid, centre_lps_mm, radius_mm: float) -> sitk.Image:
    away = np.linalg.norm(grid.slab_lps_mm(0, grid.shape[0]) - centre_lps_mm, axis=1)
    return grid.image((away < radius_mm).reshape(grid.shape).astype(np.uint8))


def points_of(mask: sitk.Image) -> np.ndarray:
    return Grid.of(mask).to_lps_mm(np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1])


def distances(a, b) -> np.ndarray:
    return np.linalg.norm(np.asarray(a) - b, axis=-1)


def from_rigid_mm(through, points: np.ndarray) -> float:
    """How far the farthest point ends from the best rigid motion in the plane."""
    start, end = points - points.mean(0), through(points)
    end = end - end.mean(0)
    turn = np.arctan2((start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]).sum(), (start * end).sum())
    c, s = np.cos(turn), np.sin(turn)
    return float(distances(start @ [[c, s], [-s, c]], end).max())


@pytest.fixture(scope="module")
def moved():
    return moved_slice()


# ---- the refinement voxel by voxel ----------------------------------------------------------------------


def test_a_refinement_keeps_what_guided_and_mends_the_rest(moved):
    fixed, moving, a, b = moved
    volume, given = disc(GRID, (84.0, 80.0), 12.0), np.arange(len(a)) % 25 == 0
    guidance = Guidance(
        landmarks_lps_mm=(a[given], b[given]), landmarks_sd_mm=np.full(given.sum(), 0.5), volume_kept=volume
    )
    before, after = (register(fixed, moving, settings=s, guidance=guidance) for s in (ALONE, REFINED))
    errors = [distances(result.forward(a), b) for result in (before, after)]
    assert errors[1][~given].mean() < 0.7 * errors[0][~given].mean()
    assert errors[1][given].max() < 0.5
    assert distances(after.inverse(b), a)[given].max() < 0.5
    assert np.abs(after.jacobian_determinant(points_of(volume)) - 1).mean() < 0.02


def test_a_rigid_body_stays_so_in_a_refinement(moved):
    fixed, moving, a, b = moved
    body = disc(GRID, (60.0, 60.0), 8.0)
    before, after = (register(fixed, moving, settings=s, guidance=Guidance(rigid=body)) for s in (ALONE, REFINED))
    points = points_of(body)
    for inverse in (False, True):
        ends = [
            from_rigid_mm(r.inverse, r.forward(points)) if inverse else from_rigid_mm(r.forward, points)
            for r in (before, after)
        ]
        assert ends[1] < min(ends[0] + 0.1, 0.5)
    far = distances(a, (60.0, 60.0)) > 40
    assert distances(after.forward(a), b)[far].mean() < 0.8 * distances(before.forward(a), b)[far].mean()


def _dice(result, labels: tuple[sitk.Image, sitk.Image]) -> float:
    one, other = (sitk.GetArrayFromImage(x) for x in (labels[0], result.warp(labels[1], labels=True)))
    return float(np.mean([dice(one == n, other == n) for n in np.unique(one) if n]))


def test_labels_finer_than_the_nodes_do_not_keep_a_refinement_from_mending(moved):
    fixed, moving, a, b = moved
    tissues = [
        GRID.image(np.digitize(sitk.GetArrayFromImage(image), [0.2, 0.5]).astype(np.uint8)) for image in (fixed, moving)
    ]
    alone, guided = (
        register(fixed, moving, settings=REFINED, guidance=Guidance(labels=labels)) for labels in (None, tissues)
    )
    assert _dice(guided, tissues) > _dice(alone, tissues) - 0.01
    assert distances(guided.forward(a), b).mean() < 1.3 * distances(alone.forward(a), b).mean()  # 1.7 where it held


def test_a_refinement_keeps_labels_together_that_the_images_do_not(moved):
    """Images that are the same ask for no motion, labels for one of two voxels."""
    fixed = moved[0]
    labels = disc(GRID, (64.0, 64.0), 24.0), disc(GRID, (68.0, 64.0), 24.0)
    before, after = (register(fixed, fixed, settings=s, guidance=Guidance(labels=labels)) for s in (ALONE, REFINED))
    assert _dice(after, labels) > _dice(before, labels) - 0.01


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_no_refinement_and_no_window_sees_what_is_excluded(moved, role):
    """The result is the same to the bit, whatever lies there."""
    lesion = disc(GRID, (56.0, 64.0), 14.0)
    inside = sitk.GetArrayViewFromImage(lesion) != 0
    excluded = Both(lesion, None) if role == "fixed" else Both(None, lesion)
    ends = []
    for values in (0.5, 9 * np.random.default_rng(0).random(int(inside.sum()))):
        images = [sitk.GetArrayFromImage(image) for image in moved[:2]]
        images[int(role == "moving")][inside] = values
        few = replace(REFINED, fit=replace(REFINED.fit, iterations=5))
        result = register(*map(GRID.image, images), settings=few, guidance=Guidance(excluded=excluded))
        ends.append(result.forward(moved[2]))
    assert np.array_equal(*ends)


def test_the_report_knows_how_far_a_refinement_took_an_initial_transform(moved):
    fixed, moving, a, _ = moved
    few = replace(REFINED, align="auto", fit=replace(REFINED.fit, iterations=5))
    result = register(fixed, moving, settings=few, guidance=Guidance(initial=sitk.TranslationTransform(2, (1.0, 2.0))))
    told = measured_guidance(result, result.transform())["initial"]["refined_mm"]
    assert told["mean"] == pytest.approx(distances(result.forward(a), a + [1.0, 2.0]).mean(), rel=0.3)


# ---- scans that are cut ---------------------------------------------------------------------------------


def test_labels_that_one_scan_cuts_off_do_not_pull_the_others_border_to_its_side(phantom_2d):
    p, rows = phantom_2d, 86  # through the lungs
    settings = replace(FAST, fit=replace(FAST.fit, iterations=150))
    fixed, mask = p.fixed[:, :rows], p.fixed_mask[:, :rows]
    a, b = p.fixed_landmarks_lps_mm, p.moving_landmarks_lps_mm
    seen = Grid.of(fixed).to_index(a)[:, 1] <= rows - 1
    plain, guided = (
        distances(
            register(
                fixed, p.moving, fixed_mask=mask, moving_mask=p.moving_mask, settings=settings, guidance=g
            ).forward(a),
            b,
        )[seen].mean()
        for g in (None, Guidance(labels=(mask, p.moving_mask)))
    )
    assert guided < 2 * plain < 3


# ---- sliding --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sliding():
    return make_phantom(dimension=2, seed=3, sliding=True)


def test_volumes_are_those_of_each_side_of_a_border_that_slides(sliding):
    """A region along the border: the loss is that of the exact determinants, without the jump."""
    p, settings, device = sliding, replace(FAST, sliding=True), torch.device("cpu")
    distance = sitk.SignedMaurerDistanceMap(p.fixed_mask, False, False, True)
    region = sitk.Cast(sitk.Abs(distance) < 3, sitk.sitkUInt8)
    masks = Both(p.fixed_mask, p.moving_mask)
    pair = ImagePair.of(Both(p.fixed, p.moving), masks, Affine.identity(2), settings.similarity)
    with_its = make_similarity(settings.similarity), make_regulariser(settings.regularity)
    generator, guidance = torch.Generator().manual_seed(0), Guidance(volume_kept=region)
    side = Side(border_of(pair, pair.cube, device))
    for _ in ("within", "around"):
        optimisation = Optimisation(pair, settings, None, *with_its, device, guidance, side)
        with torch.no_grad():
            code = optimisation.code.requires_grad_(False).local_code
            code[:, :2] = 0.1 * torch.randn(code[:, :2].shape, generator=generator)
        maps, side = side.whole(optimisation.maps), Side(side.border, optimisation.maps)
    (guide,) = (guide.of for guide in optimisation.objective.guides if guide.name == "volume")  # of one map
    (points,) = (tensor[0] for tensor in guide.draw(1, generator))
    with torch.no_grad():
        loss = float(guide.penalty(maps.bound(), maps(points), points))
    centres = points[0].reshape(-1, 3, 2)[:, 0].detach().requires_grad_()
    within = maps.is_within(centres)[:, 0]
    assert within.any() and not within.all()
    change = torch.linalg.det(exact_jacobian(maps.forward(centres), centres, create_graph=False)).log().abs()
    excess = (change / guide.tolerance - 0.5).clamp(min=0)
    expected = float((((1 + excess.square()).sqrt() - 1) * guide.tolerance).mean())
    assert loss == pytest.approx(expected / 2, rel=0.3)  # of both maps; the inverse ones move nothing yet


def test_landmarks_on_both_sides_of_a_border_that_slides_end_as_they_were_given(sliding, short):
    p, grid, rng = sliding, Grid.of(sliding.fixed), np.random.default_rng(1)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(p.fixed_mask, False, False, True))
    body = p.motion.within(grid.slab_lps_mm(0, grid.shape[0])).reshape(grid.shape)
    wall, beside = ~body & (distance > 2), grid.image((body & (distance > 2)).astype(np.uint8))
    # where organs without a border of their own slide along the wall, the outer map is continuous
    apart = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(beside, False, False, True)) > 15
    lungs_and_wall = [np.argwhere(side & (np.abs(distance) < 10)) for side in (distance < -2, wall & apart)]
    fixed = grid.to_lps_mm(np.concatenate([rng.permutation(index)[:12] for index in lungs_and_wall])[:, ::-1])
    moving = p.forward(fixed)
    guidance = Guidance(landmarks_lps_mm=(fixed, moving), landmarks_sd_mm=np.full(len(fixed), 0.8))
    masks = {"fixed_mask": p.fixed_mask, "moving_mask": p.moving_mask}
    result = register(p.fixed, p.moving, settings=replace(short(200), sliding=True), guidance=guidance, **masks)
    ends = distances(result.forward(fixed), moving), distances(result.inverse(moving), fixed)
    for lungs, on_wall in (each.reshape(2, 12) for each in ends):
        assert lungs.max() <= 0.8 and on_wall.mean() <= 0.8  # of the wall some are near what slides without a border
    assert result.jacobian_determinant(grid.to_lps_mm(np.argwhere(np.abs(distance) < 10)[:, ::-1])).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("slides", [False, True])
def test_everything_together_ends_as_it_was_given(sliding, slides, short):
    p, grid = sliding, Grid.of(sliding.fixed)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(p.fixed_mask, True, False, True))
    deep = grid.to_lps_mm(np.argwhere(distance > 14)[:, ::-1])
    first = deep[0]
    second = deep[distances(deep, first).argmax()]
    third = deep[np.minimum(distances(deep, first), distances(deep, second)).argmax()]
    body, volume, lesion = (disc(grid, centre, 12.0) for centre in (first, second, third))  # on one side of the border
    a, b = p.fixed_landmarks_lps_mm, p.moving_landmarks_lps_mm
    given = (np.arange(len(a)) % 3 == 0) & (distances(a, first) > 27) & (distances(a, second) > 27)
    masks = {"fixed_mask": p.fixed_mask, "moving_mask": p.moving_mask}
    guidance = Guidance(
        landmarks_lps_mm=(a[given], b[given]),
        landmarks_sd_mm=np.full(given.sum(), 0.8),
        labels=(p.fixed_mask, p.moving_mask),
        excluded=(lesion, None),
        rigid=body,
        volume_kept=volume,
        initial=register(p.fixed, p.moving, settings=short(10), **masks),
    )
    result = register(p.fixed, p.moving, settings=replace(short(200), sliding=slides), guidance=guidance, **masks)
    assert distances(result.forward(a), b)[given].max() <= 0.8
    assert distances(result.inverse(b), a)[given].max() <= 0.8
    assert from_rigid_mm(result.forward, points_of(body)) <= 0.2
    assert from_rigid_mm(result.inverse, result.forward(points_of(body))) <= 0.2
    kept = result.jacobian_determinant(points_of(volume))
    assert abs(kept.mean() - 1) < 0.01 and np.abs(kept - 1).max() < 0.1
    assert result.jacobian_determinant(points_of(p.fixed_mask)).min() > 0
