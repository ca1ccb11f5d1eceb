"""What is shown of a registration in all slice and 3D views of a scene: grid, Jacobian, comparison, live preview."""

from __future__ import annotations

import json

import numpy as np
import slicer

from . import deformation
from . import scene as nodes

GRID_TEXT = (
    "Drawn on the fixed image, from fixed to moving: where the tissue lies in the moving image. "
    "Shift and rotation of the patient are left out. Cyan is 0 mm, red {most:.3g} mm and more{contours}."
)
JACOBIAN_TEXT = (
    "|J| is the moving volume per fixed volume. Red, above 1: the tissue is larger in the moving image. "
    "Blue, below 1: it is smaller. Yellow, 0 or less: the map folds there. Outside the mask nothing was compared."
)
FOLD_COLOR = (1.0, 0.95, 0.0)
CHECKERBOARD, DIFFERENCE, FLICKER, FADE = COMPARISONS = ("checkerboard", "difference", "flicker", "fade")
GRID_MODES = ("grid", "glyphs", "contours")

_JACOBIAN_COLORS = "NePhi Jacobian"
_ERROR_COLORS = "NePhi inverse consistency"
_COLORS = 256  # a scalar display maps its window to so many
_JACOBIAN_WINDOW = 3.0
# 0 is the lower border of a colour and what is exactly 0 falls below it: only what is folded is loud
_JACOBIAN_LOW = -42 * _JACOBIAN_WINDOW / (_COLORS - 1) + 1e-6
_COMPARISON = "NePhi.Comparison"
_LIVE = "NePhi.Live"


def show_grid(
    forward, fixed, on: bool, mode: str = "grid", spacing_mm: float = 10.0, in_2d: bool = True, in_3d: bool = False
) -> None:
    """A result's deformation as warped grid, arrows or contours of its length in mm, over the fixed volume."""
    node = deformation.make(forward) if on else deformation.find(forward)
    if node is None:
        return
    display = node.GetDisplayNode()
    modes = (display.VIS_MODE_GRID, display.VIS_MODE_GLYPH, display.VIS_MODE_CONTOUR)
    with slicer.util.NodeModify(display):
        display.SetVisualizationMode(modes[GRID_MODES.index(mode)])
        display.SetAndObserveRegionNode(fixed)
        display.SetGridSpacingMm(spacing_mm)
        display.SetGridResolutionMm(min(spacing_mm / 2, 5.0))
        display.SetGridShowNonWarped(False)
        display.SetGridLineDiameterMm(max(0.5, spacing_mm / 20))
        display.SetGlyphSpacingMm(spacing_mm)
        display.SetContourResolutionMm(spacing_mm / 2)
        display.SetVisibility(on)
        display.SetVisibility2D(on and in_2d)
        display.SetVisibility3D(on and in_3d)


def grid_text(forward) -> str:
    """What the drawn deformation means, in words; "" where none is drawn."""
    node = deformation.find(forward)
    if node is None:
        return ""
    display = node.GetDisplayNode()
    contours = ""
    if display.GetVisualizationMode() == display.VIS_MODE_CONTOUR:
        contours = f"; a contour every {display.GetContourLevelsMmAsString().split()[0]} mm"
    return GRID_TEXT.format(most=display.GetColorMap().GetRange()[1], contours=contours)


def clear(scene, background=None) -> None:
    """Take every drawn deformation out of the views, and what lies over ``background`` where that is given."""
    deformation.remove_all(scene)
    if background is not None:
        show_comparison(background, None, "")


def show_jacobian(outputs, on: bool, opacity: float = 0.5, legend: bool = True) -> None:
    """The Jacobian determinant in colour over the fixed volume."""
    display = outputs.jacobian.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(_JACOBIAN_LOW, _JACOBIAN_LOW + _JACOBIAN_WINDOW)
    display.SetInterpolate(False)  # so that a fold of one voxel does not fade into its neighbours
    display.SetAndObserveColorNodeID(jacobian_color_node(outputs.jacobian.GetScene()).GetID())
    _show_overlay(outputs.fixed, outputs.jacobian, on, opacity, "Jacobian" if legend else "", "%.1f", 7)


def show_inverse_consistency(outputs, on: bool, opacity: float = 0.5, legend: bool = True) -> None:
    """How far, in mm, going there and back misses the start, in colour over the fixed volume; nothing at 0."""
    volume = outputs.inverse_consistency
    display, scene = volume.GetDisplayNode(), volume.GetScene()
    largest = max(1.0, float(np.ceil(np.percentile(slicer.util.arrayFromVolume(volume), 99.5))))
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, largest)
    display.SetThreshold(1e-6, 1e6)  # outside the mask it is 0
    display.SetApplyThreshold(True)
    display.SetAndObserveColorNodeID(_color_node(scene, _ERROR_COLORS, _error_colors()).GetID())
    _show_overlay(outputs.fixed, volume, on, opacity, "Error (mm)" if legend else "", "%.3g", 5)


def show_comparison(fixed, other, kind: str, opacity: float = 0.5, squares_mm: float = 30.0) -> None:
    """Fixed against the warped (or the moving) volume in all slice views; ``kind`` "" shows the fixed one alone.

    ``fade`` and ``flicker`` lay the other over the fixed volume with ``opacity`` (call ``flicker`` at each tick),
    ``checkerboard`` and ``difference`` show a volume made for it.
    """
    scene = fixed.GetScene()
    made = _comparison_volume(scene)
    if kind in (CHECKERBOARD, DIFFERENCE):
        made = made or _add_comparison_volume(scene)
        _compare(made, fixed, other, kind, squares_mm)
        _set_layers(scene, made, None, 0.0)
        return
    _set_layers(scene, fixed, other if kind else None, opacity)
    nodes.remove(scene, made)


def flicker(scene) -> None:
    """The other of the two volumes, fixed or foreground, in all slice views."""
    for composite in _composites(scene):
        composite.SetForegroundOpacity(0.0 if composite.GetForegroundOpacity() > 0.5 else 1.0)


def jump(scene, point_ras_mm) -> None:
    """All slice views through this point, with it in their middle."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *point_ras_mm, slicer.vtkMRMLSliceNode.CenteredJumpSlice)


def jacobian_color_node(scene):
    """The scene's colour table for |J|: loud at 0 or less, blue below 1, grey at 1, red above."""
    return _color_node(scene, _JACOBIAN_COLORS, _jacobian_colors())


def show_live(forward, fixed, moving):
    """Let the moving image, under the transform as it is being found, slide over the fixed one.

    The second volume node that is shown for it is returned, for ``hide_live``: it shares the image, as the input must
    not get another parent transform.
    """
    scene = forward.GetScene()
    live = nodes.add(scene, "vtkMRMLScalarVolumeNode", f"{moving.GetName()} as it moves")
    live.SetSaveWithScene(False)
    live.SetAndObserveImageData(moving.GetImageData())
    live.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(moving)))
    live.CreateDefaultDisplayNodes()
    nodes.show_like(live, moving)
    live.SetAndObserveTransformNodeID(forward.GetID())
    layers = [
        (c.GetID(), c.GetBackgroundVolumeID(), c.GetForegroundVolumeID(), c.GetForegroundOpacity())
        for c in _composites(scene)
    ]
    live.SetAttribute(_LIVE, json.dumps(layers))
    _set_layers(scene, fixed, live, 0.5)
    return live


def hide_live(live) -> None:
    """What the slice views showed before ``show_live``."""
    scene = live.GetScene()
    if scene is None:  # it was closed
        return
    for composite_id, background, foreground, opacity in json.loads(live.GetAttribute(_LIVE)):
        composite = scene.GetNodeByID(composite_id)
        if composite is not None and composite.GetForegroundVolumeID() == live.GetID():
            composite.SetBackgroundVolumeID(background)
            composite.SetForegroundVolumeID(foreground)
            composite.SetForegroundOpacity(opacity)
    nodes.remove(scene, live)


def _show_overlay(fixed, volume, on: bool, opacity: float, title: str, label_format: str, labels: int) -> None:
    scene = volume.GetScene()
    for composite in _composites(scene):
        if on:
            composite.SetBackgroundVolumeID(fixed.GetID())
            composite.SetForegroundVolumeID(volume.GetID())
            composite.SetForegroundOpacity(opacity)
        elif composite.GetForegroundVolumeID() == volume.GetID():
            composite.SetForegroundVolumeID(None)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)
    if legend is None and on and title:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(volume)
    if legend is not None:
        legend.SetVisibility(bool(on and title))
        if title:
            legend.SetTitleText(title)
            legend.SetLabelFormat(label_format)
            legend.SetNumberOfLabels(labels)


def _set_layers(scene, background, foreground, opacity: float) -> None:
    for composite in _composites(scene):
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        composite.SetForegroundOpacity(opacity)


def _compare(made, fixed, other, kind: str, squares_mm: float) -> None:
    """A checkerboard or the difference, other minus fixed, as grey values 0 to 255 in ``made``."""
    a, b = (_grey(volume, nodes.resampled(volume, fixed)) for volume in (fixed, other))
    if kind == DIFFERENCE:
        values = 127.5 + (b - a) / 2
    else:
        sides = (max(1, round(squares_mm / spacing)) for spacing in fixed.GetSpacing()[::-1])
        squares = [np.arange(n) // side for n, side in zip(a.shape, sides, strict=True)]
        z, y, x = np.ix_(*squares)
        values = np.where((x + y + z) % 2 == 0, a, b)
    slicer.util.updateVolumeFromArray(made, values.astype(np.uint8))
    made.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(fixed)))
    made.CreateDefaultDisplayNodes()
    display = made.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, 255)


def _grey(volume, values: np.ndarray) -> np.ndarray:
    """Values as 0..255 by the volume's own window."""
    display = volume.GetDisplayNode()
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    return np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255


def _composites(scene) -> list:
    return nodes.of_class(scene, "vtkMRMLSliceCompositeNode")


def _comparison_volume(scene):
    volumes = nodes.of_class(scene, "vtkMRMLScalarVolumeNode")
    return next((volume for volume in volumes if volume.GetAttribute(_COMPARISON)), None)


def _add_comparison_volume(scene):
    volume = nodes.add(scene, "vtkMRMLScalarVolumeNode", "NePhi comparison")
    volume.SetAttribute(_COMPARISON, "1")
    volume.SetSaveWithScene(False)
    return volume


def _color_node(scene, name: str, colors: np.ndarray):
    """The scene's colour table of this name, made on first use from rgb (n, 3)."""
    tables = nodes.of_class(scene, "vtkMRMLColorTableNode")
    found = next((table for table in tables if table.GetName() == name), None)
    if found is not None:
        return found
    table = slicer.vtkMRMLColorTableNode()
    table.SetName(name)
    table.SetTypeToUser()
    table.SetNumberOfColors(len(colors))
    for i, color in enumerate(colors.tolist()):
        table.SetColor(i, str(i), *color, 1.0)
    return scene.AddNode(table)


def _jacobian_colors() -> np.ndarray:
    lower = _JACOBIAN_LOW + np.arange(_COLORS) * _JACOBIAN_WINDOW / (_COLORS - 1)  # |J| at a colour's lower border
    anchors = np.array([0.0, 0.6, 1.0, 1.4, 2.0])
    rgb = np.array([(0.02, 0.1, 0.45), (0.2, 0.5, 0.9), (0.87, 0.87, 0.87), (0.92, 0.4, 0.25), (0.5, 0.0, 0.08)])
    colors = np.stack([np.interp(lower, anchors, channel) for channel in rgb.T], 1)
    colors[lower < -1e-3] = FOLD_COLOR
    return colors


def _error_colors() -> np.ndarray:
    position = np.linspace(0, 1, _COLORS)
    rgb = np.array([(0.1, 0.15, 0.35), (0.1, 0.6, 0.55), (0.98, 0.85, 0.2), (0.9, 0.15, 0.1)])
    return np.stack([np.interp(position, np.linspace(0, 1, 4), channel) for channel in rgb.T], 1)
