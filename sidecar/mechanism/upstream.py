"""Talks HTTP to servers: short probes, and what a proxy passes on and what not."""

from __future__ import annotations

from collections.abc import Iterable

import httpx

from plugin_sdk import Reply
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.hop_by_hop import HOP_BY_HOP
from sidecar.mechanism.origins import Origin, socket_of
from sidecar.mechanism.pool import Pool

Pair = tuple[bytes, bytes]

# A probe's connection is not kept: the next one may find another server on the port.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)

_PLAIN = frozenset(
    (b"close", b"keep-alive", b"upgrade", b"te")
)  # what Connection names as a rule, and is dropped anyway


class Client:
    """A pool of connections for what is relayed, and probes over httpx."""

    def __init__(self) -> None:
        self.pool = Pool()
        self._http = httpx.AsyncClient(limits=_LIMITS, trust_env=False, follow_redirects=False)
        self._sockets: dict[str, httpx.AsyncClient] = {}  # by path

    def probe(self, base_url: str, headers: RawHeaders = ()) -> ProbeUpstream:
        """The server at `base_url`, as an interface's `ready` sees it."""
        path = socket_of(base_url)
        return ProbeUpstream(self._over(path) if path else self._http, base_url, headers)

    async def close(self) -> None:
        """Close all connections."""
        self.pool.close()
        for http in (self._http, *self._sockets.values()):
            await http.aclose()

    def _over(self, path: str) -> httpx.AsyncClient:
        http = self._sockets.get(path)
        if http is None:
            transport = httpx.AsyncHTTPTransport(uds=path, limits=_LIMITS)
            http = self._sockets[path] = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)
        return http


class ProbeUpstream:
    """Requests with no deadline but the caller's (plugin_sdk.Upstream). Raises OSError when there is no answer."""

    def __init__(self, http: httpx.AsyncClient, base_url: str, headers: RawHeaders) -> None:
        self._http = http
        self._base_url = base_url
        self._headers = list(headers)

    async def get(self, path: str) -> Reply:
        return await self._send("GET", path, None)

    async def post(self, path: str, body: bytes) -> Reply:
        return await self._send("POST", path, body)

    async def get_at_most(self, path: str, most_bytes: int) -> Reply:
        """The same as `get`, for an answer that may be of any size. Raises OSError if it is larger."""
        try:
            response = await self._http.send(self._request("GET", path, None), stream=True)
            try:
                body = b""
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > most_bytes:
                        raise OSError(f"{Origin.of(self._base_url)}: {path} has more than {most_bytes} bytes")
            finally:
                await response.aclose()
                _let_go(response)
        except httpx.HTTPError as error:
            raise self._silent(error) from error
        return Reply(response.status_code, body)

    async def _send(self, method: str, path: str, body: bytes | None) -> Reply:
        try:
            response = await self._http.send(self._request(method, path, body))
        except httpx.HTTPError as error:
            raise self._silent(error) from error
        _let_go(response)
        return Reply(response.status_code, response.content)

    def _request(self, method: str, path: str, body: bytes | None) -> httpx.Request:
        headers = [*self._headers, *([(b"content-type", b"application/json")] if body is not None else [])]
        base_url = "http://localhost" if socket_of(self._base_url) else self._base_url
        request = httpx.Request(method, base_url + path, headers=headers, content=body)
        request.extensions["timeout"] = httpx.Timeout(None).as_dict()
        return request

    def _silent(self, error: httpx.HTTPError) -> OSError:
        return OSError(f"{Origin.of(self._base_url)} does not answer: {_reason(error)}")


def _let_go(response: httpx.Response) -> None:
    """Its stream refers back to it: more than fifty objects of each probe would be left to the garbage collector."""
    response.stream = httpx.ByteStream(b"")


def end_to_end(headers: Iterable[Pair]) -> RawHeaders:
    """What a proxy passes on: not the hop-by-hop headers, nor those that Connection names (RFC 9110, 7.6.1)."""
    return tuple(kept(headers, HOP_BY_HOP))


def kept(headers: Iterable[Pair], dropped: frozenset[bytes]) -> list[Pair]:
    """The headers but for those that are `dropped`, and those that Connection names."""
    found = []
    named: set[bytes] = set()
    for pair in headers:
        name = pair[0].lower()
        if name == b"connection":
            named.update(token.strip().lower() for token in pair[1].split(b","))
        if name not in dropped:
            found.append(pair)
    if named - _PLAIN:
        return [pair for pair in found if pair[0].lower() not in named]
    return found


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
