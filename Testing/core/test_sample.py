"""A pair as a network sees it: where its voxels lie, and that maps of its cube keep what is known of it."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from geometry import rotation
from nephi.both import Both
from nephi.fitting.similarity import make_similarity
from nephi.images.image_pair import ImagePair
from nephi.learning.augment import Augmentation
from nephi.learning.pair_tensors import PairTensors
from nephi.maps.code import LINEAR_CUBE, Code
from nephi.maps.maps import FieldMap
from nephi.maps.voxel import VoxelFields
from nephi.settings import Features, IntensitySettings, MindSettings, VoxelSettings
from nephi.space.affine import Affine

NONE = Augmentation(flip=0, rotation_deg=0, scale=0, shift=0, apart_deg=0, apart_scale=0, apart_shift=0, swap=0)


SEEN = Features(5.0, 1, 0.5)

# ---- from a pair ---------------------------------------------------------------------------------------


def features(pair: ImagePair, scale: Features):
    """What is compared at a stage, by the pair's similarity."""
    return pair.volumes(scale, make_similarity(pair.similarity).prepare, "cpu")


@pytest.fixture(scope="module", params=[2, 3])
def seen(request, phantom_2d, phantom_3d):
    """A phantom, turned and scaled by its alignment, as a pair and as a sample."""
    d = request.param
    phantom = {2: phantom_2d, 3: phantom_3d}[d]
    centre = phantom.fixed_landmarks_lps_mm.mean(0)
    matrix = rotation(d, 7.0) @ np.diag([1.05, 0.95, 1.1][:d])
    affine = Affine(matrix, phantom.moving_landmarks_lps_mm.mean(0) - matrix @ centre)
    images, masks = Both(phantom.fixed, phantom.moving), Both(phantom.fixed_mask, phantom.moving_mask)
    pair = ImagePair.of(images, masks, affine, MindSettings(), cube_margin_mm=10.0)
    return phantom, pair, PairTensors.of(pair, SEEN, "phantom")


def cube_points(pair: ImagePair, n: int = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.9, 0.9, (n, pair.cube.dimension)) * pair.cube.half_extents_cube


def tensor(values) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def test_its_voxels_are_the_images_in_their_window(seen):
    """Both, and the moving one through the alignment; averaged over a voxel of the grid, so nearly."""
    phantom, pair, _ = seen
    sample = PairTensors.of(pair, replace(SEEN, outside=0.0))  # nothing is replaced outside the masks
    points = cube_points(pair, 600)
    places = pair.cube.to_lps_mm(points), pair.affine(pair.cube.to_lps_mm(points))
    for way, image in enumerate((phantom.fixed, phantom.moving)):
        low, high = pair.windows[way]
        averaged = sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), 1.5)
        matrix, offset, size = sample.views[way]
        index = tensor(points) @ matrix.T + offset
        within = ((index > 1) & (index < size - 2)).all(1).numpy()
        expected = [averaged.EvaluateAtPhysicalPoint(tuple(p), sitk.sitkLinear) for p in places[way][within]]
        expected = np.clip((np.array(expected) - low) / (high - low), 0, 1)
        found = sample.at(sample.intensities[way], tensor(points)).numpy()[within]
        assert within.mean() > 0.5
        assert np.corrcoef(found, expected)[0, 1] > 0.95
        assert np.abs(found - expected).mean() < 0.05
        shifted = np.roll(expected, 1)
        assert np.abs(found - shifted).mean() > 3 * np.abs(found - expected).mean()


def test_views_masks_and_millimetres_are_those_of_the_images(seen):
    phantom, pair, sample = seen
    points = cube_points(pair)
    fixed_mm = pair.cube.to_lps_mm(points)
    for way, (image, mask, mm) in enumerate(
        ((phantom.fixed, phantom.fixed_mask, fixed_mm), (phantom.moving, phantom.moving_mask, pair.affine(fixed_mm)))
    ):
        matrix, offset, size = sample.views[way]
        index = [image.TransformPhysicalPointToContinuousIndex(tuple(p)) for p in mm]
        torch.testing.assert_close(tensor(points) @ matrix.T + offset, tensor(index), atol=1e-2, rtol=0)
        assert tuple(size) == image.GetSize()
        distance = sitk.SignedMaurerDistanceMap(
            mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        within = [all(0 <= i <= n - 1 for i, n in zip(at, mask.GetSize(), strict=True)) for at in index]
        near = tensor([
            distance.EvaluateAtPhysicalPoint(tuple(p), sitk.sitkLinear) if ok else 99.0
            for p, ok in zip(mm, within, strict=True)
        ])  # fmt: skip
        there = sample.at(sample.masks[way].float(), tensor(points)) > 0.5
        assert there[near < -3].all() and not there[near > 12].any()  # the mask is grown by 4 mm
    a, b = points[:50], points[50:100]
    apart_mm = pair.affine(pair.cube.to_lps_mm(a)) - pair.affine(pair.cube.to_lps_mm(b))
    torch.testing.assert_close(tensor(a - b) @ sample.to_moving_mm.T, tensor(apart_mm), atol=1e-3, rtol=0)


def test_a_swapped_sample_has_all_of_both_images_exchanged(seen):
    _, _, sample = seen
    swapped = sample.swapped()
    assert not torch.equal(sample.views[0][1], sample.views[1][1])  # the fields of view differ
    for name in ("intensities", "masks", "distances"):
        for mine, theirs in zip(getattr(swapped, name), getattr(sample, name)[::-1], strict=True):
            assert torch.equal(mine, theirs), name
    for mine, theirs in zip(swapped.views, sample.views[::-1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    points = tensor(np.random.default_rng(1).uniform(-1.3, 1.3, (2000, len(sample.half_extents_cube))))
    for way in (0, 1):
        inside = sample.volumes[1 - way].inside(points)
        assert torch.equal(swapped.volumes[way].inside(points), inside)


def test_what_is_compared_is_what_a_registration_compares(seen):
    _, pair, sample = seen
    for mine, theirs in zip(sample.volumes, features(pair, SEEN), strict=True):
        assert torch.equal(mine.volume, theirs.volume) and torch.equal(mine.chosen, theirs.chosen)
        assert torch.equal(mine.lower, theirs.lower) and mine.spacing == theirs.spacing
        points = tensor(cube_points(pair))
        assert torch.equal(mine.inside(points), theirs.inside(points))
        gap = (mine.distance.at(points) - theirs.distance.at(points)).abs()
        assert gap.mean() < 0.1
    assert sample.volumes is sample.volumes


def test_images_fill_the_cube_and_are_empty_outside_the_masks(seen):
    _, pair, sample = seen
    size = 17
    images = sample.images(size)
    d = pair.cube.dimension
    assert images.shape == (2, *[size] * d)
    axes = [torch.linspace(-float(u), float(u), size) for u in sample.half_extents_cube]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).permute(*reversed(range(d)), d).reshape(-1, d)
    for way in (0, 1):
        inside = sample.at(sample.masks[way].float(), mesh)
        values = images[way].reshape(-1)
        assert (values[inside == 0] == 0).all() and (inside == 0).any()
        whole = inside == 1
        torch.testing.assert_close(values[whole], sample.at(sample.intensities[way], mesh)[whole], atol=1e-5, rtol=0)
    bytes_ = tuple((i * 255).round().to(torch.uint8) for i in sample.intensities)
    assert (replace(sample, intensities=bytes_).images(size) - images).abs().max() < 0.003


# ---- maps of the cube ----------------------------------------------------------------------------------


def smooth(points: torch.Tensor) -> torch.Tensor:
    """A picture that changes slowly, so that a grid of voxels tells it well."""
    waves = torch.tensor([[2.0, 1.0, -1.5], [-1.0, 2.5, 0.5], [1.5, 0.5, 2.0]])[:, : points.shape[-1]]
    return 0.5 + torch.sin(points @ waves.T + torch.tensor([0.3, 1.0, 2.0])).mean(-1) / 2


def synthetic(d: int) -> PairTensors:
    """The moving image is the fixed one through a known affine map; points and views go with it."""
    upper = torch.tensor([1.0, 0.9, 0.8][:d])
    step = 2 / 40
    shape = tuple(int(round(2 * float(u) / step)) + 1 for u in reversed(upper))
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), -1).flip(-1)
    grid = index * step - upper
    true = tensor(rotation(d, 10.0)) * 1.1, torch.tensor([0.05, -0.08, 0.03][:d])
    back = torch.linalg.inv(true[0])
    moving = smooth((grid - true[1]) @ back.T)
    known = (torch.rand(400, d, generator=torch.Generator().manual_seed(0)) - 0.5) * upper
    there = known @ true[0].T + true[1]
    view = torch.diag(torch.tensor([10.0, 20.0, 30.0][:d])), torch.full((d,), 7.0), torch.tensor([30.0] * d)
    return PairTensors(
        name="synthetic", intensities=(smooth(grid), moving), masks=((grid > 0).all(-1), (grid[..., 0] > 0.2)),
        distances=(grid[..., 0] * 0.5, grid[..., 1] * 0.5), half_extents_cube=upper, lower_cube=-upper,
        spacing_cube=step, similarity=MindSettings(), views=(view, view), known=(known, there),
        landmarks=(known[:20], there[:20]), labels=((grid > 0).all(-1).short() * 3, (grid > 0.1).all(-1).short()),
        to_moving_mm=torch.diag(torch.tensor([100.0, 90.0, 80.0][:d])),
    )  # fmt: skip


def frame(d: int, seed: int, flip: bool):
    rng = np.random.default_rng(seed)
    matrix = rotation(d, rng.uniform(-15, 15), seed) @ np.diag(rng.uniform(0.85, 1.15, d))
    return tensor(matrix * (np.where(rng.random(d) < 0.5, -1, 1) if flip else 1)), tensor(rng.uniform(-0.08, 0.08, d))


def agree(sample: PairTensors, points) -> tuple[float, float]:
    """How much the images differ at points that correspond, mean and most, of those within both."""
    here, there = points
    within = ((here.abs() < sample.half_extents_cube * 0.97) & (there.abs() < sample.half_extents_cube * 0.97)).all(1)
    assert within.float().mean() > 0.5
    a, b = (sample.at(i, p[within]) for i, p in zip(sample.intensities, points, strict=True))
    return float((a - b).abs().mean()), float((a - b).abs().max())


@pytest.mark.parametrize("same", [True, False], ids=["both alike", "each by itself"])
@pytest.mark.parametrize("flip", [False, True], ids=["", "flipped"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", [2, 3])
def test_known_points_stay_on_the_same_tissue(d, seed, flip, same):
    sample = synthetic(d)
    assert agree(sample, sample.known)[1] < 0.02
    frames = Both(frame(d, seed, flip), frame(d, seed if same else seed + 50, flip))
    moved = sample.moved(frames)
    mean, most = agree(moved, moved.known)
    assert mean < 0.006 and most < 0.05
    assert agree(moved, moved.landmarks)[1] < 0.05
    assert agree(moved, sample.known)[0] > 5 * mean  # it has moved at all
    # the same voxels are in view, and distances in mm stay
    for way in (0, 1):
        (m, o, _), (n, p, _) = sample.views[way], moved.views[way]
        torch.testing.assert_close(moved.known[way] @ n.T + p, sample.known[way] @ m.T + o, atol=1e-3, rtol=0)
    apart, before = ((s.known[1][:9] - s.known[1][9:18]) @ s.to_moving_mm.T for s in (moved, sample))
    torch.testing.assert_close(apart, before, atol=1e-3, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_a_flip_of_both_turns_all_of_it_round(d):
    sample = synthetic(d)
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0][:d])), torch.zeros(d)
    moved = sample.moved(Both(mirror, mirror))
    for name in ("intensities", "masks", "distances", "labels"):
        for before, after in zip(getattr(sample, name), getattr(moved, name), strict=True):
            assert after.dtype == before.dtype
            torch.testing.assert_close(after, before.flip(-1), atol=2e-5, rtol=0)
    for before, after in zip(sample.known, moved.known, strict=True):
        torch.testing.assert_close(after, before @ mirror[0])


def same(a, b) -> bool:
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_swapped_twice_is_as_before():
    sample = synthetic(2)
    once, twice = sample.swapped(), sample.swapped().swapped()
    for f in fields(PairTensors):
        if f.name not in ("to_moving_mm",):
            assert same(getattr(twice, f.name), getattr(sample, f.name)), f.name
    assert torch.equal(once.intensities[0], sample.intensities[1])
    assert torch.equal(once.known[0], sample.known[1])
    assert once.to_moving_mm is None  # mm of an image that is no longer the moving one
    assert agree(once, once.known)[1] < 0.02


def test_features_follow_the_images():
    sample = synthetic(2)
    before = sample.volumes
    moved = sample.moved(Both(frame(2, 1, False), frame(2, 2, False)))
    assert not torch.equal(moved.volumes[0].volume, before[0].volume)
    assert torch.equal(sample.swapped().volumes[0].volume, before[1].volume)
    assert sample.to("cpu") is sample


@pytest.mark.parametrize("d", [2, 3])
def test_centres_of_a_mask_are_some_of_all_centres_spread_over_it(d):
    sample = synthetic(d)
    mask = sample.masks.fixed
    inside = sample.voxel_centres()[mask.reshape(-1)]
    assert torch.equal(sample.voxel_centres(mask), inside)
    some = sample.voxel_centres(mask, 50)
    assert len(some) == 50 and torch.equal(some[[0, -1]], inside[[0, -1]])
    assert ((some[:, None] - inside).abs().amax(-1).amin(1) == 0).all() and len(torch.unique(some, dim=0)) == 50


# ---- through maps, and coarser -------------------------------------------------------------------------


def voxel_maps(sample: PairTensors, forward: torch.Tensor) -> FieldMap:
    """A map whose code is ``forward`` (d, (z,) y, x) in units of the cube; its inverse map is left as the identity."""
    d = len(sample.half_extents_cube)
    local = torch.cat([forward, torch.zeros_like(forward)])[None] / LINEAR_CUBE
    settings = VoxelSettings(local_code=2 * d)
    return FieldMap(VoxelFields(settings, d), Code(torch.zeros(1, 1), local, sample.half_extents_cube))


def shift_maps(sample: PairTensors, shift_cube) -> FieldMap:
    return voxel_maps(sample, tensor(shift_cube).reshape(-1, *[1] * len(shift_cube)).expand(-1, *[3] * len(shift_cube)))


@pytest.mark.parametrize("d", [2, 3])
def test_through_a_shift_of_whole_voxels_the_moving_image_is_the_shifted_one(d):
    sample, voxels = synthetic(d), (4, -3, 2)[:d]
    shift = tensor(voxels) * sample.spacing_cube
    rest = sample.through(shift_maps(sample, shift))

    def inner(values: torch.Tensor, by) -> torch.Tensor:
        """All but a border of 5 voxels, ``by`` (x first) further along."""
        for axis, step in enumerate(reversed(by)):
            values = values.narrow(axis, 5 + step, values.shape[axis] - 10)
        return values

    for name in ("intensities", "masks", "distances", "labels"):
        (fixed, moving), before = getattr(rest, name), getattr(sample, name)
        assert fixed is before[0] and moving.dtype == before[1].dtype, name
        torch.testing.assert_close(inner(moving, [0] * d), inner(before[1], voxels), atol=2e-5, rtol=0, msg=name)
        assert not torch.equal(inner(moving, [0] * d), inner(before[1], [0] * d)), name
    for name in ("known", "landmarks"):  # what is left is less by the shift
        (fixed, moving), before = getattr(rest, name), getattr(sample, name)
        assert fixed is before[0]
        torch.testing.assert_close(moving, before[1] - shift, atol=1e-6, rtol=0)
    assert rest.to_moving_mm is None and rest.outer is not None and sample.outer is None
    assert rest.volumes[0] is sample.volumes[0] and rest.volumes[1] is not sample.volumes[1]
    points = torch.rand(500, d, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for way, by in ((0, torch.zeros(d)), (1, shift)):  # in view is what was seen there
        seen = rest.volumes[way].inside(points)
        assert torch.equal(seen, sample.volumes[way].inside(points + by)) and 0 < seen.mean() < 1
    assert not torch.equal(rest.volumes[1].inside(points), sample.volumes[1].inside(points))


@pytest.mark.parametrize("d", [2, 3])
def test_through_any_map_known_points_stay_on_the_same_tissue(d):
    sample = synthetic(d)
    noise = torch.rand(d, *[4] * d, generator=torch.Generator().manual_seed(2)) * 0.2 - 0.1
    maps = voxel_maps(sample, noise)
    rest = sample.through(maps)
    mean, most = agree(rest, rest.known)
    assert mean < 0.006 and most < 0.05
    assert agree(rest, sample.known)[0] > 5 * mean  # the map does something
    torch.testing.assert_close(maps.forward(rest.known[1]), sample.known[1], atol=1e-3, rtol=0)
    # it is taken at every third voxel: off by a few hundredths of one at most, but at the border, where it has a kink
    centres = sample.voxel_centres()
    shape = sample.intensities.fixed.shape
    gap = sample._seen_units(maps).reshape(-1, d) - sample._units(maps.forward(centres), shape)
    gap = (gap * (torch.tensor(shape).flip(0) - 1) / 2 * sample.spacing_cube).abs().amax(1)
    assert gap[(centres.abs() < 0.9 * sample.half_extents_cube).all(1)].max() < 0.06 * sample.spacing_cube


def ramp(d: int, size: tuple[int, ...]) -> tuple[PairTensors, torch.Tensor]:
    """Images that are slopes, each another one, and the slopes (2, d)."""
    spacing, slopes = 0.1, torch.tensor([[0.05, -0.03, 0.04], [-0.02, 0.06, 0.01]])[:, :d]
    upper = (tensor(size) - 1) / 2 * spacing
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in reversed(size)], indexing="ij"), -1).flip(-1)
    grid = index * spacing - upper
    images = tuple(0.5 + grid @ slope for slope in slopes)
    masks = tuple(grid[..., 0] > level for level in (0.0, -0.11))
    known = (grid.reshape(-1, d)[:5], grid.reshape(-1, d)[5:10])
    view = torch.eye(d), torch.zeros(d), torch.ones(d)
    sample = PairTensors(
        name="ramp", intensities=images, masks=masks, distances=images, half_extents_cube=upper, lower_cube=-upper,
        spacing_cube=spacing, similarity=MindSettings(), views=(view, view), known=known, labels=masks,
        to_moving_mm=torch.eye(d),
    )  # fmt: skip
    return sample, slopes


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("size", [(12, 18), (13, 11), (13, 12, 11)])
def test_a_ramp_stays_the_same_ramp_on_a_coarser_grid(size, factor):
    """At its new voxel centres; where the size does not divide, the last voxel is the mean of what is left."""
    d, mse = len(size), IntensitySettings("mse")
    sample, slopes = ramp(d, size)
    small = sample.downsampled(factor, mse)
    assert small.intensities[0].shape == tuple(-(-n // factor) for n in reversed(size))
    assert small.similarity == mse and small.spacing_cube == pytest.approx(factor * 0.1)
    whole = tuple(slice(0, n // factor) for n in reversed(size))
    centres = small.voxel_centres().reshape(*small.intensities[0].shape, d)
    for way, slope in enumerate(slopes):
        for values in (small.intensities[way], small.distances[way]):
            torch.testing.assert_close(values[whole], (0.5 + centres @ slope)[whole], atol=1e-6, rtol=0)
            last = sample.intensities[way][tuple(slice((n - 1) // factor * factor, n) for n in reversed(size))]
            assert float(values.flatten()[-1]) == pytest.approx(float(last.mean()), abs=1e-6)
        # more than half of a voxel has to be in the mask; a cut across x is seen in every row alike
        parts = sample.masks[way].float()[(0,) * (d - 1)].split(factor)
        expected = torch.stack([part.mean() > 0.5 for part in parts])
        assert small.masks[way].dtype == torch.bool and torch.equal(
            small.masks[way], expected.expand_as(small.masks[way])
        )
        assert 0 < expected.float().mean() < 1
    assert small.labels is None and same(small.known, sample.known) and same(small.views, sample.views)
    assert small.half_extents_cube is sample.half_extents_cube and small.to_moving_mm is sample.to_moving_mm


def test_features_are_those_of_the_coarser_images():
    """Also with the same spacing, and when the sample's own were made before."""
    sample, _ = ramp(2, (12, 18))
    sample = replace(sample, intensities=tuple((i * 255).round().to(torch.uint8) for i in sample.intensities))
    assert sample.volumes[0].volume.dtype == torch.uint8  # of MIND
    for factor in (1, 2):
        features = sample.downsampled(factor, IntensitySettings("mse")).volumes[0].volume
        assert features.dtype == torch.float32 and features.shape[-1] == 1
        assert features.shape[:2] == (18 // factor, 12 // factor)
        assert abs(float(features.mean()) - 0.5) < 0.003


# ---- augmentation --------------------------------------------------------------------------------------


def test_augmentation_follows_its_seed():
    sample, draw = synthetic(2), Augmentation(flip=0.5)
    a, b, c = (draw(sample, seed) for seed in (3, 3, 4))
    assert same(a.intensities, b.intensities) and same(a.known, b.known)
    assert not same(a.intensities, c.intensities)
    for seed in range(8):
        one = draw(sample, seed)
        assert agree(one, one.known)[0] < 0.006


def test_no_augmentation_leaves_the_sample_as_it_is():
    sample = synthetic(2)
    assert NONE(sample, 1) is sample
    swapped = replace(NONE, swap=1.0)(sample, 1)
    assert same(swapped.intensities, sample.intensities[::-1])


@pytest.mark.parametrize("d", [2, 3])
def test_both_alike_keeps_the_map_between_them(d):
    """Without ``apart`` the same affine map of the cube is applied to both images."""
    sample = synthetic(d)
    moved = replace(NONE, rotation_deg=15.0, scale=0.15, shift=0.1, flip=1.0)(sample, 5)
    # fixed = B fixed', moving = B moving' with one B: what corresponds to what it would without a map stays so
    equal = replace(sample, known=(sample.known[0], sample.known[0]))
    again = replace(NONE, rotation_deg=15.0, scale=0.15, shift=0.1, flip=1.0)(equal, 5)
    assert torch.equal(*again.known) and torch.equal(again.known[0], moved.known[0])
    apart = replace(NONE, apart_shift=0.1)(equal, 5)
    gap = apart.known[1] - apart.known[0]
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), atol=1e-5, rtol=0)
    assert 0.01 < gap[0].abs().max() < 0.12
