"""The server that browsers reach: it checks who asks and passes requests on to a process for each session."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, ClientWebSocketResponse, WSMsgType, web
from nephi.errors import NephiError
from nephi.process import engine_environment
from nephi.runfolder import RunFolder, remove_abandoned

from .access import HEADERS, SECRET_HEADER, Access, Start

FIRST_PORT = 8650
_PORTS = 20
_IDLE_S = 24 * 3600.0  # after which a session that no page shows is ended
_READY_S = 60.0
_PASSED = ("Content-Type", "Content-Length", "Content-Disposition", "Content-Security-Policy", "Location")


@dataclass
class Session:
    browser: str
    process: asyncio.subprocess.Process
    secret: str
    folder: Path
    port: int = 0
    pages: int = 0  # that show it now
    left: float = field(default_factory=time.monotonic)  # when the last of them was closed


class Launcher:
    def __init__(self, root: Path, access: Access, most: int):
        self.root, self.access, self.most = root, access, most
        temporary = Path(tempfile.gettempdir())
        remove_abandoned(temporary)
        self.folder = RunFolder(temporary)
        self.sessions: dict[str, Session] = {}
        self._spare: asyncio.Task[Session] | None = None
        self.cookie = "nephi"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._check], client_max_size=1 << 16)
        app.router.add_get("/", self._enter)
        app.router.add_route("*", "/s/{session}/{path:.*}", self._pass_on)
        app.cleanup_ctx.append(self._life)
        app.on_shutdown.append(self._end_all)
        return app

    async def _life(self, _app: web.Application) -> AsyncIterator[None]:
        self._client = ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False)
        self._spare = asyncio.ensure_future(self._start())  # so that the first page need not wait
        watch = asyncio.ensure_future(self._watch())
        yield
        watch.cancel()
        await self._client.close()
        self.folder.remove()

    async def _end_all(self, _app: web.Application) -> None:
        """Before the server waits for open connections, which end with their sessions."""
        started = [] if self._spare is None else [self._spare]
        found = await asyncio.gather(*started, return_exceptions=True)
        spare = [session for session in found if isinstance(session, Session)]
        await asyncio.gather(*map(self._end, [*self.sessions.values(), *spare]))

    # who asks

    @web.middleware
    async def _check(self, request: web.Request, handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not self.access.serves(host) or not self.access.is_own(request.headers.get("Origin"), host):
            return _refusal("This address is not one that NePhi serves.")
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    def _browser(self, request: web.Request) -> str | None:
        browser = request.cookies.get(self.cookie, "")
        return browser if self.access.knows(browser) else None

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        """To the browser's session, or to a new one where it has none or asks for one."""
        browser, wants_new = self._browser(request), "new" in request.query
        if browser is None:
            if not self.access.is_token(request.query.get("token", "")):
                return _refusal("Open the address that <code>nephi app</code> printed: it holds the token.")
            browser = self.access.new_browser()
        known = [name for name, session in self.sessions.items() if session.browser == browser]
        if known and not wants_new:
            name = known[-1]
        elif len(self.sessions) >= self.most:
            return _refusal(f"There are {self.most} sessions already: end one of them first.", 503)
        else:
            name = secrets.token_urlsafe(16)
            spare, self._spare = self._spare, None
            session = await (spare or self._start())
            session.browser = browser
            self.sessions[name] = session
        response = web.HTTPSeeOther(f"/s/{name}/index.html")
        response.set_cookie(self.cookie, browser, httponly=True, samesite="Lax", secure=request.secure)
        response.headers.update(HEADERS)
        return response

    # sessions

    async def _start(self) -> Session:
        secret = secrets.token_urlsafe(32)
        folder = Path(tempfile.mkdtemp(prefix="session-", dir=self.folder.path))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nephi_app.session",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=engine_environment(),
            start_new_session=True,  # Ctrl-C is for the launcher
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        start = Start(str(self.root), str(folder), secret)
        process.stdin.write((json.dumps(asdict(start)) + "\n").encode())
        session = Session("", process, secret, folder)
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _READY_S)
            session.port = json.loads(line)["port"]
        except (TimeoutError, ValueError):
            await self._end(session)
            raise web.HTTPInternalServerError(text="A session could not be started: see the terminal.") from None
        return session

    async def _end(self, session: Session) -> None:
        """End the process, which ends a registration with it, and remove what it left."""
        assert session.process.stdin is not None
        session.process.stdin.close()
        try:
            await asyncio.wait_for(session.process.wait(), 5)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                session.process.kill()
            await session.process.wait()
        remove_abandoned(session.folder)
        await asyncio.to_thread(shutil.rmtree, session.folder, True)

    async def _watch(self) -> None:
        """Forget sessions that have ended, and end those that nobody has looked at for long."""
        while True:
            await asyncio.sleep(1)
            for name, session in list(self.sessions.items()):
                idle = session.pages == 0 and time.monotonic() - session.left > _IDLE_S
                if idle or session.process.returncode is not None:
                    del self.sessions[name]
                    await self._end(session)

    # requests of a session's page

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        browser, session = self._browser(request), self.sessions.get(request.match_info["session"])
        if browser is None:
            return _refusal("Open the address that <code>nephi app</code> printed: it holds the token.")
        if session is None or session.browser != browser:
            if request.headers.get("Upgrade") is None and request.method == "GET":
                raise web.HTTPSeeOther("/")
            raise web.HTTPNotFound
        url = f"http://127.0.0.1:{session.port}/{request.match_info['path']}"
        own = {SECRET_HEADER: session.secret}
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._relay(request, session, url, own)
        body = await request.read() or None
        try:
            async with self._client.request(
                request.method, url, params=request.query, headers=own, data=body, allow_redirects=False
            ) as answer:
                headers = {name: answer.headers[name] for name in _PASSED if name in answer.headers}
                response = web.StreamResponse(status=answer.status, headers={**HEADERS, **headers})
                await response.prepare(request)
                async for block in answer.content.iter_chunked(1 << 16):
                    await response.write(block)
                return response
        except OSError:  # the process has just ended
            raise web.HTTPSeeOther("/") from None

    async def _relay(self, request: web.Request, session: Session, url: str, own: dict) -> web.WebSocketResponse:
        page = web.WebSocketResponse(max_msg_size=0, compress=False, heartbeat=30)
        await page.prepare(request)
        session.pages += 1
        try:
            async with self._client.ws_connect(url, headers=own, max_msg_size=0) as engine:
                there, back = (asyncio.ensure_future(_copy(*pair)) for pair in ((page, engine), (engine, page)))
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                there.cancel()
                back.cancel()
        finally:
            session.pages -= 1
            session.left = time.monotonic()
            await page.close()
        return page


async def _copy(
    source: web.WebSocketResponse | ClientWebSocketResponse, target: web.WebSocketResponse | ClientWebSocketResponse
) -> None:
    async for message in source:
        if message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT:
            await target.send_str(message.data)


def _refusal(text: str, status: int = 403) -> web.Response:
    page = f"<!doctype html><title>NePhi</title><p style='font: 1rem system-ui; margin: 3rem'>{text}</p>"
    return web.Response(status=status, text=page, content_type="text/html", headers=HEADERS)


def run(root: Path, host: str = "127.0.0.1", port: int | None = None, browser: bool = True, most: int = 4) -> int:
    """Serve until it is interrupted; raises NephiError for a folder or an address that cannot be served."""
    if not root.is_dir():
        raise NephiError(f"{root} is not a folder")
    if most < 1:
        raise NephiError("at least one session must be allowed")
    access = Access(host)
    listening = _listen(host, port)
    return asyncio.run(_run(Launcher(root.resolve(), access, most), listening, browser))


def _listen(host: str, port: int | None) -> socket.socket:
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + _PORTS)
    reason = ""
    for wanted in ports:
        try:
            return socket.create_server((host, wanted), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    raise NephiError(f"cannot listen on {host}, port {port if port is not None else FIRST_PORT}: {reason}")


def _has_screen() -> bool:
    """Where there is none, a browser of the terminal would take that over."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


async def _run(launcher: Launcher, listening: socket.socket, browser: bool) -> int:
    port = listening.getsockname()[1]
    launcher.cookie = f"nephi-{port}"  # browsers share cookies between the ports of a host
    runner = web.AppRunner(launcher.app(), access_log=None, shutdown_timeout=3)
    await runner.setup()
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, ended.set)
    try:
        await web.SockSite(runner, listening).start()
        name = "127.0.0.1" if launcher.access.only_here else launcher.access.host
        if name in ("0.0.0.0", "::"):
            name = socket.gethostname()
        address = f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={launcher.access.token}"
        print(f"NePhi serves {launcher.root}\nOpen {address}\nCtrl-C ends it.")
        if not launcher.access.only_here:
            print("The connection is not encrypted: use it in a network that you trust, or through an SSH tunnel.")
        if browser and _has_screen():
            webbrowser.open(address)
        await ended.wait()
    finally:
        await runner.cleanup()
    return 0
