"""Talks HTTP to servers: short probes, and exchanges whose bytes are relayed as they come."""

from __future__ import annotations

import httpx

from plugin_sdk import Reply
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.connections import Exchange, Pool

# RFC 9110, 7.6.1: these speak of one connection, not of the message; Connection itself may name more.
HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)


class Client:
    """Exchanges over connections of our own, and probes over httpx."""

    def __init__(self) -> None:
        self._pool = Pool()
        # A probe's connection is not kept: the next one may find another server on the port.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(limits=limits, trust_env=False, follow_redirects=False)

    async def exchange(self, method: str, url: str, headers: RawHeaders, body: bytes) -> Exchange:
        """Send a request and wait for the head of the answer, for as long as the caller does. Raises UpstreamError."""
        return await self._pool.exchange(method, url, headers, body)

    def probe(self, base_url: str, headers: RawHeaders = ()) -> ProbeUpstream:
        """The server at `base_url`, as an interface's `ready` sees it."""
        return ProbeUpstream(self._http, base_url, headers)

    async def close(self) -> None:
        """Close all connections."""
        self._pool.close()
        await self._http.aclose()


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

    async def _send(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = [*self._headers, *([(b"content-type", b"application/json")] if body is not None else [])]
        request = httpx.Request(method, self._base_url + path, headers=headers, content=body)
        request.extensions["timeout"] = httpx.Timeout(None).as_dict()
        try:
            response = await self._http.send(request)
        except httpx.HTTPError as error:
            raise OSError(f"{_origin(self._base_url)} does not answer: {_reason(error)}") from error
        return Reply(response.status_code, response.content)


def end_to_end(headers: RawHeaders) -> RawHeaders:
    """What a proxy passes on: not the hop-by-hop headers, nor those that Connection names (RFC 9110, 7.6.1)."""
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    drop = HOP_BY_HOP | named
    return tuple((name, value) for name, value in headers if name.lower() not in drop)


def _origin(url: str) -> str:
    parts = httpx.URL(url)
    return f"{parts.scheme}://{parts.netloc.decode()}"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
