"""DIR-Lab's sets: landmarks as distributed, raw images of the same layout, scores and both commands."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.cli.dirlab import COLUMNS, _notes, dirlab_command, score
from nephi.cli.parser import command_parser
from nephi.errors import NephiError
from nephi.files import dirlab
from nephi.files.cases import read_pairs
from nephi.files.image import read_image as read_any_image
from nephi.files.landmarks import read_landmarks
from nephi.measure.quality import tre_mm
from nephi.space.grid import Grid

SIZE = (14, 12, 10)
_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names as POSIX has them")
AIR, TISSUE, OUTSIDE = 24, 1064, -2000  # as stored
MARKED = {
    "exhale": np.array([[3, 4, 2], [9, 5, 6], [11, 8, 9]]),
    "inhale": np.array([[4, 4, 3], [9, 7, 8], [12, 8, 10]]),
}
LAYOUT = {  # of each set: folders and names as distributed, by phase
    ("copdgene", 3): {
        "exhale": ("copd3/copd3/copd3_eBHCT.img", "copd3/copd3/copd3_300_eBH_xyz_r1.txt"),
        "inhale": ("copd3/copd3/copd3_iBHCT.img", "copd3/copd3/copd3_300_iBH_xyz_r1.txt"),
    },
    ("4dct", 1): {
        "exhale": ("Case1Pack/Images/case1_T50_s.img", "Case1Pack/ExtremePhases/Case1_300_T50_xyz.txt"),
        "inhale": ("Case1Pack/Images/case1_T00_s.img", "Case1Pack/ExtremePhases/Case1_300_T00_xyz.txt"),
    },
    ("4dct", 2): {
        "exhale": ("Case2Pack/Images/case2_T50-ssm.img", "Case2Pack/ExtremePhases/Case2_300_T50_xyz.txt"),
        "inhale": ("Case2Pack/Images/case2_T00-ssm.img", "Case2Pack/ExtremePhases/Case2_300_T00_xyz.txt"),
    },
    ("4dct", 8): {
        "exhale": ("Case8Deploy/Images/case8_T50.img", "Case8Deploy/extremePhases/case8_dirLab300_T50_xyz.txt"),
        "inhale": ("Case8Deploy/Images/case8_T00.img", "Case8Deploy/extremePhases/case8_dirLab300_T00_xyz.txt"),
    },
}


@pytest.fixture
def small(monkeypatch):
    """Every case with few voxels, the spacing its own, and the marked points' distance as the published one."""
    for collection in dirlab.COLLECTIONS.values():
        for number, case in list(collection.cases.items()):
            apart = (MARKED["exhale"] - MARKED["inhale"]) * case.spacing_mm
            distance = float(np.linalg.norm(apart, axis=1).mean())
            monkeypatch.setitem(collection.cases, number, replace(case, size=SIZE, distance_mm=distance))


def _distribute(folder: Path, collection: str, number: int) -> None:
    """The files of a case: air with tissue at the marked voxels, in the stored order, and the landmark files."""
    for phase, (image, landmarks) in LAYOUT[collection, number].items():
        stored = np.full(SIZE[::-1], AIR, "<i2")
        stored[0, 0, 0] = OUTSIDE
        for x, y, z in MARKED[phase] - 1:
            stored[z, y, x] = TISSUE
        for name, content in (
            (image, stored.tobytes()),
            (landmarks, "".join(f" {x}.0\t {y}.0\t {z}.0\t\n" for x, y, z in MARKED[phase]).encode()),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / image).with_name("._" + Path(image).name).write_bytes(b"of an archive made on a Mac")


def _run(*arguments) -> int:
    return dirlab_command(command_parser().parse_args(["dirlab", *map(str, arguments)]))


def _bright(image: sitk.Image, points_lps_mm: np.ndarray) -> list[int]:
    return [image[image.TransformPhysicalPointToIndex(point)] for point in points_lps_mm.tolist()]


def _copdgene(data: Path) -> Path:
    if not (data / "dirlab_copd").is_dir():
        pytest.skip(f"no landmarks at {data / 'dirlab_copd'}")
    return data / "dirlab_copd"


def _stays(points_lps_mm: np.ndarray) -> np.ndarray:
    return points_lps_mm


def test_copdgene_before_registration_is_as_published(data):
    folder = _copdgene(data)
    rows = score(folder, "copdgene", dict.fromkeys((1, 2, 3, 4), _stays))
    published = {"copd1": (26.33, 11.44), "copd2": (21.79, 6.46), "copd3": (12.64, 6.39), "copd4": (29.58, 12.95)}
    assert [row["case"] for row in rows] == [*published, "all"]
    for row in rows[:-1]:
        assert row["landmarks"] == 300
        assert (row["before_mean_mm"], row["before_sd_mm"]) == pytest.approx(published[row["case"]], abs=0.02)
        for moment in ("mean", "sd", "median", "p95"):  # the landmarks are at voxels already
            assert row[f"snapped_{moment}_mm"] == pytest.approx(row[f"before_{moment}_mm"])
    assert rows[-1]["landmarks"] == 1200
    assert rows[-1]["before_mean_mm"] == pytest.approx(np.mean([mean for mean, _ in published.values()]), abs=0.01)
    assert _notes(rows, "copdgene") == []


def test_copdgene_spacings_agree_with_another_source(data):
    with (_copdgene(data) / "spacings.csv").open() as file:
        for row in csv.DictReader(file):
            spacing = dirlab.COLLECTIONS["copdgene"].cases[int(row["case"].removeprefix("copd"))].spacing_mm
            assert spacing == pytest.approx([float(row[name]) for name in ("sx", "sy", "sz")], abs=5.1e-4)


@pytest.mark.parametrize("case", [1, 3, 4])  # the patient of case 2 breathes with the chest
def test_the_diaphragm_is_at_the_feet(data, case):
    """As the lung fills, what lies low goes down against what lies high."""
    exhale, inhale = dirlab.read_case_landmarks(_copdgene(data), "copdgene", case)
    order = np.argsort(exhale[:, 2])
    motion = inhale - exhale
    relative = motion[order[:75]].mean(0) - motion[order[-75:]].mean(0)
    assert relative[2] < -5


def test_published_means_of_all_cases():
    means = {name: [case.distance_mm for case in c.cases.values()] for name, c in dirlab.COLLECTIONS.items()}
    assert {name: round(float(np.mean(row)), 2) for name, row in means.items()} == {"copdgene": 23.36, "4dct": 8.46}
    assert all(list(c.cases) == list(range(1, 11)) for c in dirlab.COLLECTIONS.values())


@pytest.mark.parametrize(("collection", "number"), LAYOUT)
def test_images_and_landmarks_agree(small, tmp_path, collection, number):
    _distribute(tmp_path, collection, number)
    images = dirlab.read_pair(tmp_path, collection, number)
    landmarks = dirlab.read_case_landmarks(tmp_path, collection, number)
    for image, points, phase in zip(images, landmarks, ("exhale", "inhale"), strict=True):
        assert image.GetPixelID() == sitk.sitkInt16
        assert image.GetSpacing() == dirlab.COLLECTIONS[collection].cases[number].spacing_mm
        assert _bright(image, points) == [TISSUE - 1024] * 3
        values = sitk.GetArrayViewFromImage(image)
        assert np.count_nonzero(values == TISSUE - 1024) == 3
        assert values[0, 0, 0] == values.min() == -1024  # what the scanner did not see
        assert np.unique(values).tolist() == [-1024, AIR - 1024, TISSUE - 1024]
        np.testing.assert_array_equal(points[:, 2] < points[0, 2], MARKED[phase][:, 2] > MARKED[phase][0, 2])
    for a, b in zip(dirlab.read_pair(tmp_path, collection, number, fixed="inhale"), images[::-1], strict=True):
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(a), sitk.GetArrayViewFromImage(b))


def test_score_of_a_known_error(small, tmp_path):
    """Carried to the right place but for 0.3 voxels along x and, for one landmark, 0.7 along z."""
    _distribute(tmp_path, "copdgene", 3)
    target = dirlab.read_case_landmarks(tmp_path, "copdgene", 3)[1]
    step = np.array(dirlab.case_grid("copdgene", 3).spacing_mm)
    errors = np.array([[0.3, 0, 0], [0.3, 0, 0], [0, 0, 0.7]]) * step
    (row,) = score(tmp_path, "copdgene", {3: lambda _: target + errors})
    lengths = errors.sum(1)
    assert row["after_mean_mm"] == pytest.approx(lengths.mean())
    assert row["after_sd_mm"] == pytest.approx(lengths.std(ddof=1))
    assert row["after_median_mm"] == pytest.approx(0.3 * step[0])
    assert row["after_p95_mm"] == pytest.approx(np.percentile(lengths, 95))
    assert row["snapped_mean_mm"] == pytest.approx(step[2] / 3)
    assert row["snapped_median_mm"] == pytest.approx(0)
    assert row["before_mean_mm"] == pytest.approx(dirlab.COLLECTIONS["copdgene"].cases[3].distance_mm)


def test_maps_go_from_the_fixed_image(small, tmp_path):
    _distribute(tmp_path, "4dct", 2)
    for fixed in dirlab.PHASES:
        start, target = dirlab.read_case_landmarks(tmp_path, "4dct", 2, fixed)
        given = []
        score(tmp_path, "4dct", {2: lambda points, given=given: given.append(points) or points}, fixed)
        np.testing.assert_array_equal(given[0], start)
        np.testing.assert_allclose(dirlab.case_grid("4dct", 2).to_index(start), MARKED[fixed] - 1, atol=1e-9)
        assert not np.allclose(start, target)


@pytest.mark.parametrize("fixed", dirlab.PHASES)
def test_two_commands_around_batch(small, tmp_path, capsys, fixed):
    raw, pairs, results = tmp_path / "raw", tmp_path / "pairs", tmp_path / "results"
    cases = (1, 8)
    for number in cases:
        _distribute(raw, "4dct", number)
    assert _run(raw, "--set", "4dct", "--cases", 8, 1, "--fixed", fixed, "--pairs", pairs) == 0
    assert "nephi batch" in capsys.readouterr().out
    listed = read_pairs(pairs / "pairs.csv")
    assert [pair.name for pair in listed] == ["case1", "case8"]
    for pair in listed:
        fixed_image, moving_image = (read_any_image(pair.files[role], role) for role in ("fixed", "moving"))
        start, target = (read_landmarks(pair.files[f"{role}_landmarks"]) for role in ("fixed", "moving"))
        assert _bright(fixed_image, start) == _bright(moving_image, target) == [TISSUE - 1024] * 3
        (text,) = raw.rglob(Path(LAYOUT["4dct", int(pair.name[4:])][fixed][1]).name)
        np.testing.assert_allclose(read_landmarks(text, fixed_image), start, atol=1e-4)
        shift = sitk.TranslationTransform(3, (target - start).mean(0).tolist())
        (results / pair.name).mkdir(parents=True)
        sitk.WriteTransform(shift, str(results / pair.name / "transform.h5"))
        left = tre_mm(start + (target - start).mean(0), target).mean()
        assert left < 0.8 * tre_mm(start, target).mean()

    assert _run(raw, "--set", "4dct", "--fixed", fixed, "--results", results) == 0
    told = capsys.readouterr().out
    assert "note" not in told
    with (results / "dirlab.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["case"] for row in rows] == ["case1", "case8", "all"]
    assert float(rows[1]["after_mean_mm"]) == pytest.approx(left, rel=1e-4)
    assert f"{left:8.2f}" in next(line for line in told.splitlines() if line.startswith("case8"))
    assert float(rows[2]["after_mean_mm"]) == pytest.approx(
        np.mean([float(r["after_mean_mm"]) for r in rows[:2]]), rel=1e-4
    )


def test_results_by_number_and_landmarks_that_are_not_the_published(small, tmp_path, capsys, monkeypatch):
    _distribute(tmp_path, "copdgene", 3)
    (tmp_path / "out" / "case3").mkdir(parents=True)
    sitk.WriteTransform(sitk.TranslationTransform(3), str(tmp_path / "out" / "case3" / "transform.h5"))
    cases = dirlab.COLLECTIONS["copdgene"].cases
    monkeypatch.setitem(cases, 3, replace(cases[3], distance_mm=12.64))
    assert _run(tmp_path, "--set", "copdgene", "--results", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "copd3" in told and "12.64 mm was published" in told and "all" not in told.split()


def _damage(folder: Path, what: str) -> None:
    image, landmarks = (folder / name for name in LAYOUT["copdgene", 3]["inhale"])
    if what == "image missing":
        image.unlink()
    elif what == "image twice":
        (folder / "again").mkdir()
        (folder / "again" / image.name).write_bytes(image.read_bytes())
    elif what == "image cut":
        image.write_bytes(image.read_bytes()[:-2])
    elif what == "image longer":
        image.write_bytes(image.read_bytes() + b"0")
    elif what == "image a pipe":
        image.unlink()
        os.mkfifo(image)
    elif what == "landmarks missing":
        landmarks.unlink()
    elif what == "landmarks fewer":
        landmarks.write_text("1 1 1\n2 2 2\n")
    elif what == "landmarks outside":
        landmarks.write_text("1 1 1\n2 2 2\n3 3 11\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("image missing", "no inhale image file like copd3_iBHCT.img"),
        ("image twice", "keep one of"),
        ("image cut", "14 x 12 x 10 voxels of 2 bytes are 3360"),
        ("image longer", "has 3361 bytes"),
        pytest.param("image a pipe", "not a regular file", marks=_PIPES),
        ("landmarks missing", "copd3_300_iBH_xyz_r1.txt"),
        ("landmarks fewer", "3 landmarks, copd3_300_iBH_xyz_r1.txt 2"),
        ("landmarks outside", "belongs to another image"),
    ],
)
def test_bad_files_are_told_in_one_line(small, tmp_path, what, message):
    raw = tmp_path / "raw"
    _distribute(raw, "copdgene", 3)
    _damage(raw, what)
    with pytest.raises(NephiError, match=message) as error:
        _run(raw, "--set", "copdgene", "--cases", 3, "--pairs", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "pairs.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", 11, "--results", "out"), "no case 11; the cases are 1 to 10"),
        (("--cases", 4, "--results", "out"), "case 4 has no result: .*copd4"),
        (("--results", "empty"), "no results of copdgene in empty"),
        (("--cases", 3, "--results", "out"), "cannot read .* as a transform"),
    ],
)
def test_bad_requests_are_told_in_one_line(small, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    _distribute(tmp_path, "copdgene", 3)
    for folder in ("empty", "out/copd3"):
        Path(folder).mkdir(parents=True)
    Path("out/copd3/transform.h5").write_text("not a transform")
    with pytest.raises(NephiError, match=message):
        _run(".", "--set", "copdgene", *arguments)


def test_bad_names(tmp_path):
    for call, message in (
        (lambda: dirlab.case_grid("popi", 1), "the sets are copdgene, 4dct"),
        (lambda: dirlab.read_pair(tmp_path, "4dct", 1, fixed="T00"), "exhale, inhale"),
        (lambda: dirlab.read_image(tmp_path / "none", "4dct", 1, "exhale"), "no such folder"),
    ):
        with pytest.raises(NephiError, match=message):
            call()


def test_the_grid_is_left_handed_from_head_to_feet():
    grid = dirlab.case_grid("copdgene", 1)
    assert isinstance(grid, Grid) and grid.size == (512, 512, 121)
    np.testing.assert_allclose(grid.to_lps_mm([1, 1, 1]), [0.625, 0.625, -2.5])
