"""A registration on one page: a self-contained HTML file to read, print and send.

The page says what is known and what is not; matplotlib draws its pictures and is optional.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .space import Grid

_PIXELS = 440  # width of the widest view
_CT_WINDOW = (-1000.0, 300.0)
_JACOBIAN_LIMIT = 2.0  # colours run from 1 / limit to limit
_BLUE_TO_RED = np.array(
    [
        [5, 48, 97],
        [67, 147, 195],
        [209, 229, 240],
        [247, 247, 247],
        [253, 219, 199],
        [214, 96, 77],
        [103, 0, 31],
    ]
)
_MAGENTA = (255, 0, 255)
_BEFORE, _AFTER = "#b35806", "#1b6ca8"
_NO_PICTURES = "This report has no pictures because matplotlib is missing: <code>pip install nephi[report]</code> adds them."


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
        pictures = [f"<p>{_NO_PICTURES}</p>"]
    body = [*_headline(report, landmark_errors), *pictures, *_tables(report)]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(_PAGE.replace("$BODY", "\n".join(body)), encoding="utf-8")


# Words and tables


def _headline(report: dict, landmark_errors: dict | None) -> Iterator[str]:
    fixed, moving = (_name(report.get(k), f"the {k} image") for k in ("fixed", "moving"))
    yield "<h1>Registration report</h1>"
    yield f'<p class="lead"><b>{moving}</b> (moving) was registered to <b>{fixed}</b> (fixed).</p><ul class="lead">'
    yield from (f"<li>{line}</li>" for line in _verdict(report, landmark_errors) if line)
    yield "</ul>"
    warnings = report.get("warnings") or []
    if warnings:
        yield f'<div class="warning"><b>Warnings</b><ul>{"".join(f"<li>{escape(str(w))}</li>" for w in warnings)}</ul></div>'


def _name(value, otherwise: str) -> str:
    value = (value.get("path") or value.get("name")) if isinstance(value, dict) else value
    return escape(Path(str(value)).name if value else otherwise)


def _verdict(report: dict, landmark_errors: dict | None) -> Iterator[str]:
    tre = report.get("tre_mm") or {}
    before, after = tre.get("before"), tre.get("after")
    if after:
        text = "Landmark error (TRE): "
        if before:
            way = "down" if after["mean"] < before["mean"] else "<b>up</b>"
            text += f"{way} from {_number(before['mean'])} mm after alignment to "
        text += f"<b>{_number(after['mean'])} mm</b> on average"
        parts = (("median", "median {}"), ("p95", "95 % are below {}"), ("max", "the worst is {}"))
        rest = ", ".join(words.format(f"{_number(after[k])} mm") for k, words in parts if k in after)
        yield f"{text}{f' ({rest})' if rest else ''}. It tells about the places where landmarks lie."
    else:
        yield ("No landmarks were given, so <b>the accuracy is not known</b>. "
               "The pictures show whether visible structures meet, not whether the map is right between them.")  # fmt: skip
    folds = report.get("folds") or {}
    if "percent" in folds:
        count = f" ({_number(folds['count'])} voxels)" if "count" in folds else ""
        if folds["percent"] == 0:
            yield "No folds: the Jacobian determinant is above 0 at every voxel looked at."
        else:
            yield (f"<b>Folds: {_number(folds['percent'])} %{count}</b>. There the map turns tissue inside out "
                   "and must not be trusted; the Jacobian maps show it in magenta.")  # fmt: skip
    consistency = report.get("inverse_consistency_mm")
    if isinstance(consistency, dict):
        parts = ", ".join(f"{escape(str(k))} {_number(v)} mm" for k, v in consistency.items() if k != "n")
        yield f"Inverse consistency (there and back again): {parts}."
    elif consistency is not None:
        yield f"Inverse consistency (there and back again): {_number(consistency)} mm."
    time_s, memory = report.get("time_s"), report.get("peak_memory_mb")
    time_s = time_s if isinstance(time_s, dict) else {"wall": time_s}
    if time_s.get("wall") is not None:
        cpu = f", {_number(time_s['cpu'])} s of processor time" if time_s.get("cpu") is not None else ""
        yield f"Time: {_number(time_s['wall'])} s{cpu}{f'; at most {_number(memory)} MB of memory' if memory else ''}."


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
    report = dict(report)
    report.pop("warnings", None)
    separate = {
        title: report.pop(key, None) for key, title in (("settings", "Settings"), ("versions", "Versions"))
    }
    tre = report.pop("tre_mm", None) or {}
    if tre:
        columns = [c for c in ("before", "after") if tre.get(c)]
        names = list(dict.fromkeys(name for c in columns for name in tre[c]))
        head = "".join(f"<th>{c}</th>" for c in columns)
        rows = (
            f"<tr><td>{escape(n)}</td>{''.join(f'<td>{_number(tre[c].get(n))}</td>' for c in columns)}</tr>"
            for n in names
        )
        yield f"<h2>Landmark error (TRE) in mm</h2><table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    for title, content in ({"Numbers": report} | separate).items():
        rows = "".join(f"<tr><td>{escape(k)}</td><td>{_number(v)}</td></tr>" for k, v in _flat(content or {}))
        if rows:
            yield f"<h2>{title}</h2><table>{rows}</table>"


def _flat(content, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all leaves of nested dicts and of lists of dicts."""
    many = isinstance(content, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in content)
    if isinstance(content, dict) or many:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content, 1):
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


# Views: an image's own voxel planes, the way radiologists look at them


@dataclass(frozen=True)
class _View:
    """A plane of voxels and how it lies on the page: ``axes`` are the voxel axes to the right and down."""

    name: str
    axes: tuple[int, int]
    flips: tuple[bool, bool]
    normal: int | None
    position: int
    letters: tuple[str, str, str, str]  # left, right, top, bottom

    def take(self, array: np.ndarray, dimension: int, position: int | None = None) -> np.ndarray:
        """The plane (rows, columns[, c]) of an array (z, y, x[, c])."""
        index = [slice(None)] * dimension
        if self.normal is not None:
            index[dimension - 1 - self.normal] = self.position if position is None else position
        plane = array[tuple(index)]
        plane = plane.swapaxes(0, 1) if self.axes[0] > self.axes[1] else plane
        return plane[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]

    def of_page(self, values) -> np.ndarray:
        """(column, row) entries of something that has one entry per voxel axis."""
        return np.asarray(values)[list(self.axes)]


def _letters(direction_lps: np.ndarray) -> str:
    """Towards which side of the patient: one letter, or more where the direction is oblique."""
    order = np.argsort(-np.abs(direction_lps))
    return "".join(
        "LPS"[i] if direction_lps[i] > 0 else "RAI"[i] for i in order if abs(direction_lps[i]) > 0.38
    )


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

    def centre_index(self) -> list[int]:
        """Along each axis, x first, the slice with most of the mask; the middle without one."""
        if self.mask is None or not self.mask.any():
            return [n // 2 for n in self.grid.size]
        every = range(self.mask.ndim)
        areas = [
            self.mask.sum(tuple(a for a in every if a != keep), dtype=np.int32) for keep in reversed(every)
        ]
        return [int(np.argmax(area)) for area in areas]

    def worst_fold(self) -> tuple[int, ...] | None:
        """Voxel (x first) of the lowest determinant inside the mask, if it is a fold."""
        inside = self.jacobian if self.mask is None else np.where(self.mask, self.jacobian, np.inf)
        at = np.unravel_index(np.argmin(inside), inside.shape)
        return tuple(map(int, at[::-1])) if inside[at] <= 0 else None


def jacobian_rgb(jacobian: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours: blue below 1, white at 1, red above 1 (log scale), magenta where not above 0."""
    good = jacobian > 0
    log = np.log(np.where(good, jacobian, 1.0)) / np.log(_JACOBIAN_LIMIT)
    stops = np.linspace(-1, 1, len(_BLUE_TO_RED))
    rgb = np.stack([np.interp(log, stops, channel) for channel in _BLUE_TO_RED.T], -1)
    rgb[~good] = _MAGENTA
    return np.rint(rgb).astype(np.uint8)


def checkerboard(a: np.ndarray, b: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Squares of ``a`` and ``b`` (rows, columns) in turn, nine along the longer side; spacing: column, row."""
    rows, columns = (np.arange(n) * s for n, s in zip(a.shape, spacing_mm[::-1], strict=True))
    side = max(a.shape[0] * spacing_mm[1], a.shape[1] * spacing_mm[0]) / 9
    return np.where((rows[:, None] // side + columns // side) % 2 == 0, a, b)


def _rigid_part(images: _Images) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and shift (mm) nearest to the forward map inside the mask (Kabsch), from some 4000 points."""
    grid, field = Grid.of(images.displacement), sitk.GetArrayViewFromImage(images.displacement)
    d = grid.dimension
    step = max(1, round((np.prod(grid.size) / 4000) ** (1 / d)))
    index_zyx = np.stack(
        np.meshgrid(*[np.arange(0, n, step) for n in grid.shape], indexing="ij"), -1
    ).reshape(-1, d)
    points = grid.to_lps_mm(index_zyx[:, ::-1])
    if images.mask is not None:
        at = np.rint(images.grid.to_index(points)).astype(int).clip(0, np.array(images.grid.size) - 1)
        inside = images.mask[tuple(at.T[::-1])]
        if inside.sum() > 2 * d:
            points, index_zyx = points[inside], index_zyx[inside]
    moved = points + field[tuple(index_zyx.T)]
    a, b = points - points.mean(0), moved - moved.mean(0)
    u, _, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0] * (d - 1) + [np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    return rotation, moved.mean(0) - rotation @ points.mean(0)


def _grid_lines(images: _Images, view: _View, rigid) -> list[np.ndarray]:
    """Lines of a regular grid after the forward map, without its rigid part, in (column, row) of the view."""
    keep = [slice(None)] * images.grid.dimension
    if view.normal is not None:
        keep[view.normal] = slice(view.position, view.position + 1)
    plane = Grid.of(images.image[tuple(keep)])
    frame = (plane.origin_lps_mm, plane.spacing_mm, plane.direction, 0.0, sitk.sitkVectorFloat64, True)
    identity = sitk.Transform(plane.dimension, sitk.sitkIdentity)
    field = sitk.Resample(images.displacement, plane.size, identity, sitk.sitkLinear, *frame)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in plane.shape], indexing="ij")[::-1], -1)
    rotation, shift = rigid
    moved = (plane.to_lps_mm(index) + sitk.GetArrayFromImage(field) - shift) @ rotation  # rotation is undone
    found = view.take(images.grid.to_index(moved), plane.dimension, 0)[..., list(view.axes)]
    size = view.of_page(images.grid.size)
    found = np.where(view.flips, size - 1 - found, found)
    sides = size * view.of_page(images.grid.spacing_mm)
    steps = np.maximum(1, np.rint(sides.max() / 26 / view.of_page(images.grid.spacing_mm))).astype(int)
    return [*found[:: steps[1]], *found[:, :: steps[0]].swapaxes(0, 1)]


# Pictures: drawn with matplotlib's objects on an Agg canvas, without its global state


def _png(figure) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, pil_kwargs={"compress_level": 4})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _panel(view: _View, plane: np.ndarray, grid: Grid, caption: str, window=None, lines=()) -> str:
    """One view as an HTML figure; ``plane`` is (rows, columns) in a grey window or (rows, columns, 3) colours."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    sides = np.array(plane.shape[1::-1]) * view.of_page(grid.spacing_mm)
    figure = Figure(sides / sides.max() * _PIXELS / 100, dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    low, high = window or (None, None)
    axes.imshow(
        plane,
        "gray",
        aspect="auto",
        vmin=low,
        vmax=high,
        interpolation="nearest" if plane.ndim == 3 else None,
    )
    axes.add_collection(LineCollection(lines, colors="#ffd23f", linewidths=0.8), autolim=False)
    axes.set_axis_off()
    places = ((0.02, 0.5, "left"), (0.98, 0.5, "right"), (0.5, 0.965, "center"), (0.5, 0.035, "center"))
    for letter, (x, y, side) in zip(view.letters, places, strict=True):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=side, va="center", color="white", size=11)
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    caption = f"{view.name}, {caption}" if caption else view.name
    return f'<figure><img src="{_png(figure)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _section(title: str, text: str, panels: list[str], rows: int = 1) -> str:
    return f'<section><h2>{title}</h2><p>{text}</p><div class="views rows{rows}">{"".join(panels)}</div></section>'


def _image_sections(images: _Images) -> Iterator[str]:
    grid, d, window = images.grid, images.grid.dimension, images.window
    views = _views(grid, images.centre_index())
    both = [(v, name, v.take(images.fixed, d), v.take(moved, d)) for v in views
            for name, moved in (("before", images.before), ("after", images.after))]  # fmt: skip
    boards = [
        _panel(v, checkerboard(a, b, v.of_page(grid.spacing_mm)), grid, name, window)
        for v, name, a, b in both
    ]
    yield _section("Checkerboard", "Squares of the fixed and of the moving image in turn, before (alignment only) and "
                   "after registration: outlines and vessels should run on across the squares.", boards, 2)  # fmt: skip
    span = 0.3 * (window[1] - window[0])
    differences = [
        _panel(v, np.subtract(a, b, dtype=np.float32), grid, name, (-span, span)) for v, name, a, b in both
    ]
    yield _section("Difference", f"Fixed minus moving image: grey is none, white or black is {_number(span)} or more. "
                   "Lungs also change in density as they fill; an even shade there is no error.", differences, 2)  # fmt: skip
    rigid = _rigid_part(images)
    grids = [
        _panel(v, v.take(images.fixed, d), grid, "", window, _grid_lines(images, v, rigid)) for v in views
    ]
    yield _section("Deformation", "A regular grid of the fixed image, carried by the forward map into the moving one. "
                   "Shift and rotation as a whole are taken out, and motion across the plane is not seen.", grids)  # fmt: skip
    maps = [_panel(v, jacobian_rgb(v.take(images.jacobian, d)), grid, "") for v in views]
    yield _section("Jacobian determinant", _legend(), maps)
    worst = images.worst_fold()
    if worst is not None:
        maps = [_panel(v, jacobian_rgb(v.take(images.jacobian, d)), grid, "") for v in _views(grid, worst)]
        where = ", ".join(f"{c:.1f}" for c in grid.to_lps_mm(worst))
        text = (
            f"The determinant at its lowest, {_number(images.jacobian[worst[::-1]])}, at ({where}) mm in LPS."
        )
        yield _section("The worst fold", text, maps)


def _legend() -> str:
    from matplotlib.figure import Figure

    figure = Figure((4, 0.16), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(jacobian_rgb(np.geomspace(1 / _JACOBIAN_LIMIT, _JACOBIAN_LIMIT, 200)[None]), aspect="auto")
    axes.set_axis_off()
    ticks = "".join(f"<span>{v:.2g}</span>" for v in _JACOBIAN_LIMIT ** np.linspace(-1, 1, 5))
    return (f'<span class="legend"><img src="{_png(figure)}" alt="colours"><span class="ticks">{ticks}</span></span>'
            "&gt; 1 (red): the tissue is larger in the moving image. &lt; 1 (blue): it is smaller there. "
            '<b class="fold">Magenta</b>: a fold, not above 0, where the map is wrong.')  # fmt: skip


def _curve_sections(history: list[dict], landmark_errors: dict | None) -> Iterator[str]:
    from matplotlib.figure import Figure

    terms = [k for k in (history[0] if history else {}) if k != "step"]
    if terms:
        columns = min(3, len(terms))
        rows = -(-len(terms) // columns)
        figure = Figure((9, 2.2 * rows), dpi=100, layout="constrained")
        for axes, term in zip(figure.subplots(rows, columns, squeeze=False).flat, terms, strict=False):
            axes.plot(
                [h["step"] for h in history], [h.get(term, np.nan) for h in history], color=_AFTER, lw=1.2
            )
            _plain_axes(axes, term, "step")
        for axes in figure.axes[len(terms) :]:
            axes.set_axis_off()
        yield f'<section><h2>Progress of the optimisation</h2><img src="{_png(figure)}" alt="loss curves"></section>'
    if landmark_errors:
        figure = Figure((7, 3.2), dpi=100, layout="constrained")
        axes = figure.subplots()
        for (name, errors), colour in zip(landmark_errors.items(), (_BEFORE, _AFTER), strict=False):
            errors = np.sort(np.asarray(errors, float).ravel())
            axes.step(
                [0, *errors],
                100 * np.arange(len(errors) + 1) / len(errors),
                where="post",
                color=colour,
                label=name,
            )
        axes.legend(frameon=False, loc="lower right")
        _plain_axes(axes, "landmarks with an error up to this, in %", "error (TRE) in mm")
        axes.set(xlim=(0, None), ylim=(0, 102))
        yield f'<section><h2>Landmark errors</h2><img src="{_png(figure)}" alt="landmark errors"></section>'


def _plain_axes(axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Registration report</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem } p { margin: .3rem 0 .7rem; max-width: 46rem }
.lead { font-size: 1.05rem; max-width: 50rem } ul { padding-left: 1.3rem; margin: .3rem 0 }
.warning { background: #fff4d6; border-left: 4px solid #d98e00; padding: .5rem 1rem; margin: 1rem 0 }
img { max-width: 100%; display: block } figure { margin: 0; break-inside: avoid } figcaption { font-size: .85rem; color: #555 }
.views { display: grid; gap: .6rem; grid-auto-flow: column; grid-auto-columns: minmax(0, 440px); align-items: start }
.rows2 { grid-template-rows: auto auto } .views img { width: 100% }
@media (max-width: 40rem) { .views { grid: none; grid-auto-flow: row; grid-template-columns: 1fr } .rows2 { grid-template-columns: 1fr 1fr } }
.legend { display: block; width: 20rem; max-width: 100%; margin-bottom: .4rem; font-size: .85rem }
.legend img { width: 100%; height: 1rem } .ticks { display: flex; justify-content: space-between }
.fold { background: #f0f; color: #fff; padding: 0 .3rem; print-color-adjust: exact; -webkit-print-color-adjust: exact }
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; overflow-wrap: anywhere }
@media print { section { break-inside: avoid } body { padding: 0 } }
</style></head><body>
$BODY
</body></html>
"""
