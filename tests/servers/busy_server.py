"""An inference server for many requests at once, that does as each of them says in `x-do`; it keeps nothing of them.

`events:N:PAUSE` a stream of N events; `flood:N` N bytes as fast as they go; `slow:PAUSE` reads the body with pauses;
`early` answers before it has read the body; `die` breaks off in the middle; `wait:S` before the answer; else it
answers. A request for a WebSocket gets one, in which everything comes back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{"choices":["ok"]}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
BLOCK = b"x" * 65536


class Exchange:
    """One request after the other on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        """Until somebody has enough."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._next():
                pass
        self._writer.close()

    async def _next(self) -> bool:
        """Whether another may follow."""
        headers = self._headers(await self._reader.readuntil(b"\r\n\r\n"))
        if headers.get(b"upgrade") == b"websocket":
            self._writer.write(SWITCHING)
            while data := await self._reader.read(65536):
                self._writer.write(data)
                await self._writer.drain()
            return False
        what, *values = headers.get(b"x-do", b"").split(b":")
        if what == b"early":
            self._writer.write(EARLY)
            await self._writer.drain()
            self._writer.write_eof()
            while await self._reader.read(65536):
                pass
            return False
        await self._body(headers, float(values[0]) if what == b"slow" else 0.0)
        if what == b"events":
            await self._events(int(values[0]), float(values[1]))
        elif what == b"flood":
            await self._flood(int(values[0]))
        elif what == b"die":
            self._writer.write(STREAM + b"5\r\ndata:")
            return False
        else:
            await asyncio.sleep(float(values[0]) if what == b"wait" else 0)
            self._writer.write(OK)
            await self._writer.drain()
        return True

    def _headers(self, head: bytes) -> dict[bytes, bytes]:
        lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        return {name.lower(): value.strip() for name, _, value in lines}

    async def _body(self, headers: dict[bytes, bytes], pause_s: float) -> None:
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                await self._skip(size + 2, pause_s)
            await self._reader.readuntil(b"\r\n")
        else:
            await self._skip(int(headers.get(b"content-length", 0)), pause_s)

    async def _skip(self, size: int, pause_s: float) -> None:
        while size:
            data = await self._reader.read(min(size, 65536))
            if not data:
                raise ConnectionResetError
            size -= len(data)
            if pause_s:
                await asyncio.sleep(pause_s)

    async def _events(self, count: int, pause_s: float) -> None:
        self._writer.write(STREAM)
        for number in range(count):
            self._chunk(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number)
            await self._writer.drain()
            await asyncio.sleep(pause_s)
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    async def _flood(self, size: int) -> None:
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(BLOCK)):
            self._writer.write(BLOCK)
            await self._writer.drain()
        self._writer.write(BLOCK[: size % len(BLOCK)])

    def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _serve(port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Exchange(reader, writer).serve()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port))
