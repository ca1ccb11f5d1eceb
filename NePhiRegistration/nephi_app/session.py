"""One session: a process with a scene of its own, reached only through the launcher that started it.

Slicer's view code keeps one application logic a process, so that two scenes cannot live in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .access import SECRET_HEADER, Start

if TYPE_CHECKING:
    from .front import Front


def main() -> int:
    """Read how to start from standard input, say where this listens on standard output, end when input ends."""
    start = Start(**json.loads(sys.stdin.readline()))
    told = os.fdopen(os.dup(1), "w")  # trame and VTK write to standard output, too
    os.dup2(2, 1)
    os.environ["TMPDIR"] = tempfile.tempdir = start.temporary
    sys.argv = sys.argv[:1]  # trame reads it
    asyncio.run(_serve(start, told))
    return 0


async def _serve(start: Start, told: Any) -> None:
    from trame_server.core import Server

    from .front import Front

    server = Server("nephi")
    server.client_type = "vue3"
    front = Front(server, start)

    def bind(web: Any) -> None:
        _guard(web.app, start.secret)
        _add_files(web.app, front, Path(start.temporary))

    server.controller.on_server_bind.add(bind)

    def ready(**_: Any) -> None:
        told.write(json.dumps({"port": server.port}) + "\n")
        told.flush()

    server.controller.on_server_ready.add(ready)
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))  # the launcher holds the other end
    serving = server.start(
        port=0, host="127.0.0.1", exec_mode="coroutine", open_browser=False, show_connection_info=False, timeout=0,
        thread=True,
    )  # fmt: skip
    ends = (ended, asyncio.ensure_future(serving), asyncio.ensure_future(front.ended.wait()))
    completing = asyncio.ensure_future(front.complete())
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        completing.cancel()
        if front.controller is not None:
            front.controller.close()
            front.controller.results.found.clear()
        shutil.rmtree(start.temporary, ignore_errors=True)
        os._exit(0)  # the thread that reads standard input and VTK's objects would hold it up


def _guard(app: Any, secret: str) -> None:
    """Answer the launcher alone: anybody on this computer can reach the port."""
    from aiohttp import web

    @web.middleware
    async def check(request: Any, handler: Any) -> Any:
        given = request.headers.get(SECRET_HEADER, "")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            raise web.HTTPForbidden
        return await handler(request)

    app.middlewares.append(check)


def _add_files(app: Any, front: Front, temporary: Path) -> None:
    from aiohttp import web

    def results() -> Any:
        if front.controller is None:
            raise web.HTTPNotFound
        return front.controller.results

    async def report(_request: Any) -> Any:
        page = results().page_file()
        if page is None:
            raise web.HTTPNotFound
        return web.FileResponse(page, headers={"Content-Security-Policy": "sandbox allow-scripts"})

    async def result(request: Any) -> Any:
        if results().chosen is None:
            raise web.HTTPNotFound
        with _scratch(temporary) as folder:
            place = results().write(folder / "result")
            archive = await asyncio.to_thread(shutil.make_archive, str(folder / "archive"), "zip", str(place))
            return await send(request, Path(archive), "nephi-result.zip")

    async def made(request: Any) -> Any:
        wanted = results().applied.made.get(request.match_info["key"])
        if wanted is None:
            raise web.HTTPNotFound
        with _scratch(temporary) as folder:
            path = folder / wanted.file_name
            wanted.write(path)
            return await send(request, path, path.name)

    async def send(request: Any, path: Path, name: str) -> Any:
        kind = {"Content-Type": "application/octet-stream"}
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}", **kind}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                await response.write(block)
        return response

    app.router.add_get("/report.html", report)
    app.router.add_get("/result.zip", result)
    app.router.add_get("/made/{key}", made)


@contextlib.contextmanager
def _scratch(temporary: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=temporary))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
