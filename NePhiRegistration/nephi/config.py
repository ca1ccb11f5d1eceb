"""JSON files to and from frozen dataclasses; every entry is checked against its field's type."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import replace
from pathlib import Path

from .errors import NephiError
from .legacy_settings import upgraded
from .limits import check_limits, split
from .paths import read_text_file
from .registry import Registry


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. Raises NephiError if the file is missing or contains no object."""
    text = read_text_file(path, "settings")
    try:
        data = of_json(text)
    except ValueError as error:
        raise NephiError(f"settings {path} are not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise NephiError(f"settings {path} must be a JSON object")
    return data


def of_json(text: bytes) -> typing.Any:
    """The content of JSON in UTF-8. Raises ValueError if it is invalid, too deep, or has an entry twice."""
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _unique(entries: list[tuple[str, typing.Any]]) -> dict:
    """A dict of the entries. Raises ValueError if one is given twice, which JSON would silently drop."""
    names = [name for name, _ in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"'{twice[0]}' is given twice")
    return dict(entries)


def decode(base, data: dict, where: str = ""):
    """A settings object like ``base`` with the entries of ``data``, each checked against the field's type.

    Settings files of earlier versions are converted. Where an entry names another kind of thing than that of ``base``,
    the settings are those of that kind. Raises NephiError for an unknown entry or a value of another type; ``where``:
    what to write before an entry's name.
    """
    return _decode(base, data, where)


def set_by_site(kind, path: str | Path | None, what: str):
    """Values set by a site, from its JSON file (None: the defaults of the dataclass ``kind``).

    Missing entries keep their defaults; ``set_by`` is then the file's name. Raises NephiError, which names them as
    ``what``, for an unreadable file, an unknown entry or a value out of range.
    """
    return kind() if path is None else read_checked(kind(set_by=Path(path).name), path, what)


def read_checked(base, path: str | Path | None, what: str, **over):
    """``base`` with the entries of a JSON file (None: without one), and then those of ``over``, within their limits.

    Raises NephiError, which names them as ``what``.
    """
    try:
        values = replace(base if path is None else decode(base, read_json(path)), **over)
        check_limits(values)
    except NephiError as error:
        raise NephiError(f"{what}: {str(error).removeprefix('settings').lstrip(': ')}") from None
    return values


def of_kind(settings, name: str):
    """The settings of another kind, by its name: shared entries are kept, the rest has the defaults of that kind."""
    tag, registry, shared = _tag(type(settings))
    cls = registry.settings_of(name, shared)
    both = set(dataclasses.fields(cls)) & set(
        dataclasses.fields(settings)
    )  # inherited without a declaration of its own
    kept = {one.name: getattr(settings, one.name) for one in both}
    return cls(**{**kept, tag: name})


def _tag(cls: type) -> tuple[str, Registry, type]:
    """The field that names the kind of the settings, the registry of its names, and the fields that all kinds share."""
    for shared in reversed(cls.__mro__[:-1]):
        for name, hint in typing.get_type_hints(shared, include_extras=True).items():
            for limit in split(hint)[1]:
                if getattr(limit, "registry", None) is not None:
                    return name, limit.registry, shared
    raise LookupError(cls)


def _decode(base, data: dict, where: str):
    kind = ""
    try:
        tag, registry, shared = _tag(type(base))
    except LookupError:
        pass
    else:
        name = data.get(tag, getattr(base, tag))
        if isinstance(name, str):
            registered = name in registry  # which may load it
            if name != getattr(base, tag) or type(base) is not registry.settings_of(name, shared):
                base = of_kind(base, name)
            kind = f" of {registry.kind} '{name}'"
            if not registered:  # its further entries are unknown here
                data = {key: value for key, value in data.items() if hasattr(base, key)}
    data = upgraded(base, data)
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in data.items():
        if key not in hints:
            known = ", ".join(hints)
            raise NephiError(f"settings: unknown entry '{where}{key}'{kind} (known: {known})")
        changes[key] = _convert(value, hints[key], getattr(base, key), f"{where}{key}")
    return replace(base, **changes)


def _convert(value: typing.Any, kind: typing.Any, current: typing.Any, where: str) -> typing.Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        kind = next(a for a in arguments if a is not type(None))
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if hasattr(kind, "of_number") and isinstance(value, int) and not isinstance(value, bool):
            return kind.of_number(value)
        if isinstance(value, dict):
            return _decode(current if isinstance(current, kind) else kind(), value, f"{where}.")
    elif origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(v, arguments[0], None, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_convert(v, a, None, where) for v, a in zip(value, arguments, strict=True))
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise NephiError(f"settings: {where} is too large for a number") from None
    elif isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise NephiError(f"settings: {where} is {value!r}, expected {name}")
