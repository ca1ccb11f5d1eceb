"""Files are whole or absent: failures and kills at every operation, full disks, links, permissions, locks."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi import journal
from nephi.cli import main
from nephi.cli.console import Console
from nephi.errors import NephiError
from nephi.files.folder import ResultFolder
from nephi.files.formats import FORMATS, Pair, Sampled, write_format
from nephi.files.image import write_image
from nephi.files.landmarks import read_landmarks, write_landmarks
from nephi.files.tensors import read_tensors, write_tensors
from nephi.files.transform import read_affine, read_transform, write_transform
from nephi.files.writing import FOLDER_LOCK, output_folder, replaced, visible, whole, write_csv, write_text
from nephi.journal import recover
from nephi.paths import check_file
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.phantom import make_phantom

_HERE = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals, limits and permissions of POSIX")
_NAMES = ("a.txt", "b.txt", "below/c.txt", "report.json")
_REPLACE = """
import itertools, os, signal, sys
from nephi import journal
from nephi.files.writing import replaced, write_text
count, at = itertools.count(1), int(sys.argv[2])
def step(operation, path):
    if next(count) == at:
        os.kill(os.getpid(), signal.SIGKILL)
journal.watch = step
with replaced(sys.argv[1], gone=["page.html"], last="report.json") as scratch:
    for name in ("a.txt", "b.txt", "below/c.txt", "report.json"):
        write_text(scratch / name, "new")
"""


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def older(folder: Path) -> dict[str, str]:
    """A set of files, one of which the next set does not have, beside a file of the user's."""
    for name in (*_NAMES, "page.html", "mine.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return contents(folder)


def renew(folder: Path) -> None:
    with replaced(folder, gone=["page.html"], last="report.json") as scratch:
        for name in _NAMES:
            write_text(scratch / name, "new")


NEW = {**dict.fromkeys(_NAMES, "new"), "mine.txt": "old"}


def steps(monkeypatch, folder: Path) -> list[str]:
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(journal, "watch", lambda operation, path: done.append(operation))
        renew(folder)
    return done


def test_a_failure_at_any_operation_leaves_the_older_files(tmp_path, monkeypatch):
    older(tmp_path / "count")
    done = steps(monkeypatch, tmp_path / "count")
    assert contents(tmp_path / "count") == NEW and {"write", "fsync", "replace", "unlink", "rmdir"} <= set(done)
    for at in range(1, len(done)):  # the last removes the scratch folder: then the new ones are in place
        folder, count = tmp_path / str(at), itertools.count(1)
        before = older(folder)

        def step(operation, path, at=at, count=count):
            if next(count) == at:
                raise OSError(28, "No space left on device", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(journal, "watch", step)
            with pytest.raises(NephiError, match="cannot write .*No space left"):
                renew(folder)
        assert contents(folder) == before, f"{at}: {done[at - 1]}"


@pytest.mark.slow
@_POSIX
def test_a_kill_at_any_operation_leaves_old_or_new_once_somebody_looks(tmp_path, monkeypatch):
    older(tmp_path / "count")
    for at in range(1, len(steps(monkeypatch, tmp_path / "count")) + 1):
        folder = tmp_path / str(at)
        before = older(folder)
        run = subprocess.run([sys.executable, "-c", _REPLACE, str(folder), str(at)], env=_HERE, check=False)
        assert run.returncode == -9
        seen = {name: text for name, text in contents(folder).items() if not name.startswith(".nephi-")}
        assert len({seen[name] for name in seen if name in _NAMES}) <= 1, f"{at}: a mixture"
        recover(folder)
        assert contents(folder) in (before, NEW), at


@pytest.mark.parametrize("name", ["result/transform.tfm", "list/pair0/points.csv", "series"])
def test_whoever_reads_one_file_completes_what_a_killed_run_had_begun(name, tmp_path):
    """The older files are away already, the new ones are not in their places, the run's lock is free."""
    top = tmp_path / name.partition("/")[0]
    scratch, inner = top / ".nephi-killed", name.partition("/")[2]
    files = [inner, "other.txt"] if inner else ["0.dcm", "other.txt"]
    for file in files:
        (scratch / file).parent.mkdir(parents=True, exist_ok=True)
        (scratch / file).write_text("new")
    (scratch / "owner.lock").touch()
    if inner.endswith(".tfm"):
        sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), str(scratch / inner))
    elif inner:
        (scratch / inner).write_text("1,2,3\n")
    (scratch / ".journal").write_bytes(journal._sealed({"names": files, "gone": []}))
    if inner.endswith(".tfm"):
        assert read_transform(tmp_path / name, 3).TransformPoint((0.0, 0.0, 0.0)) == (1.0, 2.0, 3.0)
        assert read_affine(str(tmp_path / name), 3).offset_mm.tolist() == [1.0, 2.0, 3.0]
    elif inner:
        assert read_landmarks(tmp_path / name).tolist() == [[1.0, 2.0, 3.0]]
    else:
        assert check_file(tmp_path / name, "series").is_dir()
    assert contents(top)["other.txt"] == "new" and not scratch.exists() and (top / files[0]).exists()


def test_a_foreign_journal_moves_nothing_out_of_its_folder(tmp_path):
    folder, scratch = tmp_path / "result", tmp_path / "result" / ".nephi-evil"
    scratch.mkdir(parents=True)
    (scratch / "owner.lock").touch()
    (tmp_path / "mine.txt").write_text("mine")
    (scratch / ".journal").write_bytes(journal._sealed({"names": ["../mine.txt"], "gone": ["../mine.txt"]}))
    with pytest.raises(NephiError, match=r"keep those you want and remove \.nephi-evil"):
        recover(folder)
    assert contents(tmp_path)["mine.txt"] == "mine" and [path.name for path in folder.iterdir()] == [".nephi-evil"]


@_POSIX
@pytest.mark.parametrize("damage", ["a bit", "cut", "longer", "other files", "pipe"])
def test_a_damaged_journal_is_told_and_nothing_is_lost(damage, tmp_path):
    """Killed half-way: some files are new, some older, and only the journal knows which."""
    folder = tmp_path / "result"
    older(folder)
    run = subprocess.run([sys.executable, "-c", _REPLACE, str(folder), "25"], env=_HERE, check=False)
    assert run.returncode == -9
    (path,) = folder.glob(".nephi-*/.journal")
    data = path.read_bytes()
    if damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes({"a bit": bytes([data[0]]) + bytes([data[1] ^ 1]) + data[2:], "cut": data[:-3],
                          "longer": data + b" ", "other files": data.replace(b"a.txt", b"z.txt")}[damage])  # fmt: skip
    before = {name: text for name, text in contents(folder).items() if not name.endswith(".journal")}
    assert {"old", "new"} <= set(before.values())
    for look in (recover, lambda place: check_file(place / "a.txt", "points"), renew, begin):
        with pytest.raises(NephiError, match=r"its journal is damaged.*\.nephi-") as caught:
            look(folder)
        assert "\n" not in str(caught.value)
    assert {name: text for name, text in contents(folder).items() if not name.endswith(".journal")} == before


def begin(folder: Path) -> None:
    with output_folder(folder):
        raise AssertionError("a run began")


@_POSIX
def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").symlink_to(tmp_path / "mine.txt")
    write_text(tmp_path / "out" / "a.txt", "new")
    assert not (tmp_path / "out" / "a.txt").is_symlink() and (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "out" / "below").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NephiError, match="link to another folder"):
        renew(tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == [] and contents(tmp_path / "out") == {"a.txt": "new"}


def test_a_folder_in_the_place_of_a_file_stays(tmp_path):
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt" / "mine.txt").write_text("mine")
    with pytest.raises(NephiError, match="a folder with this name"):
        renew(tmp_path)
    assert contents(tmp_path) == {"b.txt/mine.txt": "mine"}
    with pytest.raises(NephiError, match="a folder with this name"), ResultFolder(tmp_path / "r").output():
        pytest.fail("work was begun") if (tmp_path / "r" / "report.json").is_dir() else None
        (tmp_path / "r" / "report.json").mkdir()
        with ResultFolder(tmp_path / "r").output():
            pytest.fail("work was begun")


# ---- formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.nii.gz", "w.nii", "w.nrrd", "w.mha", "w.mhd", "w.hdr", "w.img", "w.nhdr"])
def test_every_format_has_its_real_name(name, tmp_path):
    image = sitk.GetImageFromArray(np.arange(720, dtype=np.float32).reshape(8, 9, 10))
    write_image(image, tmp_path / "made" / name)
    (tmp_path / "made").rename(tmp_path / "moved")
    again = sitk.ReadImage(str(tmp_path / "moved" / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))
    assert all(p.name.startswith("w.") for p in (tmp_path / "moved").iterdir())


@_POSIX
def test_permissions_follow_the_umask(tmp_path, phantom_2d):
    before = os.umask(0o027)
    try:
        write_image(phantom_2d.fixed, tmp_path / "a.nii.gz")
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {})
        write_text(tmp_path / "a.json", "{}")
        write_landmarks(tmp_path / "a.csv", np.zeros((2, 3)))
    finally:
        os.umask(before)
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in tmp_path.iterdir()} == {
        f"a.{end}": "0o640" for end in ("nii.gz", "safetensors", "json", "csv")
    }


def test_the_same_tensors_make_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, {"x": torch.arange(5.0)}, {key: key.upper() for key in "zyxwvut"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    metadata, tensors = read_tensors(tmp_path / "a", "tensors")
    assert metadata["z"] == "Z" and tensors["x"].tolist() == [0, 1, 2, 3, 4]


@contextmanager
def small_files():
    """Files of more than 20 kB cannot be written, as on a full disk; nor could what the tests print, if it lasted."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.nrrd", "a.mha", "a.mhd", "a.vtk", "a.nhdr",
                                  "a.h5", "a.tfm"])  # fmt: skip
def test_a_full_disk_is_one_line_and_leaves_the_older_file(name, tmp_path, capfd):
    noise = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32)
    (tmp_path / name).write_text("old")
    with small_files(), pytest.raises(NephiError, match=f"cannot write .*{name}: File too large"):
        if name.endswith((".h5", ".tfm")):
            field = sitk.Compose(*[sitk.Cast(sitk.GetImageFromArray(noise), sitk.sitkFloat64)] * 3)
            write_transform(sitk.DisplacementFieldTransform(field), tmp_path / name)
        else:
            write_image(sitk.GetImageFromArray(noise), tmp_path / name)
    assert contents(tmp_path) == {name: "old"}
    assert capfd.readouterr().err == ""  # MetaIO and others write lines of their own


@pytest.mark.parametrize("to", FORMATS)
def test_no_format_of_other_programs_gives_another_reason_than_the_disk(to, tmp_path, capfd):
    pytest.importorskip("h5py")
    pytest.importorskip("nitransforms") if to == "x5" else None
    grid = Grid((20, 30, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    field = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(np.float32)
    pair = Pair(Sampled(grid, field, Affine.identity(3), grid))
    with small_files(), pytest.raises(NephiError, match="cannot write .*: File too large"):
        write_format(to, pair, tmp_path / "made")
    assert contents(tmp_path) == {} and capfd.readouterr().err == ""


def test_an_unknown_type_is_told_from_a_full_disk(tmp_path):
    with pytest.raises(NephiError, match="use a known image type"):
        write_image(sitk.Image((9, 9, 9), sitk.sitkFloat32), tmp_path / "a.xyz")


def test_other_files_on_a_full_disk(tmp_path):
    for name, write in (
        ("a.safetensors", lambda path: write_tensors(path, {"x": torch.ones(30_000)}, {})),
        ("a.json", lambda path: write_text(path, "x" * 30_000)),
        ("a.csv", lambda path: write_landmarks(path, np.ones((9_000, 3)))),
    ):
        (tmp_path / name).write_text("old")
        with small_files(), pytest.raises(NephiError, match=f"cannot write .*{name}.*File too large"):
            write(tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


# ---- one run at a time -----------------------------------------------------------------------------------

_HOLD = """
import sys, time
from nephi.files.writing import output_folder
with output_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@_POSIX
def test_a_second_run_says_so_and_a_killed_one_holds_nobody_up(tmp_path, capfd):
    make_phantom((96, 80), 4.0, dimension=2).write(tmp_path)
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\na,fixed.nii.gz,moving.nii.gz\n")
    pair = [str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz")]
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", _HOLD, str(out)], env=_HERE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        for command in (["register", *pair], ["batch", str(tmp_path / "pairs.csv")], ["breathe", "--count", "1"],
                        ["demo"], ["train", "--data", "shapes-solid"]):  # fmt: skip
            assert main([*command, "--output", str(out)]) == 2
            (line,) = capfd.readouterr().err.splitlines()
            assert line.startswith("nephi: another run is writing to output folder")
    finally:
        other.kill()
        other.communicate()
    assert (out / FOLDER_LOCK).exists()
    with output_folder(out), output_folder(out):  # twice in one process is one run
        pass
    assert list(out.iterdir()) == []


def test_no_report_leaves_none_behind(tmp_path):
    make_phantom((96, 80), 4.0, dimension=2).write(tmp_path)
    pair = [str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"), "--iterations", "2", "--preset", "fast"]
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.html", "mine.html", "preview.nrrd"):
        (out / name).write_text("old")
    assert main(["register", *pair, "--output", str(out), "--no-report", "--progress", "none"]) == 0
    names = {p.name for p in out.iterdir()}
    assert "report.html" not in names and "preview.nrrd" not in names and {"mine.html", "report.json"} <= names


def test_whole_inside_a_set_is_a_part_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), replaced(tmp_path) as scratch:
        with whole(scratch / "a.txt") as path:
            path.write_text("a")
        assert (scratch / "a.txt").is_file()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# ---- tables and the console ------------------------------------------------------------------------------


def test_tables_hold_nothing_that_a_spreadsheet_runs(tmp_path):
    names = ["=1+1", "@SUM(A1)", "+1", "-2+3", "\x1b[31mred", "plain"]
    write_csv(tmp_path / "t.csv", [["name", "value"], *([name, -1.5] for name in names)])
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == ["'=1+1,-1.5", "'@SUM(A1),-1.5", "'+1,-1.5", "'-2+3,-1.5", "\\x1b[31mred,-1.5", "plain,-1.5"]
    assert visible("a\x1b]0;x\x07\u202eb\n") == "a\\x1b]0;x\\x07\\u202eb\n"


class _Broken:
    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        if "end" in text:
            raise BrokenPipeError
        self.text += text

    def flush(self): ...


def test_the_console_outlives_its_reader_and_knows_its_letters():
    stream = _Broken()
    console = Console(stream)
    for text in ("\u60a3\u8005 \x1b[2J", "the end", "more"):
        print(text, file=console)
    assert stream.text == "\\u60a3\\u8005 \\x1b[2J\n"


@pytest.mark.slow
@_POSIX
@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "| true", ">/dev/full"])
def test_closed_and_broken_pipes_keep_the_result(shell, tmp_path):
    if "full" in shell and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    make_phantom((96, 80), 4.0, dimension=2).write(tmp_path)
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\na,fixed.nii.gz,moving.nii.gz\n")
    command = f"set -o pipefail; {sys.executable} -m nephi batch pairs.csv --output b --iterations 2 --preset fast"
    run = subprocess.run(
        ["bash", "-c", f"{command} --no-report {shell}"], cwd=tmp_path, env=_HERE, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "b" / "a" / "report.json").is_file()
