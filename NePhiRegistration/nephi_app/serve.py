"""``nephi app`` from its arguments to Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import webbrowser
from pathlib import Path

from nephi.errors import NephiError

from .access import Access
from .processes import Processes

FIRST_PORT = 8650
_PORTS = 20


def run(root: Path, host: str = "127.0.0.1", port: int | None = None, browser: bool = True, most: int = 4) -> int:
    """Serve until it is interrupted; raises NephiError for a folder or an address that cannot be served."""
    if not root.is_dir():
        raise NephiError(f"{root} is not a folder")
    if most < 1:
        raise NephiError("at least one session must be allowed")
    listening = _listen(host, port)
    return asyncio.run(_run(root.resolve(), Access(host), most, listening, browser))


def _listen(host: str, port: int | None) -> socket.socket:
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + _PORTS)
    reason = ""
    for wanted in ports:
        try:
            return socket.create_server((host, wanted), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    raise NephiError(f"cannot listen on {host}, port {port if port is not None else FIRST_PORT}: {reason}")


async def _run(root: Path, access: Access, most: int, listening: socket.socket, browser: bool) -> int:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, ended.set)
    processes = Processes(root)
    spare = await processes.begin()
    from .launcher import Launcher, serve  # while the session's process starts, which takes longer

    port = listening.getsockname()[1]
    cookie = f"nephi-{port}"  # browsers share cookies between the ports of a host
    runner = await serve(Launcher(processes, access, most, spare, cookie), listening)
    try:
        address = _address(access, port)
        print(f"NePhi serves {root}\nOpen {address}\nCtrl-C ends it.")
        if not access.only_here:
            print("The connection is not encrypted: use it in a network that you trust, or through an SSH tunnel.")
        if browser and _has_screen():
            webbrowser.open(address)
        await ended.wait()
    finally:
        await runner.cleanup()
    return 0


def _address(access: Access, port: int) -> str:
    name = "127.0.0.1" if access.only_here else access.host
    if name in ("0.0.0.0", "::"):
        name = socket.gethostname()
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={access.token}"


def _has_screen() -> bool:
    """Where there is none, a browser of the terminal would take that over."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
