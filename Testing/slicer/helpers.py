"""Volumes, masks and points as MRML nodes, and a registration of them to look at."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[2] / "NePhiRegistration"))

import numpy as np
import SimpleITK as sitk
import slicer
from NePhiRegistrationLib.job import Job
from NePhiRegistrationLib.logic import Logic
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray
from views import Scene
from vtk.util.numpy_support import numpy_to_vtk

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
QUICK = {"preset": "fast", "overrides": {"fit": {"iterations": 60}}}


def matrix_of(image: sitk.Image) -> np.ndarray:
    """Voxel index -> RAS mm (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return RAS_LPS @ matrix


def volume_node(scene, image: sitk.Image, name: str, class_name: str = "vtkMRMLScalarVolumeNode"):
    node = scene.AddNewNodeByClass(class_name, name)
    updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    node.SetIJKToRASMatrix(vtkMatrixFromArray(matrix_of(image)))
    return node


def put_under(node, to_world: np.ndarray):
    """The node under a linear transform (4, 4) that leaves it where it is in the world; returns the transform node."""
    scene = node.GetScene()
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", f"of {node.GetName()}")
    transform.SetMatrixTransformToParent(vtkMatrixFromArray(to_world))
    local = np.linalg.inv(to_world) @ slicer.util.arrayFromVTKMatrix(_ijk_to_ras(node))
    node.SetIJKToRASMatrix(vtkMatrixFromArray(local))
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def _ijk_to_ras(node):
    matrix = vtkMatrixFromArray(np.eye(4))
    node.GetIJKToRASMatrix(matrix)
    return matrix


def phantom_job(scene, phantom, **changes) -> Job:
    """Exhale and inhale with their lung masks as label maps."""
    labels = "vtkMRMLLabelMapVolumeNode"
    nodes = {
        "fixed": volume_node(scene, phantom.fixed, "Exhale"),
        "moving": volume_node(scene, phantom.moving, "Inhale"),
        "fixed_mask": volume_node(scene, phantom.fixed_mask, "Exhale lungs", labels),
        "moving_mask": volume_node(scene, phantom.moving_mask, "Inhale lungs", labels),
    }
    return Job(**{**nodes, **QUICK, **changes})


def add_segment(segmentation, array: np.ndarray, to_world: np.ndarray, name: str) -> str:
    """A segment from 0/1 voxels (z, y, x) and their place, voxel index -> segmentation's frame; returns its ID."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(array.shape[::-1])
    image.SetImageToWorldMatrix(vtkMatrixFromArray(to_world))
    image.GetPointData().SetScalars(numpy_to_vtk(array.astype(np.uint8).ravel(), deep=True))
    return segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, name)


def finish(run, seconds: float = 120.0):
    """Poll as a panel's timer does until the run ends."""
    end = time.monotonic() + seconds
    while run.poll():
        assert time.monotonic() < end, (run.stage, run.log)
        time.sleep(0.05)
    return run


def markups_node(scene, points_ras_mm: np.ndarray, name: str):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for point in points_ras_mm:
        node.AddControlPointWorld(*map(float, point))
    return node


def node_list(scene) -> list[tuple[str, str]]:
    nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    return [(node.GetID(), node.GetName()) for node in nodes]


def lps(points_ras_mm) -> np.ndarray:
    return np.asarray(points_ras_mm) * (-1.0, -1.0, 1.0)


class Finished:
    """The phantom registered once; its scene has views' logics, its regions are both volumes' two lungs as segments."""

    def __init__(self, phantom):
        self.phantom, self.views = phantom, Scene()
        self.scene = self.views.mrml
        self.fixed_points, self.moving_points = (
            lps(points[::20]) for points in (phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm)
        )
        regions, moving_regions = (
            self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name) for name in ("Lungs", "Moving lungs")
        )
        self.job = phantom_job(
            self.scene,
            phantom,
            fixed_landmarks=markups_node(self.scene, self.fixed_points, "Exhale points"),
            moving_landmarks=markups_node(self.scene, self.moving_points, "Inhale points"),
            regions=regions,
            moving_regions=moving_regions,
        )
        for node, image, order in ((regions, phantom.fixed_mask, 1), (moving_regions, phantom.moving_mask, -1)):
            mask = sitk.GetArrayFromImage(image)
            middle = mask.shape[2] // 2
            lungs = (("right lung", slice(None, middle)), ("left lung", slice(middle, None)))
            for name, columns in lungs[::order]:  # they belong together by their names
                half = np.zeros_like(mask)
                half[:, :, columns] = mask[:, :, columns]
                add_segment(node, half, matrix_of(image), name)
        for volume in (self.job.fixed, self.job.moving):
            volume.CreateDefaultDisplayNodes()
            volume.GetDisplayNode().SetAutoWindowLevel(False)
            volume.GetDisplayNode().SetWindowLevelMinMax(-1200, 400)
        self.run = finish(Logic(self.scene).start(self.job))
        assert self.run.state == "done", self.run.error
        self.outputs = self.run.outputs


def transformed(node, points_ras_mm) -> np.ndarray:
    """Points (n, 3) in RAS mm through a transform node's resampling direction, from parent."""
    transform = node.GetTransformFromParent()
    return np.array([transform.TransformPoint(point) for point in np.asarray(points_ras_mm).tolist()])


def points_in(image: sitk.Image, count: int = 500) -> np.ndarray:
    """Random points (n, 3) in RAS mm, away from the image's border."""
    index = np.random.default_rng(0).uniform(0.15, 0.85, (count, 3)) * (np.array(image.GetSize()) - 1)
    return (np.c_[index, np.ones(count)] @ matrix_of(image).T)[:, :3]


def by_file(path, points_ras_mm) -> np.ndarray:
    """The same points through the engine's transform file, by SimpleITK."""
    transform = sitk.ReadTransform(str(path))
    return lps([transform.TransformPoint(point) for point in lps(points_ras_mm).tolist()])


def rigid(euler_deg, shift_mm) -> np.ndarray:
    transform = sitk.Euler3DTransform((0, 0, 0), *np.radians(euler_deg), shift_mm)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = shift_mm
    return matrix
