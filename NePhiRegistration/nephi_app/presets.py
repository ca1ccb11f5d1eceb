"""The user's own presets in the page: what is chosen there, kept under a name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib.choices import Preset
from NePhiRegistrationLib.ownpresets import OwnPresets

from .inputs import OWN, Inputs


def own_presets() -> OwnPresets:
    """Those of whoever runs the command, in their folder of settings."""
    return OwnPresets(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nephi" / "presets")


class Presets:
    """``fail``: tells the user one line."""

    def __init__(self, server: Any, inputs: Inputs, fail: Callable[[str], None]):
        self.state, self.inputs, self._fail = server.state, inputs, fail
        for name in ("save_preset", "remove_preset"):
            server.trigger(name)(getattr(self, name))
        self._offer(self.state.preset)

    def save_preset(self) -> None:
        """Settings as they are chosen now, under the name that is given; an earlier preset of that name is replaced."""
        if not str(self.state.own_preset).strip():  # or pressed twice
            return
        try:
            path = self.inputs.own.save(str(self.state.own_preset), self.inputs.checked().settings())
        except (NephiError, OSError, ValueError) as error:
            self._fail(str(error))
            return
        with self.state:
            self.state.own_preset = self.state.error = ""
            self._offer(OWN + path.stem)

    def remove_preset(self) -> None:
        """The one that is chosen."""
        if not self.state.preset.startswith(OWN):
            return
        try:
            self.inputs.own.remove(self.state.preset.removeprefix(OWN))
        except (NephiError, OSError) as error:
            self._fail(str(error))
        with self.state:
            self._offer(Preset.BALANCED.term)

    def _offer(self, chosen: str) -> None:
        own = [{"value": OWN + name, "text": name} for name in self.inputs.own.names()]
        self.state.presets = [*({"value": p.term, "text": p.label()} for p in Preset), *own]
        self.state.preset = chosen
