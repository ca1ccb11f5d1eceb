"""A registration on one page: a self-contained HTML file to read, print and send.

The page says what is known and what is not; matplotlib draws its pictures and is optional.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .space import Grid

_PIXELS = 440  # width of the widest view
_CT_WINDOW = (-1000.0, 300.0)
_JACOBIAN_LIMIT = 2.0  # colours run from 1 / limit to limit
_BLUE_TO_RED = np.array([(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)])
_BEFORE, _AFTER = "#b35806", "#1b6ca8"
_NO_PICTURES = "<p>matplotlib is missing: <code>pip install nephi[report]</code> adds the pictures.</p>"


def write_report(
    folder: str | Path,
    *,
    report: dict,
    fixed: sitk.Image,
    warped: sitk.Image,
    moving_before: sitk.Image,
    jacobian: sitk.Image,
    displacement: sitk.Image,
    fixed_mask: sitk.Image | None = None,
    history: list[dict] = (),
    landmark_errors: dict[str, np.ndarray] | None = None,
) -> None:
    """Write ``report.html`` into ``folder``, which is made where it is missing.

    fixed, warped (moving image after registration), moving_before (after alignment only), jacobian
    (determinant of the forward map) and fixed_mask lie on the fixed grid; displacement (vectors, LPS
    mm, forward map) may lie on a coarser one. ``landmark_errors``: (n,) mm, keys before and after.
    ``history``: dicts of step, loss and terms. Every entry of ``report`` is shown.
    """
    images = _Images(fixed, warped, moving_before, jacobian, displacement, fixed_mask)
    try:
        import matplotlib.figure  # noqa: F401 (only whether it is there)

        pictures = [*_image_sections(images), *_curve_sections(history, landmark_errors)]
    except ImportError:
        pictures = [_NO_PICTURES]
    body = [*_headline(report, landmark_errors), *pictures, *_tables(report)]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(_PAGE.replace("$BODY", "\n".join(body)), encoding="utf-8")


def _headline(report: dict, landmark_errors: dict | None) -> Iterator[str]:
    fixed, moving = (_name(report.get(k), f"the {k} image") for k in ("fixed", "moving"))
    yield "<h1>Registration report</h1>"
    yield f'<p class="lead"><b>{moving}</b> (moving) was registered to <b>{fixed}</b> (fixed).</p>'
    yield _list(_verdict(report, landmark_errors), "lead")
    if report.get("warnings"):
        yield f'<div class="warning"><b>Warnings</b>{_list(escape(str(w)) for w in report["warnings"])}</div>'


def _list(lines: Iterable[str], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _name(value, otherwise: str) -> str:
    value = (value.get("path") or value.get("name")) if isinstance(value, dict) else value
    return escape(Path(str(value)).name if value else otherwise)


def _verdict(report: dict, landmark_errors: dict | None) -> Iterator[str]:
    tre = report.get("tre_mm") or {}
    for when, errors in (landmark_errors or {}).items():
        tre = {when: {"mean": float(np.mean(errors)), "max": float(np.max(errors))}} | tre
    before, after = tre.get("before"), tre.get("after")
    if after:
        change = ""
        if before:
            way = "down" if after["mean"] < before["mean"] else "<b>up</b>"
            change = f"{way} from {before['mean']:.2f} mm (alignment only) to "
        words = (("median", "median"), ("p95", "95 % are below"), ("max", "the worst is"))
        rest = ", ".join(f"{text} {after[key]:.2f} mm" for key, text in words if key in after)
        yield f"""Landmark error (TRE): {change}<b>{after["mean"]:.2f} mm</b> on average ({rest}).
            It holds where the landmarks lie; elsewhere look at the pictures."""
    else:
        yield """No landmarks were given, so <b>the accuracy is not known</b>. The pictures show whether
            visible structures meet, not whether the map is right between them."""
    folds = report.get("folds") or {}
    if folds.get("percent") == 0:
        yield "No folds: the Jacobian determinant is above 0 at every voxel looked at."
    elif folds.get("percent"):
        count = f" ({_number(folds['count'])} voxels)" if "count" in folds else ""
        yield f"""<b>Folds: {_number(folds["percent"])} %{count}</b>. There the map turns tissue inside out
            and must not be trusted; the Jacobian maps show it in magenta."""
    consistency = report.get("inverse_consistency_mm")
    if consistency is not None:
        parts = consistency if isinstance(consistency, dict) else {"mean": consistency}
        text = ", ".join(f"{escape(str(k))} {_number(v)} mm" for k, v in parts.items() if k != "n")
        yield f"Inverse consistency (there and back again): {text}."
    time_s = report.get("time_s")
    if time_s is not None:
        time_s = time_s if isinstance(time_s, dict) else {"wall": time_s}
        yield f"Time: {', '.join(f'{escape(str(k))} {_number(v)} s' for k, v in time_s.items())}."


def _number(value) -> str:
    if value is None or isinstance(value, (bool, np.bool_)):
        return "none" if value is None else "yes" if value else "no"
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_number(v) for v in value) or "none"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"
    return escape(str(value))


def _tables(report: dict) -> Iterator[str]:
    """Everything in the report: errors before and after first, then the other numbers, settings, versions."""
    report = {k: v for k, v in report.items() if k != "warnings"}
    tre = report.pop("tre_mm", None) or {}
    names = list(dict.fromkeys(name for column in tre.values() for name in column))
    rows = [(name, *(column.get(name, "") for column in tre.values())) for name in names]
    yield _table("Landmark error (TRE) in mm", rows, ("", *tre))
    last = {title: report.pop(title, None) or {} for title in ("settings", "versions")}
    for title, content in ({"numbers": report} | last).items():
        yield _table(title.capitalize(), list(_flat(content)))


def _table(title: str, rows: list[tuple], head: tuple = ()) -> str:
    if not rows:
        return ""
    cells = ["".join(f"<th>{escape(str(c))}</th>" for c in head)]
    cells += ["".join(f"<td>{_number(c)}</td>" for c in row) for row in rows]
    return f"<h2>{title}</h2><table>{''.join(f'<tr>{row}</tr>' for row in cells if row)}</table>"


def _flat(content, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all leaves of nested dicts and of lists of dicts."""
    many = isinstance(content, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in content)
    if isinstance(content, dict) or many:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content, 1):
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


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
    """Which side of the patient a direction leads to: one letter, or more where it is oblique."""
    return "".join("RAI LPS"[i + 4 * (lps[i] > 0)] for i in np.argsort(-np.abs(lps)) if abs(lps[i]) > 0.38)


def _views(grid: Grid, at_index_xyz) -> list[_View]:
    """Axial, coronal and sagittal planes of a volume through a voxel; the one plane of a 2D image."""
    axes = grid.axes
    if grid.dimension == 2:  # its patient axes are not known: no letters
        flips = tuple(bool(axes[i, i] < 0) for i in (0, 1))
        return [_View("image", (0, 1), flips, None, 0, ("",) * 4)]
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(axes[i, p[i]]) for i in range(3)))
    views = []
    # patient axes that run to the right and down, with their signs in LPS
    for name, right, down, sign in (("axial", 0, 1, 1), ("coronal", 0, 2, -1), ("sagittal", 1, 2, -1)):
        u, v = best[right], best[down]
        flips = (bool(axes[right, u] < 0), bool(axes[down, v] * sign < 0))
        to_right, to_bottom = (axes[:, a] * (-1 if f else 1) for a, f in zip((u, v), flips, strict=True))
        letters = tuple(_letters(e) for e in (-to_right, to_right, -to_bottom, to_bottom))
        normal = 3 - u - v
        views.append(_View(name, (u, v), flips, normal, int(at_index_xyz[normal]), letters))
    return views


class _Images:
    """What the pictures are made of, as arrays on the fixed grid."""

    def __init__(self, fixed, warped, moving_before, jacobian, displacement, fixed_mask):
        as_array = sitk.GetArrayViewFromImage
        self.image, self.displacement, self.grid = fixed, displacement, Grid.of(fixed)
        self.fixed, self.after, self.before = as_array(fixed), as_array(warped), as_array(moving_before)
        self.jacobian = as_array(jacobian)
        self.mask = None if fixed_mask is None else as_array(fixed_mask) != 0
        thin = self.fixed[(slice(None, None, 2),) * self.fixed.ndim]
        low, high = np.percentile(thin, (1, 99))
        self.window = _CT_WINDOW if thin.min() <= -500 else (float(low), float(max(high, low + 1e-6)))

    def of(self, name: str, view: _View) -> np.ndarray:
        """The plane (rows, columns) of one of the images."""
        return view.take(getattr(self, name), view.position)

    def centre_index(self) -> list[int]:
        """Along each axis, x first, the slice with most of the mask; the middle without one."""
        if self.mask is None or not self.mask.any():
            return [n // 2 for n in self.grid.size]
        axes = range(self.mask.ndim)
        areas = [self.mask.sum(tuple({*axes} - {axis}), dtype=np.int32) for axis in reversed(axes)]
        return [int(np.argmax(area)) for area in areas]

    def worst_fold(self) -> tuple[int, ...] | None:
        """Voxel (x first) of the lowest determinant inside the mask, if it is a fold."""
        inside = self.jacobian if self.mask is None else np.where(self.mask, self.jacobian, np.inf)
        at = np.unravel_index(np.argmin(inside), inside.shape)
        return None if inside[at] > 0 else tuple(map(int, at[::-1]))


def jacobian_rgb(jacobian: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours: blue below 1, white at 1, red above (log scale), magenta where not above 0."""
    good = jacobian > 0
    log = np.log(np.where(good, jacobian, 1.0)) / np.log(_JACOBIAN_LIMIT)
    stops = np.linspace(-1, 1, len(_BLUE_TO_RED))
    rgb = np.stack([np.interp(log, stops, channel) for channel in _BLUE_TO_RED.T], -1)
    rgb[~good] = (255, 0, 255)  # magenta
    return np.rint(rgb).astype(np.uint8)


def checkerboard(a: np.ndarray, b: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Squares of ``a`` and ``b`` (rows, columns) in turn, nine on the longer side; spacing: column, row."""
    rows, columns = (np.arange(n) * s for n, s in zip(a.shape, spacing_mm[::-1], strict=True))
    side = max(a.shape[0] * spacing_mm[1], a.shape[1] * spacing_mm[0]) / 9
    return np.where((rows[:, None] // side + columns // side) % 2 == 0, a, b)


def _grid_lines(images: _Images, view: _View) -> list[np.ndarray]:
    """Lines of a regular grid after the forward map less its mean shift, in (column, row) of the view."""
    keep = [slice(None)] * images.grid.dimension
    if view.normal is not None:
        keep[view.normal] = slice(view.position, view.position + 1)
    plane = Grid.of(images.image[tuple(keep)])
    frame = (plane.origin_lps_mm, plane.spacing_mm, plane.direction, 0.0, sitk.sitkVectorFloat64, True)
    identity = sitk.Transform(plane.dimension, sitk.sitkIdentity)
    vectors = sitk.Resample(images.displacement, plane.size, identity, sitk.sitkLinear, *frame)
    field = sitk.GetArrayFromImage(vectors)
    inside = True if images.mask is None else images.mask[tuple(keep[::-1])]
    field -= field.mean(tuple(range(plane.dimension)), where=np.expand_dims(inside | ~np.any(inside), -1))
    index = np.moveaxis(np.indices(plane.shape)[::-1], 0, -1)
    moved = images.grid.to_index(plane.to_lps_mm(index) + field)
    found = view.take(moved, 0)[..., list(view.axes)]
    size, spacing = view.of_page(images.grid.size), view.of_page(images.grid.spacing_mm)
    found = np.where(view.flips, size - 1 - found, found)
    steps = np.maximum(1, np.rint((size * spacing).max() / 26 / spacing)).astype(int)
    return [*found[:: steps[1]], *found[:, :: steps[0]].swapaxes(0, 1)]


def _png(figure) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, pil_kwargs={"compress_level": 4})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _panel(images: _Images, view: _View, plane: np.ndarray, name="", window=(None, None), lines=()) -> str:
    """One view as an HTML figure; ``plane`` is grey (rows, columns) or colours, drawn with the mask's rim."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    sides = np.array(plane.shape[1::-1]) * view.of_page(images.grid.spacing_mm)
    figure, axes = _bare_figure(sides / sides.max() * _PIXELS / 100)
    smooth = "nearest" if plane.ndim == 3 else None  # the colour of a fold must not be mixed
    axes.imshow(plane, "gray", aspect="auto", vmin=window[0], vmax=window[1], interpolation=smooth)
    axes.add_collection(LineCollection(lines, colors="#ffd23f", linewidths=0.8), autolim=False)
    rim = images.of("mask", view) if plane.ndim == 3 and images.mask is not None else np.zeros((1, 1))
    if rim.any() and min(rim.shape) > 1:
        axes.contour(rim, [0.5], colors="black", linewidths=0.6)
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035))
    for letter, place in zip(view.letters, places, strict=True):
        text = axes.text(*place, letter, transform=axes.transAxes, ha="center", va="center", color="white")
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    caption = ", ".join(filter(None, (view.name, name)))
    return f'<figure><img src="{_png(figure)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _bare_figure(inches):
    from matplotlib.figure import Figure

    figure = Figure(tuple(inches), dpi=100)
    return figure, figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=(), yticks=())


def _section(title: str, text: str, panels: list[str], rows: int = 1) -> str:
    return f"""<section><h2>{title}</h2><p>{text}</p>
<div class="views rows{rows}">{"".join(panels)}</div></section>"""


def _image_sections(images: _Images) -> Iterator[str]:
    window, views, spacing = images.window, _views(images.grid, images.centre_index()), images.grid.spacing_mm
    rows = min(2, len(views))
    pairs = [(v, images.of("fixed", v), images.of(n, v), n) for v in views for n in ("before", "after")]
    boards = [_panel(images, v, checkerboard(a, b, v.of_page(spacing)), n, window) for v, a, b, n in pairs]
    text = """Squares of the fixed and the moving image in turn, before (alignment only) and after
        registration: outlines and vessels should run on across them."""
    yield _section("Checkerboard", text, boards, rows)
    span = 0.3 * (window[1] - window[0])
    greys = [_panel(images, v, np.subtract(a, b, dtype="f4"), n, (-span, span)) for v, a, b, n in pairs]
    text = f"""Fixed minus moving image: grey is none, white or black is {_number(span)} or more.
        Lungs also change in density as they fill: an even shade there is no error."""
    yield _section("Difference", text, greys, rows)
    grids = [_panel(images, v, images.of("fixed", v), "", window, _grid_lines(images, v)) for v in views]
    text = """A regular grid of the fixed image, carried by the forward map into the moving one, less the mean
        shift in the plane. Motion across the plane is not seen."""
    yield _section("Deformation", text, grids)
    text, worst = _legend(), images.worst_fold()
    if worst is not None:
        where, lowest = images.grid.to_lps_mm(worst), _number(images.jacobian[worst[::-1]])
        text += f" <b>The planes go through the worst fold</b>: {lowest} at ({_number(where)}) mm in LPS."
        views = _views(images.grid, worst)
    maps = [_panel(images, v, jacobian_rgb(images.of("jacobian", v))) for v in views]
    yield _section("Jacobian determinant", text, maps)


def _legend() -> str:
    figure, axes = _bare_figure((4, 0.16))
    axes.imshow(jacobian_rgb(_JACOBIAN_LIMIT ** np.linspace(-1, 1, 200)[None]), aspect="auto")
    ticks = "".join(f"<span>{v:.2g}</span>" for v in _JACOBIAN_LIMIT ** np.linspace(-1, 1, 5))
    return f'''<span class="legend"><img src="{_png(figure)}" alt=""><span class="ticks">{ticks}</span></span>
&gt; 1 (red): the tissue is larger in the moving image. &lt; 1 (blue): it is smaller there.
<b class="fold">Magenta</b>: a fold, not above 0, where the map is wrong.'''


def _curve_sections(history: list[dict], landmark_errors: dict | None) -> Iterator[str]:
    from matplotlib.figure import Figure

    terms = [k for k in (history[0] if history else {}) if k != "step"]
    if terms:
        rows = -(-len(terms) // 3)
        figure = Figure((9, 2.2 * rows), dpi=100, layout="constrained")
        for number, term in enumerate(terms, 1):
            axes = figure.add_subplot(rows, 3, number)
            steps, values = zip(*[(h["step"], h.get(term, np.nan)) for h in history], strict=True)
            axes.plot(steps, values, color=_AFTER, lw=1.2)
            _plain_axes(axes, term, "step")
        yield f'<section><h2>Progress</h2><img src="{_png(figure)}" alt="loss curves"></section>'
    if landmark_errors:
        figure = Figure((7, 3.2), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        for (name, errors), colour in zip(landmark_errors.items(), (_BEFORE, _AFTER), strict=False):
            share = np.linspace(0, 100, len(errors) + 1)
            axes.step([0, *np.sort(errors)], share, where="post", color=colour, label=name)
        axes.legend(frameon=False, loc="lower right")
        _plain_axes(axes, "landmarks with an error up to this, in %", "error (TRE) in mm")
        yield f'<section><h2>Landmark errors</h2><img src="{_png(figure)}" alt="landmark errors"></section>'


def _plain_axes(axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Registration report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem; margin: auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
p { margin: .3rem 0 .7rem; max-width: 50rem } ul { padding-left: 1.3rem; margin: .3rem 0; max-width: 50rem }
.lead { font-size: 1.05rem } .warning { background: #fff4d6; border: 1px solid #d98e00; padding: .3rem 1rem }
img { max-width: 100%; display: block } figure { margin: 0 } figcaption { font-size: .85rem; color: #555 }
.views { display: grid; gap: .6rem; grid-auto-flow: column; grid-auto-columns: minmax(0, 440px) }
.rows2 { grid-template-rows: auto auto } .views img { width: 100% }
@media (max-width: 40rem) { .views { grid: none } .rows2 { grid-template-columns: 1fr 1fr } }
.legend { display: block; width: 20rem; max-width: 100%; margin-bottom: .4rem; font-size: .85rem }
.legend img { width: 100%; height: 1rem } .ticks { display: flex; justify-content: space-between }
.fold { background: #f0f; color: #fff; padding: 0 .3rem; print-color-adjust: exact }
table { border-collapse: collapse; font-size: .9rem } tr { border-bottom: 1px solid #ddd; text-align: left }
td, th { padding: .15rem .8rem .15rem 0; overflow-wrap: anywhere } section, figure { break-inside: avoid }
</style></head><body>
$BODY
</body></html>
"""
