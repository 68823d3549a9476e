"""What is the same for all requests for one model at one path, as long as a generation lasts."""

from __future__ import annotations

import msgspec

from sidecar.control.generations import Generation
from sidecar.core.manifest import Model
from sidecar.mechanism.chain import Chain
from sidecar.mechanism.filters import Filters
from sidecar.surfaces.dataplane.incoming import Found
from sidecar.surfaces.dataplane.routing import MOST, Way

MOST_BYTES = 200  # of a name that is worth remembering


class Course(msgspec.Struct, frozen=True):
    """Of requests in which nothing has to wait for a plugin, and no plugin sees the body of the answer.

    name, requested: the model as the manifest and the client call it. filters: None if there are none. max_body: bytes.
    tells_usage: of a stream, whether it was asked for or not.
    """

    generation: Generation
    way: Way
    name: str
    requested: str
    model: Model
    found: Found
    chain: Chain
    filters: Filters | None
    max_body: int
    tells_usage: bool


class Courses:
    """Those of one generation."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._known: dict[tuple[str, str], Course | None] = {}

    def find(self, way: Way, requested: str) -> Course | None:
        """That of requests for the model there; None if they have to be looked at one by one."""
        if way.method != "POST":
            return None
        key = (way.target, requested)
        if key in self._known:
            return self._known[key]
        course = self._made(way, requested)
        if len(requested) <= MOST_BYTES:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = course
        return course

    def _made(self, way: Way, requested: str) -> Course | None:
        named = self.generation.find(requested)
        if named is None or way.error is not None or way.lists or way.query:
            return None
        name, model = named
        chain = self.generation.chain(name)
        found = next((one for one in way.found if one.mode in model.modes), None)
        if found is None or found.through or found.interface.validates or not chain.auth_inline or chain.has_route:
            return None
        filters = chain.filters(found.mode, events=found.interface.events)
        if filters is not None and (filters.see_body or not filters.inline or not filters.end_inline):
            return None
        tells_usage = model.count_streams and found.interface.usage_on_request
        max_body = self.generation.declaration.settings.max_body
        return Course(self.generation, way, name, requested, model, found, chain, filters, max_body, tells_usage)
