"""The right and the left lung of a mask are told apart by where they lie in the patient, and ``nephi lungs``."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.cli.entry import main
from nephi.images.left_right import LEFT, RIGHT, UNDIVIDED, right_and_left

_SPACING_MM = 5.0
_SIDE_MM = 320.0


def _lungs(bridge_mm: float = 0.0, left: bool = True) -> sitk.Image:
    """Two upright ellipsoids in LPS around 0, joined by a block before the heart; the right one is the larger."""
    count = int(_SIDE_MM / _SPACING_MM)
    z, y, x = (np.indices((count,) * 3) - (count - 1) / 2) * _SPACING_MM
    mask = ((x + 70) / 55) ** 2 + (y / 75) ** 2 + (z / 110) ** 2 < 1
    if left:
        mask |= ((x - 70) / 45) ** 2 + (y / 75) ** 2 + (z / 110) ** 2 < 1
    mask |= (np.abs(x) < 70) & (np.abs(y + 20) < bridge_mm / 2) & (np.abs(z - 30) < 25)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing((_SPACING_MM,) * 3)
    image.SetOrigin((-(count - 1) / 2 * _SPACING_MM,) * 3)
    return image


def _as_stored(image: sitk.Image, orientation: str, degrees: float = 0.0) -> sitk.Image:
    """The same patient with its voxels in another order, or lying askew."""
    image = sitk.DICOMOrient(image, orientation)
    turn = sitk.Euler3DTransform((0, 0, 0), 0, 0, np.radians(degrees))
    matrix = np.reshape(turn.GetMatrix(), (3, 3))
    image.SetDirection((matrix @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    image.SetOrigin(turn.TransformPoint(image.GetOrigin()))
    return image


def _places(labels: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Label and x (LPS) of each voxel that has one."""
    index = np.argwhere(sitk.GetArrayViewFromImage(labels))[:, ::-1]
    x = [labels.TransformIndexToPhysicalPoint(tuple(map(int, i)))[0] for i in index]
    return sitk.GetArrayFromImage(labels)[tuple(index[:, ::-1].T)], np.array(x)


@pytest.mark.parametrize("orientation, degrees", [("LPS", 0.0), ("RAS", 0.0), ("SLP", 0.0), ("ASR", 20.0)])
@pytest.mark.parametrize("bridge_mm", [0.0, 15.0])
def test_each_lung_is_on_its_side_however_it_is_stored_and_joined(bridge_mm, orientation, degrees):
    mask = _as_stored(_lungs(bridge_mm), orientation, degrees)
    labels = right_and_left(mask)
    assert np.array_equal(sitk.GetArrayViewFromImage(labels) > 0, sitk.GetArrayViewFromImage(mask) > 0)
    label, x = _places(labels)
    assert set(np.unique(label)) == {RIGHT, LEFT}
    far = np.abs(x) > 45  # beyond what lies between them, also askew
    assert (label[far] == np.where(x[far] < 0, RIGHT, LEFT)).mean() > 0.98
    counts = [np.count_nonzero(label == side) for side in (RIGHT, LEFT)]
    assert 1.05 < counts[0] / counts[1] < 1.7  # 1.22 without the block


@pytest.mark.parametrize("mask", [_lungs(left=False), sitk.Image(20, 20, 20, sitk.sitkUInt8)])
def test_one_lung_alone_is_not_divided(mask):
    labels = sitk.GetArrayFromImage(right_and_left(mask))
    assert np.array_equal(labels, UNDIVIDED * sitk.GetArrayFromImage(mask))


def test_command_writes_the_labels_and_their_volumes(phantom_3d, tmp_path, capsys):
    image, labels = tmp_path / "ct.nii.gz", tmp_path / "lungs.nii.gz"
    sitk.WriteImage(phantom_3d.moving, str(image))
    assert main(["lungs", str(image), "--output", str(labels)]) == 0
    found, mask = sitk.ReadImage(str(labels)), sitk.GetArrayFromImage(phantom_3d.moving_mask) > 0
    label, x = _places(found)
    assert np.median(x[label == RIGHT]) < np.median(x[label == LEFT])
    there = sitk.GetArrayFromImage(found) > 0
    assert 2 * (there & mask).sum() / (there.sum() + mask.sum()) > 0.85
    lines = capsys.readouterr().out.splitlines()
    litres = there.sum() * np.prod(found.GetSpacing()) / 1e6
    assert [line.split()[1] for line in lines] == ["right", "left"]
    assert sum(float(line.split()[-2]) for line in lines) == pytest.approx(litres, abs=0.02)


def test_command_says_why_there_are_none(tmp_path, capsys):
    noise = np.random.default_rng(0).normal(100, 20, (20, 20, 20)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / "mr.nii.gz"))
    assert main(["lungs", str(tmp_path / "mr.nii.gz"), "--output", str(tmp_path / "lungs.nii.gz")]) == 2
    assert "not a 3D CT" in capsys.readouterr().err and not (tmp_path / "lungs.nii.gz").exists()
