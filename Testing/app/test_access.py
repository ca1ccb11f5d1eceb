"""Who is let in and what of the disk is reached; needs neither trame-slicer nor a browser."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nephi
import pytest
from nephi.errors import NephiError
from nephi_app.access import Access
from nephi_app.files import MOST_ENTRIES, Served

CORE = Path(nephi.__file__).parents[1]


@pytest.fixture
def served(tmp_path) -> Served:
    root = tmp_path / "root"
    (root / "b10" / "deep").mkdir(parents=True)
    (root / "b9").mkdir()
    for name in ("scan.nii.gz", "Two.NRRD", "notes.txt", ".hidden.nii.gz", "b10/deep/x.mha"):
        (root / name).touch()
    (tmp_path / "secret.nii.gz").touch()
    (root / "out.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (root / "out").symlink_to(tmp_path)
    (root / "in.nii.gz").symlink_to(root / "scan.nii.gz")
    return Served(root)


def test_folders_and_known_files_are_listed_in_the_order_people_expect(served):
    entries, more = served.entries("", (".nii.gz", ".nrrd"))
    assert [e.name for e in entries] == ["b9", "b10", "in.nii.gz", "scan.nii.gz", "Two.NRRD"] and not more
    assert [e.path for e in served.entries("b10")[0]] == ["b10/deep"]
    assert [e.path for e in served.entries("b10/deep", (".mha",))[0]] == ["b10/deep/x.mha"]


def test_a_long_list_is_cut(tmp_path):
    for i in range(MOST_ENTRIES + 1):
        (tmp_path / f"{i}.mha").touch()
    entries, more = Served(tmp_path).entries("", (".mha",))
    assert len(entries) == MOST_ENTRIES and more and entries[11].name == "11.mha"


@pytest.mark.parametrize(
    "path", ["..", "../secret.nii.gz", "/etc/passwd", "out.nii.gz", "out/secret.nii.gz", "b9/../../secret.nii.gz",
             "none.nii.gz", "a\0b"],
)  # fmt: skip
def test_nothing_outside_the_folder_is_reached(served, path):
    with pytest.raises(NephiError):
        served.path(path)


def test_what_is_read_with_a_file_is_not_outside_either(served):
    """The files of a folder, the voxels of a header: by a name, a link, or a pattern that only their reader knows."""
    root, secret = served.root, served.root.parent / "secret.raw"
    secret.touch()
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nspace: LPS\nsizes: 2 2 2\nencoding: raw\ndata file: "
    good = {"own.mhd": header + "own.raw", "own.nhdr": nrrd + "deep/own.raw", "damaged.mhd": "ObjectType"}
    bad = {"name.mhd": header + "../../secret.raw", "path.mha": header + str(secret), "list.mhd": header + "LIST\nx",
           "name.nhdr": nrrd + "../../secret.raw", "many.nrrd": nrrd + "x%d.raw 1 2 1"}  # fmt: skip
    for name, text in (good | bad).items():
        (root / "b10" / name).write_text(text, encoding="utf-8")
    (root / "b10" / "pair.hdr").touch()
    (root / "b10" / "pair.img").symlink_to(secret)
    (root / "series").mkdir()
    (root / "series" / "1.dcm").touch()
    for path in (*(f"b10/{name}" for name in good), "series", "scan.nii.gz"):
        assert served.whole(path) == root / path and served.holds(root / path)
    (root / "series" / "2.dcm").symlink_to(secret)
    for path in (*(f"b10/{name}" for name in bad), "b10/pair.hdr", "series"):
        assert not served.holds(root / path), path
        with pytest.raises(NephiError, match="outside the served folder"):
            served.whole(path)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", "a\\b", "C:x", "a\0b", "out"])
def test_results_are_written_below_the_folder_only(served, name):
    with pytest.raises(NephiError):
        served.new_folder("", name)
    with pytest.raises(NephiError):
        served.new_file("", name)


def test_a_file_is_never_written_over(served):
    path = served.new_file("b10", "points.csv")
    path.write_text("x", encoding="utf-8")
    with pytest.raises(NephiError, match="exists already"):
        served.new_file("b10", "points.csv")
    assert served.holds(path) and served.holds(path.with_name("not yet"))
    for elsewhere in (served.root / ".." / "x", served.root / "out" / "x", served.root / "out.nii.gz"):
        assert not served.holds(elsewhere)


def test_a_new_folder_may_be_anywhere_below(served):
    assert served.new_folder("b10/deep", " result 1 ") == served.root / "b10" / "deep" / "result 1"
    with pytest.raises(NephiError):
        served.new_folder("out", "x")


def test_hosts_and_origins():
    here, named, anywhere = Access(), Access("gpu.clinic.example"), Access("0.0.0.0")
    assert here.only_here and not named.only_here and not anywhere.only_here
    for host in ("127.0.0.1:8650", "localhost", "[::1]:8650"):
        assert here.serves(host) and named.serves(host)
    for host in ("evil.example", "127.0.0.1.evil.example", "", "gpu.clinic.example"):
        assert not here.serves(host)
    assert named.serves("GPU.clinic.example:8650") and not named.serves("evil.example") and anywhere.serves("any:1")
    assert here.is_own(None, "127.0.0.1:8650") and here.is_own("http://127.0.0.1:8650", "127.0.0.1:8650")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", ""):
        assert not here.is_own(origin, "127.0.0.1:8650")


def test_tokens_are_long_and_each_browser_has_a_cookie_of_its_own():
    one, other = Access(), Access()
    assert one.token != other.token and len(one.token) >= 43
    assert one.is_token(one.token) and not one.is_token(other.token) and not one.is_token("") and not one.is_token("é")
    cookies = {one.new_browser() for _ in range(3)}
    assert len(cookies) == 3 and all(map(one.knows, cookies))
    assert not one.knows("") and not one.knows(one.token) and not other.knows(cookies.pop())


def test_without_its_packages_the_command_says_in_one_line_what_to_install(tmp_path):
    """Here, or with a package that is not found."""
    code = "import sys, importlib.util as u; f = u.find_spec; "
    code += "u.find_spec = lambda name, *rest: None if name == 'trame_slicer' else f(name, *rest); "
    code += "from nephi.cli import main; sys.exit(main(['app', '--no-browser']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(CORE)}, timeout=60
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == 'nephi: the browser application is not installed: pip install "nephi[app]"\n'


@pytest.mark.skipif(
    find_spec("aiohttp") is None or find_spec("trame_slicer") is None, reason="trame-slicer not installed"
)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["none"], "none is not a folder"), (["--port", "99999999"], "cannot listen"),
     (["--host", "no.host.invalid"], "cannot listen"), (["--sessions", "0"], "at least one session")],
)  # fmt: skip
def test_bad_arguments_end_in_one_line(arguments, said, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nephi", "app", "--no-browser", *arguments],
        capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(CORE)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.skipif(find_spec("trame_slicer") is None, reason="trame-slicer not installed")
def test_the_page_needs_none_of_the_packages_that_take_long_to_import():
    code = "import sys, nephi_app.session, nephi_app.front; print(*sys.modules)"
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(CORE)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    imported = set(done.stdout.split())
    assert "nephi_app.front" in imported and not {"vtk", "slicer", "torch", "SimpleITK"} & imported, done.stderr
