"""One look around: who listens, what each says, and how those with models were started."""

from __future__ import annotations

import asyncio
import os

import msgspec

from sidecar.mechanism.discovery import asking, processes, sockets
from sidecar.mechanism.discovery.offers import Found
from sidecar.mechanism.discovery.processes import Gpus, Held


class Bounds(msgspec.Struct, frozen=True):
    """Where to look, and for how long. ports: None = all. each_s: for an answer. all_s: for all of them together."""

    ports: range | None = None
    each_s: float = 2.0
    all_s: float = 15.0


async def around(bounds: Bounds, gpus: Gpus, key: str = "") -> list[Found]:
    """All who listen here, but for ourselves and for programs that are known to serve no models."""
    listeners = await asyncio.to_thread(sockets.listeners, bounds.ports)
    asked = [one for one in listeners if os.getpid() not in one.pids and not processes.serves_no_models(one.pids)]
    answers = await asking.ask_all(asked, bounds.each_s, bounds.all_s, key)
    return [
        Found(one, answer, await asyncio.to_thread(processes.held, one.pids, gpus) if answer.models else Held())
        for one, answer in answers.items()
    ]
