"""Names in settings files and the classes they refer to; other packages can add theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import NephiError

T = TypeVar("T")


class Registry(Generic[T]):
    """The names that an entry of the settings can have, each for a ``kind`` of object made by a factory.

    Other packages add theirs by ``add``, or by an entry point of the group ``nephi.<kind>`` (a factory by its name), so
    that settings files and the command line know them, too.
    """

    def __init__(self, kind: str, entry: str, *names: str):
        """``entry``: the entry of the settings with the name; ``names``: the package's own names."""
        self.kind, self.entry = kind, entry
        self._factories: dict[str, Callable[..., T] | None] = dict.fromkeys(names)  # the package's own are added later
        self._settings: dict[str, type] = {}

    def __iter__(self) -> Iterator[str]:
        """The names known now."""
        return iter(tuple(self._factories))

    def __len__(self) -> int:
        return len(self._factories)

    def __contains__(self, name: object) -> bool:
        """Whether the name is known; an entry point of that name is loaded if necessary."""
        if isinstance(name, str) and name not in self._factories:
            for point in entry_points(group=f"nephi.{self.kind}", name=name):
                self.add(name, point.load())
        return name in self._factories

    def add(self, name: str, factory: Callable[..., T], settings: type | None = None) -> None:
        """Register a factory under a name. Raises NephiError if the name is taken.

        ``settings``: the dataclass of its settings, if these have more fields than the shared ones.
        """
        if self._factories.get(name) not in (None, factory):
            raise NephiError(f"there is a {self.kind} '{name}' already: choose another name")
        self._factories[name] = factory
        if settings is not None:
            self.describe(name, settings)

    def describe(self, name: str, settings: type) -> None:
        """The dataclass that holds the settings of a name, and no field of another one."""
        self._settings[name] = settings

    def known_settings(self, name: str) -> type | None:
        """Declare the dataclass of a name's settings, if they have fields of their own."""
        return self._settings.get(name)

    def settings_of(self, name: str, shared: type) -> type:
        """The dataclass of a name's settings; without one ``shared``, that of the common settings."""
        return self._settings.get(name, shared)

    def check(self, name: str) -> None:
        """Raise NephiError for an unknown name."""
        if name not in self:
            raise NephiError(f"settings: {self.entry} is {name!r}, must be one of {', '.join(self)}")

    def make(self, name: str, *arguments: Any) -> T:
        """The object of that name. Raises NephiError if there is none."""
        self.check(name)
        factory = self._factories[name]
        assert factory is not None, f"the module of {self.kind} '{name}' was not imported"
        return factory(*arguments)
