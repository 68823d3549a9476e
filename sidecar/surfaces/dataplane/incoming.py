"""What comes in: a request as it was sent, and the interfaces that serve its path."""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

from plugin_sdk import Endpoint
from plugin_sdk.messages import RawHeaders
from sidecar.control.generations import Generation
from sidecar.mechanism.modes import Mode
from sidecar.surfaces.dataplane import passthrough


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """A request as it came.

    target: path and query. path, query: undecoded, without the "?". passed_on: the headers for a server. traced: it is
    part of somebody's trace. request_id: what the client calls it, or "".
    """

    method: str
    target: str
    path: str
    query: str
    headers: RawHeaders
    client: str
    passed_on: list[tuple[bytes, bytes]] = []
    content_type: str = ""
    traced: bool = False
    request_id: str = ""


class Found(msgspec.Struct, frozen=True):
    """Where a path leads: the mode and interface that own it.

    through: to a model's server whatever is asked; then both are the model's first, once that is known.
    """

    mode: str
    endpoint: Endpoint
    interface: Mode
    through: bool = False

    def takes(self, method: str) -> bool:
        """Whether there is such a method."""
        return passthrough.takes(method) if self.through else method == self.endpoint.method

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that there are."""
        return passthrough.METHODS if self.through else (self.endpoint.method,)


class Paths:
    """The interfaces of one generation by path; which of them counts depends on the model."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._by_path: dict[str, list[Found]] = {}
        for mode, interface in generation.interfaces.items():
            for endpoint in interface.endpoints:
                self._by_path.setdefault(endpoint.path, []).append(Found(mode, endpoint, interface))
        interfaces = generation.interfaces
        any_interface = interfaces.get("chat") or next(iter(interfaces.values()), None)  # whose errors are OpenAI's
        self._through = (
            [Found("", passthrough.ENDPOINT, any_interface, through=True)] if any_interface is not None else []
        )

    def find(self, path: str) -> list[Found]:
        """Those that serve the path."""
        found = self._by_path.get(path)
        if found is None and path.startswith(passthrough.PREFIX):
            return self._through
        if found is None and "%" in path:
            found = self._by_path.get(unquote(path))
        return found or []

    def above(self, path: str) -> Mode | None:
        """The interface that owns a path of which this one is a part, as whoever asks for it may expect."""
        owned = max((one for one in self._by_path if path.startswith(one + "/")), key=len, default=None)
        return None if owned is None else self._by_path[owned][0].interface
