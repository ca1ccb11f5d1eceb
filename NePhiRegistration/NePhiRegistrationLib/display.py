"""What is shown of a registration in all slice and 3D views of a scene: grid, Jacobian, comparison, live preview."""

from __future__ import annotations

import json

import numpy as np
import slicer

from . import compared, deformation
from . import scene as nodes
from .i18n import tr as _

JACOBIAN_TEXT = _(
    "How much larger tissue is in the moving image than in the fixed one, in percent (Jacobian determinant less 1). "
    "Red: it expands from fixed to moving. Blue: it contracts. Yellow, -100 % or less: the map folds there. "
    "Only what was compared is coloured."
)
FOLD_COLOR = (1.0, 0.95, 0.0)
CHECKERBOARD, DIFFERENCE, FLICKER, FADE = COMPARISONS = ("checkerboard", "difference", "flicker", "fade")
GRID_MODES = ("grid", "glyphs", "contours")

_JACOBIAN_COLORS = "NePhi Jacobian"
_COLORS = 256  # entries that a scalar display maps its window to
_LABEL_WIDTH = 5  # characters of a legend's numbers
_JACOBIAN_WINDOW = 2.5  # so that the legend's labels are round
# 0 is the lower limit of a colour and belongs to the one below: only folds get a loud colour
_JACOBIAN_LOW = -51 * _JACOBIAN_WINDOW / (_COLORS - 1) + 1e-6
_NOT_COMPARED = -1e6  # percent; no volume changes by so much
_COMPARISON, _MASKED_JACOBIAN = "NePhi.Comparison", "NePhi.MaskedJacobian"  # attributes of volumes made for display
MADE_OVERLAYS = (_MASKED_JACOBIAN, "NePhi.ErrorShown", "NePhi.DisplacementShown", "NePhi.ConsistencyShown")
_LIVE = "NePhi.Live"


def show_grid(
    forward,
    fixed,
    on: bool,
    mode: str = "grid",
    spacing_mm: float = 10.0,
    in_2d: bool = True,
    in_3d: bool = False,
    legend: bool = True,
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
    title = _("Displacement\n(mm)") if on and in_2d and legend else ""  # it would be in the slices in any case
    _show_legend(node, title, "%.1f", 5, at_left=True)


def grid_text(forward) -> str:
    """The meaning of the drawn deformation, as text; empty if none is drawn."""
    node = deformation.find(forward)
    if node is None:
        return ""
    display = node.GetDisplayNode()
    text = _(
        "Drawn on the fixed image, from fixed to moving: where the tissue lies in the moving image. Translation and "
        "rotation of the patient are left out. Cyan: 0 mm, red: {most} mm and more. "
        "Outside the mask nothing was compared."
    ).format(most=f"{display.GetColorMap().GetRange()[1]:.3g}")
    if display.GetVisualizationMode() == display.VIS_MODE_CONTOUR:
        step = display.GetContourLevelsMmAsString().split()[0]
        text = _("{text} One contour every {step} mm.").format(text=text, step=step)
    return text


def clear(scene, background=None) -> None:
    """Remove every drawn deformation from the views, and anything over ``background`` if that is given."""
    deformation.remove_all(scene)
    for attribute in MADE_OVERLAYS:
        nodes.remove(scene, own_volume(scene, attribute))
    if background is not None:
        show_comparison(background, None, "")


def show_jacobian(outputs, on: bool, opacity: float = 0.5, legend: bool = True) -> None:
    """The volume change in percent, |J| less 1, in colour over the fixed volume, where the images were compared."""
    volume = _masked_jacobian(outputs, make=on)
    if volume is None:
        return
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    low_percent = _percent(_JACOBIAN_LOW)
    display.SetWindowLevelMinMax(low_percent, low_percent + 100 * _JACOBIAN_WINDOW)
    display.SetInterpolate(False)  # so that a fold of one voxel does not fade into its neighbours
    display.SetThreshold(_NOT_COMPARED / 2, -_NOT_COMPARED)
    display.SetApplyThreshold(True)
    display.SetAndObserveColorNodeID(jacobian_color_node(volume.GetScene()).GetID())
    show_overlay(outputs.fixed, volume, on, opacity, _("Volume change\n(%)") if legend else "", "%.0f", 6)
    if not on:
        nodes.remove(volume.GetScene(), volume)


def find_masked_jacobian(scene):
    """The volume that ``show_jacobian`` lays over the fixed one, or None."""
    return own_volume(scene, _MASKED_JACOBIAN)


def _masked_jacobian(outputs, make: bool):
    """The volume change in percent, with a transparent value outside the mask; None if none is shown."""
    scene, source = outputs.jacobian.GetScene(), outputs.jacobian
    made_from = f"{source.GetID()} {source.GetImageData().GetMTime()}"
    made = find_masked_jacobian(scene)
    if not make or (made is not None and made.GetAttribute(_MASKED_JACOBIAN) == made_from):
        return made
    values, inside = _percent(slicer.util.arrayFromVolume(source)), compared.on_grid_of(outputs, source)
    if inside is not None:
        values = np.where(inside, values, np.float32(_NOT_COMPARED))
    name = _("{name} in %, where compared").format(name=source.GetName())
    made = made or add_own_volume(scene, name, _MASKED_JACOBIAN)
    slicer.util.updateVolumeFromArray(made, values)
    made.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(source)))
    made.SetAttribute(_MASKED_JACOBIAN, made_from)
    made.CreateDefaultDisplayNodes()
    return made


def _percent(ratio):
    """A ratio of volumes, or several, as a change in percent."""
    return 100 * (ratio - 1)


def show_comparison(fixed, other, kind: str, opacity: float = 0.5, squares_mm: float = 30.0) -> None:
    """Fixed against the warped (or the moving) volume in all slice views; ``kind`` "" shows the fixed one alone.

    ``fade`` and ``flicker`` lay the other over the fixed volume with ``opacity`` (call ``flicker`` at each tick),
    ``checkerboard`` and ``difference`` show a volume made for it.
    """
    scene = fixed.GetScene()
    made = own_volume(scene, _COMPARISON)
    if kind in (CHECKERBOARD, DIFFERENCE):
        made = made or add_own_volume(scene, _("Comparison"), _COMPARISON)
        _compare(made, fixed, other, kind, squares_mm)
        _set_layers(scene, made, None, 0.0)
        return
    _set_layers(scene, fixed, other if kind else None, opacity)
    nodes.remove(scene, made)


def show_labels(scene, labels, on: bool) -> None:
    """A label map over all that the slice views show."""
    for composite in _composites(scene):
        if on:
            composite.SetLabelVolumeID(labels.GetID())
            composite.SetLabelOpacity(0.5)
        elif composite.GetLabelVolumeID() == labels.GetID():
            composite.SetLabelVolumeID(None)


def flicker(scene) -> None:
    """The other of the two volumes, fixed or foreground, in all slice views."""
    for composite in _composites(scene):
        composite.SetForegroundOpacity(0.0 if composite.GetForegroundOpacity() > 0.5 else 1.0)


def jump(scene, point_ras_mm) -> None:
    """All slice views through this point, with it in their middle."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *point_ras_mm, slicer.vtkMRMLSliceNode.CenteredJumpSlice)


def jacobian_color_node(scene):
    """The scene's colour table for |J|: loud at 0 or less, blue below 1, grey at 1, red above."""
    return color_node(scene, _JACOBIAN_COLORS, _jacobian_colors())


def show_live(forward, fixed, moving):
    """Let the moving image, under the transform as it is being found, slide over the fixed one.

    The second volume node that is shown for it is returned, for ``hide_live``: it shares the image, as the input must
    not get another parent transform.
    """
    scene = forward.GetScene()
    name = _("{name} as it moves").format(name=moving.GetName())
    live = nodes.add_for_display(scene, name)
    live.SetAndObserveImageData(moving.GetImageData())
    live.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(moving)))
    live.CreateDefaultDisplayNodes()
    nodes.show_like(live, moving)
    live.SetAndObserveTransformNodeID(forward.GetID())
    live.SetAttribute(_LIVE, json.dumps(layers(scene)))
    _set_layers(scene, fixed, live, 0.5)
    return live


def hide_live(live) -> None:
    """What the slice views showed before ``show_live``."""
    scene = live.GetScene()
    if scene is None:  # it was closed
        return
    shown = {c.GetID() for c in _composites(scene) if c.GetForegroundVolumeID() == live.GetID()}
    show_layers(scene, [layer for layer in json.loads(live.GetAttribute(_LIVE)) if layer[0] in shown])
    nodes.remove(scene, live)


def layers(scene) -> list[tuple]:
    """What each slice view shows, by IDs: itself, background, foreground and the foreground's opacity."""
    return [
        (c.GetID(), c.GetBackgroundVolumeID(), c.GetForegroundVolumeID(), c.GetForegroundOpacity())
        for c in _composites(scene)
    ]


def show_layers(scene, shown: list) -> None:
    """The same views and volumes again, as far as they still exist."""
    for composite_id, background, foreground, opacity in shown:
        composite = scene.GetNodeByID(composite_id)
        if composite is not None:
            composite.SetBackgroundVolumeID(_there(scene, background))
            composite.SetForegroundVolumeID(_there(scene, foreground))
            composite.SetForegroundOpacity(opacity)


def _there(scene, node_id: str | None) -> str | None:
    return node_id if node_id and scene.GetNodeByID(node_id) is not None else None


def show_overlay(fixed, volume, on: bool, opacity: float, title: str, label_format: str, labels: int) -> None:
    scene = volume.GetScene()
    for composite in _composites(scene):
        if on:
            composite.SetBackgroundVolumeID(fixed.GetID())
            composite.SetForegroundVolumeID(volume.GetID())
            composite.SetForegroundOpacity(opacity)
        elif composite.GetForegroundVolumeID() == volume.GetID():
            composite.SetForegroundVolumeID(None)
    _show_legend(volume, title if on else "", label_format, labels)


def _show_legend(node, title: str, label_format: str, labels: int, at_left: bool = False) -> None:
    """``title`` "" hides it. Slicer makes the type as large as the labels' box allows: all have one length."""
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    if legend is None and title:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(bool(title))
        if title:
            legend.SetSaveWithScene(False)  # like its source
            legend.SetTitleText(title)
            legend.SetLabelFormat(label_format.replace("%", f"%{_LABEL_WIDTH}"))
            legend.SetNumberOfLabels(labels)
            if at_left:
                legend.SetPosition(0.05, 0.5)


def _set_layers(scene, background, foreground, opacity: float) -> None:
    for composite in _composites(scene):
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        composite.SetForegroundOpacity(opacity)


def _compare(made, fixed, other, kind: str, squares_mm: float) -> None:
    """A checkerboard or the difference, other minus fixed, in the fixed volume's own units in ``made``."""
    a, b = slicer.util.arrayFromVolume(fixed), nodes.resampled(other, fixed)
    low, high = _window(fixed)
    scale, offset = _to_units_of(fixed, other)
    values = np.empty(a.shape, np.int16 if _fits(a) and _fits(b) and (scale, offset) == (1, 0) else np.float32)
    sides = [max(1, round(squares_mm / spacing)) for spacing in fixed.GetSpacing()[::-1]]
    y, x = (np.arange(n) // side for n, side in zip(a.shape[1:], sides[1:], strict=True))
    plane = (y[:, None] + x[None, :]) % 2 == 0
    for z, slab in enumerate(values):  # a slice at a time, for the memory's sake
        moved = b[z] if (scale, offset) == (1, 0) else scale * b[z].astype(np.float32) + offset
        if kind == DIFFERENCE:
            slab[:] = moved.astype(np.float32) - a[z]
        else:
            slab[:] = np.where(plane == (z // sides[0] % 2 == 0), a[z], moved)
    slicer.util.updateVolumeFromArray(made, values)
    made.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_world(fixed)))
    made.CreateDefaultDisplayNodes()
    display = made.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    half = max((high - low) / 2, 1e-6)
    display.SetWindowLevelMinMax(*((-half, half) if kind == DIFFERENCE else (low, high)))
    unit = "HU" if nodes.in_hounsfield(fixed) else _("intensity")
    title = _("Difference ({unit})").format(unit=unit) if kind == DIFFERENCE else ""
    _show_legend(made, title, "%.0f", 5)


def _window(volume) -> tuple[float, float]:
    display = volume.GetDisplayNode()
    return display.GetWindowLevelMin(), display.GetWindowLevelMax()


def _to_units_of(fixed, other) -> tuple[float, float]:
    """Scale and offset for the other's values: CTs share a unit, of other images the windows are matched."""
    if nodes.in_hounsfield(fixed) and nodes.in_hounsfield(other):
        return 1, 0
    (low, high), (other_low, other_high) = _window(fixed), _window(other)
    scale = (high - low) / max(other_high - other_low, 1e-6)
    return scale, low - scale * other_low


def _fits(values: np.ndarray) -> bool:
    """Whether differences of such values fit into 16 bits, as those of CTs in integer Hounsfield units do."""
    return values.dtype == np.int16 and values.min() >= -16384 and values.max() < 16384


def _composites(scene) -> list:
    return nodes.of_class(scene, "vtkMRMLSliceCompositeNode")


def own_volume(scene, attribute: str):
    volumes = nodes.of_class(scene, "vtkMRMLScalarVolumeNode")
    return next((volume for volume in volumes if volume.GetAttribute(attribute)), None)


def add_own_volume(scene, name: str, attribute: str):
    volume = nodes.add_for_display(scene, name)
    volume.SetAttribute(attribute, "1")
    return volume


def color_node(scene, name: str, colors: np.ndarray):
    """The scene's colour table of this name, made on first use from rgb (n, 3)."""
    tables = nodes.of_class(scene, "vtkMRMLColorTableNode")
    found = next((table for table in tables if table.GetName() == name), None)
    if found is not None:
        return found
    table = slicer.vtkMRMLColorTableNode()
    table.SetName(name)
    table.SetSaveWithScene(False)  # only volumes made for the views have these colours
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
