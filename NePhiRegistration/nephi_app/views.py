"""Slice and 3D views of one MRML scene in a page, by trame-slicer; nothing else here knows that package."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

if sys.platform.startswith("linux"):
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")  # read when vtk makes its first window

import numpy as np
import slicer
import vtk
from slicer.util import arrayFromVTKMatrix
from trame_slicer.core import LayoutManager, SlicerApp
from trame_slicer.rca_view.rca_view_factory import RemoteViewFactory
from trame_slicer.views import Layout, LayoutDirection, SliceView, ThreeDView, ViewLayoutDefinition, ViewType
from trame_slicer.views.render_scheduler import NoScheduleRendering, ScheduledRenderStrategy

from .state import SLICES, THREE_D

_MOST_PIXELS = 1_500_000  # of a view that are drawn; on larger screens they are enlarged
_IN_HAND_S = 0.3  # from the last move in a view, during which it is drawn before the others
_OTHERS_S = 0.1  # by which these follow, once for all moves meanwhile
_LINE_SAMPLES = 4  # of a pixel, where lines are drawn over the slices
_LEGEND_WIDTH, _LEGEND_VIEW_PIXELS, _FREE_PIXELS = 0.1, 600, 12  # part of a view, up to this width of it
_HANDLED = ("MouseMoveEvent", "MouseWheelForwardEvent", "MouseWheelBackwardEvent")
_LAYOUTS = {"four": [*SLICES, THREE_D]} | {name: [name] for name in (*SLICES, THREE_D)}


class Views:
    """The scene and its views, which ``make`` makes; ``gutter(view name)`` adds what lies over a view."""

    def __init__(self, server: Any, gutter: Callable[[str], None]):
        self._app = SlicerApp()
        self.scene = self._app.scene
        # trame-slicer's colour logic does not register it
        self.scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
        slicer.mrmlScene = self.scene  # where slicer.util looks

        def over(_server: Any, name: str, _view: Any) -> None:
            gutter(name)

        for kind, view_type in ((SliceView, ViewType.SLICE_VIEW), (ThreeDView, ViewType.THREE_D_VIEW)):
            # a view draws at each of the many steps in which it is made, unless it is told not to
            make = partial(_unseen, kind)
            self._app.view_manager.register_factory(
                RemoteViewFactory(server, make, view_type, populate_view_ui_f=over, interactive_quality=70)
            )
        self._layout = LayoutManager(self.scene, self._app.view_manager, server)
        self._moved: list[Callable[[str], None]] = []
        self._in_hand, self._in_hand_until_s = "", 0.0
        self.made = False
        # what VTK prints while nodes come and go would fill the terminal; what fails is told by who asked for it
        vtk.vtkObject.GlobalWarningDisplayOff()

    def place(self, page: Any) -> None:
        """The grid of views, here in the page."""
        self._layout.initialize_layout_grid(page)

    def make(self) -> None:
        """The views, once."""
        if self.made:
            return
        self.made = True
        definitions = {
            "Red": ViewLayoutDefinition.axial_view(),
            "Green": ViewLayoutDefinition.coronal_view(),
            "Yellow": ViewLayoutDefinition.sagittal_view(),
            THREE_D: ViewLayoutDefinition.threed_view(),
        }
        for key, names in _LAYOUTS.items():
            rows: list = [definitions[name] for name in names]
            if len(rows) == 4:
                rows = [Layout(LayoutDirection.Horizontal, rows[:2]), Layout(LayoutDirection.Horizontal, rows[2:])]
            self._layout.register_layout(key, Layout(LayoutDirection.Vertical, rows))
        self._layout.set_layout("four")
        for factory in self._app.view_manager._factories:
            for name, view in factory._views.items():
                view.view_adapter.max_pixel_count = _MOST_PIXELS
                self._draw_in_turn(name, view.slicer_view)
        renderer_3d = self._app.view_manager.get_view(THREE_D).renderer()
        renderer_3d.SetUseDepthPeeling(False)  # with Mesa's software renderer it leaves out what is translucent
        self._app.app_logic.SetIntersectingSlicesEnabled(
            slicer.vtkMRMLApplicationLogic.IntersectingSlicesVisibility, True
        )
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        crosshair.SetCrosshairBehavior(slicer.vtkMRMLCrosshairNode.OffsetJumpSlice)
        for name in SLICES:
            self.slice_view(name).modified.connect(lambda _view, name=name: [call(name) for call in self._moved])

    def _draw_in_turn(self, name: str, view: Any) -> None:
        """A view that is not in the user's hand waits for the one that is."""

        def waits() -> bool:
            return self._in_hand != name and time.monotonic() < self._in_hand_until_s

        view.set_scheduled_render(_InTurn(view._scheduled_render, waits))
        for event in _HANDLED:
            view.interactor().AddObserver(event, lambda *_: self.take_in_hand(name), 1.0)

    def take_in_hand(self, name: str) -> None:
        """What changes next is moved by the user in this view."""
        self._in_hand, self._in_hand_until_s = name, time.monotonic() + _IN_HAND_S

    def choose(self, layout: str) -> None:
        """``four``, or one view by its name."""
        if self.made:
            self._layout.set_layout(layout)

    def slice_view(self, name: str) -> Any:
        return self._app.view_manager.get_view(name)

    def on_moved(self, call: Callable[[str], None]) -> None:
        """``call(name)`` whenever the slice of a view has changed."""
        self._moved.append(call)

    def crossing_ras_mm(self) -> list[float]:
        """Where the three slices meet."""
        planes = [arrayFromVTKMatrix(self.slice_view(name).get_view_node().GetSliceToRAS()) for name in SLICES]
        normals = np.array([plane[:3, 2] for plane in planes])
        return np.linalg.solve(normals, [plane[:3, 2] @ plane[:3, 3] for plane in planes]).tolist()

    def fit(self) -> None:
        """All of the background volume in every view."""
        for view in self._app.view_manager.get_views():
            view.reset_view()
        camera = self._app.view_manager.get_view(THREE_D).get_camera_node().GetCamera()
        camera.Azimuth(35)
        camera.Elevation(20)
        camera.OrthogonalizeViewUp()

    def show_slices_in_3d(self, on: bool) -> None:
        for name in SLICES:
            self.slice_view(name).set_visible_in_3d(on)

    def tidy_legends(self) -> None:
        """Colour legends small, and in the slices alone."""
        slices = [self.slice_view(name).get_view_node_id() for name in SLICES]
        width, height = max(self.slice_view(name).render_window().GetSize() for name in SLICES)
        size = max(9, height // 36)
        for i in range(self.scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")):
            legend = self.scene.GetNthNodeByClass(i, "vtkMRMLColorLegendDisplayNode")
            legend.SetViewNodeIDs(slices)
            at_left = legend.GetPosition()[0] < 0.5  # where Slicer keeps more of it free
            legend.SetSize(_LEGEND_WIDTH * min(1.0, _LEGEND_VIEW_PIXELS / width) + at_left * _FREE_PIXELS / width, 0.45)
            legend.SetPosition(*_beside_the_letter(*legend.GetPosition()))
            for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
                text.SetFontSize(size)
                text.SetBackgroundColor(0, 0, 0)  # readable over bright tissue, too
                text.SetBackgroundOpacity(0.6)
            legend.Modified()

    def smooth_lines(self, on: bool) -> None:
        """Lines in the slices without steps, for which each picture takes longer."""
        for name in SLICES:
            self.slice_view(name).render_window().SetMultiSamples(_LINE_SAMPLES if on else 0)

    def render(self) -> None:
        """Draw anew in every view, as after a change that no view observes."""
        for view in self._app.view_manager.get_views():
            view.schedule_render()


def _beside_the_letter(x: float, y: float) -> tuple[float, float]:
    """A legend's place, of what is free, off the side at which a letter names the direction of the patient."""
    return min(max(x, 0.08), 0.92), y


def _unseen(kind: type, **given: Any) -> Any:
    """A view that is not drawn until its factory connects it to the page."""
    view = kind(**given, scheduled_render_strategy=NoScheduleRendering())
    if kind is SliceView:  # several samples a pixel are most of its time in software, and an image gains nothing
        view.render_window().SetMultiSamples(0)
    return view


class _InTurn(ScheduledRenderStrategy):
    """Asks another strategy to draw, a moment later as long as ``waits()``."""

    def __init__(self, drawing: ScheduledRenderStrategy, waits: Callable[[], bool]):
        super().__init__()
        self._drawing, self._waits = drawing, waits
        self._later: asyncio.TimerHandle | None = None

    def schedule_render(self) -> None:
        if not self._waits():
            self._draw()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(_OTHERS_S, self._draw)

    def did_render(self) -> None:
        self._drawing.did_render()

    def set_abstract_view(self, abstract_view: Any) -> None:
        super().set_abstract_view(abstract_view)
        self._drawing.set_abstract_view(abstract_view)

    def _draw(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._drawing.schedule_render()
