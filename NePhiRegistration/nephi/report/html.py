"""The parts of a self-contained HTML page: to read, print and send."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape

from .pictures import number


def document(title: str, body: Iterable[str]) -> str:
    """A self-contained page; its parts are HTML."""
    return _PAGE.replace("$TITLE", escape(title)).replace("$BODY", "\n".join(body))


def prose(text: object) -> str:
    """Text as HTML; command line options are not broken across lines."""
    return _OPTION.sub(r'<span class="option">\g<0></span>', escape(str(text)))


def bullets(lines: Iterable[str], kind: str = "") -> str:
    """A list of lines, which are HTML; ``kind``: its class."""
    return f'<ul class="{kind}">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def rows_table(title: str, rows: list[dict] | None) -> str:
    """A table of dicts with the same keys, which are its column titles; empty without rows."""
    return table(title, [tuple(row.values()) for row in rows], tuple(rows[0])) if rows else ""


def table(title: str, rows: list[tuple], head: tuple = ()) -> str:
    """A table of text and numbers with a title; empty without rows."""
    if not rows:
        return ""
    cells = ["".join(f"<th>{escape(str(c))}</th>" for c in head)]
    cells += ["".join(f"<td>{number(c)}</td>" for c in row) for row in rows]
    title = f"<h2>{title}</h2>" if title else ""
    return f"{title}<table>{''.join(f'<tr>{row}</tr>' for row in cells if row)}</table>"


def leaves(content, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all leaves of nested dicts and of lists of dicts."""
    many = isinstance(content, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in content)
    if isinstance(content, dict) or many:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content, 1):
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


_OPTION = re.compile(r"(?<![\w-])--\w[\w-]*")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$TITLE</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem; margin: auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
p { margin: .3rem 0 .7rem; max-width: 50rem } ul { padding-left: 1.3rem; margin: .3rem 0; max-width: 50rem }
.lead { font-size: 1.05rem } .warning { background: #fff4d6; border: 1px solid #d98e00; padding: .3rem 1rem }
img { max-width: 100%; display: block } figure { margin: 0 } figcaption { font-size: .85rem; color: #555 }
.views { display: grid; gap: .6rem; grid-auto-flow: column; grid-auto-columns: minmax(0, 440px) }
.rows2 { grid-template-rows: auto auto } .views svg { width: 100%; height: auto; display: block }
.letters { fill: white; stroke: black; stroke-width: 3; paint-order: stroke; font: bold 18px sans-serif }
.letters text { text-anchor: middle; dominant-baseline: central }
.plots { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 26rem)) }
.plot { font-size: 9px; overflow: visible } .plot path { stroke: #e5e5e5 }
.plot polyline { fill: none; stroke-width: 1.2 }
.plot .title { font-size: 10.5px } .plot .x { text-anchor: middle } .plot .y { text-anchor: end }
@media screen and (max-width: 48rem) { .views, .rows2 { grid: none; grid-template-columns: 1fr 1fr } }
.verdict { border-left: .5rem solid; padding: .4rem 1rem; margin: .6rem 0 } .verdict > b { font-size: 1.3rem }
.option { white-space: nowrap }
.pass { border-color: #1a7f37; background: #e8f5ec } .check { border-color: #d98e00; background: #fff4d6 }
.fail { border-color: #b3261e; background: #fbe9e7 }
.legend { display: block; width: 20rem; max-width: 95%; margin: 0 0 .4rem .6rem; font-size: .85rem }
.legend img { width: 100%; height: 1rem } .ticks { display: block; position: relative; height: 1.2rem }
.ticks span { position: absolute; transform: translateX(-50%) }
.fold { background: #f0f; color: #fff; padding: 0 .3rem; print-color-adjust: exact }
table { border-collapse: collapse; font-size: .9rem } tr { border-bottom: 1px solid #ddd; text-align: left }
td, th { padding: .15rem .6rem .15rem 0 } td + td { overflow-wrap: anywhere }
section, figure { break-inside: avoid }
</style></head><body>
$BODY
</body></html>
"""
