"""Triangles and circles: their shape, what the seed fixes, and how pairs are made."""

from __future__ import annotations

import numpy as np
import pytest
from nephi.errors import NephiError
from nephi.measure import quality
from nephi.synthetic.shapes import CIRCLE, HALF, TRAINING, TRIANGLE, VALIDATION, shape_images, shape_pairs

SIDE = 128


@pytest.fixture(scope="module")
def solid():
    return shape_images(400, 5)


@pytest.fixture(scope="module")
def hollow():
    return shape_images(400, 5, hollow=True)


def _whole(images: np.ndarray) -> np.ndarray:
    """Which images (n,) hold a shape that the border does not cut."""
    inside = images > HALF
    return ~(inside[:, [0, -1]].any((1, 2)) | inside[:, :, [0, -1]].any((1, 2)))


def _centre_and_reach(inside: np.ndarray) -> tuple[np.ndarray, float]:
    points = np.argwhere(inside)
    centre = points.mean(0)
    return centre, float(np.linalg.norm(points - centre, axis=1).max())


def test_both_kinds_and_all_levels(solid):
    images, kinds = solid
    assert images.shape == (400, SIDE, SIDE) and images.dtype == np.uint8
    assert set(np.unique(kinds)) == {CIRCLE, TRIANGLE}
    assert 0.4 < (kinds == TRIANGLE).mean() < 0.6
    assert images.min() == 0 and images.max() == 255
    soft = (images > 12) & (images < 243)
    assert 0.05 < soft.mean() < 0.2  # an edge of a few pixels, not a step and not a blur


def test_the_area_tells_a_circle_from_an_equilateral_triangle(solid):
    images, kinds = solid
    shares = {CIRCLE: [], TRIANGLE: []}
    for image, kind in zip(images[_whole(images)], kinds[_whole(images)], strict=True):
        centre, reach = _centre_and_reach(image > HALF)
        assert 0.18 < reach / (SIDE - 1) < 0.41
        assert (centre > 0.39 * SIDE).all() and (centre < 0.71 * SIDE).all()
        shares[kind].append((image > HALF).sum() / reach**2)
    assert np.mean(shares[CIRCLE]) == pytest.approx(np.pi, rel=0.02)
    assert np.mean(shares[TRIANGLE]) == pytest.approx(3**1.5 / 4, rel=0.04)
    assert len(shares[CIRCLE]) > 50 < len(shares[TRIANGLE])


def test_triangles_are_turned_any_way(solid):
    images, kinds = solid
    triangles = images[_whole(images) & (kinds == TRIANGLE)] > HALF
    corners = []
    for inside in triangles:
        points = np.argwhere(inside) - _centre_and_reach(inside)[0]
        y, x = points[np.linalg.norm(points, axis=1).argmax()]
        corners.append(np.arctan2(y, x) % (2 * np.pi / 3))
    counts, _ = np.histogram(corners, 4, (0, 2 * np.pi / 3))
    assert counts.min() > len(corners) / 10


def test_hollow_is_the_outline_of_solid(solid, hollow):
    (filled, kinds), (lines, same) = solid, hollow
    np.testing.assert_array_equal(kinds, same)
    value = filled / 255
    np.testing.assert_allclose(lines / 255, 4 * value * (1 - value), atol=0.012)  # 1 - tanh^2
    ring, disc = (array[_whole(lines) & (kinds == CIRCLE)] > HALF for array in (lines, filled))
    radius = np.sqrt(disc.sum((1, 2)) / np.pi)
    thickness = ring.sum((1, 2)) / (2 * np.pi * radius)
    np.testing.assert_allclose(thickness, 0.044 * (SIDE - 1), rtol=0.05)


def test_the_seed_alone_decides(solid):
    images, kinds = solid
    few, few_kinds = shape_images(70, 5)  # whatever is drawn along with it
    np.testing.assert_array_equal(few, images[:70])
    np.testing.assert_array_equal(few_kinds, kinds[:70])
    assert (shape_images(70, 6)[0] != few).any((1, 2)).all()
    for a, b in zip(shape_pairs(20, 5), shape_pairs(9, 5), strict=True):
        np.testing.assert_array_equal(a[:9], b)


def test_a_larger_image_shows_the_same_shape():
    small, large = shape_images(20, 9)[0], shape_images(20, 9, size=256)[0]
    assert large.shape == (20, 256, 256)
    np.testing.assert_allclose((large > HALF).mean((1, 2)), (small > HALF).mean((1, 2)), rtol=0.05)


def _is_circle(images: np.ndarray) -> np.ndarray:
    inside = images > HALF
    return np.array([image.sum() / _centre_and_reach(image)[1] ** 2 > 2.2 for image in inside])


def test_pairs_are_of_one_kind_unless_asked_for():
    fixed, moving = shape_pairs(200, 3)
    whole = _whole(fixed) & _whole(moving)
    assert whole.sum() > 100
    np.testing.assert_array_equal(_is_circle(fixed[whole]), _is_circle(moving[whole]))
    fixed, moving = shape_pairs(200, 3, same_kind=False)
    whole = _whole(fixed) & _whole(moving)
    assert 0.35 < (_is_circle(fixed[whole]) == _is_circle(moving[whole])).mean() < 0.65


def test_there_is_something_to_register():
    fixed, moving = shape_pairs(50, 3, hollow=True)
    overlap = [quality.dice(a > HALF, b > HALF) for a, b in zip(fixed, moving, strict=True)]
    assert 0.02 < np.mean(overlap) < 0.5


def test_training_and_validation_differ():
    assert (TRAINING[0], VALIDATION[0]) == (10_000, 1_000)
    training, validation = (shape_pairs(30, seed)[0] for _, seed in (TRAINING, VALIDATION))
    assert not any((image == validation).all((1, 2)).any() for image in training)


@pytest.mark.parametrize(("count", "size"), [(0, 128), (-3, 128), (4, 7)])
def test_too_few_images_or_pixels(count, size):
    for draw in (shape_images, shape_pairs):
        with pytest.raises(NephiError, match="shapes: "):
            draw(count, 1, size=size)
