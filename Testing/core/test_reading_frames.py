"""DICOM files that state what ITK leaves aside: each frame's place, each slice's padding, the unit of a dose."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from files import ENCODINGS, encoded, textured, write_dicom, write_frames
from nephi.errors import NephiError, collected_notices
from nephi.files.image import read_image, read_volume
from nephi.space.grid import Grid

pydicom = pytest.importorskip("pydicom")
IMAGE = textured()


def same(image) -> bool:
    arrays = [sitk.GetArrayFromImage(i) for i in (image, IMAGE)]
    return Grid.of(image).same_as(Grid.of(IMAGE)) and np.array_equal(*arrays)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("order", [range(10), range(9, -1, -1), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]])
def test_frames_are_where_the_file_states_them(order, encoding, tmp_path):
    """ITK takes each for the one above the last, so that a body from head to feet would be mirrored."""
    write_frames(IMAGE, path := tmp_path / "a.dcm", order=order)
    encoded(path, encoding)
    with collected_notices() as notices:
        assert same(read_image(path)) and same(read_image(tmp_path))
    assert not notices


def along(*numbers):
    return lambda k, p: p + np.array(numbers) * k


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"order": [0, 1, 2, 4, 5, 6, 7, 8, 9]}, "1 slices are missing, the first between frame 3"),
        ({"move": along(0, 0.5, 0)}, "gantry tilt"),
        ({"move": lambda k, p: p - (0, 0, 2.5 * 5 * (k > 4))}, "5 of 10 slices lie at the same position"),
        ({"move": lambda k, p: p + (0, 0, 0.9 * (k == 4))}, "spaced unevenly"),
        ({"slopes": range(1, 11)}, "scales of their own"),
        ({"turn": lambda k: [np.cos(k / 9), np.sin(k / 9), 0, -np.sin(k / 9), np.cos(k / 9), 0]}, "oriented diff"),
        ({"move": lambda k, p: [] if k == 3 else p}, "frame 4 states no position"),
    ],
)
def test_frames_that_are_no_regular_stack(how, match, tmp_path):
    write_frames(IMAGE, tmp_path / "a.dcm", **how)
    for path in (tmp_path, tmp_path / "a.dcm"):
        with pytest.raises(NephiError, match=match):
            read_image(path)


def dose(path, offsets=None, **values):
    write_frames(IMAGE, path)
    data = pydicom.dcmread(path)
    del data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.2"
    data.ImagePositionPatient, data.ImageOrientationPatient = list(IMAGE.GetOrigin()), [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.Modality, data.DoseGridScaling = [0.9, 0.8], "RTDOSE", "0.001"
    if offsets is not None:
        data.GridFrameOffsetVector = [f"{v:g}" for v in offsets]
    data.update(values)
    data.save_as(path)


@pytest.mark.parametrize("step", [2.5, -2.5])
def test_the_planes_of_a_dose_and_its_unit(step, tmp_path):
    dose(tmp_path / "a.dcm", step * np.arange(10))
    array = 0.001 * sitk.GetArrayFromImage(IMAGE)
    back = read_volume(tmp_path / "a.dcm")
    np.testing.assert_allclose(sitk.GetArrayFromImage(back), array if step > 0 else array[::-1])
    np.testing.assert_allclose(back.GetOrigin(), (-30, 12, -200 + min(0, 9 * step)))


@pytest.mark.parametrize("offsets", [[*range(9), 12], None, [0, 1], range(3, 13)])
def test_planes_of_a_dose_without_a_place(offsets, tmp_path):
    dose(tmp_path / "a.dcm", offsets)
    with pytest.raises(NephiError, match="missing|state no position|not those of 10 planes"):
        read_volume(tmp_path / "a.dcm")


CHANGES = {
    "has no pixel spacing": {"PixelSpacing": None},
    "pixel spacing that its reader does not": {"PixelSpacing": None, "ImagerPixelSpacing": [0.9, 0.8]},
    "has no pixel spacing.": {"PixelSpacing": [0, 0]},
    "states no orientation": {"ImageOrientationPatient": None},
    "orientation that cannot be": {"ImageOrientationPatient": [1, 0, 0, 0.5, 0.866, 0]},
    "place or an orientation": {"ImageOrientationPatient": [0] * 6},
    "rescale slope of 0": {"RescaleSlope": 0, "RescaleIntercept": -1024},
    "MONOCHROME1, whose values": {"PhotometricInterpretation": "MONOCHROME1"},
    "High Bit": {"BitsStored": 12},
    "mosaic": {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]},
}


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("match", CHANGES)
def test_headers_that_itk_fills_up_with_what_is_not_stated(match, count, tmp_path):
    """In one slice or in all: a reader that looks at the first alone does not do."""
    write_dicom(IMAGE, tmp_path)
    for path in sorted(tmp_path.iterdir())[-count:]:
        data = pydicom.dcmread(path)
        for key, value in CHANGES[match].items():
            delattr(data, key) if value is None else setattr(data, key, value)
        data.save_as(path)
    with pytest.raises(NephiError, match=match.rstrip(".")):
        read_image(tmp_path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", [1, 10])
def test_values_by_a_lookup_table(count, encoding, tmp_path):
    write_dicom(IMAGE, tmp_path)
    for path in sorted(tmp_path.iterdir())[-count:]:
        data, table = pydicom.dcmread(path), pydicom.Dataset()
        table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "HU", b"\0\1\2\3\4\5\6\7"
        table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
        data.ModalityLUTSequence = [table]
        for key in ("RescaleSlope", "RescaleIntercept"):
            data.pop(key, None)
        data.save_as(path)
        encoded(path, encoding)
    with pytest.raises(NephiError, match="Modality LUT"):
        read_image(tmp_path)


@pytest.mark.parametrize("slopes", [[2.0] * 10, [1.0] * 10])
def test_secondary_captures_with_a_scale_of_their_frames(slopes, tmp_path):
    """ITK looks at the file's own scale alone in files of this class."""
    write_frames(IMAGE, path := tmp_path / "a.dcm", slopes=slopes)
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
    data.save_as(path)
    if slopes[0] == 1:
        assert same(read_image(path))
    else:
        with pytest.raises(NephiError, match="where its reader does not look"):
            read_image(path)


def test_a_colour_slice_among_others_is_named(tmp_path):
    write_dicom(IMAGE, tmp_path)
    data = pydicom.dcmread(tmp_path / "0004.dcm")
    data.PixelData = np.repeat(data.pixel_array, 3).tobytes()
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.save_as(tmp_path / "0004.dcm")
    with pytest.raises(NephiError, match="0004.dcm"):
        read_image(tmp_path)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_each_slice_has_its_own_padding(slope, tmp_path):
    """Values, ranges and scales as each file states them."""
    write_dicom(IMAGE, tmp_path)
    expected = sitk.GetArrayFromImage(IMAGE).astype(float)
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        data, scale = pydicom.dcmread(path), 1 + slope * k
        array = data.pixel_array.copy()
        array[:3], array[3] = -2000 - k, -1990
        data.add_new("PixelPaddingValue", "SS", -2000 - k)
        data.add_new("PixelPaddingRangeLimit", "SS", -1990)
        data.PixelData, data.RescaleSlope, data.RescaleIntercept = array.tobytes(), f"{scale:g}", 0
        data.save_as(path)
        expected[k] *= scale
    back = sitk.GetArrayFromImage(read_image(tmp_path))
    np.testing.assert_allclose(back[:, 4:], expected[:, 4:], rtol=1e-6)
    np.testing.assert_allclose(back[:, :4], expected[:, 4:].min(), rtol=1e-6)


def test_big_endian_slices_are_read(tmp_path):
    write_dicom(IMAGE, tmp_path)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = data.pixel_array.astype(">i2").tobytes()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=False, enforce_file_format=True)
    assert same(read_image(tmp_path))


def test_one_xray_has_the_spacing_that_it_states(tmp_path):
    write_dicom(IMAGE, tmp_path, [0])
    (path,) = tmp_path.iterdir()
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    del data.ImagePositionPatient, data.ImageOrientationPatient
    data.save_as(path)
    assert read_volume(path).GetSpacing()[:2] == IMAGE.GetSpacing()[:2]
    del data.PixelSpacing
    data.save_as(path)
    with collected_notices() as notices:
        read_volume(path)
    assert len(notices) == 1 and "has no pixel spacing" in notices[0]
