"""Oblique volumes under transforms and on different grids, against the engine's own result on files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from helpers import (
    QUICK,
    RAS_LPS,
    by_file,
    finish,
    lps,
    matrix_of,
    points_in,
    put_under,
    rigid,
    transformed,
    volume_node,
)
from nephi.process import engine_environment
from NePhiRegistrationLib.job import Job
from NePhiRegistrationLib.logic import Logic
from slicer.util import arrayFromVolume, vtkMatrixFromArray


def moved(image: sitk.Image, world_lps: np.ndarray) -> sitk.Image:
    """The image carried by a rigid map (4, 4) of LPS points; voxels stay."""
    out = sitk.Image(image)
    out.SetDirection((world_lps[:3, :3] @ np.array(image.GetDirection()).reshape(3, 3)).ravel())
    out.SetOrigin((world_lps @ [*image.GetOrigin(), 1.0])[:3])
    return out


@pytest.fixture(scope="module")
def oblique_pair(phantom, tmp_path_factory):
    """Both images oblique and on different grids, in nodes under parent transforms and in the engine's own files."""
    folder = tmp_path_factory.mktemp("oblique")
    world_fixed, world_moving = rigid((10, -20, 30), (15, -8, 20)), rigid((14, -18, 35), (5, 12, 40))
    fixed, fixed_mask = moved(phantom.fixed, world_fixed), moved(phantom.fixed_mask, world_fixed)
    finer = sitk.ResampleImageFilter()
    finer.SetReferenceImage(phantom.moving)
    finer.SetOutputSpacing((4.0, 6.0, 4.5))
    finer.SetSize([int(n * 5 / s) for n, s in zip(phantom.moving.GetSize(), (4.0, 6.0, 4.5), strict=True)])
    finer.SetInterpolator(sitk.sitkLinear)
    moving = sitk.Flip(moved(finer.Execute(phantom.moving), world_moving), [True, False, True])
    finer.SetInterpolator(sitk.sitkNearestNeighbor)
    moving_mask = sitk.Flip(moved(finer.Execute(phantom.moving_mask), world_moving), [True, False, True])

    scene = slicer.vtkMRMLScene()
    images = {"fixed": fixed, "moving": moving, "fixed_mask": fixed_mask, "moving_mask": moving_mask}
    job = Job(**QUICK)
    for i, (role, image) in enumerate(images.items()):
        sitk.WriteImage(image, str(folder / f"{role}.nrrd"))
        kind = "vtkMRMLLabelMapVolumeNode" if "mask" in role else "vtkMRMLScalarVolumeNode"
        node = volume_node(scene, image, role, kind)
        put_under(
            node,
            RAS_LPS @ rigid((20 * i, 5, -30), (9 * i, 3, -40)) @ np.diag([1, 1.2, 1, 1]) @ RAS_LPS
            if i == 0
            else rigid((20 * i, 5, -30), (9 * i, 3, -40)),
        )
        setattr(job, role, node)
    (folder / "settings.json").write_text(job.settings().to_json())
    command = [sys.executable, "-m", "nephi", "register", "fixed.nrrd", "moving.nrrd", "--output", "engine"]
    command += ["--fixed-mask", "fixed_mask.nrrd", "--moving-mask", "moving_mask.nrrd"]
    command += ["--settings", "settings.json", "--no-report", "--progress", "none"]
    subprocess.run(command, cwd=folder, env=engine_environment(), check=True, capture_output=True)
    run = finish(Logic(scene).start(job))
    assert run.state == "done", run.error
    return images, run.outputs, folder / "engine", (world_fixed, world_moving)


def test_oblique_nodes_under_transforms_give_the_engines_own_result(oblique_pair):
    images, outputs, engine, _ = oblique_pair
    fixed_points, moving_points = points_in(images["fixed"]), points_in(images["moving"])
    forward, inverse = transformed(outputs.forward, fixed_points), transformed(outputs.inverse, moving_points)
    assert np.abs(forward - by_file(engine / "transform.h5", fixed_points)).max() < 1e-3
    assert np.abs(inverse - by_file(engine / "inverse_transform.h5", moving_points)).max() < 1e-3
    assert np.linalg.norm(forward - fixed_points, axis=1).mean() > 10  # so that this compares something


def test_oblique_result_is_the_true_motion(oblique_pair, phantom):
    """Against the phantom's map, so that a wrong frame on both sides would not pass."""
    _, outputs, _, (world_fixed, world_moving) = oblique_pair
    ones = np.ones((len(phantom.fixed_landmarks_lps_mm), 1))
    fixed = (np.hstack([phantom.fixed_landmarks_lps_mm, ones]) @ world_fixed.T)[:, :3]
    moving = (np.hstack([phantom.moving_landmarks_lps_mm, ones]) @ world_moving.T)[:, :3]
    error = np.linalg.norm(lps(transformed(outputs.forward, lps(fixed))) - moving, axis=1)
    back = np.linalg.norm(lps(transformed(outputs.inverse, lps(moving))) - fixed, axis=1)
    before = np.linalg.norm(fixed - moving, axis=1).mean()
    assert before > 20 and error.mean() < 4 and back.mean() < 4


@pytest.mark.parametrize(
    "part, file", [("warped", "warped"), ("jacobian", "jacobian"), ("fields_disagreement", "fields_disagreement")]
)
def test_oblique_volumes_have_the_engines_voxels_and_place(oblique_pair, part, file):
    images, outputs, engine, _ = oblique_pair
    own = sitk.ReadImage(str(engine / f"{file}.nii.gz"))
    node = getattr(outputs, part)
    matrix = vtkMatrixFromArray(np.eye(4))
    node.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), matrix_of(own), atol=1e-3)
    assert node.GetParentTransformNode() is None
    np.testing.assert_allclose(arrayFromVolume(node), sitk.GetArrayFromImage(own), atol=2e-3 if part != "warped" else 1)
    if part != "fields_disagreement":
        np.testing.assert_allclose(matrix_of(own), matrix_of(images["fixed"]), atol=1e-3)
