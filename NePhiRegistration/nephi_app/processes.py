"""The processes of sessions: started, listened to until they serve, ended with all that they left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nephi.errors import NephiError
from nephi.process import engine_environment
from nephi.runfolder import RunFolder, remove_abandoned

from .access import Start

_READY_S = 60.0


@dataclass
class Session:
    process: asyncio.subprocess.Process
    secret: str
    folder: Path
    browser: str = ""
    port: int = 0
    pages: int = 0  # that show it now
    left: float = field(default_factory=time.monotonic)  # when the last of them was closed

    async def ready(self) -> None:
        """Until it serves; raises NephiError where it does not."""
        assert self.process.stdout is not None
        try:
            self.port = json.loads(await asyncio.wait_for(self.process.stdout.readline(), _READY_S))["port"]
        except (TimeoutError, ValueError):
            await self.end()
            raise NephiError("A session could not be started: see the terminal.") from None

    async def end(self) -> None:
        """End the process, which ends a registration with it, and remove what it left."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        remove_abandoned(self.folder)
        await asyncio.to_thread(shutil.rmtree, self.folder, True)


class Processes:
    """Of sessions that open files of ``root``."""

    def __init__(self, root: Path):
        self.root = root
        temporary = Path(tempfile.gettempdir())
        remove_abandoned(temporary)
        self.folder = RunFolder(temporary)

    async def begin(self) -> Session:
        """A process that is starting, which takes seconds: wait for ``ready``."""
        start = Start(
            str(self.root), tempfile.mkdtemp(prefix="session-", dir=self.folder.path), secrets.token_urlsafe(32)
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nephi_app.session",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=engine_environment(),
            start_new_session=True,  # Ctrl-C is for the launcher
            cwd=start.temporary,  # Python looks there for packages, too: files that are served are none
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write((json.dumps(asdict(start)) + "\n").encode())
        return Session(process, start.secret, Path(start.temporary))
