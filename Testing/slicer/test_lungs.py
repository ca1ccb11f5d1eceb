"""Lungs that the engine detects become segmentations that lie where the volume lies."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from helpers import node_list, phantom_job, put_under, rigid, volume_node
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.job import LogicError
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.lungs import LungSearch


def finish(search: LungSearch) -> LungSearch:
    end = time.monotonic() + 120
    while search.poll():
        assert time.monotonic() < end
        time.sleep(0.05)
    return search


def _labels(segmentation, volume, tmp_path) -> tuple[np.ndarray, dict]:
    names = nodes.write_labels(segmentation, volume, tmp_path / "labels.nrrd")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels.nrrd"))), names


def test_segments_are_the_patient_s_right_and_left_lung_wherever_the_volume_lies(scene, phantom, tmp_path):
    """One volume is stored askew under a transform, the other with its axes reversed."""
    scene.AddNode(slicer.vtkMRMLSubjectHierarchyNode())
    flipped = sitk.DICOMOrient(phantom.moving, "RAS")
    volumes = [phantom_job(scene, phantom).fixed, volume_node(scene, flipped, "flipped")]
    put_under(volumes[0], rigid((10.0, -5.0, 20.0), (40.0, 10.0, -30.0)))
    before = node_list(scene)
    search = finish(LungSearch(Logic(scene, temporary=tmp_path / "runs"), volumes))
    assert search.errors == [] and [volume for volume, _made in search.made] == volumes
    for (volume, made), mask in zip(search.made, (phantom.fixed_mask, phantom.moving_mask), strict=True):
        assert made.GetName() == f"Lungs of {volume.GetName()}"
        labels, names = _labels(made, volume, tmp_path)
        assert names == {1: "right lung", 2: "left lung"}
        truth = sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "RAS" if volume is volumes[1] else "LPS")) > 0
        assert 2 * ((labels > 0) & truth).sum() / ((labels > 0).sum() + truth.sum()) > 0.8
        centres = [np.append(np.argwhere(labels == label).mean(0)[::-1], 1.0) for label in (1, 2)]
        right, left = (nodes.ijk_to_world(volume) @ centre for centre in centres)
        assert right[0] > left[0]  # RAS
        parent = volume.GetParentTransformNode()
        assert made.GetParentTransformNode() is parent
    assert not list((tmp_path / "runs").iterdir())
    added = {name for _id, name in node_list(scene)} - {name for _id, name in before}
    assert {name for name in added if name.startswith("Lungs of")} == {made.GetName() for _volume, made in search.made}


def test_what_holds_no_lungs_is_named_and_stops_none_of_the_others(scene, phantom, tmp_path):
    scene.AddNode(slicer.vtkMRMLSubjectHierarchyNode())
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 20, (16, 16, 16)).astype(np.float32))
    volumes = [volume_node(scene, noise, "An MR"), phantom_job(scene, phantom).moving]
    search = finish(LungSearch(Logic(scene, temporary=tmp_path / "runs"), volumes))
    assert search.errors == ["An MR is not a 3D CT in Hounsfield units, and no pair of lungs was found in it"]
    assert [volume for volume, _made in search.made] == volumes[1:]


def test_search_is_cancelled_and_what_cannot_begin_is_said(scene, phantom, tmp_path):
    volume = phantom_job(scene, phantom).fixed
    before = node_list(scene)
    logic = Logic(scene, temporary=tmp_path / "runs")
    search = LungSearch(logic, [volume])
    search.cancel()
    assert not search.poll() and search.made == [] and not list((tmp_path / "runs").iterdir())
    logic.python = str(tmp_path / "absent")
    with pytest.raises(LogicError, match="could not be started"):
        LungSearch(logic, [volume])
    assert node_list(scene) == before and not list((tmp_path / "runs").iterdir())


def test_folder_vanishing_during_a_search_is_one_line(scene, phantom, tmp_path):
    search = LungSearch(Logic(scene, temporary=tmp_path / "runs"), [phantom_job(scene, phantom).fixed])
    shutil.rmtree(search._folder.path)
    finish(search)
    (error,) = search.errors
    assert "was removed while it ran" in error and not list((tmp_path / "runs").iterdir())
