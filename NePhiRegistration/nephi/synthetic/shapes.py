"""Triangles and circles: the 2D data of the ICON, GradICON and NePhi papers, drawn on the spot from a seed.

As in the code published with them: an image shows a circle or an equilateral triangle of any orientation, the
centre at 0.4 to 0.7 and the circumradius 0.2 to 0.4 of the side, all uniform, so that a large shape may be cut by
the image's border. With d the distance to the outline in sides, positive outside, a solid shape is
(1 - tanh 40 d) / 2 and a hollow one 1 - tanh^2 40 d: soft edges, and a line 0.044 sides thick (5.6 of 128 pixels).

The published code pairs any two images, ``same_kind=False``; by default a pair here is of one kind.

To score a registration, threshold at one half and take ``quality.dice(fixed > HALF, warped > HALF)``. The NePhi
code thresholds at 0.2, which makes a solid shape 0.017 sides larger all round and a line 0.072 sides thick.

Greer et al., ICCV 2021 (arXiv 2105.04459); Tian et al., CVPR 2023 (arXiv 2206.05897).
"""

from __future__ import annotations

import numpy as np

from ..errors import NephiError
from ..limits import Seed, check_value

TRAINING = (10_000, 1)  # count and seed of the pairs: ``shape_pairs(*TRAINING)``
VALIDATION = (1_000, 2)
CIRCLE, TRIANGLE = 0, 1
HALF = 127.5  # of 255 levels: higher values are inside the shape

_SHARPNESS = 40.0
_CHUNK = 64  # images drawn at a time stay in the CPU's cache


def shape_images(count: int, seed: int, hollow: bool = False, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images (n, size, size) uint8, value = level / 255, and their kinds (n,) uint8, CIRCLE or TRIANGLE.

    The first images of a seed are the same for every ``count``. Raises NephiError below 1 image or 8 pixels.
    """
    draws = _draws(count, seed, size)
    return _images(draws, hollow, size), _kinds(draws)


def shape_pairs(
    count: int = TRAINING[0],
    seed: int = TRAINING[1],
    hollow: bool = False,
    size: int = 128,
    same_kind: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pairs as (fixed, moving), both (n, size, size) uint8, value = level / 255.

    ``same_kind``: circle with circle and triangle with triangle, else each image is of either kind.
    The first pairs of a seed are the same for every ``count``. Raises NephiError below 1 pair or 8 pixels.
    """
    pairs = _draws(2 * count, seed, size).reshape(count, 2, 5)
    if same_kind:
        pairs[:, 1, 0] = pairs[:, 0, 0]
    return _images(pairs[:, 0], hollow, size), _images(pairs[:, 1], hollow, size)


def _draws(count: int, seed: int, size: int) -> np.ndarray:
    """(n, 5) of 0..1, a row an image: kind, centre x and y, radius, orientation."""
    if count < 1 or size < 8:
        raise NephiError(f"shapes: {count} images of {size} pixels per side; at least 1 image of 8 pixels is needed")
    check_value(seed, Seed, "seed")
    return np.random.default_rng(seed).random((count, 5))


def _kinds(draws: np.ndarray) -> np.ndarray:
    return np.where(draws[:, 0] > 0.5, TRIANGLE, CIRCLE).astype(np.uint8)


def _images(draws: np.ndarray, hollow: bool, size: int) -> np.ndarray:
    images = np.empty((len(draws), size, size), np.uint8)
    kinds = _kinds(draws)
    for kind, distance in ((CIRCLE, _to_circle), (TRIANGLE, _to_triangle)):
        which = np.flatnonzero(kinds == kind)
        for start in range(0, len(which), _CHUNK):
            rows = which[start : start + _CHUNK]
            level = distance(draws[rows], size)
            level *= -_SHARPNESS
            np.tanh(level, out=level)
            if hollow:
                level *= level
                level *= -255
                level += 255.5  # plus a half, as the conversion to integers truncates
            else:
                level *= 127.5
                level += 128
            images[rows] = level
    return images


def _placed(draws: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (n, 1, size) and y (n, size, 1) from the centre, and radius (n, 1, 1): in sides, float32."""
    _, centre_x, centre_y, radius, _ = (column[:, None, None] for column in draws.T)
    pixels = np.linspace(0, 1, size)
    x, y = pixels[None, None, :] - (0.4 + 0.3 * centre_x), pixels[None, :, None] - (0.4 + 0.3 * centre_y)
    return x.astype(np.float32), y.astype(np.float32), (0.2 + 0.2 * radius).astype(np.float32)


def _to_circle(draws: np.ndarray, size: int) -> np.ndarray:
    x, y, radius = _placed(draws, size)
    distance = x**2 + y**2
    np.sqrt(distance, out=distance)
    distance -= radius
    return distance


def _to_triangle(draws: np.ndarray, size: int) -> np.ndarray:
    """Distance to the nearest of the three lines; their distance to the centre is half the circumradius."""
    x, y, radius = _placed(draws, size)

    def side(third: int) -> np.ndarray:
        angle = 2 * np.pi * (draws[:, 4, None, None] + third / 3)
        return np.cos(angle).astype(np.float32) * x + np.sin(angle).astype(np.float32) * y

    distance = side(0)
    for third in (1, 2):
        np.maximum(distance, side(third), out=distance)
    distance -= radius / 2
    return distance
