"""Every call that the module, and its page's examples, make into Slicer's Python fits the signature that Slicer has.

The calls are read from the code. Without a Slicer checkout they are bound to slicer-core's functions and to the
stand-ins; with one (SLICER_SOURCE_DIR), the signatures of both are compared with Slicer's source.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
from pathlib import Path

import pytest
import slicer
from conftest import SOURCE
from NePhiRegistrationLib.parameters import Parameters
from standin.application import MODULE_FOLDER

PYTORCH_SOURCE = os.environ.get("SLICER_PYTORCH_SOURCE_DIR")  # a checkout of the PyTorch extension
_BASE = "Base/Python/slicer"
_FILES = {  # where the source of what is called lies in the checkouts
    "slicer.util": (SOURCE, f"{_BASE}/util.py"),
    "slicer.i18n": (SOURCE, f"{_BASE}/i18n.py"),
    "slicer.cli": (SOURCE, f"{_BASE}/cli.py"),
    "slicer.parameterNodeWrapper": (SOURCE, f"{_BASE}/parameterNodeWrapper/validators.py"),
    "slicer.ScriptedLoadableModule": (SOURCE, f"{_BASE}/ScriptedLoadableModule.py"),
    "SampleData": (SOURCE, "Modules/Scripted/SampleData/SampleData.py"),
}
_WRAPPER = ("connectGui", "disconnectGui", "AddObserver", "RemoveObserver", "StartModify", "EndModify")
_BASES = {  # of the module's classes: what is called on self and not defined there
    name: ("slicer.ScriptedLoadableModule", f"ScriptedLoadableModule{name}") for name in ("", "Widget", "Logic", "Test")
}
_MIXIN = ("slicer.util", "VTKObservationMixin")


def _codes() -> dict[str, ast.Module]:
    files = [MODULE_FOLDER / "NePhiRegistration.py", *sorted((MODULE_FOLDER / "NePhiRegistrationLib").glob("*.py"))]
    codes = {file.name: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    page = (MODULE_FOLDER.parent / "docs" / "slicer.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    return codes | {f"docs/slicer.md {i}": ast.parse(block) for i, block in enumerate(blocks) if "slicer" in block}


def _dotted(node) -> str:
    """``a.b.c`` of an attribute; ``()`` after a class is left out."""
    if isinstance(node, ast.Call):
        made = _dotted(node.func)
        return made if made.rpartition(".")[2][:1].isupper() else ""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _calls_in(tree: ast.Module):
    """Module, path in it and the call, for whatever leads into Slicer's Python."""
    names = {}  # of this file, for what it imports
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            home = "slicer.i18n" if node.level == 1 and node.module == "i18n" else node.module
            names |= {a.asname or a.name: f"{home}.{a.name}" for a in node.names if home in _FILES}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name: a.name for a in node.names if a.name in _FILES}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = _dotted(node.func).partition(".")
        path = ".".join(filter(None, [names.get(first, first), rest]))
        home = next((home for home in _FILES if path.startswith(f"{home}.")), None)
        if home:
            yield home, path.removeprefix(f"{home}."), node
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        yield from _inherited_calls(cls)


def _inherited_calls(cls: ast.ClassDef):
    """``self.method(...)`` of a base class of Slicer's."""
    if not cls.name.startswith("NePhiRegistration"):
        return
    home, base = _BASES[cls.name.removeprefix("NePhiRegistration")]
    own = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(cls):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr.startswith("assert"):  # unittest's
                continue
            value, name = node.func.value, node.func.attr
            parent = isinstance(value, ast.Call) and _dotted(value.func) == "super"
            if parent or (isinstance(value, ast.Name) and value.id == "self" and name not in own):
                for where, owner in ((home, base), _MIXIN):
                    if hasattr(getattr(importlib.import_module(where), owner), name):
                        yield where, f"{owner}.{name}", node
                        break


CALLS = [(file, *call) for file, tree in _codes().items() for call in _calls_in(tree)]
CALLED = sorted({(home, path) for _file, home, path, _node in CALLS})


def _installed(home: str, path: str):
    found = importlib.import_module(home)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _signature(home: str, path: str) -> inspect.Signature:
    """Of what is installed here; without self."""
    found = _installed(home, path)
    signature = inspect.signature(found)
    parameters = list(signature.parameters.values())
    if "." in path and inspect.isfunction(found) and parameters[:1] and parameters[0].name == "self":
        parameters = parameters[1:]
    return signature.replace(parameters=parameters)


def test_the_calls_are_found():
    homes = {home for home, _path in CALLED}
    assert homes == set(_FILES), set(_FILES) - homes
    expected = {
        ("SampleData", "SampleDataLogic.registerCustomSampleDataSource"),
        ("slicer.util", "executePythonModule"),
        ("slicer.cli", "runSync"),
        ("slicer.i18n", "tr"),
        ("slicer.util", "VTKObservationMixin.addObserver"),
    }
    assert expected <= set(CALLED), expected - set(CALLED)


def test_the_docs_list_them_all():
    text = (MODULE_FOLDER.parent / "docs" / "limits.md").read_text(encoding="utf-8")
    part = text.partition("### Calls into Slicer's own Python")[2].partition("\n\nAlso with a checkout")[0]
    listed = [name for row in part.splitlines() for name in re.findall(r"`([\w.]+)`", row.rpartition(" | ")[2])]
    assert sorted(listed) == sorted(f"{home}.{path}" for home, path in CALLED)


@pytest.mark.parametrize("file, home, path, node", CALLS, ids=lambda x: x if isinstance(x, str) else str(x.lineno))
def test_a_call_fits_its_signature(file, home, path, node):
    keywords = {k.arg: None for k in node.keywords}
    assert None not in keywords and not any(isinstance(a, ast.Starred) for a in node.args)
    explicit_self = bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id == "self"
    arguments = node.args[1:] if explicit_self else node.args
    bound = _signature(home, path).bind(*arguments, **keywords)
    known = set(_signature(home, path).parameters)
    assert set(keywords) <= known, "swallowed by **kwargs"
    assert bound.arguments or not (arguments or keywords)


def _in_source(home: str, path: str) -> ast.arguments:
    checkout, file = _FILES[home]
    if not checkout:
        pytest.skip(f"no checkout with {file}")
    body = ast.parse((Path(checkout) / file).read_text(encoding="utf-8")).body
    *classes, name = path.split(".")
    for cls in classes:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == cls).body
    found = next(node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name)
    if isinstance(found, ast.ClassDef):
        found = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return found.args


def _flat(arguments: ast.arguments) -> list[tuple[str, bool]]:
    """Names and whether they have a default, as ``inspect`` orders them; without self."""
    plain = arguments.posonlyargs + arguments.args
    flat = [(a.arg, i >= len(plain) - len(arguments.defaults)) for i, a in enumerate(plain)]
    flat += [(arguments.vararg.arg, False)] if arguments.vararg else []
    flat += [(a.arg, d is not None) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    flat += [(arguments.kwarg.arg, False)] if arguments.kwarg else []
    return [entry for entry in flat if entry[0] != "self"]


@pytest.mark.parametrize("home, path", [*CALLED, ("SampleData", "SampleDataSource")])
def test_signatures_here_are_those_of_the_source(home, path):
    source = _flat(_in_source(home, path))
    here = [(p.name, p.default is not p.empty) for p in _signature(home, path).parameters.values()]
    assert here == source


def test_parameter_node_wrapper_has_what_is_called():
    """Its methods are made at run time: the panel's tests run on Slicer's own with a checkout."""
    parameters = Parameters(slicer.vtkMRMLScriptedModuleNode())
    assert all(callable(getattr(parameters, name)) for name in _WRAPPER)


_CPP = {  # what the stand-ins imitate of Slicer's C++, as it is declared there
    "Base/QTCore/qSlicerCoreApplication.h": (
        "Q_PROPERTY(QString temporaryPath READ",
        "Q_PROPERTY(QString slicerUserSettingsFilePath READ",
        "Q_INVOKABLE QSettings* userSettings() const;",
    ),
    "Base/QTGUI/qSlicerApplication.h": ("void startupCompleted();",),
    "Base/QTGUI/qSlicerAbstractModuleWidget.h": ("Q_PROPERTY(bool isEntered READ",),
    "Libs/MRML/Widgets/qMRMLNodeComboBox.h": (
        "Q_INVOKABLE qMRMLSortFilterProxyModel* sortFilterProxyModel() const;",
        "Q_INVOKABLE void addAttribute(const QString& nodeType, const QString& attributeName",
        "Q_INVOKABLE vtkMRMLNode* currentNode() const;",
        "void currentNodeChanged(vtkMRMLNode* node);",
    ),
    "Libs/MRML/Widgets/qMRMLSortFilterProxyModel.h": ("Q_PROPERTY(QStringList hiddenNodeIDs READ",),
    "Modules/Loadable/Plots/Logic/vtkSlicerPlotsLogic.h": ("void ShowChartInLayout(vtkMRMLPlotChartNode*",),
}


@pytest.mark.skipif(not SOURCE, reason="SLICER_SOURCE_DIR names no checkout of Slicer")
@pytest.mark.parametrize("file, declaration", [(f, d) for f, ds in _CPP.items() for d in ds])
def test_what_is_imitated_of_the_application_is_declared_there(file, declaration):
    assert declaration in (Path(SOURCE) / file).read_text(encoding="utf-8")
