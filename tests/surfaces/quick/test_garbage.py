"""Requests whose head comes again leave nothing to the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import pytest

from plugin_sdk import Response as Answer
from tests.support import until
from tests.surfaces.quick.harness import EVENTS, LAST, WAS_QUICK, WATCHED, WHOLE
from tests.surfaces.quick.plugins import DOES, LOG, rejects
from tests.surfaces.world import STREAM, Does, World, answers, ask, chunk


class Asking(asyncio.Protocol):
    """A client that sends one request after the other."""

    def __init__(self, request: bytes, times: int) -> None:
        self.request = request
        self.left = times
        self.got = b""
        self.done = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.write(self.request)  # type: ignore[attr-defined] # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        self.got += data
        if not self.got.endswith((b"}", LAST, b"mine")):
            return
        self.got = b""
        self.left -= 1
        if self.left:
            self.transport.write(self.request)
        else:
            self.transport.close()
            self.done.set()


LEFT: dict[str, tuple[Does, bytes, int, tuple[str, Any]]] = {
    "answered": (answers(WHOLE), ask(), 20_000, ("", None)),
    "streamed": (answers(STREAM + b"".join(map(chunk, EVENTS)) + LAST), ask(), 1_000, ("", None)),
    "filtered": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer key"), 1_000, ("", None)),
    "refused": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer no"), 500, ("", None)),
    "rejected": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer key"), 500, ("inner.on_request", rejects)),
    "rejected late": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer key"), 500, ("inner.on_response", rejects)),
    "answered by a filter": (
        answers(WHOLE),
        ask(WATCHED, b"Authorization: Bearer key"),
        500,
        ("inner.on_request", lambda _: Answer(status=202, body=b"mine")),
    ),
    "with hints": (answers(b"HTTP/1.1 103 Hints\r\n\r\n" + WHOLE), ask(), 500, ("", None)),
}


@pytest.mark.parametrize("kind", LEFT)
def test_quick_requests_leave_nothing_to_the_garbage_collector(here: World, kind: str) -> None:
    does, request, count, (hook, makes) = LEFT[kind]

    async def scenario() -> None:
        here.server.does = does
        if hook:
            DOES[hook] = makes

        async def some(times: int) -> int:
            _, client = await here.plane.loop.create_connection(lambda: Asking(request, times), "127.0.0.1", here.port)
            async with asyncio.timeout(30):
                await client.done.wait()
            await until(lambda: not here.connections and not here.generation.leases, "it is gone")
            for one in (here.outcomes, LOG, WAS_QUICK, here.server.seen, here.server.bodies):
                one.clear()
            return len(gc.get_objects())

        await some(50)
        gc.collect()
        gc.disable()
        try:
            counts = [await some(count // 4) for _ in range(4)]
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = [one for one in gc.garbage if type(one).__module__.startswith(("sidecar", "plugin_sdk"))]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        # Probes and timers leave something now and then.
        assert min(after - before for before, after in itertools.pairwise(counts)) < 50, counts
        assert len(found) < 20, found[:20]

    here.run(scenario())
