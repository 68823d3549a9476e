"""Server-sent events out of a stream of bytes, and back (WHATWG HTML, 9.2.6).

However the stream is cut into pieces, the same events come out. Every byte of it is in exactly one piece's `raw`, so
that what nobody changes can be passed on as it came.
"""

from __future__ import annotations

import re

import msgspec

from plugin_sdk.messages import Event

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")  # of a line, and of an empty one after it
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class TooLargeError(Exception):
    """An event is larger than the parser may hold."""


class Piece(msgspec.Struct, frozen=True):
    """A part of the stream. event: None for what is none, such as comments. beside: lines that no Event can hold."""

    raw: bytes
    event: Event | None = None
    beside: bytes = b""


class Parser:
    """Cuts a stream at its events. most_bytes: how much it may hold of one that is not complete yet."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held = b""
        self._searched = 0
        self._first = True

    def feed(self, chunk: bytes) -> list[Piece]:
        """What is complete with these bytes. Raises TooLargeError; then `rest` has what was held."""
        if not self._held and _is_plain(chunk):
            self._first = False
            return [Piece(chunk, Event(data=chunk[6:-2]))]
        held = self._held + chunk if self._held else chunk
        pieces: list[Piece] = []
        start, search = 0, self._searched
        while (found := _END.search(held, search)) is not None:
            end = found.end()
            if end == len(held) and held.endswith(b"\r"):
                break  # a line feed may follow that belongs to it
            pieces.append(self._piece(held[start:end]))
            start = search = end
        self._held = held[start:] if start else held
        self._searched = max(0, len(self._held) - 3)
        if len(self._held) > self._most_bytes:
            raise TooLargeError(f"an event of more than {self._most_bytes} bytes")
        return pieces

    def finish(self) -> list[Piece]:
        """What is left at the end. An event that lacks its empty line counts: not every client waits for that line."""
        rest = self.rest()
        return [self._piece(rest)] if rest else []

    def rest(self) -> bytes:
        """What is held, taken out as it is."""
        held, self._held, self._searched = self._held, b"", 0
        return held

    def _piece(self, raw: bytes) -> Piece:
        text = raw
        if self._first:
            self._first = False
            text = raw.removeprefix(_BOM)
        return Piece(raw, Event(data=text[6:-2])) if _is_plain(text) else _parsed(raw, text)


def _is_plain(text: bytes) -> bool:
    """Whether it is one event of one line, as nearly all are."""
    return (
        text.startswith(b"data: ")
        and text.find(b"\n") == len(text) - 2
        and text.endswith(b"\n\n")
        and b"\r" not in text
    )


def _parsed(raw: bytes, text: bytes) -> Piece:
    data: list[bytes] = []
    name = identity = ""
    beside: list[bytes] = []
    for line in _LINE_END.split(text):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"id":
            identity = identity if b"\0" in value else value.decode("utf-8", "replace")
        elif line:
            beside.append(line + b"\n")
    if not data:
        return Piece(raw)
    return Piece(raw, Event(data=b"\n".join(data), name=name, id=identity), b"".join(beside))


def written(event: Event) -> bytes:
    """An event as it goes over the wire. Raises ValueError if its name or id cannot stand on one line."""
    lines: list[bytes] = []
    for field, value in ((b"event", event.name), (b"id", event.id)):
        encoded = value.encode()
        if _LINE_END.search(encoded):
            raise ValueError("an event's name and id must not have line breaks")
        if encoded:
            lines.append(field + b": " + encoded + b"\n")
    lines += [b"data: " + line + b"\n" for line in _LINE_END.split(event.data)]
    return b"".join(lines) + b"\n"
