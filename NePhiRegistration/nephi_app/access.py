"""Who may use the application: the token of its address, cookies of browsers that had it, names of the host."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SECRET_HEADER = "X-NePhi-Session"  # from the launcher to a session's process
HEADERS = {  # of every answer; Vue compiles the page's templates in the browser
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Start:
    """The start parameters of a session's process; ``temporary``: its own folder, ``secret``: required in requests."""

    root: str
    temporary: str
    secret: str


@dataclass
class Access:
    """``host``: the name or address that is listened on."""

    host: str = "127.0.0.1"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _browsers: set[str] = field(default_factory=set)

    @property
    def only_here(self) -> bool:
        """Whether no other computer can reach it."""
        return self.host in _LOOPBACK

    def is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def new_browser(self) -> str:
        """The value of a cookie for a browser that has shown the token."""
        self._browsers.add(made := secrets.token_urlsafe(32))
        return made

    def knows(self, browser: str) -> bool:
        return browser in self._browsers

    def serves(self, host: str) -> bool:
        """Whether a request's Host header names this application; a page elsewhere may have a name that leads here."""
        name = urlsplit(f"//{host}").hostname or ""
        if self.only_here:
            return name in _LOOPBACK
        return name in (self.host.lower(), *_LOOPBACK) or _is_any(self.host)

    @staticmethod
    def is_own(origin: str | None, host: str) -> bool:
        """Whether an Origin header, where there is one, is that of the application's own pages."""
        return origin is None or urlsplit(origin).netloc == host


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
