"""Labels, made heads and scores of the benchmark on brains, on a phantom whose tissues are known."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.images.hounsfield import background

from benchmarks.appearances import in_head
from benchmarks.brain import tissues
from benchmarks.pairs import Prepared
from benchmarks.scoring import evaluate

N, MM = 40, 2.0
RADII_MM = {1: 36.0, 3: 32.0, 5: 22.0, 2: 8.0}  # outer fluid, grey matter, white matter, ventricle
VALUES = {0: 0.0, 1: 0.2, 2: 0.2, 3: 0.5, 5: 1.0}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    at = (np.arange(N) - (N - 1) / 2) * MM
    away = np.linalg.norm(np.stack(np.meshgrid(at, at, at, indexing="ij")), axis=0)
    out = np.zeros((N, N, N), np.uint8)
    for label, radius in RADII_MM.items():
        out[away < radius] = label
    return out


def image(values: np.ndarray) -> sitk.Image:
    out = sitk.GetImageFromArray(values)
    out.SetSpacing([MM] * 3)
    return out


def shown(labels: np.ndarray) -> sitk.Image:
    return image(np.select([labels == n for n in VALUES], list(VALUES.values())).astype(np.float32))


def test_tissues_are_told_apart_by_intensity_and_depth(labels):
    found = sitk.GetArrayFromImage(tissues(shown(labels)))
    assert (found == labels).mean() > 0.99
    assert set(np.unique(found)) == {0, 1, 2, 3, 5}


def test_a_made_head_keeps_the_brain_and_surrounds_it(labels):
    brain = shown(labels)
    head = in_head(brain, np.random.default_rng(0))
    assert background(brain) == 0 and background(head) is None
    inner = sitk.GetArrayFromImage(sitk.Resample(head, brain, sitk.Transform(), sitk.sitkNearestNeighbor))
    assert np.abs(inner - sitk.GetArrayFromImage(brain))[labels > 0].mean() < 0.05
    away = sitk.GetArrayFromImage(head)
    assert (away > 0.6).sum() > (inner > 0.6).sum() + 1000  # fat and skin


def test_labels_are_scored_where_no_landmarks_are_known(labels, tmp_path):
    prepared, out = tmp_path / "input", tmp_path / "out"
    prepared.mkdir()
    out.mkdir()
    values = Prepared([1.0] * 3, [0.0] * 3, [0.0, 1.0], False, 0, 0.0, 0.0, [N] * 3, [MM] * 3)
    (prepared / "prepared.json").write_text(json.dumps(asdict(values)), encoding="utf-8")
    moved = np.roll(labels, 2, axis=2)
    for role, own in (("fixed", labels), ("moving", moved)):
        sitk.WriteImage(shown(own), str(prepared / f"{role}.nii.gz"))
        sitk.WriteImage(image(own), str(prepared / f"{role}_labels.nii.gz"))
    dice = []
    for shift_mm in (0.0, 2 * MM):
        field = np.zeros((N, N, N, 3), np.float32)
        field[..., 0] = shift_mm
        displacement = sitk.GetImageFromArray(field, isVector=True)
        displacement.SetSpacing([MM] * 3)
        sitk.WriteImage(displacement, str(out / "displacement.mha"))
        scores = evaluate(prepared, out)
        assert scores["folds"] == 0 and scores["tre_mean"] is None and scores["log_jacobian_sd"] < 1e-6
        dice.append(scores["dice"])
    assert dice[1] == 1.0 and dice[0] < 0.8
