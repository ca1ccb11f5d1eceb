"""Registration of two volumes with a neural deformation field: what Slicer loads. The work is done in the library."""

from __future__ import annotations

import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import qt
import slicer
import vtk
from nephi import runfolder
from nephi.errors import NephiError
from NePhiRegistrationLib import dependencies, parameters, remembered, sample, theme
from NePhiRegistrationLib.batchpanel import BatchPanel
from NePhiRegistrationLib.inputpanel import InputPanel
from NePhiRegistrationLib.job import Job, LogicError
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.parameters import Parameters
from NePhiRegistrationLib.resultpanel import ResultPanel, readable
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

_RUNNING_MS, _IDLE_MS = 200, 1000
_DOCUMENTATION = "https://github.com/nephi-registration/NePhi"
_PAPER = "https://arxiv.org/abs/2309.07322"


class NePhiRegistration(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("NePhi Registration")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        parent.dependencies = []
        parent.contributors = ["The NePhi developers"]
        parent.helpText = _(
            "Deformable registration of two volumes, such as exhale and inhale CT, with a neural deformation field: "
            "forward and inverse transform, warped volume, volume-change map and measures of its quality. "
            "The input volumes are never changed. "
            "{link_start}Documentation{link_end}"
        ).format(link_start=f'<a href="{_DOCUMENTATION}">', link_end="</a>")
        parent.acknowledgementText = _(
            "Method: {link_start}NePhi, neural deformation fields for approximately diffeomorphic medical image "
            "registration{link_end}, Tian et al., ECCV 2024."
        ).format(link_start=f'<a href="{_PAPER}">', link_end="</a>")
        slicer.app.connect("startupCompleted()", _on_startup_completed)


def _on_startup_completed() -> None:
    runfolder.remove_abandoned(Path(slicer.app.temporaryPath))
    sample.register(Path(__file__).parent / "Resources" / "Icons" / "NePhiRegistration.png")


class NePhiRegistrationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.run = None  # the registration under way
        self._parameters: Parameters | None = None
        self._gui_tag = None
        self._devices: threading.Thread | None = None  # while it asks what there is to compute on
        self._installation: dependencies.Installation | None = None  # while it lasts
        self._note = ""  # how the last run ended, or why it could not begin
        self._failed = False  # whether that is a failure
        self._logged = 0  # lines of its log that are shown

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = slicer.util.loadUI(self.resourcePath("UI/NePhiRegistration.ui"))
        self.layout.addWidget(self.panel)
        self.ui = slicer.util.childWidgetVariables(self.panel)
        self.panel.setMRMLScene(slicer.mrmlScene)
        self.logic = NePhiRegistrationLogic()
        self.inputs, self.results = InputPanel(self.ui), ResultPanel(self.ui)
        self.batch = BatchPanel(self.ui, self.logic.engine, lambda: parameters.job(self._parameters))
        self._timer = qt.QTimer()
        self._timer.interval = _IDLE_MS
        self._timer.connect("timeout()", self._tick)

        scene, ui = slicer.mrmlScene, self.ui
        self.addObserver(scene, scene.StartCloseEvent, self._on_scene_start_close)
        for event in (scene.EndCloseEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self._on_scene_new)
        self.addObserver(scene, scene.NodeRemovedEvent, self._on_node_removed)
        ui.applyButton.connect("clicked(bool)", self._on_apply)
        ui.cancelButton.connect("clicked(bool)", self._on_cancel)
        ui.liveCheckBox.connect("toggled(bool)", self._on_live)
        ui.resetButton.connect("clicked(bool)", self._on_reset)
        self.enter()

    def cleanup(self) -> None:
        """The application closes or the module is loaded anew."""
        self.exit()
        self._timer.stop()
        self.results.forget()
        for under_way in filter(None, (self.run, self.batch)):
            under_way.cancel()
        self.removeObservers()

    def enter(self) -> None:
        self._set_parameters(self.logic.getParameterNode())
        self._ask_devices()
        self._timer.start()

    def exit(self) -> None:
        self._set_parameters(None)
        self.results.rest()
        if not self._running() and not self.batch.running and self._installation is None:
            self._timer.stop()

    def onReload(self) -> None:
        """Developers' reload: the library and the core anew too, which Slicer would keep as they were."""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("NePhiRegistrationLib", "nephi")]:
            del sys.modules[name]
        super().onReload()

    def _on_node_removed(self, _caller, _event) -> None:
        self.results.drop_removed()

    def _on_scene_start_close(self, _caller, _event) -> None:
        if self.run is not None:
            self.run.cancel()
            self.run = None
        self._say("")
        self.results.forget()
        self._set_parameters(None)

    def _on_scene_new(self, _caller, _event) -> None:
        if self.parent.isEntered:
            self._set_parameters(self.logic.getParameterNode())

    def _set_parameters(self, new: Parameters | None) -> None:
        if self._parameters is not None:
            remembered.keep(self._parameters, slicer.app.userSettings())
            self._parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._update)
        self._parameters = self.inputs.parameters = new
        if new is not None:
            if not new.expert_of:  # of a new scene
                remembered.recall(new, slicer.app.userSettings())
            parameters.choose_only_pair(new, slicer.mrmlScene)
            parameters.adopt_preset(new)
            self._gui_tag = new.connectGui(self.ui)
            self.addObserver(new, vtk.vtkCommand.ModifiedEvent, self._update)
        self._update()

    # from the parameter node to the panel

    def _update(self, _caller=None, _event=None) -> None:
        p = self._parameters
        if p is None:
            return
        parameters.adopt_preset(p)
        self.inputs.show(self.logic.devices)
        self._check()
        self.results.update(p)

    def _check(self) -> None:
        """Whether Apply may be pressed, and what it will take; else why not."""
        ui, p, running = self.ui, self._parameters, self._running()
        problem, installing = parameters.problem(p), self._installation
        if installing is not None:
            problem = installing.text
        ui.applyButton.enabled = not running and not problem
        ui.applyButton.toolTip = problem or _("Start the registration; Slicer stays usable while it runs.")
        ui.cancelButton.enabled = running
        _set_text(ui.estimateLabel, "-" if problem else self.logic.expected(p))
        ui.progressBar.visible = running
        if running:
            ui.progressBar.value = round(100 * self.run.fraction)
        ui.noteLabel.styleSheet = f"color: {readable(ui.noteLabel, theme.RED)}" if self._failed else ""
        for label, text in ((ui.noteLabel, "" if running else self._note), (ui.statusLabel, problem)):
            text = _progress(self.run) if running and label is ui.statusLabel else text
            _set_text(label, text)
            label.visible = bool(text)

    def _say(self, note: str, failed: bool = False) -> None:
        self._note, self._failed = note, failed

    # what the user does

    def _on_apply(self, _checked: bool = False) -> None:
        reason = dependencies.problem()
        missing = [] if reason else dependencies.missing()
        self._say(reason, failed=bool(reason))
        if missing:
            self._install(missing)
        elif not reason:
            self._start()
        self._check()

    def _start(self) -> None:
        p = self._parameters
        self._ask_devices()  # where PyTorch was installed meanwhile
        self._clear_log()
        try:
            self.run = self.logic.engine.start(parameters.job(p))
        except LogicError as error:
            self._say(str(error), failed=True)
        else:
            self.run.show_live(p.live)
            self._timer.interval = _RUNNING_MS

    def _install(self, names: list[str]) -> None:
        """The user presses Apply again when it is done: until then, anything may have been changed."""
        if dependencies.confirm(names):
            self._clear_log()
            self._installation = dependencies.Installation(names)
        else:
            text = _("The registration needs {names}, which was not installed.")
            self._say(text.format(names=", ".join(names)), failed=True)

    def _clear_log(self) -> None:
        self.ui.logTextEdit.setPlainText("")
        self._logged = 0

    def _on_cancel(self, _checked: bool = False) -> None:
        self.run.cancel()
        self._end()

    def _on_reset(self, _checked: bool = False) -> None:
        parameters.adopt_preset(self._parameters, again=True)

    def _on_live(self, on: bool) -> None:
        if self._running():
            self.run.show_live(on)

    # as time goes by

    def _tick(self) -> None:
        if self._devices is not None:
            self._devices.join(0.01)  # lets the thread run
            if not self._devices.is_alive():
                self._devices = None
                self._update()
        if self._installation is not None:
            self._log(self._installation.log)
            if not self._installation.running:
                self._end_installation()
        if self._running():
            going_on = self.run.poll()
            self._log(self.run.log)
            if not going_on:
                self._end()
        self.batch.tick()
        if self.results.stale:
            self._update()
        elif self._parameters is not None:
            self.inputs.show(self.logic.devices)
            self._check()
            self.results.follow(self._parameters)

    def _running(self) -> bool:
        return self.run is not None and self.run.state == "running"

    def _log(self, lines: list[str]) -> None:
        for line in lines[self._logged :]:
            self.ui.logTextEdit.appendPlainText(line)
        self._logged = len(lines)

    def _end_installation(self) -> None:
        installation, self._installation = self._installation, None
        if installation.error:
            self._say(installation.error, failed=True)
            self.ui.logGroupBox.collapsed = False
        else:
            self._say(_("All that is needed is installed: press Apply to register."))
            self._ask_devices()
        if self._parameters is None:
            self._timer.stop()

    def _end(self) -> None:
        """The run has ended, one way or the other. Only its result is kept, by the result section."""
        run, self.run, ui = self.run, None, self.ui
        self._timer.interval = _IDLE_MS
        if run.state == "done":
            seconds = run.outputs.report["time_s"]["wall"]
            self._say(_("Done in {time}.").format(time=_duration(seconds)))
            self.results.add(run.outputs)
            p = self._parameters or self.logic.getParameterNode()
            p.result = run.forward
            ui.inputsCollapsibleButton.collapsed = True
            ui.resultCollapsibleButton.collapsed = False
        elif run.state == "failed":
            self._say(run.error, failed=True)
            ui.logGroupBox.collapsed = False
        else:
            self._say(run.error or _("Cancelled. The scene is as it was before."))
        if self._parameters is None:
            self._timer.stop()
        self._update()

    def _ask_devices(self) -> None:
        """Without waiting: PyTorch takes seconds to say what it can compute on."""
        if self._devices is None and not self.logic.devices_known:
            self._devices = threading.Thread(target=self.logic.ask_devices, daemon=True)
            self._devices.start()


class NePhiRegistrationLogic(ScriptedLoadableModuleLogic):
    """The parameter node and the engine."""

    def __init__(self):
        super().__init__()
        self.engine = Logic(slicer.mrmlScene, temporary=slicer.app.temporaryPath)
        self.devices = [{"name": "cpu", "label": _("CPU")}]
        self.devices_known = False

    def getParameterNode(self) -> Parameters:
        return Parameters(super().getParameterNode())

    def process(self, fixed, moving, **choices) -> Outputs:
        """Register ``moving`` to ``fixed`` (scalar volume nodes) and wait for the nodes of the result, for scripts.

        ``choices``: fields of ``NePhiRegistrationLib.job.Job``, such as ``fixed_mask``, ``preset`` or ``device``.
        Raises LogicError with one line; the scene is as before then.
        """
        return self.engine.process(Job(fixed, moving, **choices), watch=lambda run: slicer.app.processEvents())

    def ask_devices(self) -> None:
        """Takes seconds, touches neither scene nor panel."""
        try:
            self.devices = self.engine.devices()
        except LogicError:  # without PyTorch, which is looked for when Apply is pressed
            return
        self.devices_known = True

    def expected(self, p: Parameters) -> str:
        """Time and memory of the run that ``p`` describes, and what differs from the preset, in words."""
        job = parameters.job(p)
        wanted = "cuda:0" if job.device == "auto" else job.device
        device = next((d for d in self.devices if d["name"] == wanted != "cpu"), None)
        job.device = device["name"] if device else "cpu"
        cost = self.engine.estimate(job)
        text = _("about {time} and {memory} GB of memory").format(
            time=_duration(cost.seconds), memory=f"{cost.memory_mb / 1000:.1f}"
        )
        if device and cost.memory_mb > device.get("memory_mb", cost.memory_mb):
            text += _("; more than {device} has").format(device=device["label"])
        try:
            changes = parameters.expert_changes(p)
        except NephiError:
            changes = {}
        return text + (_("; expert settings changed: {names}").format(names=", ".join(changes)) if changes else "")


class NePhiRegistrationTest(ScriptedLoadableModuleTest):
    """A small phantom through the engine, as a user without files would try it."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_phantom()

    def test_phantom(self):
        fixed, moving, fixed_mask, moving_mask, *landmarks = sample.add_phantom(slicer.mrmlScene, (48, 42, 42), 6.5)
        job = Job(fixed, moving, fixed_mask, moving_mask, fixed_landmarks=landmarks[0], moving_landmarks=landmarks[1])
        job.preset, job.overrides, job.device = "fast", {"fit": {"iterations": 40}}, "cpu"
        nodes = slicer.mrmlScene.GetNumberOfNodes()
        run = Logic(slicer.mrmlScene, temporary=slicer.app.temporaryPath).start(job)
        while run.poll():
            self.delayDisplay(_progress(run), 100)
        if find_spec("torch") is None:
            self.assertIn("PyTorch", run.error)
            self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)
            return
        self.assertEqual((run.state, run.error), ("done", ""))
        error = run.outputs.report["tre_mm"]
        self.assertLess(error["after"]["mean"], error["before"]["mean"])
        self.assertIs(run.outputs.forward.GetNodeReference("NePhi.Fixed"), fixed)


def _progress(run) -> str:
    if run.seconds_left is None:
        return f"{run.stage_text} ..."
    return _("{stage}: {time} left").format(stage=run.stage_text, time=_duration(run.seconds_left))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _set_text(label, text: str) -> None:
    if label.text != text:
        label.text = text
