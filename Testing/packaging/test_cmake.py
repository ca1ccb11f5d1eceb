"""Configure, build, ctest and cpack with Slicer's own CMake macros, from a checkout named by SLICER_SOURCE_DIR.

Without that variable nothing runs. CTK_SOURCE_DIR may name a checkout of CTK, whose macro copies and byte-compiles
scripts; without it a stand-in copies them. No application is built or started: ``cmake/`` says what is made up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from places import CLI, MODULE, ROOT, cmake_variables


def _cmake_is_new_enough() -> bool:
    """Slicer's macros ask for 3.28 (``pip install cmake`` brings one)."""
    if shutil.which("cmake") is None:
        return False
    first = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=False).stdout.split()[2]
    return tuple(map(int, first.split(".")[:2])) >= (3, 28)


_SLICER = os.environ.get("SLICER_SOURCE_DIR")
pytestmark = [
    pytest.mark.skipif(not _SLICER, reason="SLICER_SOURCE_DIR is not set"),
    pytest.mark.skipif(bool(_SLICER) and not _cmake_is_new_enough(), reason="cmake 3.28 or newer is missing"),
    pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for the application is a script with a shebang"),
]
_HERE = Path(__file__).resolve().parent / "cmake"
_MODULES = Path("lib/Slicer-5.13/qt-scripted-modules")


def call(*command, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The extension, configured and built from a repository that holds what belongs to it."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "NePhi"
    source.mkdir()
    for name in ("CMakeLists.txt", "README.md", "LICENSE", MODULE.name, CLI.name):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    call("git", "init", "-q", cwd=source)
    call("git", "remote", "add", "origin", "https://github.com/nephi-registration/NePhi.git", cwd=source)
    call("git", "add", ".", cwd=source)
    person = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    call("git", *person, "commit", "-q", "-m", "Test", cwd=source)
    launcher = folder / "launcher"
    launcher.write_text(f"#!{sys.executable}\n" + (_HERE / "launcher.py").read_text(encoding="utf-8"))
    launcher.chmod(0o755)
    options = {
        "Slicer_DIR": _HERE,
        "Slicer_CHECKOUT": _SLICER,
        "Slicer_LAUNCHER_EXECUTABLE": launcher,
        "PYTHON_EXECUTABLE": sys.executable,
        "CMAKE_BUILD_TYPE": "Release",
    }
    if os.environ.get("CTK_SOURCE_DIR"):
        options["CTK_CHECKOUT"] = os.environ["CTK_SOURCE_DIR"]
    out = folder / "out"
    out.mkdir()
    call("cmake", *(f"-D{name}={value}" for name, value in options.items()), source, cwd=out)
    call("cmake", "--build", ".", cwd=out)
    return out


def listed() -> set[Path]:
    variables = cmake_variables(MODULE / "CMakeLists.txt")
    return {Path(name) for kind in ("SCRIPTS", "RESOURCES") for name in variables[f"MODULE_PYTHON_{kind}"]}


def test_the_build_tree_has_every_file(build):
    for name in listed():
        assert (build / _MODULES / name).read_bytes() == (MODULE / name).read_bytes(), name
    assert (build / "lib/Slicer-5.13/cli-modules/NePhiRegistrationCLI.xml").is_file()


def test_ctest_runs_the_modules_tests(build):
    out = call("ctest", "--output-on-failure", cwd=build)
    names = {line.split()[3] for line in out.splitlines() if " Test " in line and "Passed" in line}
    assert names == {"py_NePhiRegistration", "py_nomainwindow_qSlicerNePhiRegistrationModuleGenericTest"}


def test_the_package_holds_every_file_and_no_other(build, tmp_path):
    call("cpack", cwd=build)
    (package,) = build.glob("*.tar.gz")
    assert "NePhi" in package.name
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path, filter="data")
    (top,) = tmp_path.iterdir()
    files = {p.relative_to(top) for p in top.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    cli = {Path("lib/Slicer-5.13/cli-modules") / f"NePhiRegistrationCLI{suffix}" for suffix in (".py", ".xml")}
    description = {Path("share/Slicer-5.13/NePhi.s4ext")}
    assert files == {_MODULES / name for name in listed()} | cli | description
    # the command-line module of the package finds the engine of the package
    code = (
        "import importlib.util, runpy, sys; importlib.util.find_spec = lambda name: None\n"
        f"runpy.run_path({str(top / 'lib/Slicer-5.13/cli-modules/NePhiRegistrationCLI.py')!r})['find_engine']()\n"
        "print(sys.path[-1])"
    )
    assert Path(call(sys.executable, "-c", code, cwd=tmp_path).strip()) == top / _MODULES
    assert (CLI / "NePhiRegistrationCLI.py").read_bytes() == (top / sorted(cli)[0]).read_bytes()


def test_the_generated_description_agrees_with_the_one_in_the_tree(build):
    def entries(path: Path) -> dict[str, str]:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line[0]: " ".join(line[1:]) for line in lines if line and not line[0].startswith("#")}

    made, ours = entries(build / "NePhi.s4ext"), entries(ROOT / "NePhi.s4ext")
    same = "homepage contributors category description iconurl screenshoturls depends enabled build_subdirectory"
    for key in same.split():
        assert made[key] == ours[key], key
