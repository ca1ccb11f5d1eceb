"""Transforms in the formats of other programs, each applied by that program's own library: 10,000 points, 0.02 mm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
from nephi.cli import main
from nephi.cli.convert import _part, pair_of
from nephi.cli.parser import FORMATS
from nephi.errors import NephiError
from nephi.files import formats
from nephi.files.formats import Pair, Sampled, write_format
from nephi.files.image import write_image
from nephi.files.transform import through
from nephi.space.affine import Affine
from nephi.space.grid import Grid

_RAS = np.array([-1.0, -1.0, 1.0])
_TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
_LEFT_HANDED = np.array([[-0.96, -0.28, 0.0], [-0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def made(direction: np.ndarray, other: np.ndarray) -> tuple[Pair, Grid]:
    """A smooth map with a linear part between oblique grids of different sizes, and its inverse."""
    fixed = Grid((24, 22, 20), (3.0, 4.0, 5.0), (-40.0, 25.0, 60.0), tuple(direction.ravel()))
    moving = Grid((40, 36, 30), (2.5, 2.5, 3.5), (-60.0, 5.0, 40.0), tuple(other.ravel()))
    affine = Affine(np.array([[1.03, 0.02, 0.0], [-0.01, 0.97, 0.03], [0.0, 0.01, 1.05]]), np.array([4.0, -3.0, 6.0]))
    points = fixed.points_lps_mm()
    bend = np.stack(
        [4 * np.sin(points[..., 1] / 30), 3 * np.cos(points[..., 2] / 40), 5 * np.sin(points[..., 0] / 35)], -1
    )
    forward = Sampled(fixed, affine(points + bend) - points, affine, moving)
    back = moving.points_lps_mm()
    inverse = Sampled(moving, affine.inverse()(back) - back - 0.5, affine.inverse(), fixed)
    return Pair(forward, inverse, (-bend).astype(np.float32)), fixed


@pytest.fixture(scope="module")
def registration_3d(phantom_3d, short):
    p = phantom_3d
    masks = {"fixed_mask": p.fixed_mask, "moving_mask": p.moving_mask}
    return nephi.register(p.fixed, p.moving, **masks, settings=short(15, 8.0))


@pytest.fixture(params=["turned", "mirrored", "mixed"])
def pair(request) -> tuple[Pair, Grid]:
    axes = {"turned": (_TURN, np.eye(3)), "mirrored": (_LEFT_HANDED, _LEFT_HANDED), "mixed": (_LEFT_HANDED, _TURN)}
    return made(*axes[request.param])


def inside(grid: Grid, count: int = 10_000) -> np.ndarray:
    rng = np.random.default_rng(1)
    return grid.to_lps_mm(rng.uniform(0.01, 0.99, (count, 3)) * (np.array(grid.size) - 1))


def nodes(grid: Grid) -> np.ndarray:
    """10,000 voxel centres, where interpolation of any order agrees: nitransforms' is cubic, fslpy's the nearest."""
    return grid.to_lps_mm(np.random.default_rng(2).integers(0, grid.size, (10_000, 3)))


def expected(sampled: Sampled, points: np.ndarray) -> np.ndarray:
    """Linear interpolation, as every one of the programs does it."""
    return through(formats.displacement_transform(sampled.displacement, sampled.grid), points)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < 0.02


@pytest.mark.parametrize("name", ["itk", "compact", "bids"])
def test_itk_reads_it(name, pair, tmp_path):
    if name == "compact":
        pytest.importorskip("h5py")
    pair, _ = pair
    files = [f for f in write_format(name, pair, tmp_path / "one") if f.suffix == ".h5"]
    for file, sampled in zip(files, (pair.forward, pair.inverse), strict=True):
        points = inside(sampled.grid)
        close(through(sitk.ReadTransform(str(file)), points), expected(sampled, points))


def test_ants_files_as_itk_composes_them(pair, tmp_path):
    """As antsApplyTransforms does: the last file first to the image, so the first one first to points."""
    pair, _ = pair
    affine, warp, inverse = write_format("ants", pair, tmp_path / "ants_")
    assert [f.name for f in (affine, warp, inverse)] == [
        "ants_0GenericAffine.mat", "ants_1Warp.nii.gz", "ants_1InverseWarp.nii.gz"
    ]  # fmt: skip
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(warp), sitk.sitkVectorFloat64))
    points = inside(pair.forward.grid)
    close(through(sitk.ReadTransform(str(affine)), through(field, points)), expected(pair.forward, points))


def test_ants_itself_agrees(pair, tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx is large: pip install antspyx")
    pd = pytest.importorskip("pandas")
    pair, _ = pair
    affine, warp, inverse = map(str, write_format("ants", pair, tmp_path / "ants_"))
    points = inside(pair.forward.grid)
    frame = pd.DataFrame(points, columns=["x", "y", "z"])
    moved = ants.apply_transforms_to_points(3, frame, [warp, affine])[["x", "y", "z"]].to_numpy()
    close(moved, expected(pair.forward, points))
    back = pair.forward.affine(points)  # so that the inverse warp is asked inside its grid
    moved = ants.apply_transforms_to_points(
        3, pd.DataFrame(back, columns=["x", "y", "z"]), [affine, inverse], whichtoinvert=[True, False]
    )[["x", "y", "z"]].to_numpy()
    field = formats.displacement_transform(pair.inverse_before, pair.forward.grid)
    close(moved, through(field, points))


def test_nitransforms_reads_the_displacement_field(pair, tmp_path):
    nonlinear = pytest.importorskip("nitransforms.nonlinear")
    import nibabel

    pair, _ = pair
    for file, sampled in zip(write_format("nifti", pair, tmp_path / "one"), (pair.forward, pair.inverse), strict=True):
        image = nibabel.load(file)
        assert image.header.get_intent()[0] == "displacement vector" and image.shape[3:] == (1, 3)
        field = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., 0, :], image.affine)
        points = nodes(sampled.grid)
        mapped = nonlinear.DenseFieldTransform(field, is_deltas=True).map(points * _RAS) * _RAS
        close(mapped, expected(sampled, points))


def test_itk_and_nephi_read_the_displacement_field(pair, tmp_path):
    """Both turn vectors that are marked as displacements from RAS to LPS."""
    pair, _ = pair
    file, _ = write_format("nifti", pair, tmp_path / "one")
    points = inside(pair.forward.grid)
    close(through(nephi.files.transform.read_transform(file, 3), points), expected(pair.forward, points))
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(file), sitk.sitkVectorFloat64))
    close(through(field, points), expected(pair.forward, points))


def test_fslpy_reads_the_warp(pair, tmp_path):
    fnirt = pytest.importorskip("fsl.transform.fnirt", reason="pip install fslpy")
    from fsl.data.image import Image

    pair, _ = pair
    images = {}
    for role, grid in (("fixed", pair.forward.grid), ("moving", pair.forward.target)):
        write_image(grid.image(np.zeros(grid.shape, np.float32)), tmp_path / f"{role}.nii.gz")
        images[role] = Image(str(tmp_path / f"{role}.nii.gz"))
    file, _ = write_format("fsl", pair, tmp_path / "one")
    warp = fnirt.readFnirt(str(file), src=images["moving"], ref=images["fixed"], defType="relative")
    points = nodes(pair.forward.grid)
    mapped = warp.transform(points * _RAS, from_="world", to="world") * _RAS
    close(mapped, expected(pair.forward, points))


def test_nitransforms_reads_x5(pair, tmp_path):
    nonlinear = pytest.importorskip("nitransforms.nonlinear")
    pair, _ = pair
    file, _ = write_format("x5", pair, tmp_path / "one")
    points = nodes(pair.forward.grid)
    mapped = nonlinear.DenseFieldTransform.from_filename(file, fmt="X5").map(points * _RAS) * _RAS
    close(mapped, expected(pair.forward, points))


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_converted_converts_back(name, pair, tmp_path):
    """By the command line: into every format and from there into ITK's."""
    for package in ({"compact": ["h5py"], "x5": ["nitransforms", "h5py"]}).get(name, []):
        pytest.importorskip(package)
    pair, grid = pair
    write_format("itk", replace(pair, inverse=None, inverse_before=None), tmp_path / "start")
    write_image(pair.forward.target.image(np.zeros(pair.forward.target.shape, np.uint8)), tmp_path / "moving.nii.gz")
    moving = ["--moving", str(tmp_path / "moving.nii.gz")]
    assert (
        main(["convert", str(tmp_path / "start.h5"), "--to", name, "--output", str(tmp_path / "there"), *moving]) == 0
    )
    there = sorted(
        str(f) for f in tmp_path.iterdir() if f.name.startswith(("there", "sub-there")) and f.suffix != ".json"
    )
    there.reverse()  # of ANTs the warp comes first
    assert main(["convert", *there, "--to", "itk", "--output", str(tmp_path / "back"), *moving]) == 0
    points = inside(grid)
    close(through(sitk.ReadTransform(str(tmp_path / "back.h5")), points), expected(pair.forward, points))


@pytest.mark.parametrize(("wrong", "words"), [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"),
                                              (3e6, "a kilometre"), ("places", "absolute deformation")])  # fmt: skip
@pytest.mark.parametrize("name", ["itk", "nifti", "fsl", "compact", "x5"])
def test_a_field_that_cannot_be_one_is_refused_in_every_format(name, wrong, words, tmp_path):
    for package in ({"compact": ["h5py"], "x5": ["nitransforms", "h5py"]}).get(name, []):
        pytest.importorskip(package)
    grid = Grid((7, 6, 5), (3.0, 4.0, 5.0), (-10.0, 25.0, 60.0), tuple(np.eye(3).ravel()))
    moving = Grid((9, 8, 7), (2.5, 2.5, 3.5), (-12.0, 20.0, 55.0), tuple(np.eye(3).ravel()))
    displacement = grid.points_lps_mm() if wrong == "places" else np.full((*grid.shape, 3), 0.25)
    whole = Sampled(grid, np.full((*grid.shape, 3), 0.25), Affine.identity(3), moving)
    (file,) = write_format(name, Pair(whole), tmp_path / "whole")
    close(through(_part(file, moving, 3), inside(grid, 20)), inside(grid, 20) + 0.25)
    if wrong != "places":
        displacement[2, 3, 4, 1] = wrong
    (file,) = write_format(name, Pair(replace(whole, displacement=displacement)), tmp_path / "one")
    with pytest.raises(NephiError, match=words) as caught:
        _part(file, moving, 3)
    assert file.name in str(caught.value)


def test_an_x5_file_on_which_its_library_does_not_end_is_one_line(pair, tmp_path, monkeypatch):
    pytest.importorskip("nitransforms")
    file, _ = write_format("x5", pair[0], tmp_path / "one")
    (tmp_path / "nitransforms").mkdir()
    for module in ("nitransforms/__init__.py", "nitransforms/io.py"):
        (tmp_path / module).write_text("import time; time.sleep(100)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the process that tries it
    monkeypatch.setattr("nephi.files.subprocess_reader._BASE_S", 1)
    with pytest.raises(NephiError, match="one.x5 takes too long"):
        formats.read_x5(file)


def test_every_format_has_a_name_on_the_command_line():
    assert tuple(formats.FORMATS) == FORMATS


@pytest.mark.parametrize("name", ["nifti", "fsl", "x5"])
def test_2d_is_refused_before_anything_is_written(name, tmp_path):
    grid = Grid((4, 4), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    flat = Pair(Sampled(grid, np.zeros((4, 4, 2)), Affine.identity(2), grid))
    with pytest.raises(NephiError, match="3D"):
        write_format(name, flat, tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_line(tmp_path, monkeypatch, capsys, pair):
    pair, _ = pair
    write_format("itk", replace(pair, inverse=None, inverse_before=None), tmp_path / "start")
    monkeypatch.setitem(formats._PACKAGES, "compact", ("no_such_module", "h5py"))
    assert main(["convert", str(tmp_path / "start.h5"), "--to", "compact", "--output", str(tmp_path / "there")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nephi[formats]" in line and not list(tmp_path.glob("there*"))


def test_both_maps_of_a_registration(registration_3d, tmp_path):
    """The compact form errs by 0.05 mm on average; the ANTs form composes to the same maps."""
    r = registration_3d
    pair = pair_of(r)
    points = inside(r.fixed_grid, 2000)
    affine, warp, inverse = write_format("ants", pair, tmp_path / "ants_")
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(warp), sitk.sitkVectorFloat64))
    mapped = through(sitk.ReadTransform(str(affine)), through(field, points))
    assert np.linalg.norm(mapped - r.forward(points), axis=1).mean() < 0.05
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(inverse), sitk.sitkVectorFloat64))
    back = through(field, points)
    assert np.linalg.norm(back - r.inverse(r.affine(points)), axis=1).mean() < 0.05
    coarse = pair_of(r, 0.05)
    error = np.linalg.norm(expected(coarse.forward, points) - r.forward(points), axis=1)
    assert error.mean() < 0.06 and coarse.forward.displacement.size <= pair.forward.displacement.size


@pytest.mark.slow
def test_register_writes_other_formats_with_the_result(phantom_2d, tmp_path, capsys):
    phantom_2d.write(tmp_path)
    command = ["register", str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"), "--no-report"]
    command += ["--iterations", "2", "--output", str(tmp_path / "out")]
    assert main([*command, "--also", "fsl"]) == 2  # 2D: told before the registration
    assert "3D" in capsys.readouterr().err and not Path(tmp_path / "out").exists()
    assert main([*command, "--also", "ants", "--also", "bids"]) == 0
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"ants_1Warp.nii.gz", "sub-transform_from-moving_to-fixed_mode-image_xfm.json", "report.json"} <= names
