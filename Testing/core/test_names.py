"""Names that files may have on POSIX systems, but libraries cannot take, are one line and no crash."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from files import textured, write_dicom
from nephi.cli import main
from nephi.errors import NephiError
from nephi.files.image import read_image, write_image
from nephi.files.landmarks import write_landmarks
from nephi.files.transform import read_transform, write_transform
from nephi.files.writing import output_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names that are any bytes")
BAD = os.fsdecode(b"m\xff")


@pytest.fixture
def folder(tmp_path):
    write_dicom(textured(), tmp_path / "series")
    for suffix in (".nii", ".nrrd", ".mha", ".vtk"):
        sitk.WriteImage(textured(), str(tmp_path / f"a{suffix}"))
    for suffix in (".tfm", ".h5", ".mat"):
        sitk.WriteTransform(sitk.TranslationTransform(3), str(tmp_path / f"a{suffix}"))
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("a.", f"{BAD}."))
    return tmp_path


def test_what_is_read(folder):
    """SimpleITK ended the process without a word."""
    for suffix in (".nii", ".nrrd", ".mha", ".vtk"):
        with pytest.raises(NephiError, match="udcff.* is not UTF-8"):
            read_image(folder / f"{BAD}{suffix}")
    for suffix in (".tfm", ".h5", ".mat"):
        with pytest.raises(NephiError, match="udcff.* is not UTF-8"):
            read_transform(folder / f"{BAD}{suffix}", 3)
    (folder / "series" / "0003.dcm").rename(folder / "series" / f"{BAD}.dcm")
    with pytest.raises(NephiError, match="udcff.* is not UTF-8"):
        read_image(folder / "series")


@pytest.mark.parametrize("place", [f"{BAD}", f"{BAD}/a"])
def test_what_is_written(place, tmp_path):
    (tmp_path / BAD).mkdir()
    held = list(tmp_path.rglob("*"))
    with pytest.raises(NephiError, match="udcff.* is not UTF-8"):
        write_image(textured(), tmp_path / f"{place}.nrrd")
    with pytest.raises(NephiError, match="udcff.* is not UTF-8"):
        write_transform(sitk.TranslationTransform(3), tmp_path / f"{place}.h5")
    with pytest.raises(NephiError, match="udcff.* is not UTF-8"):
        write_landmarks(tmp_path / f"{place}.csv", np.zeros((1, 3)))
    with pytest.raises(NephiError, match="udcff.* is not UTF-8"), output_folder(tmp_path / place):
        pass
    assert list(tmp_path.rglob("*")) == held


@pytest.mark.parametrize(
    "arguments",
    [
        ["warp", "{long}", "a.nii.gz", "--output", "b.nii.gz"],
        ["evaluate", "a.tfm", "--fixed", "a.nii.gz", "--output", "{long}.json"],
        ["jacobian", "a", "--output", "{long}.nii.gz"],
        ["register", "{long}", "a.nii.gz", "--output", "b"],
        ["batch", "{long}", "--output", "b"],
        ["convert", "{long}", "--to", "ants", "--output", "b"],
        ["register", "a.nii.gz", "a.nii.gz", "--align", "{long}", "--output", "b"],
        ["register", "a.nii.gz", "a.nii.gz", "--settings", "{long}", "--output", "b"],
    ],
)
def test_a_name_that_is_too_long_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sitk.WriteImage(textured(), "a.nii.gz")
    assert main([word.replace("{long}", 300 * "x") for word in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("nephi: ")
