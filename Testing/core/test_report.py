"""The report: honest words, all numbers, pictures the right way round."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.report import drawing, page, pictures
from nephi.report.page import write_report
from nephi.report.pictures import checkerboard, error_rgb, jacobian_rgb
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

pytest.importorskip("matplotlib")

REPORT = {
    "fixed": "/data/exhale.nii.gz",
    "moving": {"path": "/data/in<hale>.nii.gz"},
    "tre_mm": {
        "before": {"mean": 9.8765, "median": 8.25, "p95": 17.5, "max": 21.125},
        "after": {"mean": 1.2345, "median": 1.0625, "p95": 2.75, "max": 4.875},
    },
    "landmarks": [
        {"number": k + 1, "x_lps_mm": 0.5 * k, "before_mm": 1 + 0.375 * k, "after_mm": 0.09375 * k} for k in range(50)
    ],
    "folds": {"percent": 0.0, "count": 0},
    "inverse_consistency_mm": {"mean": 0.1234, "max": 1.5},
    "fields_disagreement_mm": {"mean": 0.4321, "max": 2.5},
    "jacobian": {"min": 0.4321, "max": 1.876},
    "volume": {"ratio": 1.1357},
    "dice": 0.9731,
    "time_s": {"wall": 31.25, "cpu": 55.5},
    "peak_memory_mb": 987.6,
    "settings": {"similarity": {"kind": "mind", "stages": [{"spacing_mm": 4.5}, {"spacing_mm": 2.25}]}},
    "versions": {"nephi": "0.1.2"},
    "warnings": ["masks were found by <threshold>"],
}


def _inputs(dimension: int) -> dict:
    phantom = make_phantom((40, 36, 36)[:dimension], 8.0, dimension=dimension, seed=1)
    grid = Grid.of(phantom.fixed)
    field = phantom.displacement()
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    points = grid.to_lps_mm(np.moveaxis(np.indices(grid.shape)[::-1], 0, -1))
    return {
        "fixed": phantom.fixed,
        "warped": grid.resample(phantom.moving, transform, outside=-1000),
        "moving": phantom.moving,
        "alignment": sitk.Transform(dimension, sitk.sitkIdentity),
        "jacobian": grid.image(phantom.jacobian(points).astype(np.float32)),
        "displacement": sitk.Shrink(phantom.displacement(), [2] * dimension),
        "fixed_mask": phantom.fixed_mask,
        "history": [
            {"step": k, "loss": 1 / (1 + k), "similarity": 0.9 / (1 + k), "regularity": 0.01} for k in range(9)
        ],
    }


@pytest.fixture(scope="module")
def inputs3():
    return _inputs(3)


@pytest.fixture(scope="module")
def inputs2():
    return _inputs(2)


def _written(folder, report: dict, inputs: dict) -> str:
    write_report(folder, report=report, **inputs)
    return (folder / "report.html").read_text(encoding="utf-8")


def _pictures(html: str) -> list[np.ndarray]:
    """All embedded pictures as (rows, columns, 3) of 0..1."""
    from matplotlib.image import imread

    found = re.findall(r'(?:src|href)="data:image/png;base64,([^"]+)"', html)
    pictures = [imread(io.BytesIO(base64.b64decode(text))) for text in found]
    return [np.stack([p] * 3, -1) if p.ndim == 2 else p[..., :3] for p in pictures]


def _magenta(picture: np.ndarray) -> int:
    return int((np.abs(picture - (1, 0, 1)).max(-1) < 0.02).sum())


def test_page_holds_every_number_and_needs_nothing_else(tmp_path, inputs3):
    html = _written(tmp_path / "new" / "folder", REPORT, inputs3)
    numbers = "9.88 1.23 1.06 2.75 4.88 21.12 0.1234 0.4321 1.876 1.136 0.9731 31.25 55.5 987.6 4.5 2.25 0.1.2"
    for number in numbers.split():
        assert number in html, number
    assert "similarity.stages.2.spacing_mm" in html
    assert "exhale.nii.gz" in html
    assert "/data/exhale.nii.gz" in html  # in the table, whole
    assert "<threshold>" not in html and "in<hale>" not in html  # text is text
    assert "&lt;threshold&gt;" in html
    assert not re.search(r"https?://|<script|<link|url\(|src=\"(?!data:)", html)
    # checkerboard and difference: 3 views, before and after; grid, Jacobian, legend, losses, landmarks
    assert len(_pictures(html)) == 6 + 6 + 3 + 3 + 1
    terms = {k for k in inputs3["history"][0] if k != "step"}
    assert html.count('class="plot"') == len(terms) + 1


def test_words_follow_the_numbers(tmp_path, inputs2):
    good = _written(tmp_path, REPORT, inputs2)
    assert "down from 9.88 mm" in good
    assert "No folds" in good
    worse = REPORT | {
        "tre_mm": {"before": {"mean": 1.0}, "after": {"mean": 2.0}},
        "folds": {"percent": 0.5, "count": 7},
    }
    bad = _written(tmp_path, worse, inputs2)
    assert "<b>up</b> from 1.00 mm" in bad
    assert "Folds: 0.5 % (7 voxels)" in bad
    assert "No folds" not in bad
    unknown = _written(tmp_path, {}, inputs2)
    assert "accuracy is not known" in unknown
    assert "folds" not in unknown.split("<h2>")[0].lower()  # nothing is claimed about what was not measured


def test_an_option_in_a_warning_or_reason_is_not_broken_across_lines(tmp_path, inputs2):
    told = "Check it, or give one <now> with --fixed-mask; before-and--after is no option."
    report = REPORT | {"warnings": [told], "verdict": VERDICT | {"reasons": [told]}}
    option = '<span class="option">--fixed-mask</span>; before-and--after'
    assert _written(tmp_path, report, inputs2).count(f"&lt;now&gt; with {option}") == 2


def test_every_landmark_and_every_criterion_is_on_the_page(tmp_path, inputs2):
    tre = REPORT["tre_mm"] | {"within_2_mm": 0.44, "within_voxel": 0.5, "voxel_diagonal_mm": 2.8125}
    criteria = [
        {"name": "expected error, mean", "found": "1.53 mm", "tolerated": "2 mm or less", "kept": True},
        {"name": "folded voxels", "found": "7", "tolerated": "0 % or less", "kept": False},
    ]
    label = {"label": 3, "fixed_ml": 512.5, "dice": 0.9375, "surface_mm": None, "hausdorff_95_mm": 4.5625}
    file = {"path": "/data/exhale.nii.gz", "sha256": "ab" * 32}
    report = REPORT | {"tre_mm": tre, "labels": [label], "verdict": VERDICT | {"criteria": criteria}}
    report["provenance"] = {"files": {"fixed": file}, "series": {"moving": "1.2.840.99"}, "seed": 1234}
    html = _written(tmp_path, report, inputs2)
    assert "44 % of the landmarks are within 2 mm, 50 % within a voxel's diagonal of 2.81 mm" in html
    details = html[html.index("<details>") : html.index("</details>")]
    assert details.count("<tr>") == 51 and "<td>4.594</td>" in details
    top = html[html.index('class="verdict') : html.index("</div>")]
    assert "<td>1.53 mm</td><td>2 mm or less</td><td>yes</td>" in top and "<td>NO</td>" in top
    assert "<td>0.9375</td><td>none</td><td>4.562</td>" in html
    assert "ab" * 32 in html and "1.2.840.99" in html and "<td>1234</td>" in html


def test_regions_stand_in_tables_of_a_few_columns_with_every_number(tmp_path, inputs2):
    """Each table fits a sheet of paper; a region that the moving image lacks has no agreement."""
    entries = [entry for words in page._REGIONS.values() for entry in words if entry not in ("fixed_ml", "moving_ml")]
    rows = [
        {"label": 1, "name": "upper <lobe>"} | {entry: 1.25 + k for k, entry in enumerate(entries)},
        {"label": 2, "name": ""} | {entry: None if "dice" in entry else 101.25 + k for k, entry in enumerate(entries)},
    ]
    write_report(tmp_path, report=REPORT | {"regions": rows}, **inputs2)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    tables = re.findall(r"<h2>Regions: [^<]*</h2><table>(.*?)</table>", html)
    assert len(tables) == 3 and all(table.count("<th>") <= 8 for table in tables)
    assert all("<td>upper &lt;lobe&gt;</td>" in table and "<td>label 2</td>" in table for table in tables)
    shown = re.findall(r"<td[^>]*>([^<]*)</td>", "".join(tables))
    for k, entry in enumerate(entries):
        assert f"{1.25 + k:.4g}" in shown and ("none" if "dice" in entry else f"{101.25 + k:.4g}") in shown, entry


def test_a_planted_fold_is_loud(tmp_path, inputs3):
    jacobian = sitk.GetArrayFromImage(inputs3["jacobian"])
    inside = np.argwhere(sitk.GetArrayFromImage(inputs3["fixed_mask"]))
    z, y, x = inside[len(inside) // 7]
    jacobian[z, y, x] = -0.125
    clean = _pictures(_written(tmp_path, {}, inputs3))
    html = _written(tmp_path, {}, inputs3 | {"jacobian": Grid.of(inputs3["fixed"]).image(jacobian)})
    assert sum(map(_magenta, clean)) == 0
    loud = sorted(map(_magenta, _pictures(html)))
    assert loud[-4] == 0
    assert loud[-3:] == [1, 1, 1]  # one voxel, in each of the three views through it
    assert "-0.125" in html


def test_jacobian_colours_say_the_direction():
    rgb = jacobian_rgb(np.array([0.5, 1.0, 2.0, 100.0, 0.0, -1.0, np.nan])).astype(int)
    assert rgb[0, 2] > rgb[0, 0] + 50  # smaller: blue
    assert rgb[1].min() == rgb[1].max() > 240  # unchanged: neutral
    assert rgb[2, 0] > rgb[2, 2] + 50  # larger: red
    assert np.array_equal(rgb[2], rgb[3])
    assert (rgb[4:] == (255, 0, 255)).all()
    assert jacobian_rgb(np.array([[0.8]])).shape == (1, 1, 3)


def test_checkerboard_squares_are_square_in_mm():
    board = checkerboard(np.zeros((90, 45)), np.ones((90, 45)), np.array([2.0, 1.0]))
    assert (board[:10, :5] == 0).all()
    assert (board[:10, 5:10] == 1).all()
    assert (board[10:20, :5] == 1).all()


def _reoriented(image: sitk.Image, order: list[int], flips: list[bool]) -> sitk.Image:
    """The same voxels in the same places, stored along other axes."""
    return sitk.Flip(sitk.PermuteAxes(image, order), flips)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
@pytest.mark.parametrize("flips", [[False] * 3, [True, False, True], [True, True, False]])
def test_views_do_not_depend_on_how_the_image_is_stored(order, flips):
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.normal(size=(4, 5, 6)))
    stored = _reoriented(image, order, flips)
    at = [1.0, 2.0, 3.0]  # LPS mm
    views = pictures._views(Grid.of(image), Grid.of(image).to_index(at))
    stored_views = pictures._views(Grid.of(stored), np.rint(Grid.of(stored).to_index(at)))
    for here, there in zip(views, stored_views, strict=True):
        planes = [v.take(sitk.GetArrayFromImage(i), v.position) for v, i in ((here, image), (there, stored))]
        assert np.array_equal(*planes)
        assert here.letters == there.letters


def test_views_follow_the_radiological_convention():
    image = sitk.GetImageFromArray(np.arange(4 * 5 * 6).reshape(4, 5, 6))
    array = sitk.GetArrayFromImage(image)
    axial, coronal, sagittal = pictures._views(Grid.of(image), (1, 2, 3))
    assert np.array_equal(axial.take(array, 3), array[3])  # right of the patient on the left, front on top
    assert np.array_equal(coronal.take(array, 2), array[::-1, 2])  # head on top
    assert np.array_equal(sagittal.take(array, 1), array[::-1, :, 1])
    assert [v.letters for v in (axial, coronal, sagittal)] == [tuple("RLAP"), tuple("RLSI"), tuple("APSI")]


def test_oblique_axes_have_two_letters():
    c = np.sqrt(0.5)
    image = sitk.Image(6, 6, 6, sitk.sitkFloat32)
    image.SetDirection((c, 0, c * 0.999, 0, 1, 0, -c * 0.999, 0, c))
    letters = pictures._views(Grid.of(image), (3, 3, 3))[0].letters
    assert letters[2:] == ("A", "P")
    assert {len(letters[0]), len(letters[1])} == {2}


def test_grid_lines_show_the_forward_map_without_its_shift():
    """x -> 1.1 x + 50 in the first axis, on an oblique grid with a coarser field."""
    grid = Grid((30, 20, 10), (1.0, 1.0, 2.0), (5.0, -3.0, 7.0), tuple(np.eye(3).ravel()))
    coarse = Grid((32, 22, 22), (2.0, 2.0, 2.0), (-10.0, -10.0, -10.0), tuple(np.eye(3).ravel()))
    points = coarse.to_lps_mm(np.moveaxis(np.indices(coarse.shape)[::-1], 0, -1))
    vectors = np.zeros_like(points)
    vectors[..., 0] = 0.1 * points[..., 0] + 50
    blank = grid.image(np.zeros(grid.shape, np.float32))
    images = pictures.Images(blank, blank, blank, sitk.Transform(), blank, coarse.image(vectors, vector=True))
    axial = pictures._views(grid, (15, 10, 5))[0]
    lines = pictures._grid_lines(images, axial)
    across = lines[0]  # the first row of the grid: (30, 2) columns and rows of the picture
    np.testing.assert_allclose(across[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(across[:, 0], 14.5 + 1.1 * (np.arange(30) - 14.5), atol=1e-4)


def test_pictures_keep_the_aspect_of_anisotropic_voxels():
    grid = Grid((40, 40, 10), (1.0, 1.0, 8.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    image = grid.image(np.zeros(grid.shape, np.float32))
    images = pictures.Images(image, image, image, sitk.Transform(), image, image)
    coronal = pictures._views(grid, (20, 20, 5))[1]
    panel = pictures._panel(images, coronal, images.of("fixed", coronal))
    width, height = re.search(r'<image [^>]*width="(\d+)" height="(\d+)" preserveAspectRatio="none"', panel).groups()
    assert int(height) / int(width) == pytest.approx(80 / 40, rel=0.02)


def test_planes_are_where_the_mask_is():
    grid = Grid((12, 10, 8), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    mask = np.zeros(grid.shape, np.uint8)
    mask[2, 3, 4] = mask[2, 3, 5] = mask[2, 4, 5] = mask[1, 3, 5] = 1
    blank = grid.image(np.zeros(grid.shape, np.float32))
    images = pictures.Images(blank, blank, blank, sitk.Transform(), blank, blank, grid.image(mask))
    assert images.centre_index() == [5, 3, 2]


@pytest.mark.parametrize("dimension", [2, 3])
def test_planes_of_what_lies_elsewhere_are_those_of_the_whole_image_resampled(dimension, inputs2, inputs3):
    inputs = inputs2 if dimension == 2 else inputs3
    grid, moved = Grid.of(inputs["fixed"]), sitk.TranslationTransform(dimension, [7.0, -9.0, 4.0][:dimension])
    box = tuple(slice(3, n - 2) for n in grid.shape)
    values = np.random.default_rng(0).normal(1, 0.1, grid.shape).astype(np.float32)
    whole = np.ones(grid.shape, np.float32)
    whole[box] = values[box]
    mask = np.ones(grid.shape, np.uint8)
    determinant = grid.part(box).image(np.ascontiguousarray(values[box]))
    inputs = {k: v for k, v in inputs.items() if k != "history"}
    inputs |= {"alignment": moved, "jacobian": determinant, "fixed_mask": grid.image(mask)}
    images = pictures.Images(**inputs)
    lowest = sitk.GetArrayViewFromImage(inputs["moving"]).min()
    before = sitk.GetArrayFromImage(grid.resample(inputs["moving"], moved, outside=lowest))
    for view in pictures._views(grid, [n // 3 for n in grid.size]):
        assert np.abs(images.of("before", view) - view.take(before, view.position)).max() <= 1  # of what is rounded
        assert np.array_equal(images.of("jacobian", view), view.take(whole, view.position))
    assert images.worst_fold() is None
    at = tuple(n // 2 for n in grid.shape)
    values[at] = -0.5
    folded = pictures.Images(**inputs | {"jacobian": grid.part(box).image(np.ascontiguousarray(values[box]))})
    assert folded.worst_fold() == (at[::-1], -0.5)


def test_two_dimensions(tmp_path, inputs2):
    html = _written(tmp_path, REPORT, inputs2)
    assert len(_pictures(html)) == 2 + 2 + 1 + 1 + 1 and html.count('class="plot"') > 1


def test_bare_minimum(tmp_path, inputs3):
    few = {k: inputs3[k] for k in ("fixed", "warped", "moving", "alignment", "jacobian", "displacement")}
    html = _written(tmp_path, {}, few)
    assert len(_pictures(html)) == 6 + 6 + 3 + 3 + 1


def test_pixels_come_back_from_a_picture():
    rng = np.random.default_rng(0)
    for shape in ((7, 5), (6, 9, 3)):
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        (found,) = _pictures(f'<img src="{drawing.png(pixels)}">')
        np.testing.assert_array_equal(
            np.rint(255 * found), pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, 2)
        )


def test_a_curve_s_points_lie_on_its_axes_between_round_numbers():
    x, y = np.array([0.0, 5.0, 10.0]), np.array([0.31, 0.2, np.nan])
    svg = drawing.plot("a <term>", "step", [(x, y, "#000", "after")])
    assert "a &lt;term&gt;" in svg and "nan" not in svg
    (points,) = re.findall(r'points="([^"]+)"', svg)
    places = np.array([point.split(",") for point in points.split()], float)
    ticks = {kind: re.findall(rf'class="{kind}">([\d.]+)<', svg) for kind in "xy"}
    assert ticks["x"] == ["0", "1", "2", "3", "4", "5"] and ticks["y"][0] == "0.2" and float(ticks["y"][-1]) >= 0.31
    lines = [float(x) for x in re.findall(r'd="M([\d.]+) [\d.]+V', svg)]
    np.testing.assert_allclose(places[:, 0], [lines[0], lines[-1]])
    rows = [float(y) for y in re.findall(r'd="M[\d.]+ ([\d.]+)H', svg)]
    assert places[1, 1] == rows[0] and rows[-1] <= places[0, 1] < rows[0]


def test_the_rim_of_a_mask_lies_between_its_pixels_and_the_others():
    inside = np.zeros((4, 5), bool)
    inside[1:3, 2] = True
    assert sorted(re.findall(r"M[^M]+", drawing.rim_path(inside))) == sorted(
        ["M2 1v1", "M2 2v1", "M3 1v1", "M3 2v1", "M2 1h1", "M2 3h1"]
    )


# ---- the verdict -----------------------------------------------------------------------------------------------------

VERDICT = {"outcome": "CHECK", "reasons": ["Look <here>."], "tolerances": {"set_by": "Clinic <A>", "mean_mm": 2.0}}
EXPECTED = {"mean": 1.25, "bound_mean": 3.5, "p95": 2.0}


def test_the_verdict_stands_at_the_top_with_its_reasons_and_who_set_the_tolerances(tmp_path, inputs2):
    html = _written(tmp_path, REPORT | {"verdict": VERDICT, "error_estimate_mm": EXPECTED}, inputs2)
    top = html[html.index("<h1>") : html.index("<section>")]
    assert 'class="verdict check"' in top and "Look &lt;here&gt;." in top and "Clinic &lt;A&gt;" in top
    assert 'class="verdict' not in _written(tmp_path, REPORT, inputs2)


def test_without_landmarks_the_expected_error_is_called_what_it_is(tmp_path, inputs2):
    report = {k: v for k, v in REPORT.items() if k != "tre_mm"} | {"error_estimate_mm": EXPECTED}
    html = _written(tmp_path, report, inputs2)
    assert "estimated, not measured" in html and "1.25 mm" in html and "accuracy is not known" not in html


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_expected_error_has_pictures_of_its_own(tmp_path, dimension, inputs2, inputs3):
    inputs = inputs2 if dimension == 2 else inputs3
    coarse = Grid.of(inputs["fixed"]).coarsened(24.0)
    worst = coarse.image(np.full(coarse.shape, 20.0, np.float32))
    without = _pictures(_written(tmp_path, REPORT, inputs))
    html = _written(tmp_path, REPORT, inputs | {"expected_error": worst})
    assert "Expected error" in html and len(_pictures(html)) == len(without) + (2 if dimension == 2 else 4)
    colours = error_rgb(np.array([0.1, 1.0, 2.0, 5.0, 50.0])).astype(int)
    assert colours[0][1] > colours[0][0] and colours[-1][0] > colours[-1][1]  # green, dark red
    assert len(np.unique(colours, axis=0)) == 5
