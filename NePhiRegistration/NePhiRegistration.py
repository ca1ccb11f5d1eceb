"""Registration of two volumes with a neural deformation field: what Slicer loads. The work is done in the library."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import qt
import slicer
import vtk
from nephi import runfolder
from nephi.errors import NephiError
from NePhiRegistrationLib import parameters, remembered, sample
from NePhiRegistrationLib.batchpanel import BatchPanel
from NePhiRegistrationLib.inputpanel import InputPanel
from NePhiRegistrationLib.job import Job, LogicError
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.lungpanel import LungPanel
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.parameters import Parameters
from NePhiRegistrationLib.resultpanel import ResultPanel
from NePhiRegistrationLib.runpanel import RunPanel, progress
from NePhiRegistrationLib.words import duration
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
        self._parameters: Parameters | None = None
        self._gui_tag = None
        self._devices: threading.Thread | None = None  # while it asks what there is to compute on

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = slicer.util.loadUI(self.resourcePath("UI/NePhiRegistration.ui"))
        self.layout.addWidget(self.panel)
        self.ui = slicer.util.childWidgetVariables(self.panel)
        self.panel.setMRMLScene(slicer.mrmlScene)
        self.logic = NePhiRegistrationLogic()
        self.inputs, self.results = InputPanel(self.ui), ResultPanel(self.ui)
        self.lungs = LungPanel(self.ui, self.logic)
        self.runs = RunPanel(self.ui, self.logic, self._ask_devices, self._on_results)
        self.batch = BatchPanel(self.ui, self.logic.engine, lambda: parameters.job(self._parameters))
        self._timer = qt.QTimer()
        self._timer.interval = _IDLE_MS
        self._timer.connect("timeout()", self._tick)

        scene, ui = slicer.mrmlScene, self.ui
        self.addObserver(scene, scene.StartCloseEvent, self._on_scene_start_close)
        for event in (scene.EndCloseEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self._on_scene_new)
        self.addObserver(scene, scene.NodeRemovedEvent, self._on_node_removed)
        ui.resetButton.connect("clicked(bool)", self._on_reset)
        self.enter()

    def cleanup(self) -> None:
        """The application closes or the module is loaded anew."""
        self.exit()
        self._timer.stop()
        for part in (self.runs, self.results, self.lungs):
            part.forget()
        self.batch.cancel()
        self.removeObservers()

    def enter(self) -> None:
        self._set_parameters(self.logic.getParameterNode())
        self._ask_devices()
        self._timer.start()

    def exit(self) -> None:
        self._set_parameters(None)
        self.results.rest()
        self._stop_if_idle()

    def onReload(self) -> None:
        """Developers' reload: the library and the core anew too, which Slicer would keep as they were."""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("NePhiRegistrationLib", "nephi")]:
            del sys.modules[name]
        super().onReload()

    def _on_node_removed(self, _caller, _event) -> None:
        self.results.drop_removed()

    def _on_scene_start_close(self, _caller, _event) -> None:
        for part in (self.runs, self.results, self.lungs):
            part.forget()
        self._set_parameters(None)

    def _on_scene_new(self, _caller, _event) -> None:
        if self.parent.isEntered:
            self._set_parameters(self.logic.getParameterNode())
            self._timer.start()  # it may have stopped while there was no parameter node

    def _set_parameters(self, new: Parameters | None) -> None:
        if self._parameters is not None:
            remembered.keep(self._parameters, slicer.app.userSettings())
            self._parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._update)
        self._parameters = self.inputs.parameters = self.lungs.parameters = self.runs.parameters = new
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
        self._show_inputs()
        self.results.update(p)

    def _show_inputs(self) -> None:
        self.inputs.show(self.logic.devices)
        self.lungs.show()
        self.runs.check()

    def _on_reset(self, _checked: bool = False) -> None:
        parameters.adopt_preset(self._parameters, again=True)

    def _on_results(self, runs: list, ended: bool) -> None:
        """The last of them is new, or all have ended: until then the views are left alone, but for the first result."""
        p = self._parameters or self.logic.getParameterNode()
        if not ended:
            self.results.add(runs[-1].outputs)
        there = [run.forward for run in runs if run.forward.GetScene() is not None]  # the user may have removed some
        if there and (ended or p.result is None):
            p.result = there[-1]
        if ended:
            self.ui.inputsCollapsibleButton.collapsed = True
            self.ui.resultCollapsibleButton.collapsed = False
            if len(runs) > 1:
                self.ui.tablesTabWidget.setCurrentWidget(self.ui.resultsTab)

    # as time goes by

    def _tick(self) -> None:
        if self._devices is not None:
            self._devices.join(0.01)  # lets the thread run
            if not self._devices.is_alive():
                self._devices = None
                self._update()
        was_busy = self.runs.busy
        for part in (self.runs, self.lungs, self.batch):
            part.tick()
        if self.results.stale or was_busy and not self.runs.busy:
            self._update()
        elif self._parameters is not None:
            self._show_inputs()
            self.results.follow(self._parameters)
        self._timer.interval = _RUNNING_MS if self.runs.busy or self.lungs.running else _IDLE_MS
        if self._parameters is None:
            self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if not (self.runs.busy or self.lungs.running or self.batch.running):
            self._timer.stop()

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

    def expected(self, p: Parameters, jobs: list[Job]) -> str:
        """Time and memory of the jobs that ``p`` describes, and what differs from the preset, in words."""
        wanted = "cuda:0" if p.device == "auto" else p.device
        device = next((d for d in self.devices if d["name"] == wanted != "cpu"), None)
        costs = [self.engine.estimate(replace(job, device=device["name"] if device else "cpu")) for job in jobs]
        memory_mb = max(cost.memory_mb for cost in costs)
        text = _("about {time} and {memory} GB of memory").format(
            time=duration(sum(cost.seconds for cost in costs)), memory=f"{memory_mb / 1000:.1f}"
        )
        if len(jobs) > 1:
            text += _(" for {count} registrations, one after the other").format(count=len(jobs))
        if device and memory_mb > device.get("memory_mb", memory_mb):
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
            self.delayDisplay(progress(run), 100)
        if find_spec("torch") is None:
            self.assertIn("PyTorch", run.error)
            self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)
            return
        self.assertEqual((run.state, run.error), ("done", ""))
        error = run.outputs.report["tre_mm"]
        self.assertLess(error["after"]["mean"], error["before"]["mean"])
        self.assertIs(run.outputs.forward.GetNodeReference("NePhi.Fixed"), fixed)
