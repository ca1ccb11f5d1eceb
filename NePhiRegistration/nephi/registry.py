"""Names in settings files and the classes that they stand for, open to those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import NephiError

T = TypeVar("T")


class Registry(Generic[T]):
    """What a name in the settings may stand for: a ``kind`` of thing, made by a factory.

    Other packages add theirs by ``add``, or by an entry point of the group ``nephi.<kind>`` (a factory by its name), so
    that settings files and the command line know them, too.
    """

    def __init__(self, kind: str, entry: str, *names: str):
        """``entry``: of the settings, that holds the name; ``names``: of the package's own."""
        self.kind, self.entry = kind, entry
        self._factories: dict[str, Callable[..., T] | None] = dict.fromkeys(names)  # the package's own are added later
        self._settings: dict[str, type] = {}

    def __iter__(self) -> Iterator[str]:
        """The names known now."""
        return iter(tuple(self._factories))

    def __len__(self) -> int:
        return len(self._factories)

    def __contains__(self, name: object) -> bool:
        """Whether the name is known, if need be by an entry point, which is then loaded."""
        if isinstance(name, str) and name not in self._factories:
            for point in entry_points(group=f"nephi.{self.kind}", name=name):
                self.add(name, point.load())
        return name in self._factories

    def add(self, name: str, factory: Callable[..., T], settings: type | None = None) -> None:
        """Let a name stand for what ``factory`` makes; raises NephiError if another one has it.

        ``settings``: the dataclass of its settings, where they have more fields than those that all have.
        """
        if self._factories.get(name) not in (None, factory):
            raise NephiError(f"there already is a {self.kind} '{name}': choose another name")
        self._factories[name] = factory
        if settings is not None:
            self.describe(name, settings)

    def describe(self, name: str, settings: type) -> None:
        """The dataclass that holds the settings of a name, and no field of another one."""
        self._settings[name] = settings

    def known_settings(self, name: str) -> type | None:
        """The dataclass of a name's settings, where they have fields of their own."""
        return self._settings.get(name)

    def settings_of(self, name: str, shared: type) -> type:
        """The dataclass of a name's settings, else ``shared``: that of what all have."""
        return self._settings.get(name, shared)

    def check(self, name: str) -> None:
        """Raise NephiError for a name that stands for nothing."""
        if name not in self:
            raise NephiError(f"settings: {self.entry} is {name!r}, must be one of {', '.join(self)}")

    def make(self, name: str, *arguments: Any) -> T:
        """The thing of that name; raises NephiError if there is none."""
        self.check(name)
        factory = self._factories[name]
        assert factory is not None, f"the module of {self.kind} '{name}' was not imported"
        return factory(*arguments)
