"""Limits of settings, declared at the field (``Annotated[float, Above(0)]``) and checked by one walk."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from .errors import NephiError
from .registry import Registry

LARGEST = 1e9  # of any number; what takes memory or time has limits of its own


@dataclass(frozen=True)
class Above:
    """A number larger than ``bound``."""

    bound: float

    def allows(self, value: Any) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound:g}"


@dataclass(frozen=True)
class AtLeast:
    """A number not below ``bound``."""

    bound: float

    def allows(self, value: Any) -> bool:
        return value >= self.bound

    def __str__(self) -> str:
        return f"{self.bound:g} or more"


@dataclass(frozen=True)
class AtMost:
    """A number not above ``bound``."""

    bound: float

    def allows(self, value: Any) -> bool:
        return value <= self.bound

    def __str__(self) -> str:
        return f"at most {self.bound:g}"


@dataclass(frozen=True)
class Odd:
    """An odd number."""

    def allows(self, value: Any) -> bool:
        return value % 2 == 1

    def __str__(self) -> str:
        return "odd"


class OneOf:
    """One of some values, or of the names in a registry, which then says what the other fields are."""

    def __init__(self, *choices: Any):
        self.registry = choices[0] if choices and isinstance(choices[0], Registry) else None
        self.choices = choices

    def allows(self, value: Any) -> bool:
        return value in (self.choices if self.registry is None else self.registry)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.choices if self.registry is None else self.registry))}"


@dataclass(frozen=True)
class NotEmpty:
    """A list of at least one item."""

    def allows(self, value: Any) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "a list of at least one item"


Share = Annotated[float, AtLeast(0), AtMost(1)]
Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
Count = Annotated[int, AtLeast(1)]


def split(hint: Any) -> tuple[Any, tuple]:
    """A field's type without its limits, and the limits, with those that every number has."""
    limits: tuple = ()
    if typing.get_origin(hint) is Annotated:
        hint, *found = typing.get_args(hint)
        limits = tuple(found)
    if hint in (int, float) and not any(isinstance(limit, OneOf) for limit in limits):
        if not any(isinstance(limit, AtLeast | Above) for limit in limits):
            limits = (AtLeast(-LARGEST), *limits)
        if not any(isinstance(limit, AtMost) for limit in limits):
            limits = (*limits, AtMost(LARGEST))
    return hint, limits


def describe(limits: tuple) -> str:
    """What is allowed, in words; the bounds that all numbers have are left out."""
    own = [str(limit) for limit in limits if abs(getattr(limit, "bound", 0)) != LARGEST]
    return ", ".join(own)


def check_limits(settings: Any, where: str = "", names: bool = True) -> None:
    """Raise NephiError for the first value, anywhere in a settings object, that its field does not allow.

    ``where``: what to write before the field's name; ``names``: also for a name that no registry knows.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        _check(getattr(settings, name), hint, f"{where}{name}", names)


def _check(value: Any, hint: Any, where: str, names: bool) -> None:
    kind, limits = split(hint)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if value is not None:
            _check(value, next(a for a in typing.get_args(kind) if a is not type(None)), where, names)
        return
    if dataclasses.is_dataclass(kind):
        check_limits(value, f"{where}.", names)
        return
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NephiError(f"settings: {where} is {value!r}, expected {kind.__name__}")
        if not math.isfinite(value):
            rest = describe(limits)
            raise NephiError(f"settings: {where} is {value}, must be finite{rest and f', {rest}'}")
    for limit in limits:
        if isinstance(limit, OneOf) and limit.registry is not None:
            if names:
                limit.registry.check(value)
        elif not limit.allows(value):
            # numbers need no quotes; the bound itself is named even where all numbers have it
            text = describe(limits) or str(limit)
            if abs(getattr(limit, "bound", 0)) == LARGEST and str(limit) not in text:
                text = f"{text}, {limit}"
            raise NephiError(f"settings: {where} is {value!r}, must be {text}")
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        for i, (item, part) in enumerate(zip(value, inner, strict=True)):
            _check(item, part, f"{where}[{i}]", names)
