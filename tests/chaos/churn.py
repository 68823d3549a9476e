"""Clients of every kind, good and bad, without rest; each request of theirs is counted by what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from tests.e2e.harness import KEY

PATIENCE_S = 60.0
KEYED = b"Authorization: Bearer " + KEY.encode()
CHUNKED = b"Transfer-Encoding: chunked"
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eDEy")
BLOCK = b"x" * 65536
MB = 1 << 20

_RESET = struct.pack("ii", 1, 0)


class Tally:
    """statuses: of whole answers. broken: those that were cut off. left: requests whose clients did not wait for all.

    lost: the connection ended without an answer. hung: what took too long.
    """

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.left = 0
        self.lost = 0
        self.hung: list[str] = []

    @property
    def certain(self) -> int:
        """Requests that the sidecar must have seen."""
        return sum(self.statuses.values()) + self.broken


class Answer(msgspec.Struct, frozen=True):
    """An answer's status and whether it is whole; 0 if there was none."""

    status: int
    whole: bool
    closes: bool


def request(model: str, does: bytes = b"", body: bytes | None = None) -> bytes:
    """A request whose server is to do something."""
    body = b'{"model":"%b"}' % model.encode() if body is None else body
    return head(does, b"Content-Length: %d" % len(body)) + body


def head(does: bytes, framing: bytes) -> bytes:
    """The head of a request with a body."""
    lines = (b"POST /v1/chat/completions HTTP/1.1", b"Host: here", KEYED, b"x-do: " + does, framing)
    return b"\r\n".join((*lines, b"", b""))


class Client:
    """One client, which has one connection at a time and does one thing after the other.

    plain: those of the models of which nobody holds an answer until it is whole.
    """

    def __init__(self, port: int, tally: Tally, seed: int, models: tuple[str, ...], plain: tuple[str, ...]) -> None:
        self._port = port
        self._tally = tally
        self._random = random.Random(seed)  # noqa: S311 - no secret is made of it
        self._models = models
        self._plain = plain
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ways: list[Callable[[], Awaitable[None]]] = [
            *(self._ask, self._ask, self._stream, self._stream, self._pipeline, self._list, self._waits),
            *(self._leaves_early, self._leaves_a_stream, self._stalls, self._broken, self._unknown, self._nonsense),
            *(self._uploads, self._leaves_an_upload, self._uploads_slowly, self._is_refused_early, self._talks),
        ]

    async def run(self, ended: asyncio.Event) -> None:
        """Until it is ended."""
        while not ended.is_set():
            await self.step(self._random.choice(self._ways))
            await asyncio.sleep(self._random.random() * 0.02)
        self._hang_up()

    async def swap(self, ended: asyncio.Event) -> None:
        """Ask for models that have to be loaded, and now and then leave before they are."""
        while not ended.is_set():
            await self.step(self._random.choice((self._ask, self._stream, self._leaves_early)))
            await asyncio.sleep(0.2)
        self._hang_up()

    async def step(self, way: Callable[[], Awaitable[None]]) -> None:
        """One thing."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await way()
        except TimeoutError:
            self._tally.hung.append(way.__name__)
            self._hang_up(reset=True)

    # --- good ones ----------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        await self._whole(request(self._model()))

    async def _stream(self) -> None:
        await self._whole(request(self._model(), b"events:%d:0.01" % self._random.randrange(1, 40)))

    async def _waits(self) -> None:
        await self._whole(request(self._model(), b"wait:%.2f" % self._random.random()))

    async def _list(self) -> None:
        await self._whole(b"GET /v1/models HTTP/1.1\r\nHost: here\r\n" + KEYED + b"\r\n\r\n")

    async def _pipeline(self) -> None:
        count = self._random.randrange(2, 8)
        await self._send(b"".join(request(self._model()) for _ in range(count)))
        for number in range(count):
            answer = await self._read()
            if answer.closes:
                self._tally.left += count - number - 1  # they may have been seen, and are not answered
                return

    async def _uploads(self) -> None:
        size = self._random.randrange(1, 5) * MB
        await self._upload(self._model(), b"", size, in_chunks=self._random.random() < 0.5)

    async def _uploads_slowly(self) -> None:
        await self._upload(self._model(), b"slow:0.02", 3 * MB, in_chunks=False)

    async def _is_refused_early(self) -> None:
        await self._upload(self._model(), b"early", 2 * MB, in_chunks=True)

    async def _talks(self) -> None:
        self._hang_up()
        line = b"GET /v1/realtime?model=%b HTTP/1.1" % self._model().encode()
        await self._send(b"\r\n".join((line, b"Host: here", KEYED, *UPGRADE, b"", b"")))
        reader, writer = self._reader, self._writer
        if reader is None or writer is None:
            return
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 101 " in answer.partition(b"\r\n")[0]:
                for _ in range(self._random.randrange(5)):
                    writer.write(BLOCK)
                    await reader.readexactly(len(BLOCK))
        self._tally.left += 1
        self._hang_up(reset=self._random.random() < 0.5)

    # --- bad ones -----------------------------------------------------------------------------------------------

    async def _leaves_early(self) -> None:
        whole = request(self._model(), b"wait:5")
        await self._send(whole[: self._random.randrange(1, len(whole) + 1)])
        await asyncio.sleep(self._random.choice((0, 0.01, 0.3)))
        self._leave()

    async def _leaves_a_stream(self) -> None:
        await self._send(request(self._model(), b"events:1000:0.01"))
        with contextlib.suppress(ConnectionError):
            if self._reader is not None:
                await self._reader.read(self._random.randrange(1, 2000))
        self._leave()

    async def _leaves_an_upload(self) -> None:
        await self._send(head(b"", b"Content-Length: 8000000") + b'{"model":"%b","text":"' % self._model().encode())
        for _ in range(self._random.randrange(60)):
            await self._send(BLOCK)
        self._leave()

    async def _stalls(self) -> None:
        await self._send(request(self._random.choice(self._plain), b"flood:%d" % (self._random.randrange(1, 40) * MB)))
        await asyncio.sleep(self._random.random() * 2)
        if self._random.random() < 0.5:
            await self._read()
        else:
            self._leave()

    async def _broken(self) -> None:
        await self._whole(request(self._model(), b"die"))

    async def _unknown(self) -> None:
        unknown = (
            request("nobody"),
            request(self._model(), body=b"{"),
            request(self._model()).replace(b"/chat/", b"/no/"),
        )
        await self._whole(self._random.choice(unknown))

    async def _nonsense(self) -> None:
        await self._whole(b"GET nonsense\r\n\r\n")

    # --- how ----------------------------------------------------------------------------------------------------

    def _model(self) -> str:
        return self._random.choice(self._models)

    async def _send(self, data: bytes) -> None:
        """These bytes. A sidecar that has closed the connection may have said why."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=MB)
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def _whole(self, data: bytes) -> None:
        await self._send(data)
        await self._read()

    async def _upload(self, model: str, does: bytes, size: int, *, in_chunks: bool) -> None:
        start, end = b'{"model":"%b","text":"' % model.encode(), b'"}'
        size = max(size // len(BLOCK), 1) * len(BLOCK)
        length = len(start) + size + len(end)
        framing = CHUNKED if in_chunks else b"Content-Length: %d" % length

        async def send() -> None:
            await self._send(head(does, framing) + (b"%x\r\n" % length if in_chunks else b"") + start)
            for _ in range(size // len(BLOCK)):
                await self._send(BLOCK)
            await self._send(end + (b"\r\n0\r\n\r\n" if in_chunks else b""))

        await self._send(b"")
        sending = asyncio.ensure_future(send())
        try:
            answer = await self._read()
            if not sending.done() and answer.whole and not answer.closes:
                await sending  # an answer that came early, on a connection that goes on
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

    async def _read(self) -> Answer:
        """The next answer, counted."""
        answer = await self._answer()
        if answer.status == 0:
            self._tally.lost += 1
        elif answer.whole:
            self._tally.statuses[answer.status] += 1
        else:
            self._tally.broken += 1
        if answer.closes:
            self._hang_up()
        return answer

    async def _answer(self) -> Answer:
        status, reader = 0, self._reader
        if reader is None:
            return Answer(0, False, True)
        try:
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(told.split(b" ", 2)[1])
            if b"transfer-encoding: chunked" in told:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    await self._skip(reader, size + 2)
                await reader.readuntil(b"\r\n")
            elif b"content-length: " in told:
                await self._skip(reader, int(told.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            else:
                await reader.read(-1)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            return Answer(status, False, True)
        return Answer(status, True, b"connection: close" in told)

    async def _skip(self, reader: asyncio.StreamReader, size: int) -> None:
        while size:
            data = await reader.read(min(size, MB))
            if not data:
                raise ConnectionResetError
            size -= len(data)

    def _leave(self) -> None:
        self._tally.left += 1
        self._hang_up(reset=self._random.random() < 0.5)

    def _hang_up(self, *, reset: bool = False) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is None:
            return
        if reset and not writer.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        writer.close()
