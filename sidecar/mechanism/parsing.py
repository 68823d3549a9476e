"""Finds where answers begin and end, with httptools, for a connection on which they come one after the other."""

from __future__ import annotations

from typing import Protocol

import httptools


class Parsed(Protocol):
    """Who is told. extra: what comes now belongs to no answer that anybody has asked for."""

    extra: bool

    def on_begin(self) -> None:
        """An answer begins."""
        ...

    def on_answer(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Its head is whole."""
        ...

    def on_complete(self) -> None:
        """It has ended."""
        ...


class Parsing:
    """httptools' callbacks for one answer after the other, on one connection."""

    pieces = False

    def __init__(self, connection: Parsed) -> None:
        self.keep_alive = False
        self._connection: Parsed | None = connection
        self._parser: httptools.HttpResponseParser | None = None
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = True

    def feed(self, data: bytes) -> None:
        """Raises HttpParserError, HttpParserUpgrade."""
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(data)

    def take(self) -> bytes:
        """What came of the body since the last time."""
        return b""

    def forget(self) -> None:
        """Let the next answer have another parser."""
        self._parser = None

    def dispose(self) -> None:
        """Nothing more comes."""
        self._parser = self._connection = None

    def on_message_begin(self) -> None:
        self._headers = []
        self._reason = b""
        self._in_head = True
        if self._connection is not None:
            self._connection.on_begin()

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers come later, and travel with the bytes
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._connection is not None and self._parser is not None:
            self._connection.on_answer(self._parser.get_status_code(), self._reason, self._headers)
            self.keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self._connection is not None:
            self._connection.on_complete()


class Whole(Parsing):
    """The bytes are passed on as they are; only where they end is of interest."""


class Piecewise(Parsing):
    """The body is wanted without its framing."""

    pieces = True

    def __init__(self, connection: Parsed) -> None:
        super().__init__(connection)
        self._pieces: list[bytes] = []

    def on_body(self, body: bytes) -> None:
        if self._connection is not None and not self._connection.extra:  # else it is of an answer that nobody wants
            self._pieces.append(body)

    def take(self) -> bytes:
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
