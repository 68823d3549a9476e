"""Where requests lead, by method and target; remembered, since clients ask for the same few again and again."""

from __future__ import annotations

import msgspec

from sidecar.control.generations import Generation
from sidecar.mechanism.modes import Mode
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.heads import target
from sidecar.surfaces.dataplane.incoming import Found, Paths
from sidecar.surfaces.dataplane.models import ModelList

PREFIX = "/v1/"
MOST = 512  # remembered; clients may make up any number
MOST_BYTES = 200  # of a target that is worth it


class Way(msgspec.Struct, frozen=True, gc=False):
    """Of one method and target: the parts of the target, and what serves it.

    ours: it is for the data plane. found: the interfaces. lists: it is for the list of models. error: why it is refused
    whatever else it says. errors_of: the interface in whose shape errors are told; None = in OpenAI's.
    """

    method: str
    target: str
    path: str
    query: str
    ours: bool = True
    found: tuple[Found, ...] = ()
    lists: bool = False
    error: ApiError | None = None
    errors_of: Mode | None = None


class Ways:
    """Those of one generation."""

    def __init__(self, generation: Generation, models: ModelList) -> None:
        self.generation = generation
        self._models = models
        self._paths = Paths(generation)
        self._known: dict[tuple[bytes, bytes], Way] = {}

    def find(self, method: bytes, url: bytes) -> Way:
        """Where it leads. Raises BadRequestError."""
        way = self._known.get((method, url))
        if way is None:
            way = self._made(method.decode("ascii"), url)
            if len(url) <= MOST_BYTES:
                if len(self._known) >= MOST:
                    self._known.clear()
                self._known[method, url] = way
        return way

    def _made(self, method: str, url: bytes) -> Way:
        whole, path, query = target(url)
        if self._models.owns(path):
            return Way(method, whole, path, query, lists=True)
        found = self._paths.find(path)
        if not found:
            error = ApiError(404, "unknown_path", f"no interface serves {path[:200]}")
            above = self._paths.above(path)
            return Way(method, whole, path, query, ours=path.startswith(PREFIX), error=error, errors_of=above)
        fit = tuple(one for one in found if one.takes(method))
        if fit:
            return Way(method, whole, path, query, found=fit, errors_of=fit[0].interface)
        methods = ", ".join(sorted({method for one in found for method in one.methods}))
        message = f"{path} takes {methods}, not {method}"
        error = ApiError(405, "method_not_allowed", message, headers=((b"allow", methods.encode()),))
        return Way(method, whole, path, query, found=tuple(found), error=error, errors_of=found[0].interface)
