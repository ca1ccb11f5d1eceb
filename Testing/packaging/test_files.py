"""The lists of packaged files are the tree: a file that is left out is only noticed by users."""

from __future__ import annotations

import subprocess

import pytest
from places import CLI, MODULE, ROOT, cmake_variables

_LEFT_OUT = {"CMakeLists.txt", ".gitignore"}


def packaged(kind: str) -> list[str]:
    name = cmake_variables(MODULE / "CMakeLists.txt")["MODULE_NAME"][0]
    files = cmake_variables(MODULE / "CMakeLists.txt")[f"MODULE_PYTHON_{kind}"]
    return [file.replace("${MODULE_NAME}", name) for file in files]


def tree() -> set[str]:
    files = (p for p in MODULE.rglob("*") if p.is_file())
    skipped = ("__pycache__", ".pytest_cache", ".ruff_cache")
    names = {
        p.relative_to(MODULE).as_posix()
        for p in files
        if not any(part in skipped or part.endswith(".egg-info") for part in p.parts)
    }
    # the browser application has an environment of its own: in Slicer the module is the panel
    return {name for name in names - _LEFT_OUT if not name.startswith("nephi_app/")}


def test_every_file_of_the_module_is_listed_once():
    listed = packaged("SCRIPTS") + packaged("RESOURCES")
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == tree()


def test_scripts_are_python_and_resources_are_not():
    assert all(name.endswith(".py") for name in packaged("SCRIPTS"))
    resources = packaged("RESOURCES")
    assert all(
        name.startswith(("Resources/", "nephi/learning/weights/", "nephi/measure/calibration.json", "nephi/py.typed"))
        and not name.endswith(".py")
        for name in resources
    )


def test_only_the_module_lies_where_slicer_looks_for_modules():
    """Slicer takes every .py file at the top of the folder of scripted modules for a module."""
    assert [name for name in packaged("SCRIPTS") if "/" not in name] == ["NePhiRegistration.py"]


def test_the_command_line_module_is_a_pair_of_files_and_built():
    assert {p.name for p in CLI.iterdir() if p.is_file()} == {
        "CMakeLists.txt", "NePhiRegistrationCLI.py", "NePhiRegistrationCLI.xml"
    }  # fmt: skip
    assert "NAME NePhiRegistrationCLI" in (CLI / "CMakeLists.txt").read_text()
    top = (ROOT / "CMakeLists.txt").read_text()
    for folder in (MODULE, CLI):
        assert f"add_subdirectory({folder.name})" in top


def test_the_python_package_has_every_module_of_the_core():
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert setup["packages"] == {
        "find": {"where": ["NePhiRegistration"], "include": ["nephi*", "NePhiRegistrationLib"]}
    }
    folders = {path.parent for package in ("nephi", "nephi_app") for path in (MODULE / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)  # only then are they found
    assert (MODULE / "nephi" / "py.typed").is_file()
    assert setup["package-data"]["nephi_app"] == ["page/*"] and any((MODULE / "nephi_app" / "page").iterdir())
    assert setup["package-data"]["nephi"] == ["learning/weights/*.safetensors", "measure/calibration.json", "py.typed"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_what_is_committed_is_small_text_with_unix_line_ends():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for path in (ROOT / name.decode() for name in names if name):
        if not path.is_file():
            continue
        content = path.read_bytes()
        weights = path.suffix == ".safetensors"
        assert len(content) < (15_000_000 if weights else 1_500_000), path
        if path.suffix not in (".png", ".jpg") and not weights:
            assert b"\r\n" not in content, path
            content.decode("utf-8")
