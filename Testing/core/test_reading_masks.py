"""Masks and label maps mean what people mean by them, and what was settled is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.cli import main
from nephi.errors import NephiError, collected_notices
from nephi.files.image import open_image
from nephi.files.masks import check_mask
from nephi.files.regions import read_regions
from nephi.space.grid import Grid

Z, Y, X = np.indices((20, 22, 24))
INSIDE = (abs(Z - 10) < 6) & (abs(Y - 11) < 7) & (abs(X - 12) < 8)
GRID = Grid((24, 22, 20), (2.0, 2.0, 3.0), (5.0, -7.0, 9.0), tuple(np.eye(3).ravel()))
IMAGE = GRID.image(np.random.default_rng(0).normal(size=INSIDE.shape).astype(np.float32))


def checked(mask: sitk.Image):
    with collected_notices() as notices:
        found = check_mask(mask, IMAGE, "fixed mask")
    assert Grid.of(found).same_as(GRID) and found.GetPixelID() == sitk.sitkUInt8
    return sitk.GetArrayFromImage(found), notices


@pytest.mark.parametrize(
    "kind, height", [(np.uint8, 1), (np.uint8, 255), (np.int16, 7), (np.float64, 1.0), (np.float32, 0.7)]
)
def test_a_plain_mask_of_any_type_and_height(kind, height):
    found, notices = checked(GRID.image((INSIDE * kind(height)).astype(kind)))
    np.testing.assert_array_equal(found, INSIDE)
    assert not notices or height == 0.7


def test_probabilities_count_from_a_half():
    smooth = sitk.SmoothingRecursiveGaussian(GRID.image(INSIDE.astype(np.float32)), 3.0)
    found, notices = checked(smooth)
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(smooth) >= 0.5)
    assert 0.9 < found.sum() / INSIDE.sum() < 1.1 and "fractions" in notices[0]
    with pytest.raises(NephiError, match="0.4"):
        checked(GRID.image((0.4 * INSIDE + 0.01).astype(np.float32)))
    with pytest.raises(NephiError, match="fractions from 0 to 255"):
        checked(GRID.image(np.linspace(0, 255, INSIDE.size).reshape(INSIDE.shape)))


def test_nan_is_outside():
    found, notices = checked(GRID.image(np.where(INSIDE, 1, np.nan).astype(np.float32)))
    np.testing.assert_array_equal(found, INSIDE)
    assert "NaN" in notices[0] and len(notices) == 1
    with pytest.raises(NephiError, match="infinite"):
        checked(GRID.image(np.where(INSIDE, 1, np.inf).astype(np.float32)))


def test_several_labels_are_a_union():
    found, notices = checked(GRID.image((INSIDE * (1 + (X > 12) + (Y > 11))).astype(np.int16)))
    np.testing.assert_array_equal(found, INSIDE)
    assert "3 labels (1, 2, 3)" in notices[0]


def test_what_is_no_mask():
    with pytest.raises(NephiError, match="seems to be an image"):
        checked(GRID.image(np.arange(INSIDE.size, dtype=np.int32).reshape(INSIDE.shape)))
    with pytest.raises(NephiError, match="empty"):
        checked(GRID.image(0 * INSIDE.astype(np.uint8)))
    mask = GRID.image(INSIDE.astype(np.float32))
    with pytest.raises(NephiError, match="components"):
        checked(sitk.Compose(mask, mask))
    with pytest.raises(NephiError, match="complex"):
        checked(sitk.RealAndImaginaryToComplex(mask, mask))
    with pytest.raises(NephiError, match="2D, but its image is 3D"):
        checked(mask[:, :, 10])


def test_another_grid_over_the_same_box_is_resampled():
    shifted = Grid(GRID.size, GRID.spacing_mm, (5.3, -7.0, 9.0), GRID.direction)
    found, notices = checked(shifted.image(INSIDE.astype(np.uint8)))
    np.testing.assert_array_equal(found, INSIDE)
    assert "origin 0.3 mm off" in notices[0] and "resampled" in notices[0]
    coarse = Grid((12, 11, 10), (4.0, 4.0, 6.0), (6.0, -6.0, 10.5), GRID.direction)
    z, y, x = np.indices(coarse.shape)
    mask = coarse.image(((abs(z - 5) < 3) & (abs(y - 5) < 3) & (abs(x - 6) < 3)).astype(np.uint8))
    found, notices = checked(mask)
    volume = sitk.GetArrayFromImage(mask).sum() * coarse.voxel_volume_mm3
    assert found.sum() * GRID.voxel_volume_mm3 == pytest.approx(volume, rel=0.1)
    assert "size 12 x 11 x 10 instead of 24 x 22 x 20" in notices[0]


@pytest.mark.parametrize(
    "grid, match",
    [
        (Grid(GRID.size, GRID.spacing_mm, (15.0, -7.0, 9.0), GRID.direction), "origin 10 mm off"),
        (Grid(GRID.size, (2.0, 2.0, 3.5), GRID.origin_lps_mm, GRID.direction), "spacing 2 x 2 x 3.5 instead of"),
        (Grid((24, 22, 10), GRID.spacing_mm, GRID.origin_lps_mm, GRID.direction), "size .* corners up to 30 mm"),
        (Grid(GRID.size, GRID.spacing_mm, (51.0, 35.0, 9.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)), "direction 180 degrees"),
    ],
)
def test_a_mask_that_lies_elsewhere_is_refused_with_the_difference(grid, match):
    if grid.direction[0] < 0:  # the same box, turned about: resampled rightly
        found, _ = checked(grid.image(INSIDE[:, ::-1, ::-1].astype(np.uint8)))
        np.testing.assert_array_equal(found, INSIDE)
        grid = Grid(grid.size, grid.spacing_mm, (0.0, 0.0, 9.0), grid.direction)
    with pytest.raises(NephiError, match=match):
        checked(grid.image(np.ones(grid.shape, np.uint8)))


def cropped(array: np.ndarray, path, box=(slice(4, 17), slice(4, 19), slice(3, 22)), grid=GRID, of_slicer=True):
    """A part of the labels (z, y, x) as Slicer writes a segmentation, read back."""
    image = grid.part(box).image(array[box])
    if of_slicer:
        offset = " ".join(str(along.start) for along in reversed(box))
        entries = {"Segment0_ID": "lung", "Segment0_LabelValue": "1", "Segmentation_ReferenceImageExtentOffset": offset}
        for key, value in entries.items():
            image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return open_image(path, "fixed mask")


def test_a_segmentation_of_slicer_may_hold_a_part_of_the_voxels(tmp_path):
    part = cropped(INSIDE.astype(np.uint8), tmp_path / "lung.seg.nrrd")
    assert part.GetSize() != IMAGE.GetSize()
    found, notices = checked(part)
    np.testing.assert_array_equal(found, INSIDE)
    assert len(notices) == 1 and "the rest counts as outside" in notices[0]
    labels = (INSIDE * (1 + (X > 12))).astype(np.uint8)
    cropped(labels, tmp_path / "halves.seg.nrrd")
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(read_regions(tmp_path / "halves.seg.nrrd", IMAGE, "regions")), labels
    )
    turned = sitk.PermuteAxes(sitk.Flip(part, (True, False, True)), (2, 0, 1))
    for key in part.GetMetaDataKeys():
        turned.SetMetaData(key, part.GetMetaData(key))
    np.testing.assert_array_equal(checked(turned)[0], INSIDE)


@pytest.mark.parametrize(
    "change, of_slicer",
    [
        ({"origin_lps_mm": (5.6, -7.0, 9.0)}, True),  # between the voxels
        ({"spacing_mm": (4.0, 4.0, 6.0)}, True),
        ({"origin_lps_mm": (-11.0, -7.0, 9.0)}, True),  # beyond the image
        ({}, False),
    ],
)
def test_a_part_on_another_lattice_or_of_no_segmentation_is_refused(tmp_path, change, of_slicer):
    grid = replace(GRID, **change)
    part = cropped(INSIDE.astype(np.uint8), tmp_path / "lung.seg.nrrd", grid=grid, of_slicer=of_slicer)
    with pytest.raises(NephiError, match="the grid of the mask is not that of its image"):
        checked(part)


def test_label_maps(tmp_path):
    labels = INSIDE * (1.0 + (X > 12))
    with_nan = GRID.image(np.where(INSIDE, labels, np.nan))
    sitk.WriteImage(with_nan, str(tmp_path / "nan.nrrd"))
    with collected_notices() as notices:
        found = read_regions(tmp_path / "nan.nrrd", IMAGE)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), labels)
    assert len(notices) == 1
    sitk.WriteImage(GRID.image(labels * 0.5), str(tmp_path / "half.nrrd"))
    with pytest.raises(NephiError, match="whole numbers"):
        read_regions(tmp_path / "half.nrrd", IMAGE)
    sitk.WriteImage(GRID.image(labels * 12_175), str(tmp_path / "brain.nrrd"))  # as FreeSurfer numbers them
    found = read_regions(tmp_path / "brain.nrrd", IMAGE)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), labels * 12_175)
    many = np.arange(INSIDE.size, dtype=np.int32).reshape(INSIDE.shape) % 1200
    sitk.WriteImage(GRID.image(many), str(tmp_path / "many.nrrd"))
    with pytest.raises(NephiError, match="1199 labels; it seems to be an image"):
        read_regions(tmp_path / "many.nrrd", IMAGE)


def test_notices_reach_the_report_and_stderr(phantom_2d, tmp_path, capsys):
    phantom_2d.write(tmp_path)
    mask = sitk.SmoothingRecursiveGaussian(sitk.Cast(phantom_2d.fixed_mask, sitk.sitkFloat32), 4.0)
    sitk.WriteImage(mask, str(tmp_path / "soft.nrrd"))
    images = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    options = ["--fixed-mask", tmp_path / "soft.nrrd", "--preset", "fast", "--iterations", "2", "--no-report"]
    arguments = ["register", *images, "--output", tmp_path / "out", *options]
    assert main([str(a) for a in arguments]) == 0
    text = "fixed mask: it has fractions"
    assert capsys.readouterr().err.count(text) == 1
    (warning,) = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert warning.startswith(text)
