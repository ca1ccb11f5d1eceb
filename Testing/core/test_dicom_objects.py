"""DICOM registration objects and derived series, judged by plastimatch, dciodvfy, pydicom and ITK."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from files import ENCODINGS, cuts, encoded, textured, write_dicom
from geometry import rotation
from nephi.cli import main
from nephi.errors import NephiError
from nephi.files.image import read_volume
from nephi.files.landmarks import read_landmarks
from nephi.files.transform import read_affine, read_transform, through
from nephi.space.affine import Affine
from nephi.space.grid import Grid

pydicom = pytest.importorskip("pydicom")
from nephi.files.dicom_objects import is_dicom, read_series, write_registration  # noqa: E402

_AFFINE = Affine(np.array([[1.03, 0.02, 0.0], [-0.01, 0.97, 0.03], [0.0, 0.01, 1.05]]), np.array([4.0, -3.0, 6.0]))
_HEADER = {"0010|0010": "Doe^Jane", "0010|0020": "7", "0020|0052": "1.2.3.4", "0010|0030": "19500101",
           "0010|0040": "F", "0020|0010": "1", "0008|0020": "20200101", "0008|0030": "120000",
           "0008|0050": "1", "0008|0090": "Roe"}  # fmt: skip


@pytest.fixture
def series(tmp_path) -> tuple[Path, Path]:
    """Folders of an oblique fixed and an axial moving series, each in its own frame of reference."""
    fixed, moving = textured(), textured((16, 15, 12), (0.9, 0.8, 2.0), (-28.0, 10.0, -204.0), seed=1)
    fixed.SetDirection(rotation(3, 25.0).ravel().tolist())
    write_dicom(fixed, tmp_path / "fixed", uid="1.2.3.10", tags=_HEADER)
    write_dicom(moving, tmp_path / "moving", uid="1.2.3.20", tags=_HEADER | {"0020|0052": "1.2.3.5"})
    return tmp_path / "fixed", tmp_path / "moving"


def field(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (z, y, x, 3) of a smooth map and the places (z, y, x, 3) of the nodes."""
    points = grid.slab_lps_mm(0, grid.shape[0]).reshape(*grid.shape, 3)
    return np.stack([3 * np.sin(points[..., (k + 1) % 3] / (9 + k)) for k in range(3)], -1), points


def inside(grid: Grid) -> np.ndarray:
    rng = np.random.default_rng(1)
    return grid.to_lps_mm(rng.uniform(0.01, 0.99, (10_000, 3)) * (np.array(grid.size) - 1))


def standard(data, points: np.ndarray) -> np.ndarray:
    """DICOM PS3.3, C.20.3.1.1, word by word: matrix before, offset of the grid at the point, matrix after."""
    (item,) = data.DeformableRegistrationSequence
    (grid,) = item.DeformableRegistrationGridSequence
    row, column = np.array(grid.ImageOrientationPatient, float).reshape(2, 3)
    step = np.stack([row, column, np.cross(row, column)], 1) * np.array(grid.GridResolution)
    index = np.linalg.solve(step, (points - np.array(grid.ImagePositionPatient, float)).T).T
    size = [int(n) for n in grid.GridDimensions]
    offsets = np.frombuffer(grid.VectorGridData, "<f4").reshape(*size[::-1], 3)
    low = np.clip(np.floor(index).astype(int), 0, np.array(size) - 2)
    total = np.zeros_like(points)
    for corner in np.ndindex(2, 2, 2):
        at = low + corner
        weight = np.prod(np.where(np.array(corner) == 1, index - low, 1 - (index - low)), axis=1)
        total += weight[:, None] * offsets[at[:, 2], at[:, 1], at[:, 0]]

    def through_matrix(name: str, x: np.ndarray) -> np.ndarray:
        m = np.array(item[name].value[0].FrameOfReferenceTransformationMatrix, float).reshape(4, 4)
        return x @ m[:3, :3].T + m[:3, 3]

    moved = through_matrix("PreDeformationMatrixRegistrationSequence", points) + total
    return through_matrix("PostDeformationMatrixRegistrationSequence", moved)


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_object_is_the_map_by_the_standard_and_when_read_again(series, tmp_path, mirrored):
    fixed, moving = series
    grid = Grid.of(textured((12, 11, 9), (1.0, 1.2, 3.0)))
    if mirrored:  # DICOM knows right-handed grids alone
        grid = Grid(grid.size, grid.spacing_mm, grid.origin_lps_mm, (1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0))
    offsets, points = field(grid)
    write_registration(tmp_path / "one.dcm", grid, offsets, _AFFINE, read_series(fixed), read_series(moving))
    whole = sitk.DisplacementFieldTransform(grid.image(_AFFINE(points + offsets) - points, vector=True))
    places = inside(grid)
    wanted = through(whole, places)
    data = pydicom.dcmread(tmp_path / "one.dcm")
    assert np.abs(standard(data, places) - wanted).max() < 0.001
    assert np.abs(through(read_transform(tmp_path / "one.dcm", 3), places) - wanted).max() < 0.001
    assert data.FrameOfReferenceUID == "1.2.3.4"  # where points start
    (item,) = data.DeformableRegistrationSequence
    assert item.SourceFrameOfReferenceUID == "1.2.3.5" and len(item.ReferencedImageSequence) == 12


def converted(series: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Grid, sitk.Transform]:
    """A transform file converted by the command line, the grid and the transform."""
    fixed, moving = series
    grid = Grid.of(textured((12, 11, 9), (1.0, 1.2, 3.0)))
    offsets, _ = field(grid)
    transform = sitk.DisplacementFieldTransform(grid.image(offsets, vector=True))
    sitk.WriteTransform(transform, str(tmp_path / "one.h5"))
    command = ["convert", str(tmp_path / "one.h5"), "--to", "dicom", "--output", str(tmp_path / "one")]
    assert main([*command, "--reference", str(fixed), "--moving", str(moving)]) == 0
    return tmp_path / "one.dcm", grid, sitk.ReadTransform(str(tmp_path / "one.h5"))


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is missing (Debian: dicom3tools)")
def test_objects_and_series_are_valid(series, tmp_path):
    fixed, moving = series
    path, _, _ = converted(series, tmp_path)
    out = tmp_path / "derived"
    command = ["warp", str(tmp_path / "one.h5"), str(moving), "--dicom", str(fixed), "--output", str(out)]
    assert main(command) == 0
    for file in (path, out / "0001.dcm"):
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert not errors, errors


@pytest.mark.skipif(not shutil.which("plastimatch"), reason="plastimatch is missing (Debian: plastimatch)")
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_plastimatch_means_the_same_by_an_object(series, tmp_path, direction):
    """Its own object of a displacement, read here, and ours of the same: both in its direction, fixed to moving."""
    fixed, moving = series if direction == "forward" else series[::-1]
    path, grid, transform = converted((fixed, moving), tmp_path)
    offsets = sitk.Cast(sitk.DisplacementFieldTransform(transform).GetDisplacementField(), sitk.sitkVectorFloat32)
    sitk.WriteImage(offsets, str(tmp_path / "vf.mha"))
    command = ["plastimatch", "xf-convert", "--input", str(tmp_path / "vf.mha"), "--output-type", "vf"]
    for flag, values in (("dim", grid.size), ("spacing", grid.spacing_mm), ("origin", grid.origin_lps_mm)):
        command += [f"--{flag}", " ".join(map(str, values))]
    command += ["--fixed-rcs", str(fixed), "--moving-rcs", str(moving), "--output-dicom", str(tmp_path / "plm")]
    subprocess.run([*command, "--filenames-without-uids"], check=True, capture_output=True)
    (theirs,) = (tmp_path / "plm").glob("dro*.dcm")
    places = inside(grid)
    wanted = through(transform, places)
    ours, others = pydicom.dcmread(path), pydicom.dcmread(theirs)
    assert np.abs(through(read_transform(theirs, 3), places) - wanted).max() < 0.05
    assert np.abs(standard(others, places) - standard(ours, places)).max() < 0.05
    assert ours.FrameOfReferenceUID == others.FrameOfReferenceUID
    source = [d.DeformableRegistrationSequence[0].SourceFrameOfReferenceUID for d in (ours, others)]
    assert source[0] == source[1]


def rigid(path: Path, frame: str, to_frame: Affine) -> None:
    """A Spatial Registration of a source into a frame of reference, written by pydicom."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = to_frame.matrix, to_frame.offset_mm
    data, items = pydicom.Dataset(), []
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.1", "1.2.9"
    data.FrameOfReferenceUID = frame
    for frame_uid, values in (("1.2.3.4", np.eye(4)), ("1.2.3.5", matrix)):
        item, registration, part = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        part.FrameOfReferenceTransformationMatrix = [f"{v:.9g}" for v in values.ravel()]
        registration.MatrixSequence = [part]
        item.FrameOfReferenceUID, item.MatrixRegistrationSequence = frame_uid, [registration]
        items.append(item)
    data.RegistrationSequence = items
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def test_a_rigid_object_goes_the_other_way_and_aligns(tmp_path, series):
    """Its matrices take points of the referenced images into its own frame: of the moving image, moving to fixed."""
    rigid(tmp_path / "rigid.dcm", read_series(series[0]).frame, _AFFINE.inverse())
    found = read_affine(str(tmp_path / "rigid.dcm"), 3)
    assert np.allclose(found.matrix, _AFFINE.matrix, atol=1e-6) and np.allclose(
        found.offset_mm, _AFFINE.offset_mm, atol=1e-4
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["deformable", "rigid"])
def test_an_object_is_read_in_every_encoding_and_refused_wherever_it_is_cut(series, tmp_path, kind, encoding):
    fixed, moving = (read_series(folder) for folder in series)
    path = tmp_path / "one.dcm"
    if kind == "rigid":
        rigid(path, fixed.frame, _AFFINE.inverse())
    else:
        grid = Grid.of(textured((3, 4, 2), (1.0, 1.2, 3.0)))
        write_registration(path, grid, field(grid)[0], _AFFINE, fixed, moving)
    places = np.random.default_rng(1).uniform(-40, 40, (9, 3))
    wanted = through(read_transform(path, 3), places)
    whole = encoded(path, encoding)
    np.testing.assert_allclose(through(read_transform(path, 3), places), wanted, atol=1e-6)
    refused = 0
    for end in cuts(whole):
        path.write_bytes(whole[:end])
        try:
            found = through(read_transform(path, 3), places)
        except NephiError as error:
            assert "one.dcm" in str(error) and "\n" not in str(error)
            refused += 1
        else:  # cut exactly between elements that come after the map
            np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert refused >= 20


def test_a_warped_series_lies_on_the_fixed_one_and_says_whence_it_comes(series, tmp_path):
    fixed, moving = series
    path, _, transform = converted(series, tmp_path)
    out = tmp_path / "derived"
    assert main(["warp", str(path), str(moving), "--dicom", str(fixed), "--output", str(out)]) == 0
    image, grid = read_volume(out, "derived", ()), Grid.of(read_volume(fixed, "fixed", ()))
    assert Grid.of(image).same_as(grid)
    moving_image = read_volume(moving, "moving", ())
    low = float(sitk.GetArrayViewFromImage(moving_image).min())
    wanted = sitk.GetArrayFromImage(grid.resample(moving_image, transform, outside=low, pixel=sitk.sitkFloat64))
    assert np.abs(sitk.GetArrayFromImage(image) - wanted).max() <= 1.0  # stored as whole numbers
    head = pydicom.dcmread(out / "0003.dcm")
    assert head.ImageType[:2] == ["DERIVED", "SECONDARY"] and head.FrameOfReferenceUID == "1.2.3.4"
    assert head.PatientID == "7" and len(head.SourceImageSequence) == 12
    assert len({pydicom.dcmread(f).SOPInstanceUID for f in out.glob("*.dcm")}) == 10


@pytest.mark.parametrize("damage", ["matrix", "not finite", "offset", "grid", "spacing", "big-endian", "other"])
def test_a_damaged_object_is_one_line(series, tmp_path, damage):
    path, _, _ = converted(series, tmp_path)
    data = pydicom.dcmread(path)
    (item,) = data.DeformableRegistrationSequence
    grid = item.DeformableRegistrationGridSequence[0]
    if damage == "not finite":
        item.PostDeformationMatrixRegistrationSequence[0].FrameOfReferenceTransformationMatrix[3] = "NaN"
    elif damage == "offset":
        grid.VectorGridData = grid.VectorGridData[:40] + np.float32(np.inf).tobytes() + grid.VectorGridData[44:]
    elif damage == "spacing":
        grid.GridResolution = [1.0, float("nan"), 1.0]
    elif damage == "matrix":
        item.PostDeformationMatrixRegistrationSequence[0].FrameOfReferenceTransformationMatrix = ["1"] * 16
    elif damage == "grid":
        grid.GridDimensions = [12, 11, 8]
    elif damage == "other":
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    if damage == "big-endian":
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=False, enforce_file_format=True)
    else:
        data.save_as(path)
    with pytest.raises(NephiError) as caught:
        read_transform(path, 3)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_missing_is_one_line(series, tmp_path, capsys):
    fixed, moving = series
    converted(series, tmp_path)
    command = ["convert", str(tmp_path / "one.h5"), "--to", "dicom", "--output", str(tmp_path / "two")]
    assert main([*command, "--reference", str(fixed)]) == 2
    assert main([*command, "--reference", str(fixed), "--moving", str(tmp_path)]) == 2
    assert main(["warp", str(tmp_path / "one.h5"), str(moving), "--output", str(tmp_path / "x.nii.gz")]) == 2
    assert (
        main(["warp", str(tmp_path / "one.dcm"), str(moving), "--inverse", "--output", str(tmp_path / "x.nrrd")]) == 2
    )
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("nephi: ") for line in errors)
    assert not list(tmp_path.glob("two*")) and not list(tmp_path.glob("x.*"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_no_dicom_file_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "points.txt")
    assert not is_dicom(tmp_path / "points.txt") and not is_dicom(tmp_path) and not is_dicom(tmp_path / "absent")
    with pytest.raises(NephiError, match="pipe"):
        read_landmarks(tmp_path / "points.txt")
