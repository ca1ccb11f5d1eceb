"""The command-line module: its XML describes what the script takes, and the script does what the XML says."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.files.landmarks import write_landmarks
from nephi.settings import ALIGNMENTS, PRESETS
from nephi.synthetic.phantom import make_phantom
from places import CLI

SCRIPT, XML = CLI / "NePhiRegistrationCLI.py", CLI / "NePhiRegistrationCLI.xml"
_EXECUTABLE = ["category", "title", "description", "version", "documentation-url", "license", "contributor",
               "acknowledgements", "parameters"]  # fmt: skip
_VALUES = {"integer", "double", "string", "boolean", "string-enumeration"}
_FILES = {"image", "transform", "pointfile", "file"}
_PARTS = {"name", "label", "description", "longflag", "index", "channel", "default", "element", "constraints"}


def load():
    spec = importlib.util.spec_from_file_location("NePhiRegistrationCLI", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters() -> list[ElementTree.Element]:
    groups = ElementTree.parse(XML).getroot().findall("parameters")
    return [p for group in groups for p in group if p.tag not in ("label", "description")]


def test_xml_has_the_elements_of_the_execution_model():
    root = ElementTree.parse(XML).getroot()
    assert root.tag == "executable"
    assert list(dict.fromkeys(child.tag for child in root)) == _EXECUTABLE
    assert all((root.findtext(tag) or "").strip() for tag in _EXECUTABLE[:-1])
    for group in root.findall("parameters"):
        assert [child.tag for child in group][:2] == ["label", "description"]
        assert set(group.attrib) <= {"advanced"}


@pytest.mark.parametrize("p", parameters(), ids=lambda p: p.findtext("name"))
def test_every_parameter_is_complete(p):
    assert p.tag in _VALUES | _FILES
    assert {child.tag for child in p} <= _PARTS
    assert re.fullmatch(r"[A-Za-z]\w*", p.findtext("name"))
    assert p.findtext("label").strip() and p.findtext("description").strip()
    channel, flag, index = (p.findtext(tag) for tag in ("channel", "longflag", "index"))
    if p.tag in _FILES:
        assert channel in ("input", "output")
        assert (flag is None) != (index is None)  # one or the other says how it is given
    else:
        assert (flag is None) == (channel == "output")  # simple outputs come in the file of return parameters
        assert p.findtext("default") is not None
    assert flag in (None, p.findtext("name"))
    if p.tag == "string-enumeration":
        assert p.findtext("default") in [e.text for e in p.findall("element")]
    if p.tag == "transform":
        assert p.get("type") in ("linear", "nonlinear", "bspline") and p.get("fileExtensions") == ".h5"
    if p.tag == "image":
        assert p.get("type") in (None, "label")
    if p.tag == "pointfile":
        assert p.get("coordinateSystem") == "lps" and p.get("fileExtensions") == ".mrk.json"
    names = {q.findtext("name") for q in parameters()}
    assert p.get("reference") is None or p.get("reference") in names


def test_names_and_positions_are_given_once():
    names = [p.findtext("name") for p in parameters()]
    assert len(names) == len(set(names))
    assert sorted(int(p.findtext("index")) for p in parameters() if p.find("index") is not None) == [0, 1]


def test_choices_are_those_of_the_engine():
    found = {p.findtext("name"): [e.text for e in p.findall("element")] for p in parameters()}
    assert found["preset"] == list(PRESETS) and found["align"] == list(ALIGNMENTS)


def test_the_script_takes_every_parameter_of_the_xml_and_no_other():
    module = load()
    known = {a.dest for a in module.parser()._actions} - {"help", "returnparameterfile"}
    assert known == {
        p.findtext("name") for p in parameters() if p.find("longflag") is not None or p.find("index") is not None
    }
    simple = {p.findtext("name") for p in parameters() if p.tag not in _FILES and p.findtext("channel") == "output"}
    means = {f"{name}_mm": {"mean": 0.5} for name in ("inverse_consistency", "fields_disagreement")}
    lines = module.return_parameters({"folds": {"count": 3}, **means}).splitlines()
    assert {line.split(" = ")[0] for line in lines} == simple
    assert "landmarkErrorMm = -1" in lines and "foldedVoxels = 3" in lines


def test_xml_is_printed_on_request():
    out = subprocess.run([sys.executable, str(SCRIPT), "--xml"], capture_output=True, text=True, check=True).stdout
    assert out == XML.read_text(encoding="utf-8")


def test_the_script_loads_nothing_heavy_before_it_is_run():
    imported = {
        alias.name.partition(".")[0]
        for node in ast.parse(SCRIPT.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in ([ast.alias(node.module)] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert imported <= set(sys.stdlib_module_names)


def test_the_engine_is_found_beside_the_module(tmp_path, monkeypatch):
    """In the package and in the source tree, where nephi is not installed."""
    module = load()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for here, engine in (
        ("lib/cli-modules", "lib/qt-scripted-modules"),
        ("src/NePhiRegistrationCLI", "src/NePhiRegistration"),
    ):
        (tmp_path / engine / "nephi").mkdir(parents=True)
        monkeypatch.setattr(module, "HERE", tmp_path / here)
        monkeypatch.setattr(sys, "path", [])
        module.find_engine()
        assert sys.path == [str(tmp_path / engine)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A small 3D phantom on disk, its images as .nrrd and its landmarks as .mrk.json, as Slicer hands them over."""
    folder = tmp_path_factory.mktemp("pair")
    phantom = make_phantom((36, 32, 32), 8.5)
    phantom.write(folder)
    for name in ("fixed", "moving", "fixed_mask", "moving_mask"):
        sitk.WriteImage(sitk.ReadImage(str(folder / f"{name}.nii.gz")), str(folder / f"{name}.nrrd"))
    for name in ("fixed", "moving"):
        write_landmarks(folder / f"{name}.mrk.json", getattr(phantom, f"{name}_landmarks_lps_mm"))
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=False)


def test_a_registration_as_slicer_calls_it(pair, tmp_path):
    wanted = {
        "outputTransform": "forward.h5", "inverseTransform": "inverse.h5", "warpedVolume": "warped.nrrd",
        "jacobianVolume": "jacobian.nrrd", "report": "report.json", "returnparameterfile": "numbers.params",
    }  # fmt: skip
    flags = [part for name, file in wanted.items() for part in (f"--{name}", str(tmp_path / file))]
    masks = ["--fixedMask", "fixed_mask.nrrd", "--movingMask", "moving_mask.nrrd", "--regions", "fixed_mask.nrrd"]
    points = ["--fixedLandmarks", "fixed.mrk.json", "--movingLandmarks", "moving.mrk.json"]
    options = ["--preset", "fast", "--align", "moments", "--iterations", "30", "--seed", "1", "--device", "cpu"]
    done = run(pair, *masks, *points, *options, *flags, "fixed.nrrd", "moving.nrrd")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # progress in Slicer's tags, rising to 1
    fractions = [float(v) for v in re.findall(r"<filter-progress>(.*?)</filter-progress>", done.stdout)]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(fractions) > 5
    assert "<filter-start>" in done.stdout and "<filter-comment>optimising</filter-comment>" in done.stdout
    assert all(line.startswith("<filter-") for line in done.stdout.splitlines())
    # the files are the result
    assert {p.name for p in tmp_path.iterdir()} == set(wanted.values())
    fixed, moving, warped = (
        sitk.ReadImage(str(p)) for p in (pair / "fixed.nrrd", pair / "moving.nrrd", tmp_path / "warped.nrrd")
    )
    transform = sitk.ReadTransform(str(tmp_path / "forward.h5"))
    lowest = float(sitk.GetArrayViewFromImage(moving).min())
    again = sitk.Resample(sitk.Cast(moving, sitk.sitkFloat32), fixed, transform, sitk.sitkLinear, lowest)
    # whole numbers are rounded to the nearest; places may differ by a small part of a voxel
    np.testing.assert_allclose(sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(again), atol=0.6)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["fit"]["iterations"] == 30 and report["settings"]["fit"]["seed"] == 1
    assert report["tre_mm"]["after"]["mean"] < 0.5 * report["tre_mm"]["unaligned"]["mean"]
    assert report["regions"][0]["label"] == 1
    numbers = dict(line.split(" = ") for line in (tmp_path / "numbers.params").read_text().splitlines())
    assert float(numbers["landmarkErrorMm"]) == pytest.approx(report["tre_mm"]["after"]["mean"])
    assert int(numbers["foldedVoxels"]) == report["folds"]["count"]
    jacobian = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "jacobian.nrrd")))
    inside = sitk.GetArrayFromImage(sitk.ReadImage(str(pair / "fixed_mask.nrrd"))) > 0
    assert jacobian[inside].mean() == pytest.approx(report["jacobian"]["mean"], rel=1e-4)


def test_an_initial_transform_takes_the_alignments_place(pair, tmp_path):
    shift = sitk.AffineTransform(3)
    shift.SetTranslation((3.0, -2.0, 1.0))
    sitk.WriteTransform(shift, str(tmp_path / "initial.h5"))
    arguments = ["--initialTransform", str(tmp_path / "initial.h5"), "--align", "moments", "--iterations", "0"]
    done = run(
        pair, *arguments, "--noAutoMask", "--outputTransform", str(tmp_path / "t.h5"), "fixed.nrrd", "moving.nrrd"
    )
    assert done.returncode == 0, done.stderr
    transform = sitk.ReadTransform(str(tmp_path / "t.h5"))
    np.testing.assert_allclose(np.subtract(transform.TransformPoint((5.0, 6.0, 7.0)), (5, 6, 7)), (3, -2, 1), atol=1e-3)


def test_every_kind_of_guidance_reaches_the_engine(pair, tmp_path):
    shift = sitk.AffineTransform(3)
    shift.SetTranslation((3.0, -2.0, 1.0))
    sitk.WriteTransform(shift, str(tmp_path / "start.h5"))
    guides = {
        "fixedGuideLandmarks": "fixed.mrk.json", "movingGuideLandmarks": "moving.mrk.json", "guideSd": "2.5",
        "fixedGuideLabels": "fixed_mask.nrrd", "movingGuideLabels": "moving_mask.nrrd",
        "movingExclude": "small.nrrd", "rigidMask": "body.nrrd", "volumeMask": "body.nrrd",
        "initialDeformation": str(tmp_path / "start.h5"), "report": str(tmp_path / "report.json"),
    }  # fmt: skip
    for name, image in (("small", "moving_mask.nrrd"), ("body", "fixed_mask.nrrd")):
        mask = sitk.BinaryErode(sitk.ReadImage(str(pair / image)), [3] * 3)
        sitk.WriteImage(mask, str(pair / f"{name}.nrrd"))
    flags = [part for name, value in guides.items() for part in (f"--{name}", value)]
    flags += ["--sliding", "--fixedMask", "fixed_mask.nrrd", "--movingMask", "moving_mask.nrrd"]
    done = run(pair, *flags, "--iterations", "2", "fixed.nrrd", "moving.nrrd")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["sliding"]
    assert set(report["guidance"]) == {"landmarks", "labels", "excluded", "rigid", "volume_kept", "initial"}
    assert report["guidance"]["landmarks"]["sd_mm"] == {"least": 2.5, "most": 2.5}
    assert report["alignment"]["method"] == "initial"


def test_guidance_of_one_image_alone_is_refused_in_one_line(pair):
    done = run(pair, "--fixedGuideLabels", "fixed_mask.nrrd", "fixed.nrrd", "moving.nrrd")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "movingGuideLabels" in done.stderr


def test_an_error_is_one_line_and_no_file(pair, tmp_path):
    done = run(pair, "--outputTransform", str(tmp_path / "t.h5"), "absent.nrrd", "moving.nrrd")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "absent.nrrd" in done.stderr
    assert not list(tmp_path.iterdir())
