"""Maps in mm over the fixed volume, coloured only where the images were compared.

The expected error, the displacement, and the difference between the two fields, forward and back.
"""

from __future__ import annotations

import numpy as np
import slicer

from . import compared, deformation, display
from . import scene as nodes
from .i18n import tr as _
from .verdict import tolerated_mm

_ERROR, _DISPLACEMENT, _CONSISTENCY = display.MADE_OVERLAYS[1:]
_ERROR_COLORS, _LENGTH_COLORS = "NePhi expected error", "NePhi displacement"
_CONSISTENCY_COLORS = "NePhi forward-backward difference"
_NOT_COMPARED = -1e4
_SHOWN_MM = 2.0  # sides of the voxels of a shown map, about
_INSIDE = 0.1  # share of the mask from which on a voxel of the shown map is coloured
_COLORS = 256
_WITHIN = ((0.08, 0.16, 0.45), (0.55, 0.85, 0.97))  # from 0 to the tolerance
_BEYOND = ((1.0, 0.80, 0.15), (0.93, 0.35, 0.10), (0.50, 0.0, 0.10))  # from the tolerance to twice as much


def show_error(outputs, on: bool, opacity: float = 0.5, legend: bool = True, beyond_only: bool = False) -> None:
    """The expected error in mm in colours that change at the tolerance: blue within it, yellow to red beyond.

    ``beyond_only``: nothing is coloured within the tolerance. Nothing happens where the result has no such map.
    """
    source, scene = outputs.error_map, outputs.fixed.GetScene()
    made = display.own_volume(scene, _ERROR)
    if source is not None and on:
        made = _shown(outputs, source, _ERROR, made)
        tolerated = error_tolerance_mm(outputs)
        _set_colors(made, 0.0, 2 * tolerated, _ERROR_COLORS, _error_colors())
        made.GetDisplayNode().SetThreshold(tolerated if beyond_only else 0.0, -_NOT_COMPARED)
        title = _("Expected error (mm)\n{mm} mm tolerated").format(mm=f"{tolerated:.3g}") if legend else ""
        display.show_overlay(outputs.fixed, made, True, opacity, title, "%.3g", 5)
    elif made is not None:
        _take_away(outputs, made)


def error_tolerance_mm(outputs) -> float:
    return tolerated_mm(outputs.report, outputs.fixed.GetSpacing(), outputs.moving.GetSpacing())


def error_text(outputs) -> str:
    """What the error map's colours mean, in words."""
    if outputs.error_map is None:
        return _("This result has no map of the expected error.")
    values = slicer.util.arrayFromVolume(outputs.error_map)
    values, tolerated = values[values > 0], error_tolerance_mm(outputs)
    share = 100 * float((values > tolerated).mean()) if len(values) else 0.0
    text = _(
        "The expected error of the map at each place, from the images alone. Blue: within the tolerance of "
        "{tolerated} mm; yellow to dark red: beyond it, {share} % of what was compared. "
        "Dark red: {twice} mm and more. Tolerances: {set_by}."
    )
    set_by = outputs.report.get("verdict", {}).get("tolerances", {}).get("set_by") or _("not set")
    mm = {"tolerated": f"{tolerated:.3g}", "twice": f"{2 * tolerated:.3g}", "share": f"{share:.0f}"}
    return text.format(**mm, set_by=set_by)


def show_fields_disagreement(outputs, on: bool, opacity: float = 0.5, legend: bool = True) -> None:
    """How far a point is from itself after the forward and then the inverse field, in mm."""
    made = display.own_volume(outputs.fixed.GetScene(), _CONSISTENCY)
    if on:
        made = _shown(outputs, outputs.fields_disagreement, _CONSISTENCY, made)
        values = slicer.util.arrayFromVolume(outputs.fields_disagreement)
        _set_colors(made, 0.0, _most(values[values > 0]), _CONSISTENCY_COLORS, _consistency_colors())
        made.GetDisplayNode().SetThreshold(0.0, -_NOT_COMPARED)
        title = _("Forward-backward\ndifference (mm)") if legend else ""
        display.show_overlay(outputs.fixed, made, True, opacity, title, "%.3g", 5)
    elif made is not None:
        _take_away(outputs, made)


def show_displacement(outputs, on: bool, opacity: float = 0.5, legend: bool = True) -> None:
    """How far the tissue moved in mm, without the patient's translation and rotation."""
    scene = outputs.fixed.GetScene()
    made = display.own_volume(scene, _DISPLACEMENT)
    if not on:
        if made is not None:
            _take_away(outputs, made)
        return
    made_from = outputs.forward.GetID()
    if made is None or made.GetAttribute(_DISPLACEMENT) != made_from:
        values_mm, inside, to_ras = deformation.magnitude(outputs.forward)
        source = slicer.vtkMRMLScalarVolumeNode()
        slicer.util.updateVolumeFromArray(source, np.where(inside, values_mm, 0.0).astype(np.float32))
        source.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras))
        source.SetName(_("Displacement {name} (mm)").format(name=outputs.forward.GetName()))
        made = _shown(outputs, source, _DISPLACEMENT, made, made_from)
    values = slicer.util.arrayFromVolume(made)
    _set_colors(made, 0.0, _most(values[values >= 0]), _LENGTH_COLORS, _length_colors())
    made.GetDisplayNode().SetThreshold(0.0, -_NOT_COMPARED)
    display.show_overlay(outputs.fixed, made, True, opacity, _("Displacement\n(mm)") if legend else "", "%.1f", 5)


def _shown(outputs, source, attribute: str, made, made_from: str = ""):
    """A map that is 0 outside the mask on finer voxels, so that it is smooth up to the mask's border.

    ``made`` is what was made before, from what ``made_from`` or the source itself tells.
    """
    made_from = made_from or f"{source.GetID()} {source.GetImageData().GetMTime()}"
    if made is not None and made.GetAttribute(attribute) == made_from:
        return made
    fixed, scene = outputs.fixed, outputs.fixed.GetScene()
    name = _("{name}, where compared").format(name=source.GetName())
    made = made or display.add_own_volume(scene, name, attribute)
    to_world, size = nodes.ijk_to_world(fixed), np.array(fixed.GetImageData().GetDimensions())
    finer = np.maximum(1, np.rint(size * np.linalg.norm(to_world[:3, :3], axis=0) / _SHOWN_MM)).astype(int)
    steps = size / finer  # in voxels of the fixed volume, which fills the same box
    to_world[:3, 3] += to_world[:3, :3] @ ((steps - 1) / 2)
    to_world[:3, :3] *= steps
    values = slicer.util.arrayFromVolume(source).astype(np.float32)
    # the mask where it is known, which is finer; else where the map itself has values
    inside = compared.in_mask(outputs)
    mask, volume = (values > 0, source) if inside is None else (inside, outputs.fields_disagreement)
    first, last = _box(mask, np.linalg.inv(to_world) @ nodes.ijk_to_world(volume), finer)
    to_world[:3, 3] += to_world[:3, :3] @ first
    slicer.util.updateVolumeFromArray(made, np.zeros((last - first + 1)[::-1], np.float32))
    made.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_world))
    share = nodes.resampled_array(mask.astype(np.float32), volume, made)
    filled = nodes.resampled_array(_spread(values), source, made)
    slicer.util.updateVolumeFromArray(made, np.where((share > _INSIDE) & (filled > 0), filled, _NOT_COMPARED))
    made.SetAttribute(attribute, made_from)
    made.CreateDefaultDisplayNodes()
    return made


def _box(mask: np.ndarray, to_index: np.ndarray, size_xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last index (x, y, z) of a mask (z, y, x) on a grid of that size, with a voxel of the mask around it.

    ``to_index``: from the mask's indices to the grid's (4, 4).
    """
    ranges = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in (2, 1, 0)]
    if not len(ranges[0]):
        return np.zeros(3, int), size_xyz - 1
    corners = np.array([[ends[0] - 1, ends[-1] + 1] for ends in ranges], float).T
    corners = np.stack(np.meshgrid(*corners.T, indexing="ij"), -1).reshape(-1, 3)
    index = corners @ to_index[:3, :3].T + to_index[:3, 3]
    low, high = np.floor(index.min(0)).astype(int), np.ceil(index.max(0)).astype(int)
    return np.clip(low, 0, size_xyz - 1), np.clip(high, 0, size_xyz - 1)


def _spread(values: np.ndarray, times: int = 3) -> np.ndarray:
    """Values (z, y, x) above 0, carried on into the zeros next to them."""
    for _step in range(times):
        padded = np.pad(values, 1)
        total, count = np.zeros_like(values), np.zeros_like(values)
        for axis in range(3):
            for start in (0, 2):
                part = [slice(1, -1)] * 3
                part[axis] = slice(start, start + values.shape[axis])
                total += padded[tuple(part)]
                count += padded[tuple(part)] > 0
        values = np.where(values > 0, values, total / np.maximum(count, 1))
    return values


def _most(values_mm: np.ndarray) -> float:
    """The upper end of a scale: all but the largest hundredth, at least 1 mm."""
    return max(1.0, float(np.ceil(np.percentile(values_mm, 99)))) if len(values_mm) else 1.0


def _take_away(outputs, made) -> None:
    display.show_overlay(outputs.fixed, made, False, 0.0, "", "", 0)
    nodes.remove(made.GetScene(), made)


def _set_colors(volume, low: float, high: float, name: str, colors: np.ndarray) -> None:
    shown = volume.GetDisplayNode()
    shown.SetAutoWindowLevel(False)
    shown.SetWindowLevelMinMax(low, high)
    shown.SetApplyThreshold(True)
    shown.SetAndObserveColorNodeID(display.color_node(volume.GetScene(), name, colors).GetID())


def _error_colors() -> np.ndarray:
    """Half of them for what is within the tolerance, with a jump to the other half."""
    halves = (_ramp(_WITHIN, _COLORS // 2), _ramp(_BEYOND, _COLORS // 2))
    return np.concatenate(halves)


def _consistency_colors() -> np.ndarray:
    return _ramp(((0.1, 0.15, 0.35), (0.1, 0.6, 0.55), (0.98, 0.85, 0.2), (0.9, 0.15, 0.1)), _COLORS)


def _length_colors() -> np.ndarray:
    return _ramp(((0.15, 0.10, 0.35), (0.20, 0.40, 0.60), (0.25, 0.72, 0.55), (0.98, 0.92, 0.35)), _COLORS)


def _ramp(anchors: tuple, count: int) -> np.ndarray:
    position, places = np.linspace(0, 1, count), np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(position, places, channel) for channel in np.transpose(anchors)], 1)
