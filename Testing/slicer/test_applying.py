"""A result applied to something else, pairs of landmarks, DICOM, and the text of a paper."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from helpers import add_segment, lps, markups_node, matrix_of, points_in, put_under, rigid, transformed, volume_node
from nephi.errors import NephiError
from NePhiRegistrationLib import dicom_export, display, methods, pairs
from NePhiRegistrationLib.applying import apply_to
from slicer.util import arrayFromVolume

LABELS = "vtkMRMLLabelMapVolumeNode"


@pytest.fixture
def made(finished):
    """What a test adds to the scene is taken away again."""
    scene = finished.scene
    before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    yield
    for node in [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]:
        if node is not None and node.GetID() not in before:
            scene.RemoveNode(node)


def points_of(node) -> np.ndarray:
    count = node.GetNumberOfControlPoints()
    return np.array([node.GetNthControlPointPositionWorld(i) for i in range(count)])


def folder_of(node) -> str:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    return hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))


def test_volume_is_as_the_engine_warps_it_and_label_maps_keep_their_numbers(finished, made):
    out = finished.outputs
    again = apply_to(out, out.moving)
    difference = arrayFromVolume(again).astype(float) - arrayFromVolume(out.warped)
    inside = arrayFromVolume(finished.job.fixed_mask) != 0
    assert np.abs(difference[inside]).mean() < 2  # HU, of 1,000
    assert again.GetName().startswith(f"Inhale on {out.fixed.GetName()}") and folder_of(again) == folder_of(out.forward)
    labels = volume_node(finished.scene, 7 * finished.phantom.moving_mask, "lungs", LABELS)
    moved = apply_to(out, labels)
    assert moved.IsA(LABELS) and set(np.unique(arrayFromVolume(moved))) == {0, 7}
    here = arrayFromVolume(moved) == 7
    assert 2 * (here & inside).sum() / (here.sum() + inside.sum()) > 0.9
    assert arrayFromVolume(labels).shape == arrayFromVolume(out.moving).shape  # the node itself stays


def test_air_is_what_comes_from_outside(finished, made):
    """Not 0 HU, which is water."""
    out = finished.outputs
    small = volume_node(finished.scene, finished.phantom.moving[20:40, 20:40, 20:40], "part")
    values = arrayFromVolume(apply_to(out, small))
    assert values.min() == values[0, 0, 0] == arrayFromVolume(small).min() < -500


def test_points_go_both_ways(finished, made):
    """Below a transform of their own, which counts."""
    out, points = finished.outputs, points_in(finished.phantom.fixed, 60)
    node = markups_node(finished.scene, points, "points")
    parent = put_under_markups(node, rigid((0, 0, 20), (5, 0, 0)))
    there = apply_to(out, node, backwards=True)
    np.testing.assert_allclose(points_of(there), transformed(out.forward, points_of(node)), atol=0.05)
    back = apply_to(out, there)
    np.testing.assert_allclose(points_of(back), points_of(node), atol=0.3)
    assert node.GetParentTransformNode() is parent and there.GetParentTransformNode() is None


def put_under_markups(node, matrix: np.ndarray):
    parent = node.GetScene().AddNewNodeByClass("vtkMRMLLinearTransformNode", "parent")
    parent.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(parent.GetID())
    return parent


def test_models_and_segmentations_go_with_the_points(finished, made, tmp_path):
    out, scene = finished.outputs, finished.scene
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # an application has it, which makes segments copyable
    logic.SetMRMLScene(scene)
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(points_in(finished.phantom.fixed, 1)[0])
    sphere.SetRadius(15)
    sphere.Update()
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "ball")
    model.SetAndObservePolyData(sphere.GetOutput())
    before = slicer.util.arrayFromModelPoints(model).copy()
    after = slicer.util.arrayFromModelPoints(apply_to(out, model, backwards=True))
    np.testing.assert_allclose(after, transformed(out.forward, before), atol=0.05)
    np.testing.assert_array_equal(slicer.util.arrayFromModelPoints(model), before)

    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "lungs")
    mask = finished.phantom.moving_mask
    add_segment(segmentation, sitk.GetArrayFromImage(mask), matrix_of(mask), "lungs")
    moved = apply_to(out, segmentation)
    assert display.nodes.write_labels(moved, out.fixed, tmp_path / "moved.nrrd") == {1: "lungs"}
    there = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "moved.nrrd"))) != 0
    inside = arrayFromVolume(finished.job.fixed_mask) != 0
    assert 2 * (there & inside).sum() / (there.sum() + inside.sum()) > 0.9


def test_volume_below_a_nonlinear_transform_is_refused(finished, made):
    out = finished.outputs
    node = volume_node(finished.scene, finished.phantom.moving, "bent")
    node.SetAndObserveTransformNodeID(out.inverse.GetID())
    with pytest.raises(display.nodes.FrameError, match="nonlinear"):
        apply_to(out, node)


def test_pairs_have_the_errors_that_the_engine_measured(finished, made):
    job, report = finished.job, finished.outputs.report
    found = pairs.pairs(finished.outputs, job.fixed_landmarks, job.moving_landmarks)
    for mm, measured in (("before_mm", "before"), ("after_mm", "after")):
        assert np.mean([getattr(pair, mm) for pair in found]) == pytest.approx(
            report["tre_mm"][measured]["mean"], abs=0.02
        )
    points = markups_node(finished.scene, finished.fixed_points * (1, 1, 1), "one more")
    points.UnsetNthControlPointPosition(0)
    first = pairs.pairs(finished.outputs, points, job.moving_landmarks)[0]
    assert first.fixed_ras_mm is None and first.after_mm is None


def test_new_pair_is_placed_where_the_registration_takes_it(finished, made):
    out, place = finished.outputs, points_in(finished.phantom.fixed, 1)[0]
    fixed, moving = pairs.add_pair(out, None, None, tuple(place))
    assert pairs.add_pair(out, fixed, moving, (0.0, 0.0, 0.0)) == (fixed, moving)
    found = pairs.pairs(out, fixed, moving)
    assert [pair.label for pair in found] == ["1", "2"] and max(pair.after_mm for pair in found) < 1e-6
    moving.SetNthControlPointPositionWorld(0, *(np.array(found[0].moving_ras_mm) + (3.0, 4.0, 0.0)))
    assert pairs.pairs(out, fixed, moving)[0].after_mm == pytest.approx(5.0)
    fixed.AddControlPointWorld(vtk.vtkVector3d(1, 2, 3))
    with pytest.raises(ValueError, match="3 fixed and 2 moving"):
        pairs.add_pair(out, fixed, moving, (0.0, 0.0, 0.0))


def test_dicom_registration_says_the_same_as_the_transform(finished, made, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from nephi.files.dicom_objects import read_registration

    out, files = finished.outputs, {}
    assert "was not loaded by the module DICOM" in dicom_export.problem(out)
    for volume, frame in ((out.fixed, "1.2.3"), (out.moving, "1.2.4")):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{frame}.1"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.9", f"{frame}.2", frame
        data.PatientName, data.Modality, data.InstanceNumber = "Phantom", "CT", 1
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = (
            data.SOPClassUID,
            f"{frame}.1",
        )
        files[f"{frame}.1"] = str(tmp_path / f"{frame}.dcm")
        pydicom.dcmwrite(files[f"{frame}.1"], data, enforce_file_format=True)
        volume.SetAttribute("DICOM.instanceUIDs", f"{frame}.1")
    try:
        assert dicom_export.problem(out) == ""
        folder = tmp_path / "out"
        folder.mkdir()
        written = dicom_export.export(out, folder, lambda volume: dicom_export.from_database(volume, files.get))
        points = points_in(finished.phantom.fixed, 100)
        for path, transform in zip(written, (out.forward, out.inverse), strict=True):
            read = read_registration(path)
            there = lps([read.TransformPoint(point) for point in lps(points).tolist()])
            assert np.abs(there - transformed(transform, points)).max() < 0.01
        _check_series_and_segments(
            finished, folder, *(dicom_export.from_database(v, files.get) for v in (out.fixed, out.moving))
        )
        with pytest.raises(NephiError, match="no longer in the database"):
            dicom_export.from_database(out.fixed, lambda uid: "")
        parent = put_under(out.moving, np.eye(4))
        assert "lies under a transform" in dicom_export.problem(out)
        out.moving.SetAndObserveTransformNodeID(None)
        finished.scene.RemoveNode(parent)
    finally:
        for volume in (out.fixed, out.moving):
            volume.RemoveAttribute("DICOM.instanceUIDs")


def _check_series_and_segments(finished, folder, fixed, moving):
    """What is read again is what was written: voxels and their places, names and codes of segments."""
    from nephi.files.image import read_volume
    from nephi_app.loading import labels_node

    out, scene = finished.outputs, finished.scene
    dicom_export.write_scan(out.warped, folder / "warped", fixed, moving, "Warped")
    read = read_volume(folder / "warped", "warped")
    assert np.abs(sitk.GetArrayFromImage(read) - arrayFromVolume(out.warped)).max() < 1  # HU
    np.testing.assert_allclose(read.GetOrigin(), finished.phantom.fixed.GetOrigin(), atol=1e-3)
    mask = 3 * finished.phantom.fixed_mask
    labels = volume_node(scene, mask, "lungs", LABELS)
    dicom_export.write_segments(labels, out.fixed, folder / "lungs.dcm", fixed)
    node = labels_node(scene, folder / "lungs.dcm", None, "lungs", one_by_one=True)
    node.GetSegmentation().GetNthSegment(0).SetName("label 3")
    dicom_export.write_segments(node, out.fixed, folder / "again.dcm", fixed)
    again = labels_node(scene, folder / "again.dcm", None, "lungs", one_by_one=True)
    assert display.nodes.write_labels(again, out.fixed, folder / "again.nrrd") == {1: "label 3"}
    shown = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "again.nrrd"))) != 0
    assert (shown == (sitk.GetArrayFromImage(mask) != 0)).all()


def test_methods_text_has_the_reports_numbers(finished):
    report = finished.outputs.report
    text = methods.methods_text(report)
    assert f"NePhi {report['versions']['nephi']}" in text and "preset 'fast'" in text and "60 iterations" in text
    assert f"{report['tre_mm']['after']['mean']:.2f} mm on average" in text and "within masks." in text
    assert report["verdict"]["outcome"] in text and "TG-132" in text and "None" not in text
    bare = json.loads(json.dumps(report))
    for name in ("tre_mm", "dice", "volume", "verdict", "error_estimate_mm"):
        del bare[name]
    text = methods.methods_text(bare)
    assert "without masks" in text and "landmarks" not in text and "verdict" not in text
