"""What a plugin has around it in a test: services that can be looked at, and calls as the sidecar makes them."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from plugin_sdk.kinds import is_inline

if TYPE_CHECKING:  # whoever gives them has them
    from httpx import AsyncClient
    from opentelemetry.trace import Tracer

T = TypeVar("T")


class Numbers:
    """Metrics that a test can read. counts: the sum of each counter. values: what was observed of each distribution.

    Labels stand behind the name, as in `tokens{model=qwen}`.
    """

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.values: dict[str, list[float]] = {}

    def count(self, name: str, amount: float = 1, labels: Mapping[str, str] | None = None) -> None:
        """Add to a counter. Raises ValueError if `amount` is less than 0, as in the sidecar."""
        if amount < 0:
            raise ValueError(f"a counter only rises: {name} by {amount}")
        key = _series(name, labels)
        self.counts[key] = self.counts.get(key, 0) + amount

    def observe(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Add a value to a distribution."""
        self.values.setdefault(_series(name, labels), []).append(value)


class Host:
    """The services of a plugin in a test (plugin_sdk.services.Services).

    held_s: the longest time for which each method kept the event loop to itself, by "Class.method".
    """

    def __init__(self, http: Any = None, tracer: Any = None) -> None:
        self.metrics = Numbers()
        self.held_s: dict[str, float] = {}
        self._http = http
        self._tracer = tracer
        self._state: tempfile.TemporaryDirectory[str] | None = None
        self._kept: dict[str, tuple[asyncio.Future[Any], Callable[[Any], Awaitable[None]]]] = {}

    @property
    def http(self) -> AsyncClient:
        if self._http is None:
            raise RuntimeError("there is no network in a test: give the client, Harness(..., http=httpx.AsyncClient())")
        return cast("AsyncClient", self._http)

    @property
    def tracer(self) -> Tracer:
        if self._tracer is None:
            raise RuntimeError("give the tracer that the test reads, Harness(..., tracer=...)")
        return cast("Tracer", self._tracer)

    @property
    def state_dir(self) -> Path:
        if self._state is None:
            self._state = tempfile.TemporaryDirectory(prefix="plugin-", ignore_cleanup_errors=True)
        return Path(self._state.name)

    async def keep(self, key: str, make: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        """Made once for all that ask for it, and closed with the host."""
        if key not in self._kept:
            self._kept[key] = asyncio.ensure_future(_awaited(make())), close
        return cast(T, await asyncio.shield(self._kept[key][0]))

    async def close(self) -> None:
        """Close what was kept, and remove the state directory."""
        while self._kept:
            making, close = self._kept.popitem()[1]
            await asyncio.wait([making])
            if not making.cancelled() and making.exception() is None:
                await close(making.result())
        if self._state is not None:
            self._state.cleanup()
            self._state = None

    async def call(self, method: Callable[..., Any], *args: Any, on_loop: bool = False) -> Any:
        """The result of a plugin's method, run as the sidecar runs it: on the loop, or in a thread.

        on_loop: it is one that the sidecar always calls directly, such as Interface.validate.
        """
        name = getattr(method, "__qualname__", repr(method))
        if inspect.iscoroutinefunction(method):
            result: Any = method(*args)
        elif on_loop or is_inline(method):
            began = time.perf_counter()
            result = method(*args)
            self._held(name, time.perf_counter() - began)
        else:
            result = await asyncio.to_thread(method, *args)
        return await _Timed(result, lambda took_s: self._held(name, took_s)) if inspect.isawaitable(result) else result

    def _held(self, name: str, took_s: float) -> None:
        self.held_s[name] = max(self.held_s.get(name, 0.0), took_s)


class _Timed:
    """Awaits it, and tells how long each of its steps took."""

    def __init__(self, awaitable: Awaitable[Any], told: Callable[[float], None]) -> None:
        self._coroutine = _awaited(awaitable)
        self._told = told

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731 - it changes with what the loop does
        while True:
            began = time.perf_counter()
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            finally:
                self._told(time.perf_counter() - began)
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on: it is meant for the one that waits
                step = _thrower(self._coroutine, error)
            else:
                step = lambda: self._coroutine.send(None)  # noqa: E731 - as above


def _thrower(coroutine: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _series(name: str, labels: Mapping[str, str] | None) -> str:
    inner = ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))
    return f"{name}{{{inner}}}" if inner else name
