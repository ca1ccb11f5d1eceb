"""Plain mistakes with sound files and a sound program: each is told, or meant well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from files import textured
from nephi.both import Both
from nephi.cli import main
from nephi.device import limit_threads
from nephi.errors import NephiError, collected_notices
from nephi.files.image import read_image, write_image
from nephi.files.landmarks import names_of_points
from nephi.files.transform import displacement_transform
from nephi.measure.evaluate import evaluate
from nephi.preprocessing import preprocess
from nephi.registration import register
from nephi.space.grid import Grid

_HERE = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def result(tmp_path_factory, phantom_2d, short) -> Path:
    """Folder of the phantom and, in ``out``, of a short registration."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom_2d.write(folder)
    images = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *images, "-o", str(folder / "out"), "--iterations", "2", "--no-report"]) == 0
    return folder


def test_one_image_given_twice_is_told(phantom_2d, short):
    found = register(phantom_2d.fixed, sitk.Image(phantom_2d.fixed), settings=short(2))
    assert any("are identical" in note for note in found.notes)
    assert not any("are identical" in n for n in register(phantom_2d.fixed, phantom_2d.moving, settings=short(2)).notes)


def spaced(image: sitk.Image, factors: tuple[float, ...]) -> sitk.Image:
    """As where the header has other spacings than the voxels."""
    image = sitk.Image(image)
    image.SetSpacing((np.array(image.GetSpacing()) * factors).tolist())
    return image


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "factors, words",
    [
        ((1, 1, 1), None),
        ((1, 1, 0.8), None),
        ((1, 1, 2), "moving image are {} times as large from head to foot as those of the fixed"),
        ((1, 1, 0.5), "fixed image are {} times as large from head to foot as those of the moving"),
        ((1.9, 1.9, 1), "moving image are {} times as large from right to left and from front to back as"),
        ((0.55,) * 3, "fixed image are {} times as large in all directions as"),
        ((0.65,) * 3, "fixed image are {} times as large in all directions as"),
        ((1.6,) * 3, "moving image are {} times as large in all directions as"),
        ((0.85,) * 3, None),
    ],
)
def test_a_wrong_spacing_of_a_chest_is_told(factors, words, masked, phantom_3d):
    p = phantom_3d
    images = Both(p.fixed, spaced(p.moving, factors)).map(lambda image: sitk.Cast(image, sitk.sitkFloat32))
    masks = Both(p.fixed_mask, spaced(p.moving_mask, factors)) if masked else Both(None, None)
    with collected_notices() as notes:
        preprocess(images, masks, "auto", None, True, lambda phase: None)
    told = [note for note in notes if "voxel spacing" in note]
    assert len(told) == (words is not None), notes
    if words:
        before, after = words.split("{}")
        found = re.fullmatch(f"The lungs of the {before}(.*){after}.*", told[0])
        wrong = max(max(factors), 1 / min(factors))
        assert found and float(found[1]) == pytest.approx(wrong, rel=0.15)


def test_the_jacobian_beside_the_fixed_image_is_told(result, tmp_path, phantom_2d, capfd):
    far = sitk.Image(phantom_2d.fixed)
    far.SetOrigin([5000.0, 0.0])
    sitk.WriteImage(far, str(tmp_path / "far.nrrd"))
    for reference, words in ((result / "fixed.nii.gz", ""), (tmp_path / "far.nrrd", "does not overlap")):
        arguments = ["jacobian", str(result / "out"), "--reference", str(reference), "-o", str(tmp_path / "j.nrrd")]
        assert main(arguments) == 0
        said = capfd.readouterr().err
        assert words in said and bool(said) == bool(words)


def test_a_field_that_does_not_cover_the_fixed_image_is_told():
    grid = Grid.of(textured())
    for shift, count in ((0.0, 0), (40.0, 1)):
        origin = tuple(np.add(grid.origin_lps_mm, shift))
        field = displacement_transform(
            np.zeros((*grid.shape, 3)), Grid(grid.size, grid.spacing_mm, origin, grid.direction)
        )
        warnings = evaluate(field, textured()).warnings
        assert len(warnings) == count and all("covers 0 % of the fixed image" in text for text in warnings)


def test_forward_and_inverse_of_frames_that_lie_apart_undo_each_other(phantom_2d, short, tmp_path):
    """Beyond its grid a field moves nothing, which is no disagreement of the maps."""
    far = sitk.Image(phantom_2d.moving)
    far.SetOrigin([5000.0, -3000.0])
    found = register(phantom_2d.fixed, far, settings=short(5))
    transforms = found.transform(), found.transform(inverse=True)
    consistency = evaluate(transforms[0], phantom_2d.fixed, transforms[1]).inverse_consistency_mm
    assert consistency is not None and consistency.mean < 1


_SLICERS = "# CoordinateSystem = LPS\n# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
_ROW = "{0},{1},{1},0,0,0,0,1,1,1,0,{2},,\n"


@pytest.mark.parametrize("kind", ["csv", "fcsv", "mrk.json"])
def test_points_whose_names_stand_in_another_order_are_told(kind, result, tmp_path, capfd):
    def text(names: str) -> str:
        if kind == "csv":
            return "label,x,y\n" + "".join(f"{name},{i},{i}\n" for i, name in enumerate(names))
        if kind == "fcsv":
            return _SLICERS + "".join(_ROW.format(i, i, name) for i, name in enumerate(names))
        points = (f'{{"label": "{n}", "position": [{i}, {i}, 0]}}' for i, n in enumerate(names))
        return f'{{"markups": [{{"controlPoints": [{", ".join(points)}]}}]}}'

    fixed, moving = tmp_path / f"f.{kind}", tmp_path / f"m.{kind}"
    fixed.write_text(text("abc"))
    for names, told in (("abc", False), ("cab", True), ("abd", False), ("aab", False)):
        moving.write_text(text(names))
        assert names_of_points(moving) == list(names)
        given = ["--fixed-landmarks", str(fixed), "--moving-landmarks", str(moving)]
        transform, image = str(result / "out" / "transform.h5"), str(result / "fixed.nii.gz")
        assert main(["evaluate", transform, "--fixed", image, *given, "-o", str(tmp_path / "e.json")]) == 0
        assert ("in different orders" in capfd.readouterr().err) == told, names


@pytest.mark.parametrize("suffix", [".tif", ".vtk", ".png", ".gipl"])
def test_a_format_that_does_not_hold_where_an_image_lies_is_not_written(suffix, tmp_path):
    image = textured()
    image.SetDirection([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0])
    (path := tmp_path / f"a{suffix}").write_text("older")
    with pytest.raises(NephiError, match="cannot write"):
        write_image(image, path)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_is_read_with_a_notice_and_written_again(suffix, tmp_path):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8))
    write_image(image, tmp_path / f"a{suffix}")
    with collected_notices() as notices:
        back = read_image(tmp_path / f"a{suffix}")
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    assert len(notices) == 1 and "does not say where the image lies" in notices[0]


@pytest.mark.parametrize("source", [".nii.gz", ".nrrd", ".mha", ".hdr"])
@pytest.mark.parametrize("target", [".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr"])
def test_what_itk_converts_with_all_it_knows_of_a_file_is_read(source, target, tmp_path):
    """Its writers note what its readers found, such as ``dim[0]`` of a NIfTI file."""
    image = textured()
    image.SetMetaData("Note [1]", "c")
    sitk.WriteImage(image, str(tmp_path / f"a{source}"))
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / f"a{source}")), str(tmp_path / f"b{target}"), True)
    found = read_image(tmp_path / f"b{target}")
    assert Grid.of(found).same_as(Grid.of(image))
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))


def test_an_output_that_would_replace_an_input_is_refused(result, tmp_path, capfd):
    work = tmp_path / "work"
    shutil.copytree(result, work)
    out, moving = work / "out", work / "moving.nii.gz"
    (out / "summary.csv").write_text("name,fixed,moving\na,../fixed.nii.gz,../moving.nii.gz\n")
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    (tmp_path / "way").symlink_to("work")
    for command in (
        ["warp", out, moving, "-o", tmp_path / "way" / "moving.nii.gz"],
        ["evaluate", out / "transform.h5", "--fixed", work / "fixed.nii.gz", "-o", out / "transform.h5"],
        ["register", work / "fixed.nii.gz", out / "warped.nii.gz", "-o", tmp_path / "way" / "out"],
        ["register", work / "fixed.nii.gz", moving, "--align", out / "transform.h5", "-o", out],
        ["batch", out / "summary.csv", "-o", out],
    ):
        assert main([str(argument) for argument in command]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "is an input" in line
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before


def test_the_home_folder_is_meant_by_a_tilde(result, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moving.nii.gz").symlink_to(result / "moving.nii.gz")
    assert main(["warp", str(result / "out"), "~/moving.nii.gz", "--output=~/w.nrrd"]) == 0
    assert (tmp_path / "w.nrrd").is_file() and not (tmp_path / "~").exists()


def test_more_threads_than_processors_are_not_made():
    before = torch.get_num_threads()
    try:
        limit_threads(10**6)
        assert torch.get_num_threads() <= (os.cpu_count() or 1)
    finally:
        limit_threads(before)


@pytest.mark.skipif(sys.platform == "win32", reason="the current folder cannot be removed")
def test_a_current_folder_that_is_gone_is_one_line(tmp_path):
    script = f"import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n{_RUN}"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=_HERE, capture_output=True, text=True)
    assert (
        ended.returncode == 2 and ended.stderr == "nephi: the current folder no longer exists; change to another one\n"
    )


_RUN = "import sys\nfrom nephi.cli import main\nsys.exit(main(['warp', 'a', 'b', '-o', 'c']))"


@pytest.mark.parametrize("error", ["ImportError('libtorch.so: cannot map', name='torch')", "OSError('no libgomp')"])
def test_a_package_that_cannot_be_loaded_is_one_line(error, tmp_path):
    (tmp_path / "torch.py").write_text(f"raise {error}")
    env = {**_HERE, "PYTHONPATH": f"{tmp_path}{os.pathsep}{_HERE['PYTHONPATH']}"}
    ended = subprocess.run([sys.executable, "-c", _RUN], cwd=tmp_path, env=env, capture_output=True, text=True)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and line.startswith("nephi: ") and error.split("'")[1] in line
