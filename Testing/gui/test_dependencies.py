"""Packages that the engine needs: missing, old or damaged, installed by Slicer's own code in processes of their own."""

from __future__ import annotations

import ast
import os
import sys
import types
from pathlib import Path

import pytest
import slicer
from NePhiRegistrationLib import dependencies
from test_signatures import PYTORCH_SOURCE


@pytest.fixture
def installed(monkeypatch) -> dict:
    """Versions of packages by name, as they seem to be installed; None: nothing but an empty folder is left."""
    versions, spec, version = {}, dependencies.find_spec, dependencies.version

    def find_spec(name):
        if name not in versions:
            return spec(name)
        there = versions[name] != "absent"
        return types.SimpleNamespace(origin=versions[name] and "file") if there else None

    def find_version(name):
        if versions.get(name, "") in ("absent", None):
            raise dependencies.PackageNotFoundError(name)
        return versions.get(name) or version(name)

    monkeypatch.setattr(dependencies, "find_spec", find_spec)
    monkeypatch.setattr(dependencies, "version", find_version)
    return versions


@pytest.fixture
def python_slicer(monkeypatch, tmp_path):
    """In the place of PythonSlicer: a script that only says what it was asked for. It must never be a Python, whose
    pip would really install."""
    launcher = tmp_path / "bin" / "PythonSlicer"
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\nshift\necho "$@"\nsleep "${TAKES_S:-0}"\nexit "${EXIT_CODE:-0}"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", f"{launcher.parent}{os.pathsep}{os.environ['PATH']}")


def wait_for_installation(panel) -> None:
    panel.wait(lambda: panel.widget.runs.installation is None, 60)


def test_missing_torch_is_installed_while_slicer_stays_usable(ready, installed, python_slicer, monkeypatch):
    """The processes are real, and started and watched by Slicer's own code."""
    ui = ready.ui
    installed["torch"] = installed["light_the_torch"] = installed["safetensors"] = "absent"
    monkeypatch.setenv("TAKES_S", "0.3")
    slicer.app.answer = False
    ui.applyButton.click()
    assert ui.noteLabel.text == "The registration needs torch, safetensors, which was not installed."
    assert "several minutes" in slicer.app.said[-1] and "continue to work" in slicer.app.said[-1]
    assert ready.widget.runs.installation is None and ready.widget.runs.run is None

    slicer.app.answer = True
    ui.applyButton.click()
    assert not ui.applyButton.enabled and ui.statusLabel.text.startswith("Installing Python packages: ...")
    ready.wait(lambda: "light_the_torch install" in ui.statusLabel.text, 60)
    ready.leave()  # it goes on
    ready.enter()
    wait_for_installation(ready)
    assert ui.logTextEdit.plainText.splitlines() == [
        "pip install light-the-torch>=0.5",
        "light_the_torch install torch>=2.4 torchvision",
        "pip install safetensors>=0.4",
    ]
    assert ui.noteLabel.text.endswith("press Apply to register.") and ui.noteLabel.styleSheet == ""
    installed.clear()
    ready.tick()
    assert ui.applyButton.enabled
    ui.applyButton.click()
    assert ready.widget.runs.running
    ui.cancelButton.click()


def test_installation_that_fails_says_why(ready, installed, python_slicer, monkeypatch):
    installed["safetensors"] = "absent"
    monkeypatch.setenv("EXIT_CODE", "3")
    ready.ui.applyButton.click()
    wait_for_installation(ready)
    note = ready.ui.noteLabel
    assert note.text == "The Python packages could not be installed: pip install safetensors>=0.4" and note.styleSheet
    assert not ready.ui.logGroupBox.collapsed and ready.widget.runs.run is None
    ready.tick()
    assert ready.ui.applyButton.enabled  # to be tried again


def test_installation_that_cannot_begin(ready, installed, monkeypatch):
    installed["safetensors"] = "absent"
    monkeypatch.setenv("PATH", "")
    ready.ui.applyButton.click()
    ready.tick()
    assert "PythonSlicer executable not found" in ready.ui.noteLabel.text and ready.widget.runs.installation is None


def test_torch_is_not_offered_without_the_extension(ready, installed, monkeypatch):
    """Whose module uninstalls it."""
    installed["torch"] = "absent"
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    said = len(slicer.app.said)
    ready.ui.applyButton.click()
    assert "install the extension PyTorch" in ready.ui.noteLabel.text and ready.ui.noteLabel.styleSheet
    assert len(slicer.app.said) == said and ready.widget.runs.run is None


@pytest.mark.skipif(not PYTORCH_SOURCE, reason="SLICER_PYTORCH_SOURCE_DIR names no checkout of the extension")
def test_torch_is_installed_as_the_extension_does():
    source = (Path(PYTORCH_SOURCE) / "PyTorchUtils" / "PyTorchUtils.py").read_text(encoding="utf-8")
    (made,) = (node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "_getPipInstallArguments")
    made.decorator_list = []
    found: dict = {}
    exec(compile(ast.Module([made], []), "PyTorchUtils", "exec"), found)
    arguments = found["_getPipInstallArguments"](torchVersionRequirement=dependencies.TORCH)
    assert dependencies._steps(["torch"])[-1] == ("light_the_torch", arguments)
    assert "_executePythonModule('light_the_torch', args)" in source
    assert f"pip_install('{dependencies._LIGHT_THE_TORCH}')" in source


@pytest.mark.parametrize("version, words", [("1.13.1", "1.13.1 is installed, but version >=2.4"), (None, "damaged")])
def test_old_or_damaged_torch_is_recognised(ready, installed, version, words):
    installed["torch"] = version
    ready.ui.applyButton.click()
    assert words in ready.ui.noteLabel.text and "uninstall it in the module PyTorch Utils" in ready.ui.noteLabel.text
    assert ready.widget.runs.run is None


@pytest.mark.parametrize("version", ["2.4.0", "2.9.1+cu128", "2.10.0a0+git123"])
def test_recent_torch_is_taken(installed, version):
    installed["torch"] = version
    assert dependencies.state("torch", dependencies.TORCH) == dependencies.READY


@pytest.mark.parametrize("version", ["absent", "0.3.1", None])
def test_other_packages_are_missing_where_they_are_old_or_damaged(installed, version):
    installed["safetensors"] = version
    assert dependencies.missing() == ["safetensors"] and dependencies.problem() == ""
