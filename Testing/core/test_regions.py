"""Regions such as lobes: read with their names from every kind of file, and measured on both sides."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.cli import main
from nephi.errors import NephiError, collected_notices
from nephi.files.masks import read_mask
from nephi.files.regions import read_regions
from nephi.files.segments import matched, region_names, with_names
from nephi.report.regions import measured_regions
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

GRID = Grid((20, 18, 16), (1.5, 1.5, 2.0), (-10.0, 5.0, -40.0), tuple(np.eye(3).ravel()))
IMAGE = GRID.image(np.zeros(GRID.shape, np.uint8))
NAMES = {1: "right upper lobe", 4: "left <upper> lobe"}
_TABLE = """<?xml version="1.0" encoding="UTF-8"?> <CaretExtension> <VolumeInformation Index="0"> <LabelTable>
<Label Key="0" Red="1" Alpha="0"><![CDATA[???]]></Label>
<Label Key="1" Red="1.0" Green="0" Blue="0" Alpha="1"><![CDATA[right upper lobe]]></Label>
<Label Key="4" Red="0" Green="0.5" Blue="0" Alpha="1">left &lt;upper&gt; lobe</Label>
</LabelTable></VolumeInformation></CaretExtension>"""


def halves(first: int = 1, second: int = 4) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint16)
    labels[3:13, 3:15, 2:9], labels[3:13, 3:15, 11:18] = first, second
    return labels


def write_with_table(path: Path) -> None:
    """As TotalSegmentator's option --ml writes it: names in an extension between the header and the voxels."""
    plain = path.with_name("plain.nii")
    sitk.WriteImage(GRID.image(halves()), str(plain))
    raw = plain.read_bytes()
    text = _TABLE.encode()
    size = -(-(len(text) + 8) // 16) * 16
    extension = struct.pack("<ii", size, 0) + text.ljust(size - 8, b"\0")
    header = bytearray(raw[:348])
    header[108:112] = struct.pack("<f", 352 + size)
    path.write_bytes(bytes(header) + b"\1\0\0\0" + extension + raw[352:])


def layered(*parts: np.ndarray) -> sitk.Image:
    """As Slicer writes segments that overlap: each in a layer of its own."""
    image = sitk.Compose([GRID.image(part.astype(np.uint8)) for part in parts])
    for i in range(len(parts)):
        for key, value in {"LabelValue": "1", "Name": f"part {i}", "Layer": str(i)}.items():
            image.SetMetaData(f"Segment{i}_{key}", value)
    return image


@pytest.mark.parametrize("kind", [".seg.nrrd", ".nii", "plain"])
def test_regions_keep_the_names_that_the_file_has(tmp_path, kind):
    path = tmp_path / f"lobes{kind if kind != 'plain' else '.nii.gz'}"
    if kind == ".nii":
        write_with_table(path)
    else:
        sitk.WriteImage(with_names(GRID.image(halves()), NAMES if kind == ".seg.nrrd" else {}), str(path))
    found = read_regions(path, IMAGE)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), halves())
    assert region_names(found) == ({} if kind == "plain" else NAMES)


def test_segments_in_layers_are_regions_as_long_as_they_lie_apart(tmp_path):
    sitk.WriteImage(layered(halves() == 1, halves() == 4), str(tmp_path / "apart.seg.nrrd"))
    found = read_regions(tmp_path / "apart.seg.nrrd", IMAGE)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), halves(1, 2))
    assert region_names(found) == {1: "part 0", 2: "part 1"}
    sitk.WriteImage(layered(halves() > 0, halves() == 4), str(tmp_path / "both.seg.nrrd"))
    with pytest.raises(NephiError, match="lobes: part 0 and part 1 overlap"):
        read_regions(tmp_path / "both.seg.nrrd", IMAGE, "lobes")
    with collected_notices():  # a mask is the union of what lies apart
        mask = read_mask(tmp_path / "apart.seg.nrrd", IMAGE, "mask")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), halves() > 0)


def test_the_same_names_are_the_same_regions_whatever_their_numbers():
    fixed = with_names(GRID.image(halves()), NAMES)
    moving = with_names(GRID.image(halves(4, 7)), {7: NAMES[1], 4: "lesion"})
    found = matched(fixed, moving, "regions")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), halves(8, 1))
    assert region_names(found) == {1: NAMES[1], 8: "lesion"}
    plain = GRID.image(halves(4, 9))  # by number, where one side has no names
    assert matched(fixed, plain, "regions") is plain
    for other in (GRID.image(halves(2, 3)), with_names(GRID.image(halves()), {1: "liver", 4: "spleen"})):
        with pytest.raises(NephiError, match=r"regions: .* have no (label|name) in common"):
            matched(fixed, other, "regions")
    with pytest.raises(NephiError, match="same name"):
        matched(fixed, with_names(GRID.image(halves()), {1: "a", 4: "a"}), "regions")


@pytest.mark.slow
def test_lobes_of_both_scans_are_measured_by_name(tmp_path, capsys):
    """By the command: the phantom's lungs, of the moving scan under other numbers; sizes and overlap are known."""
    phantom = make_phantom(size=(48, 44, 44), spacing_mm=6.5)
    phantom.write(tmp_path)
    numbers = {"fixed": (1, 2), "moving": (6, 5)}
    for side, (right, left) in numbers.items():
        mask = getattr(phantom, f"{side}_mask")
        inside = sitk.GetArrayFromImage(mask) > 0
        sides = np.where(np.arange(inside.shape[2]) < inside.shape[2] // 2, right, left) * inside
        labels = Grid.of(mask).image(sides.astype(np.uint16))
        named = with_names(labels, {right: "Right lung", left: "Left lung"})
        sitk.WriteImage(named, str(tmp_path / f"{side}_lungs.seg.nrrd"))
    command = ["register", *(str(tmp_path / f"{side}.nii.gz") for side in numbers), "--output", str(tmp_path / "out")]
    command += ["--fixed-mask", str(tmp_path / "fixed_mask.nii.gz"), "--moving-mask"]
    command += [str(tmp_path / "moving_mask.nii.gz"), "--regions", str(tmp_path / "fixed_lungs.seg.nrrd")]
    command += ["--moving-regions", str(tmp_path / "moving_lungs.seg.nrrd"), "--outputs", "report"]
    assert main([*command, "--preset", "fast", "--iterations", "40", "--progress", "none"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["regions"]}
    assert list(rows) == ["Right lung", "Left lung"] and [row["label"] for row in rows.values()] == [1, 2]
    total = {key: sum(row[key] for row in rows.values()) for key in ("volume_fixed_ml", "volume_moving_ml")}
    assert total["volume_fixed_ml"] == pytest.approx(report["volume"]["fixed_ml"], rel=1e-6)
    assert total["volume_moving_ml"] == pytest.approx(report["volume"]["moving_ml"], rel=1e-6)
    for row in rows.values():
        assert row["dice"] > 0.9 and row["dice"] > row["before_dice"] and row["surface_mm"] < 6.5
        assert row["volume_moving_ml"] == pytest.approx(row["moving_region_ml"], rel=0.1)
        assert row["air_moving_ml"] > row["air_fixed_ml"] and row["change_percent"] > 0
        assert abs(row["ventilation_hu"]) < 0.2  # the phantom's lungs become little darker as they expand
    assert "moving_regions" in report["provenance"]["files"]
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Right lung" in html and "ventilation by density" in html
    printed = capsys.readouterr().out
    assert "region       Right lung: " in printed and ", Dice 0.9" in printed


def test_a_region_that_the_other_scan_lacks_is_not_said_to_miss_it():
    labels, still = GRID.image(halves()), sitk.TranslationTransform(3)
    alone = GRID.image(np.where(halves() == 4, 4, 0).astype(np.uint16))
    jacobian, everywhere = np.full(GRID.shape, 1.2), tuple(slice(0, n) for n in GRID.shape)
    affine = Affine(np.eye(3), np.zeros(3))
    first, second = measured_regions(Both(labels, alone), jacobian, everywhere, None, still, affine)
    assert first["moving_region_ml"] == 0 and first["dice"] is None and first["change_percent"] == pytest.approx(20)
    assert second["dice"] == 1 and second["surface_mm"] == 0


def test_moving_regions_alone_are_one_line(tmp_path, capsys):
    phantom = make_phantom(size=(32, 28, 28), spacing_mm=10.0)
    phantom.write(tmp_path)
    command = ["register", str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"), "--output"]
    command += [str(tmp_path / "out"), "--moving-regions", str(tmp_path / "moving_mask.nii.gz")]
    assert main(command) == 2
    assert "--moving-regions needs --regions" in capsys.readouterr().err
