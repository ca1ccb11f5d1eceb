"""What is known beyond the images guides a registration: landmarks, labels, exclusions, regions, a transform."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi import Guidance, NephiError, Registration, register, registration
from nephi.both import Both
from nephi.cli import main
from nephi.errors import collected_notices
from nephi.fitting.guidance import bodies_lps_mm
from nephi.fitting.guides import Rigid
from nephi.fitting.initial import MotionAround
from nephi.images.image_pair import ImagePair
from nephi.maps.consensus import as_optimised
from nephi.measure.report import Report
from nephi.report.write import write_all
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.space.rigid import rigidly_moved
from nephi.synthetic.phantom import make_phantom


def run(phantom, settings, guidance=None, **options):
    given = {"fixed_mask": phantom.fixed_mask, "moving_mask": phantom.moving_mask} | options
    images = given.pop("fixed", phantom.fixed), given.pop("moving", phantom.moving)
    return register(*images, settings=settings, guidance=guidance, device="cpu", **given)


def distances(a, b):
    return np.linalg.norm(np.asarray(a) - b, axis=-1)


def ball(image: sitk.Image, centre_lps_mm, radius_mm: float) -> sitk.Image:
    """Bytes on the image's grid: 1 in a ball."""
    grid = Grid.of(image)
    inside = distances(grid.slab_lps_mm(0, grid.shape[0]), centre_lps_mm) <= radius_mm
    return grid.image(inside.reshape(grid.shape).astype(np.uint8))


def painted(image: sitk.Image, where: sitk.Image, values) -> sitk.Image:
    """The image with other values where a mask is not 0."""
    array, inside = sitk.GetArrayFromImage(image), sitk.GetArrayViewFromImage(where) != 0
    array[inside] = values
    return Grid.of(image).image(array)


def points_in(mask: sitk.Image, n: int = 2000) -> np.ndarray:
    inside = np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1]
    return Grid.of(mask).to_lps_mm(inside[np.random.default_rng(0).integers(len(inside), size=n)])


def middle_of(phantom) -> np.ndarray:
    """A place in the lungs, far from their border."""
    distance = sitk.SignedMaurerDistanceMap(phantom.fixed_mask, insideIsPositive=True, useImageSpacing=True)
    index_zyx = np.unravel_index(sitk.GetArrayViewFromImage(distance).argmax(), Grid.of(phantom.fixed).shape)
    return Grid.of(phantom.fixed).to_lps_mm(index_zyx[::-1])


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def phantom(request, phantom_2d):
    return phantom_2d if request.param == 2 else make_phantom((56, 50, 50), 5.7)


@pytest.fixture(scope="module")
def plain(phantom, short) -> Registration:
    """Without guidance."""
    return run(phantom, short(80))


# ---- landmarks ------------------------------------------------------------------------------------------


def test_given_landmarks_end_within_their_deviation_and_the_others_are_no_worse(phantom, plain, short):
    a, b = phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm
    given, sd_mm = np.arange(len(a)) % 3 == 0, 0.6
    guidance = Guidance(landmarks_lps_mm=(a[given], b[given]), landmarks_sd_mm=np.full(given.sum(), sd_mm))
    guided = run(phantom, short(80), guidance)
    before, after = (distances(result.forward(a), b) for result in (plain, guided))
    assert before[given].max() > sd_mm >= after[given].max()
    assert after[~given].mean() <= before[~given].mean()
    assert distances(guided.inverse(b), a)[given].max() <= sd_mm


def test_from_a_spoilt_start_landmarks_help_the_others(phantom_2d, short, monkeypatch):
    """Those between them are nearer to the truth than if the landmarks only pull."""
    a, b = phantom_2d.fixed_landmarks_lps_mm, phantom_2d.moving_landmarks_lps_mm
    given, no_masks = np.arange(len(a)) % 3 == 0, {"fixed_mask": None, "moving_mask": None, "auto_mask": False}
    guidance = Guidance((a[given], b[given]), initial=sitk.TranslationTransform(2, [50.0, 50.0]))

    def errors():
        return distances(run(phantom_2d, short(120), guidance, **no_masks).forward(a), b)

    started = errors()
    monkeypatch.setattr(MotionAround, "of", lambda *_: None)
    pulled = errors()
    assert started[given].max() <= 1
    assert started[~given].mean() < 0.7 * pulled[~given].mean()  # 0.3


def test_maps_start_with_the_motion_of_landmarks_less_the_farther_they_are():
    half_extents, reach = torch.ones(2), 0.5  # 80 mm
    points = torch.tensor([[0.0, 0.0], [0.01, 0.0], [0.0, 0.01]])
    for sd_mm in (0.1, 80.0):
        motion = MotionAround(torch.stack([points, points + 0.2]), torch.full((3,), sd_mm), reach / 80, half_extents)
        there = motion.forward(torch.tensor([[0.0, 0.0], [reach, 0.0], [3.0, 0.0]]))[:, 1]
        assert there[0] > there[1] > there[2] and there[2] < 1e-4
        assert (there[0] > 0.19) == (sd_mm < 1)
    near = points + 0.02
    motion = MotionAround(torch.stack([points, near]), torch.full((3,), 0.1), reach / 80, half_extents)
    assert (motion.inverse(motion.forward(points)) - points).abs().max() < 1e-3


def nothing_to_see(image: sitk.Image) -> sitk.Image:
    """All of one value, but for a corner: an image of one value alone is refused."""
    array = np.zeros(Grid.of(image).shape, np.float32)
    array[(0,) * array.ndim] = 1
    return Grid.of(image).image(array)


def test_images_that_show_nothing_are_registered_by_landmarks_alone(phantom, short):
    a, b = phantom.fixed_landmarks_lps_mm[:20], phantom.moving_landmarks_lps_mm[:20]
    blank = {"fixed": nothing_to_see(phantom.fixed), "moving": nothing_to_see(phantom.moving)}
    result = run(phantom, short(100), Guidance(landmarks_lps_mm=(a, b)), **blank)
    assert distances(result.affine(a), b).max() > 2
    assert distances(result.forward(a), b).max() <= 1 and distances(result.inverse(b), a).max() <= 1


def test_a_landmark_of_large_deviation_pulls_less(phantom_2d, short):
    a, b = phantom_2d.fixed_landmarks_lps_mm[:1], phantom_2d.moving_landmarks_lps_mm[:1] + [15.0, 0.0]  # wrong
    strict, loose = (
        run(phantom_2d, short(60), Guidance(landmarks_lps_mm=(a, b), landmarks_sd_mm=np.array([sd]))).forward(a)
        for sd in (0.5, 30.0)
    )
    assert distances(strict, b) < 1 and distances(loose, b) > 12


# ---- labels ---------------------------------------------------------------------------------------------


def label_maps(phantom, count: int) -> tuple[sitk.Image, sitk.Image]:
    """The lungs, cut into slabs from the head to the feet, in both images by the true map."""
    fixed_grid, moving_grid = Grid.of(phantom.fixed), Grid.of(phantom.moving)
    points = fixed_grid.slab_lps_mm(0, fixed_grid.shape[0])
    inside = sitk.GetArrayFromImage(phantom.fixed_mask).reshape(-1) != 0
    ends = np.quantile(points[inside][:, -1], np.linspace(0, 1, count + 1)[1:-1])
    labels = (inside * (1 + np.searchsorted(ends, points[:, -1]))).astype(np.uint8)
    back = phantom.inverse(moving_grid.slab_lps_mm(0, moving_grid.shape[0]))
    moving_inside = sitk.GetArrayFromImage(phantom.moving_mask).reshape(-1) != 0
    moved = (moving_inside * (1 + np.searchsorted(ends, back[:, -1]))).astype(np.uint8)
    return fixed_grid.image(labels.reshape(fixed_grid.shape)), moving_grid.image(moved.reshape(moving_grid.shape))


def mean_dice(result, labels, inverse: bool = False) -> float:
    """Of the moving labels, carried to the fixed image, and those there; or the other way."""
    there, here = labels if inverse else labels[::-1]
    warped = sitk.GetArrayFromImage(result.warp(there, labels=True, inverse=inverse))
    fixed = sitk.GetArrayFromImage(here)
    numbers = [n for n in np.unique(fixed) if n]
    return float(
        np.mean(
            [2 * ((warped == n) & (fixed == n)).sum() / ((warped == n).sum() + (fixed == n).sum()) for n in numbers]
        )
    )


def test_labels_register_images_that_show_nothing(phantom, short):
    labels = label_maps(phantom, 5)
    blank = {"fixed": nothing_to_see(phantom.fixed), "moving": nothing_to_see(phantom.moving)}
    plain = run(phantom, short(80), **blank)
    guided = run(phantom, short(80), Guidance(labels=labels), **blank)
    assert mean_dice(guided, labels) > max(0.93, mean_dice(plain, labels) + 0.03)
    assert mean_dice(guided, labels, inverse=True) > 0.93


# ---- what must not count --------------------------------------------------------------------------------


def lesion_of(phantom, role: str) -> sitk.Image:
    radius, centre = (25.0 if phantom.fixed.GetDimension() == 2 else 22.0), middle_of(phantom)
    if role == "fixed":
        return ball(phantom.fixed, centre, radius)
    grid = Grid.of(phantom.moving)
    near = distances(phantom.inverse(grid.slab_lps_mm(0, grid.shape[0])), centre) <= radius
    return grid.image(near.reshape(grid.shape).astype(np.uint8))


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_nothing_of_an_excluded_lesion_reaches_the_result(phantom, role, short):
    """Whatever it holds, the result is the same to the bit."""
    lesion = lesion_of(phantom, role)
    image = getattr(phantom, role)
    excluded = Both(lesion, None) if role == "fixed" else Both(None, lesion)
    noise = np.random.default_rng(0).normal(0, 100, int(sitk.GetArrayFromImage(lesion).sum()))
    points = points_in(phantom.fixed_mask)
    ends = [
        run(phantom, short(8), Guidance(excluded=excluded), **{role: painted(image, lesion, values)}).forward(points)
        for values in (40, noise)
    ]
    assert np.array_equal(*ends)
    seen = run(phantom, short(8), **{role: painted(image, lesion, 40)}).forward(points)
    assert not np.array_equal(seen, ends[0])


def test_a_lesion_that_shrinks_keeps_the_volume_of_its_surroundings(phantom, short):
    """Of the lesion a core is left in the moving image; without an exclusion the map presses it together."""
    lesion, grid = Both(lesion_of(phantom, "fixed"), lesion_of(phantom, "moving")), Grid.of(phantom.moving)
    centre, radius = middle_of(phantom), 0.6 * (25.0 if phantom.fixed.GetDimension() == 2 else 22.0)
    near = distances(phantom.inverse(grid.slab_lps_mm(0, grid.shape[0])), centre) <= radius
    core = grid.image(near.reshape(grid.shape).astype(np.uint8))
    images = {"fixed": painted(phantom.fixed, lesion.fixed, 40), "moving": painted(phantom.moving, core, 40)}
    inside = points_in(lesion.fixed)
    truth = phantom.jacobian(inside).mean()
    plain, excluding = (
        run(phantom, short(100), guidance, **images).jacobian_determinant(inside).mean()
        for guidance in (None, Guidance(excluded=lesion))
    )
    assert plain < 0.85 * truth
    assert abs(excluding - truth) < 0.06 * truth


# ---- regions --------------------------------------------------------------------------------------------


def rigid_residual_mm(through, points_lps_mm: np.ndarray) -> np.ndarray:
    """(n,) distances from the best rigid motion, by a singular value decomposition."""
    start, end = points_lps_mm - points_lps_mm.mean(0), through(points_lps_mm)
    u, _, v = np.linalg.svd(start.T @ (end - end.mean(0)))
    turn = u @ np.diag([*[1.0] * (start.shape[1] - 1), np.linalg.det(u @ v)]) @ v
    return distances(start @ turn, end - end.mean(0))


def two_bodies(phantom) -> sitk.Image:
    """A label of two balls apart, as two ribs of one label."""
    distance = sitk.SignedMaurerDistanceMap(phantom.fixed_mask, insideIsPositive=True, useImageSpacing=True)
    deep = np.argwhere(sitk.GetArrayViewFromImage(distance) > 12)
    points = Grid.of(phantom.fixed).to_lps_mm(deep[:, ::-1])
    left, right = points[points[:, 0].argmin()], points[points[:, 0].argmax()]
    return sitk.Cast(ball(phantom.fixed, left, 20.0) + ball(phantom.fixed, right, 20.0) > 0, sitk.sitkUInt8) * 7


@pytest.mark.parametrize("d", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rigid_region_moves_rigidly_each_part_by_itself(d, phantom_2d, phantom_3d, short):
    phantom = {2: phantom_2d, 3: phantom_3d}[d]
    labels = two_bodies(phantom)
    bodies = bodies_lps_mm(labels)
    assert [label for label, _ in bodies] == [7, 7]
    as_guided = replace(short(150), smooth=0.0, regularity=replace(short(150).regularity, bending_mm=0.0))
    plain, rigid = run(phantom, as_guided), run(phantom, short(150), Guidance(rigid=labels))
    for _, points in bodies:
        assert rigid_residual_mm(plain.forward, points).max() > 0.5
        assert rigid_residual_mm(rigid.forward, points).max() <= 0.2
        assert rigid_residual_mm(rigid.inverse, rigid.forward(points)).max() <= 0.25
    shifts = [(rigid.forward(points) - points).mean(0) for _, points in bodies]
    assert distances(*shifts) > 1  # they are no single body
    a, b = phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm
    far = np.min([distances(a[:, None], points[::5]).min(1) for _, points in bodies], 0) > 30
    assert far.sum() > 10
    assert distances(rigid.forward(a), b)[far].mean() < 1.3 * distances(plain.forward(a), b)[far].mean()


@pytest.mark.parametrize("d", [2, 3])
def test_specks_of_a_rigid_mask_are_told_of_once_and_left_out(d, phantom_2d, phantom_3d):
    phantom = {2: phantom_2d, 3: phantom_3d}[d]
    images, labels = Both(phantom.fixed, phantom.moving), two_bodies(phantom)
    spoilt = sitk.GetArrayFromImage(labels)
    spoilt[(slice(0, 1), slice(0, 3), slice(0, 1))[:d]] = 7
    spoilt[(-1,) * d] = 3
    guidance = Guidance(rigid=Grid.of(labels).image(spoilt))
    with collected_notices() as told:
        rigid = guidance.checked(images).rigid
    (note,) = told
    assert note.startswith("2 of the 4 connected parts of the rigid mask will not be kept rigid")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(rigid), sitk.GetArrayFromImage(labels))
    whole = np.concatenate([points for _, points in bodies_lps_mm(rigid)])
    assert set(map(tuple, whole)) == set(
        map(tuple, Grid.of(labels).to_lps_mm(np.argwhere(sitk.GetArrayViewFromImage(labels))[:, ::-1]))
    )
    spoilt[sitk.GetArrayViewFromImage(labels) != 0] = 0
    with pytest.raises(NephiError, match=r"rigid mask: no connected part of it is as large as \d+ mm"):
        Guidance(rigid=Grid.of(labels).image(spoilt)).checked(images)


@pytest.mark.parametrize(("voxel_mm", "limit"), [(0.5, "65 mm^3"), (1.0, "65 mm^3"), (4.0, "512 mm^3")])
def test_how_large_a_rigid_body_is_at_least_depends_on_voxels_only_where_these_are_large(voxel_mm, limit):
    side = round(160 / voxel_mm)
    grid = Grid((side, 24, 24), (voxel_mm,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    array, cell = np.zeros(grid.shape, np.uint8), np.cbrt(float(limit.split()[0]) / voxel_mm**3)
    array[1:11, 1:11, 2 : 2 + int(np.ceil(cell))] = 1
    array[12 : 12 + int(cell * 0.9), 12 : 12 + int(cell * 0.9), 12 : 12 + int(cell * 0.9)] = 1
    image = grid.image(np.random.default_rng(0).random(grid.shape).astype(np.float32))
    with collected_notices() as told:
        rigid = Guidance(rigid=grid.image(array)).checked(Both(image, image)).rigid
    (note,) = told
    assert note.startswith("1 of the 2 connected parts") and note.endswith(f"smaller than {limit}.")
    assert len(bodies_lps_mm(rigid)) == 1


@pytest.mark.parametrize("many", [1, 60, 400])
def test_many_rigid_bodies_cost_no_more_in_a_step_than_some_and_all_take_part(many, short):
    grid = Grid((120, 60, 60), (2.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    array = np.zeros(grid.shape, np.uint8)
    places = np.stack(np.unravel_index(np.arange(many), (10, 10, 10)), -1) * 6
    for z, y, x in places:
        array[z : z + 3, y : y + 3, x : x + 3] = 1
    image = grid.image(np.random.default_rng(0).random(grid.shape).astype(np.float32))
    pair = ImagePair.of(Both(image, image), Both(None, None), Affine.identity(3), short(1).similarity)
    guide = Rigid(grid.image(array), pair, 0.2, torch.device("cpu"))
    (points,) = guide.draw(40, torch.Generator().manual_seed(0))
    assert points.shape[2] <= 2000
    index = grid.to_index(pair.cube.to_lps_mm(points[:, 0].flatten(0, 1).double().numpy()))
    seen = np.unique((np.rint(index)[:, ::-1] // 6).astype(int), axis=0)
    assert len(seen) == many
    mapped = (points[0] + 0.05 * torch.randn(points[0].shape)).requires_grad_()
    guide.penalty(lambda points: points, mapped, points[0]).backward()
    assert mapped.grad.isfinite().all() and mapped.grad.abs().max() > 0


@pytest.mark.parametrize("d", [2, 3])
def test_what_keeps_a_body_rigid_does_not_move_it_as_a_whole(d, phantom_2d, phantom_3d, short):
    """What drags a few of its points moves the others only as far as it moves all of them."""
    phantom = phantom_2d if d == 2 else phantom_3d
    similarity, device = short(1).similarity, torch.device("cpu")
    pair = ImagePair.of(Both(phantom.fixed, phantom.moving), Both(None, None), Affine.identity(d), similarity)
    guide = Rigid(ball(phantom.fixed, middle_of(phantom), 12), pair, 0.2, device)
    (points,) = (drawn[0] for drawn in guide.draw(1, torch.Generator().manual_seed(0)))
    mapped = points.clone()
    mapped[0, : points.shape[1] // 5] += 0.1
    mapped.requires_grad_()
    guide.penalty(lambda points: points, mapped, points).backward()
    pulls = mapped.grad[0]
    assert pulls.norm(dim=1).min() > 0
    assert pulls.sum(0).norm() < 1e-3 * pulls.norm(dim=1).sum()


def test_a_region_keeps_its_volume(phantom, plain, short):
    region = ball(phantom.fixed, middle_of(phantom), 22.0)
    points = points_in(region)
    free = plain.jacobian_determinant(points)
    kept = run(phantom, short(80), Guidance(volume_kept=region)).jacobian_determinant(points)
    assert abs(free.mean() - 1) > 0.05
    assert abs(kept.mean() - 1) < 0.01 and np.abs(kept - 1).max() < 0.1


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_rigid_motions_are_found(d, flat):
    """Also of bodies that lie in a plane (a line), and by large turns; against the motion that was made."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(6, 40, d)) * [30.0] * d
    if flat:
        points[..., -1] = 0
    turns = np.linalg.qr(generator.normal(size=(6, d, d)))[0]
    turns[:, :, 0] *= np.linalg.det(turns)[:, None]
    ends = points @ turns + generator.normal(size=(6, 1, d)) * 50
    found = rigidly_moved(torch.tensor(points).float(), torch.tensor(ends).float())
    assert np.abs(found.numpy() - ends).max() < 2e-3


# ---- an initial transform -------------------------------------------------------------------------------


def transform_of(phantom, spoilt_mm: float = 0.0) -> sitk.Transform:
    """The true map as a displacement field, spoilt by a wave of this height."""
    grid = Grid.of(phantom.fixed)
    points = grid.slab_lps_mm(0, grid.shape[0])
    moved = phantom.forward(points) - points + spoilt_mm * np.sin((points[:, ::-1] + 30) / 25)
    field = grid.image(moved.reshape(*grid.shape, -1), vector=True)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def test_an_initial_transform_is_the_result_of_no_iteration(phantom, short):
    result = run(phantom, short(0), Guidance(initial=transform_of(phantom)))
    points = points_in(phantom.fixed_mask)
    assert result.alignment.method == "initial"
    assert distances(result.forward(points), phantom.forward(points)).mean() < 0.15
    assert distances(result.inverse(phantom.forward(points)), points).mean() < 0.15
    assert distances(result.inverse(result.forward(points)), points).max() < 0.3


def test_a_spoilt_transform_is_refined_saved_and_loaded(phantom, short, tmp_path):
    start = transform_of(phantom, 3.0)
    points = points_in(phantom.fixed_mask)
    spoilt, refined = (run(phantom, short(n), Guidance(initial=start)) for n in (0, 60))
    before, after = (distances(r.forward(points), phantom.forward(points)).mean() for r in (spoilt, refined))
    assert before > 2 and after < 0.4 * before
    assert distances(refined.inverse(refined.forward(points)), points).mean() < 0.5
    ahead = refined.forward(points + 1e-2 * np.eye(points.shape[1])[0]) - refined.forward(points)
    assert refined.jacobian_determinant(points).min() > 0 and np.isfinite(ahead).all()
    refined.save(tmp_path / "registration.safetensors")
    loaded = Registration.load(tmp_path / "registration.safetensors")
    assert np.array_equal(loaded.forward(points), refined.forward(points))
    assert np.array_equal(loaded.inverse(points), refined.inverse(points))


def test_the_rest_of_an_initial_transform_is_worked_out_once_on_both_sides_of_a_border(phantom_2d, short, monkeypatch):
    seen, of = [], registration.outer_map
    monkeypatch.setattr(registration, "outer_map", lambda *given: seen.append(of(*given)) or seen[-1])
    result = run(phantom_2d, replace(short(4), sliding=True), Guidance(initial=transform_of(phantom_2d)))
    sides = as_optimised(result.maps).apart()
    assert len(seen) == 1 and all(side.outer is seen[0] for side in (sides.within, sides.around))


def test_a_registration_is_refined_in_turn(phantom_2d, short):
    a, b = phantom_2d.fixed_landmarks_lps_mm, phantom_2d.moving_landmarks_lps_mm
    first = run(phantom_2d, short(8))
    held, second = (run(phantom_2d, short(n), Guidance(initial=first)) for n in (0, 60))
    assert distances(held.forward(a), first.forward(a)).max() < 0.2
    assert distances(held.inverse(b), first.inverse(b)).max() < 0.2
    assert distances(second.forward(a), b).mean() < 0.8 * distances(first.forward(a), b).mean()


# ---- without guidance, and on a device ------------------------------------------------------------------


def test_empty_guidance_changes_no_bit(phantom_2d, short):
    points = phantom_2d.fixed_landmarks_lps_mm
    plain, empty = (run(phantom_2d, short(20), guidance).forward(points) for guidance in (None, Guidance()))
    assert np.array_equal(plain, empty)


# ---- what cannot be used, and what is told ---------------------------------------------------------------


def bad_guidance(kind: str, phantom) -> Guidance:
    grid, moving = Grid.of(phantom.fixed), Grid.of(phantom.moving)
    here, there = (g.corners_lps_mm() * 0.5 + g.corners_lps_mm().mean(0) * 0.5 for g in (grid, moving))
    empty, ones = grid.image(np.zeros(grid.shape, np.uint8)), grid.image(np.ones(grid.shape, np.uint8))
    empty_there = moving.image(np.zeros(moving.shape, np.uint8))
    elsewhere, one_voxel = sitk.Image(ones), sitk.Image(empty)
    elsewhere.SetOrigin([o + 50 for o in grid.origin_lps_mm])
    one_voxel[(3,) * grid.dimension] = 1
    rows, columns = np.indices(grid.shape)
    fold = grid.image(np.stack([-30 * np.sin(columns / 4), 0.0 * rows], -1), True)
    return {
        "another count": lambda: Guidance(landmarks_lps_mm=(here, there[:-1])),
        "outside the moving image": lambda: Guidance(landmarks_lps_mm=(here, there + 1e4)),
        "not finite": lambda: Guidance(landmarks_lps_mm=(here * np.nan, there)),
        "a deviation of 0": lambda: Guidance(landmarks_lps_mm=(here, there), landmarks_sd_mm=np.zeros(len(here))),
        "too few deviations": lambda: Guidance(landmarks_lps_mm=(here, there), landmarks_sd_mm=np.ones(2)),
        "deviations alone": lambda: Guidance(landmarks_sd_mm=np.ones(2)),
        "a label of one side": lambda: Guidance(labels=(ones, empty_there + 2)),
        "empty labels": lambda: Guidance(labels=(ones, empty_there)),
        "a label that fills an image": lambda: Guidance(labels=(ones, empty_there + 1)),
        "another grid": lambda: Guidance(excluded=(elsewhere, None)),
        "an empty exclusion": lambda: Guidance(excluded=(None, empty_there)),
        "all excluded": lambda: Guidance(excluded=(ones, None)),
        "an empty region": lambda: Guidance(rigid=empty),
        "specks": lambda: Guidance(rigid=one_voxel),
        "a 3D transform": lambda: Guidance(initial=sitk.TranslationTransform(3, (1.0, 1.0, 1.0))),
        "a mirroring transform": lambda: Guidance(initial=sitk.ScaleTransform(2, (-1.0, 1.0))),
        "a folding transform": lambda: Guidance(
            initial=sitk.DisplacementFieldTransform(sitk.Cast(fold, sitk.sitkVectorFloat64))
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind, words",
    [
        ("another count", "4 fixed and 3 moving landmarks"),
        ("outside the moving image", "landmark 1 .* outside the moving image"),
        ("not finite", "landmark 1 .* outside the fixed image"),
        ("a deviation of 0", "above 0"),
        ("too few deviations", "each of the 4 guiding landmarks"),
        ("deviations alone", "no landmarks"),
        ("a label of one side", "1 only in the fixed"),
        ("empty labels", "moving guide labels: .*empty"),
        ("a label that fills an image", "1 fills the whole fixed image"),
        ("another grid", "fixed excluded mask: .*grid"),
        ("an empty exclusion", "moving excluded mask: .*empty"),
        ("all excluded", "nothing of the fixed image is left"),
        ("an empty region", "rigid mask: .*empty"),
        ("specks", "rigid mask: no connected part"),
        ("a 3D transform", "initial transform is 3D"),
        ("a mirroring transform", "mirrors or flattens"),
        ("a folding transform", "cannot be inverted"),
    ],
)
def test_what_cannot_guide_is_told_in_one_line(phantom_2d, short, kind, words):
    with pytest.raises(NephiError, match=words) as caught:
        run(phantom_2d, short(1), bad_guidance(kind, phantom_2d), fixed_mask=None, moving_mask=None)
    assert "\n" not in str(caught.value)


def test_an_initial_transform_takes_the_place_of_alignment_and_model(phantom_2d, short):
    guidance = Guidance(initial=sitk.TranslationTransform(2, (1.0, 1.0)))
    for changed in (replace(short(1), align="none"), replace(short(1), model="shapes2d-solid")):
        with pytest.raises(NephiError, match="only one of them"):
            run(phantom_2d, changed, guidance)


@pytest.fixture(scope="module")
def guided_report(phantom_2d, short, tmp_path_factory):
    p, lesion = phantom_2d, lesion_of(phantom_2d, "fixed")
    a, b = p.fixed_landmarks_lps_mm, p.moving_landmarks_lps_mm
    guidance = Guidance(
        landmarks_lps_mm=(a[:50], b[:50]),
        labels=label_maps(p, 3),
        excluded=(lesion, lesion_of(p, "moving")),
        rigid=two_bodies(p),
        volume_kept=lesion,
        initial=transform_of(p, 2.0),
    )
    result = run(p, short(40), guidance)
    report = write_all(result, p.fixed, p.moving, tmp_path_factory.mktemp("guided"), landmarks=(a, b), outputs=())
    return result, report


def test_the_report_tells_what_was_given_and_how_far_the_result_is_from_it(guided_report):
    result, report = guided_report
    found, g = report.guidance, result.guidance
    residual = distances(result.forward(g.landmarks_lps_mm[0]), g.landmarks_lps_mm[1])
    assert found["landmarks"]["after"]["mean"] == pytest.approx(residual.mean())
    assert found["landmarks"]["within"] == (residual <= 1).sum()
    assert [row["label"] for row in found["labels"]] == [1, 2, 3]
    assert np.mean([row["dice_after"] for row in found["labels"]]) == pytest.approx(
        mean_dice(result, g.labels), abs=1e-2
    )
    changes = [found["excluded"][role]["change_percent"] for role in ("fixed", "moving")]
    determinant = result.jacobian_determinant(points_in(g.excluded[0]))
    assert changes[0] == pytest.approx(100 * (determinant.mean() - 1), abs=1)
    assert (1 + changes[0] / 100) * (1 + changes[1] / 100) == pytest.approx(1, abs=0.05)  # the same tissue, both ways
    worst = [rigid_residual_mm(result.forward, points).max() for _, points in bodies_lps_mm(g.rigid)]
    assert [row["residual_mm"]["max"] for row in found["rigid"]] == pytest.approx(worst, abs=1e-3)
    assert found["volume_kept"][0]["change_percent"] == pytest.approx(changes[0])
    assert found["initial"]["refined_mm"]["mean"] > 0.5
    assert Report.from_json(report.to_json()).guidance == found


def test_errors_at_landmarks_that_guided_are_not_independent(guided_report):
    _, report = guided_report
    assert [text for text in report.warnings if text.startswith("50 of the ") and "independent" in text]
    assert [row["guided"] for row in report.landmarks] == [True] * 50 + [False] * (len(report.landmarks) - 50)
    others = [row["after_mm"] for row in report.landmarks[50:]]
    found = {row["name"]: row for row in report.verdict.criteria}
    assert found["landmarks, mean error"]["found"] == f"{np.mean(others):.2f} mm"
    reached = found["guiding landmarks within their standard deviation"]
    assert reached["found"] == f"{report.guidance['landmarks']['within']} of 50"
    assert reached["kept"] == (report.guidance["landmarks"]["within"] == 50)


def test_files_of_every_kind_guide_from_the_command_line_and_from_a_list(phantom_2d, tmp_path):
    p = phantom_2d
    p.write(tmp_path / "p")
    labels = label_maps(p, 2)
    for name, image in (("fl", labels[0]), ("ml", labels[1]), ("lesion", lesion_of(p, "fixed"))):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    sitk.WriteTransform(transform_of(p), str(tmp_path / "start.h5"))
    marks = (tmp_path / "p" / "fixed_landmarks.csv").read_text(encoding="utf-8").splitlines()
    rows = [f"{marks[0]},sd", *(f"{row},{0.25 + 0.5 * (k % 2)}" for k, row in enumerate(marks[1:]))]
    (tmp_path / "marks.csv").write_text("\n".join(rows), encoding="utf-8")
    files = {
        "fixed_guide_landmarks": "marks.csv", "moving_guide_landmarks": "p/moving_landmarks.csv",
        "fixed_guide_labels": "fl.nii.gz", "moving_guide_labels": "ml.nii.gz", "fixed_exclude": "lesion.nii.gz",
        "rigid_mask": "lesion.nii.gz", "volume_mask": "lesion.nii.gz", "initial": "start.h5",
    }  # fmt: skip
    head, row = ["name", "fixed", "moving", *files], ["one", "p/fixed.nii.gz", "p/moving.nii.gz", *files.values()]
    (tmp_path / "pairs.csv").write_text(f"{','.join(head)}\n{','.join(row)}\n", encoding="utf-8")
    how = ["--preset", "fast", "--iterations", "3", "--no-report", "--no-auto-mask"]
    assert main(["batch", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "many"), *how]) == 0
    given = {role: str(tmp_path / name) for role, name in files.items()}
    arguments = [
        "--guide-landmarks", given["fixed_guide_landmarks"], given["moving_guide_landmarks"],
        "--guide-labels", given["fixed_guide_labels"], given["moving_guide_labels"],
    ]  # fmt: skip
    for role in ("fixed_exclude", "rigid_mask", "volume_mask", "initial"):
        arguments += [f"--{role.replace('_', '-')}", given[role]]
    images = [str(tmp_path / "p" / f"{role}.nii.gz") for role in ("fixed", "moving")]
    assert main(["register", *images, "--output", str(tmp_path / "one"), "--progress", "none", *arguments, *how]) == 0
    many, one = (
        Report.from_json((tmp_path / folder / "report.json").read_text(encoding="utf-8"))
        for folder in ("many/one", "one")
    )
    assert set(one.guidance) == {"landmarks", "labels", "excluded", "rigid", "volume_kept", "initial"}
    assert one.guidance["landmarks"]["sd_mm"] == {"least": 0.25, "most": 0.75}
    assert many.guidance == one.guidance and set(files) <= set(one.inputs)
