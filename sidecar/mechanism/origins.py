"""Where connections lead."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

EXPECTED = '"http://HOST:PORT", "https://HOST" or "unix:/PATH"'
SOCKET_BYTES = 107  # of the path of a unix socket (sockaddr_un), but for the 0 at its end

_TOO_MUCH = "expected no query, fragment or credentials (a key goes into api_key), nor spaces and line breaks"
_UNIX = "unix:"
_URL = re.compile(r"[\x21-\x22\x24-\x3e\x40-\x7e]*")  # urlsplit would take line breaks out unasked


class Origin(msgspec.Struct, frozen=True, cache_hash=True):
    """Where connections lead. path: of a unix socket, "" for TCP. prefix: of all paths that are asked for there."""

    scheme: str
    host: str
    port: int
    path: str = ""
    prefix: str = ""

    @classmethod
    def of(cls, base_url: str) -> Origin:
        """The origin of "http://HOST:PORT/PREFIX", "https://HOST" or "unix:/PATH"."""
        if path := socket_of(base_url):
            return cls("http", "localhost", 80, path)
        parts = urlsplit(base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname or "", port, prefix=parts.path.rstrip("/"))

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


def socket_of(base_url: str) -> str:
    """The path of a unix socket; "" for any other URL."""
    return "/" + base_url.removeprefix(_UNIX).lstrip("/") if base_url.startswith(_UNIX) else ""


def check(base_url: str) -> None:
    """Raise ValueError if there is no origin of that URL; without it, for it may hold a secret."""
    if base_url.startswith(_UNIX):
        _check_socket(base_url)
        return
    if not _URL.fullmatch(base_url):
        raise ValueError(_TOO_MUCH)
    parts = urlsplit(base_url)
    _ = parts.port  # raises ValueError
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected {EXPECTED}")
    if parts.username is not None:
        raise ValueError(_TOO_MUCH)


def _check_socket(base_url: str) -> None:
    if not base_url.removeprefix(_UNIX).startswith("/") or not base_url.isprintable():
        raise ValueError("expected the absolute path of a socket after unix:")
    if len(socket_of(base_url).encode()) > SOCKET_BYTES:
        raise ValueError(f"expected the path of a socket to have at most {SOCKET_BYTES} bytes")
