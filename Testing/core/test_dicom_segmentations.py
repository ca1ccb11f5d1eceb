"""DICOM segmentations: warped as label maps are, and valid by pydicom's own pixels and dciodvfy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from files import ENCODINGS, cuts, encoded, textured, write_dicom
from geometry import rotation
from nephi.cli import main
from nephi.errors import NephiError
from nephi.files.image import read_volume
from nephi.files.regions import read_regions
from nephi.files.segments import region_names
from nephi.space.grid import Grid

pydicom = pytest.importorskip("pydicom")
from nephi.files.dicom_objects import read_series  # noqa: E402
from nephi.files.dicom_segmentations import is_segmentation, read_segmentation, write_segmentation  # noqa: E402

_HEADER = {"0010|0010": "Doe^Jane", "0010|0020": "7", "0010|0030": "19500101", "0010|0040": "F", "0020|0010": "1",
           "0008|0020": "20200101", "0008|0030": "120000", "0008|0050": "1", "0008|0090": "Roe"}  # fmt: skip
_SHIFT_MM = np.array([1.6, -0.9, 2.5])


def segment(number: int, name: str):
    def code(value: str, meaning: str):
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
        return item

    item = pydicom.Dataset()
    item.SegmentNumber, item.SegmentLabel, item.SegmentAlgorithmType = number, name, "MANUAL"
    item.SegmentedPropertyCategoryCodeSequence = [code("123037004", "Anatomical Structure")]
    item.SegmentedPropertyTypeCodeSequence = [code("39607008", "Lung")]
    return item


@pytest.fixture
def case(tmp_path) -> tuple[Path, Path, Path, sitk.Image]:
    """Folders of an oblique fixed and a moving series, a SEG of two segments of the moving one, and its label map."""
    fixed, moving = textured(), textured((16, 15, 12), (0.9, 0.8, 2.0), (-30.0, 10.0, -204.0), seed=1)
    fixed.SetDirection(rotation(3, 10.0).ravel().tolist())
    write_dicom(fixed, tmp_path / "fixed", uid="1.2.3.10", tags=_HEADER | {"0020|0052": "1.2.3.4"})
    write_dicom(moving, tmp_path / "moving", uid="1.2.3.20", tags=_HEADER | {"0020|0052": "1.2.3.5"})
    array = np.zeros((12, 15, 16), np.uint16)
    array[2:9, 3:9, 2:12], array[5:8, 9:13, 4:9] = 1, 2
    labels = Grid.of(moving).image(array)
    segments = [segment(1, "Lung"), segment(2, "Lesion")]
    write_segmentation(labels, segments, tmp_path / "in.dcm", read_series(tmp_path / "moving"))
    return tmp_path / "fixed", tmp_path / "moving", tmp_path / "in.dcm", labels


def test_a_segmentation_is_the_label_map_that_it_was_made_of(case):
    _, _, path, labels = case
    assert is_segmentation(path)
    found = read_segmentation(path)
    assert [item.SegmentLabel for item in found.segments] == ["Lung", "Lesion"]
    # its own stack begins and ends where segments do
    on_all = sitk.Resample(found.labels, labels, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert np.array_equal(sitk.GetArrayViewFromImage(on_all), sitk.GetArrayViewFromImage(labels))


def warped(case, tmp_path: Path) -> Path:
    fixed, _, path, _ = case
    sitk.WriteTransform(sitk.TranslationTransform(3, _SHIFT_MM.tolist()), str(tmp_path / "map.tfm"))
    command = ["warp", str(tmp_path / "map.tfm"), str(path), "--dicom", str(fixed)]
    assert main([*command, "--output", str(tmp_path / "out.dcm")]) == 0
    return tmp_path / "out.dcm"


def test_its_segments_are_regions_by_their_names(case):
    _, moving, path, labels = case
    found = read_regions(path, read_volume(moving))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(labels))
    assert region_names(found) == {1: "Lung", 2: "Lesion"}


def test_it_comes_out_warped_and_as_it_came_in(case, tmp_path):
    """Frame by frame by pydicom alone: where a segment is, the moving label at the mapped place is its number."""
    fixed, _, _, labels = case
    data = pydicom.dcmread(warped(case, tmp_path))
    grid, seen = Grid.of(read_volume(fixed)), {1: 0, 2: 0}
    assert data.FrameOfReferenceUID == "1.2.3.4"
    assert [(item.SegmentNumber, item.SegmentLabel) for item in data.SegmentSequence] == [(1, "Lung"), (2, "Lesion")]
    for plane, frame in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        rows, columns = np.nonzero(plane)
        points = place + np.outer(columns, grid.axes[:, 0]) * grid.spacing_mm[0]
        points += np.outer(rows, grid.axes[:, 1]) * grid.spacing_mm[1]
        for point in points + _SHIFT_MM:
            assert labels[labels.TransformPhysicalPointToIndex(point.tolist())] == number
        seen[number] += len(rows)
    moved = sitk.Resample(labels, read_volume(fixed), sitk.TranslationTransform(3, _SHIFT_MM.tolist()), 1)
    counts = np.bincount(sitk.GetArrayViewFromImage(moved).ravel())
    assert seen == {1: counts[1], 2: counts[2]} and min(seen.values()) > 50


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is missing (Debian: dicom3tools)")
def test_it_is_valid(case, tmp_path):
    done = subprocess.run(["dciodvfy", str(warped(case, tmp_path))], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert not errors, errors


def test_it_is_written_as_an_image_too(case, tmp_path):
    fixed, _, path, labels = case
    sitk.WriteTransform(sitk.TranslationTransform(3, [0.0, 0.0, 0.0]), str(tmp_path / "map.tfm"))
    command = ["warp", str(tmp_path / "map.tfm"), str(path), "--reference", str(fixed)]
    assert main([*command, "--output", str(tmp_path / "out.nii.gz")]) == 0
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz"))))) == {0, 1, 2}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_it_is_read_in_every_encoding_and_refused_wherever_it_is_cut(case, encoding):
    path, labels = case[2], sitk.GetArrayFromImage(read_segmentation(case[2]).labels)
    whole = encoded(path, encoding)
    assert np.array_equal(sitk.GetArrayFromImage(read_segmentation(path).labels), labels)
    for end in cuts(whole)[: -1 if "deflated" in encoding else None]:  # which is filled up with one byte
        path.write_bytes(whole[:end])
        with pytest.raises(NephiError) as caught:
            is_segmentation(path)
            read_segmentation(path)
        assert "in.dcm" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("ImagePositionPatient", "1e30"), ("ImageOrientationPatient", "NaN"), ("PixelSpacing", "0")]
)
def test_a_place_that_cannot_be_is_one_line(case, name, value):
    data = pydicom.dcmread(case[2])
    shared = data.SharedFunctionalGroupsSequence[0]
    place = data.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    holder = {"PixelSpacing": shared.PixelMeasuresSequence[0], "ImagePositionPatient": place,
              "ImageOrientationPatient": shared.PlaneOrientationSequence[0]}[name]  # fmt: skip
    holder[name].value[-1] = value
    data.save_as(case[2])
    with pytest.raises(NephiError) as caught:
        read_segmentation(case[2])
    assert "in.dcm" in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_label_map_cannot_hold_is_told(case, tmp_path):
    data = pydicom.dcmread(case[2])
    data.SegmentationType = "FRACTIONAL"
    data.save_as(tmp_path / "fractional.dcm")
    with pytest.raises(NephiError, match="is a fractional segmentation"):
        read_segmentation(tmp_path / "fractional.dcm")
    data = pydicom.dcmread(case[2])
    data.PixelData = b"\xff" * len(data.PixelData)
    data.save_as(tmp_path / "overlapping.dcm")
    with pytest.raises(NephiError, match="overlapping segments"):
        read_segmentation(tmp_path / "overlapping.dcm")
    data = pydicom.dcmread(case[2])
    del data.PerFrameFunctionalGroupsSequence
    data.save_as(tmp_path / "damaged.dcm")
    with pytest.raises(NephiError, match="not a complete DICOM segmentation"):
        read_segmentation(tmp_path / "damaged.dcm")
