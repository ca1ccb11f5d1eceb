"""Runs of real engine processes: progress, cancel, failures."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from helpers import (
    add_segment,
    finish,
    matrix_of,
    node_list,
    phantom_job,
    points_in,
    rigid,
    transformed,
)
from NePhiRegistrationLib.job import Job, LogicError
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.words import failure, in_panel_words
from slicer.util import arrayFromVolume, vtkMatrixFromArray


def running(run, until) -> None:
    """Poll until a condition holds while the engine still runs."""
    end = time.monotonic() + 60
    while not until(run):
        assert run.poll() and time.monotonic() < end, (run.state, run.error, run.log)
        time.sleep(0.02)


def long(scene, phantom, **changes) -> Job:
    return phantom_job(scene, phantom, **{"overrides": {"fit": {"iterations": 100000}}, **changes})


def input_state(job: Job):
    """What could be changed of the inputs."""
    state = []
    for node in (job.fixed, job.moving, job.fixed_mask, job.moving_mask):
        matrix = vtkMatrixFromArray(np.eye(4))
        node.GetIJKToRASMatrix(matrix)
        voxels = arrayFromVolume(node)
        state.append(
            (
                voxels.tobytes(),
                str(slicer.util.arrayFromVTKMatrix(matrix)),
                node.GetTransformNodeID(),
                node.GetName(),
                node.GetImageData().GetMTime(),
            )
        )
    return state


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks at processes through /proc")
def test_cancel_ends_the_whole_process_tree_and_leaves_the_scene(scene, phantom, tmp_path):
    """The interpreter is a launcher that waits for another process, as PythonSlicer is, and has started one more."""
    launcher = tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\nsleep 1000 &\n"{sys.executable}" "$@"\nexit $?\n')
    launcher.chmod(0o755)
    job = long(scene, phantom)
    before, inputs = node_list(scene), input_state(job)
    run = Logic(scene, python=str(launcher)).start(job)
    folder = run._folder
    running(run, lambda run: run.stage == "optimising")
    run.show_live(True)
    leader = run._process.pid
    tree = [leader, *children(leader)]
    assert len(tree) == 3 and all(map(alive, tree)) and len(node_list(scene)) > len(before)
    began = time.monotonic()
    run.cancel()
    while any(map(alive, tree)):
        assert time.monotonic() - began < 2
    assert run.state == "cancelled" and not run.poll() and run.outputs is None
    assert node_list(scene) == before and input_state(job) == inputs
    assert not folder.path.exists()


def test_engine_killed_mid_run_fails_in_words_and_leaves_the_scene(scene, phantom):
    job = long(scene, phantom)
    before, inputs = node_list(scene), input_state(job)
    run = Logic(scene).start(job)
    running(run, lambda run: run.stage == "optimising")
    os.kill(run._process.pid, signal.SIGKILL)
    finish(run, 5)
    assert run.state == "failed" and "memory" in run.error and "\n" not in run.error
    assert node_list(scene) == before and input_state(job) == inputs


def test_progress_previews_and_time_left_come_as_it_runs(scene, phantom):
    run = Logic(scene).start(long(scene, phantom, overrides={"fit": {"iterations": 4000}}))
    points, shown, fractions = points_in(phantom.fixed, 20), [], []

    def two_previews(run):
        now = transformed(run.forward, points)
        fractions.append(run.fraction)
        if not shown or not np.array_equal(shown[-1], now):
            shown.append(now)
        return len(shown) >= 3 and run.seconds_left is not None

    running(run, two_previews)
    assert run.seconds_left > 0 and fractions == sorted(fractions) and fractions[-1] > 0
    assert [line.split("s  ")[-1] for line in run.log[:2]] == ["Reading the volumes", "Preparing the masks"]
    np.testing.assert_array_equal(shown[0], points)  # nothing known yet
    offset = np.array(phantom.moving.GetOrigin()) - np.array(phantom.fixed.GetOrigin())
    aligned = np.linalg.norm(shown[1] - points, axis=1).mean()
    assert aligned == pytest.approx(np.linalg.norm(offset), abs=25)  # the alignment comes first
    run.cancel()


def test_live_view_shows_a_second_node_under_the_transform(finished, scene, phantom):
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    job = long(scene, phantom)
    composite.SetBackgroundVolumeID(job.moving.GetID())
    run = Logic(scene).start(job)
    run.show_live(True)
    live = scene.GetNodeByID(composite.GetForegroundVolumeID())
    assert live is not job.moving and live.GetImageData() is job.moving.GetImageData()
    assert live.GetParentTransformNode() is run.forward and job.moving.GetParentTransformNode() is None
    assert composite.GetBackgroundVolumeID() == job.fixed.GetID()
    run.cancel()
    assert composite.GetBackgroundVolumeID() == job.moving.GetID() and composite.GetForegroundVolumeID() is None


def test_scene_closed_while_it_runs_ends_the_engine(scene, phantom):
    run = Logic(scene).start(long(scene, phantom))
    running(run, lambda run: run.stage == "optimising")
    pid = run._process.pid
    scene.Clear(False)
    assert not run.poll() and run.state == "cancelled" and "removed" in run.error
    assert not alive(pid) and scene.GetNumberOfNodesByClass("vtkMRMLTransformNode") == 0


@pytest.mark.parametrize("name", ["fixed volume", "moving volume", "transform"])
def test_removed_node_ends_the_run_and_leaves_nothing(scene, phantom, name):
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    job = long(scene, phantom)
    composite.SetBackgroundVolumeID(job.fixed_mask.GetID())
    run = Logic(scene).start(job)
    run.show_live(True)
    pid = run._process.pid
    removed = {"fixed volume": job.fixed, "moving volume": job.moving, "transform": run.forward}[name]
    scene.RemoveNode(removed)
    assert not run.poll() and run.error == f"The {name} was removed while the registration ran."
    assert run.state == "cancelled" and not alive(pid)
    own = {node.GetID() for node in (job.fixed, job.moving, job.fixed_mask, job.moving_mask) if node is not removed}
    assert {node for node, _ in node_list(scene) if "Volume" in node and "Display" not in node} == own
    assert scene.GetNumberOfNodesByClass("vtkMRMLTransformNode") == 0
    assert composite.GetForegroundVolumeID() is None
    assert composite.GetBackgroundVolumeID() == job.fixed_mask.GetID()


def test_initial_transform_is_used_as_if_the_moving_volume_lay_under_it(scene, phantom):
    """Its node lies under a parent itself, so that the way to world counts."""
    matrix = rigid((5, 0, 10), (-20, 10, 30))
    node, parent = (scene.AddNewNodeByClass("vtkMRMLLinearTransformNode") for _ in range(2))
    outer = rigid((0, 30, 0), (1, 2, 3))
    parent.SetMatrixTransformToParent(vtkMatrixFromArray(outer))
    node.SetMatrixTransformToParent(vtkMatrixFromArray(np.linalg.inv(outer) @ matrix))
    node.SetAndObserveTransformNodeID(parent.GetID())
    job = phantom_job(scene, phantom, initial_transform=node, overrides={"fit": {"iterations": 0}})
    run = finish(Logic(scene).start(job))
    assert run.state == "done", run.error
    points = points_in(phantom.fixed)
    expected = (np.c_[points, np.ones(len(points))] @ np.linalg.inv(matrix).T)[:, :3]
    assert np.abs(transformed(run.outputs.forward, points) - expected).max() < 1e-3
    assert run.outputs.report["alignment"]["method"] == "given"


def test_segments_of_the_mask_are_measured_where_no_lobes_are_chosen(scene, phantom):
    job = phantom_job(scene, phantom, overrides={"fit": {"iterations": 0}})
    both = sitk.GetArrayFromImage(phantom.fixed_mask)
    job.fixed_mask = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Lungs")
    names = {}
    for name, part in (("right lung", np.s_[..., :32]), ("left lung", np.s_[..., 32:])):
        half = np.zeros_like(both)
        half[part] = both[part]
        names[name] = add_segment(job.fixed_mask, half, matrix_of(phantom.fixed_mask), name)
    run = finish(Logic(scene).start(job))
    table = run.outputs.ventilation.GetTable()
    assert [table.GetValue(i, 0).ToString() for i in range(table.GetNumberOfRows())] == list(names)
    measured_ml = sum(table.GetValue(i, 1).ToDouble() for i in range(2))
    assert measured_ml == pytest.approx(np.count_nonzero(both) * 5.0**3 / 1000, rel=1e-3)
    job.fixed_segment = names["left lung"]
    assert job.measured_regions() is None  # one region is the mask itself
    job.regions = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    assert job.measured_regions() is job.regions


def test_engines_complaint_reaches_the_user_as_one_line(scene, phantom):
    job = phantom_job(scene, phantom)
    arrayFromVolume(job.fixed_mask)[:] = 0
    before = node_list(scene)
    run = finish(Logic(scene).start(job))
    assert run.state == "failed" and run.error == "fixed mask: the mask is empty"
    assert node_list(scene) == before


@pytest.mark.parametrize(
    "code, log, words",
    [
        (1, ["Traceback", "ModuleNotFoundError: No module named 'torch'"], "PyTorch is not installed"),
        (1, ["ModuleNotFoundError: No module named 'safetensors'"], "safetensors"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory. Tried"], "graphics card"),
        (-9, [], "memory"),
        (3, ["noise", "nephi: fixed image: no such file"], "fixed image: no such file"),
        (3, ["strange"], "strange"),
    ],
)
def test_every_failure_has_one_line(code, log, words):
    assert words in failure(code, log) and "\n" not in failure(code, log)


def test_no_message_of_a_registration_speaks_of_command_line_options():
    """Whatever the core says while it registers; its command line's own complaints never reach the panel."""
    spoken = set()
    core = Path(nephi.__file__).parent
    for name in ("images/align", "images/image_pair", "fitting/optimise", "registration", "report/write"):
        code = (core / f"{name}.py").read_text(encoding="utf-8")
        spoken.update(re.findall(r"(?:with )?--[a-z{}-]+(?: [a-z]+)?", code))
    assert len(spoken) >= 4
    for text in spoken:
        for role in ("fixed", "moving"):
            assert "--" not in in_panel_words(text.replace("{name}", role)), text


def test_missing_interpreter_is_told(scene, phantom):
    before = node_list(scene)
    with pytest.raises(LogicError, match="could not be started"):
        Logic(scene, python="/nowhere/python").start(phantom_job(scene, phantom))
    assert len(node_list(scene)) == len(before) + 4  # the job's own


def test_devices_and_estimate(scene, phantom):
    logic = Logic(scene)
    assert logic.devices()[0]["name"] == "cpu" and "CPU" in logic.devices()[0]["label"]
    job = phantom_job(scene, phantom)
    quick, thorough = logic.estimate(job), logic.estimate(phantom_job(scene, phantom, preset="accurate", overrides={}))
    assert 0 < quick.seconds < thorough.seconds and thorough.memory_mb > 100
    job.fixed = None
    assert logic.estimate(job) is None
