"""Registration of two volumes with a neural deformation field: what Slicer loads. The work is done in the library."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path

import qt
import slicer
import vtk
from nephi.errors import NephiError
from nephi.settings import shipped_models
from NePhiRegistrationLib import dependencies, parameters, sample
from NePhiRegistrationLib.job import Job, LogicError
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.parameters import Parameters, Preset
from NePhiRegistrationLib.resultpanel import ResultPanel
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
_FAILED = "#c0392b"


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
            "The input volumes are never changed."
        )
        parent.acknowledgementText = _("Method: NePhi, neural deformation fields for approximately diffeomorphic maps.")
        slicer.app.connect("startupCompleted()", _on_startup_completed)


def _on_startup_completed() -> None:
    sample.register(Path(__file__).parent / "Resources" / "Icons" / "NePhiRegistration.png")


class NePhiRegistrationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.run = None  # the registration under way, or the last one
        self._parameters: Parameters | None = None
        self._gui_tag = None
        self._devices: threading.Thread | None = None  # while it asks what there is to compute on
        self._note = ""  # how the last run ended
        self._logged = 0  # lines of its log that are shown

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = slicer.util.loadUI(self.resourcePath("UI/NePhiRegistration.ui"))
        self.layout.addWidget(self.panel)
        self.ui = slicer.util.childWidgetVariables(self.panel)
        self.panel.setMRMLScene(slicer.mrmlScene)
        self.logic = NePhiRegistrationLogic()
        self.results = ResultPanel(self.ui)
        self._timer = qt.QTimer()
        self._timer.interval = _IDLE_MS
        self._timer.connect("timeout()", self._tick)

        scene, ui = slicer.mrmlScene, self.ui
        self.addObserver(scene, scene.StartCloseEvent, self._on_scene_start_close)
        for event in (scene.EndCloseEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self._on_scene_new)
        ui.applyButton.connect("clicked(bool)", self._on_apply)
        ui.cancelButton.connect("clicked(bool)", self._on_cancel)
        ui.liveCheckBox.connect("toggled(bool)", self._on_live)
        ui.resetButton.connect("clicked(bool)", self._on_reset)
        ui.deviceComboBox.connect("activated(int)", self._on_device)
        for side in ("fixed", "moving"):
            box = getattr(ui, f"{side}SegmentComboBox")
            box.connect("activated(int)", lambda index, side=side: self._on_segment(side, index))
        ui.modelComboBox.connect("activated(int)", self._on_model)
        for name in ("settings_file", "model_file"):
            line = _path_line(ui, name)
            line.connect("currentPathChanged(QString)", lambda path, name=name: self._on_file(name, path))
        self.enter()

    def cleanup(self) -> None:
        """The application closes or the module is loaded anew."""
        self.exit()
        self._timer.stop()
        self.results.forget()
        if self.run is not None:
            self.run.cancel()
        self.removeObservers()

    def enter(self) -> None:
        self._set_parameters(self.logic.getParameterNode())
        self._ask_devices()
        self._timer.start()

    def exit(self) -> None:
        self._set_parameters(None)
        self.results.rest()
        if not self._running():
            self._timer.stop()

    def _on_scene_start_close(self, _caller, _event) -> None:
        if self.run is not None:
            self.run.cancel()
            self.run = None
        self.results.forget()
        self._set_parameters(None)

    def _on_scene_new(self, _caller, _event) -> None:
        if self.parent.isEntered:
            self._set_parameters(self.logic.getParameterNode())

    def _set_parameters(self, new: Parameters | None) -> None:
        if self._parameters is not None:
            self._parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._update)
        self._parameters = new
        if new is not None:
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
        self._show_choices(p)
        self._check()
        self.results.update(p)

    def _show_choices(self, p: Parameters) -> None:
        """Widgets that no parameter is bound to by itself."""
        ui = self.ui
        ui.settingsFileLabel.visible = ui.settingsFilePathLineEdit.visible = p.preset is Preset.FILE
        ui.modelFileLabel.visible = ui.modelFilePathLineEdit.visible = p.model == parameters.MODEL_FILE
        for name in ("settings_file", "model_file"):
            line = _path_line(ui, name)
            if line.currentPath != getattr(p, name):
                line.currentPath = getattr(p, name)
        models = [("", _("None: start from nothing")), *((name, name) for name in shipped_models())]
        models.append((parameters.MODEL_FILE, _("My model file")))
        if p.model not in [name for name, _label in models]:
            models.append((p.model, _("{model} (not found here)").format(model=p.model)))
        _fill_combo(ui.modelComboBox, models, p.model)
        ui.alignComboBox.enabled = p.initial_transform is None
        for side in ("fixed", "moving"):
            self._show_segments(side)
        known = [("auto", _("Automatic")), *((device["name"], device["label"]) for device in self.logic.devices)]
        if p.device not in [name for name, _label in known]:
            known.append((p.device, _("{device} (not found here)").format(device=p.device)))
        _fill_combo(ui.deviceComboBox, known, p.device)

    def _show_segments(self, side: str) -> None:
        box, mask = getattr(self.ui, f"{side}SegmentComboBox"), getattr(self._parameters, f"{side}_mask")
        has_segments = mask is not None and mask.IsA("vtkMRMLSegmentationNode")
        box.visible = has_segments
        if not has_segments:
            return
        segmentation = mask.GetSegmentation()
        known = [("", _("All segments"))]
        known += [(key, segmentation.GetSegment(key).GetName()) for key in segmentation.GetSegmentIDs()]
        chosen = getattr(self._parameters, f"{side}_segment")
        if chosen not in [key for key, _name in known]:
            known.append((chosen, _("(removed)")))
        _fill_combo(box, known, chosen)

    def _check(self) -> None:
        """Whether Apply may be pressed, and what it will take; else why not."""
        ui, p, running = self.ui, self._parameters, self._running()
        problem = parameters.problem(p)
        ui.applyButton.enabled = not running and not problem
        ui.applyButton.toolTip = problem or _("Start the registration; Slicer stays usable meanwhile.")
        ui.cancelButton.enabled = running
        _set_text(ui.estimateLabel, "-" if problem else self.logic.expected(p))
        ui.progressBar.visible = running
        if running:
            ui.progressBar.value = round(100 * self.run.fraction)
        failed = self.run is not None and self.run.state == "failed"
        ui.statusLabel.styleSheet = f"color: {_FAILED}" if failed and self._note else ""
        status = _progress(self.run) if running else "\n".join(filter(None, [self._note, problem]))
        _set_text(ui.statusLabel, status)
        ui.statusLabel.visible = bool(status)

    # what the user does

    def _on_apply(self, _checked: bool = False) -> None:
        p = self._parameters
        self._note = dependencies.ensure()
        if not self._note:
            self.ui.logTextEdit.setPlainText("")
            self._logged = 0
            try:
                self.run = self.logic.engine.start(parameters.job(p))
            except LogicError as error:
                self._note = str(error)
            else:
                self.run.show_live(p.live)
                self._timer.interval = _RUNNING_MS
        self._check()

    def _on_cancel(self, _checked: bool = False) -> None:
        self.run.cancel()
        self._end()

    def _on_reset(self, _checked: bool = False) -> None:
        parameters.adopt_preset(self._parameters, again=True)

    def _on_device(self, index: int) -> None:
        self._parameters.device = self.ui.deviceComboBox.itemData(index)

    def _on_segment(self, side: str, index: int) -> None:
        setattr(self._parameters, f"{side}_segment", getattr(self.ui, f"{side}SegmentComboBox").itemData(index))

    def _on_model(self, index: int) -> None:
        self._parameters.model = self.ui.modelComboBox.itemData(index)

    def _on_file(self, name: str, path: str) -> None:
        if self._parameters is not None and getattr(self._parameters, name) != path:
            setattr(self._parameters, name, path)

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
        if self._running():
            going_on = self.run.poll()
            self._log()
            if not going_on:
                self._end()
        if self._parameters is not None:
            self._show_choices(self._parameters)
            self._check()

    def _running(self) -> bool:
        return self.run is not None and self.run.state == "running"

    def _log(self) -> None:
        for line in self.run.log[self._logged :]:
            self.ui.logTextEdit.appendPlainText(line)
        self._logged = len(self.run.log)

    def _end(self) -> None:
        """The run has ended, one way or the other."""
        run, ui = self.run, self.ui
        self._timer.interval = _IDLE_MS
        if run.state == "done":
            seconds = run.outputs.report["time_s"]["wall"]
            self._note = _("Done in {time}.").format(time=_duration(seconds))
            self.results.add(run.outputs)
            p = self._parameters or self.logic.getParameterNode()
            p.result = run.forward
            ui.inputsCollapsibleButton.collapsed = True
            ui.resultCollapsibleButton.collapsed = False
        elif run.state == "failed":
            self._note = run.error
            ui.logGroupBox.collapsed = False
        else:
            self._note = run.error or _("Cancelled. The scene is as it was before.")
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
        self.engine = Logic(slicer.mrmlScene)
        self.devices = [{"name": "cpu", "label": _("CPU")}]
        self.devices_known = False

    def getParameterNode(self) -> Parameters:
        return Parameters(super().getParameterNode())

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
        gpus = [device for device in self.devices if device["name"].startswith("cuda")]
        device = next((d for d in gpus if job.device in (d["name"], "auto")), None)
        job.device = device["name"] if device else "cpu"
        cost = self.engine.estimate(job)
        text = _("about {time} and {memory:.1f} GB of memory").format(
            time=_duration(cost.seconds), memory=cost.memory_mb / 1000
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
        run = Logic(slicer.mrmlScene).start(job)
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
    stage = run.stage[:1].upper() + run.stage[1:]
    if run.seconds_left is None:
        return f"{stage} ..."
    return _("{stage}: {time} left").format(stage=stage, time=_duration(run.seconds_left))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _path_line(ui, name: str):
    return {"settings_file": ui.settingsFilePathLineEdit, "model_file": ui.modelFilePathLineEdit}[name]


def _set_text(label, text: str) -> None:
    if label.text != text:
        label.text = text


def _fill_combo(box, items: list[tuple[str, str]], chosen: str) -> None:
    """Data and text of the entries, left alone where nothing changes (the user may have it open)."""
    if [(box.itemData(i), box.itemText(i)) for i in range(box.count)] != items:
        box.clear()
        for data, text in items:
            box.addItem(text, data)
    index = [data for data, _text in items].index(chosen)
    if box.currentIndex != index:
        box.currentIndex = index
