"""Where connections lead."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

_UNIX = "unix:"


class Origin(msgspec.Struct, frozen=True):
    """Where connections lead. path: of a unix socket, "" for TCP."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, base_url: str) -> Origin:
        """The origin of "http://HOST:PORT", "https://HOST" or "unix:/PATH"."""
        if base_url.startswith(_UNIX):
            return cls("http", "localhost", 80, "/" + base_url.removeprefix(_UNIX).lstrip("/"))
        parts = urlsplit(base_url)
        return cls(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def host_header(self) -> bytes:
        """As RFC 9110, 7.2 wants it: the default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return (host if self.port == default else f"{host}:{self.port}").encode()

    def __str__(self) -> str:
        if self.path:
            return _UNIX + self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
