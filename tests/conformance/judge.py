"""What bytes mean by h11, which is none of the parsers in the sidecar: the judge of what it passes on.

h11 forgives a bare LF and a folded line in a head; who must not forward them asks `strict_head` as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import h11
import msgspec

Pairs = tuple[tuple[bytes, bytes], ...]

MOST_HEAD = 1 << 20  # of a message under judgement: how long a head may be is for the sidecar to say

# RFC 9112, 3: a server may take any run of spaces in a request line for one.
_SPACED_LINE = re.compile(rb"([!-~]+) +([!-~]+) +(HTTP/1\.[01]) *\r\n")

# RFC 9110, 15.2: interim answers come before the final one, and mean nothing to who does not know them.
_INTERIM = re.compile(rb"[\r\n]*HTTP/1\.1 1(?!01)[0-9]{2}(?: [^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n[\r\n]*")

_STATUS_LINE = re.compile(rb"\A(HTTP/1\.[01] [0-9]{3}) [^\r\n]*\r\n")

# RFC 9112, 2.2 and 5: lines end with CRLF, names are tokens, values have no control characters.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.[01]")
_FIELD_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A request or a response. target: of a request. status: of a response. whole: it has its end."""

    method: bytes = b""
    target: bytes = b""
    status: int = 0
    version: bytes = b"1.1"
    headers: Pairs = ()
    body: bytes = b""
    trailers: Pairs = ()
    whole: bool = True

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header, whichever way it is written."""
        return [value for given, value in self.headers if given.lower() == name]


class Judgement(msgspec.Struct, frozen=True):
    """messages: in order; the last may not be whole. error: why there is no more. rest: bytes that nobody asked for.

    closed: by what the messages say, nothing may follow them on the connection.
    """

    messages: list[Message]
    interim: list[Message] = []
    error: str = ""
    rest: bytes = b""
    closed: bool = False


class _Draft:
    """A message as it comes in."""

    def __init__(self) -> None:
        self.head: h11.Request | h11.Response | None = None
        self.body = bytearray()
        self.trailers: Pairs = ()

    def message(self, whole: bool) -> Message:
        """What has come of it."""
        head = self.head
        assert head is not None
        common: dict[str, Any] = {
            "version": bytes(head.http_version),
            "headers": _pairs(head.headers),
            "body": bytes(self.body),
            "trailers": self.trailers,
            "whole": whole,
        }
        if isinstance(head, h11.Request):
            return Message(method=bytes(head.method), target=bytes(head.target), **common)
        return Message(status=head.status_code, **common)


def requests(data: bytes, *, eof: bool = False) -> Judgement:
    """What a server takes the bytes of a connection for."""
    messages: list[Message] = []
    while True:
        data = data.lstrip(b"\r\n")  # RFC 9112, 2.2: empty lines before a request are skipped; h11 refuses them
        if not data:
            return Judgement(messages)
        data = _SPACED_LINE.sub(rb"\1 \2 \3\r\n", data, count=1) if _SPACED_LINE.match(data) else data
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        draft, error = _read(reader, data, eof)
        if draft.head is None:
            return Judgement(messages, error=error)
        if reader.their_state in (h11.SEND_BODY, h11.ERROR):
            return Judgement([*messages, draft.message(whole=False)], error=error)
        messages.append(draft.message(whole=True))
        data = reader.trailing_data[0]
        if reader.their_state is h11.MUST_CLOSE:
            return Judgement(messages, rest=data, closed=True)


def responses(data: bytes, methods: Sequence[bytes] = (b"POST",), *, eof: bool = True) -> Judgement:
    """What a client takes the bytes for that it got for requests of these methods."""
    messages: list[Message] = []
    interim: list[Message] = []
    for method in methods:
        reader = _asked(method)
        data = data.lstrip(b"\r\n")  # as before requests: some servers end what they said before with one line too many
        draft, error = _read(reader, data, eof, interim)
        if draft.head is None:
            return Judgement(messages, interim, error or "no response")
        if reader.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            return Judgement([*messages, draft.message(whole=False)], interim, error or "no end")
        messages.append(draft.message(whole=True))
        data = reader.trailing_data[0]
        if reader.their_state is not h11.DONE:
            return Judgement(messages, interim, rest=data, closed=True)
    return Judgement(messages, interim, rest=data)


def final(data: bytes) -> bytes:
    """The final answer, without the words of its status line, which mean nothing and may be anything."""
    while found := _INTERIM.match(data):
        data = data[found.end() :]
    return _STATUS_LINE.sub(rb"\1\r\n", data, count=1)


def _asked(method: bytes) -> h11.Connection:
    """A client that has sent a request and waits."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)
    reader.send(h11.Request(method=method, target="/", headers=[("host", "judge")]))
    reader.send(h11.EndOfMessage())
    return reader


def _read(reader: h11.Connection, data: bytes, eof: bool, interim: list[Message] | None = None) -> tuple[_Draft, str]:
    """One message, as much of it as there is, and what is wrong with it."""
    draft = _Draft()
    if data:  # or it would be taken for the end
        reader.receive_data(data)
    if eof:
        reader.receive_data(b"")
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError as error:
            return draft, str(error)
        if isinstance(event, h11.InformationalResponse):
            if interim is not None:
                interim.append(Message(status=event.status_code, headers=_pairs(event.headers)))
        elif isinstance(event, h11.Request | h11.Response):
            draft.head = event
        elif isinstance(event, h11.Data):
            draft.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            draft.trailers = _pairs(event.headers)
            return draft, ""
        else:
            return draft, ""


def _pairs(headers: Any) -> Pairs:
    return tuple((bytes(name), bytes(value)) for name, value in headers.raw_items())


def strict_head(head: bytes) -> str:
    """What a strict reader would not take in the head of a request, up to its empty line; "" if there is nothing."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(lines[0]):
        return f"request line {lines[0]!r}"
    wrong = [line for line in lines[1:] if not _FIELD_LINE.fullmatch(line)]
    if wrong:
        return f"field line {wrong[0]!r}"
    names = [line.partition(b":")[0].lower() for line in lines[1:]]
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        return "more than one word on its length"
    return "" if names.count(b"host") == 1 else f"{names.count(b'host')} hosts"
