"""The ctk and qMRML widgets that the panel uses: own drawings with the real names, properties and signals."""

from __future__ import annotations

from PySide6.QtCore import Property, QRect, Qt, Signal
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import (
    QApplication,
    QComboBox,
    QDoubleSpinBox,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionButton,
    QWidget,
)

from .pythonqt import NodeSignal, PythonQt

_HEADER = 26
_ANY_HEIGHT = 16777215


class ctkCollapsibleButton(PythonQt, QWidget):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._text, self._is_collapsed = "", False
        self.setContentsMargins(0, _HEADER, 0, 0)

    def _set_text(self, text: str) -> None:
        self._text = text

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed != self._is_collapsed:
            self._is_collapsed = collapsed
            self.setMaximumHeight(_HEADER if collapsed else _ANY_HEIGHT)

    text = Property(str, lambda self: self._text, _set_text)
    collapsed = Property(bool, lambda self: self._is_collapsed, _set_collapsed)

    def mousePressEvent(self, event) -> None:
        if event.position().y() < _HEADER:
            self._set_collapsed(not self._is_collapsed)

    def paintEvent(self, _event) -> None:
        painter, option = QPainter(self), QStyleOptionButton()
        option.initFrom(self)
        option.rect = QRect(0, 0, self.width, _HEADER - 2)
        QApplication.style().drawControl(QStyle.CE_PushButtonBevel, option, painter)
        painter.setPen(option.palette.buttonText().color())
        painter.drawText(option.rect.adjusted(8, 0, 0, 0), Qt.AlignVCenter, f"{_arrow(self)}  {self._text}")


class ctkCollapsibleGroupBox(PythonQt, QGroupBox):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._is_collapsed = False

    def _set_collapsed(self, collapsed: bool) -> None:
        self._is_collapsed = collapsed
        self.setMaximumHeight(_HEADER if collapsed else _ANY_HEIGHT)

    collapsed = Property(bool, lambda self: self._is_collapsed, _set_collapsed)

    def mousePressEvent(self, event) -> None:
        if event.position().y() < _HEADER:
            self._set_collapsed(not self._is_collapsed)

    def paintEvent(self, _event) -> None:
        painter = QPainter(self)
        painter.drawText(QRect(2, 0, 600, 20), Qt.AlignVCenter, f"{_arrow(self)} {self.title}")


def _arrow(widget) -> str:
    return "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}" if widget.collapsed else "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"


class ctkSliderWidget(PythonQt, QWidget):
    valueChanged = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box, self._slider = QDoubleSpinBox(self), QSlider(Qt.Horizontal, self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(lambda value: self._slider.setValue(round(value / self._step())))
        self._box.valueChanged.connect(self.valueChanged)
        self._slider.sliderMoved.connect(lambda i: self._box.setValue(self._step() * i))

    def _step(self) -> float:
        return self._box.singleStep()

    def _set(self, setter: str, value) -> None:
        getattr(self._box, setter)(value)
        self._slider.setRange(round(self._box.minimum() / self._step()), round(self._box.maximum() / self._step()))
        self._slider.setValue(round(self._box.value() / self._step()))

    value = Property(float, lambda self: self._box.value(), lambda self, v: self._set("setValue", v))
    minimum = Property(float, lambda self: self._box.minimum(), lambda self, v: self._set("setMinimum", v))
    maximum = Property(float, lambda self: self._box.maximum(), lambda self, v: self._set("setMaximum", v))
    singleStep = Property(float, lambda self: self._box.singleStep(), lambda self, v: self._set("setSingleStep", v))
    pageStep = Property(float, lambda self: 0.0, lambda self, v: None)
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, v: self._set("setDecimals", v))
    suffix = Property(str, lambda self: self._box.suffix(), lambda self, v: self._set("setSuffix", v))


class ctkPathLineEdit(PythonQt, QWidget):
    currentPathChanged = Signal(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._line, self._filters = QLineEdit(self), []
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._line)
        layout.addWidget(QPushButton("...", self))
        self._line.textChanged.connect(self.currentPathChanged)

    def _set_filters(self, filters: list) -> None:
        self._filters = filters

    currentPath = Property(str, lambda self: self._line.text(), lambda self, path: self._line.setText(path))
    nameFilters = Property("QStringList", lambda self: self._filters, _set_filters)


class qMRMLWidget(PythonQt, QWidget):
    SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._scene_changed = None, NodeSignal()

    @property
    def mrmlSceneChanged(self) -> NodeSignal:
        return self._scene_changed

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """What Slicer puts a scripted module's widget into."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._entered = False

    isEntered = Property(bool, lambda self: self._entered)


class _Filter:
    """What a selector shows of the scene."""

    def __init__(self, box: qMRMLNodeComboBox):
        self._box, self._hidden = box, ()

    @property
    def hiddenNodeIDs(self) -> tuple[str, ...]:
        return self._hidden

    @hiddenNodeIDs.setter
    def hiddenNodeIDs(self, node_ids) -> None:
        self._hidden = tuple(node_ids)
        self._box._fill()


class qMRMLNodeComboBox(PythonQt, QWidget):
    """Nodes of some classes in the scene, by name; None where that is allowed."""

    SIGNALS = ("currentNodeChanged(vtkMRMLNode*)",)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._changed = NodeSignal()
        self._scene, self._observers, self._types, self._attributes = None, [], [], []
        self._filter = _Filter(self)
        self._nodes: list = []
        self._flags: dict[str, bool] = {}
        self._none_text = "None"
        self._box = QComboBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.setSizeAdjustPolicy(QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self._box.setMinimumContentsLength(8)
        self._box.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Fixed)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Fixed)
        self._box.currentIndexChanged.connect(lambda _: self.currentNodeChanged.emit(self.currentNode()))

    @property
    def currentNodeChanged(self) -> NodeSignal:
        return self._changed

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        for tag in self._observers:
            self._scene.RemoveObserver(tag)
        self._scene, self._observers = scene, []
        if scene is not None:
            events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent)
            self._observers = [scene.AddObserver(event, lambda *_: self._fill()) for event in events]
        self._fill()

    def addAttribute(self, node_type: str, name: str, value=None) -> None:
        self._attributes.append((node_type, name, value))
        self._fill()

    def sortFilterProxyModel(self) -> _Filter:
        return self._filter

    def nodeCount(self) -> int:
        return len([node for node in self._nodes if node is not None])

    def nodeFromIndex(self, index: int):
        return [node for node in self._nodes if node is not None][index]

    def currentNode(self):
        index = self._box.currentIndex()
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def setCurrentNode(self, node) -> None:
        if node not in self._nodes:  # Slicer's own follows a node's attributes as they change
            self._fill()
        if self.currentNode() is not node and (node in self._nodes):
            self._box.setCurrentIndex(self._nodes.index(node))

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def _matches(self, node) -> bool:
        exact = not self._flags.get("showChildNodeTypes", True)
        if not any(node.GetClassName() == t if exact else node.IsA(t) for t in self._types):
            return False
        if node.GetHideFromEditors() or node.GetID() in self._filter.hiddenNodeIDs:
            return False
        wanted = [(name, value) for node_type, name, value in self._attributes if node.IsA(node_type)]
        return all(node.GetAttribute(n) is not None and v in (None, node.GetAttribute(n)) for n, v in wanted)

    def _fill(self) -> None:
        current, found = self.currentNode(), []
        if self._scene is not None:
            every = (self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes()))
            found = [node for node in every if self._matches(node)]
        self._nodes = ([None] if self._flags.get("noneEnabled") else []) + found
        self._box.blockSignals(True)
        self._box.clear()
        self._box.addItems([self._none_text if node is None else node.GetName() for node in self._nodes])
        self._box.setCurrentIndex(self._nodes.index(current) if current in self._nodes else 0)
        self._box.blockSignals(False)
        if self.currentNode() is not current:
            self.currentNodeChanged.emit(self.currentNode())

    def _set_types(self, types) -> None:
        self._types = list(types)
        self._fill()

    def _set_none_text(self, text: str) -> None:
        self._none_text = text
        self._fill()

    def _flag(name):
        def write(self, value: bool) -> None:
            self._flags[name] = value
            self._fill()

        return Property(bool, lambda self: self._flags.get(name, False), write)

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneDisplay = Property(str, lambda self: self._none_text, _set_none_text)
    noneEnabled, addEnabled, removeEnabled = _flag("noneEnabled"), _flag("addEnabled"), _flag("removeEnabled")
    renameEnabled, showChildNodeTypes = _flag("renameEnabled"), _flag("showChildNodeTypes")
    currentNodeID = Property(
        str,
        lambda self: self.currentNode().GetID() if self.currentNode() else "",
        lambda self, node_id: self.setCurrentNodeID(node_id),
    )


CTK = {c.__name__: c for c in (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget, ctkPathLineEdit)}
MRML = {c.__name__: c for c in (qMRMLWidget, qMRMLNodeComboBox, qSlicerScriptedLoadableModuleWidget)}
