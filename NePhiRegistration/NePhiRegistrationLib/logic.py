"""Registration of nodes of a scene, in a process of its own, watched by polling."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nephi.errors import NephiError
from nephi.process import answer, engine_command, engine_environment
from nephi.runfolder import RunFolder, remove_abandoned

from . import display
from . import scene as nodes
from .i18n import tr as _
from .job import Job, LogicError
from .outputs import Outputs, new_forward
from .runner import EngineProcess, find_python
from .words import failure, in_panel_words, stage_text

PREVIEW_SECONDS = 1.0
_LOADED = ("transform", "warped", "jacobian", "disagreement", "error-map")  # outputs of which nodes are made
_POLL_SECONDS = 0.1


class Logic:
    """Registers nodes of ``scene``; ``python``: the engine's interpreter, ``environment``: of its process.

    ``temporary``: where the runs' folders are made, by default the system's folder for temporary files. What
    applications that were killed have left there is removed.
    """

    def __init__(
        self,
        scene,
        python: str | None = None,
        environment: dict[str, str] | None = None,
        temporary: str | Path | None = None,
    ):
        self.scene = scene
        self.temporary = Path(temporary or tempfile.gettempdir())
        remove_abandoned(self.temporary)
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
        return estimate(job.settings(), *geometry, job.device, _outputs(job))

    def devices(self) -> list[dict]:
        """What ``Job.device`` may be besides "auto": name and label, of GPUs memory_mb. Asked of the engine once."""
        if self._devices is None:
            try:
                done = answer(engine_command("devices", python=self.python), self.environment, timeout_s=120)
                self._devices = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
            except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
                raise LogicError(_("The engine could not list its devices: {reason}").format(reason=error)) from None
            if self._devices is None:
                raise LogicError(failure(done.returncode, done.stderr.splitlines()))
        return self._devices

    def start(self, job: Job) -> Run:
        """Write the inputs and start the engine; raises LogicError with one line. One call to ``poll`` a tick."""
        reason = self.problem(job)
        if reason:
            raise LogicError(reason)
        folder = None
        try:
            folder = RunFolder(self.temporary)
            arguments = _write_inputs(job, folder.path)
            command = engine_command("register", *arguments, python=self.python, owner=folder)
            process = EngineProcess(command, self.environment, folder.path)
        except (OSError, nodes.FrameError, NephiError) as error:
            if folder is not None:
                folder.remove()
            raise LogicError(_("The registration could not be started: {reason}").format(reason=error)) from None
        return Run(self.scene, job, process, folder)

    def process(self, job: Job, watch: Callable[[Run], None] | None = None) -> Outputs:
        """Register and wait for the result, for scripts; ``watch(run)`` is called ten times a second meanwhile.

        Raises LogicError with one line.
        """
        run = self.start(job)
        try:
            while run.poll():
                if watch is not None:
                    watch(run)
                time.sleep(_POLL_SECONDS)
        finally:
            run.cancel()  # where waiting was interrupted
        if run.outputs is None:
            raise LogicError(run.error or _("The registration was cancelled."))
        return run.outputs


class Run:
    """A registration under way. Its ``forward`` transform node follows the optimisation and becomes the result."""

    def __init__(self, scene, job: Job, process: EngineProcess, folder: RunFolder):
        self.state, self.stage, self.fraction = "running", "starting", 0.0
        self.log: list[str] = []
        self.error = ""
        self.outputs: Outputs | None = None
        self.job = job
        self._scene, self._process, self._folder = scene, process, folder
        self._end: float | None = None  # when it will be done, by the clock
        self._live = None  # the volume that slides, while it is shown
        self._layers = display.layers(scene)
        self.forward = new_forward(job.fixed, job.moving, job.label)

    @property
    def seconds_left(self) -> float | None:
        """Until the result is there, as the engine expects, at least 1; None where that is not known."""
        known = self._end is not None and self.state == "running"
        return max(1.0, self._end - time.monotonic()) if known else None

    @property
    def stage_text(self) -> str:
        return stage_text(self.stage)

    @property
    def at_its_end(self) -> bool:
        """Whether the engine has ended, so that the next ``poll`` takes as long as reading its result."""
        return self.state == "running" and self._process.exit_code() is not None

    def poll(self) -> bool:
        """Process the engine's output; on success make the output nodes. True while it runs."""
        if self.state != "running":
            return False
        needed = {
            _("The fixed volume was removed while the registration ran."): self.job.fixed,
            _("The moving volume was removed while the registration ran."): self.job.moving,
            _("The transform was removed while the registration ran."): self.forward,
        }
        for text, node in needed.items():
            if self._scene.GetNodeByID(node.GetID() or "") is not node:
                self.cancel()
                self.error = text
                return False
        code = self._process.exit_code()  # before its last words are read
        try:
            messages = self._process.messages()
        except OSError as error:
            self._process.end()
            self._give_up("failed", str(error))
            return False
        preview = None
        for message in messages:
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
        """Let the slice views show the moving image slide over the fixed one, while the run lasts."""
        if self._live is not None:
            display.hide_live(self._live)
            self._live = None
        if on and self.state == "running":
            self._live = display.show_live(self.forward, self.job.fixed, self.job.moving)

    def _progress(self, message: dict) -> None:
        stage, seconds = message.get("stage", self.stage), message.get("seconds", 0.0)
        if stage != self.stage:
            self.log.append(f"{seconds:7.1f} s  {stage_text(stage)}")
        self.stage, self.fraction = stage, message.get("fraction", self.fraction)
        if self.fraction > 0:
            self._end = time.monotonic() + seconds * (1 - self.fraction) / self.fraction

    def _show(self, preview: Path) -> None:
        try:
            grid = nodes.read_grid_transform(preview)
        except OSError:  # the engine has just taken it away
            return
        self.forward.SetAndObserveTransformFromParent(grid)

    def _finish(self) -> None:
        job, folder = self.job, self._folder
        try:
            result = folder.path / "result"
            outputs = Outputs.read(result, self.forward, job.fixed, job.moving)
        except Exception as error:  # whatever a damaged or incomplete file causes
            self._give_up("failed", _("The engine's result could not be read: {reason}").format(reason=error))
            return
        self.show_live(False)
        for file in folder.path.iterdir():  # the inputs; the result stays to be saved, as long as there is a reference
            if file.is_file() and file != folder.lock:
                with contextlib.suppress(OSError):
                    file.unlink()
        outputs.owner, outputs.layers = folder, self._layers
        self.outputs = outputs
        self.log += [in_panel_words(text) for text in outputs.report["warnings"]]
        self.state, self.stage, self.fraction = "done", "done", 1.0

    def _give_up(self, state: str, error: str) -> None:
        self.show_live(False)
        nodes.remove(self._scene, self.forward)
        self._folder.remove()
        self.state, self.error = state, error


def _outputs(job: Job) -> tuple[str, ...]:
    """What the engine is to write."""
    return (*_LOADED, "report") if job.page else _LOADED


def _write_inputs(job: Job, folder: Path) -> list[str]:
    """The engine's arguments for files written into ``folder``."""
    arguments: list[str] = []
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
    arguments += _write_regions(job, folder)
    if job.fixed_landmarks is not None:
        nodes.write_points(job.fixed_landmarks, option("fixed-landmarks", "fixed_landmarks.csv"))
        nodes.write_points(job.moving_landmarks, option("moving-landmarks", "moving_landmarks.csv"))
    if job.initial_is_bent():
        nodes.write_bent_transform(job.initial_transform, job.fixed, option("initial", "initial_transform.h5"))
    elif job.initial_transform is not None:
        nodes.write_linear_transform(job.initial_transform, option("align", "initial_transform.h5"))
    arguments += job.guides.write(job.fixed, job.moving, folder)
    option("settings", "settings.json").write_text(job.settings().to_json(), encoding="utf-8")
    option("output", "result")
    if job.tolerances_file:
        arguments += ["--tolerances", job.tolerances_file]
    if not job.auto_mask:
        arguments.append("--no-auto-mask")
    arguments += ["--outputs", ",".join(_outputs(job))]
    arguments += ["--device", job.device, "--progress", "json", "--preview", f"{PREVIEW_SECONDS:g}"]
    return arguments


def _write_regions(job: Job, folder: Path) -> list[str]:
    regions, path = job.measured_regions(), folder / "regions.nrrd"
    if regions is None:
        return []
    try:
        nodes.write_labels(regions, job.fixed, path, one_by_one=_("regions"))
    except NephiError:
        if job.regions is not None or job.moving_regions is not None:
            raise
        return []  # segments of a mask may overlap
    arguments = ["--regions", str(path)]
    if job.moving_regions is not None:
        path = folder / "moving_regions.nrrd"
        nodes.write_labels(job.moving_regions, job.moving, path, one_by_one=_("moving regions"))
        arguments += ["--moving-regions", str(path)]
    return arguments
