"""Images are what their files state, or they are refused with the reason: never something else without a word."""

from __future__ import annotations

import gzip
import os
import re
import struct
import time

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
from files import CODES, textured, write_nifti
from geometry import rotation
from nephi.errors import NephiError, collected_notices
from nephi.files import sizes
from nephi.files.image import check_image, read_image, read_volume
from nephi.files.transform import read_transform
from nephi.space.grid import Grid

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(-1000, 500, (9, 10, 11)).astype("i2")
STRAIGHT = np.c_[np.diag([-2.0, -2.0, 3.0]), [10.0, 20.0, -30.0]]  # index -> RAS; the same as the quaternion (0, 0, 1)
SHEARED = STRAIGHT + np.array([[0, 0, 0, 0], [0, 0, 3 * np.tan(np.radians(10)), 0], [0, 0, 0, 0]])


def lps(image) -> np.ndarray:
    return np.c_[np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), image.GetOrigin()]


@pytest.mark.parametrize("kind", [k for k in CODES if k != "c8"])
@pytest.mark.parametrize("order", "<>")
def test_nifti_of_every_type_is_read_as_itk_reads_it(kind, order, tmp_path):
    write_nifti(tmp_path / "a.nii.gz", (ARRAY % 100).astype(kind), STRAIGHT, order=order)
    image, expected = read_image(tmp_path / "a.nii.gz"), sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert image.GetPixelID() == expected.GetPixelID() and Grid.of(image).same_as(Grid.of(expected))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".img", ".img.gz"])
@pytest.mark.parametrize("d", [2, 3])
def test_what_itk_writes_comes_back(suffix, d, tmp_path):
    image = textured((11, 10, 9)[:d] if d == 3 else (11, 10, 1))
    image = image if d == 3 else image[:, :, 0]
    image.SetDirection(rotation(d, 30.0).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    back = read_image(tmp_path / f"a{suffix}")
    assert Grid.of(back).same_as(Grid.of(image))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))


def test_nifti_2_is_read(tmp_path):
    head = bytearray(544)
    struct.pack_into("<i", head, 0, 540)
    head[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<hh", head, 12, 4, 16)
    struct.pack_into("<8q", head, 16, 3, 11, 10, 9, 1, 1, 1, 1)
    struct.pack_into("<8d", head, 104, 1, 2, 2, 3, 1, 1, 1, 1)
    struct.pack_into("<q2d", head, 168, 544, 1, 0)
    struct.pack_into("<2i", head, 344, 0, 1)
    struct.pack_into("<12d", head, 400, *STRAIGHT.ravel())
    struct.pack_into("<i", head, 500, 2)
    (tmp_path / "a.nii").write_bytes(bytes(head) + ARRAY.tobytes())
    image = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(lps(image), np.array([[-1], [-1], [1]]) * STRAIGHT)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), ARRAY)


@pytest.mark.usefixtures("packed_by")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.999])
def test_a_cut_nifti_is_refused(name, kind, part, tmp_path):
    path = tmp_path / name
    write_nifti(path, (ARRAY % 100).astype(kind), STRAIGHT)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(NephiError, match=r"cut off|damaged"):
        read_image(path)


@pytest.mark.parametrize("size", [(11, 10, 100), (32767, 10, 9), (11, 10, 8), (11, 9, 9), (-11, 10, 9), (0, 10, 9)])
def test_a_nifti_of_another_length_than_its_header_names(size, tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY, STRAIGHT, size=size)
    with pytest.raises(NephiError, match=r"cut off|has more than|damaged|names a size"):
        read_image(tmp_path / "a.nii")


@pytest.mark.usefixtures("packed_by")
@pytest.mark.parametrize("packed_at_a_time", [7, 512, 2**20])
def test_a_nifti_of_several_compressed_members_is_read_to_its_end(packed_at_a_time, tmp_path, monkeypatch):
    """As pigz and bgzip may write them, and with the zeros that fill a tape's last block."""
    monkeypatch.setattr("nephi.files.nifti._PACKED", packed_at_a_time)
    path = tmp_path / "image.nii"
    write_nifti(path, ARRAY, STRAIGHT)
    raw, zipped = path.read_bytes(), tmp_path / "image.nii.gz"
    parts = [gzip.compress(raw[start : start + 900]) for start in range(0, len(raw), 900)]
    zipped.write_bytes(b"".join(parts) + bytes(700))
    found, wanted = (sitk.GetArrayFromImage(read_image(name)) for name in (zipped, path))
    np.testing.assert_array_equal(found, wanted)
    for broken in (b"".join(parts[:-1]), b"".join(parts)[:-5], b"".join(parts) + b"more"):
        zipped.write_bytes(broken)
        with pytest.raises(NephiError, match="cut off|damaged"):
            read_image(zipped)


@pytest.mark.usefixtures("packed_by")
def test_a_damaged_bit_in_a_compressed_file(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", ARRAY, STRAIGHT)
    data = bytearray((tmp_path / "a.nii.gz").read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(NephiError, match="damaged"):
        read_image(tmp_path / "a.nii.gz")


def test_the_neighbour_with_the_same_stem_is_left_alone(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", ARRAY, STRAIGHT)
    write_nifti(tmp_path / "a.nii", ARRAY[::-1], STRAIGHT)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.nii.gz")), ARRAY)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.nii")), ARRAY[::-1])


@pytest.mark.parametrize(
    "how, match",
    [
        ({"matrix": SHEARED, "qform": 0}, "right angles.*10 degrees"),
        ({"matrix": SHEARED}, "qform and sform .* sheared by 10 degrees"),
        ({"matrix": SHEARED, "qform": 0, "sform": 1, "pixdim": (2, 2, 3)}, r"pixdim|right angles"),
        ({"pixdim": (1, 1, 1)}, "spacing is 1 x 1 x 1 mm by pixdim and 2 x 2 x 3 mm by sform"),
        ({"pixdim": (2, 2, 0)}, "pixdim"),
        ({"pixdim": (2, -2, 3)}, "pixdim"),
        ({"pixdim": (2, np.nan, 3)}, "NaN"),
        ({"quaternion": (0, 1, 0)}, "qform and sform place the image up to"),
        ({"quaternion": (0, 1, 1), "sform": 0}, "not a rotation"),
        ({"quaternion": (0, np.nan, 0)}, "NaN"),
        ({"matrix": STRAIGHT * [1, 1, 1, np.nan]}, "NaN"),
        ({"matrix": STRAIGHT * [1, 1, 1, np.inf], "qform": 0}, "NaN"),
        ({"matrix": STRAIGHT * [1e-30, 1e-30, 1e-30, 1], "qform": 0}, "spacing"),
        ({"matrix": STRAIGHT * [1e30, 1e30, 1e30, 1], "qform": 0}, "spacing"),
        ({"matrix": STRAIGHT * [1, 1, 1, 1e9], "qform": 0}, "origin"),
        ({"slope": np.nan}, "scales the values"),
        ({"intercept": np.inf}, "scales the values"),
        ({"units": 7}, "unknown unit"),
    ],
)
def test_a_nifti_header_that_contradicts_itself(how, match, tmp_path):
    matrix = how.pop("matrix", STRAIGHT)
    write_nifti(tmp_path / "a.nii.gz", ARRAY, matrix, **how)
    with pytest.raises(NephiError, match=match):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    "place, value, said",
    [
        (76 + 4, 2.0001, "2.0001 x 2 x 3 mm by pixdim and 2 x 2 x 3 mm by sform, which is used"),
        (76 + 4, 2.000001, None),
        (268, STRAIGHT[0, 3] + 0.01, "0.01 mm away from that by qform"),
    ],
)
def test_a_nifti_header_that_contradicts_itself_a_little_is_told(place, value, said, tmp_path):
    write_nifti(path := tmp_path / "a.nii", ARRAY, STRAIGHT)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, place, value)
    path.write_bytes(data)
    with collected_notices() as notices:
        image = read_image(path)
    np.testing.assert_allclose(lps(image), np.array([[-1], [-1], [1]]) * STRAIGHT, rtol=1e-6)
    assert notices == [] if said is None else len(notices) == 1 and said in notices[0]


@pytest.mark.parametrize("offset", [1e30, 1e12, 351.0, -1.0, np.nan, np.inf])
def test_nifti_voxels_at_no_place_in_the_file(offset, tmp_path):
    write_nifti(path := tmp_path / "a.nii", ARRAY, STRAIGHT)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 108, offset)
    path.write_bytes(data)
    with pytest.raises(NephiError, match=r"a\.nii: the header places the voxels at byte"):
        read_image(path)


def test_an_analyze_file_is_read_with_a_notice(tmp_path):
    """A NIfTI pair without the mark, whose header says no more than the size of the voxels."""
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / "a.hdr"))
    with collected_notices() as notices:
        read_image(tmp_path / "a.hdr")
    assert notices == []
    head = bytearray((tmp_path / "a.hdr").read_bytes())
    head[344:348] = bytes(4)
    (tmp_path / "a.hdr").write_bytes(head)
    with collected_notices() as notices:
        image = read_image(tmp_path / "a.hdr")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), ARRAY)
    assert image.GetOrigin() == (0, 0, 0)
    (text,) = notices
    assert "a.hdr is an Analyze file" in text and "which side is left" in text


def test_nifti_lengths_in_micrometres(tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY, STRAIGHT * 10, units=3)
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").GetSpacing(), (0.02, 0.02, 0.03), rtol=1e-6)


def test_a_nifti_file_without_a_place_is_told(tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY, STRAIGHT, sform=0, qform=0)
    with collected_notices() as notices:
        assert read_image(tmp_path / "a.nii").GetOrigin() == (0, 0, 0)
    assert len(notices) == 1 and "does not say where the image lies" in notices[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a * 1e200, "values up to"),
        (lambda a: np.where(a == a[0, 0, 0], -3.4e38, a), "values up to 3.4e\\+38"),
        (lambda a: a * 1e-200, "differ by"),
        (lambda a: a + 1e9, "differ by"),
    ],
)
def test_values_that_single_precision_does_not_hold(change, match, tmp_path):
    """They became infinite, zero or alike, and the registration was wrong without a word."""
    image = sitk.GetImageFromArray(change(ARRAY.astype(float)))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(NephiError, match=match):
        read_image(tmp_path / "a.nrrd")
    with pytest.raises(NephiError, match=match):
        nephi.register(image, image, auto_mask=False)
    read_volume(tmp_path / "a.nrrd")


def test_nifti_scale(tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY, STRAIGHT, slope=0.5, intercept=-3)
    np.testing.assert_allclose(sitk.GetArrayFromImage(read_image(tmp_path / "a.nii")), ARRAY * 0.5 - 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".nrrd", ".mha"])
def test_one_value_that_is_not_finite(value, suffix, tmp_path):
    array = ARRAY.astype("f4")
    array[-1, -1, -1] = value
    if suffix == ".hdr":
        sitk.WriteImage(sitk.GetImageFromArray(ARRAY.astype("f4")), str(tmp_path / "a.hdr"))
        (tmp_path / "a.img").write_bytes(array.tobytes())
    elif suffix.startswith(".nii"):
        write_nifti(tmp_path / f"a{suffix}", array, STRAIGHT)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{suffix}"))
    with pytest.raises(NephiError, match="NaN or infinite"):
        read_image(tmp_path / f"a{suffix}")
    assert not np.isfinite(sitk.GetArrayFromImage(read_volume(tmp_path / f"a{suffix}"))).all()


def test_complex_numbers_and_vectors(tmp_path):
    real = sitk.GetImageFromArray(ARRAY.astype("f4"))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        for kind, make in (("complex", sitk.RealAndImaginaryToComplex), ("vector", sitk.Compose)):
            path = tmp_path / f"{kind}{suffix}"
            try:
                sitk.WriteImage(make(real, real), str(path))
            except RuntimeError:
                continue  # the format has none
            with pytest.raises(NephiError, match=f"{kind}|components"):
                read_image(path)


def test_a_header_that_announces_more_than_memory_holds(tmp_path, monkeypatch):
    write_nifti(tmp_path / "a.nii", ARRAY, STRAIGHT, size=(2000, 2000, 2000))
    write_nifti(tmp_path / "a.nii.gz", ARRAY, STRAIGHT, size=(2000, 2000, 2000), raw=bytes(2**22))
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2000 2000 2000\nencoding: gzip\nendian: little\n\n"
        + gzip.compress(bytes(10000))
    )
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 2000 2000 2000\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        started = time.process_time()
        with pytest.raises(NephiError, match="announces 16 GB"):
            read_image(tmp_path / name)
        assert time.process_time() - started < 1
    monkeypatch.setattr(sizes, "TRUSTED", 100)
    monkeypatch.setattr(sizes, "available_memory", lambda: 1000)
    write_nifti(tmp_path / "b.nii", ARRAY, STRAIGHT)
    with pytest.raises(NephiError, match="of memory"):
        read_image(tmp_path / "b.nii")


META = b"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 1
DimSize = 11 10 9
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


@pytest.mark.parametrize(
    "old, new, match",
    [
        (b"NDims = 3", b"NDims = -1", "dimensions"),
        (b"NDims = 3", b"NDims = 1e30", "dimensions"),
        (b"NDims = 3\n", b"", "dimensions"),
        (b"DimSize = 11 10 9", b"DimSize = 11 10", "dimensions"),
        (b"DimSize = 11 10 9", b"DimSize = 11 10 90", "cut off"),
        (b"DimSize = 11 10 9", b"DimSize = 11 10 8", "has more"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = nan 1 1", "ElementSpacing"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1e-30 1 1", "."),
        (b"Offset = 0 0 0", b"Offset = 0 0", "Offset"),
        (b"MET_SHORT", b"MET_NONE", "type"),
        (b"ElementType", b"NDims = 3\nElementType", "twice"),
        (b"MSB = False", b"MSB = 1.5 False", "neither True nor False"),
        (b"BinaryData = True", b"BinaryData = Trees", "neither True nor False"),
        (b"ElementType", b"ElementByteOrderMSB = True\nElementType", "two orders of bytes"),
        (b"ElementType", b"DistanceUnits = um\nElementType", "lengths in um"),
        (b"ElementType", b"ElementToIntensityFunctionSlope = 2\nElementType", "scales the values"),
        (b"ElementType", b"ElementToIntensityFunctionOffset = -1024\nElementType", "scales the values"),
        (b"ElementType", b"x" * 2000 + b"\nElementType", "not a field"),
        (b"ElementDataFile = LOCAL\n", b"ElementDataFile = other.raw\n", "missing"),
    ],
)
def test_metaimage_headers(old, new, match, tmp_path):
    (tmp_path / "a.mha").write_bytes(META + ARRAY.tobytes())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.mha")), ARRAY)
    (tmp_path / "a.mha").write_bytes(META.replace(old, new) + ARRAY.tobytes())
    with pytest.raises(NephiError, match=match):
        read_image(tmp_path / "a.mha")


NRRD = b"""NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 11 10 9
space directions: (1,0,0) (0,1,0) (0,0,1)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (0,0,0)

"""


@pytest.mark.parametrize(
    "old, new, match",
    [
        (b"sizes: 11 10 9", b"sizes: 11 10 90", "cut off"),
        (b"sizes: 11 10 9", b"sizes: 11 10", "dimensions"),
        (b"sizes: 11 10 9", b"sizes: 11 10 8", "has more"),
        (b"dimension: 3\n", b"", "lacks its dimension"),
        (b"(0,0,1)", b"(0,nan,1)", "repair"),
        (b"space origin: (0,0,0)", b"space origin: (0,inf,0)", "."),
        (b"(0,1,0)", b"(0,1,0.2)", "right angles"),
        (b"type: short", b"type: " + b"x" * 2000, "not a field"),
        (b"type: short", b"type: short\n" + b"x" * 2000, "not a field"),
        (b"endian", b"type: short\nendian", "twice"),
        (b"endian", b'space units: "mm" "mm" "um"\nendian', "lengths in um"),
        (b"NRRD0004", b"NRRX0004", "not an NRRD"),
        (b"origin: (0,0,0)", b"origin: (1.5 0,0,0)", "spaceorigin"),
        (b"origin: (0,0,0)", b"origin: (0,0,0) (0,0,0)", "spaceorigin"),
        (b"(0,0,1)", b"(0,0,1", "spacedirections"),
        (b"(0,0,1)", b"", "spacedirections"),
        (b"(0,0,1)", b"(0,0,1_0)", "spacedirections"),
    ],
)
def test_nrrd_headers(old, new, match, tmp_path):
    (tmp_path / "a.nrrd").write_bytes(NRRD + ARRAY.tobytes())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.nrrd")), ARRAY)
    (tmp_path / "a.nrrd").write_bytes(NRRD.replace(old, new) + ARRAY.tobytes())
    with pytest.raises(NephiError, match=match):
        read_image(tmp_path / "a.nrrd")


def test_a_nrrd_file_of_no_anatomical_space_is_told(tmp_path):
    for k, line in enumerate((b"", b"space: scanner-xyz\n", b"space: 3D-right-handed\n")):
        (path := tmp_path / f"{k}.nrrd").write_bytes(
            NRRD.replace(b"space: left-posterior-superior\n", line or b"space dimension: 3\n") + ARRAY.tobytes()
        )
        with collected_notices() as notices:
            read_volume(path)
        assert len(notices) == 1 and f"{k}.nrrd names no anatomical space" in notices[0]


def test_vectors_along_other_axes_are_refused(tmp_path):
    field = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 1, (5, 6, 7, 3)), isVector=True)
    sitk.WriteImage(field, str(path := tmp_path / "a.nrrd"))
    assert read_transform(path, 3).GetDimension() == 3
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", b"right-anterior-superior"))
    with pytest.raises(NephiError, match="vectors may be along the axes of right-anterior-superior"):
        read_transform(path, 3)


def test_a_nrrd_header_with_long_notes_is_read(tmp_path):
    """3D Slicer keeps whole descriptions of segments in one line."""
    data = NRRD.replace(b"encoding", b"Segment0_Tags:=" + b"x" * 5000 + b"\nencoding") + ARRAY.tobytes()
    (tmp_path / "a.nrrd").write_bytes(data)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.nrrd")), ARRAY)


@pytest.mark.parametrize(
    "line, other",
    [
        (b"SPACING", b"SPACING 1 1.5.1 1"),
        (b"SPACING", b"SPACING 1 1"),
        (b"SPACING", b"SPACING 1 1 1 2"),
        (b"SPACING", b"SPACING 1 nan 1"),
        (b"ORIGIN", b"ORIGIN 0 0 1e300"),
        (b"ORIGIN", b"SPACING 1 1 1"),
    ],
)
def test_vtk_headers(line, other, tmp_path):
    """ITK takes what it can of a line of numbers, and 0 or 1 for the rest."""
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path := tmp_path / "a.vtk"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), ARRAY)
    data, count = re.subn(rb"\n" + line + rb" .*\n", b"\n" + other + b"\n", path.read_bytes())
    assert count == 1
    path.write_bytes(data)
    with pytest.raises(NephiError, match=r"cannot read .*a\.vtk"):
        read_image(path)


def test_other_formats_are_read_in_a_process_of_their_own(tmp_path):
    image = sitk.GetImageFromArray(ARRAY)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "a.vtk"))
    back = read_image(tmp_path / "a.vtk")
    assert Grid.of(back).same_as(Grid.of(image))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), ARRAY)
    (tmp_path / "b.vtk").write_bytes(b"junk")
    with pytest.raises(NephiError, match=r"b.vtk"):
        read_image(tmp_path / "b.vtk")


def test_what_is_no_file(tmp_path):
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    with pytest.raises(NephiError, match="is empty"):
        read_image(tmp_path / "empty.nii.gz")
    with pytest.raises(NephiError, match="no such file"):
        read_image(tmp_path / "none.nii")
    with pytest.raises(NephiError, match="NUL"):
        read_image("a\0b.nii")
    with pytest.raises(NephiError):
        read_image(tmp_path / ("x" * 300 + ".nii"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.nii")
        for path in (tmp_path / "pipe.nii", "/dev/null"):
            with pytest.raises(NephiError, match="not a regular file"):
                read_image(path)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda i: i.SetSpacing((1e-30, 1, 1)), "spacing"),
        (lambda i: i.SetSpacing((1e30, 1, 1)), "spacing"),
        (lambda i: i.SetOrigin((np.nan, 0, 0)), "origin"),
        (lambda i: i.SetOrigin((0, np.inf, 0)), "origin"),
        (lambda i: i.SetOrigin((0, 1e12, 0)), "origin"),
        (lambda i: i.SetDirection((1, 0.1, 0, 0, 1, 0, 0, 0, 1)), "orthonormal|right angles"),
        (lambda i: i.SetDirection((2, 0, 0, 0, 1, 0, 0, 0, 1)), "orthonormal"),
    ],
)
def test_the_python_interface_checks_the_geometry_too(change, match):
    image = sitk.GetImageFromArray(ARRAY)
    assert check_image(image, "fixed image") is image
    change(image)
    with pytest.raises(NephiError, match=match):
        check_image(image, "fixed image")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_packed_voxels_are_checked_before_itk_reads_them(suffix, tmp_path):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(textured(), str(path), True)
    read_image(path)
    data = path.read_bytes()
    for damaged in (data[:-40], data[:-300] + bytes(40) + data[-260:]):
        path.write_bytes(damaged)
        with pytest.raises(NephiError, match="damaged|cut off"):
            read_image(path)


@pytest.mark.parametrize("stated", [b"94", b"1", b"99999", b"-3", b"many", b"0", b""])
def test_a_metaimage_that_names_another_length_of_its_packed_voxels(stated, tmp_path):
    sitk.WriteImage(textured(), str(path := tmp_path / "scan.mha"), True)
    line = b"CompressedDataSize = " + stated + b"\n" if stated else b""
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", line, path.read_bytes()))
    with pytest.raises(NephiError, match="CompressedDataSize"):
        read_image(path)


def test_a_direction_beyond_all_use_is_refused(tmp_path):
    sitk.WriteImage(textured(), str(path := tmp_path / "scan.mha"))
    path.write_bytes(
        path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0 0", b"TransformMatrix = 1 0 0 0 1 0 1e308")
    )
    with pytest.raises(NephiError, match="TransformMatrix"):
        read_image(path)


@pytest.mark.parametrize("change", [lambda d: d[:-100], lambda d: d.replace(b"ORIGIN", b"OR\0GIN")])
def test_a_damaged_vtk_image_is_refused(change, tmp_path):
    sitk.WriteImage(textured(), str(path := tmp_path / "scan.vtk"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(NephiError, match="cannot read"):
        read_image(path)
