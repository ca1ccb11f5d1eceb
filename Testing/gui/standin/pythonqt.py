"""PySide6 classes that behave as PythonQt shows them: properties as attributes, ``connect`` by signature.

What PythonQt refuses is refused here too: an unknown attribute, a signal that does not exist, a call of a property.
"""

from __future__ import annotations

import types
import xml.etree.ElementTree as ElementTree
from functools import partial

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets


class PythonQt:
    """Goes before a PySide6 class. ``SIGNALS``: signatures with types that Python can't declare."""

    SIGNALS: tuple[str, ...] = ()

    def __getattribute__(self, name: str):
        if name.startswith("_"):
            return super().__getattribute__(name)
        if name == "name":
            name = "objectName"
        if name in ("connect", "disconnect"):
            return partial(_connect if name == "connect" else _disconnect, self)
        if _is_property(self, name):
            return QtCore.QObject.property(self, name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value) -> None:
        if name == "name":
            name = "objectName"
        if not name.startswith("_") and _is_property(self, name):
            value = list(value) if isinstance(value, tuple) else value  # PythonQt takes either
            if not QtCore.QObject.setProperty(self, name, value):
                raise ValueError(f"{type(self).__name__}.{name} does not take {value!r}")
        elif name.startswith("_"):
            super().__setattr__(name, value)
        elif not isinstance(value, QtCore.QObject):  # the loader offers all children to the topmost widget
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def children(self) -> list:
        return QtCore.QObject.children(self)

    def className(self) -> str:
        return type(self).__name__


class NodeSignal:
    """A signal whose argument is a node, a scene or None: PySide6 loses a reference to None with each it sends."""

    def __init__(self):
        self._targets: list = []

    def connect(self, target) -> None:
        self._targets.append(target)

    def disconnect(self, target) -> None:
        self._targets.remove(target)

    def emit(self, node) -> None:
        for target in list(self._targets):
            try:
                target(node)
            except TypeError as error:
                if "positional argument" not in str(error):
                    raise
                target()  # PythonQt leaves out what the target does not take


def wrap(cls: type, **members) -> type:
    """A PythonQt-like class of the same name."""
    return type(cls)(cls.__name__, (PythonQt, cls), members)


def send(widget, signal: str, *arguments: int) -> None:
    """As if the user had caused the signal. PySide6's own ``emit`` answers True without taking a reference to it,
    so that Python before 3.12 aborts at its end after enough of them."""
    given = [QtCore.Q_ARG("int", argument) for argument in arguments]
    assert QtCore.QMetaObject.invokeMethod(widget, signal, QtCore.Qt.DirectConnection, *given), signal


def _is_property(widget, name: str) -> bool:
    return QtCore.QObject.metaObject(widget).indexOfProperty(name) >= 0


def _signal(widget, signature: str):
    normal = bytes(QtCore.QMetaObject.normalizedSignature(signature)).decode()
    if QtCore.QObject.metaObject(widget).indexOfSignal(normal) < 0 and signature not in widget.SIGNALS:
        raise ValueError(f"{type(widget).__name__} has no signal {signature}")
    return super(PythonQt, widget).__getattribute__(signature.partition("(")[0])


def _connect(widget, signature: str, target) -> bool:
    """A signature without arguments, as ``clicked()``, gives the target none."""
    signal = _signal(widget, signature)
    made = signal.connect((lambda *_: target()) if signature.endswith("()") else target)
    if made is not None:  # not a NodeSignal's
        widget.__dict__.setdefault("_connected", {})[_key(signature, target)] = made
    return True


def _disconnect(widget, signature: str, target) -> bool:
    """By the connection: a signal's own ``disconnect`` loses references to True, as ``emit`` does, see ``send``."""
    signal = _signal(widget, signature)
    if isinstance(signal, NodeSignal):
        signal.disconnect(target)
        return True
    return QtCore.QObject.disconnect(widget._connected.pop(_key(signature, target)))


def _key(signature: str, target) -> tuple:
    """What a connection is found by again, without keeping the target alive."""
    return signature, id(getattr(target, "__self__", None)), id(getattr(target, "__func__", target))


class _Module(types.ModuleType):
    """``import qt``: classes of three PySide6 modules, wrapped when first asked for."""

    def __getattr__(self, name: str):
        for module in (QtWidgets, QtGui, QtCore):
            found = getattr(module, name, None)
            if found is not None:
                break
        else:
            raise AttributeError(f"qt has no {name}")
        if isinstance(found, type) and issubclass(found, QtCore.QObject):
            found = wrap(found)
        setattr(self, name, found)
        return found


def make_module(custom: dict[str, type]) -> types.ModuleType:
    """``qt``, whose QUiLoader also knows the ``custom`` widget classes by name."""
    qt = _Module("qt")

    class QUiLoader(PythonQt, QtUiTools.QUiLoader):
        def createWidget(self, class_name: str, parent=None, name: str = ""):
            if class_name not in custom and not hasattr(QtWidgets, class_name):
                raise ValueError(f"No widget class {class_name}")
            widget = custom[class_name](parent) if class_name in custom else getattr(qt, class_name)(parent)
            widget.setObjectName(name)
            self._made.append(widget)
            return widget

        def load(self, file):
            """Connections of MRML scenes, whose signatures Qt can't know here, are made by name."""
            text = bytes(file.readAll()).decode()
            root = ElementTree.fromstring(text)
            found = root.find("connections")
            connections = [] if found is None else list(found)
            for connection in connections:
                found.remove(connection)
            self._made = []
            buffer = QtCore.QBuffer()
            buffer.setData(ElementTree.tostring(root))
            widget = QtUiTools.QUiLoader.load(self, buffer)
            by_name = {made.name: made for made in self._made}
            for connection in connections:
                sender, signal, receiver, slot = (
                    connection.findtext(k) for k in ("sender", "signal", "receiver", "slot")
                )
                by_name[sender].connect(signal, getattr(by_name[receiver], slot.partition("(")[0]))
            widget._made = self._made
            return widget

    qt.QUiLoader = QUiLoader
    return qt
