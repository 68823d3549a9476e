"""Carries inference requests over ASGI: reads bodies within a limit, notices a client that leaves, passes bytes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from plugin_sdk.messages import RawHeaders
from sidecar.control.controller import Controller
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.models import ModelList
from sidecar.surfaces.dataplane.relay import Incoming, Relay, find_endpoints
from sidecar.surfaces.dataplane.response import answer

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PREFIX = "/v1/"


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class DataPlane:
    """An ASGI application for the paths that it `owns`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._models = ModelList(controller)

    def owns(self, path: str) -> bool:
        """Whether a path belongs to the data plane: everything below /v1/, and what interfaces add."""
        return path.startswith(PREFIX) or bool(find_endpoints(self._controller.generation, path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = AsgiDownstream(send, head_only=scope["method"] == "HEAD")
        try:
            await self._serve(scope, receive, out)
        except ApiError as error:
            await answer(out, error.status, error.response_headers(), error.body())
        except ClientGoneError:
            return

    async def _serve(self, scope: Scope, receive: Receive, out: AsgiDownstream) -> None:
        incoming = _incoming(scope)
        if self._models.owns(incoming.path):
            status, body = await self._models.answer(incoming)
            await answer(out, status, ((b"content-type", b"application/json"),), body)
            return
        on_path = find_endpoints(self._controller.generation, incoming.path)
        if not on_path:
            raise ApiError(404, "unknown_path", f"no interface serves {incoming.path[:200]}")
        found = [one for one in on_path if one.endpoint.method == incoming.method]
        if not found:
            methods = ", ".join(sorted({one.endpoint.method for one in on_path}))
            message = f"{incoming.path} takes {methods}, not {incoming.method}"
            raise ApiError(405, "method_not_allowed", message, headers=((b"allow", methods.encode()),))
        body = await read_body(receive, incoming.headers, self._controller.declaration.settings.max_body)
        relay = Relay(self._controller, incoming, found, out)
        await _until_gone(relay.run(body), receive)


class AsgiDownstream:
    """The way back to an ASGI client (`response.Downstream`)."""

    def __init__(self, send: Send, head_only: bool) -> None:
        self._send = send
        self._head_only = head_only

    async def start(self, status: int, headers: RawHeaders) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def send(self, chunk: bytes) -> None:
        if chunk and not self._head_only:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def abort(self) -> None:
        """ASGI has no word for this: an application that returns without a last body event has its connection cut."""


async def read_body(receive: Receive, headers: RawHeaders, limit: int) -> bytes:
    """The request's body. Raises ApiError(413) past the limit (from the declared length, where there is one)."""
    declared = next((value for name, value in headers if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(
        413, "body_too_large", f"the body is larger than {limit} bytes", headers=((b"connection", b"close"),)
    )


async def _until_gone(work: Awaitable[None], receive: Receive) -> None:
    """Do the work, but cancel it the moment that the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        if not working.cancelled():
            working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _incoming(scope: Scope) -> Incoming:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    client = scope.get("client")
    return Incoming(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((name, value) for name, value in headers),
        client=client[0] if client else "",
    )
