"""What Slicer does with the module before and beside its panel: loading it, its sample data, its self-test."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
import unittest
from pathlib import Path

import pytest
import slicer
from conftest import SOURCE, _made_phantom
from nephi import runfolder
from NePhiRegistrationLib import sample
from NePhiRegistrationLib.job import LogicError
from PySide6 import QtCore, QtWidgets
from standin import pythonqt

import NePhiRegistration as module


def test_nothing_heavy_is_loaded_at_start_up():
    heavy = ("torch", "SimpleITK", "safetensors", "matplotlib")
    code = (
        f"import sys; sys.path[:0] = {sys.path[:2]!r}\n"
        "from standin.application import install\n"
        "install()\n"
        "import NePhiRegistration, slicer\n"
        "NePhiRegistration.NePhiRegistration(__import__('types').SimpleNamespace(path='x/NePhiRegistration.py'))\n"
        f"print('LOADED', [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED []" in done.stdout


@pytest.fixture(params=["stand-in", "Slicer's own"])
def sample_data(request, app, monkeypatch):
    """The module SampleData before anything is registered with it; Slicer's own needs a checkout."""
    monkeypatch.delattr(slicer.modules, "sampleDataSources", raising=False)
    if request.param == "stand-in":
        return sys.modules["SampleData"]
    if not SOURCE:
        pytest.skip("SLICER_SOURCE_DIR names no checkout of Slicer")
    file = Path(SOURCE) / "Modules" / "Scripted" / "SampleData" / "SampleData.py"
    spec = importlib.util.spec_from_file_location("SampleData", file)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "SampleData", found)
    spec.loader.exec_module(found)
    return found


def _start(app) -> None:
    """Load the module and finish starting up, as Slicer does."""
    parent = types.SimpleNamespace(path=module.__file__)
    module.NePhiRegistration(parent)
    assert parent.title == "NePhi Registration" and parent.categories == ["Registration"]
    app.connected["startupCompleted()"]()


def _press(source, app, monkeypatch) -> list:
    """Press the source's button. With a checkout it is the button that Slicer's own code makes."""
    loaded = []
    original = source.customDownloader
    source.customDownloader = lambda s: loaded.extend(original(s))
    if not hasattr(sys.modules["SampleData"], "SampleDataWidget"):
        source.customDownloader(source)
        return loaded
    import ctk
    import qt

    class FlowLayout(pythonqt.wrap(QtWidgets.QVBoxLayout)):
        def __setattr__(self, name, value):
            assert name == "preferredExpandingDirections"

    monkeypatch.setattr(ctk, "ctkFlowLayout", FlowLayout, raising=False)
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: types.SimpleNamespace(iconSize=QtCore.QSize(8, 8)))
    logic = types.SimpleNamespace(builtInCategoryName="General", categoryTitle=lambda category: category)
    parent = qt.QWidget()
    layout = qt.QVBoxLayout(parent)
    widget = sys.modules["SampleData"].SampleDataWidget
    widget.setCategoriesFromSampleDataSources(layout, {sample.CATEGORY: [source]}, logic)
    parent.findChild(QtWidgets.QToolButton, f"{sample.NAME}PushButton").click()
    return loaded


def test_sample_data_is_registered_and_loaded(sample_data, panel, app, monkeypatch):
    _start(app)
    (source,) = slicer.modules.sampleDataSources[sample.CATEGORY]
    assert isinstance(source, sample_data.SampleDataSource)
    assert source.sampleName == sample.NAME and Path(source.thumbnailFileName).is_file()
    monkeypatch.setattr("nephi.synthetic.phantom.make_phantom", lambda *_: _made_phantom())
    panel.leave()
    nodes = _press(source, app, monkeypatch)
    shown = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert {node.GetBackgroundVolumeID() for node in shown} == {nodes[0].GetID()}
    panel.enter()
    assert (panel.p.fixed, panel.p.moving) == tuple(nodes[:2])
    panel.tick()
    assert panel.ui.applyButton.enabled


def test_sample_data_refuses_a_source_without_an_address(sample_data):
    """What the module once did, and what a stand-in must not let pass."""
    with pytest.raises(TypeError):
        sample_data.SampleDataLogic.registerCustomSampleDataSource(
            category="NePhi", sampleName="x", customDownloader=lambda source: []
        )


def test_start_up_without_the_module_sample_data(app, monkeypatch):
    monkeypatch.setitem(sys.modules, "SampleData", None)
    _start(app)


def test_self_test_registers_the_phantom(app, monkeypatch):
    made = []
    monkeypatch.setattr("nephi.synthetic.phantom.make_phantom", lambda *size: made.append(size) or _made_phantom())
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(module.NePhiRegistrationTest).run(result)
    assert result.testsRun >= 1 and made and not result.failures + result.errors, result.failures + result.errors
    assert any(text.startswith("Optimising") for text in app.said)


def test_self_test_fails_where_the_registration_does(app, monkeypatch):
    monkeypatch.setattr("nephi.synthetic.phantom.make_phantom", lambda *_: _made_phantom())
    monkeypatch.setattr(
        module.Logic,
        "start",
        lambda self, job: types.SimpleNamespace(poll=lambda: False, error="broken", state="failed"),
    )
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(module.NePhiRegistrationTest).run(result)
    assert result.failures


def test_help_and_acknowledgement_link_to_documentation_and_paper():
    parent = types.SimpleNamespace(path=module.__file__)
    module.NePhiRegistration(parent)
    assert '<a href="https://github.com/nephi-registration/NePhi">' in parent.helpText
    assert '<a href="https://arxiv.org/abs/2309.07322">' in parent.acknowledgementText


def test_folders_of_an_application_that_was_killed_are_removed_at_start_up(app):
    folder = Path(app.temporaryPath) / f"{runfolder.PREFIX}1"
    folder.mkdir(parents=True)
    (folder / runfolder.LOCK).touch()
    (folder / "fixed.nrrd").touch()
    _start(app)
    assert not folder.exists()


def test_reload_takes_the_library_and_the_core_anew(panel, monkeypatch):
    """What Slicer's own reload, which runs the module's file again, then imports."""
    kept = {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] in _OWN}
    assert {"NePhiRegistrationLib.display", "nephi.settings"} <= set(kept)
    seen = []

    def reloadScriptedModule(moduleName):
        seen.append((moduleName, [name for name in sys.modules if name.partition(".")[0] in _OWN]))

    monkeypatch.setattr(slicer.util, "reloadScriptedModule", reloadScriptedModule)
    try:
        panel.widget.onReload()
    finally:
        sys.modules.update(kept)
    assert seen == [("NePhiRegistration", [])]


_OWN = ("NePhiRegistrationLib", "nephi")


def test_script_registers_and_waits(app, phantom):
    logic = module.NePhiRegistrationLogic()
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(LogicError, match="magic"):
        logic.process(*phantom[:2], align="magic")
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    choices = {"preset": "fast", "overrides": {"fit": {"iterations": 1}}, "device": "cpu"}
    outputs = logic.process(*phantom[:2], fixed_mask=phantom[2], moving_mask=phantom[3], **choices)
    assert outputs.fixed is phantom[0] and outputs.moving is phantom[1]
    assert outputs.forward.GetTransformFromParent().IsA("vtkOrientedGridTransform")
