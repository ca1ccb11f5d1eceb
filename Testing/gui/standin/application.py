"""Puts the stand-in where a module looks for Slicer. With a Slicer checkout its own Python classes are taken."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
from PySide6 import QtCore, QtWidgets

from . import api, pythonqt, widgets

MODULE_FOLDER = Path(__file__).resolve().parents[3] / "NePhiRegistration"


class Application:
    """``slicer.app``; ``said`` keeps what the user was told or asked, ``answer`` is what is answered."""

    applicationName = "Slicer stand-in"

    def __init__(self):
        self.temporaryPath = tempfile.mkdtemp(prefix="slicer-stand-in-")
        atexit.register(shutil.rmtree, self.temporaryPath, ignore_errors=True)
        self.qt = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["slicer"])
        self.qt.setStyle("Fusion")
        settings = f"{self.temporaryPath}.settings"  # beside what runs leave in the temporary folder
        atexit.register(shutil.rmtree, settings, ignore_errors=True)
        self.slicerUserSettingsFilePath = f"{settings}/Slicer.ini"
        self._settings = QtCore.QSettings(f"{self.temporaryPath}.ini", QtCore.QSettings.IniFormat)
        atexit.register(Path(f"{self.temporaryPath}.ini").unlink, missing_ok=True)
        self.said: list[str] = []
        self.answer = True
        self.connected: dict = {}
        self.scene = slicer.vtkMRMLScene()
        self._logic, self._colors = slicer.vtkMRMLApplicationLogic(), slicer.vtkSlicerColorLogic()
        self._logic.SetMRMLScene(self.scene)
        self._colors.SetMRMLApplicationLogic(self._logic)
        self._colors.SetMRMLScene(self.scene)
        self._markups = slicer.vtkSlicerMarkupsLogic()  # knows how points are stored
        self._markups.SetMRMLScene(self.scene)

    def add_views(self) -> None:
        """The nodes of three slice views."""
        for name in ("Red", "Green", "Yellow"):
            for node in (slicer.vtkMRMLSliceNode(), slicer.vtkMRMLSliceCompositeNode()):
                node.SetLayoutName(name)
                node.SetSingletonTag(name)
                self.scene.AddNode(node)

    def userSettings(self) -> QtCore.QSettings:
        return self._settings

    def clipboard(self):
        return self.qt.clipboard()

    def testingEnabled(self) -> bool:
        return False

    def processEvents(self) -> None:
        self.qt.processEvents()

    def translate(self, _context: str, text: str) -> str:
        return text

    def connect(self, signal: str, target) -> bool:
        self.connected[signal] = target
        return True

    def layoutManager(self) -> None:
        """There are no widgets of views."""

    def moduleManager(self):
        return SimpleNamespace(connect=lambda *_: True, disconnect=lambda *_: True)

    def say(self, text: str, *_, **__) -> bool:
        self.said.append(text)
        return self.answer


class _Plots:
    """``slicer.modules.plots``; ``shown`` is the chart that the layout shows."""

    shown = None

    def logic(self):
        return self

    def ShowChartInLayout(self, chart) -> None:
        self.shown = chart


def install(source: str | None = None) -> Application:
    """``source``: a Slicer checkout."""
    sys.modules["qt"] = pythonqt.make_module({**widgets.CTK, **widgets.MRML})
    sys.modules["ctk"] = _module("ctk", widgets.CTK, elsewhere=True)
    for name, cls in widgets.MRML.items():
        setattr(slicer, name, cls)
    for name in ("qMRMLSliderWidget", "qMRMLSpinBox", "qMRMLRangeWidget"):  # Slicer's own connectors ask for them
        setattr(slicer, name, type(name, (), {}))
    slicer.app = Application()
    slicer.mrmlScene = slicer.app.scene
    path = str(MODULE_FOLDER / "NePhiRegistration.py")
    slicer.modules = SimpleNamespace(nephiregistration=SimpleNamespace(path=path), plots=_Plots())
    for function in api.UTIL:
        setattr(slicer.util, function.__name__, function)
    for name, members in api.MODULES.items():
        _set(name, api.make_module(name, *members))
    if source:
        _install_from(Path(source) / "Base" / "Python" / "slicer")
    else:
        from . import scripted

        _set("slicer.ScriptedLoadableModule", scripted)
        from . import parameters

        _set("slicer.parameterNodeWrapper", parameters)
    return slicer.app


def _install_from(folder: Path) -> None:
    for name, file in (
        ("slicer.i18n", folder / "i18n.py"),
        ("slicer.ScriptedLoadableModule", folder / "ScriptedLoadableModule.py"),
        ("slicer.parameterNodeWrapper", folder / "parameterNodeWrapper" / "__init__.py"),
    ):
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=None)
        if file.name == "__init__.py":
            spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        module = importlib.util.module_from_spec(spec)
        _set(name, module)
        spec.loader.exec_module(module)


def _set(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
    if name.startswith("slicer."):
        setattr(slicer, name.partition(".")[2], module)


def _module(name: str, members: dict, elsewhere: bool = False) -> types.ModuleType:
    """``elsewhere``: any other name is a class that nothing is an instance of."""
    module = types.ModuleType(name)
    vars(module).update(members)
    if elsewhere:
        module.__getattr__ = _nobodys_class
    return module


def _nobodys_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
