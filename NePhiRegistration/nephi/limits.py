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

LARGEST = 1e9  # of any number; those that cost memory or time have stricter limits


@dataclass(frozen=True)
class Above:
    """A number larger than ``bound``."""

    bound: float

    def allows(self, value: Any) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound:.7g}"


@dataclass(frozen=True)
class AtLeast:
    """A number not below ``bound``."""

    bound: float

    def allows(self, value: Any) -> bool:
        return value >= self.bound

    def __str__(self) -> str:
        return f"{self.bound:.7g} or more"


@dataclass(frozen=True)
class AtMost:
    """A number not above ``bound``."""

    bound: float

    def allows(self, value: Any) -> bool:
        return value <= self.bound

    def __str__(self) -> str:
        return f"at most {self.bound:.7g}"


@dataclass(frozen=True)
class Odd:
    """An odd number."""

    def allows(self, value: Any) -> bool:
        return value % 2 == 1

    def __str__(self) -> str:
        return "odd"


class OneOf:
    """One of some values, or of the names in a registry, which determines the other fields."""

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
Seed = Annotated[int, AtLeast(0), AtMost(2**63 - 1)]


def split(hint: Any) -> tuple[Any, tuple]:
    """A field's type without its limits, and the limits."""
    if typing.get_origin(hint) is Annotated:
        kind, *limits = typing.get_args(hint)
        return kind, tuple(limits)
    return hint, ()


def check_limits(settings: Any, where: str = "", names: bool = True) -> None:
    """Raise NephiError for the first value in a settings object that its field does not allow.

    A class whose fields depend on each other describes a conflict by ``contradiction()``, or returns "". ``where``: a
    prefix for the name of the field; ``names``: also for a name that no registry knows.
    """
    _check_fields(settings, f"settings: {where}", names)


def check_value(value: Any, hint: Any, name: str) -> None:
    """Raise NephiError for an argument that its declared type, limits included, does not allow."""
    value = value.item() if hasattr(value, "item") else value  # of NumPy
    _check(value, hint, name, names=True)


def _check_fields(settings: Any, where: str, names: bool) -> None:
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value, limits = getattr(settings, name), split(hint)[1]
        registry = next((one.registry for one in limits if isinstance(one, OneOf) and one.registry), None)
        if registry is None:
            _check(value, hint, f"{where}{name}", names)
            continue
        if names:
            registry.check(value)
        wanted = registry.known_settings(value)
        if wanted is not None and wanted is not type(settings):
            raise NephiError(
                f"{where}{name} is {value!r}, whose settings are {wanted.__name__}, "
                f"not {type(settings).__name__}; nephi.config.of_kind makes them"
            )
    wrong = settings.contradiction() if hasattr(settings, "contradiction") else ""
    if wrong:
        raise NephiError(f"{where}{wrong}")


def _check(value: Any, hint: Any, where: str, names: bool) -> None:
    kind, limits = split(hint)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return
        several = [one for one in arguments if typing.get_origin(split(one)[0]) is tuple]
        single = [one for one in arguments if one not in several and one is not type(None)]
        _check(value, (several if several and (isinstance(value, tuple) or not single) else single)[0], where, names)
        return
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, kind):
            raise NephiError(f"{where} is {value!r}, expected {kind.__name__}")
        _check_fields(value, f"{where}.", names)
        return
    if typing.get_origin(kind) is tuple:
        wanted = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, tuple) or wanted not in (None, len(value)):
            raise NephiError(f"{where} is {value!r}, expected a list{'' if wanted is None else f' of {wanted}'}")
    if kind in (int, float):
        limits = _of_a_number(value, kind, limits, where)
    for limit in limits:
        if not limit.allows(value):
            raise NephiError(f"{where} is {value!r}, must be {', '.join(map(str, limits))}")
    if typing.get_origin(kind) is tuple:
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        for i, (item, part) in enumerate(zip(value, inner, strict=True)):
            _check(item, part, f"{where}[{i}]", names)


def _of_a_number(value: Any, kind: type, limits: tuple, where: str) -> tuple:
    """The limits of a number, including those of all numbers. Raises NephiError for other values."""
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, bool) or (finite and not isinstance(value, (int, kind))):
        raise NephiError(f"{where} is {value!r}, expected {kind.__name__}")
    if any(isinstance(limit, OneOf) for limit in limits):
        return limits
    if not any(isinstance(limit, (AtLeast, Above)) for limit in limits):
        limits = (AtLeast(-LARGEST), *limits)
    if not any(isinstance(limit, AtMost) for limit in limits):
        limits = (*limits, AtMost(LARGEST))
    if not finite:
        raise NephiError(f"{where} is {value}, must be finite, {', '.join(map(str, limits))}")
    return limits
