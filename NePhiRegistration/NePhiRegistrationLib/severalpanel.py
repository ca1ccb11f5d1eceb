"""The panel's list of settings to be compared, each with a tick."""

from __future__ import annotations

import qt

from . import several
from .ownpresets import OwnPresets
from .parameters import Parameters

_KEY, _STATE = 0x0100, 10  # Qt::UserRole, Qt::CheckStateRole


class SeveralPanel:
    def __init__(self, ui, own: OwnPresets):
        self.ui, self._own = ui, own
        self.parameters: Parameters | None = None
        self._filling = False
        ui.severalListWidget.connect("itemChanged(QListWidgetItem*)", lambda _item: self._tick())

    def show(self) -> None:
        """What is there and ticked."""
        box, offered, ticked = self.ui.severalListWidget, several.offered(self._own), several.ticked(self.parameters)
        self._filling = True
        if [(item.data(_KEY), item.text()) for item in self._items()] != list(offered.items()):
            box.clear()
            for key, text in offered.items():
                item = qt.QListWidgetItem(text)
                item.setData(_KEY, key)
                box.addItem(item)
        for item in self._items():
            state = qt.Qt.Checked if item.data(_KEY) in ticked else qt.Qt.Unchecked
            if item.data(_STATE) is None or item.checkState() != state:  # None: it has no box to tick yet
                item.setCheckState(state)
        self._filling = False

    def _items(self) -> list:
        box = self.ui.severalListWidget
        return [box.item(i) for i in range(box.count)]

    def _tick(self) -> None:
        if not self._filling:
            keys = [item.data(_KEY) for item in self._items() if item.checkState() == qt.Qt.Checked]
            several.tick(self.parameters, keys)
