"""Landmark files: frames, signs, index bases, round trips and what the user is told about a bad file."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nephi.errors import NephiError
from nephi.files.landmarks import read_landmarks, write_landmarks
from nephi.space.grid import Grid

DATA = Path(os.environ.get("NEPHI_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
POINTS = np.array([[1.5, -2.25, 3.0], [-40.125, 50.0, -60.5]])
FCSV = "# Markups fiducial file version = 4.11\n{frame}# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label\n"
# Oblique and left-handed, so that a lost sign or a swapped axis shows.
GRID = Grid((64, 48, 32), (0.5, 2.0, 3.0), (-20.0, 7.0, 100.0), (0.0, 0.6, -0.8, 1.0, 0.0, 0.0, 0.0, -0.8, -0.6))
FLAT = Grid((64, 48), (0.5, 2.0), (-20.0, 7.0), (0.0, -1.0, 1.0, 0.0))


def _data(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"The test data {path} are missing; set NEPHI_DATA.")
        pytest.skip(f"no test data at {path}; set NEPHI_DATA")
    return path


def _written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _rows(points: np.ndarray, separator: str = ",") -> str:
    return "\n".join(separator.join(map(str, row)) for row in points.tolist()) + "\n"


def _ras(points: np.ndarray) -> np.ndarray:
    return points * [-1, -1, 1]


def _markups(points: np.ndarray, **markup) -> dict:
    control_points = [{"label": "A", "position": row} for row in points.tolist()]
    return {"type": "Fiducial", "controlPoints": control_points, **markup}


@settings(max_examples=40, deadline=None)
@given(
    arrays(float, st.tuples(st.integers(1, 6), st.integers(2, 3)), elements=st.floats(-1e6, 1e6)),
    st.sampled_from([".csv", ".fcsv", ".mrk.json"]),
)
def test_what_is_written_is_read_back_to_the_last_bit(points, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"landmarks{ending}")
        write_landmarks(path, points)
        image = FLAT if points.shape[1] == 2 else GRID
        read = read_landmarks(path, image)
    assert read.dtype == np.float64 and read.shape == points.shape
    np.testing.assert_array_equal(read, points)


@pytest.mark.parametrize("header", ["x,y,z\n", "X,Y,Z\n", "", "l,p,s\n", "\ufeffx, y ,z\n"])
def test_csv_in_lps(tmp_path, header):
    path = _written(tmp_path, "a.csv", header + _rows(POINTS))
    np.testing.assert_array_equal(read_landmarks(path), POINTS)


def test_csv_takes_its_columns_by_name(tmp_path):
    path = _written(tmp_path, "a.csv", 'name,z,y,x,t\n"a, b",3,2,1,0\n\nc,6,5,4,0\n')
    np.testing.assert_array_equal(read_landmarks(path), [[1, 2, 3], [4, 5, 6]])


def test_slicer_table_in_ras(tmp_path):
    path = _written(tmp_path, "a.csv", "label,r,a,s,defined\nF-1,1,2,3,1\nF-2,4,5,6,1\n")
    np.testing.assert_array_equal(read_landmarks(path), [[-1, -2, 3], [-4, -5, 6]])
    path.write_text("label,r,a,s,defined\nF-1,1,2,3,1\nF-2,0,0,0,0\n")
    with pytest.raises(NephiError, match="undefined"):
        read_landmarks(path)


@pytest.mark.parametrize("text", ["x,y\n1,2\n3,4\n", "1,2\n3,4\n"])
def test_csv_in_2d(tmp_path, text):
    path = _written(tmp_path, "a.csv", text)
    np.testing.assert_array_equal(read_landmarks(path, FLAT), [[1, 2], [3, 4]])
    with pytest.raises(NephiError, match="2D landmarks, but the image is 3D"):
        read_landmarks(path, GRID)


def test_third_column_of_a_2d_image_must_be_zero(tmp_path):
    path = _written(tmp_path, "a.csv", "1,2,0\n3,4,0\n")
    np.testing.assert_array_equal(read_landmarks(path, FLAT), [[1, 2], [3, 4]])
    path.write_text("1,2,0\n3,4,1\n")
    with pytest.raises(NephiError, match="3D landmarks, but the image is 2D"):
        read_landmarks(path, FLAT)


@pytest.mark.parametrize(("frame", "sign"), [("LPS", 1), ("1", 1), ("RAS", -1), ("0", -1), (None, -1)])
def test_fcsv_frames(tmp_path, frame, sign):
    header = "" if frame is None else f"# CoordinateSystem = {frame}\n"
    rows = "".join(f"id{i},{x},{y},{z},0,0,0,1,1,1,0,F\n" for i, (x, y, z) in enumerate(POINTS))
    path = _written(tmp_path, "a.fcsv", FCSV.format(frame=header) + rows)
    np.testing.assert_array_equal(read_landmarks(path), POINTS * [sign, sign, 1])


SLICER = (
    "# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
)


@pytest.mark.parametrize("desc", ["", "vessel", '"at 1,5 mm"'])
@pytest.mark.parametrize("end", ["", ",2,0", ",2,1"])
def test_fcsv_as_slicer_writes_it(tmp_path, end, desc):
    """Two numbers follow the columns that it names."""
    row = "{},{},{},{},0,0,0,1,1,1,0,F-1," + desc + ",vtkMRMLScalarVolumeNode1" + end + "\n"
    text = SLICER + "".join(row.format(i, *p) for i, p in enumerate(POINTS.tolist(), 1))
    np.testing.assert_array_equal(read_landmarks(_written(tmp_path, "a.fcsv", text)), POINTS)
    whole = SLICER + row.format(1, 1, 2, 3)
    np.testing.assert_array_equal(read_landmarks(_written(tmp_path, "b.fcsv", whole)), [[1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (SLICER + "1,1,2,3,0,0,0,1,1,1,0,F-1,,,0,0\n", "undefined"),
        (SLICER + "1,-13,7,37,9,5,0,0,0,1,1,1,0,F-1,,\n", "decimal commas"),  # x = -13.7, y = 37.9
        (SLICER + "1,-13,7,37,9,5,25\n", "decimal commas"),
        (SLICER.replace("id,x", "idx"), "repair its header"),
        (SLICER.replace("id,x", "id,,x"), "repair its header"),
        (SLICER + "1,1,2\n", "columns"),
    ],
)
def test_fcsv_with_other_columns(tmp_path, text, match):
    with pytest.raises(NephiError, match=match):
        read_landmarks(_written(tmp_path, "a.fcsv", text))


@pytest.mark.parametrize("frame", ["IJK", "2", "XYZ"])
def test_fcsv_in_another_frame(tmp_path, frame):
    text = FCSV.format(frame=f"# CoordinateSystem = {frame}\n") + "1,1,2,3,0,0,0,1,1,1,0,F\n"
    with pytest.raises(NephiError, match="coordinate system"):
        read_landmarks(_written(tmp_path, "a.fcsv", text))


def test_markups_each_in_its_own_frame(tmp_path):
    markups = [
        _markups(POINTS, coordinateSystem="LPS", coordinateUnits="mm"),
        _markups(_ras(POINTS + 1), coordinateSystem="RAS"),
        _markups(POINTS + 2),
        _markups(POINTS[:0], coordinateSystem="LPS"),
    ]
    path = _written(tmp_path, "a.mrk.json", json.dumps({"markups": markups}))
    np.testing.assert_array_equal(read_landmarks(path), np.concatenate([POINTS, POINTS + 1, POINTS + 2]))


@pytest.mark.parametrize("status", ["undefined", "preview"])
def test_markups_with_a_point_that_is_not_placed(tmp_path, status):
    markup = _markups(POINTS)
    markup["controlPoints"][1]["positionStatus"] = status
    with pytest.raises(NephiError, match=r"without a position, \[2\]"):
        read_landmarks(_written(tmp_path, "a.mrk.json", json.dumps({"markups": [markup]})))


@pytest.mark.parametrize(
    "content",
    [
        {"points": []},
        {"markups": [1]},
        {"markups": None},
        {"markups": [_markups(POINTS, coordinateUnits="cm")]},
        {"markups": [_markups(POINTS, coordinateSystem="IJK")]},
        {"markups": [{"controlPoints": [{"label": "A"}]}]},
        {"markups": [{"controlPoints": [{"position": [1, 2]}]}]},
        {"markups": [{"controlPoints": [{"position": [1, 2, None]}]}]},
        {"markups": [{"controlPoints": []}]},
        {"markups": []},
    ],
)
def test_markups_that_are_of_no_use(tmp_path, content):
    with pytest.raises(NephiError, match="a.mrk.json"):
        read_landmarks(_written(tmp_path, "a.mrk.json", json.dumps(content)))


def test_written_slicer_files_say_lps(tmp_path):
    write_landmarks(tmp_path / "a.mrk.json", POINTS)
    (markup,) = json.loads((tmp_path / "a.mrk.json").read_text())["markups"]
    assert markup["coordinateSystem"] == "LPS" and markup["type"] == "Fiducial"
    assert [point["position"] for point in markup["controlPoints"]] == POINTS.tolist()
    write_landmarks(tmp_path / "a.fcsv", POINTS)
    lines = (tmp_path / "a.fcsv").read_text().splitlines()
    assert lines[1] == "# CoordinateSystem = LPS" and lines[3].startswith("1,1.5,-2.25,3.0,")
    columns = lines[2].partition("= ")[2].split(",")
    assert all(len(row) == len(columns) for row in csv.reader(lines[3:]))


@pytest.mark.parametrize("ending", ["txt", "pts"])
@pytest.mark.parametrize("image", [GRID, FLAT], ids=["3D", "2D"])
def test_elastix_points_and_indices(tmp_path, ending, image):
    index = np.array([[0, 0, 0], [3, 2, 1], [10.5, 4, 7]])[:, : image.dimension]
    path = _written(tmp_path, f"a.{ending}", "point\n3\n" + _rows(index, " "))
    np.testing.assert_array_equal(read_landmarks(path), index)
    path.write_text("index\n3\n" + _rows(index, " "))
    pixels = sitk.Image(image.size, sitk.sitkUInt8)
    pixels.SetOrigin(image.origin_lps_mm)
    pixels.SetSpacing(image.spacing_mm)
    pixels.SetDirection(image.direction)
    expected = [pixels.TransformContinuousIndexToPhysicalPoint(row) for row in index.tolist()]
    np.testing.assert_allclose(read_landmarks(path, pixels), expected)
    with pytest.raises(NephiError, match="image"):
        read_landmarks(path)


@pytest.mark.parametrize(
    "text", ["point\n", "index\nx\n1 2 3\n", "point\n3\n1 2 3\n4 5 6\n", "point\n2\n1 2 3\n4\n", "point\n0\n"]
)
def test_elastix_files_that_are_incomplete(tmp_path, text):
    with pytest.raises(NephiError, match="a.txt"):
        read_landmarks(_written(tmp_path, "a.txt", text))


@pytest.mark.parametrize("title", ["vtk output", "3D Slicer output. SPACE=RAS"])
def test_vtk_points(tmp_path, title):
    text = f"# vtk DataFile Version 3.0\n{title}\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1 2 3 4 \n5 6\n"
    text += "VERTICES 1 2\n1 0\n"
    expected = np.array([[1.0, 2, 3], [4, 5, 6]])
    path = _written(tmp_path, "a.vtk", text)
    np.testing.assert_array_equal(read_landmarks(path), _ras(expected) if "RAS" in title else expected)
    for bad in (text.replace("ASCII", "BINARY"), text.replace("POINTS 2", "POINTS 7"), text[:40]):
        path.write_text(bad)
        with pytest.raises(NephiError, match="a.vtk"):
            read_landmarks(path)


def test_dirlab_counts_from_one_with_x_first(tmp_path):
    path = _written(tmp_path, "case1_300_T00_xyz.txt", " 1.0\t 1.0\t 1.0\t\n11\t21\t31\n")
    index = np.array([[0, 0, 0], [10, 20, 30]])
    np.testing.assert_allclose(read_landmarks(path, GRID), GRID.to_lps_mm(index))
    np.testing.assert_allclose(read_landmarks(path, GRID)[0], GRID.origin_lps_mm)
    with pytest.raises(NephiError, match="give the image"):
        read_landmarks(path)
    with pytest.raises(NephiError, match="2D"):
        read_landmarks(path, FLAT)


# Mean distance before registration as published for these cases.
@pytest.mark.parametrize(("case", "mean_mm"), [(1, 26.33), (2, 21.79), (3, 12.64), (4, 29.58)])
def test_dirlab_copd_has_the_published_distance(case, mean_mm):
    with _data("dirlab_copd", "spacings.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["case"] == f"copd{case}")
    spacing = tuple(float(row[name]) for name in ("sx", "sy", "sz"))
    # Slices from head to feet, as DIR-Lab stores them; the landmarks at the diaphragm then lie lowest.
    grid = Grid((512, 512, 130), spacing, (-160.0, -150.0, 300.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0))
    exhale, inhale = (
        read_landmarks(_data("dirlab_copd", f"copd{case}_300_{phase}BH_xyz_r1.txt"), grid) for phase in "ei"
    )
    assert exhale.shape == inhale.shape == (300, 3)
    distance = np.linalg.norm(exhale - inhale, axis=1)
    assert distance.mean() == pytest.approx(mean_mm, abs=0.05)
    index = grid.to_index(inhale)
    np.testing.assert_allclose(index, index.round(), atol=1e-6)
    assert (index >= 0).all() and (index < grid.size).all()


def test_liver_landmarks_are_read_in_pairs():
    folder = _data("liver_mr", "dataset19")
    fixed, moving = (read_landmarks(folder / f"{name}LMliver.vtk") for name in ("exhMaster", "cyc_1_6"))
    assert fixed.shape == moving.shape and fixed.shape[1] == 3
    assert 4 < np.linalg.norm(fixed - moving, axis=1).mean() < 8


def test_chest_landmarks_lie_in_their_image():
    folder = _data("popi_4dct")
    grid = Grid.of(sitk.ReadImage(folder / "phase10_5x5x6mm.nii.gz"))
    points = read_landmarks(folder / "phase10_landmarks_lps_mm.csv", grid)
    assert points.shape == (41, 3)
    index = grid.to_index(points)
    assert (index > 0).all() and (index < np.array(grid.size) - 1).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "x,y,z\n", "no landmarks"),
        ("a.csv", "a,b,c\n1,2,3\n", "no columns"),
        ("a.csv", "1,2,3,4\n", "4 columns"),
        ("a.csv", "1,2,3\n4,5\n", "Landmark 2"),
        ("a.csv", "x,y,z\n1,2,3\n4,5\n", "Landmark 2"),
        ("a.csv", "x,y,z\n1,2,3\n4,5,six\n", "number"),
        ("a.csv", "x,y,z\n1,2,3\n4,nan,6\n", "Landmark 2 .* not finite"),
        ("a.fcsv", "# CoordinateSystem = LPS\n", "no landmarks"),
        ("a.fcsv", "# CoordinateSystem = LPS\n1,2\n", "columns"),
        ("a.txt", "1 2 3\n4 5\n", "columns"),
        ("a.txt", "1 2\n", "columns"),
        ("a.txt", "Point 0 ; InputIndex = [ 1 2 3 ]\n", "a.txt"),
        ("a.dat", "1 2 3\n", "not in a known landmark format"),
        ("a.txt", "hello\n", "not in a known landmark format"),
        ("a.mrk.json", "{", "damaged"),
    ],
)
def test_bad_files_are_explained(tmp_path, name, text, message):
    with pytest.raises(NephiError, match=message) as caught:
        read_landmarks(_written(tmp_path, name, text), GRID)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(NephiError, match="no such file"):
        read_landmarks(tmp_path / "none.csv")
    with pytest.raises(NephiError, match="cannot read"):
        read_landmarks(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(NephiError, match="not a text file"):
        read_landmarks(tmp_path / "a.csv")


def test_what_cannot_be_written(tmp_path):
    for points in (np.zeros((0, 3)), np.zeros(3), np.zeros((2, 4)), [[1, 2, np.inf]]):
        with pytest.raises(NephiError):
            write_landmarks(tmp_path / "a.csv", points)
    with pytest.raises(NephiError, match="a.vtk"):
        write_landmarks(tmp_path / "a.vtk", POINTS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NephiError, match="[Cc]annot write"):
        write_landmarks(tmp_path / "file" / "a.csv", POINTS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
