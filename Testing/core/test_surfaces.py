"""Agreement of labels: distances of surfaces whose distance is known, and what comes of them in the reports."""

from __future__ import annotations

import csv
import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.cli import main
from nephi.cli.batch import pair_row
from nephi.files.cases import Case
from nephi.files.provenance import hashes
from nephi.measure.evaluate import evaluate
from nephi.measure.report import Report
from nephi.measure.surfaces import label_agreement, surface_distance
from nephi.space.grid import Grid

SPACING = (1.0, 2.0, 3.0)  # x, y, z
GRID = Grid((40, 30, 20), SPACING, (-20.0, 10.0, 5.0), tuple(np.eye(3).ravel()))


def block(low_zyx, high_zyx) -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[tuple(map(slice, low_zyx, high_zyx))] = True
    return mask


def test_a_mask_is_no_distance_from_itself():
    ball = (np.square(GRID.to_lps_mm(np.moveaxis(np.indices(GRID.shape)[::-1], 0, -1)) - (0, 40, 35)).sum(-1)) < 250
    same = surface_distance(ball, ball, SPACING)
    assert same.mean == 0 and same.hausdorff_95 == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_that_is_thicker_on_one_side_is_as_far_as_it_is_thicker(axis):
    """A slab from border to border has two faces; one of them moves by two voxels."""
    slab, thicker = (np.zeros(GRID.shape, bool) for _ in range(2))
    np.moveaxis(slab, axis, 0)[6:10] = True
    np.moveaxis(thicker, axis, 0)[6:12] = True
    apart, step = surface_distance(slab, thicker, SPACING), SPACING[::-1][axis]
    assert apart.mean == pytest.approx(2 * step / 2, rel=1e-4)  # one of two faces, in either direction
    assert apart.hausdorff_95 == pytest.approx(2 * step, rel=1e-4)


def test_the_larger_direction_counts_for_the_hausdorff_distance():
    small, spur = block((5, 5, 5), (15, 25, 15)), block((5, 5, 5), (15, 25, 15))
    spur[9:11, 14:16, 15:35] = True  # a spur of 20 mm on one mask alone
    one, other = (surface_distance(*pair, SPACING) for pair in ((small, spur), (spur, small)))
    assert one == other
    faces = surface_distance(small, block((5, 5, 5), (15, 25, 35)), SPACING)
    assert faces.hausdorff_95 == pytest.approx(20, abs=1) and 0 < one.mean < faces.mean


def test_where_the_field_of_view_cuts_a_mask_it_has_no_surface():
    """Both masks reach the image's end; it is no surface, though one is wider there."""
    a, b = block((0, 0, 0), (20, 30, 10)), block((0, 0, 0), (20, 30, 12))
    assert surface_distance(a, b, SPACING).mean == pytest.approx(2.0, rel=1e-4)
    assert surface_distance(np.ones(GRID.shape, bool), a, SPACING) is None
    assert surface_distance(np.zeros(GRID.shape, bool), a, SPACING) is None


@pytest.mark.parametrize("spacing", [SPACING, (3.0, 0.5, 1.0)])
def test_it_is_the_distance_of_the_nearest_voxels_whether_near_or_far(spacing):
    """Rough surfaces beside each other, with a part far away; by the distances of all voxels from all."""
    rng, grid = np.random.default_rng(3), np.indices((24, 22, 50))
    rough = np.linalg.norm(grid - np.array([12, 11, 10])[:, None, None, None], axis=0) + rng.normal(
        0, 0.7, (24, 22, 50)
    )
    a, b = rough < 7, np.roll(rough, 1, 1) < 7.5
    a[10:13, 10:13, 44:47] = True
    found = surface_distance(a, b, spacing)

    def surface_mm(mask):
        sides = [np.roll(mask, step, axis) for axis in range(3) for step in (-1, 1)]
        return np.argwhere(mask & ~np.logical_and.reduce(sides)) * spacing[::-1]

    apart = np.linalg.norm(surface_mm(a)[:, None] - surface_mm(b), axis=-1)
    there, back = apart.min(1), apart.min(0)
    assert there.max() > 20 and np.median(there) < 3
    assert found.mean == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert found.hausdorff_95 == pytest.approx(max(np.percentile(d, 95) for d in (there, back)), rel=1e-5)


def _label_maps() -> Both[sitk.Image]:
    """Two organs; in the moving image both lie 3 mm further along x, and a third one is there alone."""
    fixed, moving = np.zeros(GRID.shape, np.uint16), np.zeros(GRID.shape, np.uint16)
    fixed[5:15, 5:15, 5:15], fixed[5:15, 5:15, 20:30] = 1, 4
    moving[5:15, 5:15, 8:18], moving[5:15, 5:15, 23:33], moving[:3, :3, :3] = 1, 4, 9
    return Both(GRID.image(fixed), GRID.image(moving))


def test_labels_are_compared_one_by_one_after_the_transform_and_after_the_alignment():
    shift = sitk.TranslationTransform(3, (3.0, 0.0, 0.0))
    rows = {row["label"]: row for row in label_agreement(*_label_maps(), shift, sitk.TranslationTransform(3))}
    assert list(rows) == [1, 4, 9]
    for label in (1, 4):
        row = rows[label]
        assert row["dice"] == 1 and row["surface_mm"] == 0 and row["hausdorff_95_mm"] == 0
        assert row["before_dice"] == pytest.approx(0.7) and 0 < row["before_surface_mm"] < 3
        assert row["before_hausdorff_95_mm"] == pytest.approx(3, abs=1e-3)
        assert row["fixed_ml"] == row["moving_ml"] == pytest.approx(6.0)
    assert rows[9]["dice"] == 0 and rows[9]["fixed_ml"] == 0 and rows[9]["surface_mm"] is None
    assert "before_dice" not in label_agreement(*_label_maps(), shift, None)[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    ramp = np.add.outer(np.add.outer(np.arange(20), np.arange(30)), np.arange(40)).astype(np.int16)
    for role, labels in zip(("fixed", "moving"), _label_maps(), strict=True):
        sitk.WriteImage(GRID.image(ramp), str(folder / f"{role}.nii.gz"))
        sitk.WriteImage(labels, str(folder / f"{role}_labels.nii.gz"))
    points = GRID.to_lps_mm([[10, 10, 10], [20, 10, 10], [30, 10, 10], [20, 20, 10]])
    errors = np.array([0.0, 1.0, 2.5, 6.0])
    for role, moved in (("fixed", points), ("moving", points + (3, 0, 0) + errors[:, None] * (0, 1, 0))):
        lines = ["x,y,z", *(",".join(map(repr, row)) for row in moved.tolist())]
        (folder / f"{role}.csv").write_text("\n".join(lines) + "\n")
    sitk.WriteTransform(sitk.TranslationTransform(3, (3.0, 0.0, 0.0)), str(folder / "shift.tfm"))
    return folder


def _command(files, *more: str) -> list[str]:
    command = ["evaluate", str(files / "shift.tfm")]
    for role in ("fixed", "moving"):
        command += [f"--{role}", str(files / f"{role}.nii.gz"), f"--{role}-landmarks", str(files / f"{role}.csv"),
                    f"--{role}-labels", str(files / f"{role}_labels.nii.gz")]  # fmt: skip
    return [*command, *more]


def test_the_command_tells_each_landmark_and_the_shares_within_2_mm_and_a_voxel(files, tmp_path, capsys):
    assert main(_command(files, "--landmark-errors", str(tmp_path / "errors.csv"))) == 0
    report = Report.from_json(capsys.readouterr().out)
    tre = report.tre_mm
    assert tre.voxel_diagonal_mm == pytest.approx(14**0.5)  # 3.74 mm
    assert tre.within_2_mm == 0.5 and tre.within_voxel == 0.75
    assert [row["after_mm"] for row in report.landmarks] == pytest.approx([0, 1, 2.5, 6])
    with open(tmp_path / "errors.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["after_mm"]) for row in rows] == pytest.approx([0, 1, 2.5, 6], abs=1e-5)
    assert [float(row["x_lps_mm"]) for row in rows] == [-10, 0, 10, 0] and rows[3]["number"] == "4"
    assert [row["dice"] for row in report.labels] == [1, 1, 0]
    row = pair_row(Case("a", {}), "done", report)
    assert row["tre_within_2_mm"] == 0.5 and row["dice_labels"] == pytest.approx(2 / 3)
    assert row["surface_mm"] == 0 and row["hausdorff_95_mm"] == 0  # of the labels that both images have


def test_labels_and_errors_without_their_partner_are_refused_in_one_line(files, tmp_path, capfd):
    for command in (
        [part for part in _command(files) if "moving_labels" not in part and part != "--moving-labels"],
        ["evaluate", str(files / "shift.tfm"), "--fixed", str(files / "fixed.nii.gz"), "--landmark-errors", "e.csv"],
    ):
        assert main(command) == 2
        assert len(capfd.readouterr().err.splitlines()) == 1


def test_evaluate_says_nothing_of_what_is_not_given(files):
    report = evaluate(files / "shift.tfm", sitk.ReadImage(str(files / "fixed.nii.gz")))
    assert report.labels is None and report.landmarks is None and report.surface_mm is None
    assert {"labels", "landmarks", "surface_mm"}.isdisjoint(json.loads(report.to_json()))


def test_hashes_are_of_the_contents_whatever_the_names(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, names in ((first, ("1", "2")), (second, ("z", "y"))):
        folder.mkdir()
        for name, content in zip(names, (b"one", b"two"), strict=True):
            (folder / name).write_bytes(content)
    one, two = (hashes({"fixed": folder})["fixed"] for folder in (first, second))
    parts = sorted(hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    assert one["sha256"] == two["sha256"] == hashlib.sha256("".join(f"{p}\n" for p in parts).encode()).hexdigest()
    (second / "y").write_bytes(b"twO")
    assert hashes({"fixed": second})["fixed"]["sha256"] != one["sha256"]
    file = hashes({"moving": first / "1", "regions": None}, align="auto")
    assert file == {"moving": {"path": str(first / "1"), "sha256": hashlib.sha256(b"one").hexdigest()}}
    assert "sha256" not in hashes({"fixed": tmp_path / "none"})["fixed"]


def test_a_registration_says_where_it_comes_from_and_what_became_of_labels_and_lobes(phantom_2d, tmp_path):
    """One run by the command: labels, landmarks, regions and the maps of ventilation, in JSON, tables and the page."""
    phantom_2d.write(tmp_path)
    lobes = sitk.ConnectedComponent(phantom_2d.fixed_mask)
    sitk.WriteImage(lobes, str(tmp_path / "lobes.nii.gz"))
    command = ["register", str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz")]
    for role in ("fixed", "moving"):
        command += [f"--{role}-mask", str(tmp_path / f"{role}_mask.nii.gz"),
                    f"--{role}-labels", str(tmp_path / f"{role}_mask.nii.gz"),
                    f"--{role}-landmarks", str(tmp_path / f"{role}_landmarks.csv")]  # fmt: skip
    command += ["--regions", str(tmp_path / "lobes.nii.gz"), "--outputs", "log-jacobian,ventilation,report"]
    command += ["--output", str(tmp_path / "out"), "--iterations", "6", "--seed", "5", "--progress", "none"]
    assert main(command) == 0
    report = Report.from_json((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report.provenance["seed"] == 5 and report.provenance["date"]
    content = (tmp_path / "fixed.nii.gz").read_bytes()
    assert report.provenance["files"]["fixed"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert set(report.provenance["files"]) >= {"moving_labels", "regions", "fixed_landmarks"}
    (label,) = report.labels
    assert label["label"] == 1 and label["dice"] > label["before_dice"] > 0.5
    assert 0 <= label["surface_mm"] <= label["hausdorff_95_mm"] < label["before_hausdorff_95_mm"]
    assert label["dice"] == pytest.approx(report.dice.after, abs=0.02)
    assert report.surface_mm.mean == pytest.approx(label["surface_mm"], abs=0.3)
    read = {n: sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{n}.nii.gz")))
            for n in ("ventilation", "ventilation_hu", "log_jacobian")}  # fmt: skip
    inside = sitk.GetArrayFromImage(phantom_2d.fixed_mask) > 0
    np.testing.assert_allclose(np.log1p(read["ventilation"]), read["log_jacobian"], atol=1e-5)
    assert (read["ventilation"][~inside] == 0).all() and (read["ventilation_hu"][~inside] == 0).all()
    mean = report.jacobian["mean"]
    assert read["ventilation"][inside].mean() == pytest.approx(mean - 1, abs=1e-4)
    for row in report.regions:
        assert row["ventilation_jacobian"] == pytest.approx(row["mean_jacobian"] - 1, abs=1e-6)
        assert row["air_fixed_ml"] < row["volume_fixed_ml"] and 0.5 < row["mass_ratio"] < 1.5
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in (
        hashlib.sha256(content).hexdigest(),
        "Hausdorff 95 %, registered (mm)",
        "mass ratio",
        "Every landmark",
        "tolerated",
    ):
        assert text in html, text
