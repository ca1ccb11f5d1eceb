"""A picture of the panel: ``python Testing/gui/screenshot.py --result DIR --data DIR``.

The real class and .ui file of the module, drawn by the stand-in for Slicer's widgets: left before Apply, right with the
registration of lung_ct_followup that ``Testing/slicer/screenshots.py`` keeps in ``--result``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import slicer
from conftest import APP, Panel
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.parameters import View
from PySide6.QtGui import QPainter, QPixmap
from screenshots import PICTURES, make_job

WIDTH, SCALE = 440, 2  # of a column in the panel's own pixels, and how much finer it is drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real pairs")
    parser.add_argument("--result", type=Path, required=True, help="folder with the registration")
    options = parser.parse_args()
    APP.add_views()
    panel = Panel()
    columns = [before_apply(panel, options.data), with_result(panel, options.result)]
    write(columns, PICTURES / "panel.png")
    panel.close()


def before_apply(panel: Panel, data: Path) -> QPixmap:
    """Both scans, their masks and landmarks chosen."""
    job = make_job(slicer.mrmlScene, data / "lung_ct_followup", "balanced")
    for role in ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks"):
        setattr(panel.p, role, getattr(job, role))
    panel.ui.optionalGroupBox.collapsed = False
    panel.ui.resultCollapsibleButton.collapsed = True
    panel.tick()
    return grab(panel)


def with_result(panel: Panel, folder: Path) -> QPixmap:
    """Volume change shown, with the deformation as a grid, and the numbers."""
    forward = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "followup to baseline")
    outputs = Outputs.read(folder, forward, panel.p.fixed, panel.p.moving)
    panel.widget.results.add(outputs)
    panel.p.result, panel.p.view, panel.p.grid = forward, View.JACOBIAN, True
    for name in ("inputs", "registration"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = True
    panel.ui.resultCollapsibleButton.collapsed = False
    panel.tick()
    return grab(panel)


def grab(panel: Panel) -> QPixmap:
    """The panel at its natural height."""
    for _ in range(3):  # labels that wrap know their height once their width is known
        panel.parent.resize(WIDTH, panel.parent.layout().totalHeightForWidth(WIDTH))
        APP.processEvents()
    return painted(WIDTH, panel.parent.layout().totalHeightForWidth(WIDTH), panel.parent.render)


def write(columns: list[QPixmap], path: Path) -> None:
    """Side by side, on the panel's own ground."""

    def paint(picture: QPixmap) -> None:
        painter = QPainter(picture)
        for i, column in enumerate(columns):
            painter.drawPixmap(i * WIDTH, 0, column)
        painter.end()

    height = max(column.deviceIndependentSize().height() for column in columns)
    if not painted(WIDTH * len(columns), height, paint).save(str(path), "PNG", 0):
        raise SystemExit(f"cannot write {path}")


def painted(width: float, height: float, paint) -> QPixmap:
    picture = QPixmap(round(SCALE * width), round(SCALE * height))
    picture.setDevicePixelRatio(SCALE)
    picture.fill(APP.qt.palette().window().color())
    paint(picture)
    return picture


if __name__ == "__main__":
    main()
