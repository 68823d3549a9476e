"""Wrong in how they begin and end."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import msgspec

from plugin_sdk import Auth, Config, Outcome, Principal, Reject, Request, Stats


class Anything(Config, forbid_unknown_fields=False):
    """Passes over what it does not know."""

    word: str = ""


class Inner(msgspec.Struct, frozen=True):
    """A table that passes over what it does not know."""

    level: int = 0


class Outer(Config):
    """Strict itself."""

    inner: Inner = Inner()


class Needs(Config):
    """A setting without a default."""

    word: str


class Nothing(Stats):
    """All right; what follows is this with a flaw."""

    async def record(self, outcome: Outcome) -> None:
        pass


class IgnoresTypos(Stats[Anything]):
    """A misspelt setting is lost."""

    async def record(self, outcome: Outcome) -> None:
        pass


class IgnoresTyposBelow(Stats[Outer]):
    """A misspelt setting of a table is lost."""

    async def record(self, outcome: Outcome) -> None:
        pass


class NeedsAWord(Stats[Needs]):
    """Right, but its contract gives no config."""

    async def record(self, outcome: Outcome) -> None:
        pass


class OwnInit(Nothing):
    """Takes other arguments than all plugins do."""

    def __init__(self) -> None:
        super().__init__()


class CloseNeedsOpen(Nothing):
    """Fails at close when open has not come to its end."""

    async def open(self) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.lines: list[str] = []

    async def close(self) -> None:
        self.lines.clear()


class ClosesOnce(Nothing):
    """Fails at the second close."""

    lock: threading.Lock | None = None

    async def open(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    async def close(self) -> None:
        if self.lock is not None:
            self.lock.release()


class LeaksTasks(Nothing):
    """Forgets the task that it has begun."""

    async def open(self) -> None:
        self.task = asyncio.create_task(asyncio.sleep(60))


class LeaksThreads(Nothing):
    """Forgets the thread that it has begun."""

    async def open(self) -> None:
        self.end = threading.Timer(8, int)
        self.end.daemon = True
        self.end.start()


class LeaksFiles(Nothing):
    """Forgets the file that it has opened."""

    async def open(self) -> None:
        OPEN_FILES.append(await asyncio.to_thread(open, "/dev/null"))


class LeaksItself(Nothing):
    """The module remembers every plugin that there ever was."""

    async def open(self) -> None:
        REMEMBERED.append(self)


class Hangs(Auth):
    """Does not come to an end."""

    async def authenticate(self, request: Request) -> Principal:
        await asyncio.Event().wait()
        return Principal("nobody")


class BlocksTheLoop(Auth):
    """Asks its database on the loop."""

    async def authenticate(self, request: Request) -> Principal:
        time.sleep(0.03)  # noqa: ASYNC251 - that is what is wrong
        raise Reject(401, "no")


class SwallowsCancellation(Auth):
    """Takes cancellation for an error of its database."""

    async def authenticate(self, request: Request) -> Principal:
        try:
            await asyncio.sleep(0.001)
        except BaseException:  # noqa: BLE001 - that is what is wrong
            return Principal("somebody")
        raise Reject(401, "no")


class GoesOn(Auth):
    """Tries again, cancelled or not."""

    async def authenticate(self, request: Request) -> Principal:
        while True:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                await asyncio.sleep(5)
            else:
                raise Reject(401, "no")


OPEN_FILES: list[Any] = []
REMEMBERED: list[Any] = []
