"""Points and transforms come from people's files: read rightly, or refused with the reason."""

from __future__ import annotations

import gzip
import os
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from geometry import rotation
from nephi.errors import NephiError, collected_notices
from nephi.files import subprocess_reader
from nephi.files.cases import read_pairs
from nephi.files.landmarks import read_landmarks
from nephi.files.transform import displacement_transform, read_affine, read_transform, through, write_transform
from nephi.measure.evaluate import evaluate
from nephi.space.grid import Grid

POINTS = np.array([[10.5, -20.25, 30.125], [11.5, -21.25, 31.125], [-12.5, 22.25, -32.125]])
GRID = Grid((20, 22, 24), (4.0, 4.0, 4.0), (-40.0, -44.0, -48.0), tuple(np.eye(3).ravel()))


def rows(separator: str, comma: bool) -> str:
    lines = [separator.join(map(str, row)) for row in POINTS.tolist()]
    return "\n".join(line.replace(".", ",") if comma else line for line in lines) + "\n"


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("comma", [False, True])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_tables_as_spreadsheets_write_them(separator, comma, head, encoding, tmp_path):
    text = (separator.join("xyz") + "\n") * head + rows(separator, comma)
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.csv"), POINTS)


def test_decimal_commas_between_commas_are_refused(tmp_path):
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n"
    files = {
        "head.csv": "x,y,z\n" + rows(",", True),
        "bare.csv": rows(",", True),
        "a.fcsv": head + "".join(f"{i},{row},F-{i}\n" for i, row in enumerate(rows(",", True).splitlines())),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(NephiError, match="6 columns|8 columns"):
            read_landmarks(tmp_path / name)


def test_latin_1_labels(tmp_path):
    (tmp_path / "a.csv").write_bytes("label,x,y,z\nLäsion,1,2,3\n".encode("latin-1"))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.csv"), [[1, 2, 3]])


def test_a_quotation_mark_that_is_not_closed_swallows_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text('x,y,z,label\n1,2,3,"a\n4,5,6,b\n')
    with pytest.raises(NephiError, match="line 2 is not closed"):
        read_landmarks(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('name,fixed,moving\na,"f.nii,m.nii\nb,g.nii,n.nii\n')
    with pytest.raises(NephiError, match="line 2 is not closed"):
        read_pairs(tmp_path / "b.csv")


def test_a_column_that_stands_there_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z,x\n1,2,3,9\n")
    with pytest.raises(NephiError, match="several columns 'x'"):
        read_landmarks(tmp_path / "a.csv")


def test_coordinates_out_of_this_world(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\n1e200,0,0\n")
    with pytest.raises(NephiError, match="Landmark 2 .* too far away"):
        read_landmarks(tmp_path / "a.csv")


def test_points_outside_their_image_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z\n" + rows(",", False))
    with collected_notices() as notices:
        read_landmarks(tmp_path / "a.csv", GRID)
    assert not notices
    beside = Grid(GRID.size, GRID.spacing_mm, (-60.0, -20.0, -48.0), GRID.direction)
    points = np.array([[15.0, 60.0, 0.0], [10.0, 50.0, 3.0]])
    (tmp_path / "ras.csv").write_text("x,y,z\n" + "\n".join(",".join(map(str, p)) for p in (points * [-1, -1, 1])))
    with collected_notices() as notices:
        read_landmarks(tmp_path / "ras.csv", beside)
    assert len(notices) == 1 and "2 of 2 landmarks" in notices[0] and "RAS" in notices[0]


def test_a_registration_that_makes_landmarks_worse_is_told():
    fixed = GRID.image(np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32))
    shift = sitk.TranslationTransform(3, (5.0, 0.0, 0.0))
    good = evaluate(shift, fixed, landmarks=(POINTS, POINTS + [5, 0, 0]))
    wrong = evaluate(shift, fixed, landmarks=(POINTS, POINTS - [5, 0, 0]))
    assert good.warnings == [] and "farther apart after" in wrong.warnings[0]


@pytest.mark.parametrize("count", [5, 100])
@pytest.mark.parametrize("order", [slice(None, None, -1), np.r_[1:5, 5:100, 0], np.random.default_rng(1).permutation])
def test_landmarks_whose_rows_are_mixed_up_are_told(count, order):
    """Not those that a wrong map only misses, nor so few that nobody can tell."""
    fixed = GRID.image(np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32))
    points = GRID.to_lps_mm(np.random.default_rng(2).uniform(0, 1, (count, 3)) * (np.array(GRID.size) - 1))
    mixed_up = points[order(count) if callable(order) else np.arange(100)[order][-count:] % count]
    still = sitk.TranslationTransform(3, (0.0, 0.0, 0.0))

    def told(moving: np.ndarray) -> list[str]:
        return evaluate(still, fixed, landmarks=(points[: len(moving)], moving)).warnings

    (warning,) = told(mixed_up)
    assert "shuffled" in warning
    assert told(points + [0.3 * np.ptp(points), 0, 0]) == [] == told(mixed_up[:4])


# ---- transforms ------------------------------------------------------------------------------------------


def transforms() -> dict[str, sitk.Transform]:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rotation(3, 20.0).ravel())
    affine.SetTranslation((1.5, -2.25, 3.125))
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))
    spline = sitk.BSplineTransformInitializer(GRID.image(np.zeros(GRID.shape, np.float32)), [3, 3, 3])
    spline.SetParameters(np.random.default_rng(0).normal(size=len(spline.GetParameters())))
    versor = sitk.VersorRigid3DTransform((0, 0, 1), 0.3, (1.0, 2.0, 3.0))
    both = sitk.CompositeTransform([sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), affine])
    return {"affine": affine, "euler": euler, "spline": spline, "versor": versor, "both": both}


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
@pytest.mark.parametrize("name", transforms())
def test_transform_files_are_read_whole_or_not_at_all(name, suffix, tmp_path):
    expected, path = transforms()[name], tmp_path / f"a{suffix}"
    sitk.WriteTransform(expected, str(path))
    np.testing.assert_allclose(through(read_transform(path, 3), POINTS), through(expected, POINTS), atol=1e-9)
    data = path.read_bytes()
    parts = (0.7,) if suffix == ".h5" else np.linspace(0.02, 0.999, 25)
    for part in parts:
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(NephiError):
            read_transform(path, 3)


def test_a_cut_matlab_file(tmp_path):
    path = tmp_path / "a.mat"
    sitk.WriteTransform(transforms()["affine"], str(path))
    data = path.read_bytes()
    assert read_affine(str(path), 3).matrix.shape == (3, 3)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(NephiError):
            read_affine(str(path), 3)


@pytest.mark.parametrize("space", [b"\xa0", b"\x85", b"\x0b", b"\x0c", b"\x1c"])
def test_other_kinds_of_spaces_in_a_transform(space, tmp_path):
    """Which Python skips, too, and on which ITK crashes."""
    path = tmp_path / "a.tfm"
    sitk.WriteTransform(sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.05, (4, 5, 6)), str(path))
    data = path.read_bytes()
    for at in range(data.index(b"Transform:"), len(data)):
        if data[at : at + 1] in (b" ", b"\n"):
            path.write_bytes(data[:at] + space + data[at + 1 :])
            with pytest.raises(NephiError):
                read_affine(str(path), 3)


BOMB = "99999 99999 99999 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
HEAD = "#Insight Transform File V1.0\n#Transform 0\nTransform: "


@pytest.mark.parametrize(
    "text, match",
    [
        ("AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 0 0\nFixedParameters: 0 0 0\n", "12 parameters"),
        ("AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0", "incomplete"),
        ("AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 0 0 0\n", "missing"),
        ("AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 0 0 nan\nFixedParameters: 0 0 0\n", "NaN"),
        ("AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 0 0 x\nFixedParameters: 0 0 0\n", "numbers"),
        (f"BSplineTransform_double_3_3\nParameters: 0\nFixedParameters: {BOMB}\n", "do not fill"),
        ("CompositeTransform_double_3_3\n", "no parts"),
        (2 * f"{HEAD}TranslationTransform_double_3_3\nParameters: 1 0 0\nFixedParameters:\n", "several"),
        ("x" * 5000 + "\n", "not a transform"),
    ],
)
def test_damaged_transform_texts(text, match, tmp_path):
    (tmp_path / "a.tfm").write_text(text if text.startswith(HEAD) else HEAD + text)
    with pytest.raises(NephiError, match=match):
        read_transform(tmp_path / "a.tfm", 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y,z\n1_5,2,3\n"),
        ("a.txt", "1 2_0 3\n"),
        *(
            (
                "a.mrk.json",
                f'{{"markups": [{{"coordinateSystem": "LPS", "controlPoints": [{{"position": [{x}, 2, 3]}}]}}]}}',
            )
            for x in ("true", "9" * 400)
        ),
    ],
)
def test_numbers_as_python_alone_writes_them_are_none(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(NephiError, match=name):
        read_landmarks(tmp_path / name)


def test_transforms_that_nothing_joins_are_refused(tmp_path):
    """ITK takes the first of them without a word."""
    parts = [sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), sitk.TranslationTransform(3, (10.0, 0.0, 0.0))]
    sitk.WriteTransform(sitk.CompositeTransform(parts), str(path := tmp_path / "a.tfm"))
    assert read_transform(path, 3).TransformPoint((0.0, 0.0, 0.0)) == (11.0, 2.0, 3.0)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("#Transform 0\nTransform: CompositeTransform_double_3_3\n", ""), encoding="utf-8")
    with pytest.raises(NephiError, match="several transforms without a composite one"):
        read_transform(path, 3)
    for name, part in zip("ab", parts, strict=True):
        sitk.WriteTransform(part, str(tmp_path / f"{name}.mat"))
    two = (tmp_path / "a.mat").read_bytes() + (tmp_path / "b.mat").read_bytes()
    (tmp_path / "b.mat").write_bytes(two)
    with pytest.raises(NephiError, match="several transforms without a composite one"):
        read_transform(tmp_path / "b.mat", 3)


def test_transforms_in_hdf5_that_nothing_joins_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    parts = [sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), sitk.TranslationTransform(3, (10.0, 0.0, 0.0))]
    sitk.WriteTransform(sitk.CompositeTransform(parts), str(path := tmp_path / "a.h5"))
    assert read_transform(path, 3).TransformPoint((0.0, 0.0, 0.0)) == (11.0, 2.0, 3.0)
    with h5py.File(path, "r+") as file:
        del file["TransformGroup/0"]
        for k in (1, 2):
            file.move(f"TransformGroup/{k}", f"TransformGroup/{k - 1}")
    with pytest.raises(NephiError, match="several transforms without a composite one"):
        read_transform(path, 3)


def test_minc_transforms_are_refused(tmp_path):
    """ITK does not turn them from RAS to LPS, neither as it reads nor as it writes them."""
    linear = "MNI Transform File\nTransform_Type = Linear;\nLinear_Transform =\n 1 0 0 5\n 0 1 0 0\n 0 0 1 0;\n"
    (tmp_path / "a.xfm").write_text(linear)
    with pytest.raises(NephiError, match="MINC .* in RAS"):
        read_transform(tmp_path / "a.xfm", 3)
    with pytest.raises(NephiError, match="MINC .* in RAS"):
        write_transform(sitk.AffineTransform(3), tmp_path / "b.xfm")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_reader_that_crashes_is_an_error(tmp_path, monkeypatch):
    reader = tmp_path / "reader"
    reader.write_text("#!/bin/sh\nkill -SEGV $$\n")
    reader.chmod(0o755)
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\n")
    monkeypatch.setattr(subprocess_reader, "sys", SimpleNamespace(executable=str(reader)))
    with pytest.raises(NephiError, match="stopped without a result"):
        subprocess_reader.read_image_in_subprocess(tmp_path / "a.mha", "image")


def test_a_reader_that_does_not_end_is_an_error(tmp_path, monkeypatch):
    """On this MetaImage file ITK itself crashes or counts for minutes; the name keeps it from the header's check."""
    text = b"ObjectType = Image\nNDims = -1\nDimSize = 2 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    path = tmp_path / "a.mha"
    path.write_bytes(text + bytes(8))
    monkeypatch.setattr(subprocess_reader, "_BASE_S", 4)
    with pytest.raises(NephiError, match="damaged"):
        subprocess_reader.read_image_in_subprocess(path, "image")
    monkeypatch.setattr(subprocess_reader, "_BASE_S", 0.01)
    with pytest.raises(NephiError, match="too long"):
        subprocess_reader.read_image_in_subprocess(path, "image")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".h5"])
def test_displacements_are_told_from_places(suffix, tmp_path):
    rng = np.random.default_rng(0)
    places = GRID.slab_lps_mm(0, GRID.shape[0]).reshape(*GRID.shape, 3)
    moves = {
        "small": rng.normal(size=places.shape),
        "large": rng.normal(size=places.shape) + [100.0, -50.0, 20.0],
        "shrunk": -0.4 * places,
    }
    for name, values in moves.items():
        path = tmp_path / f"{name}{suffix}"
        for stored, good in ((values, True), (values + places, False)):
            if suffix == ".h5":
                sitk.WriteTransform(displacement_transform(stored, GRID), str(path))
            else:
                sitk.WriteImage(GRID.image(stored, vector=True), str(path))
            if good:
                found = through(read_transform(path, 3), POINTS)
                expected = through(displacement_transform(values, GRID), POINTS)
                np.testing.assert_allclose(found, expected, atol=1e-4)
            elif name != "shrunk":
                with pytest.raises(NephiError, match="absolute deformation"):
                    read_transform(path, 3)


def test_displacements_that_nifti_marks_as_such(tmp_path):
    """Intent 1006: in RAS, as ITK reads them."""
    field = GRID.image(np.random.default_rng(0).normal(size=(*GRID.shape, 3)).astype(np.float32), vector=True)
    sitk.WriteImage(field, str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    for intent in (1006, 1007):
        data[68:70] = intent.to_bytes(2, "little")
        (tmp_path / "a.nii").write_bytes(data)
        expected = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "a.nii"), sitk.sitkVectorFloat64))
        np.testing.assert_allclose(through(read_transform(tmp_path / "a.nii", 3), POINTS), through(expected, POINTS))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_field_of_no_stated_intent_is_refused(suffix, tmp_path):
    """Its vectors may be in RAS or in LPS."""
    field = GRID.image(np.ones((*GRID.shape, 3), np.float32), vector=True)
    sitk.WriteImage(field, str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    for intent in (0, 1, 1005, 1008, 1011):
        data[68:70] = intent.to_bytes(2, "little")
        path = tmp_path / f"field{suffix}"
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        with pytest.raises(NephiError, match=f"field{suffix}: it holds 3 values .* intent code"):
            read_transform(path, 3)


def test_a_displacement_that_is_not_finite_or_cut(tmp_path):
    values = np.zeros((*GRID.shape, 3), np.float32)
    sitk.WriteImage(GRID.image(values, vector=True), str(tmp_path / "cut.nii.gz"))
    data = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(data[: len(data) // 2])
    values[3, 4, 5, 1] = np.nan
    sitk.WriteImage(GRID.image(values, vector=True), str(tmp_path / "nan.nrrd"))
    for name, match in (("cut.nii.gz", "cut off"), ("nan.nrrd", "NaN")):
        with pytest.raises(NephiError, match=match):
            read_transform(tmp_path / name, 3)
