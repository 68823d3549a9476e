"""`GET /v1/models` and `/v1/models/{id}`: what clients may ask for, whether it runs at the moment or not."""

from __future__ import annotations

from typing import Any

import msgspec

from plugin_sdk import Headers, ModelInfo, Reject, Request
from sidecar.control.controller import Controller
from sidecar.control.generations import Generation
from sidecar.control.visible import Visible
from sidecar.core.manifest import Model
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Incoming

_LIST = "/v1/models"


class ModelList:
    """The models in OpenAI's shape that a caller whom the default chain admits may use: declared, then plugins' own."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._created = int(controller.clock.unix())

    def owns(self, path: str) -> bool:
        """Whether the path is the list's, or one of its entries'."""
        return path.rstrip("/") == _LIST or path.startswith(_LIST + "/")

    async def answer(self, incoming: Incoming, generation: Generation) -> tuple[int, bytes]:
        """(status, JSON body). Raises ApiError."""
        if incoming.method not in ("GET", "HEAD"):
            message = f"{_LIST} takes GET, not {incoming.method}"
            raise ApiError(405, "method_not_allowed", message, headers=((b"allow", b"GET, HEAD"),))
        request = Request(
            method=incoming.method,
            path=incoming.path,
            query=incoming.query,
            headers=Headers(incoming.headers),
            client=incoming.client,
        )
        try:
            principal = await generation.default_chain.authenticate(request)
        except Reject as reject:
            raise ApiError.rejected(reject) from None
        wanted = incoming.path.removeprefix(_LIST).strip("/")
        visible = Visible(generation, principal)
        if not wanted or generation.find(wanted) is None:
            await generation.supplied.fresh()
        return 200, msgspec.json.encode(self._one(visible, wanted) if wanted else self._all(visible))

    def _all(self, visible: Visible) -> dict[str, Any]:
        entries = [self._entry(name, model) for name, model in visible.declared()]
        entries += [self._supplied(model) for model in visible.supplied()]
        return {"object": "list", "data": entries}

    def _one(self, visible: Visible, wanted: str) -> dict[str, Any]:
        found = visible.find(wanted)
        if isinstance(found, tuple):
            return self._entry(*found)
        if found is not None:
            return self._supplied(found)
        meant = visible.near(wanted)
        hint = f"; near it: {', '.join(meant)}" if meant else ""
        raise ApiError(404, "model_not_found", f'there is no model "{wanted[:200]}"{hint}', param="model")

    def _supplied(self, model: ModelInfo) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": model.created or self._created,
            "owned_by": model.owned_by,
            "aliases": list(model.aliases),
            "modes": list(model.modes),
            "ready": None,  # nobody watches its server
        }

    def _entry(self, name: str, model: Model) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "sidecar",
            "aliases": list(model.aliases),
            "modes": list(model.modes),
            "ready": self._controller.fleet.ready(name),
        }
