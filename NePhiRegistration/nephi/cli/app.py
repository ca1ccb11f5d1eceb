"""``nephi app``: the registration panel in a browser, a package of its own with needs of its own."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..errors import NephiError

_NEEDED = ("nephi_app", "slicer", "trame_slicer", "aiohttp")


def app_command(options) -> int:
    if any(find_spec(name) is None for name in _NEEDED):
        raise NephiError('the browser application is not installed: pip install "nephi[app]"')
    return import_module("nephi_app.serve").run(
        Path(options.folder), options.host, options.port, not options.no_browser, options.sessions
    )
