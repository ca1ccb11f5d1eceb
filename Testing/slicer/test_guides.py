"""What guides a registration goes from nodes to the engine, which says what it got."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from helpers import (
    add_segment,
    by_file,
    finish,
    lps,
    markups_node,
    matrix_of,
    node_list,
    phantom_job,
    points_in,
    rigid,
    transformed,
    volume_node,
)
from NePhiRegistrationLib import maps
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.guides import Guides
from NePhiRegistrationLib.logic import Logic, _outputs
from slicer.util import vtkMatrixFromArray

HALVES = {"right lung": np.s_[..., :32], "left lung": np.s_[..., 32:]}


def segmentation(scene, image: sitk.Image, parts: dict, name: str):
    """A segment for each part of a mask, in this order."""
    node, mask = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name), sitk.GetArrayFromImage(image)
    for part, where in parts.items():
        values = np.zeros_like(mask)
        values[where] = mask[where]
        add_segment(node, values, matrix_of(image), part)
    return node


def box(image: sitk.Image, z, y, x) -> sitk.Image:
    values = np.zeros(image.GetSize()[::-1], np.uint8)
    values[z, y, x] = 1
    made = sitk.GetImageFromArray(values)
    made.CopyInformation(image)
    return made


@pytest.fixture(scope="module")
def guided(phantom, tmp_path_factory):
    """A run of few iterations with everything that can guide it; the segments come in other orders on either side."""
    scene = slicer.vtkMRMLScene()
    job = phantom_job(scene, phantom, overrides={"fit": {"iterations": 30}})
    fixed, moving = (lps(points[::20]) for points in (phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm))
    guides = job.guides
    guides.fixed_landmarks, guides.moving_landmarks = markups_node(scene, fixed, "a"), markups_node(scene, moving, "b")
    guides.landmarks_sd_mm = 2.5
    guides.fixed_labels = segmentation(scene, phantom.fixed_mask, HALVES, "fixed lungs")
    back = dict(reversed(HALVES.items()))
    guides.moving_labels = segmentation(scene, phantom.moving_mask, back, "moving lungs")
    guides.fixed_excluded = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "findings")
    lesion = box(phantom.fixed, np.s_[20:24], np.s_[20:25], np.s_[14:18])
    for name, image in (("scar", phantom.fixed_mask), ("lesion", lesion)):
        key = add_segment(guides.fixed_excluded, sitk.GetArrayFromImage(image), matrix_of(image), name)
    guides.fixed_excluded_segment = key
    labels = "vtkMRMLLabelMapVolumeNode"
    bone = box(phantom.fixed, np.s_[30:34], np.s_[8:14], np.s_[30:34])
    guides.rigid = volume_node(scene, 7 * bone, "bone", labels)
    guides.volume_kept = volume_node(scene, 5 * lesion, "tumour", labels)
    job.tolerances_file = str(tmp_path_factory.mktemp("site") / "clinic.json")
    Path(job.tolerances_file).write_text('{"set_by": "Physics", "mean_mm": 7.5}')
    run = finish(Logic(scene).start(job))
    assert run.state == "done", run.error
    assert maps.error_tolerance_mm(run.outputs) == 7.5 and "Physics" in maps.error_text(run.outputs)
    return run.outputs.report["guidance"], len(fixed)


def test_landmarks_guide_with_their_deviation(guided):
    report, count = guided
    assert report["landmarks"]["after"]["n"] == count
    assert report["landmarks"]["sd_mm"] == {"least": 2.5, "most": 2.5}
    assert report["landmarks"]["after"]["mean"] < 0.5 * report["landmarks"]["before"]["mean"]


def test_segments_are_matched_by_their_names(guided):
    """By their order, right would have been matched to left."""
    labels = guided[0]["labels"]
    assert [row["label"] for row in labels] == [1, 2] and all(row["dice_after"] > 0.8 for row in labels)


def test_one_segment_is_left_out_and_label_maps_keep_their_numbers(guided):
    report = guided[0]
    assert list(report["excluded"]) == ["fixed"]
    assert report["excluded"]["fixed"]["volume_ml"] == pytest.approx(4 * 5 * 4 * 5.0**3 / 1000)
    assert [row["label"] for row in report["rigid"]] == [7] and report["rigid"][0]["voxels"] == 4 * 6 * 4
    assert [row["label"] for row in report["volume_kept"]] == [5]
    assert abs(report["volume_kept"][0]["change_percent"]) < 5


@pytest.fixture
def bent(scene, phantom):
    """Waves of 6 mm, held by their way to the parent, as a transform of *moving* points, below a rigid parent."""
    size, spacing = (20, 20, 20), 20.0
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    index_zyx = np.indices(size[::-1]).reshape(3, -1)
    shift = 6 * np.sin(index_zyx[::-1].T * spacing / 60)
    image = vtk.vtkImageData()
    image.SetDimensions(size)
    image.SetSpacing(spacing, spacing, spacing)
    image.SetOrigin(-190, -190, -190)
    image.GetPointData().SetScalars(numpy_to_vtk(shift, deep=True))
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(image)
    node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "bent")
    node.SetAndObserveTransformToParent(grid)
    parent = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "parent")
    parent.SetMatrixTransformToParent(vtkMatrixFromArray(rigid((0, 5, 10), (-12, 8, 20))))
    node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def from_world(node, points_ras_mm) -> np.ndarray:
    import vtk

    general = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(general)
    return np.array([general.TransformPoint(point) for point in np.asarray(points_ras_mm).tolist()])


def test_bent_initial_transform_is_written_from_fixed_to_moving(scene, phantom, bent, tmp_path):
    fixed = phantom_job(scene, phantom).fixed
    nodes.write_bent_transform(bent, fixed, tmp_path / "initial.h5")
    points = points_in(phantom.fixed)
    expected = from_world(bent, points)
    assert np.linalg.norm(expected - points, axis=1).std() > 1
    assert np.abs(by_file(tmp_path / "initial.h5", points) - expected).max() < 0.1


def test_bent_initial_transform_is_where_the_run_begins(scene, phantom, bent):
    job = phantom_job(scene, phantom, initial_transform=bent, overrides={"fit": {"iterations": 0}}, align="moments")
    run = finish(Logic(scene).start(job))
    assert run.state == "done", run.error
    points = points_in(phantom.fixed)
    miss = np.linalg.norm(transformed(run.outputs.forward, points) - from_world(bent, points), axis=1)
    assert miss.mean() < 0.3 and run.outputs.report["alignment"]["method"] == "initial"
    assert run.outputs.folder is not None and not (run.outputs.folder / "report.html").exists()  # nobody asked for it


def test_what_cannot_guide_is_said_in_words(scene, phantom):
    job = phantom_job(scene, phantom)
    labels, empty = job.fixed_mask, scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    one = segmentation(scene, phantom.fixed_mask, {"right lung": HALVES["right lung"]}, "one")
    other = segmentation(scene, phantom.moving_mask, {"liver": HALVES["right lung"]}, "other")
    points = [markups_node(scene, np.zeros((n, 3)), "points") for n in (2, 3)]
    before = node_list(scene)
    cases = (
        (Guides(fixed_landmarks=points[0]), "Guiding landmarks: Landmarks are needed in both"),
        (Guides(*points), "2 fixed and 3 moving"),
        (Guides(fixed_labels=labels), "choose a label map for each"),
        (Guides(fixed_labels=one, moving_labels=other), "liver, right lung"),
        (Guides(fixed_labels=one, moving_labels=labels), "not one of each"),
        (Guides(fixed_labels=empty, moving_labels=one), "fixed regions has no segments"),
        (Guides(moving_excluded=empty), "moving region to leave out has no segments"),
        (Guides(rigid=one, rigid_segment="gone"), "rigid region is no longer in one"),
        (Guides(volume_kept=empty), "keeps its volume has no segments"),
    )
    for guides, words in cases:
        job.guides = guides
        assert words in job.problem(), job.problem()
    job.guides, job.sliding, job.auto_mask, mask = Guides(), True, False, job.moving_mask
    assert not job.problem() and job.settings().sliding
    job.moving_mask = None
    assert "choose a mask of the lungs in both volumes" in job.problem()
    job.sliding, job.moving_mask = False, mask
    job.guides = Guides(fixed_labels=labels, moving_labels=job.moving_mask)
    assert job.problem() == "" and node_list(scene) == before


def test_report_with_pictures_is_written_where_it_is_asked_for(scene, phantom):
    job, logic = phantom_job(scene, phantom), Logic(scene)
    seconds = logic.estimate(job).seconds
    job.page = True
    assert logic.estimate(job).seconds > seconds and "report" in _outputs(job)
