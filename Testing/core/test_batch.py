"""Batches of pairs: failures, resuming, interrupts, the table; each pair is a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nephi
import pytest
import SimpleITK as sitk
from files import textured, write_dicom
from nephi.cli import main
from nephi.cli.batch import finished_report
from nephi.errors import NephiError
from nephi.files.cases import read_pairs
from nephi.settings import PRESETS
from nephi.synthetic.phantom import make_phantom
from tables import table

_HERE = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
_FAST = ["--iterations", "4", "--no-report", "--align", "moments"]
_LONG = ["--iterations", "100000", "--no-report"]
_FULL = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")


@pytest.fixture
def study(tmp_path):
    """A folder with the 2D phantom in ``data`` and a function that writes a list of pairs beside it."""
    (tmp_path / "data").mkdir()
    make_phantom((96, 80), 4.0, dimension=2).write(tmp_path / "data")

    def pairs(*names: str, broken: str = "", separator: str = ",") -> Path:
        """Complete pairs; the moving image of the one called ``broken`` is missing."""
        files = {role: f"data/{role}{'.csv' if 'landmarks' in role else '.nii.gz'}" for role in _FULL}
        rows = [["name", *files]]
        rows += [[n, *files.values()] for n in names]
        for row in rows:
            if row[0] == broken:
                row[2] = "data/absent.nii.gz"
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join(separator.join(row) for row in rows) + "\n", encoding="utf-8-sig")
        return path

    return pairs


def times(output: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in output.glob("*/report.json")}


@pytest.mark.slow
def test_a_failing_pair_does_not_stop_the_others(study, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)  # paths are relative to the list, not to here
    output = tmp_path / "out"
    pairs = study("first", "broken", "last", broken="broken", separator=";")
    assert main(["batch", str(pairs), "--output", str(output), "--jobs", "2", *_FAST]) == 1
    rows = table(output)
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert "absent.nii.gz" in rows["broken"]["error"] and "moving image" in rows["broken"]["error"]
    assert rows["broken"]["tre_mm"] == "" and rows["first"]["error"] == ""
    report = json.loads((output / "last" / "report.json").read_text())
    expected = {
        "tre_before_mm": report["tre_mm"]["before"]["mean"], "tre_mm": report["tre_mm"]["after"]["mean"],
        "folds": report["folds"]["count"], "dice": report["dice"]["after"],
        "inverse_consistency_mm": report["inverse_consistency_mm"]["mean"],
        "fields_disagreement_mm": report["fields_disagreement_mm"]["mean"],
        "volume_change_percent": 100 * (report["volume"]["ratio"] - 1), "seconds": report["time_s"]["wall"],
    }  # fmt: skip
    for column, value in expected.items():
        assert float(rows["last"][column]) == pytest.approx(value, rel=1e-4), column
    assert (output / "first" / "transform.h5").exists() and report["settings"]["fit"]["iterations"] == 4
    out = capsys.readouterr().out
    assert "[3/3]" in out and "2 of 3 pairs done" in out


@pytest.mark.slow
def test_only_what_is_missing_or_changed_is_run_again(study, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    command = ["batch", str(study("a", "b")), "--output", str(output), *_FAST]
    assert main(command) == 0
    first, rows = times(output), table(output)
    with monkeypatch.context() as patch:
        patch.setattr("nephi.process.start", lambda *_, **__: pytest.fail("a finished pair was begun again"))
        assert main(command) == 0
    assert times(output) == first and table(output) == rows
    assert capsys.readouterr().out.count("(earlier)") == 2
    # a third pair: the two stay
    assert main(["batch", str(study("a", "b", "c")), *command[2:]]) == 0
    assert {name: t for name, t in times(output).items() if name != "c"} == first and "c" in times(output)
    # other settings: all are made again
    other = [*command[: -len(_FAST)], "--iterations", "5", *_FAST[2:]]
    assert main(other) == 0
    second = times(output)
    assert second["a"] > first["a"] and second["b"] > first["b"]
    # an input that changed
    landmarks = tmp_path / "data" / "fixed_landmarks.csv"
    landmarks.write_text(landmarks.read_text() + "\n")
    settings = nephi.settings.load(output / "settings.json")
    pair = read_pairs(tmp_path / "pairs.csv")[0]
    assert finished_report(output / "a", pair, settings, True) is None


@pytest.mark.slow
def test_a_report_counts_as_finished_only_with_the_same_inputs_and_settings(study, tmp_path):
    output = tmp_path / "out"
    pairs = study("a")
    assert main(["batch", str(pairs), "--output", str(output), *_FAST]) == 0
    (pair,) = read_pairs(pairs)
    settings = nephi.settings.load(output / "settings.json")
    assert finished_report(output / "a", pair, settings, True).folds.count == 0
    assert finished_report(output / "a", pair, settings, False) is None
    assert finished_report(output / "a", pair, PRESETS["fast"], True) is None
    (output / "a" / "report.json").write_text("{}")
    assert finished_report(output / "a", pair, settings, True) is None
    (output / "a" / "report.json").write_text('{"inputs":')
    assert finished_report(output / "a", pair, settings, True) is None


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nephi", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_HERE | environment,
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "waited in vain"
        time.sleep(0.05)


def engines(output: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"register" in line and any(str(output).encode() in part for part in line):
            found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_a_killed_batch_goes_on_where_it_was(study, tmp_path):
    output = tmp_path / "out"
    command = ["batch", str(study("a", "b", "c")), "--output", str(output), *_FAST]
    batch = start(command)
    try:
        wait_for(lambda: (output / "a" / "report.json").exists() and engines(output))
    finally:
        batch.kill()
        batch.communicate()
    wait_for(lambda: not engines(output))
    before = times(output)
    assert "a" in before and "c" not in before
    assert main(command) == 0
    after = times(output)
    assert {name: after[name] for name in before} == before and set(after) == {"a", "b", "c"}
    assert [row["status"] for row in table(output).values()] == ["done"] * 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_the_engines_of_a_killed_batch_end_and_leave_no_part_of_a_result(study, tmp_path):
    output, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    command = ["batch", str(study("a", "b")), "--output", str(output), "--jobs", "2", *_LONG]
    batch = start(command, TMPDIR=str(temporary))
    try:
        wait_for(lambda: len(engines(output)) == 2)
        time.sleep(3)  # well into their work
    finally:
        batch.kill()
        batch.communicate()
    try:
        wait_for(lambda: not engines(output), 20)
    finally:
        for pid in engines(output):
            os.kill(pid, signal.SIGKILL)
    assert list(temporary.glob("nephi-run-*")) == []
    left = {p.name for p in output.rglob("*") if p.is_file()}  # the locks of the killed one hold nobody up
    assert left - {".nephi.lock", ".nephi.batch.lock"} == {"summary.csv", "settings.json", "nephi.log"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize("number", ["SIGINT", "SIGHUP"])  # Ctrl-C, a terminal that is closed
def test_an_interrupted_batch_ends_every_process_and_leaves_no_part_of_a_result(number, study, tmp_path):
    output = tmp_path / "out"
    batch = start(["batch", str(study("a", "b", "c")), "--output", str(output), "--jobs", "2", *_LONG])
    try:
        wait_for(lambda: len(engines(output)) == 2)
        time.sleep(3)  # well into their work
        batch.send_signal(getattr(signal, number))
        _, errors = batch.communicate(timeout=20)
    finally:
        batch.kill()
        left = engines(output)
        for pid in left:  # of a run that failed: nothing may go on behind the tests
            os.kill(pid, signal.SIGKILL)
    assert batch.returncode == 130
    assert errors.startswith("nephi: interrupted") and len(errors.splitlines()) == 1
    assert left == []
    assert [row["status"] for row in table(output).values()] == ["interrupted", "interrupted", "waiting"]
    assert {p.name for p in output.rglob("*") if p.is_file()} == {"summary.csv", "settings.json", "nephi.log"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_an_engine_that_is_killed_is_a_failed_pair(study, tmp_path):
    output = tmp_path / "out"
    batch = start(["batch", str(study("a")), "--output", str(output), *_LONG])
    try:
        wait_for(lambda: engines(output))
        os.kill(engines(output)[0], signal.SIGKILL)
        batch.communicate(timeout=20)
    finally:
        batch.kill()
    assert batch.returncode == 1
    assert "signal 9" in table(output)["a"]["error"] and "memory" in table(output)["a"]["error"]


_GOOD = "name,fixed,moving\na,f.nii,m.nii\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("name,fixed,moving\n", "lists no pairs"),
        ("name,fixed\na,b\n", "check moving"),
        ("name,fixed,moving,mask\na,b,c,d\n", "check mask"),
        ("name,fixed,moving,fixed\na,b,c,d\n", "given twice"),
        (_GOOD + "a,f.nii,m.nii\n", "two pairs are named 'a'"),
        (_GOOD + "A,f.nii,m.nii\n", "two pairs are named 'A'"),
        (_GOOD + "x/y,f.nii,m.nii\n", "'x/y' cannot be"),
        (_GOOD + ",f.nii,m.nii\n", "'' cannot be"),
        (_GOOD + "..,f.nii,m.nii\n", "'..' cannot be"),
        (_GOOD + "b,f.nii,m.nii,extra\n", "has 4 cells"),
        (_GOOD + "Summary.csv,f.nii,m.nii\n", "'Summary.csv' cannot be"),
        (_GOOD + "settings.json,f.nii,m.nii\n", "'settings.json' cannot be"),
    ],
)
def test_a_wrong_list_is_one_line(text, words, tmp_path, capfd):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(text)
    assert main(["batch", str(pairs), "--output", str(tmp_path / "out")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nephi: ") and words in line
    assert not (tmp_path / "out").exists()


def test_wrong_options_are_told_before_any_work(tmp_path, capfd):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(_GOOD)
    for arguments, words in ((["--jobs", "0"], "--jobs 0"), (["--preset", "quick"], "'quick'")):
        assert main(["batch", str(pairs), "--output", str(tmp_path / "out"), *arguments]) == 2
        assert words in capfd.readouterr().err
    assert main(["batch", str(tmp_path / "no.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "no.csv" in capfd.readouterr().err
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00\x01")
    assert main(["batch", str(tmp_path / "binary.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "UTF-8" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["batch", str(pairs), "--output", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write" in capfd.readouterr().err


@pytest.mark.slow
def test_a_pair_names_its_series(tmp_path):
    wanted, other = "1.2.3.4.1", "1.2.3.4.2"  # the other one is larger
    write_dicom(textured(seed=1), tmp_path / "scan", range(8), uid=wanted)
    write_dicom(textured(), tmp_path / "scan", uid=other, first=101)
    (pairs := tmp_path / "pairs.csv").write_text(f"name,fixed,moving,series\na,scan,scan,{wanted} 1.2.3.9\n")
    fast = ["--iterations", "2", "--no-report", "--align", "none", "--preset", "fast"]
    assert main(["batch", str(pairs), "--output", str(tmp_path / "out"), *fast]) == 0
    warped = sitk.ReadImage(str(tmp_path / "out" / "a" / "warped.nii.gz"))
    assert warped.GetSize() == (14, 12, 8)
    (pair,) = read_pairs(pairs)
    assert set(pair.files) == {"fixed", "moving"} and pair.series == (wanted, "1.2.3.9")
    settings = nephi.settings.load(tmp_path / "out" / "settings.json")
    report = finished_report(tmp_path / "out" / "a", pair, settings, True)
    assert report.inputs["series"] == [wanted, "1.2.3.9"]
    for series in ((), (other,)):
        assert finished_report(tmp_path / "out" / "a", replace(pair, series=series), settings, True) is None


def test_lists_from_spreadsheets(tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        '\ufeffName;Fixed;Moving;fixed_mask;regions\r\n"a, b"; e.nii ;i.nii;;lobes.nii\r\n;;;;\r\n', encoding="utf-8"
    )
    (pair,) = read_pairs(pairs)
    assert pair.name == "a, b"
    assert pair.files == {"fixed": tmp_path / "e.nii", "moving": tmp_path / "i.nii", "regions": tmp_path / "lobes.nii"}
    pairs.write_text("name\tfixed\tmoving\nx\t/abs/e.nii\ti.nii\n")
    assert read_pairs(pairs)[0].files["fixed"] == Path("/abs/e.nii")
    with pytest.raises(NephiError, match="cannot read"):
        read_pairs(tmp_path)


def test_a_list_may_name_files_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\na,~/f.nrrd,m.nrrd\n")
    (pair,) = read_pairs(tmp_path / "pairs.csv")
    assert pair.files == {"fixed": tmp_path / "home" / "f.nrrd", "moving": tmp_path / "m.nrrd"}


def test_a_row_without_an_image_fails_alone(tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("name,fixed,moving\na,f.nii,\n")
    assert main(["batch", str(pairs), "--output", str(tmp_path / "out")]) == 1
    assert table(tmp_path / "out")["a"]["error"] == "no moving image is given"


def test_the_batch_itself_needs_neither_torch_nor_simpleitk(tmp_path):
    """Slicer runs it in its own process, where torch may be missing; each pair then says so."""
    block = tmp_path / "block"
    block.mkdir()
    for name in ("torch", "SimpleITK", "numpy"):
        (block / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name='{name}')\n")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(_GOOD)
    here = {**_HERE, "PYTHONPATH": os.pathsep.join([str(block), _HERE["PYTHONPATH"]])}
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr == ""
    error = table(tmp_path / "out")["a"]["error"]
    assert "package" in error and "is missing" in error
