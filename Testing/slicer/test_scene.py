"""Nodes to files: whatever transforms and grids they have, files are where the nodes are in the world."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from helpers import RAS_LPS, add_segment, markups_node, matrix_of, put_under, volume_node
from nephi.errors import NephiError, collected_notices
from nephi.files.regions import read_regions
from nephi.files.segments import region_names
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.surface import surface_model
from slicer.util import vtkMatrixFromArray


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


def oblique(array: np.ndarray, mirrored: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    direction = (rotation(25) @ rotation(-15, 0))[:3, :3] @ np.diag([1, 1, -1 if mirrored else 1])
    image.SetDirection(direction.ravel())
    image.SetSpacing((1.5, 2.0, 3.5))
    image.SetOrigin((12.0, -30.0, 7.0))
    return image


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 500, (9, 10, 11)).astype(np.int16)


@pytest.mark.parametrize("mirrored", [False, True])
def test_volume_under_transforms_is_written_where_it_is_in_the_world(scene, tmp_path, array, mirrored):
    node = volume_node(scene, oblique(array, mirrored), "v")
    outer = rotation(40, 1)
    outer[:3, 3] = 5, 6, 7
    inner = rotation(-20) @ np.diag([1.1, 1.1, 1.1, 1])
    parent, grandparent = (scene.AddNewNodeByClass("vtkMRMLLinearTransformNode") for _ in range(2))
    parent.SetMatrixTransformToParent(vtkMatrixFromArray(inner))
    grandparent.SetMatrixTransformToParent(vtkMatrixFromArray(outer))
    parent.SetAndObserveTransformNodeID(grandparent.GetID())
    node.SetAndObserveTransformNodeID(parent.GetID())
    nodes.write_volume(node, tmp_path / "v.nrrd")
    written = sitk.ReadImage(str(tmp_path / "v.nrrd"))
    world_ras = outer @ inner @ matrix_of(oblique(array, mirrored))
    np.testing.assert_allclose(matrix_of(written), world_ras, atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), array)


def test_volume_is_read_as_it_was_written(scene, tmp_path, array):
    sitk.WriteImage(oblique(array), str(tmp_path / "v.nii.gz"))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    nodes.read_volume(tmp_path / "v.nii.gz", node)
    np.testing.assert_allclose(nodes.ijk_to_world(node), matrix_of(oblique(array)), atol=1e-5)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), array)


@pytest.mark.parametrize("shear", ["own", "nonlinear"])
def test_bent_or_sheared_volume_has_no_place_in_a_file(scene, array, shear):
    node = volume_node(scene, oblique(array), "v")
    if shear == "own":
        matrix = np.eye(4)
        matrix[0, 1] = 0.2
        put_under(node, np.eye(4)).SetMatrixTransformToParent(vtkMatrixFromArray(matrix))
    else:
        node.SetAndObserveTransformNodeID(scene.AddNewNodeByClass("vtkMRMLGridTransformNode").GetID())
    with pytest.raises(nodes.FrameError):
        nodes.ijk_to_world(node)


@pytest.fixture
def blocks():
    """Two boxes with the labels 3 and 5, clear of the border."""
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[4:9, 5:12, 6:20] = 3
    labels[11:16, 5:12, 6:20] = 5
    return labels


def test_label_map_on_another_grid_lands_on_the_reference(scene, tmp_path, blocks, array):
    """Half the voxel size and mirrored: nearest neighbour must give back each label at its place in the world."""
    coarse = oblique(blocks)
    fine = sitk.Resample(
        coarse,
        [n * 2 for n in coarse.GetSize()],
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        coarse.GetOrigin(),
        [s / 2 for s in coarse.GetSpacing()],
        coarse.GetDirection(),
    )
    fine = sitk.Flip(fine, [True, False, True])
    mask = volume_node(scene, fine, "mask", "vtkMRMLLabelMapVolumeNode")
    put_under(mask, rotation(33, 0))
    reference = volume_node(scene, coarse, "reference")
    put_under(reference, rotation(-50, 1))
    names = nodes.write_labels(mask, reference, tmp_path / "m.nrrd")
    written = sitk.ReadImage(str(tmp_path / "m.nrrd"))
    np.testing.assert_allclose(matrix_of(written), matrix_of(coarse), atol=1e-6)
    # the fine grid's voxel centres lie a quarter voxel off, so that only the boxes' faces may differ
    assert (sitk.GetArrayFromImage(written) != blocks).mean() < 0.002
    assert set(names) == {3, 5}


@pytest.mark.parametrize("shared", [False, True], ids=["one image each", "one image, as Slicer's editor keeps them"])
def test_segments_are_written_together_or_one_alone(scene, tmp_path, blocks, shared):
    reference = volume_node(scene, oblique(blocks), "reference")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    for name, label in (("upper lobe", 3), ("lower lobe", 5)):
        lower = add_segment(segmentation, blocks == label, matrix_of(oblique(blocks)), name)
    if shared:
        segmentation.GetSegmentation().CollapseBinaryLabelmaps(False)
        assert segmentation.GetSegmentation().GetNumberOfLayers() == 1
    names = nodes.write_labels(segmentation, reference, tmp_path / "all.nrrd")
    both = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "all.nrrd")))
    assert names == {1: "upper lobe", 2: "lower lobe"}
    np.testing.assert_array_equal(both, np.select([blocks == 3, blocks == 5], [1, 2]))

    nodes.write_labels(segmentation, reference, tmp_path / "one.nrrd", lower)
    one = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "one.nrrd")))
    np.testing.assert_array_equal(one != 0, blocks == 5)


def test_a_segment_that_is_a_surface_is_written_too(scene, tmp_path, blocks):
    """As of models that were imported into a segmentation; Slicer's module registers the two rules at its start."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    factory.RegisterConverterRule(slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule())
    reference = volume_node(scene, oblique(blocks), "reference")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    for label in (3, 5):
        add_segment(segmentation, blocks == label, matrix_of(oblique(blocks)), str(label))
    kept, made = segmentation.GetSegmentation(), slicer.vtkSegmentationConverter
    kept.CollapseBinaryLabelmaps(False)
    assert kept.CreateRepresentation(made.GetClosedSurfaceRepresentationName())
    kept.SetSourceRepresentationName(made.GetClosedSurfaceRepresentationName())
    kept.RemoveRepresentation(made.GetBinaryLabelmapRepresentationName())
    nodes.write_labels(segmentation, reference, tmp_path / "m.nrrd")
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nrrd")))
    wanted = np.select([blocks == 3, blocks == 5], [1, 2])
    assert (written != wanted).sum() < 0.4 * (wanted != 0).sum()  # a surface is smoothed and sampled again
    assert set(np.unique(written)) == {0, 1, 2}


def test_segmentation_moves_with_its_parent_transform(scene, tmp_path, blocks):
    reference = volume_node(scene, oblique(blocks), "reference")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    add_segment(segmentation, blocks == 3, matrix_of(oblique(blocks)), "a")
    step = matrix_of(oblique(blocks))[:3, 0] * 2  # two voxels along the first axis
    shift = np.eye(4)
    shift[:3, 3] = step
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(vtkMatrixFromArray(shift))
    segmentation.SetAndObserveTransformNodeID(transform.GetID())
    nodes.write_labels(segmentation, reference, tmp_path / "m.nrrd")
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nrrd")))
    np.testing.assert_array_equal(written != 0, np.roll(blocks == 3, 2, axis=2))


def test_points_and_linear_transform_are_written_in_world_lps(scene, tmp_path):
    points = np.random.default_rng(1).normal(0, 50, (4, 3))
    markups = markups_node(scene, points, "p")
    matrix = rotation(30) @ np.diag([1, 1.2, 0.9, 1])
    matrix[:3, 3] = 10, 20, -5
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(vtkMatrixFromArray(matrix))
    markups.SetAndObserveTransformNodeID(transform.GetID())
    nodes.write_points(markups, tmp_path / "p.csv")
    read = np.loadtxt(tmp_path / "p.csv", delimiter=",", skiprows=1)
    world_lps = (np.c_[points, np.ones(4)] @ matrix.T @ RAS_LPS)[:, :3]
    np.testing.assert_allclose(read, world_lps, atol=1e-9)

    # the file maps fixed to moving points: the inverse of what carries the moving volume
    nodes.write_linear_transform(transform, tmp_path / "t.h5")
    file = sitk.ReadTransform(str(tmp_path / "t.h5"))
    back = np.array([file.TransformPoint(point) for point in world_lps.tolist()])
    np.testing.assert_allclose(back, points * (-1, -1, 1), atol=1e-6)


def test_the_surface_of_a_mask_lies_around_it(scene, blocks):
    to_world = matrix_of(oblique(blocks))
    model = surface_model(scene, blocks == 3, to_world, "a")
    measured = vtk.vtkMassProperties()
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(model.GetPolyData())
    measured.SetInputConnection(triangles.GetOutputPort())
    voxel_mm3 = abs(np.linalg.det(to_world[:3, :3]))
    assert measured.GetVolume() == pytest.approx((blocks == 3).sum() * voxel_mm3, rel=0.15)  # it is smoothed
    index_xyz = np.argwhere(blocks == 3)[:, ::-1]
    centre = (np.c_[index_xyz, np.ones(len(index_xyz))] @ to_world.T)[:, :3].mean(0)
    np.testing.assert_allclose(model.GetPolyData().GetCenter(), centre, atol=1.5)


def test_regions_are_written_with_their_names_and_must_lie_apart(scene, tmp_path, blocks):
    """As the engine reads them; Slicer's own file of segments that overlap, too, which has a layer for each."""
    reference = volume_node(scene, oblique(blocks), "reference")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    for name, label in (("upper lobe", 3), ("lower lobe", 5)):
        add_segment(segmentation, blocks == label, matrix_of(oblique(blocks)), name)
    nodes.write_labels(segmentation, reference, tmp_path / "regions.seg.nrrd", one_by_one="regions")
    again, storage = (scene.AddNewNodeByClass(f"vtkMRMLSegmentation{what}Node") for what in ("", "Storage"))
    storage.SetFileName(str(tmp_path / "regions.seg.nrrd"))
    assert storage.ReadData(again) and set(nodes.label_names(again).values()) == {"upper lobe", "lower lobe"}
    assert region_names(read_regions(tmp_path / "regions.seg.nrrd", oblique(blocks))) == {
        1: "upper lobe",
        2: "lower lobe",
    }
    _save(segmentation, tmp_path / "apart.seg.nrrd")
    with collected_notices():  # Slicer leaves out what lies around
        found = read_regions(tmp_path / "apart.seg.nrrd", oblique(blocks))
    assert region_names(found) == {1: "upper lobe", 2: "lower lobe"}
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), np.select([blocks == 3, blocks == 5], [1, 2]))

    add_segment(segmentation, blocks > 0, matrix_of(oblique(blocks)), "lung")
    with pytest.raises(NephiError, match="regions: upper lobe and lung overlap"):
        nodes.write_labels(segmentation, reference, tmp_path / "more.nrrd", one_by_one="regions")
    assert not (tmp_path / "more.nrrd").exists()
    _save(segmentation, tmp_path / "layers.seg.nrrd")
    with pytest.raises(NephiError, match="regions: upper lobe and lung overlap"), collected_notices():
        read_regions(tmp_path / "layers.seg.nrrd", oblique(blocks))


def _save(segmentation, path) -> None:
    """As Slicer's *Save* does."""
    storage = segmentation.GetScene().AddNode(slicer.vtkMRMLSegmentationStorageNode())
    storage.SetFileName(str(path))
    assert storage.WriteData(segmentation)
