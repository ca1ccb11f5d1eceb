"""Errors, which end a run, and notices, which do not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class NephiError(Exception):
    """Input or settings that NePhi can't work with; the message says what is wrong and what to do."""


class NephiNotice(UserWarning):
    """Something about the input that was settled in a way the user should know of."""


def notice(text: str) -> None:
    """Inform the user through Python's warnings; ``collected_notices`` gathers them."""
    warnings.warn(NephiNotice(text), stacklevel=3)


@contextmanager
def collected_notices() -> Iterator[list[str]]:
    """The notices given inside the block, each once, instead of Python's warnings on stderr."""
    given: list[str] = []
    show = warnings.showwarning

    def keep(message, category, filename, lineno, file=None, line=None):
        if not issubclass(category, NephiNotice):
            show(message, category, filename, lineno, file, line)
        elif str(message) not in given:
            given.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", NephiNotice)
        warnings.showwarning = keep
        yield given
