"""What the site generates as it is built: tables of the settings, the command line's help, links into the repository.

A page asks for generated text by a line of its own: ``<!-- generated: settings nephi.settings.Settings -->``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import posixpath
import re
import textwrap
import typing
from importlib import import_module
from pathlib import Path

from nephi.cli.parser import command_parser
from nephi.limits import split
from nephi.settings import PRESETS

ROOT = Path(__file__).parents[1]
PICTURES = ("Resources/Screenshots", "Resources/Icons")  # outside docs/, as other files use them too
_GENERATED = re.compile(r"^<!-- generated: (\S+)(.*) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")

# ---- settings ---------------------------------------------------------------------------------------------


def settings_classes(root: type) -> list[type]:
    """The dataclass, its kinds and all that its fields hold, each once, in the order in which they are met."""
    found: list[type] = []

    def walk(cls: type) -> None:
        if cls not in found:
            found.append(cls)
            for hint in typing.get_type_hints(cls).values():
                for part in _parts(hint):
                    walk(part)
            for kind in cls.__subclasses__():
                if kind.__module__.startswith("nephi."):
                    walk(kind)

    walk(root)
    return found


def _parts(hint: typing.Any) -> list[type]:
    """The dataclasses in a type: its own, or those among its arguments."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [part for argument in typing.get_args(hint) for part in _parts(argument)]


def comments(cls: type) -> dict[str, str]:
    """By field: the comment on its line or right above it."""
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip("# "))
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
            found[node.target.id] = rest.lstrip("# ") if rest.startswith("#") else " ".join(above)
    return found


def settings(path: str, elsewhere: str = "") -> str:
    """A section and a table for every class below the dataclass; those below ``elsewhere`` have theirs already."""
    known = settings_classes(_named(elsewhere)) if elsewhere else []
    return "\n\n".join(_section(cls) for cls in settings_classes(_named(path)) if cls not in known)


def _named(path: str) -> type:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def _section(cls: type) -> str:
    doc = inspect.cleandoc(cls.__doc__ or "")
    doc = "" if doc.startswith(f"{cls.__name__}(") else doc  # written by dataclass itself
    notes: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        notes |= comments(base)
    hints, rows = typing.get_type_hints(cls, include_extras=True), []
    for one in dataclasses.fields(cls):
        kind, limits = _type(hints[one.name])
        rows.append(f"| `{one.name}` | `{kind}` | {_default(one)} | {limits} | {notes.get(one.name, '')} |")
    table = ["| entry | type | default | allowed | meaning |", "|---|---|---|---|---|", *rows]
    return "\n\n".join(filter(None, [f"### {cls.__name__} {{ #{cls.__name__.lower()} }}", doc, "\n".join(table)]))


def _type(hint: typing.Any) -> tuple[str, str]:
    """A field's type without its limits, and what is allowed, of a list also of its items."""
    kind, limits = split(hint)
    arguments = typing.get_args(kind)
    if kind is type(None):
        return "null", ""
    if isinstance(kind, type) and not arguments:
        return kind.__name__, ", ".join(map(str, limits))
    parts = [("...", "") if part is Ellipsis else _type(part) for part in arguments]
    names = [name for name, _ in parts]
    name = f"tuple[{', '.join(names)}]" if typing.get_origin(kind) is tuple else " | ".join(names)
    inner = ", ".join(dict.fromkeys(text for _, text in parts if text))
    own = ", ".join(map(str, limits))
    return name, "; ".join(filter(None, [own, inner and (f"each {inner}" if name.startswith("tuple") else inner)]))


def _default(one: dataclasses.Field) -> str:
    if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
        return "required"
    value = one.default_factory() if one.default is dataclasses.MISSING else one.default
    items = value if isinstance(value, tuple) else (value,)
    if items and all(dataclasses.is_dataclass(item) for item in items):
        return "<br>".join(_changed(item) for item in items)
    return f"`{json.dumps(value)}`"


def _changed(value: typing.Any) -> str:
    """A link to the class, and what differs from its own defaults."""
    name = type(value).__name__
    changes = {
        f.name: json.dumps(_plain(getattr(value, f.name)))
        for f in dataclasses.fields(value)
        if f.default is not dataclasses.MISSING and getattr(value, f.name) != f.default
    }
    return f"[{name}](#{name.lower()})" + "".join(f"<br>`{key}: {text}`" for key, text in changes.items())


def _plain(value: typing.Any) -> typing.Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def presets() -> str:
    """The entries in which the presets differ."""
    flat = {name: dict(_leaves(dataclasses.asdict(one))) for name, one in PRESETS.items()}
    longest_first = sorted(flat.values(), key=len, reverse=True)  # so that all levels of one stand together
    keys = list(dict.fromkeys(key for one in longest_first for key in one if key != "preset"))
    rows = [[one.get(key, "") for one in flat.values()] for key in keys]
    lines = [f"| entry | {' | '.join(f'`{name}`' for name in flat)} |", "|---|" + "---|" * len(flat)]
    for key, row in zip(keys, rows, strict=True):
        if len(set(row)) > 1:
            lines.append(f"| `{key}` | {' | '.join(text and f'`{text}`' for text in row)} |")
    return "\n".join(lines)


def _leaves(data: typing.Any, where: str = "") -> typing.Iterator[tuple[str, str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{where}.{key}" if where else key)
    elif isinstance(data, tuple) and any(isinstance(value, dict) for value in data):
        for i, value in enumerate(data):
            yield from _leaves(value, f"{where}[{i}]")
    else:
        yield where, json.dumps(data)


# ---- command line -----------------------------------------------------------------------------------------


def commands() -> str:
    """``nephi COMMAND --help`` of every command."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # the width that argparse wraps at
    try:
        parser = command_parser()
        (choice,) = (a for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict))
        texts = {f"nephi {name}": sub.format_help() for name, sub in choice.choices.items()}
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n\n".join(f"## {name}\n\n```text\n{text.rstrip()}\n```" for name, text in texts.items())


GENERATORS = {"settings": settings, "presets": presets, "commands": commands}

# ---- mkdocs -----------------------------------------------------------------------------------------------


def on_files(files, config):
    from mkdocs.structure.files import File

    for folder in PICTURES:
        for path in sorted((ROOT / folder).glob("*.png")):
            where = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, where, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = _GENERATED.sub(lambda m: GENERATORS[m[1]](*m[2].split()), markdown)

    def link(m):
        return m[1] + _address(m[2], page.file.src_uri, config.repo_url) + (m[3] or "") + m[4]

    return _LINK.sub(link, markdown)


def _address(link: str, page: str, repository: str) -> str:
    """Links of pages work in the repository; those that leave ``docs`` lead to the copied picture, or to the host."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if target.startswith("docs/") or not (ROOT / target).exists():
        return link
    if posixpath.dirname(target) in PICTURES:
        return posixpath.relpath(target, posixpath.dirname(page) or ".")
    return f"{repository.rstrip('/')}/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}"
