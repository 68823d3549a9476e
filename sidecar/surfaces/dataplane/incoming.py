"""What comes in: a request as it was sent, and the interfaces that serve its path."""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

from plugin_sdk import Endpoint
from plugin_sdk.messages import RawHeaders
from sidecar.control.generations import Generation
from sidecar.mechanism.modes import Mode


class Incoming(msgspec.Struct, frozen=True):
    """A request as it came. target: path and query. path, query: undecoded, without the "?"."""

    method: str
    target: str
    path: str
    query: str
    headers: RawHeaders
    client: str


class Found(msgspec.Struct, frozen=True):
    """Where a path leads: the mode and interface that own it."""

    mode: str
    endpoint: Endpoint
    interface: Mode


class Paths:
    """The interfaces of one generation by path; which of them counts depends on the model."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._by_path: dict[str, list[Found]] = {}
        for mode, interface in generation.interfaces.items():
            for endpoint in interface.endpoints:
                self._by_path.setdefault(endpoint.path, []).append(Found(mode, endpoint, interface))

    def find(self, path: str) -> list[Found]:
        """Those that serve the path."""
        found = self._by_path.get(path)
        if found is None and "%" in path:
            found = self._by_path.get(unquote(path))
        return found or []
