"""A request whose head may come again on the same connection."""

from __future__ import annotations

import msgspec

from plugin_sdk import Headers
from sidecar.control.generations import Generation
from sidecar.control.leases import Target
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.repeats import with_length
from sidecar.surfaces.dataplane import forms
from sidecar.surfaces.dataplane.courses import Course
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.request import headers_for, written

_END = len(b"0\r\n\r\n")


class Known:
    """What its head says. length: of its body. extra: what its answer says of who may read it.

    generation: in which that is so. headers: `incoming.headers` for plugins. may_be_quick: nothing in the head speaks
    against it. course: of the latest request that was.
    """

    __slots__ = (
        "_for",
        "_sent",
        "course",
        "extra",
        "generation",
        "headers",
        "incoming",
        "length",
        "may_be_quick",
        "method",
        "url",
    )

    def __init__(
        self, method: bytes, url: bytes, incoming: Incoming, length: int, extra: bytes, generation: Generation
    ) -> None:
        self.method = method
        self.url = url
        self.incoming = incoming
        self.headers = Headers(incoming.headers)
        self.length = length
        self.extra = extra
        self.generation = generation
        self.may_be_quick = not extra and not forms.may_be_form(incoming.content_type)
        self.course: Course | None = None
        self._for: tuple[Origin, object] | None = None  # where the same has been sent
        self._sent = b""

    def resize(self, length: int) -> None:
        """It has come again, for a body of another length."""
        self.length = length
        headers = tuple(with_length(self.incoming.headers, length))
        self.incoming = msgspec.structs.replace(self.incoming, headers=headers)
        self.headers = Headers(headers)

    def written(self, connection: Connection, target: Target, body: bytes) -> bytes:
        """What `request.written` makes of it: the bytes for a server."""
        where = self._for
        if where is None or where[0] is not connection.origin or where[1] is not target.api_key:
            incoming = self.incoming
            headers = headers_for(target, incoming.passed_on, plain=False)
            self._sent = written(incoming.method, incoming.target, connection, headers, b"")[:-_END]
            self._for = connection.origin, target.api_key
        return b"%b%d\r\n\r\n%b" % (self._sent, len(body), body)
