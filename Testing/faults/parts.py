"""The parts of the campaign by name: each runs one case from its kind and seed."""

from __future__ import annotations

from collections.abc import Callable

from .fuzz import READERS, fuzz
from .geometry import PROPERTIES, check_property
from .pool import Outcome
from .runs import FAULTS, fault

PARTS: dict[str, Callable[[str, int], Outcome]] = {"fuzz": fuzz, "property": check_property, "fault": fault}
KINDS: dict[str, list[str]] = {"fuzz": list(READERS), "property": list(PROPERTIES), "fault": list(FAULTS)}
