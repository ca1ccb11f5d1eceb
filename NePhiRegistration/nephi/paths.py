"""Files given by the user: checked before they are opened or written; text files are read completely."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import NephiError
from .journal import complete_moves

_MOST_BYTES = 2**26  # of a text: lists, settings, landmarks and reports are far smaller


def check_name(path: str | Path, role: str) -> Path:
    """The path. Raises NephiError if it contains NUL or is not UTF-8, on which SimpleITK ends the process."""
    text = str(path)
    if "\0" in text:
        raise NephiError(f"{role}: {text!r} is not a file name: it contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NephiError(f"{role}: {ascii(text)} is not UTF-8, or the locale is not: rename it, or set LANG") from None
    return Path(path)


def check_file(path: str | Path, role: str, kind: str = "file") -> Path:
    """The path; raises NephiError unless it is a folder or a regular file that is not empty.

    What a killed run had begun to replace there, such as a result of which it is a part, is completed first.
    """
    path = check_name(path, role)
    complete_moves(path)
    try:
        if not path.exists():
            raise NephiError(f"{role}: no such {kind}: {path}")
        if not (path.is_dir() or path.is_file()):
            raise NephiError(f"{role}: {path} is not a regular file but a pipe, socket or device")
        if path.is_file() and path.stat().st_size == 0:
            raise NephiError(f"{role}: {path} is empty")
        return path
    except OSError as error:
        raise NephiError(f"{role}: cannot read {path}: {error.strerror}") from None


def resolved(path: str | Path) -> Path:
    """The path with links resolved; circular links are left as they are, and are not found later."""
    return Path(os.path.realpath(path))


def check_spared(outputs: Iterable[str | Path], options: Mapping[str, Any]) -> None:
    """Raise NephiError where a file that is to be written is there, and one of the options' values, an input, too."""
    places = {_place(path): path for path in outputs if os.path.isfile(path)}
    for value in options.values():
        for one in value if isinstance(value, list) else [value]:
            if places and isinstance(one, str) and (written := places.get(_place(one))) is not None:
                raise NephiError(f"{written} is an input that the output would replace; give another name or folder")


def _place(path: str | Path) -> str:
    """The location of a file itself, which may be a link."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def output_file(path: str) -> Path:
    """The path, checked: raises NephiError if its folder does not exist, or it is a folder itself."""
    file = Path(path)
    if not file.parent.is_dir():
        raise NephiError(f"output folder {file.parent} does not exist")
    if file.is_dir():
        raise NephiError(f"output {file} is a folder; give a file in it")
    return file


def read_text_file(path: str | Path, role: str) -> bytes:
    """All of a text file, as bytes, for texts come in several encodings; raises NephiError where it cannot be read."""
    path = check_file(path, role)
    try:
        if path.stat().st_size > _MOST_BYTES and path.is_file():
            raise NephiError(f"{role}: {path} has {path.stat().st_size / 1e6:.0f} MB, too much for a text file")
        return path.read_bytes()
    except OSError as error:
        raise NephiError(f"{role}: cannot read {path}: {error.strerror}") from None
