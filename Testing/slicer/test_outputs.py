"""What a finished registration leaves in the scene and saves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from helpers import (
    by_file,
    matrix_of,
    phantom_job,
    points_in,
    transformed,
    volume_node,
)
from nephi.errors import NephiError
from NePhiRegistrationLib import display
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.tables import fold_centre_ras_mm, fold_table
from saving import save_scene
from slicer.util import arrayFromVolume
from views import Scene


def test_outputs_hold_what_the_engine_wrote(finished):
    outputs, folder = finished.outputs, finished.outputs.folder
    points = points_in(finished.phantom.fixed)
    assert np.abs(transformed(outputs.forward, points) - by_file(folder / "transform.h5", points)).max() < 1e-3
    points = points_in(finished.phantom.moving)
    assert np.abs(transformed(outputs.inverse, points) - by_file(folder / "inverse_transform.h5", points)).max() < 1e-3
    assert outputs.report == json.loads((folder / "report.json").read_text())
    assert not list(folder.parent.glob("*.nrrd"))  # the inputs' copies are gone


def test_moving_volume_under_the_forward_transform_is_the_warped_volume(finished):
    """In Slicer's own resampling: what a user sees after putting the moving volume under the result."""
    scene, job = slicer.vtkMRMLScene(), finished.job
    fixed, moving = (
        volume_node(scene, image, name)
        for image, name in ((finished.phantom.fixed, "f"), (sitk.Cast(finished.phantom.moving, sitk.sitkFloat32), "m"))
    )
    forward = scene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    forward.SetAndObserveTransformFromParent(finished.outputs.forward.GetTransformFromParent())
    moving.SetAndObserveTransformNodeID(forward.GetID())
    resampled = slicer.vtkSlicerVolumesLogic.ResampleVolumeToReferenceVolume(moving, fixed)
    inside = arrayFromVolume(job.fixed_mask) != 0
    difference = arrayFromVolume(resampled)[inside] - arrayFromVolume(finished.outputs.warped)[inside]
    assert np.abs(difference).max() < 2  # HU; the motion itself makes differences of hundreds
    unmoved = arrayFromVolume(job.fixed)[inside] - arrayFromVolume(finished.outputs.warped)[inside]
    assert np.abs(unmoved).max() > 50


def test_outputs_say_what_was_registered_to_what(finished):
    outputs, job = finished.outputs, finished.job
    for node in outputs.nodes():
        assert node.GetNodeReference("NePhi.Fixed") is job.fixed
        assert node.GetNodeReference("NePhi.Moving") is job.moving
    found = Outputs.find(outputs.forward)
    assert found.nodes() == outputs.nodes()
    assert found.fixed is job.fixed and found.moving is job.moving
    assert Outputs.find(outputs.inverse) is None


def test_transforms_have_slicers_own_registration_references(finished):
    """As SlicerElastix sets them and DICOM export of spatial registrations wants them; the inverse goes back."""
    outputs, job = finished.outputs, finished.job
    for node, fixed, moving in (
        (outputs.forward, job.fixed, job.moving),
        (outputs.inverse, job.moving, job.fixed),
    ):
        assert node.GetNodeReference("spatialRegistrationFixed") is fixed
        assert node.GetNodeReference("spatialRegistrationMoving") is moving


def test_result_lies_in_a_folder_beside_the_fixed_volume(finished, scene, tmp_path):
    """As in Slicer, where each node has an item already, and the volume lies in a study."""
    job = phantom_job(scene, finished.phantom)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(study, job.fixed)
    forward = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "Inhale to Exhale")
    hierarchy.CreateItem(hierarchy.GetSceneItemID(), forward)
    for name in ("Registration Inhale to Exhale", "Registration Inhale to Exhale_1"):
        outputs = Outputs.read(finished.outputs.folder, forward, job.fixed, job.moving)
        folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(forward))
        assert hierarchy.GetItemName(folder) == name and hierarchy.GetItemParent(folder) == study
        items = [hierarchy.GetItemByDataNode(node) for node in outputs.nodes()]
        assert {hierarchy.GetItemParent(item) for item in items} == {folder}


def test_damaged_result_leaves_no_node(finished, scene, tmp_path):
    """Every file of the engine, missing and cut; nodes and folders are those from before."""
    job = phantom_job(scene, finished.phantom)
    forward = scene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    read = ("transform.h5", "inverse_transform.h5", "warped.nii.gz", "jacobian.nii.gz", "fields_disagreement.nii.gz")
    for name in (*read, "report.json"):
        for cut in (False, True):
            folder = shutil.copytree(finished.outputs.folder, tmp_path / f"{name} {cut}")
            file = folder / name
            file.write_bytes(file.read_bytes()[:100]) if cut else file.unlink()
            with pytest.raises((OSError, ValueError)):
                Outputs.read(folder, forward, job.fixed, job.moving)
            assert {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())} == before, (name, cut)


def rows(table) -> list[list]:
    table = table.GetTable()
    columns = [table.GetColumn(i) for i in range(table.GetNumberOfColumns())]
    return [[column.GetValue(row) for column in columns] for row in range(table.GetNumberOfRows())]


def test_tables_tell_the_reports_numbers(finished):
    report = finished.outputs.report
    statistics = {(row[0], row[2]): row[1] for row in rows(finished.outputs.statistics)}
    assert statistics["Folded voxels", ""] == report["folds"]["count"]
    assert statistics["Jacobian, mean", ""] == pytest.approx(report["jacobian"]["mean"], abs=5e-4)
    litres = report["volume"]["fixed_ml"] / 1000
    assert statistics["Fixed volume", "L"] == pytest.approx(litres, abs=5e-4)
    true_litres = np.count_nonzero(sitk.GetArrayFromImage(finished.phantom.fixed_mask)) * 5.0**3 / 1e6
    assert litres == pytest.approx(true_litres, rel=1e-3)
    assert statistics["Volume change", "L"] > 0.1  # inhale
    distance = np.linalg.norm(finished.fixed_points - finished.moving_points, axis=1)
    assert report["tre_mm"]["unaligned"]["mean"] == pytest.approx(distance.mean(), abs=1e-3)
    assert statistics["TRE after, mean", "mm"] < statistics["TRE before, mean", "mm"] < distance.mean()

    ventilation = rows(finished.outputs.ventilation)
    assert [row[0] for row in ventilation] == ["right lung", "left lung"]
    assert sum(row[1] for row in ventilation) == pytest.approx(report["volume"]["fixed_ml"], rel=1e-3)
    assert sum(row[2] for row in ventilation) == pytest.approx(report["volume"]["moving_ml"], rel=1e-3)

    titles = [finished.outputs.ventilation.GetTable().GetColumnName(i) for i in range(9)]
    assert titles[-3:] == ["Ventilation by density (%)", "Dice", "Surfaces (mm)"]
    assert all(float(row[6]) > 0 and float(row[7]) > 0.9 and float(row[8]) < 5.0 for row in ventilation)

    chart = finished.outputs.histogram
    series = chart.GetNthPlotSeriesNode(0)
    counts = rows(series.GetTableNode())
    assert sum(count for _, count in counts) == sum(report["jacobian"]["histogram"]["counts"])


def test_fold_table_leads_to_each_fold(scene):
    regions = [
        {"voxels": 12, "volume_mm3": 96.0, "centre_lps_mm": [10.0, -20.0, 30.0], "min_jacobian": -0.4},
        {"voxels": 1, "volume_mm3": 8.0, "centre_lps_mm": [1.0, 2.0, 3.0], "min_jacobian": -0.1},
    ]
    table = fold_table(scene, {"folds": {"regions": regions}}, "folds")
    assert fold_centre_ras_mm(table, 0) == (-10.0, 20.0, 30.0)
    assert rows(table)[1][:3] == [1, 8.0, -0.1]
    assert rows(fold_table(scene, {"folds": {"regions": []}}, "none")) == []


def test_save_writes_what_can_be_read_elsewhere(finished, tmp_path):
    assert finished.outputs.save(tmp_path / "a") == (tmp_path / "a", [])
    expected = {
        "transform.h5",
        "inverse_transform.h5",
        "registration.safetensors",
        "report.json",
        "warped.nii.gz",
        "jacobian.nii.gz",
        "fields_disagreement.nii.gz",
        "error_map.nii.gz",
        "error_bound.nii.gz",
        "statistics.csv",
        "folds.csv",
        "ventilation.csv",
    }
    assert {file.name for file in (tmp_path / "a").iterdir()} == expected
    ventilation = (tmp_path / "a" / "ventilation.csv").read_text(encoding="utf-8").splitlines()
    assert ventilation[0].startswith("Region,Fixed (mL)") and ventilation[1].startswith("right lung,")


def test_saving_again_keeps_what_is_there(finished, tmp_path):
    outputs, chosen = finished.outputs, tmp_path / "results"
    chosen.mkdir()
    (chosen / "notes.txt").write_text("mine")
    assert outputs.save(chosen)[0] == chosen
    (chosen / "report.json").write_text("an earlier one")
    names = {file.name for file in chosen.iterdir()}
    name = outputs.forward.GetName()
    for place in (chosen / name, chosen / f"{name} (2)"):
        assert outputs.save(chosen) == (place, [])
        assert {file.name for file in place.iterdir()} == names - {"notes.txt"}
        assert place.stat().st_mode == chosen.stat().st_mode
    assert (chosen / "report.json").read_text() == "an earlier one"
    assert {file.name for file in chosen.iterdir() if file.is_file()} == names


def test_failed_saving_leaves_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("NePhiRegistrationLib.tables.write_csv", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(NephiError, match="full"):
        finished.outputs.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(NephiError, match="full"):
        finished.outputs.save(tmp_path / "b")
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["notes.txt"]


def test_result_is_found_and_saved_after_the_scene_was_loaded_again(finished, tmp_path):
    file = tmp_path / "scene.mrml"
    save_scene(finished.scene, file)
    application = Scene()
    scene = application.mrml
    scene.SetURL(str(file))
    assert scene.Import()
    forward = next(n for n in display.nodes.of_class(scene, "vtkMRMLGridTransformNode") if Outputs.find(n))
    outputs = Outputs.find(forward)
    assert outputs.fixed.GetName() == "Exhale" and outputs.folder is None
    disagreement = outputs.fields_disagreement
    assert disagreement is not None
    forward.SetNodeReferenceID("NePhi.fields_disagreement", None)
    forward.SetNodeReferenceID("NePhi.inverse_consistency", disagreement.GetID())  # as scenes of before have it
    assert Outputs.find(forward).fields_disagreement is disagreement
    assert outputs.report == finished.outputs.report
    display.show_jacobian(outputs, True)
    assert display.jacobian_color_node(scene).GetNumberOfColors() == 256
    assert rows(outputs.ventilation) == rows(finished.outputs.ventilation)
    points = points_in(finished.phantom.fixed)
    assert np.abs(transformed(outputs.forward, points) - transformed(finished.outputs.forward, points)).max() < 1e-3

    assert outputs.save(tmp_path / "again") == (tmp_path / "again", ["registration.safetensors"])
    for name in ("warped", "jacobian", "fields_disagreement", "error_map"):
        written, engines = (
            sitk.ReadImage(str(folder / f"{name}.nii.gz")) for folder in (tmp_path / "again", finished.outputs.folder)
        )
        np.testing.assert_allclose(matrix_of(written), matrix_of(engines), atol=1e-4)
        np.testing.assert_allclose(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(engines), atol=1e-6)
    saved = by_file(tmp_path / "again" / "transform.h5", points)
    assert np.abs(saved - transformed(finished.outputs.forward, points)).max() < 1e-3
