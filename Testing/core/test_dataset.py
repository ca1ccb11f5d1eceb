"""Lists of pairs to train on: what is read, what is left out and named, what is kept; and the shapes."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from files import textured, write_dicom
from nephi import journal
from nephi.both import Both
from nephi.errors import NephiError
from nephi.files.cases import read_pairs
from nephi.files.landmarks import read_landmarks, write_landmarks
from nephi.images.align import align
from nephi.learning import dataset
from nephi.learning.dataset import Pairs, Shapes, open_data, prepare
from nephi.learning.settings import ModelSettings
from nephi.measure.quality import dice
from nephi.settings import Features, MindSettings

FLAT = ModelSettings(
    dimension=2,
    features=Features(3.0, 1, 0.0),
    similarity=MindSettings(mask_margin_mm=0.0),
    cube_margin_mm=8.0,
)
FILES = {
    "fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "fixed_mask": "fixed_mask.nii.gz",
    "moving_mask": "moving_mask.nii.gz", "fixed_landmarks": "fixed_landmarks.csv",
    "moving_landmarks": "moving_landmarks.csv", "fixed_labels": "fixed_labels.nii.gz",
    "moving_labels": "moving_labels.nii.gz", "fixed_points": "fixed_points.csv", "moving_points": "moving_points.csv",
}  # fmt: skip


@pytest.fixture
def study(tmp_path, phantom_2d):
    """The 2D phantom with everything that training reads; a function writes a list of pairs beside it."""
    phantom_2d.write(tmp_path)
    for role in ("fixed", "moving"):  # two labels: the lungs' left and right half
        mask = getattr(phantom_2d, f"{role}_mask")
        array = sitk.GetArrayFromImage(mask)
        array[:, array.shape[1] // 2 :] *= 2
        labels = sitk.GetImageFromArray(array)
        labels.CopyInformation(mask)
        sitk.WriteImage(labels, str(tmp_path / f"{role}_labels.nii.gz"))
    fixed = phantom_2d.fixed_landmarks_lps_mm[:30] + 4
    write_landmarks(tmp_path / "fixed_points.csv", fixed)
    write_landmarks(tmp_path / "moving_points.csv", phantom_2d.forward(fixed))
    write_landmarks(tmp_path / "few.csv", fixed[:3])
    (tmp_path / "garbage.nii.gz").write_bytes(b"no image" * 99)

    def listed(**pairs: dict[str, str]) -> Path:
        """A pair of this name each, with these files in the place of the good ones ("" for none)."""
        rows = [["name", *FILES]]
        rows += [[name, *({**FILES, **changes}).values()] for name, changes in pairs.items()]
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join(",".join(row) for row in rows) + "\n", encoding="utf-8")
        return path

    return listed


def silent(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def prepared(monkeypatch):
    """The names of the pairs that were prepared, as it goes."""
    names = []

    def spy(pair, settings):
        names.append(pair.name)
        return prepare(pair, settings)

    monkeypatch.setattr(dataset, "prepare", spy)
    return names


# ---- what is left out ----------------------------------------------------------------------------------

_BROKEN = {
    "absent": ({"moving": "absent.nii.gz"}, ["moving image", "absent.nii.gz"]),
    "garbage": ({"fixed": "garbage.nii.gz"}, ["fixed image", "cannot read"]),
    "nothing": ({"moving": ""}, ["no moving image is given"]),
    "nomask": ({"fixed_mask": "moving.nii.gz"}, ["fixed mask", "grid"]),
    "landmarks": ({"moving_landmarks": "few.csv"}, ["fixed and 3 moving landmarks", "row by row"]),
    "points": ({"fixed_points": "few.csv"}, ["3 fixed and 30 moving points", "row by row"]),
    "nopoints": ({"moving_points": "no.csv"}, ["no.csv"]),
    "labels": ({"fixed_labels": "fixed.nii.gz"}, ["fixed labels", "not a label map"]),
}


@pytest.mark.parametrize("case", _BROKEN)
def test_a_broken_pair_is_named_and_left_out(case, study, tmp_path):
    changes, words = _BROKEN[case]
    told = []
    data = Pairs(study(good={}, **{case: changes}, fine={}), FLAT, tmp_path / "cache", told.append)
    assert [data[k].name for k in range(len(data))] == ["good", "fine"]
    assert len(told) == 1 and told[0].startswith(f"{case} is skipped: ") and "\n" not in told[0]
    for word in words:
        assert word in told[0], told


def test_a_cache_without_room_is_no_fault_of_the_pairs(study, tmp_path, monkeypatch):
    """Else the training would go on with fewer pairs, or name another reason."""

    def full(operation, path):
        if operation == "write" and "second" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(journal, "watch", full)
    with pytest.raises(NephiError, match="No space left on device"):
        Pairs(study(first={}, second={}), FLAT, tmp_path / "cache", print)


def test_a_list_of_broken_pairs_is_refused(study, tmp_path):
    told = []
    with pytest.raises(NephiError, match="none of its 2 pairs"):
        Pairs(study(a={"fixed": "no.nii.gz"}, b={"moving": ""}), FLAT, tmp_path / "cache", told.append)
    assert len(told) == 2


def test_images_of_another_dimension_are_named(study, tmp_path):
    told = []
    with pytest.raises(NephiError):
        Pairs(study(flat={}), replace(FLAT, dimension=3), tmp_path / "cache", told.append)
    assert "2D" in told[0] and "the model 3D" in told[0]


def test_a_list_that_is_none(tmp_path):
    with pytest.raises(NephiError, match=r"absent\.csv"):
        open_data(str(tmp_path / "absent.csv"), FLAT, tmp_path / "cache", False)
    (tmp_path / "columns.csv").write_text("name,fixed,moving,fixed_lables\na,b,c,d\n")
    with pytest.raises(NephiError, match="check fixed_lables"):
        open_data(str(tmp_path / "columns.csv"), FLAT, tmp_path / "cache", False)


# ---- what is read --------------------------------------------------------------------------------------


@pytest.fixture
def sample(study, tmp_path):
    return Pairs(study(pair={}), FLAT, tmp_path / "cache", silent)[0]


def test_points_and_landmarks_are_those_of_the_files(sample, phantom_2d, tmp_path):
    images = phantom_2d.fixed, phantom_2d.moving
    start = align(Both(*images), Both(phantom_2d.fixed_mask, phantom_2d.moving_mask), "auto")
    affine, how = start.affine, start.method
    assert how == "moments"
    for mine, name in ((sample.known, "points"), (sample.landmarks, "landmarks")):
        a, b = (read_landmarks(tmp_path / f"{role}_{name}.csv", i) for role, i in zip(("fixed", "moving"), images))  # noqa: B905
        assert mine[0].shape == mine[1].shape == a.shape
        # what the alignment leaves, in mm of the moving image
        left = (mine[0] - mine[1]) @ sample.to_moving_mm.T
        np.testing.assert_allclose(left.numpy(), affine(a) - b, atol=1e-3)


def test_what_corresponds_looks_alike(sample):
    here, there = (sample.at(i.float(), p) for i, p in zip(sample.intensities, sample.landmarks, strict=True))
    wrong = sample.at(sample.intensities[1].float(), sample.landmarks[1].roll(5, 0))
    assert (here - there).abs().mean() < 0.7 * (here - wrong).abs().mean()


def test_labels_lie_on_the_sample_s_grid(sample):
    for labels, mask, image in zip(sample.labels, sample.masks, sample.intensities, strict=True):
        assert labels.shape == mask.shape == image.shape
        assert labels.unique().tolist() == [0, 1, 2]
        assert dice(labels.numpy() > 0, mask.numpy()) > 0.97
        assert np.argwhere(labels.numpy() == 1)[:, 1].mean() < np.argwhere(labels.numpy() == 2)[:, 1].mean()


def test_all_but_the_images_may_be_missing(study, tmp_path):
    only = {role: "" for role in FILES if role not in ("fixed", "moving")}
    sample = Pairs(study(plain=only), FLAT, tmp_path / "cache", silent)[0]
    for name in ("masks", "distances", "known", "landmarks", "labels"):
        assert getattr(sample, name) is None, name
    assert sample.images(20).shape == (2, 20, 20)
    one_side = Pairs(study(half={**only, "fixed_landmarks": FILES["fixed_landmarks"]}), FLAT, tmp_path / "c", silent)[0]
    assert one_side.landmarks is None


# ---- what is kept --------------------------------------------------------------------------------------


def test_the_kept_pair_is_the_prepared_one(study, tmp_path):
    path = study(pair={})
    kept, made = Pairs(path, FLAT, tmp_path / "cache", silent)[0], prepare(read_pairs(path)[0], FLAT)
    for name in ("known", "landmarks", "labels", "masks", "views"):
        for a, b in zip(getattr(kept, name), getattr(made, name), strict=True):
            for x, y in zip(a, b, strict=True):
                assert torch.equal(x, y), name
    for name in ("half_extents_cube", "lower_cube", "to_moving_mm"):
        assert torch.equal(getattr(kept, name), getattr(made, name))
    assert kept.spacing_cube == made.spacing_cube and kept.similarity == made.similarity
    for a, b in zip(kept.intensities, made.intensities, strict=True):
        assert a.dtype == torch.uint8
        assert (a.float() / 255 - b).abs().max() <= 0.5 / 255 + 1e-6
    assert (kept.images(30) - made.images(30)).abs().max() < 0.003
    difference = kept.volumes[0].volume.int() - made.volumes[0].volume.int()
    assert difference.abs().float().mean() < 3  # of 255


def test_a_pair_is_prepared_once(study, tmp_path, prepared):
    path, cache = study(one={}, two={"moving_points": "", "fixed_points": ""}), tmp_path / "cache"
    first = Pairs(path, FLAT, cache, silent)
    assert prepared == ["one", "two"] and len(list(cache.iterdir())) == 2
    again = Pairs(path, FLAT, cache, silent)
    assert prepared == ["one", "two"] and again.files == first.files
    again[0], again[1]
    # what decides how it is prepared makes it new, what does not leaves it
    Pairs(path, replace(FLAT, encoder=replace(FLAT.encoder, hidden=7)), cache, silent)
    assert len(prepared) == 2
    for other in (replace(FLAT, cube_margin_mm=20.0), replace(FLAT, align="none")):
        Pairs(path, other, cache, silent)
    assert prepared == ["one", "two"] * 3


@pytest.mark.parametrize("role", ["moving", "fixed_mask", "moving_labels", "fixed_points"])
def test_a_file_that_changes_is_prepared_anew(role, study, tmp_path, prepared):
    path = study(pair={})
    before = Pairs(path, FLAT, tmp_path / "cache", silent).files
    target = tmp_path / FILES[role]
    stats = target.stat()
    os.utime(target, ns=(stats.st_atime_ns, stats.st_mtime_ns + 10**9))
    after = Pairs(path, FLAT, tmp_path / "cache", silent).files
    assert prepared == ["pair", "pair"] and after != before


def test_a_pair_names_its_series(tmp_path):
    small, large = "1.2.3.4.1", "1.2.3.4.2"
    write_dicom(textured(seed=1), tmp_path / "scan", range(8), uid=small)
    write_dicom(textured(), tmp_path / "scan", uid=large, first=101)
    settings = replace(FLAT, dimension=3, align="none", cube_margin_mm=0.0)
    sides = []
    for uid in (small, large):
        (path := tmp_path / "pairs.csv").write_text(f"name,fixed,moving,series\na,scan,scan,{uid}\n")
        pairs = Pairs(path, settings, tmp_path / "cache", silent)
        sides.append(pairs[0].half_extents_cube[2] / pairs[0].half_extents_cube[0] * 14 * 0.8 / 2.5)
    assert sides == pytest.approx([8, 10], rel=0.15) and len(list((tmp_path / "cache").iterdir())) == 2


def test_a_broken_pair_is_not_kept(study, tmp_path):
    told = []
    path = study(good={}, late={"moving": "late.nii.gz"})
    assert len(Pairs(path, FLAT, tmp_path / "cache", told.append)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "late.nii.gz").write_bytes((tmp_path / "moving.nii.gz").read_bytes())
    assert len(Pairs(path, FLAT, tmp_path / "cache", silent)) == 2  # it is there now


# ---- shapes --------------------------------------------------------------------------------------------


def test_shapes_are_a_list_of_pairs(monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "TRAINING", (5, 1))
    monkeypatch.setattr(dataset, "VALIDATION", (3, 2))
    training, checks = (open_data("shapes-hollow", FLAT, tmp_path, validation) for validation in (False, True))
    solid = open_data("shapes-solid", FLAT, tmp_path, False)
    assert isinstance(solid, Shapes) and (len(training), len(checks)) == (5, 3)
    assert not torch.equal(training[0].intensities[0], checks[0].intensities[0])
    assert not torch.equal(training[0].intensities[0], solid[0].intensities[0])
    sample = solid[4]
    for image, label in zip(sample.intensities, sample.labels, strict=True):
        assert torch.equal((label * 255).round().to(torch.uint8), image)
    ends = sample.lower_cube + sample.spacing_cube * (torch.tensor(sample.intensities[0].shape) - 1)
    torch.testing.assert_close(ends, sample.half_extents_cube)
    with pytest.raises(NephiError, match="dimension to 2"):
        open_data("shapes-solid", ModelSettings(), tmp_path, False)
