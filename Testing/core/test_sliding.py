"""Maps that slide along a border: the phantom that does, the map, its files, and a registration that finds it."""

from __future__ import annotations

from dataclasses import replace

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi.both import Both
from nephi.errors import NephiError
from nephi.files.transform import through
from nephi.fitting.guidance import bodies_lps_mm
from nephi.fitting.sliding import guidance_within
from nephi.images.align import align
from nephi.images.bones import bones_aligned
from nephi.images.image_pair import ImagePair
from nephi.maps.border import Border
from nephi.maps.code import HybridCode, zero_code
from nephi.maps.consensus import as_optimised
from nephi.maps.maps import FieldMap
from nephi.maps.sliding import Sliding
from nephi.maps.voxel import VoxelFields
from nephi.settings import PRESETS, VoxelSettings
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.space.rigid import rigidly_moved
from nephi.synthetic.phantom import make_phantom


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(dimension=2, seed=3, sliding=True)


@pytest.fixture(scope="module")
def results(phantom):
    """Today's map and one that slides, of the same steps."""
    # with half as many, rounding alone decides how far the two sides have come
    few = replace(PRESETS["fast"], fit=replace(PRESETS["fast"].fit, iterations=200))
    masks = {"fixed_mask": phantom.fixed_mask, "moving_mask": phantom.moving_mask}
    return [
        nephi.register(phantom.fixed, phantom.moving, settings=replace(few, sliding=sliding), **masks)
        for sliding in (False, True)
    ]


def _waves(dimension: int, size: int, height: float, seed: int) -> FieldMap:
    settings = VoxelSettings(local_code=2 * dimension)
    half_extents, fields = torch.ones(dimension), VoxelFields(settings, dimension)
    code = zero_code(settings, half_extents, (size,) * dimension)
    generator = torch.Generator().manual_seed(seed)
    code.local_code[:, :dimension] = height * torch.randn(code.local_code[:, :dimension].shape, generator=generator)
    return FieldMap(fields, HybridCode(fields.with_inverse(code)).requires_grad_(False))


def _ball(dimension: int, radius: float = 0.6, nodes: int = 61) -> Border:
    axis = torch.linspace(-1, 1, nodes)
    places = torch.stack(torch.meshgrid(*[axis] * dimension, indexing="ij"), -1)
    return Border((places.norm(dim=-1) - radius).clamp(-0.2, 0.2).half(), torch.ones(dimension))


@pytest.fixture(scope="module", params=[2, 3])
def sliding(request):
    d = request.param
    return Sliding(_waves(d, 5, 0.33, 1), _waves(d, 5, 0.5, 0), _ball(d)).meeting()


def _at_radius(radius: float, dimension: int, many: int = 500) -> torch.Tensor:
    directions = torch.randn(many, dimension, generator=torch.Generator().manual_seed(2))
    return radius * directions / directions.norm(dim=1, keepdim=True)


def test_phantom_jumps_along_the_cage_and_only_along_it(phantom):
    grid, motion = Grid.of(phantom.fixed), phantom.motion
    points = grid.to_lps_mm(np.random.default_rng(0).uniform(0, np.array(grid.size) - 1, (4000, 2)))
    moved = phantom.forward(points)
    np.testing.assert_array_equal(motion.within(moved, inhale=True), motion.within(points))
    np.testing.assert_allclose(phantom.inverse(moved), points, atol=1e-5)
    wall = ~motion.within(points)
    np.testing.assert_allclose(np.ptp((moved - points)[wall], axis=0), 0, atol=1e-9)
    assert phantom.jacobian(points).min() > 0.5
    row = grid.to_lps_mm(np.stack([np.arange(0, 60, 0.01), np.full(6000, 95.0)], 1))
    steps = np.abs(np.diff(phantom.forward(row) - row, axis=0))
    assert steps[:, 1].max() > 10 and steps[:, 0].max() < 0.01  # down the wall, not through it


def test_both_sides_meet_along_the_border_and_jump_there(sliding):
    border = _at_radius(0.6, len(sliding.half_extents_cube))

    def gap(maps: Sliding) -> float:
        beside = maps.around.solve(maps.within.forward(border), rounds=12)
        return float((beside.norm(dim=1) - 0.6).abs().max())

    assert gap(sliding.apart()) > 0.01  # there is something to close
    assert gap(sliding) < 2e-3  # 0.3 mm in a chest
    inside, outside = sliding.forward(border * 0.999), sliding.forward(border * 1.001)
    assert (inside - outside).norm(dim=1).max() > 0.02
    assert torch.equal(inside, sliding.apart().within.forward(border * 0.999))
    far = _at_radius(0.9, len(sliding.half_extents_cube))
    assert (sliding.forward(far) - sliding.apart().around.forward(far)).abs().max() < 1e-3


def test_sides_are_those_of_the_distance_itself_near_the_border_and_far_from_it(sliding):
    points = torch.rand(20_000, len(sliding.half_extents_cube), generator=torch.Generator().manual_seed(4)) * 2.2 - 1.1
    assert torch.equal(sliding.is_within(points), sliding.border.at(points)[0] < 0)


def test_inverse_undoes_the_map_on_both_sides(sliding):
    points = torch.cat([_at_radius(r, len(sliding.half_extents_cube), 200) for r in (0.1, 0.4, 0.58, 0.62, 0.8)])
    within = sliding.is_within(points)[:, 0]
    for part, side in ((points[within], sliding.within), (points[~within], sliding.around)):
        own_error = (side.inverse(side.forward(part)) - part).abs().max()
        assert (sliding.inverse(sliding.forward(part)) - part).abs().max() < own_error + 1e-4


@pytest.mark.parametrize("radius", [0.3, 0.8])
@pytest.mark.parametrize("many", [0, 3])
def test_points_of_which_none_lies_within_or_all_do(radius, many, sliding):
    """A map is asked for parts of a volume, of which some lie on one side of the border alone."""
    points = _at_radius(radius, len(sliding.half_extents_cube), many)
    for side in (sliding, sliding.within):
        assert side.inverse(side.forward(points)).shape == points.shape
    for moved in (sliding.forward(points), sliding.inverse(points)):
        assert moved.shape == points.shape and moved.isfinite().all()


def test_sides_that_differ_in_a_thin_wedge_neither_fold_nor_lose_their_inverse():
    """Where two parts of the border meet, points have no single side to keep their distance from."""
    axis = torch.linspace(-1, 1, 61)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    wedge = ((y.abs() - 0.15 * (x + 0.6)) / 1.02).clamp(-0.13, 0.13)
    border = Border(-wedge.half(), torch.ones(2))
    slides = Sliding(_waves(2, 5, 0.0, 0), _waves(2, 5, 0.4, 1), border).meeting()
    points = (torch.rand(4000, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1) * 0.9
    points = points[~slides.is_within(points)[:, 0]]
    around = slides.around
    assert (around.forward(points) - points).norm(dim=1).max() > 0.03
    assert (around.inverse(around.forward(points)) - points).norm(dim=1).max() < 1e-3
    ahead = [(around.forward(points + s) - around.forward(points - s)) / 2e-3 for s in 1e-3 * torch.eye(2)]
    assert torch.linalg.det(torch.stack(ahead, 1)).min() > 0.2


def test_stencils_stay_on_their_centres_side(sliding):
    d = len(sliding.half_extents_cube)
    stencils = _at_radius(0.57, d)[:, None] + torch.cat([torch.zeros(1, d), 0.05 * torch.eye(d)])
    assert not sliding.is_within(stencils.flatten(0, 1)).all()
    there = sliding.within.forward(stencils.flatten(0, 1)).reshape(stencils.shape)
    values = sliding.on_own_side(torch.stack([stencils, there]))
    torch.testing.assert_close(values[0], there)
    assert (values[1] - stencils).norm(dim=-1).max() < 5e-3  # the jump is larger


def test_sliding_finds_the_wall_that_a_continuous_map_drags_along(phantom, results):
    grid, slides = Grid.of(phantom.fixed), results[1]
    distance = sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True)
    near = np.abs(sitk.GetArrayFromImage(distance))
    points = grid.to_lps_mm(np.argwhere((near > 1) & (near < 10))[:, ::-1])
    wall = points[~phantom.motion.within(points)]
    for where, part in ((points, 0.7), (wall, 0.5)):
        before, after = (np.linalg.norm(r.forward(where) - phantom.forward(where), axis=1).mean() for r in results)
        assert after < part * before
    ribs = grid.to_lps_mm(np.argwhere((sitk.GetArrayViewFromImage(phantom.fixed) > 150) & (near < 25))[:, ::-1])
    ribs = ribs[~phantom.motion.within(ribs)]
    assert np.linalg.norm(slides.forward(ribs) - phantom.forward(ribs), axis=1).mean() < 2.5  # 0.7; without 9
    assert slides.maps.within.smooth and not slides.maps.apart().around.smooth
    assert slides.jacobian_determinant(points).min() > 0
    assert np.abs(slides.inverse(slides.forward(points)) - points).max() < 0.02


def test_within_the_border_the_map_is_that_of_a_registration_without_sliding(phantom, results):
    points = Grid.of(phantom.fixed).to_lps_mm(np.argwhere(sitk.GetArrayViewFromImage(phantom.fixed_mask))[:, ::-1])
    continuous, slides = results
    inside = slides.maps.is_within(slides._tensor(slides.cube.to_cube(points))).numpy()[:, 0]
    assert inside.mean() > 0.95
    np.testing.assert_array_equal(slides.forward(points[inside]), continuous.forward(points[inside]))
    steps = [entry["step"] for entry in slides.history]
    assert steps == sorted(set(steps)) and steps[-1] > 200


def test_result_keeps_its_jump_in_its_files(phantom, results, tmp_path):
    slides, grid = results[1], Grid.of(phantom.fixed)
    slides.save(tmp_path / "registration.safetensors")
    loaded = nephi.Registration.load(tmp_path / "registration.safetensors")
    points = grid.to_lps_mm(np.random.default_rng(1).uniform(5, np.array(grid.size) - 6, (2000, 2)))
    np.testing.assert_array_equal(loaded.forward(points), slides.forward(points))
    np.testing.assert_array_equal(loaded.inverse(points), slides.inverse(points))
    without = replace(slides, maps=as_optimised(slides.maps))
    without.save(tmp_path / "without.safetensors")
    loaded = nephi.Registration.load(tmp_path / "without.safetensors")
    np.testing.assert_array_equal(loaded.forward(points), without.forward(points))
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True))
    far = points[np.abs(distance[tuple(np.rint(grid.to_index(points)).astype(int).T[::-1])]) > 3]
    index = slides.moving_grid.to_index(slides.forward(far))
    far = far[((index > 1) & (index < np.array(slides.moving_grid.size) - 2)).all(1)]  # what the inverse's file holds
    assert len(far) > 1500
    for inverse, at in ((False, far), (True, slides.forward(far))):  # cells that the border crosses err by more
        exact = (slides.inverse if inverse else slides.forward)(at)
        error = np.linalg.norm(through(slides.transform(inverse=inverse), at) - exact, axis=1)
        assert np.percentile(error, 95) < 0.1


@pytest.fixture(scope="module")
def ribs(phantom):
    """Label map of parts of the wall that move rigidly in truth."""
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True))
    grid = Grid.of(phantom.fixed)
    wall = ~phantom.motion.within(grid.slab_lps_mm(0, grid.shape[0])).reshape(grid.shape)
    bone = sitk.GetArrayViewFromImage(phantom.fixed) > 150
    return grid.image((bone & wall & (distance > 0) & (distance < 25)).astype(np.uint8))


def from_rigid_mm(through, points_lps_mm: np.ndarray) -> float:
    start, end = (torch.tensor(points)[None] for points in (points_lps_mm, through(points_lps_mm)))
    return float((rigidly_moved(start, end) - end).norm(dim=-1).max())


@pytest.fixture(scope="module")
def kept(phantom, results, ribs):
    """The registration that slides, with ribs that are kept rigid."""
    masks = {"fixed_mask": phantom.fixed_mask, "moving_mask": phantom.moving_mask}
    return nephi.register(
        phantom.fixed, phantom.moving, settings=results[1].settings, guidance=nephi.Guidance(rigid=ribs), **masks
    )


def test_ribs_that_are_kept_rigid_are_rigid_and_not_drawn_along(phantom, results, kept, ribs):
    bodies = [voxels for _label, voxels in bodies_lps_mm(ribs)]
    plain, rigid = (max(from_rigid_mm(r.forward, points) for points in bodies) for r in (results[1], kept))
    assert rigid < 0.2 < plain
    every = np.concatenate(bodies)
    errors = [np.linalg.norm(r.forward(every) - phantom.forward(every), axis=1).mean() for r in (results[1], kept)]
    assert errors[1] < 1.5 * errors[0]


def test_lungs_beside_rigid_ribs_give_way_only_near_them_and_hardly(phantom, results, kept, ribs):
    lungs = Grid.of(phantom.fixed).to_lps_mm(np.argwhere(sitk.GetArrayViewFromImage(phantom.fixed_mask))[:, ::-1])
    inside = kept.maps.is_within(kept._tensor(kept.cube.to_cube(lungs))).numpy()[:, 0]
    assert inside.sum() > 0.9 * len(lungs)
    moved, without = (r.forward(lungs[inside]) for r in (kept, results[1]))
    free = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(ribs != 0, False, False, True)) > 22
    index_zyx = np.rint(Grid.of(ribs).to_index(lungs[inside])).astype(int).T[::-1]
    far = free[tuple(index_zyx)]
    assert far.sum() > 1000
    np.testing.assert_array_equal(moved[far], without[far])
    change = np.linalg.norm(moved - without, axis=1)
    assert 0 < change.max() < 6 and change.mean() < 0.05
    assert kept.jacobian_determinant(lungs[inside]).min() > 0


def test_sides_meet_beside_rigid_ribs_and_files_keep_both(phantom, kept, tmp_path):
    border, unit_mm = kept.maps.border, kept.cube.unit_mm
    grid = Grid.of(phantom.fixed)
    distance = np.abs(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True)))
    near = grid.to_lps_mm(np.argwhere(distance < 6)[:, ::-1])
    foot = border.brought(kept._tensor(kept.cube.to_cube(near)))
    foot = foot[border.at(foot)[0][:, 0].abs() < 0.01 / unit_mm]

    def apart_mm(maps: Sliding) -> float:
        ends = maps.within.forward(foot)
        beside = maps.around.inverse(ends)
        assert (maps.around.forward(beside) - ends).abs().max() * unit_mm < 0.1
        return float(border.at(beside)[0].abs().max()) * unit_mm

    with torch.no_grad():
        assert apart_mm(kept.maps) < 1 < apart_mm(kept.maps.apart())
    missed = np.linalg.norm(kept.inverse(kept.forward(near)) - near, axis=1)
    assert np.percentile(missed, 99) < 0.02  # but where the sides still overlap
    kept.save(tmp_path / "registration.safetensors")
    loaded = nephi.Registration.load(tmp_path / "registration.safetensors")
    np.testing.assert_array_equal(loaded.forward(near), kept.forward(near))
    np.testing.assert_array_equal(loaded.inverse(near), kept.inverse(near))
    loaded = replace(loaded, maps=loaded.maps.to("cpu"))
    np.testing.assert_array_equal(loaded.forward(near), kept.forward(near))


def test_guidance_of_the_map_within_keeps_bodies_that_lie_mostly_in_the_mask(phantom, ribs):
    pair = ImagePair.of(
        Both(phantom.fixed, phantom.moving),
        Both(phantom.fixed_mask, phantom.moving_mask),
        Affine.identity(2),
        PRESETS["fast"].similarity,
    )
    assert guidance_within(nephi.Guidance(rigid=ribs), pair).rigid is None
    distance = sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True)
    inner, outer = (
        sitk.Cast(sitk.And(distance > lower, distance < upper), sitk.sitkUInt8) * 2
        for lower, upper in ((-8, 1), (-1, 8))
    )
    assert guidance_within(nephi.Guidance(rigid=outer), pair).rigid is None  # a quarter of it lies in the mask
    around = ribs * sitk.Cast(distance > 4, sitk.sitkUInt8)
    left = guidance_within(nephi.Guidance(rigid=sitk.Maximum(inner, around)), pair).rigid
    np.testing.assert_array_equal(sitk.GetArrayFromImage(left), sitk.GetArrayFromImage(inner))


def test_bones_start_where_their_rigid_motion_takes_them_though_ribs_are_alike(phantom):
    images, masks = Both(phantom.fixed, phantom.moving), Both(phantom.fixed_mask, phantom.moving_mask)
    start = align(images, masks, "moments").affine
    found = bones_aligned(images, masks, start, 1.0)
    ribs = ~phantom.motion.within(found.fixed)
    truth = phantom.forward(found.fixed)
    assert ribs.sum() > 50
    errors = [np.linalg.norm(end - truth, axis=1)[ribs].mean() for end in (start(found.fixed), found.moving)]
    assert errors[0] > 6 and errors[1] < 1.5  # 0.1 to 0.4
    soft = images.map(lambda image: sitk.Clamp(image, upperBound=100))
    assert bones_aligned(soft, masks, start, 1.0) is None
    assert bones_aligned(images.map(lambda image: sitk.Cast(image, sitk.sitkFloat32) / 3000), masks, start, 1.0) is None


def test_masks_are_needed_on_both_sides(phantom):
    settings = replace(PRESETS["fast"], sliding=True)
    with pytest.raises(NephiError, match="masks of both images"):
        nephi.register(phantom.fixed, phantom.moving, fixed_mask=phantom.fixed_mask, settings=settings)
