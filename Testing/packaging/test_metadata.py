"""NePhi.json, NePhi.s4ext and CMakeLists.txt say the same, and what the extension index asks for is there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nephi
import pytest
from places import CLI, ROOT, cmake_variables

_CMAKE = cmake_variables(ROOT / "CMakeLists.txt")
_RAW = "https://raw.githubusercontent.com/nephi-registration/NePhi/main/"


def s4ext() -> dict[str, str]:
    lines = (ROOT / "NePhi.s4ext").read_text(encoding="utf-8").splitlines()
    entries = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return {entry[0]: entry[1] if len(entry) > 1 else "" for entry in entries}


def catalogue() -> dict:
    return json.loads((ROOT / "NePhi.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("entry", "variable"),
    [
        ("homepage", "HOMEPAGE"),
        ("category", "CATEGORY"),
        ("contributors", "CONTRIBUTORS"),
        ("description", "DESCRIPTION"),
        ("iconurl", "ICONURL"),
        ("screenshoturls", "SCREENSHOTURLS"),
        ("depends", "DEPENDS"),
    ],
)
def test_s4ext_agrees_with_cmake(entry, variable):
    assert s4ext()[entry] == _CMAKE[f"EXTENSION_{variable}"][0]


def test_s4ext_names_repository_and_state():
    assert s4ext()["scm"] == "git" and s4ext()["enabled"] == "1" and s4ext()["build_subdirectory"] == "."


def test_catalogue_entry_agrees_with_the_others():
    entry = catalogue()
    assert entry["category"] == s4ext()["category"]
    assert entry["scm_url"] == s4ext()["scmurl"] and entry["scm_revision"] == s4ext()["scmrevision"]
    assert entry["build_dependencies"] == s4ext()["depends"].split()
    assert entry["build_subdirectory"] == s4ext()["build_subdirectory"]
    assert entry["enabled"] is (s4ext()["enabled"] == "1")
    assert entry["scm_url"] == f"{_CMAKE['EXTENSION_HOMEPAGE'][0]}.git"


def test_the_extension_is_called_as_its_files():
    project = re.search(r"project\((\w+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert {project} == {p.stem for p in (*ROOT.glob("*.s4ext"), *ROOT.glob("*.json"))}


def test_catalogue_entry_follows_its_schema():
    entry = catalogue()
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert {"$schema", "category", "scm_url"} <= set(entry)
    known = {"scm_revision", "scm_type", "build_dependencies", "dicom_support_rule", "build_subdirectory", "enabled",
             "tier"}  # fmt: skip
    assert set(entry) - {"$schema", "category", "scm_url"} <= known
    assert isinstance(entry["tier"], int) and 1 <= entry["tier"] <= 5 and isinstance(entry["enabled"], bool)


@pytest.mark.skipif(not os.environ.get("SLICER_SOURCE_DIR"), reason="SLICER_SOURCE_DIR is not set")
def test_catalogue_entry_follows_slicers_own_schema():
    name = catalogue()["$schema"].rsplit("/", 1)[1].rstrip("#")
    schema = json.loads((Path(os.environ["SLICER_SOURCE_DIR"]) / "Schemas" / name).read_text(encoding="utf-8"))
    kinds = {"string": str, "array": list, "boolean": bool, "integer": int}
    assert set(schema["required"]) <= set(catalogue()) <= set(schema["properties"])
    for key, value in catalogue().items():
        assert isinstance(value, kinds[schema["properties"][key]["type"]]), key


def test_pictures_that_are_linked_are_in_the_repository():
    icon, screenshots = (_CMAKE[f"EXTENSION_{name}"][0].split() for name in ("ICONURL", "SCREENSHOTURLS"))
    assert len(icon) == 1 and screenshots
    for url in icon + screenshots:
        assert url.startswith(_RAW) and (ROOT / url.removeprefix(_RAW)).is_file(), url


def test_licence_readme_and_version():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for variable, name in (("LICENSE", "LICENSE"), ("README", "README.md")):
        assert _CMAKE[f"EXTENSION_{variable}_FILE"][0].endswith(f"/{name}")
    assert f"<version>{nephi.__version__}</version>" in (CLI / "NePhiRegistrationCLI.xml").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert nephi.__version__ in changes
