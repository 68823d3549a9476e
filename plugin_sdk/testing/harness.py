"""A chain of plugins that runs in a test, without a server: what a request and its answer become on their way.

Unlike in the sidecar, what a plugin raises is raised in the test, unless it is a Reject.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from plugin_sdk.errors import Reject
from plugin_sdk.kinds import Auth, Filter, Interface, Plugin, Route, Stats
from plugin_sdk.messages import (
    End,
    Event,
    Headers,
    Outcome,
    Principal,
    Request,
    Response,
    Target,
)
from plugin_sdk.sse import Parser
from plugin_sdk.testing.host import Host
from plugin_sdk.testing.passage import Passage, expected

K = TypeVar("K", bound=Plugin[Any])

Canned = Response | bytes | Mapping[str, Any] | Sequence[bytes]
Upstream = Canned | Callable[[Request], Canned | Awaitable[Canned]]

CHAT: dict[str, Any] = {"model": "qwen", "messages": [{"role": "user", "content": "Hello"}]}
COMPLETION: dict[str, Any] = {
    "object": "chat.completion",
    "model": "qwen",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}
EVENT_BYTES = 8 * 2**20


class Answer(msgspec.Struct, kw_only=True):
    """What the client got, and what happened. sent: what the server saw, None if nothing got to it."""

    status: int
    headers: Headers
    body: bytes
    outcome: Outcome
    sent: Request | None = None
    target: Target | None = None

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[Event]:
        """The body, as the events of a stream."""
        parser = Parser(EVENT_BYTES)
        return [piece.event for piece in parser.feed(self.body) + parser.finish() if piece.event is not None]


class Harness:
    """Open with `async with`, then ask with `request`. Plugins run in their order, as a manifest's chain does.

    http, tracer: what the plugins get as self.http and self.tracer. host: with the metrics that they counted.
    """

    def __init__(self, *plugins: Plugin[Any], mode: str = "chat", http: Any = None, tracer: Any = None) -> None:
        self.plugins = plugins
        self.host = Host(http, tracer)
        self._interface = next(iter(self._of(Interface)), Interface[Any](name=mode))
        self._mode = self._interface.provides or mode

    async def __aenter__(self) -> Harness:
        opened: list[Plugin[Any]] = []
        try:
            for plugin in self.plugins:
                plugin._services = self.host
                opened.append(plugin)
                await self.host.call(plugin.open)
        except BaseException:
            await self._close(opened)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(self.plugins)

    async def request(
        self,
        path: str = "/v1/chat/completions",
        *,
        json: Any = CHAT,
        headers: Mapping[str, str] | None = None,
        upstream: Upstream = COMPLETION,
        targets: tuple[Target, ...] = (Target(name="test", base_url="http://127.0.0.1:1"),),
    ) -> Answer:
        """Ask as a client does. json: the body, or bytes. targets: what a Route plugin may choose from.

        upstream: the server. A mapping or bytes is a whole answer, a list of bytes are the pieces of a stream, Response
        tells the head as well; or a function of the Request that gives one of these, or raises OSError.
        """
        body = json if isinstance(json, bytes) else msgspec.json.encode(json)
        model = str(json.get("model", "")) if isinstance(json, Mapping) else ""
        raw = tuple((name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items())
        request = Request(
            method="POST",
            path=path,
            headers=Headers(raw),
            body=body,
            model=model,
            requested_model=model,
            mode=self._mode,
        )
        return await self.send(request, upstream=upstream, targets=targets)

    async def send(
        self, request: Request, *, upstream: Upstream = COMPLETION, targets: tuple[Target, ...] = ()
    ) -> Answer:
        """The same, for a Request that is complete."""
        run = _Run(self, request)
        try:
            await run.ask(upstream, targets)
        except Reject as reject:
            run.refuse(reject.status, reject.code, reject.message, dict(reject.headers))
        except OSError as error:
            run.refuse(502, "upstream_failed", str(error), {}, End.UPSTREAM_FAILED)
        except asyncio.CancelledError:
            run.end = End.CLIENT_GONE
            raise
        finally:
            outcome = run.outcome()
            await run.finish(outcome)
        return Answer(
            status=run.head.status,
            headers=run.head.headers,
            body=bytes(run.body),
            outcome=outcome,
            sent=run.sent,
            target=run.target,
        )

    def _of(self, kind: type[K]) -> list[K]:
        return [plugin for plugin in self.plugins if isinstance(plugin, kind)]

    async def _close(self, plugins: Sequence[Plugin[Any]]) -> None:
        for plugin in reversed(plugins):
            await self.host.call(plugin.close)
        await self.host.close()


class _Run:
    """One request."""

    def __init__(self, harness: Harness, request: Request) -> None:
        self.head = Response()
        self.body = bytearray()
        self.sent: Request | None = None
        self.target: Target | None = None
        self.end = End.OK
        self._code = ""
        self._harness = harness
        self._host = harness.host
        self._request = request
        self._principal: Principal = request.principal
        self._route: Route[Any] | None = None
        self._passage = Passage(harness.host, harness._of(Filter))
        self._began = time.time()

    async def ask(self, upstream: Upstream, targets: tuple[Target, ...]) -> None:
        harness, request = self._harness, self._request
        for auth in harness._of(Auth):
            self._principal = expected(Principal, await self._host.call(auth.authenticate, request), "authenticate")
        request = msgspec.structs.replace(request, principal=self._principal)
        await self._host.call(harness._interface.validate, request, on_loop=True)
        changed = await self._passage.request(request)
        if isinstance(changed, Response):
            self.head, self.body = changed, bytearray(changed.body)
            self._code = f"answered_by:{self._passage.answered_by}"
            return
        await self._choose(changed, targets)
        self.sent = changed
        head, pieces = await _answer(upstream, changed)
        self.head = await self._passage.response(head)
        async for piece in pieces:
            self.body += await self._passage.chunk(piece)
        self.body += await self._passage.finish()

    async def _choose(self, request: Request, targets: tuple[Target, ...]) -> None:
        self.target = targets[0] if targets else None
        for route in self._harness._of(Route):
            found = await self._host.call(route.resolve, request, targets)
            if found is not None:
                self.target, self._route = expected(Target, found, "resolve"), route
                return

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str], end: End = End.REFUSED) -> None:
        """An error in the interface's shape; in place of the answer, or after what has been sent of it."""
        error = self._harness._interface.error(status, code, message)
        self.end, self._code = end, code
        if self.body:
            self.body += self._harness._interface.error_event(error) if self.head.streamed else b""
            return
        raw = tuple((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items())
        self.head = Response(status=status, headers=Headers(((b"content-type", b"application/json"), *raw)))
        self.body += error

    def outcome(self) -> Outcome:
        interface, streamed = self._harness._interface, self.head.streamed
        usage = interface.usage(bytes(self.body[-65536:]), streamed) if self.sent is not None else None
        return Outcome(
            model=self._request.model,
            variant=self.target.name if self.target else "",
            mode=self._request.mode,
            path=self._request.path,
            principal=self._principal.id,
            end=self.end,
            status=self.head.status if self.end is not End.CLIENT_GONE else 0,
            code=self._code,
            streamed=streamed,
            started_s=self._began,
            duration_s=time.time() - self._began,
            bytes_in=len(self._request.body),
            bytes_out=len(self.body),
            usage=usage,
        )

    async def finish(self, outcome: Outcome) -> None:
        if self._route is not None and self.target is not None:
            await self._host.call(self._route.finished, self.target, outcome, on_loop=True)
        await self._passage.end(outcome)
        for sink in self._harness._of(Stats):
            expected(type(None), await self._host.call(sink.record, outcome), "record")


async def _answer(upstream: Upstream, request: Request) -> tuple[Response, AsyncIterator[bytes]]:
    canned: Any = upstream(request) if callable(upstream) else upstream
    if inspect.isawaitable(canned):
        canned = await canned
    if isinstance(canned, Response):
        return msgspec.structs.replace(canned, body=b""), _pieces([canned.body])
    streamed = not isinstance(canned, bytes | Mapping)
    kind = b"text/event-stream" if streamed else b"application/json"
    head = Response(headers=Headers(((b"content-type", kind),)), streamed=streamed)
    if isinstance(canned, Mapping):
        canned = msgspec.json.encode(canned)
    return head, _pieces([canned] if isinstance(canned, bytes) else canned)


async def _pieces(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)  # others get their turn, as with a real server
        yield chunk
