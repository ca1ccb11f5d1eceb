"""What is known beyond the images guides a registration: landmarks, labels, exclusions, regions, a transform."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi import Registration, register
from nephi.both import Both
from nephi.fitting.guidance import Guidance
from nephi.fitting.guides import bodies_lps_mm, determinant, rigidly_moved
from nephi.space.grid import Grid


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


@pytest.fixture(scope="module", params=[2, 3])
def phantom(request, phantom_2d, phantom_3d):
    return {2: phantom_2d, 3: phantom_3d}[request.param]


# ---- landmarks ------------------------------------------------------------------------------------------


def test_given_landmarks_end_within_their_deviation_and_the_others_are_no_worse(phantom, short):
    a, b = phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm
    given, sd_mm = np.arange(len(a)) % 3 == 0, 0.6
    plain = run(phantom, short(60))
    guided = run(
        phantom, short(60), Guidance(landmarks_lps_mm=(a[given], b[given]), landmarks_sd_mm=np.full(given.sum(), sd_mm))
    )
    before, after = (distances(result.forward(a), b) for result in (plain, guided))
    assert before[given].max() > sd_mm >= after[given].max()
    assert after[~given].mean() <= before[~given].mean()
    assert distances(guided.inverse(b), a)[given].max() <= sd_mm


def nothing_to_see(image: sitk.Image) -> sitk.Image:
    """All of one value, but for a corner: an image of one value alone is refused."""
    array = np.zeros(Grid.of(image).shape, np.float32)
    array[(0,) * array.ndim] = 1
    return Grid.of(image).image(array)


def test_images_that_show_nothing_are_registered_by_landmarks_alone(phantom, short):
    a, b = phantom.fixed_landmarks_lps_mm[:20], phantom.moving_landmarks_lps_mm[:20]
    blank = {"fixed": nothing_to_see(phantom.fixed), "moving": nothing_to_see(phantom.moving)}
    result = run(phantom, short(150), Guidance(landmarks_lps_mm=(a, b)), **blank)
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
    plain = run(phantom, short(100), **blank)
    guided = run(phantom, short(100), Guidance(labels=labels), **blank)
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
        run(phantom, short(25), Guidance(excluded=excluded), **{role: painted(image, lesion, values)}).forward(points)
        for values in (40, noise)
    ]
    assert np.array_equal(*ends)
    seen = run(phantom, short(25), **{role: painted(image, lesion, 40)}).forward(points)
    assert not np.array_equal(seen, ends[0])


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_lesion_that_disappears_keeps_the_volume_of_its_surroundings(phantom, role, short):
    """The lesion is in one image alone; without an exclusion it is crushed, or made from nothing."""
    lesion = lesion_of(phantom, role)
    excluded = Both(lesion, None) if role == "fixed" else Both(None, lesion)
    image = {role: painted(getattr(phantom, role), lesion, 40)}
    inside = points_in(lesion_of(phantom, "fixed"))
    truth = phantom.jacobian(inside).mean()
    plain, excluding = (
        run(phantom, short(100), guidance, **image).jacobian_determinant(inside).mean()
        for guidance in (None, Guidance(excluded=excluded))
    )
    assert abs(excluding - truth) < 0.12 * truth
    assert abs(excluding - truth) < 0.5 * abs(plain - truth)


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


def test_a_rigid_region_moves_rigidly_each_part_by_itself(phantom, short):
    labels = two_bodies(phantom)
    bodies = bodies_lps_mm(labels)
    assert [label for label, _ in bodies] == [7, 7]
    plain, rigid = run(phantom, short(150)), run(phantom, short(150), Guidance(rigid=labels))
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


def test_a_region_keeps_its_volume(phantom, short):
    region = ball(phantom.fixed, middle_of(phantom), 22.0)
    points = points_in(region)
    plain, kept = (
        run(phantom, short(150), g).jacobian_determinant(points) for g in (None, Guidance(volume_kept=region))
    )
    assert abs(plain.mean() - 1) > 0.05
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
    torch.testing.assert_close(determinant(torch.tensor(turns)), torch.linalg.det(torch.tensor(turns)))


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
    assert result.alignment == "initial"
    assert distances(result.forward(points), phantom.forward(points)).mean() < 0.15
    assert distances(result.inverse(phantom.forward(points)), points).mean() < 0.15
    assert distances(result.inverse(result.forward(points)), points).max() < 0.3


def test_a_spoilt_transform_is_refined_saved_and_loaded(phantom, short, tmp_path):
    start = transform_of(phantom, 3.0)
    points = points_in(phantom.fixed_mask)
    spoilt, refined = (run(phantom, short(n), Guidance(initial=start)) for n in (0, 80))
    before, after = (distances(r.forward(points), phantom.forward(points)).mean() for r in (spoilt, refined))
    assert before > 2 and after < 0.4 * before
    assert distances(refined.inverse(refined.forward(points)), points).mean() < 0.5
    ahead = refined.forward(points + 1e-2 * np.eye(points.shape[1])[0]) - refined.forward(points)
    assert refined.jacobian_determinant(points).min() > 0 and np.isfinite(ahead).all()
    refined.save(tmp_path / "registration.safetensors")
    loaded = Registration.load(tmp_path / "registration.safetensors")
    assert np.array_equal(loaded.forward(points), refined.forward(points))
    assert np.array_equal(loaded.inverse(points), refined.inverse(points))


def test_a_registration_is_refined_in_turn(phantom_2d, short):
    a, b = phantom_2d.fixed_landmarks_lps_mm, phantom_2d.moving_landmarks_lps_mm
    first = run(phantom_2d, short(15))
    held, second = (run(phantom_2d, short(n), Guidance(initial=first)) for n in (0, 60))
    assert distances(held.forward(a), first.forward(a)).max() < 0.2
    assert distances(held.inverse(b), first.inverse(b)).max() < 0.2
    assert distances(second.forward(a), b).mean() < 0.8 * distances(first.forward(a), b).mean()


# ---- without guidance, and on a device ------------------------------------------------------------------


def test_empty_guidance_changes_no_bit(phantom_2d, short):
    points = phantom_2d.fixed_landmarks_lps_mm
    plain, empty = (run(phantom_2d, short(20), guidance).forward(points) for guidance in (None, Guidance()))
    assert np.array_equal(plain, empty)
