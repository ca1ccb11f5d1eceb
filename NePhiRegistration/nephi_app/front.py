"""What of a session is there at once: the page and its dialog for files. The scene and the views follow.

They need VTK and Slicer, which take a second and more to import: nobody has to wait for that to see the page, to choose
settings and to look for files.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trame_client.ui.core import AbstractLayout
from trame_client.widgets import client, html
from trame_rca import module as rca

from . import state
from .access import Start
from .dialog import Dialog
from .files import Served

if TYPE_CHECKING:
    from .controller import Controller

_PAGE = Path(__file__).parent / "page"
_TITLES = {**state.SLICES, state.THREE_D: "3D"}
_PATIENCE_S = 2.0  # for a first page, before what it does not need is begun all the same


class Front:
    """``controller`` is there once all is; until then the page holds back what only that can do."""

    def __init__(self, server: Any, start: Start):
        self.server, self.start = server, start
        self.served = Served(Path(start.root))
        self.controller: Controller | None = None
        self.ended = asyncio.Event()  # by the user
        self._drawn = asyncio.Event()  # the page, for the first time
        server.enable_module(rca)  # pictures of the views; what the browser loads is told before the server starts
        root = self.served.root
        server.state.update(state.first(root.name or str(root), str(root)))
        self.dialog = Dialog(server, self.served)
        server.trigger("begin")(self._drawn.set)
        with AbstractLayout(server, html.Div(trame_server=server), template_name="main"):
            client.Style(_part("page.css"))
            client.Script(_part("page.js"))
            html.Div(_page_html())

    async def complete(self) -> None:
        """The scene, the views and what moves them, as soon as the page has been drawn or nobody asks for it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drawn.wait(), _PATIENCE_S)
        try:
            gc.disable()  # nothing of what is made until then goes again
            await asyncio.to_thread(import_module, f"{__package__}.controller")
            self.controller = self._controller()
        except Exception as error:  # whatever a display or a library that is missing causes
            traceback.print_exc()
            with self.server.state:
                self.server.state.error = f"The views could not be started: {error}"
            return
        finally:
            gc.enable()
        self.controller.begin()
        with self.server.state:
            self.server.state.ready = True

    def _controller(self) -> Controller:
        from .controller import Controller
        from .views import Views

        view_html = _part("view.html")

        def gutter(name: str) -> None:
            text = view_html if name in state.SLICES else _TITLE_ONLY
            html.Div(text.replace("NAME", name).replace("TITLE", _TITLES[name]), classes="gutter")

        views = Views(self.server, gutter)
        holder = html.Div(trame_server=self.server, style="height: 100%")
        with AbstractLayout(self.server, holder, template_name="views") as grid:
            views.place(grid)
        return Controller(self.server, self.served, Path(self.start.temporary), views, self.dialog, self.ended.set)


_TITLE_ONLY = '<div class="over" v-show="has_images"><span class="title">TITLE</span></div>'


def _part(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _page_html() -> str:
    pick = _part("pick.html")
    return re.sub(r"PICKS\((\w+)\)", lambda found: pick.replace("GROUP", found[1]), _part("page.html"))
