"""What is left of a registration: folders with patients' images, processes, nodes, when things end in other ways."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nephi
import NePhiRegistrationLib
import pytest
import SimpleITK as sitk
import vtk
from helpers import finish, node_list, phantom_job
from nephi import runfolder
from nephi.runfolder import LOCK, RunFolder, remove_abandoned
from NePhiRegistrationLib.batchrun import BatchRun
from NePhiRegistrationLib.job import LogicError
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.scene import remove

ENDLESS = {"overrides": {"fit": {"iterations": 100000}}}
_MODULE = Path(nephi.__file__).parents[1]  # holds both packages
posix = pytest.mark.skipif(os.name != "posix", reason="processes are looked at through /proc")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait(done, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_folder_is_removed_with_the_last_reference(tmp_path):
    folder = RunFolder(tmp_path / "made too")
    path = folder.path
    (path / "image.nrrd").write_bytes(b"patient")
    if os.name == "posix":
        assert path.stat().st_mode & 0o077 == 0  # no other user's business
    remove_abandoned(path.parent)
    assert (path / "image.nrrd").exists()  # its owner lives
    del folder
    gc.collect()
    assert not path.exists()


def test_abandoned_folders_only_are_removed(tmp_path):
    kept = RunFolder(tmp_path)
    abandoned, foreign, fresh = (tmp_path / name for name in ("nephi-run-1", "other", "nephi-run-2"))
    for folder in (abandoned, foreign, fresh):
        folder.mkdir()
        (folder / "image.nrrd").touch()
    (abandoned / LOCK).touch()
    (foreign / LOCK).touch()
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {kept.path.name, "other", "nephi-run-2"}


def test_a_folder_taken_for_abandoned_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    taken = []

    def slow(lock):
        if not taken:
            taken.append(True)
            remove_abandoned(tmp_path)
        return try_lock(lock)

    try_lock = runfolder.try_lock
    monkeypatch.setattr(runfolder, "try_lock", slow)
    folder = RunFolder(tmp_path)
    monkeypatch.undo()
    remove_abandoned(tmp_path)
    assert folder.lock.exists() and [folder.path] == list(tmp_path.iterdir())


_HOST = """
import sys, time
sys.path[:0] = {paths!r}
import slicer
from helpers import phantom_job
from nephi.synthetic.phantom import make_phantom
from NePhiRegistrationLib.logic import Logic
scene = slicer.vtkMRMLScene()
job = phantom_job(scene, make_phantom(size=(64, 56, 56), spacing_mm=5.0), overrides={{"fit": {{"iterations": 100000}}}})
run = Logic(scene, temporary={folder!r}).start(job)
while run.stage != "optimising":
    run.poll()
    time.sleep(0.05)
print(run._process.pid, flush=True)
while True:
    run.poll()
    time.sleep(0.05)
"""


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_engine_and_images_go_with_the_application(tmp_path, number):
    code = _HOST.format(paths=[str(Path(__file__).parent), str(_MODULE)], folder=str(tmp_path))
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    engine = int(host.stdout.readline())
    assert alive(engine) and list(tmp_path.glob("*/fixed.nrrd"))
    host.send_signal(number)
    host.wait(10)
    wait(lambda: not alive(engine), 10)
    remove_abandoned(tmp_path)  # the next start
    assert list(tmp_path.iterdir()) == []


@posix
def test_images_of_an_application_that_died_with_its_engine_go_at_the_next_start(tmp_path, scene):
    code = _HOST.format(paths=[str(Path(__file__).parent), str(_MODULE)], folder=str(tmp_path))
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    engine = int(host.stdout.readline())
    os.kill(engine, signal.SIGSTOP)  # as if the power failed: it can do nothing any more
    host.kill()
    host.wait(10)
    os.killpg(engine, signal.SIGKILL)
    assert list(tmp_path.glob("*/fixed.nrrd"))
    Logic(scene, temporary=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["starting", "optimising"])
def test_folder_vanishing_during_a_run_ends_it_with_one_line(scene, phantom, tmp_path, stage):
    job = phantom_job(scene, phantom, **ENDLESS)
    before = node_list(scene)
    run = Logic(scene, temporary=tmp_path).start(job)
    run.show_live(True)
    while run.stage != stage:
        run.poll()
        time.sleep(0.05)
    shutil.rmtree(run._folder.path, ignore_errors=True)
    wait(lambda: not run.poll())
    assert run.state == "failed" and "folder" in run.error and "\n" not in run.error
    assert node_list(scene) == before and list(tmp_path.iterdir()) == []
    assert run._process.exit_code() is not None


def test_folder_vanishing_during_a_list_of_pairs_ends_it_with_one_line(scene, phantom, tmp_path):
    for name in ("fixed", "moving"):
        sitk.WriteImage(getattr(phantom, name), str(tmp_path / f"{name}.nii.gz"))
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\none,fixed.nii.gz,moving.nii.gz\n", encoding="utf-8")
    logic = Logic(scene, temporary=tmp_path / "runs")
    pairs, results = str(tmp_path / "pairs.csv"), str(tmp_path / "results")
    run = BatchRun(logic, pairs, results, phantom_job(scene, phantom, **ENDLESS))
    run.poll()
    shutil.rmtree(run._folder.path)
    wait(lambda: not run.poll())
    assert "was removed while it ran" in run.error and run.error == run.text("results") and "\n" not in run.error
    assert run._process.exit_code() is not None


def test_result_folder_lives_as_long_as_the_result(scene, phantom, tmp_path):
    job = phantom_job(scene, phantom, overrides={"fit": {"iterations": 1}})
    outputs = Logic(scene, temporary=tmp_path).process(job)
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [LOCK, "result"]
    assert outputs.folder == folder / "result" and (outputs.folder / "transform.h5").is_file()
    del outputs
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_process_waits_and_raises(scene, phantom, tmp_path):
    seen = []
    logic = Logic(scene, temporary=tmp_path)
    job = phantom_job(scene, phantom, overrides={"fit": {"iterations": 1}})
    outputs = logic.process(job, watch=lambda run: seen.append(run.stage_text))
    assert outputs.warped.GetImageData().GetDimensions() == job.fixed.GetImageData().GetDimensions()
    assert "Starting" in seen
    before = node_list(scene)
    job.align = "magic"
    with pytest.raises(LogicError, match="magic"):
        logic.process(job)
    job.align = "auto"

    def interrupt(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logic.process(job, watch=interrupt)
    assert node_list(scene) == before and len(list(tmp_path.iterdir())) == 1


def test_the_library_leaves_starting_processes_to_the_core():
    code = "".join(path.read_text(encoding="utf-8") for path in Path(NePhiRegistrationLib.__file__).parent.glob("*.py"))
    assert "process.start(" in code and "Popen(" not in code and "subprocess.run(" not in code


def test_report_that_makes_no_sense_fails_in_one_line(scene, phantom, tmp_path, monkeypatch):
    """The engine ended well, its report is not what it should be: no nodes stay."""
    job = phantom_job(scene, phantom, overrides={"fit": {"iterations": 1}})
    before = node_list(scene)
    monkeypatch.setattr("NePhiRegistrationLib.tables.fold_table", lambda *_: {}["regions"])
    run = finish(Logic(scene, temporary=tmp_path).start(job))
    assert run.state == "failed" and "could not be read" in run.error
    nodes = [entry for entry in node_list(scene) if "SubjectHierarchy" not in entry[0]]
    assert nodes == before and list(tmp_path.iterdir()) == []


def test_nothing_of_a_removed_result_stays_in_memory(scene, phantom, tmp_path):
    job = phantom_job(scene, phantom, overrides={"fit": {"iterations": 1}})
    outputs = Logic(scene, temporary=tmp_path).process(job)
    watched = [vtk.vtkWeakReference() for _ in range(2)]
    for watch, volume in zip(watched, (outputs.warped, outputs.jacobian), strict=True):
        watch.Set(volume.GetImageData())
    for node in outputs.nodes():
        remove(scene, node)  # with the display nodes, which hold the image too
    assert None not in [watch.Get() for watch in watched]
    del outputs, volume, node
    gc.collect()
    assert [watch.Get() for watch in watched] == [None, None]
