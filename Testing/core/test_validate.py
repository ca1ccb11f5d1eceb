"""Folds of a prediction, against maps whose folds are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nephi.learning.dataset import Shapes
from nephi.learning.settings import ModelSettings
from nephi.learning.validate import folds_percent
from nephi.maps.maps import Map


class Known(Map):
    """A map in the place of a prediction's."""

    half_extents_cube = torch.ones(2)

    def __init__(self, function):
        self.function = function

    def forward(self, points_cube):
        return self.function(points_cube)

    inverse = to = forward


@pytest.fixture(scope="module")
def sample():
    return Shapes(False, ModelSettings(dimension=2), True, 1)[0]


def folds(function, sample) -> float:
    return folds_percent(Known(function), sample)


def along_x(function):
    return lambda p: torch.stack([function(p[:, 0]), p[:, 1]], -1)


def test_of_the_identity_none_and_of_a_mirror_all(sample):
    assert folds(along_x(lambda x: 1.5 * x), sample) == 0
    assert folds(along_x(lambda x: -x), sample) == 100


def test_negative_zero_and_undefined_determinants_count_by_the_voxel(sample):
    x = sample.voxel_centres()[:, 0]
    for limit in (-0.5, 0.0, 0.3):
        left = 100 * float((x < limit).float().mean())
        assert 0 < left < 100
        assert folds(along_x(lambda x, at=limit: torch.where(x < at, -x, x)), sample) == pytest.approx(left)
        assert folds(along_x(lambda x, at=limit: torch.where(x < at, 0 * x, x)), sample) == pytest.approx(left)
        undefined = along_x(lambda x, at=limit: (x - at).sqrt())  # NaN below the limit
        assert folds(undefined, sample) == pytest.approx(left)


def test_only_the_mask_counts(sample):
    x = sample.voxel_centres()[:, 0].reshape(sample.intensities[0].shape)
    masked = replace(sample, masks=(x > 0.0, x > 0.0))
    folded = along_x(lambda x: torch.where(x < 0.5, -x, x))
    inside = 100 * float(((x > 0) & (x < 0.5)).sum() / (x > 0).sum())
    assert folds(folded, masked) == pytest.approx(inside)
