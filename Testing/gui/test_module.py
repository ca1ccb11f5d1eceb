"""What Slicer does with the module before and beside its panel: loading it, its sample data, its self-test."""

from __future__ import annotations

import subprocess
import sys
import types
import unittest
from pathlib import Path

import slicer
from conftest import _made_phantom

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


def _registered(app, monkeypatch) -> dict:
    """What the module registers with Sample Data once Slicer has started."""
    registered = {}

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(**entries):
            registered.update(entries)

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=SampleDataLogic))
    parent = types.SimpleNamespace(path=module.__file__)
    module.NePhiRegistration(parent)
    assert parent.title == "NePhi Registration" and parent.categories == ["Registration"]
    assert registered == {}
    app.connected["startupCompleted()"]()
    return registered


def test_sample_data_is_registered_and_shown(panel, app, monkeypatch):
    source = _registered(app, monkeypatch)
    assert (source["category"], source["sampleName"]) == ("NePhi", "BreathingPhantom")
    assert Path(source["thumbnailFileName"]).is_file()
    monkeypatch.setattr("nephi.synthetic.phantom.make_phantom", lambda *_: _made_phantom())
    panel.leave()
    nodes = source["customDownloader"](None)
    shown = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert {node.GetBackgroundVolumeID() for node in shown} == {nodes[0].GetID()}
    panel.enter()
    assert (panel.p.fixed, panel.p.moving) == tuple(nodes[:2])
    panel.tick()
    assert panel.ui.applyButton.enabled


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
