"""RT structure sets: regions of known shape, warped by known maps, and read and written by plastimatch."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
from files import textured, write_dicom
from geometry import rotation
from nephi.cli import main
from nephi.errors import NephiError
from nephi.files.image import read_volume
from nephi.files.landmarks import read_landmarks
from nephi.files.regions import read_regions
from nephi.files.segments import region_names
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("skimage")
from nephi.files.dicom_objects import read_series  # noqa: E402
from nephi.files.dicom_structures import (  # noqa: E402
    Structure,
    filled,
    is_structure_set,
    outlined,
    read_structures,
    write_structures,
)

_HEADER = {"0010|0010": "Doe^Jane", "0010|0020": "7", "0010|0030": "19500101", "0010|0040": "F", "0020|0010": "1",
           "0008|0020": "20200101", "0008|0030": "120000", "0008|0050": "1", "0008|0090": "Roe"}  # fmt: skip
_SIZE, _SPACING, _ORIGIN = (60, 50, 24), (1.1, 1.2, 2.0), (-30.0, -28.0, -200.0)
_CENTRE = np.array([2.0, 1.0, -178.0])
_MARKED = np.array([[1.0, 2.0, -180.0], [-8.5, 4.25, -172.0]])
_SHIFT_MM = np.array([3.3, -2.4, 4.0])  # fixed to moving points


def ring(radii_mm, z: float, count: int = 90) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return _CENTRE + np.column_stack([radii_mm[0] * np.cos(angle), radii_mm[1] * np.sin(angle), np.full(count, z)])


def tube(radii_mm, half: int, hole_mm=()) -> list[np.ndarray]:
    """Ellipses, with an ellipse as a hole, in 2 half + 1 planes."""
    shapes = [radii_mm, hole_mm] if len(hole_mm) else [radii_mm]
    return [ring(radii, 2.0 * k) for k in range(-half, half + 1) for radii in shapes]


def structures() -> list[Structure]:
    return [
        Structure("Body", tube((20, 16), 7), interpreted="EXTERNAL", colour=(255, 0, 0)),
        Structure("Wall", tube((10, 8), 4, (6, 5)), interpreted="ORGAN", colour=(0, 255, 0)),
        Structure("Core", tube((5, 4), 4), interpreted="GTV"),
        Structure("Marks", points_lps_mm=_MARKED),
    ]


def area(contour: np.ndarray) -> float:
    x, y = contour[:, 0], contour[:, 1]
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    """A folder with a fixed and a moving series, and a structure set of the moving one."""
    folder = tmp_path_factory.mktemp("structures")
    write_dicom(
        textured(_SIZE, _SPACING, _ORIGIN), folder / "moving", uid="1.2.3.20", tags=_HEADER | {"0020|0052": "1.2.3.5"}
    )
    fixed = textured(_SIZE, (1.0, 1.0, 2.0), (-31.0, -29.0, -202.0), seed=1)
    write_dicom(fixed, folder / "fixed", uid="1.2.3.10", tags=_HEADER | {"0020|0052": "1.2.3.4"})
    write_structures(structures(), folder / "in.dcm", read_series(folder / "moving"))
    sitk.WriteTransform(sitk.TranslationTransform(3, _SHIFT_MM.tolist()), str(folder / "map.tfm"))
    return folder


def test_what_is_written_is_read_again(case):
    assert is_structure_set(case / "in.dcm") and not is_structure_set(case / "map.tfm")
    for wanted, found in zip(structures(), read_structures(case / "in.dcm"), strict=True):
        assert (found.name, found.interpreted, found.colour) == (wanted.name, wanted.interpreted, wanted.colour)
        assert found.frame == "1.2.3.5"
        assert len(found.contours) == len(wanted.contours)
        for a, b in zip(wanted.contours, found.contours, strict=True):
            assert np.allclose(a, b, atol=1e-4)
        assert np.allclose(found.points_lps_mm, wanted.points_lps_mm, atol=1e-4)
    assert np.allclose(read_landmarks(case / "in.dcm"), _MARKED, atol=1e-4)


def test_its_contours_are_regions_by_their_names(case, tmp_path):
    """Those that lie apart; of a series the frame of reference is compared, too."""
    image = read_volume(case / "moving")
    apart = [one for one in structures() if one.name in ("Wall", "Core")]
    write_structures(apart, tmp_path / "apart.dcm", read_series(case / "moving"))
    found = read_regions(tmp_path / "apart.dcm", image, "regions", "1.2.3.5")
    assert region_names(found) == {1: "Wall", 2: "Core"}
    volumes = np.bincount(sitk.GetArrayFromImage(found).ravel())[1:] * np.prod(_SPACING)
    np.testing.assert_allclose(volumes, np.pi * 18 * np.array([10 * 8 - 6 * 5, 5 * 4]), rtol=0.03)
    with pytest.raises(NephiError, match="Wall, Core is in another frame"):
        read_regions(tmp_path / "apart.dcm", image, "regions", "1.2.3.4")
    with pytest.raises(NephiError, match="regions: Body and Wall overlap"):
        read_regions(case / "in.dcm", image)


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_filling_and_outlining_keep_area_and_place(degrees):
    """Also for oblique planes, at a tenth of a millimetre."""
    turn = rotation(3, degrees)
    contours = [contour @ turn.T for contour in tube((10, 8), 4, (6, 5))]
    share = filled(Structure("Wall", contours))
    volume = float(sitk.GetArrayFromImage(share).astype(float).sum()) / 255 * np.prod(share.GetSpacing())
    assert volume == pytest.approx(np.pi * (80 - 30) * 18, rel=0.01)  # each of nine planes stands for 2 mm
    back = [contour @ turn for contour in outlined(share)]
    assert len(back) == 9  # each goes around its hole
    for contour in back:
        x, y, z = (contour - _CENTRE).T
        off = [np.abs(np.hypot(x / a, y / b) - 1) * b for a, b in ((10, 8), (6, 5))]
        assert np.minimum(*off).max() < 0.15
        assert area(contour) == pytest.approx(np.pi * (80 - 30), rel=0.01)
        assert np.ptp(z) < 1e-3 and abs(z[0] / 2 - round(z[0] / 2)) < 1e-3


def test_several_regions_and_holes_in_one_plane():
    """What is outlined fills the same pixels again, whichever way a program counts nested contours."""
    plane = np.zeros((60, 80), np.uint8)
    plane[5:55, 5:50], plane[10:20, 10:20], plane[30:50, 12:45] = 255, 0, 0
    plane[35:45, 20:40], plane[38:42, 25:30] = 255, 0  # an island in a hole, with a hole
    plane[10:40, 60:79] = 255
    contours = outlined(sitk.GetImageFromArray(plane[None]))
    assert len(contours) == 3
    draw, inside = pytest.importorskip("skimage.draw"), np.zeros(plane.shape, bool)
    for contour in contours:
        inside[draw.polygon(contour[:, 1], contour[:, 0], plane.shape)] = True
    assert np.count_nonzero(inside != (plane > 0)) <= 8


def test_planes_that_are_missing_stay_empty():
    contours = [ring((8, 8), z) for z in (0.0, 2.0, 4.0, 12.0, 14.0)]
    share = sitk.GetArrayFromImage(filled(Structure("Two", contours)))
    assert [bool(plane.any()) for plane in share] == [False, *[True] * 3, *[False] * 3, *[True] * 2, False]


def warped(case: Path, target: Path, *more: str) -> list[Structure]:
    command = ["warp", str(case / "map.tfm"), str(case / "in.dcm"), "--dicom", str(case / "fixed"), *more]
    assert main([*command, "--output", str(target)]) == 0
    return read_structures(target)


def test_it_comes_out_warped_and_as_it_came_in(case, tmp_path, capsys):
    found = warped(case, tmp_path / "out.dcm")
    assert [s.name for s in found] == ["Body", "Wall", "Core"]  # the map of a file takes points the other way only
    assert "The points of Marks were left out" in capsys.readouterr().err
    for wanted, got in zip(structures(), found, strict=False):
        assert (got.interpreted, got.colour, got.frame) == (wanted.interpreted, wanted.colour, "1.2.3.4")
        assert len(got.contours) == len({contour[0, 2] for contour in wanted.contours})
        size = area(wanted.contours[0]) - (area(wanted.contours[1]) if wanted.name == "Wall" else 0)
        assert area(got.contours[0]) == pytest.approx(size, rel=0.02)
        everything = np.concatenate(got.contours)
        where = (everything.min(0) + everything.max(0)) / 2
        assert np.abs(where - (_CENTRE - _SHIFT_MM)).max() < 0.25  # a quarter of a pixel


def test_points_go_through_the_inverse(case, tmp_path, short):
    p = make_phantom((36, 32, 32), 9.0)
    settings = replace(short(2, 12.0), consensus=False)
    registration = nephi.register(p.fixed, p.moving, settings=settings, auto_mask=False)
    registration.save(tmp_path / "map.safetensors")
    moving = registration.moving_grid.to_lps_mm([[10, 11, 9], [12, 9, 8]])
    series = read_series(case / "fixed")
    write_structures([Structure("Marks", points_lps_mm=moving)], tmp_path / "in.dcm", series)
    for more, way in (((), registration.inverse), (("--inverse",), registration.forward)):
        command = [
            "warp",
            str(tmp_path / "map.safetensors"),
            str(tmp_path / "in.dcm"),
            "--dicom",
            str(case / "fixed"),
            *more,
        ]
        assert main([*command, "--output", str(tmp_path / "out.dcm")]) == 0
        assert np.allclose(read_landmarks(tmp_path / "out.dcm"), way(moving), atol=2e-4)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is missing (Debian: dicom3tools)")
def test_it_is_valid(case, tmp_path):
    warped(case, tmp_path / "out.dcm")
    done = subprocess.run(["dciodvfy", str(tmp_path / "out.dcm")], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert not errors, errors


@pytest.mark.skipif(not shutil.which("plastimatch"), reason="plastimatch is missing (Debian)")
def test_plastimatch_sees_the_same_regions(case, tmp_path):
    """Its masks of what we write, and our label map of what it writes, differ at the borders only."""
    sitk.WriteImage(read_volume(case / "moving"), str(tmp_path / "moving.mha"))
    command = ["plastimatch", "convert", "--input", str(case / "in.dcm"), "--fixed", str(tmp_path / "moving.mha")]
    command += ["--xor-contours"]  # else it fills holes that contours of their own cut
    done = subprocess.run(
        [*command, "--output-prefix", str(tmp_path / "masks"), "--prefix-format", "nii.gz", "--output-dicom",
         str(tmp_path / "theirs")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grid = Grid.of(read_volume(case / "moving"))
    written = [path for path in (tmp_path / "theirs").iterdir() if is_structure_set(path)]
    again = {structure.name: structure for structure in read_structures(written[0])}
    for name in ("Body", "Wall", "Core"):
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "masks" / f"{name}.nii.gz"))) != 0
        for source in (read_structures(case / "in.dcm"), again.values()):
            (structure,) = [s for s in source if s.name == name]
            ours = sitk.GetArrayFromImage(grid.resample(filled(structure))) >= 128
            dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
            assert dice > 0.93, (name, dice)


def test_a_label_map_of_chosen_regions(case, tmp_path, capsys):
    command = ["structures", str(case / "in.dcm")]
    assert main(command) == 0
    assert "Wall" in capsys.readouterr().out
    command += ["--reference", str(case / "moving"), "--output", str(tmp_path / "labels.nii.gz")]
    assert main([*command, "--roi", "Wall", "--roi", "Core"]) == 0
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    counts = np.bincount(sitk.GetArrayViewFromImage(labels).ravel()) * np.prod(_SPACING)
    assert counts[1] == pytest.approx(np.pi * 50 * 18, rel=0.05) and counts[2] == pytest.approx(
        np.pi * 20 * 18, rel=0.05
    )
    assert labels[labels.TransformPhysicalPointToIndex(_CENTRE.tolist())] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "moving"], "Body and Wall overlap"),
        (["--reference", "moving", "--roi", "Liver"], "0 regions named 'Liver'; its regions are: Body, Wall, Core"),
        (["--reference", "fixed", "--roi", "Core"], "another frame of reference"),
        (["--roi", "Core"], "give --reference"),
    ],
)
def test_what_cannot_be_right_is_told(case, tmp_path, capsys, options, message):
    options = [str(case / word) if word in ("moving", "fixed") else word for word in options]
    assert main(["structures", str(case / "in.dcm"), *options, "--output", str(tmp_path / "labels.nii.gz")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_cut_file_is_one_line(case, tmp_path):
    """Wherever it ends: never some of the regions in silence."""
    data = (case / "in.dcm").read_bytes()
    for end in np.linspace(data.find(b"Doe^Jane"), len(data) - 1, 60).astype(int):
        (tmp_path / "cut.dcm").write_bytes(data[:end])
        with pytest.raises(NephiError):
            assert is_structure_set(tmp_path / "cut.dcm")
            read_structures(tmp_path / "cut.dcm")


def test_contours_in_the_place_of_an_image_are_told(case):
    with pytest.raises(NephiError, match="mask: .* contains contours"):
        read_volume(case / "in.dcm", "mask")


def test_regions_that_are_not_flat_are_refused():
    bent = ring((10, 8), 0.0)
    bent[:20, 2] += 3.0
    with pytest.raises(NephiError, match="do not lie in parallel planes"):
        filled(Structure("Bent", [bent]))
    with pytest.raises(NephiError, match="enclose nothing"):
        filled(Structure("Line", [ring((10, 0), 0.0)]))
