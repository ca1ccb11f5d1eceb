"""A sequence's phases as pairs, and the sequence of transforms that is made of their results."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from helpers import by_file, matrix_of, transformed, volume_node
from nephi.files.cases import read_pairs
from NePhiRegistrationLib import phases
from NePhiRegistrationLib import scene as nodes

POINTS = np.array([[3.0, -4.0, 12.0], [10.0, -9.0, 20.0]])


def image(value: int) -> sitk.Image:
    made = sitk.Image([9, 10, 11], sitk.sitkInt16) + value
    made[4, 4, 4] = 500
    made.SetSpacing((2.0, 2.5, 3.0))
    made.SetOrigin((-5.0, 6.0, 7.0))
    return made


@pytest.fixture
def sequence(scene):
    """Three phases at 0, 30 and 60 %, and a browser of them."""
    made = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "4D CT")
    made.SetIndexName("phase")
    made.SetIndexUnit("%")
    for i in range(3):
        volume = volume_node(scene, image(i), f"p{i}")
        made.SetDataNodeAtValue(volume, str(30 * i))
        scene.RemoveNode(volume)
    scene.RegisterNodeClass(slicer.vtkMRMLSequenceBrowserNode())  # as the module Sequences does
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.AddSynchronizedSequenceNode(made)
    return made


def test_every_other_phase_is_a_pair_with_the_reference(sequence, tmp_path):
    assert phases.problem(sequence, 1) == ""
    pairs = read_pairs(phases.write_pairs(sequence, 1, tmp_path))
    assert [pair.name for pair in pairs] == ["phase_001", "phase_003"]
    for pair, value in zip(pairs, (0, 2), strict=True):
        fixed, moving = (sitk.ReadImage(str(pair.files[role])) for role in ("fixed", "moving"))
        assert fixed[0, 0, 0] == 1 and moving[0, 0, 0] == value
        np.testing.assert_allclose(matrix_of(moving), matrix_of(image(0)), atol=1e-6)


def test_transforms_follow_the_phases(sequence, scene, tmp_path):
    """Of a phase without a result, as of the reference, nothing moves."""
    field = sitk.GetImageFromArray(np.broadcast_to([4.0, -2.0, 1.0], (5, 5, 5, 3)).copy(), isVector=True)
    field.SetSpacing((20.0,) * 3)
    field.SetOrigin((-40.0,) * 3)
    (tmp_path / "phase_001").mkdir()
    sitk.WriteTransform(sitk.DisplacementFieldTransform(field), str(tmp_path / "phase_001" / "transform.h5"))
    wanted = by_file(tmp_path / "phase_001" / "transform.h5", POINTS)
    made = phases.add_transforms(sequence, 1, tmp_path)
    assert [made.GetNthIndexValue(i) for i in range(3)] == ["0", "30", "60"] and made.GetIndexUnit() == "%"
    for i, points in enumerate((wanted, POINTS, POINTS)):
        np.testing.assert_allclose(transformed(made.GetNthDataNode(i), POINTS), points, atol=1e-4)
    (browser,) = nodes.of_class(scene, "vtkMRMLSequenceBrowserNode")
    assert browser.IsSynchronizedSequenceNode(made)
    assert phases.add_transforms(sequence, 1, tmp_path / "none") is None


def test_what_cannot_be_registered_is_said(sequence, scene):
    assert "3 phases" in phases.problem(sequence, 3)
    empty = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "empty")
    assert "fewer than two" in phases.problem(empty, 0)
    for i in range(2):
        empty.SetDataNodeAtValue(slicer.vtkMRMLModelNode(), str(i))
    assert "does not contain volumes" in phases.problem(empty, 0)
