"""The server that browsers reach: it checks who asks and passes requests on to a process for each session."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator

from aiohttp import ClientSession, ClientTimeout, ClientWebSocketResponse, WSMsgType, web
from nephi.errors import NephiError

from .access import HEADERS, SECRET_HEADER, Access
from .processes import Processes, Session

_IDLE_S = 24 * 3600.0  # after which a session that no page shows is ended
_PASSED = ("Content-Type", "Content-Length", "Content-Disposition", "Content-Security-Policy", "Location")


class Launcher:
    """``spare``: a process that is starting already, so that the first page need not wait for all of it."""

    def __init__(self, processes: Processes, access: Access, most: int, spare: Session, cookie: str):
        self.processes, self.access, self.most, self.cookie = processes, access, most, cookie
        self.sessions: dict[str, Session] = {}
        self._spare: Session | None = spare

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._check], client_max_size=1 << 16)
        app.router.add_get("/", self._enter)
        app.router.add_route("*", "/s/{session}/{path:.*}", self._pass_on)
        app.cleanup_ctx.append(self._life)
        app.on_shutdown.append(self._end_all)
        return app

    async def _life(self, _app: web.Application) -> AsyncIterator[None]:
        self._client = ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False)
        watch = asyncio.ensure_future(self._watch())
        yield
        watch.cancel()
        await self._client.close()
        self.processes.folder.remove()

    async def _end_all(self, _app: web.Application) -> None:
        """Before the server waits for open connections, which end with their sessions."""
        spare = [] if self._spare is None else [self._spare]
        await asyncio.gather(*(session.end() for session in [*self.sessions.values(), *spare]))

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
            session = spare or await self.processes.begin()
            try:
                await session.ready()
            except NephiError as error:
                return _refusal(str(error), 500)
            session.browser = browser
            self.sessions[name] = session
        response = web.HTTPSeeOther(f"/s/{name}/index.html")
        response.set_cookie(self.cookie, browser, httponly=True, samesite="Lax", secure=request.secure)
        response.headers.update(HEADERS)
        return response

    # sessions

    async def _watch(self) -> None:
        """Forget sessions that have ended, and end those that nobody has looked at for long."""
        while True:
            await asyncio.sleep(1)
            for name, session in list(self.sessions.items()):
                idle = session.pages == 0 and time.monotonic() - session.left > _IDLE_S
                if idle or session.process.returncode is not None:
                    del self.sessions[name]
                    await session.end()

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


async def serve(launcher: Launcher, listening: socket.socket) -> web.AppRunner:
    """Answer browsers, until the runner that is returned is cleaned up."""
    runner = web.AppRunner(launcher.app(), access_log=None, shutdown_timeout=3)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    return runner
