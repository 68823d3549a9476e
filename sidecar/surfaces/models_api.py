"""What a person may do to a model by hand: start, stop, drain, pin, over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec

from sidecar.control.controller import Controller
from sidecar.control.leases import RefusedError
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.report import pinned_by

Answer = dict[str, str]


class Asked(msgspec.Struct, frozen=True):
    """Which model is meant, by its name. force: do not wait for requests in flight (stop)."""

    name: str
    force: bool


async def act(controller: Controller, name: str, verb: str, *, force: bool = False) -> Answer:
    """Do it, and say how the model is then; `message` says more, or is "". Raises ApiError."""
    return await VERBS[verb](controller, Asked(name, force))


async def _start(controller: Controller, asked: Asked) -> Answer:
    try:
        await controller.start(asked.name)
    except RefusedError as error:
        raise ApiError.refused(error, asked.name) from None
    return _answer(asked, "ready")


async def _stop(controller: Controller, asked: Asked) -> Answer:
    stopped = await controller.stop(asked.name, force=asked.force)
    return _answer(asked, "stopped", "" if stopped else "it was not running")


async def _drain(controller: Controller, asked: Asked) -> Answer:
    new = await controller.drain(asked.name)
    return _answer(asked, "drained", "" if new else "it was drained already")


async def _undrain(controller: Controller, asked: Asked) -> Answer:
    changed = controller.undrain(asked.name)
    return _answer(asked, "in service", "" if changed else "it was not drained")


async def _pin(controller: Controller, asked: Asked) -> Answer:
    by = _pinned_by(controller, asked)
    controller.pin(asked.name, pinned=True)
    return _answer(asked, "pinned", f"it was pinned already, by the {by}" if by else "")


async def _unpin(controller: Controller, asked: Asked) -> Answer:
    changed = controller.pin(asked.name, pinned=False)
    if _pinned_by(controller, asked):
        return _answer(asked, "pinned", "its manifest says so: only a change of that unpins it")
    return _answer(asked, "unpinned", "" if changed else "it was not pinned")


VERBS: Mapping[str, Callable[[Controller, Asked], Awaitable[Answer]]] = MappingProxyType(
    {"start": _start, "stop": _stop, "drain": _drain, "undrain": _undrain, "pin": _pin, "unpin": _unpin}
)


def _pinned_by(controller: Controller, asked: Asked) -> str:
    return pinned_by(controller, asked.name, controller.declaration.models[asked.name])


def _answer(asked: Asked, state: str, message: str = "") -> Answer:
    return {"model": asked.name, "state": state, "message": message}
