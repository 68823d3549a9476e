"""Keeps from a client the event with token counts that only we have asked for (`with_usage`), and nothing else."""

from __future__ import annotations

import re

import msgspec

from plugin_sdk.sse import Parser

MOST_BYTES = 64 * 1024  # of an event that is not complete: a larger one has something to say, and is passed on

_no_choices = re.compile(rb'"choices"[ \t]*+:[ \t]*+\[[ \t]*+\]').search
_event_end = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)").search  # WHATWG HTML, 9.2.6
_WHOLE = (b"\n\n", b"\r\n\r\n")


class _Object(msgspec.Struct):
    """Whatever is in it."""


class _Chunk(msgspec.Struct):
    """What makes the event that OpenAI's API ends a stream with, if `stream_options.include_usage` is set."""

    choices: list[msgspec.Raw]
    usage: _Object


_decode = msgspec.json.Decoder(_Chunk).decode


class UsageWithheld:
    """Takes the pieces of an event stream, cut anywhere, and gives them back without that event.

    withheld: the event, from which the counts can be read.
    """

    def __init__(self) -> None:
        self.withheld = b""
        self._held = b""  # of an event that is not complete
        self._passing = False  # an event that is too large to be held

    def feed(self, data: bytes) -> bytes:
        """What may be passed on. Whatever is not complete waits, for at most one event."""
        if not self._held and not self._passing and data.endswith(_WHOLE) and _no_choices(data) is None:
            return data
        data = self._held + data
        passed: list[bytes] = []
        start, search = 0, max(0, len(self._held) - 3)
        while (found := _event_end(data, search)) is not None:
            end = found.end()
            if end == len(data) and data.endswith(b"\r"):
                break  # a line feed may follow that belongs to it
            passed.append(self._judged(data[start:end]))
            start = search = end
        self._held = data[start:]
        if self._passing or len(self._held) > MOST_BYTES:
            passed.append(self._let_go())
        return b"".join(passed)

    def finish(self) -> bytes:
        """What is left at the end, where an event may lack its empty line."""
        held, self._held = self._held, b""
        return self._judged(held)

    def _judged(self, event: bytes) -> bytes:
        passing, self._passing = self._passing, False
        if passing or not _is_extra(event):
            return event
        self.withheld = event
        return b""

    def _let_go(self) -> bytes:
        """All but the last bytes, which may belong to the end of the event."""
        self._passing = True
        gone, self._held = self._held[:-3], self._held[-3:]
        return gone


def _is_extra(text: bytes) -> bool:
    if _no_choices(text) is None:
        return False
    parser = Parser(len(text))
    events = [piece.event for piece in (*parser.feed(text), *parser.finish()) if piece.event is not None]
    try:
        return bool(events) and not _decode(events[0].data).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # another event: one without counts, or an error
