"""Registration of nodes of a scene, in a process of its own, watched by polling."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from nephi.errors import NephiError
from nephi.process import engine_environment

from . import display
from . import scene as nodes
from .job import Job, LogicError
from .outputs import Outputs
from .runner import EngineProcess, failure, find_python

PREVIEW_SECONDS = 1.0
_EARLY = 0.05  # part of the optimisation before which the run's end can't be foretold


class Logic:
    """Registers nodes of ``scene``; ``python``: the engine's interpreter, ``environment``: of its process."""

    def __init__(self, scene, python: str | None = None, environment: dict[str, str] | None = None):
        self.scene = scene
        self.python = python or find_python()
        self.environment = engine_environment(environment)
        self._devices: list[dict] | None = None

    def problem(self, job: Job) -> str:
        """Why this can't be registered yet, in words; "" where it can."""
        return job.problem()

    def estimate(self, job: Job):
        """Rough seconds and memory_mb that the engine will need (nephi's Estimate); None for a bad job."""
        from nephi.measure.estimate import estimate

        if self.problem(job):
            return None
        geometry = []
        for volume in (job.fixed, job.moving):
            geometry += [volume.GetImageData().GetDimensions(), volume.GetSpacing()]
        return estimate(job.settings(), *geometry, job.device)

    def devices(self) -> list[dict]:
        """What ``Job.device`` may be besides "auto": name and label, of GPUs memory_mb. Asked of the engine once."""
        if self._devices is None:
            command = [self.python, "-m", "nephi", "devices"]
            try:
                done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
                self._devices = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
            except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
                raise LogicError(f"The engine did not tell its devices: {error}") from None
            if self._devices is None:
                raise LogicError(failure(done.returncode, done.stderr.splitlines()))
        return self._devices

    def start(self, job: Job) -> Run:
        """Write the inputs and start the engine; raises LogicError with one line. One call to ``poll`` a tick."""
        reason = self.problem(job)
        if reason:
            raise LogicError(reason)
        folder = Path(tempfile.mkdtemp(prefix="nephi-"))
        try:
            arguments, region_names = _write_inputs(job, folder)
            command = [self.python, "-m", "nephi", "register", *arguments]
            process = EngineProcess(command, self.environment, folder)
        except (OSError, nodes.FrameError, NephiError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise LogicError(f"The registration could not be started: {error}") from None
        return Run(self.scene, job, process, folder, region_names)


class Run:
    """A registration under way. Its ``forward`` transform node follows the optimisation and becomes the result."""

    def __init__(self, scene, job: Job, process: EngineProcess, folder: Path, region_names: dict[int, str]):
        self.state, self.stage, self.fraction = "running", "starting", 0.0
        self.log: list[str] = []
        self.error = ""
        self.outputs: Outputs | None = None
        self._scene, self._job, self._process, self._folder = scene, job, process, folder
        self._region_names = region_names
        self._pace: tuple[float, float] | None = None  # seconds and fraction when the optimisation began
        self._end: float | None = None  # when it will be done, by the clock
        self._live = None  # the volume that slides, while it is shown
        name = f"{job.moving.GetName()} to {job.fixed.GetName()}"
        self.forward = nodes.add(scene, "vtkMRMLGridTransformNode", name)
        self.forward.SetNodeReferenceID("NePhi.Fixed", job.fixed.GetID())
        self.forward.SetNodeReferenceID("NePhi.Moving", job.moving.GetID())

    @property
    def seconds_left(self) -> float | None:
        """Until the run ends, by the pace of the optimisation; None before that is known."""
        return None if self._end is None or self.state != "running" else max(0.0, self._end - time.monotonic())

    def poll(self) -> bool:
        """Take in what the engine said; on success make the output nodes. True while it runs."""
        if self.state != "running":
            return False
        needed = {"fixed volume": self._job.fixed, "moving volume": self._job.moving, "transform": self.forward}
        for name, node in needed.items():
            if self._scene.GetNodeByID(node.GetID() or "") is not node:
                self.cancel()
                self.error = f"The {name} was removed while the registration ran."
                return False
        code = self._process.exit_code()  # before its last words are read
        preview = None
        for message in self._process.messages():
            if isinstance(message, dict):
                preview = message.get("preview", preview)
                self._progress(message)
            elif message.strip():
                self.log.append(message)
        if code is None:
            if preview is not None:
                self._show(Path(preview))
            return True
        self._process.end()
        if code == 0:
            self._finish()
        else:
            self._give_up("failed", failure(code, self.log))
        return False

    def cancel(self) -> None:
        """End the engine and everything it started; the scene is as before the run."""
        if self.state == "running":
            self._process.end()
            self._give_up("cancelled", "")

    def show_live(self, on: bool) -> None:
        """Let the slice views show the moving image slide over the fixed one, for as long as the run goes on."""
        if self._live is not None:
            display.hide_live(self._live)
            self._live = None
        if on and self.state == "running":
            self._live = display.show_live(self.forward, self._job.fixed, self._job.moving)

    def _progress(self, message: dict) -> None:
        stage, seconds = message.get("stage", self.stage), message.get("seconds", 0.0)
        if stage != self.stage:
            self.log.append(f"{seconds:7.1f} s  {stage}")
        self.stage, self.fraction = stage, message.get("fraction", self.fraction)
        if self._pace is None and stage == "optimising":
            self._pace = seconds, self.fraction
        if self._pace is not None and self.fraction > self._pace[1] + _EARLY:
            rate = (seconds - self._pace[0]) / (self.fraction - self._pace[1])
            self._end = time.monotonic() + rate * (1 - self.fraction)

    def _show(self, preview: Path) -> None:
        try:
            grid = nodes.read_grid_transform(preview)
        except OSError:  # the engine has just taken it away
            return
        self.forward.SetAndObserveTransformFromParent(grid)

    def _finish(self) -> None:
        job = self._job
        try:
            result = self._folder / "result"
            self.outputs = Outputs.read(result, self.forward, job.fixed, job.moving, self._region_names)
        except (OSError, ValueError, KeyError) as error:
            self._give_up("failed", f"The engine's result could not be read: {error}")
            return
        self.show_live(False)
        for file in self._folder.iterdir():  # the inputs; the result stays as long as the application, to be saved
            if file.is_file():
                file.unlink()
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self.log += self.outputs.report.get("warnings", [])
        self.state, self.stage, self.fraction = "done", "done", 1.0

    def _give_up(self, state: str, error: str) -> None:
        self.show_live(False)
        nodes.remove(self._scene, self.forward)
        shutil.rmtree(self._folder, ignore_errors=True)
        self.state, self.error = state, error


def _write_inputs(job: Job, folder: Path) -> tuple[list[str], dict[int, str]]:
    """The engine's arguments for files written into ``folder``, and what the labels of the regions are called."""
    arguments, region_names = [], {}
    for role, volume in (("fixed", job.fixed), ("moving", job.moving)):
        nodes.write_volume(volume, folder / f"{role}.nrrd")
        arguments.append(str(folder / f"{role}.nrrd"))

    def option(name: str, file: str) -> Path:
        arguments.extend([f"--{name}", str(folder / file)])
        return folder / file

    if job.fixed_mask is not None:
        nodes.write_labels(job.fixed_mask, job.fixed, option("fixed-mask", "fixed_mask.nrrd"), job.fixed_segment)
    if job.moving_mask is not None:
        nodes.write_labels(job.moving_mask, job.moving, option("moving-mask", "moving_mask.nrrd"), job.moving_segment)
    regions = job.measured_regions()
    if regions is not None:
        region_names = nodes.write_labels(regions, job.fixed, option("regions", "regions.nrrd"))
    if job.fixed_landmarks is not None:
        nodes.write_points(job.fixed_landmarks, option("fixed-landmarks", "fixed_landmarks.csv"))
        nodes.write_points(job.moving_landmarks, option("moving-landmarks", "moving_landmarks.csv"))
    if job.initial_transform is not None:
        nodes.write_linear_transform(job.initial_transform, option("align", "initial_transform.h5"))
    option("settings", "settings.json").write_text(job.settings().to_json(), encoding="utf-8")
    option("output", "result")
    if not job.auto_mask:
        arguments.append("--no-auto-mask")
    arguments += ["--device", job.device, "--progress", "json", "--preview", f"{PREVIEW_SECONDS:g}"]
    return arguments, region_names
