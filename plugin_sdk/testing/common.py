"""Checks of every plugin, whatever its kind. Each raises Fault with what is wrong and the remedy."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from plugin_sdk.errors import PluginError
from plugin_sdk.kinds import Plugin, Stats, settings_of
from plugin_sdk.messages import Event, Exchange, Reply, Response
from plugin_sdk.services import Services
from plugin_sdk.testing import importing, samples
from plugin_sdk.testing.host import Host
from plugin_sdk.testing.subject import Fault, Live, Subject, raised, within

IMPORT_S = 60.0
LIVES = 20
LEAKED = LIVES // 2  # of one thing in so many lives is no accident
HELD_S = 0.010
TRIES = 5
SETTLE_S = 2.0
ENDS_S = 1.0  # after it was cancelled
CANCELLED_AFTER = (1, 2, 5)  # turns of the loop


class Call(msgspec.Struct, frozen=True):
    """One use of a plugin. on_loop: the sidecar calls it directly, whatever it is."""

    method: str
    args: tuple[Any, ...] = ()
    on_loop: bool = False


class Deaf:
    """A server that answers nothing of use (plugin_sdk.Upstream)."""

    async def get(self, path: str) -> Reply:
        del path
        return Reply(503, b"\xff loading")

    async def post(self, path: str, body: bytes) -> Reply:
        del path, body
        return Reply(503, b"\xff loading")


def calls(subject: Subject) -> list[Call]:
    """Each method of the kind once."""
    request, outcome = subject.request, samples.OUTCOMES[0]
    exchange = Exchange(request)
    exchange.response = Response(streamed=True)
    by_kind = {
        "device": [Call("probe")],
        "auth": [Call("authenticate", (request,)), Call("authenticate", (samples.with_token(request, "x"),))],
        "interface": [
            Call("validate", (request,), on_loop=True),
            Call("usage", (subject.stream, True), on_loop=True),
            Call("error", (503, "busy", "try again"), on_loop=True),
            Call("ready", (Deaf(),)),
            Call("alive", (Deaf(),)),
        ],
        "route": [
            Call("resolve", (request, samples.TARGETS)),
            Call("finished", (samples.TARGETS[0], outcome), on_loop=True),
        ],
        "filter": [
            Call("on_request", (Exchange(request),)),
            Call("on_response", (exchange,)),
            Call("on_chunk", (exchange, subject.stream[:64])),
            Call("on_event", (exchange, Event(data=b'{"choices":[{"delta":{"content":"Hello"}}]}'))),
            Call("on_end", (exchange, outcome)),
        ],
        "stats": [Call("record", (outcome,))],
    }
    if issubclass(subject.plugin, Stats):
        optional = {"record_many": ([outcome],), "loaded": (list(samples.SERVERS),), "report": (samples.QUERIES[0],)}
        for name, arguments in optional.items():
            if getattr(subject.plugin, name) is not getattr(Stats, name):
                by_kind["stats"].append(Call(name, arguments))
    return by_kind[subject.plugin.kind]


async def use(live: Live, subject: Subject) -> None:
    """Call each method once. What is raised on purpose is no fault."""
    for call in calls(subject):
        try:
            await live.call(call.method, *call.args, on_loop=call.on_loop)
        except (PluginError, OSError):
            continue


def importing_starts_nothing(subject: Subject) -> None:
    """Neither threads nor tasks, sockets or processes: there may be no plugin of it in the end."""
    asked = {"path": sys.path, "module": subject.plugin.__module__, "file": _file_of(subject.plugin)}
    command = [sys.executable, str(importing.__file__), json.dumps(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Fault(f"importing it takes more than {IMPORT_S:g} s: do in open() what takes time") from None
    _, mark, told = done.stdout.rpartition(importing.MARK)
    started = json.loads(told) if mark else [f"exit {done.returncode} {done.stderr[-500:]}"]
    if started:
        raise Fault(
            f"importing its module gives {', '.join(started)}: begin such things in open(), end them in close()"
        )


def unknown_settings_are_refused(subject: Subject) -> None:
    """A setting that is misspelt must not be passed over in silence, in nested tables neither."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        subject.settings(Path(root))
    for settings in _tables(settings_of(subject.plugin), set()):
        if not settings.__struct_config__.forbid_unknown_fields:
            raise Fault(
                f"{settings.__name__} passes over keys that it does not know: make it a Config, without "
                "forbid_unknown_fields=False"
            )


async def closes_whatever_became_of_open(subject: Subject) -> None:
    """Without open, after one that failed or was cancelled, and twice."""
    before = Held()
    await _closed(subject, None, "without open()")
    await _closed(subject, Broken(), "after an open() that failed")
    for turns in CANCELLED_AFTER:
        await _closed(subject, None, "after an open() that was cancelled", turns)
    async with subject.alive() as live:
        pass
    try:
        await live.call("close")
    except Exception as error:
        raise raised("a second close()", error, "let it do nothing when there is nothing left to close") from error
    await before.settled(1, "after close()")


async def cancellation_passes_through(subject: Subject) -> None:
    """A client that leaves, and a deadline, end a call by cancelling it."""
    async with subject.alive() as live:
        for call in calls(subject):
            method = getattr(live.plugin, call.method)
            if inspect.iscoroutinefunction(method):
                for turns in CANCELLED_AFTER:
                    await _cancelled(method(*call.args), f"{subject.name}.{call.method}", turns)


async def never_holds_up_the_loop(subject: Subject) -> None:
    """What runs on the loop must give it back within 10 ms. The best of some tries counts: machines are busy."""
    least: dict[str, float] = {}
    for _ in range(TRIES):
        async with subject.alive() as live:
            await use(live, subject)
        for method, held_s in live.host.held_s.items():
            least[method] = min(least.get(method, math.inf), held_s)
    allowed_s = HELD_S + 2 * await _noise_s()
    for method, held_s in least.items():
        if held_s > allowed_s:
            raise Fault(
                f"{method} held the event loop up for {held_s * 1000:.0f} ms: make it a plain `def`, which runs in a "
                "thread, or await what takes long (asyncio.to_thread)"
            )


async def twenty_lives_leave_nothing_behind(subject: Subject) -> None:
    """Each reload is a life: threads, tasks, open files and the plugin itself must go with it."""
    plugins: list[weakref.ref[Any]] = []

    async def live_once() -> None:
        async with subject.alive() as live:
            plugins.append(weakref.ref(live.plugin))
            await use(live, subject)

    for _ in range(2):  # what is made once for all is there from then on
        await live_once()
    before = Held()
    plugins.clear()
    for _ in range(LIVES):
        await live_once()
    await before.settled(LEAKED, f"after {LIVES} times open() and close()")
    gc.collect()
    left = sum(plugin() is not None for plugin in plugins)
    if left >= LEAKED:
        raise Fault(
            f"{left} of {LIVES} closed plugins are still held: by a list or cache of the module, or a callback?"
        )


CHECKS = (
    importing_starts_nothing,
    unknown_settings_are_refused,
    closes_whatever_became_of_open,
    cancellation_passes_through,
    never_holds_up_the_loop,
    twenty_lives_leave_nothing_behind,
)


class Broken:
    """Services (plugin_sdk.services.Services) none of which can be had."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(f"self.{name} cannot be had in this check")


class Held:
    """The threads, tasks and open files that there are."""

    def __init__(self) -> None:
        self._counts = self._now()

    def _now(self) -> dict[str, int]:
        own = [thread for thread in threading.enumerate() if not thread.name.startswith(("contract", "asyncio_"))]
        files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0  # noqa: PTH110, PTH208 - as many as there are, and quick
        return {"threads": len(own), "tasks": len(asyncio.all_tasks()), "open files": files}

    async def settled(self, most: int, when: str) -> None:
        """Raises Fault if, some time from now, there are at least `most` more of anything."""
        until = time.monotonic() + SETTLE_S
        while True:
            now = self._now()
            more = [f"{now[what] - was} {what}" for what, was in self._counts.items() if now[what] - was >= most]
            if not more:
                return
            if time.monotonic() > until:
                raise Fault(
                    f"{when} there are {', '.join(more)} more: end in close() what open() began, and wait for it"
                )
            await asyncio.sleep(0.01)


def _file_of(plugin: type[Any]) -> str:
    """Where a class is from; a file that was dropped in need not be among the modules."""
    module = sys.modules.get(plugin.__module__)
    file = getattr(module, "__file__", None)
    if file is not None:
        return str(file)
    methods = [inspect.unwrap(getattr(method, "__func__", method)) for method in vars(plugin).values()]
    return next((method.__code__.co_filename for method in methods if inspect.isfunction(method)), "")


async def _closed(subject: Subject, services: Services | None, when: str, turns: int | None = None) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        host = Host(subject.http)
        plugin = subject.make(Path(root), services or host)
        if services is not None or turns is not None:
            await _opened_badly(plugin, f"{subject.name}.open", turns)
        try:
            await within(plugin.close(), f"{subject.name}.close")
        except Exception as error:
            remedy = "give the fields that it uses a value before open() can fail, such as None in the class"
            raise raised(f"close() {when}", error, remedy) from error
        await host.close()


async def _opened_badly(plugin: Plugin[Any], name: str, turns: int | None) -> None:
    """Whatever comes of it: it is close() that is looked at."""
    opening = asyncio.ensure_future(within(plugin.open(), name))
    if turns is not None:
        await _cancel(opening, turns)
    await asyncio.wait([opening])
    _ = opening.cancelled() or opening.exception()


async def _cancelled(coroutine: Any, name: str, turns: int) -> None:
    task = asyncio.ensure_future(coroutine)
    asked = await _cancel(task, turns)
    done, _ = await asyncio.wait([task], timeout=ENDS_S)
    remedy = "let asyncio.CancelledError pass, with `raise` at the end of any `except` that catches it"
    if not done:
        coroutine.close()  # it would keep the loop from ending
        task.cancel()
        await asyncio.wait([task], timeout=ENDS_S)
        raise Fault(f"{name} goes on when it is cancelled: {remedy}")
    if asked and not task.cancelled():
        raise Fault(f"{name} ends as if nothing had been when it is cancelled: {remedy}")
    if not task.cancelled():
        task.exception()


async def _cancel(task: asyncio.Future[Any], turns: int) -> bool:
    """Cancel it after some turns; whether it was still running."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return task.cancel()


async def _noise_s() -> float:
    """The longest that nothing at all took on this machine, just now."""
    longest = 0.0
    for _ in range(200):
        began = time.perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - began)
    return longest


def _tables(kind: Any, seen: set[type]) -> Iterator[type[msgspec.Struct]]:
    """The structs that settings consist of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        seen.add(kind)
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from _tables(field.type, seen)
    for inner in get_args(kind):
        yield from _tables(inner, seen)
