"""The .ui file against what Slicer and the panel's code want of it."""

from __future__ import annotations

import gc
import re
import sys
import typing
import xml.etree.ElementTree as ElementTree
from enum import Enum

import pytest
import slicer
from NePhiRegistrationLib.parameters import Parameters
from standin.application import MODULE_FOLDER
from standin.pythonqt import send

_ROOT = ElementTree.parse(MODULE_FOLDER / "Resources" / "UI" / "NePhiRegistration.ui").getroot()
_WIDGETS = {w.get("name"): w for w in _ROOT.iter("widget")}
_BOUND = {
    name: p.findtext("string")
    for name, widget in _WIDGETS.items()
    for p in widget.findall("property")
    if p.get("name") == "SlicerParameterName"
}
_FILES = {"settings_file", "model_file", "tolerances_file"}
_MASKS = ("fixed", "moving", "fixed_excluded", "moving_excluded", "rigid", "volume_kept")
_BY_CODE = {"model", "device", "expert_of", "several"} | _FILES | {f"{mask}_segment" for mask in _MASKS}
_HOLDS = {  # the pairs that Slicer's connectors accept
    "QCheckBox": (bool,),
    "QSpinBox": (int,),
    "QDoubleSpinBox": (float,),
    "ctkSliderWidget": (float,),
    "QComboBox": (Enum,),
    "QLineEdit": (str,),
    "qMRMLNodeComboBox": (slicer.vtkMRMLNode,),
}
_HINTS = typing.get_type_hints(Parameters, include_extras=True)


def _properties(name: str) -> dict[str, ElementTree.Element]:
    return {p.get("name"): p[0] for p in _WIDGETS[name].findall("property")}


def test_names_are_unique():
    names = [w.get("name") for w in _ROOT.iter("widget")] + [w.get("name") for w in _ROOT.iter("layout")]
    assert len(names) == len(set(names))


def test_topmost_widget_gives_the_scene_to_every_mrml_widget():
    top = _ROOT.find("widget")
    assert top.get("class") == "qMRMLWidget"
    wanted = {n for n, w in _WIDGETS.items() if w.get("class").startswith("qMRML")} - {top.get("name")}
    connected = set()
    for c in _ROOT.iter("connection"):
        assert c.findtext("sender") == top.get("name")
        assert c.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
        assert c.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
        connected.add(c.findtext("receiver"))
    assert connected == wanted and len(wanted) == 20


def test_custom_widgets_are_declared():
    declared = {c.findtext("class") for c in _ROOT.iter("customwidget")}
    assert {w.get("class") for w in _WIDGETS.values() if not w.get("class").startswith("Q")} == declared


def test_every_parameter_is_bound_once_or_by_code():
    assert len(set(_BOUND.values())) == len(_BOUND)
    assert set(_BOUND.values()).isdisjoint(_BY_CODE)
    assert set(_BOUND.values()) | _BY_CODE == set(_HINTS)


@pytest.mark.parametrize("name", _BOUND)
def test_widget_can_hold_its_parameter(name):
    kind = _HINTS[_BOUND[name]]
    if hasattr(kind, "__metadata__"):
        kind = typing.get_args(kind)[0]
    kinds = [k for k in typing.get_args(kind) or (kind,) if k is not type(None)]
    assert all(issubclass(k, _HOLDS[_WIDGETS[name].get("class")]) for k in kinds)
    properties = _properties(name)
    if _WIDGETS[name].get("class") == "qMRMLNodeComboBox":
        types = [text.text for text in properties["nodeTypes"]]
        assert types == [k().GetClassName() for k in kinds]
        assert properties["noneEnabled"].text == "true" and properties["addEnabled"].text == "false"
    assert properties["text" if _WIDGETS[name].get("class") == "QCheckBox" else "toolTip"].text


_TOUCHED = ("QCheckBox", "QPushButton", "QComboBox", "QSpinBox", "QDoubleSpinBox", "QTableWidget", "QPlainTextEdit")


@pytest.mark.parametrize(
    "name", [n for n, w in _WIDGETS.items() if w.get("class") in _TOUCHED or w.get("class").endswith(("Box", "Edit"))]
)
def test_everything_that_can_be_touched_has_a_tool_tip(name):
    if not name.endswith("GroupBox"):  # titles say what is in them
        assert _properties(name)["toolTip"].text


@pytest.mark.parametrize("name", [n for n, k in _HINTS.items() if hasattr(k, "__metadata__")])
def test_limits_and_decimals_can_hold_the_default(panel, name):
    widget = next(getattr(panel.ui, w) for w, p in _BOUND.items() if p == name)
    limits = _HINTS[name].__metadata__[0]
    assert (widget.minimum, widget.maximum) == (limits.minimum, limits.maximum)
    assert widget.value == getattr(panel.p, name)


def test_panel_fits_into_the_width_that_slicer_gives_it(panel):
    """Everything open; wider than this, half of it lies behind a scroll bar."""
    for name in ("inputs", "registration", "batch", "result"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
    for name in ("guides", "optional", "expert", "several", "log", "review", "use"):
        getattr(panel.ui, f"{name}GroupBox").collapsed = False
    for widget in vars(panel.ui).values():
        if "label" in widget.name.lower() or widget.name.endswith(("LineEdit", "CheckBox", "ComboBox", "qaWidget")):
            widget.visible = True
    assert panel.widget.panel.minimumSizeHint.width() <= 400


def _reach(panel) -> list:
    """What the Tab key reaches, in its order."""
    found, widget = [], panel.ui.fixedSelector
    names = {id(w): name for name, w in vars(panel.ui).items()}
    while widget is not None and (id(widget) not in names or names[id(widget)] not in found):
        if id(widget) in names:
            found.append(names[id(widget)])
        widget = widget.nextInFocusChain()
    return found


def test_what_cannot_be_pressed_says_why(finished):
    """A tool tip that only says what a button would do leaves one guessing."""
    ui = finished.ui
    (finished.outputs.folder / "report.html").unlink(missing_ok=True)
    finished.p.fixed = None
    finished.tick()
    buttons = {n: getattr(ui, n) for n, w in _WIDGETS.items() if w.get("class") == "QPushButton"}
    grey = {name: button.toolTip for name, button in buttons.items() if not button.enabled}
    assert {
        "applyButton",
        "cancelButton",
        "batchStopButton",
        "removePresetButton",
        "dicomButton",
        "reportButton",
    } == set(grey)
    assert [name for name, tip in grey.items() if not tip or tip == _properties(name)["toolTip"].text] == []
    tabs = ui.tablesTabWidget
    assert all(tabs.isTabEnabled(i) or tabs.tabToolTip(i) for i in range(tabs.count))


def test_the_keyboard_goes_through_the_panel_from_top_to_bottom(finished):
    """Everything open: what Tab reaches next stands further down, or to the right of it."""
    for name, widget in vars(finished.ui).items():
        if name.endswith(("CollapsibleButton", "GroupBox")):
            widget.collapsed = False
    finished.tick()
    reached = _reach(finished)
    assert len(reached) > 60
    shown = [getattr(finished.ui, name) for name in reached]
    shown = [w for w in shown if w.visible and "Label" not in type(w).__name__ and w.focusPolicy != 0]
    tops = [w.mapTo(finished.widget.panel, w.rect.topLeft()) for w in shown]
    wrong = [
        (a.name, b.name) for a, b, p, q in zip(shown, shown[1:], tops, tops[1:], strict=False) if q.y() < p.y() - 12
    ]
    assert wrong == []


def test_code_uses_widgets_that_exist():
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in (
            MODULE_FOLDER / "NePhiRegistration.py",
            *(MODULE_FOLDER / "NePhiRegistrationLib").glob("*panel.py"),
        )
    )
    used = set(re.findall(r"\bui\.(\w+)", code))
    assert used - set(_WIDGETS) == set()
    buttons = {n for n, w in _WIDGETS.items() if w.get("class") == "QPushButton"}
    assert {b for b in buttons if f'ui.{b}.connect("clicked(bool)"' in code} == buttons


def test_the_stand_in_s_signals_lose_no_reference(panel):
    """Where some do, Python before 3.12 aborts when it ends, with every test passed."""
    gc.collect()  # what earlier tests have left
    before = sys.getrefcount(True)
    for i in range(20):
        panel.leave()
        panel.enter()
        panel.ui.opacitySlider.value = i % 2
        send(panel.ui.deviceComboBox, "activated", 0)
    assert sys.getrefcount(True) > before - 20
