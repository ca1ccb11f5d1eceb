"""Pictures inside a page, without a library: planes of pixels with lines and letters over them, and curves, as SVG."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

_MOST_PIXELS = 880  # of a plane's longer side: of more every n-th
_MOST_POINTS = 120  # of a line
_LEVEL = 4  # of the compression: higher ones take longer than they are worth
_FROM_SIDE = 16  # of a plane, pixels: the centre of a letter
_CURVES = 300.0, 170.0, 34.0  # width, height and margin of a plot, in its own units

Line = tuple[np.ndarray, np.ndarray, str, str]  # places along x and y (n,), colour, name


def png(pixels: np.ndarray) -> str:
    """Grey (rows, columns) or colours (rows, columns, 3), uint8, as the address of a PNG picture."""
    rows, columns = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels).reshape(rows, -1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    # each line comes after the number of its filter: none
    data = zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes(), _LEVEL)
    parts = b"".join(_chunk(*part) for part in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def plane(pixels: np.ndarray, size: tuple[float, float], caption: str, over: Iterable[str] = ()) -> str:
    """Pixels as ``png`` takes them, stretched to a width and a height, with SVG over them, as an HTML figure."""
    step = max(1, -(-max(pixels.shape[:2]) // _MOST_PIXELS))
    seen = png(pixels[::step, ::step])
    width, height = size
    # colours are not mixed
    way = ' style="image-rendering: pixelated"' if pixels.ndim == 3 else ""
    return (
        f'<figure><svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="{caption}">'
        f'<image href="{seen}" width="{width:.0f}" height="{height:.0f}" preserveAspectRatio="none"{way}/>'
        f"{''.join(over)}</svg><figcaption>{caption}</figcaption></figure>"
    )


def over_pixels(path: str, shape: tuple[int, int], size: tuple[float, float], colour: str, width: float) -> str:
    """A path in units of pixels, the first of which begins at 0, over a plane of (rows, columns) and this size."""
    scale = f"scale({size[0] / shape[1]:.5g} {size[1] / shape[0]:.5g})"
    return (
        f'<path d="{path}" transform="{scale}" fill="none" stroke="{colour}" stroke-width="{width}" '
        'vector-effect="non-scaling-stroke"/>'
    )


def lines_path(lines: Iterable[np.ndarray]) -> str:
    """Lines, each of places (n, 2): column and row of pixels, whose middle they mean."""
    parts = []
    for line in lines:
        line = line[:: max(1, len(line) // _MOST_POINTS)] + 0.5
        parts.append("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in line.tolist()))
    return "".join(parts)


def rim_path(inside: np.ndarray) -> str:
    """The sides of pixels (rows, columns), bool, between those inside and those outside."""
    down = (f"M{c + 1} {r}v1" for r, c in np.argwhere(inside[:, 1:] != inside[:, :-1]).tolist())
    along = (f"M{c} {r + 1}h1" for r, c in np.argwhere(inside[1:] != inside[:-1]).tolist())
    return "".join((*down, *along))


def letters(texts: Sequence[str], size: tuple[float, float]) -> str:
    """At the left, right, upper and lower side."""
    width, height = size
    right, bottom = width - _FROM_SIDE, height - _FROM_SIDE
    places = ((_FROM_SIDE, height / 2), (right, height / 2), (width / 2, _FROM_SIDE), (width / 2, bottom))
    found = (
        f'<text x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'
        for text, (x, y) in zip(texts, places, strict=True)
        if text
    )
    return f'<g class="letters">{"".join(found)}</g>'


def plot(title: str, x_label: str, lines: Sequence[Line]) -> str:
    """Curves as SVG, on axes with round numbers. What is not finite is left out."""
    width, height, margin = _CURVES
    kept = [_finite(line) for line in lines]
    x_ticks, y_ticks = (_ticks(np.concatenate(values)) for values in zip(*(line[:2] for line in kept), strict=True))

    def to_page(values: np.ndarray, ticks: np.ndarray, start: float, end: float) -> np.ndarray:
        return start + (np.asarray(values, float) - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)

    left, right, top, bottom = margin + 8, width - 8, 20.0, height - margin
    body = [f'<text x="{left}" y="12" class="title">{escape(title)}</text>']
    for tick, x in zip(x_ticks, to_page(x_ticks, x_ticks, left, right), strict=True):
        body.append(
            f'<path d="M{x:.1f} {top}V{bottom}"/><text x="{x:.1f}" y="{bottom + 12}" class="x">{tick:.6g}</text>'
        )
    for tick, y in zip(y_ticks, to_page(y_ticks, y_ticks, bottom, top), strict=True):
        body.append(
            f'<path d="M{left} {y:.1f}H{right}"/><text x="{left - 4}" y="{y + 3:.1f}" class="y">{tick:.6g}</text>'
        )
    body.append(f'<text x="{(left + right) / 2}" y="{height - 6}" class="x">{escape(x_label)}</text>')
    for number, (x, y, colour, name) in enumerate(kept):
        places = np.stack([to_page(x, x_ticks, left, right), to_page(y, y_ticks, bottom, top)], 1).tolist()
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        body.append(f'<polyline points="{points}" style="stroke: {colour}"/>')
        if name:
            at = f'x="{right - 4}" y="{bottom - 8 - 12 * (len(kept) - 1 - number)}" class="y"'
            body.append(f'<text {at} style="fill: {colour}">{escape(name)}</text>')
    opened = f'<svg viewBox="0 0 {width} {height}" class="plot" role="img" aria-label="{escape(title)}">'
    return f"{opened}{''.join(body)}</svg>"


def _finite(line: Line) -> Line:
    x, y, colour, name = line
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good], colour, name


def _ticks(values: np.ndarray) -> np.ndarray:
    """About five round numbers from one that is not above all values to one that is not below them."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    span = high - low if high > low else abs(low) or 1.0
    power = 10.0 ** np.floor(np.log10(span / 4))
    step = next(k * power for k in (1, 2, 2.5, 5, 10) if span / (k * power) <= 5)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return np.arange(first, max(last, first + 1) + 1) * step
