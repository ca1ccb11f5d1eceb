"""A DICOM folder is the volume that its files state, or it is refused with the reason and the file's name."""

from __future__ import annotations

import shutil
import warnings
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from files import textured, write_dicom
from geometry import rotation
from nephi.errors import NephiError, collected_notices
from nephi.files import dicom, dicom_elements
from nephi.files.dicom_elements import lengths_fit
from nephi.files.dicom_series import dicom_series
from nephi.files.dicom_stack import SERIES
from nephi.files.image import read_image, read_volume
from nephi.space.grid import Grid

IMAGE = textured()
STEP = np.array([0.0, 0.0, 2.5])


def read(folder, series=()):
    with collected_notices() as notices:
        return read_image(folder, "fixed image", series), notices


def same(image, expected=IMAGE) -> bool:
    arrays = [sitk.GetArrayFromImage(i) for i in (image, expected)]
    return Grid.of(image).same_as(Grid.of(expected)) and np.array_equal(*arrays)


def test_an_oblique_volume_is_read_in_place_and_nothing_is_said(tmp_path):
    image = textured()
    image.SetDirection(rotation(3, 25.0).ravel().tolist())
    write_dicom(image, tmp_path)
    back, notices = read(tmp_path)
    assert same(back, image) and not notices


@pytest.mark.parametrize("padding", [None, -2000])
def test_the_image_keeps_the_series_it_was_read_from(tmp_path, padding):
    """Also where one of several was chosen, and where what pads the slices was replaced."""
    image = IMAGE
    if padding is not None:
        array = sitk.GetArrayFromImage(IMAGE)
        array[:, :3] = padding
        image = Grid.of(IMAGE).image(array)
    tags = {} if padding is None else {"0028|0120": str(padding)}
    write_dicom(image, tmp_path / "a", uid="1.2.3.4", tags=tags)
    assert read(tmp_path / "a")[0].GetMetaData(SERIES) == "1.2.3.4"
    write_dicom(image, tmp_path / "a", uid="1.2.3.5", first=50, tags=tags)
    assert read(tmp_path / "a", ("1.2.3.5",))[0].GetMetaData(SERIES) == "1.2.3.5"


def test_compressed_slices_are_read(tmp_path):
    write_dicom(IMAGE, tmp_path)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    for path in sorted(tmp_path.iterdir()):
        slice_ = sitk.ReadImage(str(path))
        writer.SetFileName(str(path))
        writer.Execute(slice_)
    back, notices = read(tmp_path)
    assert same(back) and not notices


@pytest.mark.parametrize(
    "slices, move, match",
    [
        ([0, 1, 2, 3, 4, 5, 7, 8, 9], None, "1 slices are missing.*0006.dcm"),
        ([0, 1, 5, 6, 7, 8, 9], None, "3 slices are missing.*0002.dcm"),
        (None, lambda k, p: p + STEP / 2 * max(0, k - 5), "spaced unevenly"),
        (None, lambda k, p: p + 0.3 * STEP * (k == 4), "spaced unevenly"),
        (None, lambda k, p: p + [0, 2.5 * k * np.tan(np.radians(2)), 0], "sheared by 2 degrees.*gantry tilt"),
        (None, lambda k, p: p + [3.0 * (k == 6), 0, 0], "shifted sideways"),
    ],
)
def test_slices_that_form_no_regular_stack(slices, move, match, tmp_path):
    write_dicom(IMAGE, tmp_path, slices, move=move)
    with pytest.raises(NephiError, match=match):
        read(tmp_path)


def test_rounded_positions_are_regular(tmp_path):
    image = textured(spacing_mm=(0.8, 0.9, 0.625))
    write_dicom(image, tmp_path, move=lambda k, p: p.round(1))
    back, _ = read(tmp_path)
    assert back.GetSpacing()[2] == pytest.approx(0.625, abs=0.01)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("how", ["cut", "almost", "empty", "foreign"])
def test_a_slice_that_cannot_be_read_is_named(how, tmp_path):
    write_dicom(IMAGE, tmp_path)
    path = tmp_path / "0010.dcm"  # the last: without it the others are regular
    whole = path.read_bytes()
    broken = {"cut": whole[:700], "almost": whole[:-20], "empty": b"", "foreign": b"a text\n"}[how]
    path.write_bytes(broken)
    with pytest.raises(NephiError, match="0010.dcm that cannot be read"):
        read(tmp_path)


def test_files_of_other_kinds_are_set_aside(tmp_path):
    write_dicom(IMAGE, tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert not read(tmp_path)[1]
    (tmp_path / "readme.txt").write_text("scanned in May")
    back, notices = read(tmp_path)
    assert same(back) and len(notices) == 1 and "readme.txt" in notices[0]


@pytest.mark.parametrize("kind", ["ORIGINAL\\PRIMARY\\LOCALIZER", "DERIVED\\SECONDARY"])
def test_localizers_and_derived_images_are_set_aside_with_a_notice(kind, tmp_path):
    write_dicom(IMAGE, tmp_path, tags={"0008|0008": "ORIGINAL\\PRIMARY\\AXIAL"})
    turned = {"0008|0008": kind, "0020|0037": "1\\0\\0\\0\\0\\-1"}
    write_dicom(IMAGE, tmp_path, [5], first=201, tags=turned)
    back, notices = read(tmp_path)
    assert same(back) and len(notices) == 1 and "0206.dcm" in notices[0]


def test_a_volume_of_derived_images_alone_is_read(tmp_path):
    write_dicom(IMAGE, tmp_path, tags={"0008|0008": "DERIVED\\SECONDARY"})
    back, notices = read(tmp_path)
    assert same(back) and not notices


def test_a_copied_file_is_set_aside_with_a_notice(tmp_path):
    write_dicom(IMAGE, tmp_path)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "0003.dcm").read_bytes())
    back, notices = read(tmp_path)
    assert same(back) and len(notices) == 1 and "copy of another" in notices[0]


def test_what_may_not_be_left_out_is_refused(tmp_path):
    write_dicom(IMAGE, tmp_path / "turned")
    write_dicom(IMAGE, tmp_path / "turned", [5], first=201, tags={"0020|0037": "1\\0\\0\\0\\0\\-1"})
    write_dicom(IMAGE, tmp_path / "two", first=1)
    write_dicom(IMAGE, tmp_path / "two", [7], first=301)
    write_dicom(IMAGE, tmp_path / "phases", tags={"0020|0012": "1"})
    write_dicom(IMAGE, tmp_path / "phases", first=101, tags={"0020|0012": "2"})
    write_dicom(IMAGE, tmp_path / "size")
    write_dicom(IMAGE[:8, :8, :], tmp_path / "size", [3])
    for name, match in (
        ("turned", "0206.dcm is oriented differently"),
        ("two", "0008.dcm and 0308.dcm .* same position"),
        ("phases", "several phases .* acquisition"),
        ("size", "0004.dcm is of another size, 8 x 8 and not 14 x 12"),
    ):
        with pytest.raises(NephiError, match=match):
            read(tmp_path / name)


@pytest.mark.parametrize("order", [range(10), range(9, -1, -1), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]])
@pytest.mark.parametrize("tags", [{}, {"0028|1052": "-24", "0028|1053": "2"}, {"0028|0120": "-100"}])
def test_one_pass_gives_what_looking_at_the_headers_first_gives(order, tags, tmp_path, monkeypatch):
    image = textured()
    image.SetDirection(rotation(3, 25.0).ravel().tolist())
    write_dicom(image, tmp_path / "made", tags=tags)
    (tmp_path / "scan").mkdir()
    for k, file in zip(order, sorted((tmp_path / "made").iterdir()), strict=True):
        file.rename(tmp_path / "scan" / f"{k:04d}.dcm")
    at_once = dicom._at_once(tmp_path / "scan")
    assert at_once is not None
    monkeypatch.setattr(dicom, "_at_once", lambda folder: None)
    assert same(at_once, read(tmp_path / "scan")[0]) and at_once.GetPixelID() == read(tmp_path / "scan")[0].GetPixelID()


def test_the_series_of_a_folder_are_listed_the_largest_first(tmp_path):
    write_dicom(IMAGE[:, :, 2:], tmp_path, uid="1.2.3.4", tags={"0008|103e": "Lung 2.0"})
    write_dicom(IMAGE, tmp_path, uid="1.2.3.5", first=50, tags={"0008|103e": "Lung 1.0"})
    largest, other = dicom_series(tmp_path, "fixed image")
    depth = IMAGE.GetDepth()
    assert (largest.uid, largest.description, largest.images) == ("1.2.3.5", "Lung 1.0", depth)
    assert (other.uid, other.images) == ("1.2.3.4", depth - 2)
    assert same(read(tmp_path, (other.uid,))[0], IMAGE[:, :, 2:])
    (tmp_path / "empty").mkdir()
    assert dicom_series(tmp_path / "empty", "fixed image") == []
    (tmp_path / "cut.dcm").write_bytes(next(tmp_path.glob("*.dcm")).read_bytes()[:200])
    with pytest.raises(NephiError, match="cut.dcm"):
        dicom_series(tmp_path, "fixed image")


def test_of_several_series_the_largest_or_the_one_named_is_read(tmp_path):
    small, large = "1.2.3.4.1", "1.2.3.4.2"
    other = textured(seed=1)
    write_dicom(other, tmp_path, range(8), uid=small)
    write_dicom(IMAGE, tmp_path, uid=large, first=101)
    back, notices = read(tmp_path)
    assert same(back) and len(notices) == 1 and large in notices[0]
    back, notices = read(tmp_path, (small,))
    assert same(back, other[:, :, :8]) and not notices
    with pytest.raises(NephiError, match="none of the given series"):
        read(tmp_path, ("1.2",))


def test_a_larger_series_with_a_gap_is_not_passed_over_for_a_few_slices(tmp_path):
    write_dicom(IMAGE, tmp_path, [0, 1, 2, 4, 5, 6, 7, 8, 9], uid="1.2.3.4.1")
    write_dicom(IMAGE, tmp_path, range(3), uid="1.2.3.4.2", first=101)
    with pytest.raises(NephiError, match="1 slices are missing"):
        read(tmp_path)


def test_padding_is_not_measured(tmp_path):
    array = sitk.GetArrayFromImage(IMAGE)
    array[:, :3] = -2000
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(IMAGE)
    write_dicom(image, tmp_path, tags={"0028|0120": "-2000"})
    back = sitk.GetArrayFromImage(read(tmp_path)[0])
    assert (back[:, :3] == array[:, 3:].min()).all() and np.array_equal(back[:, 3:], array[:, 3:])


def test_slices_with_scales_of_their_own(tmp_path):
    """As PET has them: the first slice's whole numbers may not decide for the others."""
    image = sitk.Cast(IMAGE, sitk.sitkInt16)
    slopes = np.where(np.arange(10) == 0, 1.0, 0.25)
    write_dicom(image, tmp_path)
    for slope, path in zip(slopes, sorted(tmp_path.iterdir()), strict=True):
        tag = b"\x28\x00\x53\x10"  # RescaleSlope, 2 bytes there
        data, new = path.read_bytes(), f"{slope:g}".encode()
        new += b" " * (len(new) % 2)
        at = data.index(tag)
        path.write_bytes(data[:at] + tag + len(new).to_bytes(4, "little") + new + data[at + 10 :])
    back = sitk.GetArrayFromImage(read(tmp_path)[0])
    expected = sitk.GetArrayFromImage(image) * slopes[:, None, None]
    np.testing.assert_allclose(back, expected)


def test_notices_are_pythons_warnings(tmp_path):
    write_dicom(IMAGE, tmp_path)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "0003.dcm").read_bytes())
    with pytest.warns(UserWarning, match="copy of another"):
        read_image(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "copy.dcm").unlink()
        read_image(tmp_path)


@pytest.mark.parametrize("every", [2, 1])
def test_a_series_that_is_spread_over_folders_is_not_read_in_part(every, tmp_path):
    """Every second slice would make an even stack, too."""
    write_dicom(IMAGE, tmp_path)
    (below := tmp_path / "more" / "here").mkdir(parents=True)
    (tmp_path / "more" / "text.txt").write_text("no image")
    for path in sorted(tmp_path.glob("*.dcm")):
        shutil.copy(path, below)
    assert same(read(tmp_path)[0])  # copies
    for path in sorted(tmp_path.glob("*.dcm"))[::every]:
        path.unlink()
    with pytest.raises(NephiError, match="further slices|no DICOM series in folder .* itself") as told:
        read(tmp_path)
    assert str(below) in str(told.value)


def test_a_single_slice_is_told(tmp_path):
    write_dicom(IMAGE, tmp_path)
    with collected_notices() as notices:
        read_volume(path := min(tmp_path.iterdir()))
    assert len(notices) == 1 and path.name in notices[0] and "give its folder" in notices[0]


@pytest.mark.parametrize("length", [100, 2**26])
def test_a_deflated_file_that_unpacks_to_far_too_much_is_refused(length, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_elements, "TRUSTED", 2**24)  # instead of a file that takes long to pack
    meta = b"\2\0\x10\0UI" + (22).to_bytes(2, "little") + b"1.2.840.10008.1.2.1.99"
    packer = zlib.compressobj(wbits=-15)
    parts = [packer.compress(bytes(2**20)) for _ in range(length // 2**20 or 1)]
    head = bytes(128) + b"DICM" + b"\2\0\0\0UL\4\0" + len(meta).to_bytes(4, "little")
    (path := tmp_path / "a.dcm").write_bytes(head + meta + b"".join(parts) + packer.flush())
    assert lengths_fit(path) == (length == 100)


@pytest.mark.parametrize("size", [(98, 89), (130, 127)])
def test_lengths_that_look_like_letters_do_not_mislead(size, tmp_path):
    """In implicit files a length stands where others name an element's kind: 2 x 98 x 89 bytes read "DD"."""
    pydicom = pytest.importorskip("pydicom")
    image = textured((*size, 8))
    write_dicom(image, tmp_path)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True, enforce_file_format=True)
        assert lengths_fit(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-7])
        assert not lengths_fit(path)
        path.write_bytes(whole)
    assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path)), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("encoding", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian",
                                      "DeflatedExplicitVRLittleEndian", "no preamble"])  # fmt: skip
@pytest.mark.parametrize("what", ["Rows", "Columns", "NumberOfFrames"])
def test_pixels_that_are_fewer_than_stated_are_not_made_up(what, encoding, tmp_path):
    """GDCM takes the rest from what lies in memory, of one file and of all files of a series."""
    pydicom = pytest.importorskip("pydicom")
    write_dicom(IMAGE, tmp_path)
    bare = encoding == "no preamble"
    syntax = getattr(pydicom.uid, "ImplicitVRLittleEndian" if bare else encoding)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        if encoding == "ExplicitVRBigEndian":
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
        if "Explicit" in encoding:  # what lies before the pixels may be open
            data.ReferencedImageSequence = [pydicom.Dataset()]
            data["ReferencedImageSequence"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
        data.preamble = None if bare else data.preamble
        order = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
        if bare:
            del data.file_meta
        pydicom.dcmwrite(path, data, enforce_file_format=False, **order)
    assert same(read(tmp_path)[0])
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path, force=True)
        setattr(data, what, int(data.get(what, 1)) + 1)
        order = {} if not bare else {"implicit_vr": True, "little_endian": True}
        pydicom.dcmwrite(path, data, enforce_file_format=False, **order)
    for given in (tmp_path, path):
        with pytest.raises(NephiError, match=r"cannot be read|cannot read|damaged|no DICOM series"):
            read(given)
