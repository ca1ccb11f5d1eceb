"""The pictures of the report: planes through the volumes, colours, curves, as HTML with the images inside."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..result import lowest
from ..space.grid import Box, Grid
from .drawing import letters, lines_path, over_pixels, plane, plot, png, rim_path

_PIXELS = 440  # width of the widest view
_CT_WINDOW = (-1000.0, 300.0)
_JACOBIAN_LIMIT = 2.0  # colours run from 1 / limit to limit
_BLUE_TO_RED = np.array([(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)])
_ERROR_STOPS_MM = np.array([0.5, 1.0, 2.0, 5.0, 10.0])
_ERROR_RGB = np.array([(26, 110, 60), (90, 180, 90), (250, 225, 80), (240, 130, 40), (140, 20, 30)])
_BEFORE, _AFTER = "#b35806", "#1b6ca8"


def number(value: Any) -> str:
    if value is None or isinstance(value, (bool, np.bool_)):
        return "none" if value is None else "yes" if value else "no"
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(number(v) for v in value) or "none"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return f"{value:.0f}" if 1e3 <= abs(float(value)) < 1e9 else f"{value:.4g}"
    return escape(str(value))


@dataclass(frozen=True)
class _View:
    """A plane of voxels and how it lies on the page: ``axes`` are the voxel axes to the right and down."""

    name: str
    axes: tuple[int, int]
    flips: tuple[bool, bool]
    normal: int | None
    position: int
    letters: tuple[str, str, str, str]  # left, right, top, bottom

    def take(self, array: np.ndarray, position: int) -> np.ndarray:
        """The plane (rows, columns[, c]) of an array (z, y, x[, c])."""
        plane = array if self.normal is None else np.take(array, position, 2 - self.normal)
        plane = plane.swapaxes(0, 1) if self.axes[0] > self.axes[1] else plane
        return plane[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]

    def of_page(self, values) -> np.ndarray:
        """(column, row) entries of something that has one entry per voxel axis."""
        return np.asarray(values)[list(self.axes)]


def _letters(lps: np.ndarray) -> str:
    """Anatomical letters of a direction: one, or more if it is oblique."""
    return "".join("RAI LPS"[i + 4 * (lps[i] > 0)] for i in np.argsort(-np.abs(lps)) if abs(lps[i]) > 0.38)


def _views(grid: Grid, at_index_xyz) -> list[_View]:
    """Axial, coronal and sagittal planes of a volume through a voxel; the one plane of a 2D image."""
    axes = grid.axes
    if grid.dimension == 2:  # its patient axes are not known: no letters
        flips = (bool(axes[0, 0] < 0), bool(axes[1, 1] < 0))
        return [_View("image", (0, 1), flips, None, 0, ("", "", "", ""))]
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(axes[i, p[i]]) for i in range(3)))
    views = []
    # patient axes that run to the right and down, with their signs in LPS
    for name, right, down, sign in (("axial", 0, 1, 1), ("coronal", 0, 2, -1), ("sagittal", 1, 2, -1)):
        u, v = best[right], best[down]
        flips = (bool(axes[right, u] < 0), bool(axes[down, v] * sign < 0))
        to_right, to_bottom = (axes[:, a] * (-1 if f else 1) for a, f in zip((u, v), flips, strict=True))
        letters = (_letters(-to_right), _letters(to_right), _letters(-to_bottom), _letters(to_bottom))
        normal = 3 - u - v
        views.append(_View(name, (u, v), flips, normal, int(at_index_xyz[normal]), letters))
    return views


class Images:
    """The images of a report as planes of the fixed grid; other grids are resampled where they are shown."""

    def __init__(self, fixed, warped, moving, alignment, jacobian, displacement, fixed_mask=None, expected_error=None):
        """Images as for ``write_report``."""
        as_array = sitk.GetArrayViewFromImage
        self.image, self.displacement, self.grid = fixed, displacement, Grid.of(fixed)
        self.jacobian, self.shows_error = jacobian, expected_error is not None
        self.mask = None if fixed_mask is None else as_array(fixed_mask) != 0
        self._arrays: dict[str, np.ndarray] = {"fixed": as_array(fixed), "after": as_array(warped)}
        if self.mask is not None:
            self._arrays["mask"] = self.mask
        self._elsewhere = {
            "before": (moving, alignment, sitk.sitkLinear, lowest(moving)),
            "jacobian": (jacobian, None, sitk.sitkNearestNeighbor, 1.0),
            "expected": (expected_error, None, sitk.sitkLinear, 0.0),
        }
        thin = self._arrays["fixed"][(slice(None, None, 2),) * self.grid.dimension]
        low, high = np.percentile(thin, (1, 99))
        self.window = _CT_WINDOW if thin.min() <= -500 else (float(low), float(max(high, low + 1e-6)))

    def of(self, name: str, view: _View) -> np.ndarray:
        """The plane (rows, columns) of one of the images."""
        if name in self._arrays:
            return view.take(self._arrays[name], view.position)
        return view.take(sitk.GetArrayFromImage(self.plane(view).resample(*self._elsewhere[name])), 0)

    def plane(self, view: _View) -> Grid:
        """The voxels of a view."""
        return self.grid.part(self.plane_box(view))

    def plane_box(self, view: _View) -> Box:
        keep = [slice(0, n) for n in self.grid.size]
        if view.normal is not None:
            keep[view.normal] = slice(view.position, view.position + 1)
        return tuple(reversed(keep))

    def centre_index(self) -> list[int]:
        """Along each axis, x first, the slice with most voxels of the mask; without one, the middle."""
        if self.mask is None or not self.mask.any():
            return [n // 2 for n in self.grid.size]
        axes = range(self.mask.ndim)
        areas = [self.mask.sum(tuple({*axes} - {axis}), dtype=np.int32) for axis in reversed(axes)]
        return [int(np.argmax(area)) for area in areas]

    def worst_fold(self) -> tuple[tuple[int, ...], float] | None:
        """Voxel (x first) of the lowest determinant inside the mask, and the determinant, if it is a fold."""
        values, first = sitk.GetArrayViewFromImage(self.jacobian), self.grid.to_index(self.jacobian.GetOrigin())
        box = tuple(slice(int(i), int(i) + n) for i, n in zip(np.rint(first)[::-1], values.shape, strict=True))
        inside = values if self.mask is None else np.where(self.mask[box], values, np.inf)
        at = np.unravel_index(np.argmin(inside), inside.shape)
        place = tuple(int(i + part.start) for i, part in zip(at, box, strict=True))[::-1]
        return None if inside[at] > 0 else (place, float(inside[at]))


def jacobian_rgb(jacobian: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours: blue below 1, white at 1, red above (log scale), magenta where not above 0."""
    good = jacobian > 0
    log = np.log(np.where(good, jacobian, 1.0)) / np.log(_JACOBIAN_LIMIT)
    stops = np.linspace(-1, 1, len(_BLUE_TO_RED))
    rgb = np.stack([np.interp(log, stops, channel) for channel in _BLUE_TO_RED.T], -1)
    rgb[~good] = (255, 0, 255)  # magenta
    return np.rint(rgb).astype(np.uint8)


def checkerboard(a: np.ndarray, b: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Alternating squares of ``a`` and ``b`` (rows, columns), nine on the longer side; spacing: column, row."""
    rows, columns = (np.arange(n) * s for n, s in zip(a.shape, spacing_mm[::-1], strict=True))
    side = max(a.shape[0] * spacing_mm[1], a.shape[1] * spacing_mm[0]) / 9
    return np.where((rows[:, None] // side + columns // side) % 2 == 0, a, b)


def _grid_lines(images: Images, view: _View) -> list[np.ndarray]:
    """Lines of a regular grid after the forward map less its mean shift, in (column, row) of the view."""
    plane = images.plane(view)
    frame = (plane.origin_lps_mm, plane.spacing_mm, plane.direction, 0.0, sitk.sitkVectorFloat64, True)
    identity = sitk.Transform(plane.dimension, sitk.sitkIdentity)
    vectors = sitk.Resample(images.displacement, plane.size, identity, sitk.sitkLinear, *frame)
    field = sitk.GetArrayFromImage(vectors)
    inside = True if images.mask is None else images.mask[images.plane_box(view)]
    field -= field.mean(tuple(range(plane.dimension)), where=np.expand_dims(inside | ~np.any(inside), -1))
    index = np.moveaxis(np.indices(plane.shape)[::-1], 0, -1)
    moved = images.grid.to_index(plane.to_lps_mm(index) + field)
    found = view.take(moved, 0)[..., list(view.axes)]
    size, spacing = view.of_page(images.grid.size), view.of_page(images.grid.spacing_mm)
    found = np.where(view.flips, size - 1 - found, found)
    steps = np.maximum(1, np.rint((size * spacing).max() / 26 / spacing)).astype(int)
    return [*found[:: steps[1]], *found[:, :: steps[0]].swapaxes(0, 1)]


def _panel(images: Images, view: _View, seen: np.ndarray, name="", window=(None, None), lines=()) -> str:
    """One view as an HTML figure: ``seen``, grey (rows, columns) or coloured, with the outline of the mask."""
    shape, size = seen.shape[:2], _size(seen.shape, view.of_page(images.grid.spacing_mm))
    over = []
    if len(lines):
        over.append(over_pixels(lines_path(lines), shape, size, "#ffd23f", 0.8))
    rim = images.of("mask", view) if seen.ndim == 3 and images.mask is not None else np.zeros((1, 1), bool)
    if rim.any():
        over.append(over_pixels(rim_path(rim), shape, size, "black", 0.6))
    over.append(letters(view.letters, size))
    pixels = seen if seen.ndim == 3 else _grey(seen, *window)
    return plane(pixels, size, ", ".join(filter(None, (view.name, name))), over)


def _size(shape: tuple[int, ...], spacing_mm) -> tuple[float, float]:
    """Width and height on the page of a plane (rows, columns); spacing: column, row."""
    sides = np.array(shape[1::-1]) * spacing_mm
    width, height = (sides / sides.max() * _PIXELS).clip(min=1)
    return float(width), float(height)


def _grey(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """Values from low to high, by default the least and the largest, as uint8."""
    low, high = float(values.min()) if low is None else low, float(values.max()) if high is None else high
    scaled = (values.astype(np.float32) - low) * (255 / (high - low or 1.0))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def picture(rgb: np.ndarray, spacing_mm: tuple[float, float], caption: str) -> str:
    """Colours (rows, columns, 3) as an HTML figure; spacing: column, row."""
    return plane(rgb, _size(rgb.shape, spacing_mm), caption)


def _section(title: str, text: str, panels: list[str], rows: int = 1) -> str:
    return f"""<section><h2>{title}</h2><p>{text}</p>
<div class="views rows{rows}">{"".join(panels)}</div></section>"""


def image_sections(images: Images) -> Iterator[str]:
    window, views, spacing = images.window, _views(images.grid, images.centre_index()), images.grid.spacing_mm
    if images.shows_error:
        panels = [_panel(images, v, _error_overlay(images, v)) for v in views]
        yield _section("Expected error", _error_legend(), panels)
    rows = min(2, len(views))
    pairs = [(v, images.of("fixed", v), images.of(n, v), n) for v in views for n in ("before", "after")]
    boards = [_panel(images, v, checkerboard(a, b, v.of_page(spacing)), n, window) for v, a, b, n in pairs]
    text = """Squares of the fixed and the moving image in turn, before (alignment only) and after
        registration: outlines and vessels should run on across them."""
    yield _section("Checkerboard", text, boards, rows)
    span = 0.3 * (window[1] - window[0])
    greys = [_panel(images, v, np.subtract(a, b, dtype="f4"), n, (-span, span)) for v, a, b, n in pairs]
    text = f"""Fixed minus moving image: grey is no difference, white or black is {number(span)} or more.
        Lungs also change in density as they fill: an even shade there is no error."""
    yield _section("Difference", text, greys, rows)
    grids = [_panel(images, v, images.of("fixed", v), "", window, _grid_lines(images, v)) for v in views]
    text = """A regular grid of the fixed image, carried by the forward map into the moving one, less the mean
        shift in the plane. Motion across the plane is not seen."""
    yield _section("Deformation", text, grids)
    text, worst = _legend(), images.worst_fold()
    if worst is not None:
        voxel, lowest = worst
        where = number(images.grid.to_lps_mm(voxel))
        text += f" <b>The planes go through the worst fold</b>: {number(lowest)} at ({where}) mm in LPS."
        views = _views(images.grid, voxel)
    maps = [_panel(images, v, jacobian_rgb(images.of("jacobian", v))) for v in views]
    yield _section("Jacobian determinant", text, maps)


def error_rgb(error_mm: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours of an error in mm: green up to 1 mm, yellow at 2, orange at 5, dark red from 10 on."""
    rgb = np.stack(
        [np.interp(np.log(np.maximum(error_mm, 1e-3)), np.log(_ERROR_STOPS_MM), c) for c in _ERROR_RGB.T], -1
    )
    return np.rint(rgb).astype(np.uint8)


def _error_overlay(images: Images, view: _View) -> np.ndarray:
    """The expected error's colours in the mask, on the fixed image in grey (rows, columns, 3)."""
    low, high = images.window
    grey = np.clip((images.of("fixed", view).astype(float) - low) / (high - low), 0, 1)[..., None] * 255
    error = images.of("expected", view)
    inside = (images.of("mask", view) if images.mask is not None else error > 0)[..., None]
    return np.where(inside, 0.35 * grey + 0.65 * error_rgb(error), grey).astype(np.uint8)


def _error_legend() -> str:
    return f"""{_scale(error_rgb, _ERROR_STOPS_MM.tolist())}
Expected distance, in mm, of the map from the truth, estimated from the images without ground truth.
Green: 1 mm or less. Yellow: 2 mm. Orange: 5 mm. Dark red: 10 mm or more."""


def _legend() -> str:
    return f"""{_scale(jacobian_rgb, (1 / _JACOBIAN_LIMIT, 0.7, 1.0, 1.4, _JACOBIAN_LIMIT))}
&gt; 1 (red): the tissue is larger in the moving image. &lt; 1 (blue): it is smaller there.
<b class="fold">Magenta</b>: a fold (0 or less), where the map is wrong."""


def _scale(rgb: Callable[[np.ndarray], np.ndarray], values: Sequence[float]) -> str:
    """A logarithmic colour bar from the first to the last value, with the values marked."""
    bar = png(rgb(np.geomspace(values[0], values[-1], 200)[None]))
    places = 100 * np.log(np.divide(values, values[0])) / np.log(values[-1] / values[0])
    ticks = "".join(f'<span style="left: {x:.1f}%">{v:g}</span>' for v, x in zip(values, places, strict=True))
    return f'<span class="legend"><img src="{bar}" alt=""><span class="ticks">{ticks}</span></span>'


def curve_sections(history: Sequence[dict], landmark_errors: dict | None) -> Iterator[str]:
    terms = [k for k in dict.fromkeys(k for entry in history for k in entry) if k != "step"]
    if terms:
        steps = np.array([h["step"] for h in history], float)
        curves = [
            plot(term, "step", [(steps, np.array([h.get(term, np.nan) for h in history], float), _AFTER, "")])
            for term in terms
        ]
        yield f"""<section><h2>Progress of the optimisation</h2>
            <p>The loss and its terms. They jump where a finer level begins, which compares the images in more detail:
            only within one level should the loss fall.</p><div class="plots">{"".join(curves)}</div></section>"""
    if landmark_errors:
        lines = []
        for (name, errors), colour in zip(landmark_errors.items(), (_BEFORE, _AFTER), strict=False):
            reached = np.linspace(0, 100, len(errors) + 1)
            # a step up at each error
            lines.append((np.repeat([0, *np.sort(errors)], 2)[1:], np.repeat(reached, 2)[:-1], colour, name))
        title = "landmarks with an error up to this, in %"
        drawn = plot(title, "error (TRE) in mm", lines)
        yield f'<section><h2>Landmark errors</h2><div class="plots">{drawn}</div></section>'
