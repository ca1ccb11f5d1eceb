"""Standard output and error without escape sequences; a closed pipe does not end the work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from ..files.writing import visible


class Console:
    """A text stream that escapes control characters, and is silent once nobody reads it any more."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        text = visible(text, keep="\n\r\t")
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._as_long_as_read():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        with self._as_long_as_read():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _as_long_as_read(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # a closed or broken pipe, a terminal that is gone, a full disk
            self._silence()

    def _silence(self) -> None:
        """From here on to nowhere, at the end of the process, too."""
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream of no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._stream = _NOWHERE


class _Nowhere:
    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


_NOWHERE: TextIO = _Nowhere()  # type: ignore[assignment]


@contextlib.contextmanager
def consoles() -> Iterator[None]:
    """Standard output and error as ``Console``."""
    for number in (1, 2):  # closed by whoever started this: else the next file that is opened would take its place
        with contextlib.suppress(OSError):
            if sys.__stdout__ is None or sys.__stderr__ is None:
                _fill(number)
    out = Console(sys.stdout if sys.stdout is not None else _NOWHERE)
    error = Console(sys.stderr if sys.stderr is not None else _NOWHERE)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        yield


def _fill(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
