"""The batch script for ``Slicer --python-script``, run the way Slicer runs a script, by an ordinary Python."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nephi.synthetic.phantom import make_phantom
from places import MODULE

SCRIPT = MODULE / "NePhiRegistrationLib" / "batch.py"
# what Slicer's executeFile does: the script's text in the main namespace, its folder first in the path
_AS_SLICER = (
    "import sys\n"
    "sys.argv.pop(0)\n"
    "path = sys.argv[0]\n"
    "sys.path.insert(0, path.rpartition('/')[0])\n"
    "g = globals(); g['__file__'] = path\n"
    "exec(open(path).read(), g)\n"
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", _AS_SLICER, str(SCRIPT), *arguments]


@pytest.fixture
def pairs(tmp_path) -> Path:
    phantom = make_phantom((96, 80), 4.0, dimension=2)
    phantom.write(tmp_path)
    rows = "name,fixed,moving\ngood,fixed.nii.gz,moving.nii.gz\nbad,fixed.nii.gz,absent.nii.gz\n"
    (tmp_path / "pairs.csv").write_text(rows)
    return tmp_path / "pairs.csv"


def table(output: Path) -> list[dict]:
    with open(output / "summary.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def environment(tmp_path: Path) -> dict:
    """Without the package on the path, and with a torch that must not be loaded by this process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch' and '-m' not in sys.orig_argv:\n"
        "            raise RuntimeError('torch was loaded in the process of the application')\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}


def test_a_batch_as_slicer_runs_it(pairs, tmp_path):
    output = tmp_path / "out"
    arguments = (str(pairs), "--output", str(output), "--iterations", "4", "--no-report", "--no-auto-mask")
    place = tmp_path / "path"
    place.mkdir()
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, check=False, env=environment(place), cwd="/"
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == "" and "1 of 2 pairs done" in done.stdout
    good, bad = table(output)
    assert good["status"] == "done" and (output / "good" / "transform.h5").exists()
    assert bad["status"] == "failed" and "absent.nii.gz" in bad["error"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
def test_ctrl_c_ends_it_even_where_the_application_ignores_it(pairs, tmp_path):
    output = tmp_path / "out"
    arguments = (str(pairs), "--output", str(output), "--iterations", "100000")
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    batch = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ignore
    )
    try:
        end = time.perf_counter() + 60
        while not (output / "good" / "nephi.log").exists() and time.perf_counter() < end:
            time.sleep(0.05)
        time.sleep(2)
        batch.send_signal(signal.SIGINT)
        _, errors = batch.communicate(timeout=20)
    finally:
        batch.kill()
    assert batch.returncode == 130 and errors.startswith("nephi: interrupted")
    assert [row["status"] for row in table(output)] == ["interrupted", "waiting"]


def test_wrong_arguments_are_told(tmp_path):
    done = subprocess.run(command(str(tmp_path / "no.csv"), "--output", str(tmp_path)), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("nephi: list of pairs: no such file")
