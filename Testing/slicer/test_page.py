"""What is chosen in the page of ``nephi app``: files to nodes and the job. Its browser tests are in Testing/app."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from nephi.errors import NephiError
from nephi.files.masks import read_mask
from nephi.settings import Settings
from nephi_app import dicom, loading
from nephi_app.files import Served
from nephi_app.inputs import OWN, Inputs
from nephi_app.roles import GROUPS, ROLES
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.guides import Guides
from NePhiRegistrationLib.ownpresets import OwnPresets
from NePhiRegistrationLib.scene import of_class


class State:
    """Of the page: attributes, which a ``with`` block sends together."""

    def __init__(self):
        self.names, self.segments, self.segment = {}, {}, {}
        self.masks, self.preset, self.model, self.device, self.align = "files", "fast", "", "cpu", "auto"
        self.guide_sd_mm = 2.5

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def inputs(scene, tmp_path) -> Inputs:
    """Both scans are open; files of labels lie in ``tmp_path``."""
    labels = np.zeros((12, 14, 16), np.uint8)
    labels[2:6, 2:10, 2:10], labels[7:10, 2:10, 2:10] = 3, 7
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((2.0, 1.5, 3.0))
    image.SetOrigin((5.0, -7.0, 11.0))
    sitk.WriteImage(image, str(tmp_path / "labels.nii.gz"))
    sitk.WriteImage(image == 3, str(tmp_path / "mask.nii.gz"))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) * 0.1, str(tmp_path / "probability.nii.gz"))
    for i, (name, label) in enumerate((("Rib", 3), ("Nodule", 7))):
        for key, value in {"ID": f"s{i}", "Name": name, "LabelValue": str(label), "Layer": "0"}.items():
            image.SetMetaData(f"Segment{i}_{key}", value)
    sitk.WriteImage(image, str(tmp_path / "named.seg.nrrd"))
    (tmp_path / "damaged.seg.nrrd").write_bytes((tmp_path / "named.seg.nrrd").read_bytes()[:300])
    (tmp_path / "points.csv").write_text("x,y,z\n10,0,20\n", encoding="utf-8")
    (tmp_path / "settings.json").write_text('{"fit": {"iterations": 7}}', encoding="utf-8")
    noise = np.random.default_rng(0).normal(0, 100, labels.shape).astype(np.int16)
    scan = sitk.GetImageFromArray(noise)
    scan.CopyInformation(image)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        sitk.WriteImage(scan, str(folder / "scan.nii.gz"))
    made = Inputs(scene, State(), OwnPresets(tmp_path / "presets"), Served(tmp_path))
    made.folder = tmp_path
    take(made, "fixed", "scan.nii.gz")
    take(made, "moving", "other/scan.nii.gz")
    return made


def take(inputs: Inputs, role: str, name: str) -> None:
    path = inputs.folder / name
    inputs.take(role, asyncio.run(inputs.load(role, path, path.name)))


def test_own_presets_are_read_only_when_their_folder_changes(tmp_path, monkeypatch):
    own = OwnPresets(tmp_path / "presets")
    assert own.names() == []
    own.save("mine", Settings())
    assert own.names() == ["mine"]
    os.utime(own.folder, (1e9, 1e9))  # as if it were long ago
    assert own.names() == ["mine"]
    with monkeypatch.context() as patched:
        patched.setattr(type(own.folder), "glob", lambda *_: pytest.fail("read though nothing has changed"))
        assert own.names() == ["mine"]
    own.path("mine").rename(own.path("a colleague's"))
    assert own.names() == ["a colleague's"]
    own.remove("a colleague's")
    assert own.names() == []


def test_every_guide_has_a_role_and_every_role_a_place():
    guides = [name for name in Guides.__dataclass_fields__ if not name.endswith(("_segment", "_mm"))]
    assert sorted(role.guide for role in ROLES.values() if role.guide) == sorted(guides)
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(ROLES)


def test_segments_can_be_chosen_of_a_mask(inputs, tmp_path):
    take(inputs, "fixed_mask", "named.seg.nrrd")
    assert [one["text"] for one in inputs.state.segments["fixed_mask"]] == ["All segments", "Rib", "Nodule"]
    inputs.state.segment["fixed_mask"] = inputs.state.segments["fixed_mask"][2]["value"]
    take(inputs, "rigid", "labels.nii.gz")
    assert [one["text"] for one in inputs.state.segments["rigid"]] == ["All segments", "label 3", "label 7"]
    inputs.state.segment["rigid"] = inputs.state.segments["rigid"][1]["value"]
    job = inputs.job()
    assert inputs.problem() == "" and job.fixed_segment == "s1"
    arguments = job.guides.write(job.fixed, job.moving, tmp_path)
    written = sitk.GetArrayFromImage(sitk.ReadImage(arguments[arguments.index("--rigid-mask") + 1]))
    wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    np.testing.assert_array_equal(written != 0, wanted != 0)


def test_a_segmentation_that_slicer_cropped_is_a_mask(inputs, tmp_path):
    """As Slicer itself writes it, without the voxels around its segments."""
    take(inputs, "fixed_mask", "named.seg.nrrd")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.CropToMinimumExtentOn()
    storage.SetFileName(str(tmp_path / "cropped.seg.nrrd"))
    assert storage.WriteData(inputs.nodes["fixed_mask"])
    scan, whole = (sitk.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "labels.nii.gz"))
    assert sitk.ReadImage(str(tmp_path / "cropped.seg.nrrd")).GetSize() < scan.GetSize()
    mask = read_mask(tmp_path / "cropped.seg.nrrd", scan, "fixed mask")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(whole) > 0)


@pytest.mark.parametrize("name", ["mask.nii.gz", "probability.nii.gz"])
def test_masks_of_one_label_have_no_segments(inputs, name):
    take(inputs, "fixed_mask", name)
    assert inputs.state.segments["fixed_mask"] == [] and inputs.job().fixed_mask.IsA("vtkMRMLLabelMapVolumeNode")


def test_guidance_settings_and_masks_reach_the_job(inputs):
    for role in ("fixed_guide_points", "moving_guide_points"):
        take(inputs, role, "points.csv")
    for role in ("fixed_labels", "moving_labels"):
        take(inputs, role, "labels.nii.gz")
    inputs.state.preset = "file"
    assert "settings file" in inputs.problem()
    take(inputs, "settings_file", "settings.json")
    assert inputs.problem() == ""
    job = inputs.job()
    assert job.settings().fit.iterations == 7 and job.settings().guidance.landmarks_sd_mm == 2.5
    assert job.guides.fixed_landmarks is inputs.nodes["fixed_guide_points"] and job.guides.moving_labels is not None
    inputs.state.model = "file"
    assert "model file" in inputs.problem()


def test_another_scan_takes_what_lay_on_the_former_with_it(inputs, scene):
    take(inputs, "fixed_excluded", "labels.nii.gz")
    take(inputs, "moving_mask", "mask.nii.gz")
    take(inputs, "fixed", "scan.nii.gz")
    assert "fixed_excluded" not in inputs.nodes and inputs.state.names["fixed_excluded"] == ""
    assert of_class(scene, "vtkMRMLSegmentationNode") == [] and inputs.job().moving_mask is not None
    assert len(of_class(scene, "vtkMRMLScalarVolumeNode")) == 3  # with the label map, which is one too
    assert {inputs.state.names[role] for role in ("fixed", "moving")} == {"scan.nii.gz"}  # no number behind it


@pytest.mark.parametrize("name", ["damaged.seg.nrrd", "points.csv"])
def test_what_is_no_mask_is_said_in_one_line_and_changes_nothing(inputs, scene, name):
    before = scene.GetNumberOfNodes()
    with pytest.raises(NephiError) as told:
        take(inputs, "fixed_mask", name)
    assert len(str(told.value).splitlines()) == 1 and Path(name).stem in str(told.value)
    assert scene.GetNumberOfNodes() == before and not inputs.state.names.get("fixed_mask")


def test_the_same_scan_twice_is_told(inputs):
    assert inputs.problem() == ""
    take(inputs, "moving", "scan.nii.gz")
    assert "are the same" in inputs.problem()


@pytest.mark.parametrize("name", ["shift.tfm", "bent.h5"])
def test_an_initial_transform_maps_as_its_file(inputs, name, tmp_path):
    given = sitk.TranslationTransform(3, (3.0, -5.0, 2.0))
    if name == "bent.h5":
        field = np.zeros((6, 6, 6, 3))
        field[..., 0] = np.linspace(0, 4, 6)[:, None, None]
        image = sitk.GetImageFromArray(field, isVector=True)
        image.SetSpacing((8.0, 8.0, 10.0))
        given = sitk.DisplacementFieldTransform(image)
    sitk.WriteTransform(given, str(tmp_path / name))
    point_lps_mm, moved = (9.0, 11.0, 20.0), [0.0] * 3
    wanted = given.TransformPoint(point_lps_mm)
    take(inputs, "initial_transform", name)
    node = inputs.job().initial_transform
    node.GetTransformFromParent().TransformPoint((-9.0, -11.0, 20.0), moved)
    np.testing.assert_allclose(np.array(moved) * [-1, -1, 1], wanted, atol=0.02)
    assert inputs.job().initial_is_bent() is (name == "bent.h5") and inputs.problem() == ""
    (tmp_path / "damaged.tfm").write_text("#Insight Transform File V1.0\nTransform: Affine", encoding="utf-8")
    before = len(of_class(inputs.scene, "vtkMRMLTransformNode"))
    with pytest.raises(NephiError):
        take(inputs, "initial_transform", "damaged.tfm")
    assert len(of_class(inputs.scene, "vtkMRMLTransformNode")) == before and inputs.job().initial_transform is node


def test_an_own_preset_is_its_settings(inputs, tmp_path):
    inputs.state.preset = "file"
    assert "settings file" in inputs.problem()
    take(inputs, "settings_file", "settings.json")
    inputs.own.save("Seven steps", inputs.job().settings())
    inputs.forget("settings_file")
    inputs.state.preset = f"{OWN}Seven steps"
    assert inputs.problem() == "" and inputs.job().settings().fit.iterations == 7
    inputs.own.remove("Seven steps")
    assert "Seven steps" in inputs.problem()


@pytest.mark.parametrize("entry", ["align", "model"])
@pytest.mark.parametrize("way", ["..", "absolute", "link", "header"])
def test_what_settings_name_is_held_to_the_folder(inputs, tmp_path, entry, way):
    """Of a settings file and of an own preset; whether there is such a file is not told either."""
    secret, link = tmp_path.parent / f"{tmp_path.name} secret.tfm", tmp_path / "link.tfm"
    sitk.WriteTransform(sitk.Euler3DTransform(), str(secret))
    link.symlink_to(secret)
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    (tmp_path / "field.mhd").write_text(header + f"../{secret.name}", encoding="utf-8")
    named = {"..": f"../{secret.name}", "absolute": str(secret), "link": link.name, "header": "field.mhd"}[way]
    for path in (named, named.replace("secret", "none")):
        (tmp_path / "settings.json").write_text(json.dumps({entry: path}), encoding="utf-8")
        inputs.state.preset = "file"
        take(inputs, "settings_file", "settings.json")
        inputs.own.save("Away", inputs.job().settings())
        for inputs.state.preset in ("file", f"{OWN}Away"):
            assert "is not in the served folder" in inputs.problem()
            with pytest.raises(NephiError):
                inputs.checked()


def test_settings_name_files_from_where_they_lie(inputs, tmp_path):
    (tmp_path / "deep").mkdir()
    sitk.WriteTransform(sitk.Euler3DTransform(), str(tmp_path / "start.tfm"))
    (tmp_path / "deep" / "settings.json").write_text('{"align": "../start.tfm"}', encoding="utf-8")
    inputs.state.preset = "file"
    take(inputs, "settings_file", "deep/settings.json")
    assert inputs.problem() == "" and inputs.checked().settings().align == str(tmp_path / "deep" / "../start.tfm")
    (tmp_path / "start.tfm").unlink()
    assert "does not exist" in inputs.problem()


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "/etc/passwd"), ("model", "../../lung"), ("preset", f"{OWN}../../settings"), ("align", "/etc/passwd")],
)
def test_a_page_that_was_tampered_with_reaches_nothing_more(inputs, name, value):
    setattr(inputs.state, name, value)
    assert inputs.problem() != ""
    with pytest.raises(NephiError):
        inputs.checked()


@pytest.fixture
def series(tmp_path) -> Path:
    """A folder with a DICOM series of three slices."""
    (folder := tmp_path / "series").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(3):
        image = sitk.Image(8, 8, 1, sitk.sitkInt16)
        tags = {"0008|0060": "CT", "0008|0018": f"1.9.{k}", "0020|000d": "1.7", "0020|000e": "1.8", "0020|0052": "1.6"}
        tags |= {"0020|0032": f"0\\0\\{4 * k}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)
    return folder


def test_regions_of_a_structure_set_become_segments_where_they_lie(scene, series, tmp_path):
    from nephi.files.dicom_objects import read_series
    from nephi.files.dicom_structures import Structure, write_structures

    square = np.array([(0, 0, 0), (20, 0, 0), (20, 10, 0), (0, 10, 0)], float)
    drawn = [
        Structure(name, [square + (x, -30, z) for z in range(40, 53, 3)], colour=(255, 0, 51))
        for name, x in (("Heart", 100), ("Heart with margin", 110))
    ]
    write_structures(drawn, path := tmp_path / "organs.dcm", read_series(series))
    node = loading.labels_node(scene, path, None, "segmentation", one_by_one=True)
    segmentation = node.GetSegmentation()
    keys = segmentation.GetSegmentIDs()
    assert [segmentation.GetSegment(key).GetName() for key in keys] == ["Heart", "Heart with margin"]
    assert segmentation.GetSegment(keys[0]).GetColor() == pytest.approx((1, 0, 0.2))
    for key, x in zip(keys, (100, 110), strict=True):  # which overlap
        bounds_ras_mm = [0.0] * 6
        segmentation.GetSegment(key).GetBounds(bounds_ras_mm)
        np.testing.assert_allclose(bounds_ras_mm, (-x - 20, -x, 20, 30, 38.5, 53.5), atol=1.1)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(NephiError, match="damaged"):
        loading.labels_node(scene, path, None, "segmentation", one_by_one=True)
    nodes.remove(scene, node)


def test_objects_of_another_frame_of_reference_are_refused(scene, series):
    scan = nodes.add(scene, "vtkMRMLScalarVolumeNode", "scan")
    dicom.check_frame(series / "0.dcm", scan)  # not known to be of a series
    dicom.remember(scan, series, ())
    dicom.check_frame(series / "0.dcm", scan)
    image = sitk.ReadImage(str(series / "0.dcm"))
    image.SetMetaData("0020|0052", "1.66")
    sitk.WriteImage(image, str(other := series.parent / "other.dcm"))
    with pytest.raises(NephiError, match="another frame of reference than scan"):
        dicom.check_frame(other, scan)
    nodes.remove(scene, scan)


@pytest.mark.parametrize("ending", [".stl", ".vtp"])
def test_a_surface_is_read_as_it_was_written(scene, tmp_path, ending):
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(10, 20, 30)
    sphere.Update()
    made = nodes.add(scene, "vtkMRMLModelNode", "ball")
    made.SetAndObservePolyData(sphere.GetOutput())
    nodes.write_model(made, path := tmp_path / f"ball{ending}")
    read, bounds_ras_mm = loading.surface_node(scene, path), [0.0] * 6
    read.GetRASBounds(bounds_ras_mm)
    np.testing.assert_allclose(bounds_ras_mm, (9.5, 10.5, 19.5, 20.5, 29.5, 30.5), atol=0.05)
    path.write_bytes(b"no surface")
    before = scene.GetNumberOfNodes()
    with pytest.raises(NephiError) as told:
        loading.surface_node(scene, path)
    assert path.name in str(told.value) and scene.GetNumberOfNodes() == before
    for node in (made, read):
        nodes.remove(scene, node)
