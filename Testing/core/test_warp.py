"""Images warped slice by slice read what ITK reads, and files written slice by slice are what ITK reads."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from geometry import rotation
from nephi.cli.convert import TransformFile
from nephi.errors import NephiError, collected_notices
from nephi.files.nifti import read_nifti
from nephi.files.nifti_writing import write_slices
from nephi.files.transform import displacement_transform
from nephi.images.warp import warped_slices
from nephi.registration import register
from nephi.space.grid import Grid

AXES = [np.eye(3), np.diag([1.0, -1.0, -1.0]), rotation(3, 25.0), np.eye(3)[[2, 0, 1]]]


def grids(axes: np.ndarray) -> tuple[Grid, Grid]:
    """Of the fixed image and of a moving one that does not cover it."""
    direction = tuple(axes.ravel())
    fixed = Grid((44, 37, 31), (1.0, 1.2, 1.5), (-30.0, -20.0, 10.0), direction)
    return fixed, Grid((35, 43, 27), (1.1, 1.0, 1.3), tuple(fixed.to_lps_mm([4, -3, 5])), direction)


@pytest.mark.parametrize("axes", AXES, ids=["plain", "flipped", "oblique", "permuted"])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32, np.float64, np.int32])
def test_a_warped_image_is_that_of_itk(axes, kind):
    fixed, grid = grids(axes)
    random = np.random.default_rng(0)
    values = random.normal(100, 30, grid.shape).clip(0, 255)
    image, coarse = (
        grid.image((np.rint(values) if np.issubdtype(kind, np.integer) else values).astype(kind)),
        (fixed.coarsened(6.0)),
    )
    displacement = random.normal(0, 3, (*coarse.shape, 3)).astype(np.float32)
    found = np.stack(list(warped_slices(image, fixed, displacement, coarse, 7.0)))
    transform = displacement_transform(displacement, coarse)
    wanted = sitk.GetArrayFromImage(
        fixed.resample(sitk.Cast(image, sitk.sitkFloat64), transform, sitk.sitkLinear, outside=7.0)
    )
    assert found.dtype == kind and found.shape == fixed.shape
    assert 0.05 < (wanted == 7).mean() < 0.95  # some of it lies beyond the image, where both hold the same
    np.testing.assert_array_equal(found == 7, np.rint(wanted) == 7 if found.dtype.kind in "ui" else wanted == 7)
    tolerance = {"f": 0.05, "u": 0.55, "i": 1.0 if kind == np.int32 else 0.55}[found.dtype.kind]
    assert np.abs(found - wanted).max() <= tolerance


@pytest.mark.usefixtures("packed_by")
@pytest.mark.parametrize("d", [2, 3])
def test_a_written_image_is_read_where_it_lies(d, tmp_path):
    random = np.random.default_rng(d)
    for kind in (np.int16, np.uint8, np.float32, np.float64, np.uint16):
        axes, _ = np.linalg.qr(random.normal(size=(d, d)))
        size = tuple(map(int, random.integers(8, 20, d)))
        grid = Grid(
            size, tuple(random.uniform(0.3, 3, d)), tuple(random.uniform(-300, 300, d)), tuple(axes.ravel())
        )  # fmt: skip
        array = random.normal(100, 30, grid.shape).clip(0, 255).astype(kind)
        path = tmp_path / "image.nii.gz"
        write_slices(iter(array), kind, grid, path)
        for image in (read_nifti(path, "image"), *([sitk.ReadImage(str(path))] if d == 3 else [])):
            assert Grid.of(image).same_as(grid)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
        image = grid.image(array)
        sitk.WriteImage(image, str(tmp_path / "itk.nii.gz"))
        ours, itks = (gzip.decompress((tmp_path / name).read_bytes()) for name in ("image.nii.gz", "itk.nii.gz"))
        for start, stop in ((0, 4), (40, 76), (108, 120), (252, 256), (344, 348)):  # sizes, type, offset, forms, magic
            assert ours[start:stop] == itks[start:stop]


def test_a_failure_between_slices_leaves_the_older_file(tmp_path):
    grid = Grid((9, 8, 10), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    path = tmp_path / "image.nii.gz"
    write_slices(np.zeros(grid.shape, np.int16), np.int16, grid, path)
    before = path.read_bytes()

    def failing():
        yield np.ones(grid.shape[1:], np.int16)
        raise NephiError("no")

    with pytest.raises(NephiError):
        write_slices(failing(), np.int16, grid, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["image.nii.gz"]


def told(work) -> list[str]:
    with collected_notices() as notices:
        work()
    return notices


def test_an_image_that_seems_to_be_another_than_was_meant_is_told(phantom_2d, short):
    """Of another frame, of the other side of the map, or a label map."""
    phantom, result = phantom_2d, register(phantom_2d.fixed, phantom_2d.moving, settings=short(2))
    assert not told(lambda: result.warp(phantom.moving)) and not told(lambda: result.warp(phantom.fixed, inverse=True))
    elsewhere = sitk.Image(phantom.moving)
    elsewhere.SetOrigin([5000.0, 0.0])
    lungs = Grid.of(elsewhere).image(sitk.GetArrayFromImage(phantom.moving_mask))
    for image, labels in ((elsewhere, False), (lungs, True)):
        (said,) = told(lambda image=image, labels=labels: result.warp(image, labels=labels))
        assert "shows nothing of the input image" in said
    (said,) = told(lambda: result.warp(phantom.fixed))
    assert "grid of the fixed image" in said and "with --inverse" in said
    (said,) = told(lambda: result.warp(phantom.moving, inverse=True))
    assert "grid of the moving image" in said and "without --inverse" in said
    labels = Grid.of(phantom.moving).image((sitk.GetArrayFromImage(phantom.moving) // 400).astype(np.int16))
    (said,) = told(lambda: result.warp(labels))
    assert "--labels" in said
    assert not told(lambda: result.warp(labels, labels=True)) and not told(lambda: result.warp(phantom.moving_mask))


def test_a_transform_file_tells_the_same(tmp_path):
    grid = Grid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    sitk.WriteTransform(sitk.TranslationTransform(3, [1.0, 0.0, 0.0]), str(tmp_path / "a.tfm"))
    transform = TransformFile(tmp_path / "a.tfm", grid, False)
    image = grid.image(np.random.default_rng(0).normal(0, 1, grid.shape).astype(np.float32))
    assert not told(lambda: transform.warp(image, grid, labels=False, inverse=False))
    image.SetOrigin([500.0, 0.0, 0.0])
    (said,) = told(lambda: transform.warp(image, grid, labels=False, inverse=False))
    assert "shows nothing of the input image" in said
