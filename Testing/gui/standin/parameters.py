"""A typed view of a vtkMRMLScriptedModuleNode, bound to widgets that name a parameter: what the panel uses of it."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from enum import Enum

import ctk
import qt
import slicer
import vtk


@dataclass
class WithinRange:
    minimum: float
    maximum: float


def parameterNodeWrapper(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    cls._parameters = {name: _Parameter(name, kind, getattr(cls, name, None)) for name, kind in hints.items()}
    for name, parameter in cls._parameters.items():
        setattr(cls, name, property(_reader(parameter), _writer(parameter)))
    for method in (__init__, connectGui, disconnectGui, AddObserver, RemoveObserver, StartModify, EndModify):
        setattr(cls, method.__name__, method)
    return cls


class _Parameter:
    def __init__(self, name: str, kind, default):
        annotations = typing.get_args(kind)[1:] if hasattr(kind, "__metadata__") else ()
        self.name, self.default = name, default
        self.range = next((a for a in annotations if isinstance(a, WithinRange)), None)
        plain = typing.get_args(kind)[0] if annotations else kind
        self.kinds = [k for k in typing.get_args(plain) or (plain,) if k is not type(None)]
        self.is_node = issubclass(self.kinds[0], slicer.vtkMRMLNode)
        if self.default is None and not self.is_node:
            raise TypeError(f"{name} needs a default")

    def read(self, node):
        if self.is_node:
            return node.GetNodeReference(self.name)
        text, kind = node.GetParameter(self.name), self.kinds[0]
        if issubclass(kind, Enum):
            return kind[text]
        return text == "true" if kind is bool else kind(text)

    def write(self, node, value) -> None:
        if self.is_node:
            if value is not None and not isinstance(value, tuple(self.kinds)):
                raise ValueError(f"{self.name} does not take {value!r}")
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value else None)
            return
        if not isinstance(value, self.kinds[0]) and not (self.kinds[0] is float and isinstance(value, int)):
            raise ValueError(f"{self.name} does not take {value!r}")
        if self.range and not self.range.minimum <= value <= self.range.maximum:
            raise ValueError(f"{self.name}: {value} is out of range")
        text = value.name if isinstance(value, Enum) else str(value).lower() if isinstance(value, bool) else str(value)
        node.SetParameter(self.name, text)


def _reader(parameter: _Parameter):
    return lambda self: parameter.read(self.parameterNode)


def _writer(parameter: _Parameter):
    return lambda self, value: parameter.write(self.parameterNode, value)


def __init__(self, node) -> None:
    self.parameterNode, self._bound, self._filling = node, {}, False
    for parameter in self._parameters.values():
        if not node.HasParameter(parameter.name):
            parameter.write(node, parameter.default)


def connectGui(self, gui) -> int:
    """Bind each widget with the property SlicerParameterName; a widget that can't hold its parameter raises."""
    bindings = []
    for widget in vars(gui).values():
        name = widget.property("SlicerParameterName")
        if not name:
            continue
        if name not in self._parameters:
            raise ValueError(f"{widget.name}: no parameter {name}")
        read, write, signal = _binding(widget, self._parameters[name])
        write(getattr(self, name))
        slot = _slot(self, name, read)
        widget.connect(signal, slot)
        bindings.append((name, write, widget, signal, slot))

    def fill(*_):
        if not self._filling:
            self._filling = True
            for name, write, *_ in bindings:
                write(getattr(self, name))
            self._filling = False

    tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, fill)
    self._bound[tag] = bindings
    return tag


def _slot(self, name: str, read):
    def changed(*_):
        if not self._filling:
            setattr(self, name, read())

    return changed


def disconnectGui(self, tag: int) -> None:
    for _, _, widget, signal, slot in self._bound.pop(tag, ()):
        widget.disconnect(signal, slot)
    self.RemoveObserver(tag)


def _binding(widget, parameter: _Parameter) -> tuple:
    """Reader, writer and signal's signature of a widget, by its exact class and the parameter's."""
    kind = parameter.kinds[0]
    if parameter.is_node and type(widget) is slicer.qMRMLNodeComboBox:
        widget.nodeTypes = [k().GetClassName() for k in parameter.kinds]
        return widget.currentNode, widget.setCurrentNode, "currentNodeChanged(vtkMRMLNode*)"
    if kind is bool and type(widget) is qt.QCheckBox:
        return *_property(widget, "checked"), "toggled(bool)"
    if kind is str and type(widget) is qt.QLineEdit:
        return *_property(widget, "text"), "textChanged(QString)"
    if issubclass(kind, Enum) and type(widget) is qt.QComboBox:
        members = list(kind)
        widget.clear()
        widget.addItems([member.label() for member in members])
        read = lambda: members[widget.currentIndex]  # noqa: E731
        return read, lambda value: widget.setCurrentIndex(members.index(value)), "currentIndexChanged(int)"
    numbers = {int: (qt.QSpinBox, qt.QSlider), float: (qt.QDoubleSpinBox, ctk.ctkSliderWidget)}
    if type(widget) in numbers.get(kind, ()):
        if parameter.range:
            widget.minimum, widget.maximum = parameter.range.minimum, parameter.range.maximum
        return *_property(widget, "value"), f"valueChanged({'int' if kind is int else 'double'})"
    raise TypeError(f"{type(widget).__name__} {widget.name} can't hold {parameter.name} ({kind.__name__})")


def _property(widget, name: str):
    return lambda: getattr(widget, name), lambda value: setattr(widget, name, value)


def AddObserver(self, event, callback, priority: float = 0.0) -> int:
    return self.parameterNode.AddObserver(event, callback, priority)


def RemoveObserver(self, tag: int) -> None:
    self.parameterNode.RemoveObserver(tag)


def StartModify(self) -> int:
    return self.parameterNode.StartModify()


def EndModify(self, was_modified: int) -> None:
    self.parameterNode.EndModify(was_modified)
