"""The engine's process: what it imports, and that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nephi
import pytest
from nephi import process


def test_this_very_package_comes_first_and_no_output_is_buffered(monkeypatch):
    folder = str(Path(nephi.__file__).parents[1])
    monkeypatch.setattr(process, "_FOLDER", Path(folder) / "qt-scripted-modules")
    given = {"PYTHONPATH": "theirs", "HOME": "there"}
    environment = process.engine_environment(given)
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(process._FOLDER), "theirs"]
    assert process.engine_environment({})["PYTHONPATH"] == str(process._FOLDER)
    assert environment["HOME"] == "there" and environment["PYTHONUNBUFFERED"] == "1"
    assert given == {"PYTHONPATH": "theirs", "HOME": "there"}


def test_a_folder_of_installed_packages_is_not_put_in_front_of_the_user_s(monkeypatch):
    monkeypatch.setattr(process, "_FOLDER", Path("/usr/lib/python3/dist-packages"))
    assert process.engine_environment({"PYTHONPATH": "theirs"})["PYTHONPATH"] == "theirs"
    assert "PYTHONPATH" not in process.engine_environment({})


_FAMILY = """
import signal, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def tidy(*_):
    Path("tidied").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, tidy)
Path("pids.part").write_text(str(child.pid))
Path("pids.part").rename("pids")
time.sleep(600)
"""


def _alive(pid: int) -> bool:
    """Runs; a process that has ended and waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize("patience_s", [0.0, 20.0])
def test_the_end_of_a_process_is_that_of_its_children(tmp_path, patience_s):
    with open(tmp_path / "log", "wb") as log:
        parent = process.start([sys.executable, "-c", _FAMILY], stdout=log, stderr=log, folder=tmp_path)
    while not (tmp_path / "pids").exists() and parent.poll() is None:
        time.sleep(0.02)
    child = int((tmp_path / "pids").read_text())
    assert _alive(parent.pid) and _alive(child)
    process.end(parent, patience_s)
    assert parent.returncode is not None
    end = time.monotonic() + 20
    while _alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _alive(child)
    assert (tmp_path / "tidied").exists() == bool(patience_s)
    process.end(parent)  # once more does no harm


def test_no_console_window_opens_on_windows(monkeypatch, tmp_path):
    """Not run on Windows: every way to start a process asks for none, and no other module starts one."""
    flags = []

    class Process:
        pid = 1

        def __init__(self, *_, **options):
            flags.append(options["creationflags"])

        def poll(self):
            return None

        def wait(self):
            return 0

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(subprocess, "run", lambda *_, **options: flags.append(options["creationflags"]))
    process.answer(["any"])
    with open(tmp_path / "log", "wb") as log:
        process.end(process.start(["any"], stdout=log, stderr=log))
    assert flags == [0x08000000, 0x08000200, 0x08000000]
    starting = {
        path.name
        for path in Path(nephi.__file__).parent.rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in ("Popen(", "subprocess.run("))
    }
    assert starting == {"process.py"}
