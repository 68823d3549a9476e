"""An answer's head that comes again and again."""

from __future__ import annotations

import msgspec

from plugin_sdk import Headers
from plugin_sdk import Response as Answer
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.exchanges import Again
from sidecar.mechanism.repeats import with_length
from sidecar.surfaces.dataplane.relaying import came_as
from sidecar.surfaces.dataplane.response import EVENT_STREAM, FRAMING
from sidecar.surfaces.dataplane.wire import head_lines, lines


class Notes:
    """An answer's head that comes again and again, as clients and plugins get it, for a body of whatever length."""

    __slots__ = ("_after", "_before", "_came", "_length", "_longest", "_names", "encoding")

    def __init__(self, again: Again) -> None:
        self._came, self.encoding = came_as(again.status, again.passed_on, streamed=is_streamed(again.content_type))
        self._length = again.length
        names = [name.lower() for name, _ in again.passed_on]
        self._names = FRAMING.union(names)
        self._longest = max(map(len, self._names))
        at = names.index(b"content-length")
        name = again.passed_on[at][0]
        self._before = head_lines(again.status, again.reason, again.passed_on[:at]) + name + b": "
        self._after = b"\r\n" + lines(again.passed_on[at + 1 :])

    def head(self, length: int) -> bytes:
        """As it is sent, but for the empty line at the end."""
        return b"%b%d%b" % (self._before, length, self._after)

    def has_any(self, headers: RawHeaders) -> bool:
        """Whether it has one of these already, or they would tell where its body ends."""
        longest, names = self._longest, self._names
        return bool([name for name, _ in headers if len(name) <= longest and name.lower() in names])

    def came(self, length: int) -> Answer:
        """As plugins get it."""
        if length != self._length:
            raw = tuple(with_length(self._came.headers.raw, length))
            self._came = msgspec.structs.replace(self._came, headers=Headers(raw))
            self._length = length
        return self._came


def is_streamed(content_type: bytes) -> bool:
    """Whether events follow."""
    return content_type.startswith(EVENT_STREAM)
