"""What exists once for the fixed and once for the moving image, as one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, overload

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R = TypeVar("R")


class Both(NamedTuple, Generic[A]):
    """A value of the fixed image and the same of the moving one."""

    fixed: A
    moving: A

    @property
    def swapped(self) -> Both[A]:
        return Both(self.moving, self.fixed)

    @overload
    def map(self, f: Callable[[A], R]) -> Both[R]: ...

    @overload
    def map(self, f: Callable[[A, B], R], second: Both[B], /) -> Both[R]: ...

    @overload
    def map(self, f: Callable[[A, B, C], R], second: Both[B], third: Both[C], /) -> Both[R]: ...

    def map(self, f: Callable[..., R], *others: Both[Any]) -> Both[R]:
        """``f`` of the fixed value (and of the others' fixed values), then of the moving one."""
        return Both(*(f(*values) for values in zip(self, *others, strict=True)))


def complete(fixed: A | None, moving: A | None) -> Both[A] | None:
    """Both values, if both are given; else None."""
    return None if fixed is None or moving is None else Both(fixed, moving)


ROLES = Both("fixed", "moving")
