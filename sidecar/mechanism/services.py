"""What plugins get from the sidecar: an HTTP client that all share, a tracer, numbers of their own, and kept resources.

A kept resource outlives the plugin that asked for it first: it is closed when nobody of those who asked is left.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from http.cookiejar import Cookie, CookieJar
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.request import getproxies

import httpx
import msgspec
from opentelemetry.trace import NoOpTracer, Tracer

from sidecar.mechanism.bounded import Bounded
from sidecar.mechanism.pool import Pool
from sidecar.mechanism.transport import PoolTransport
from sidecar.mechanism.watchdog import Marker

log = logging.getLogger(__name__)

T = TypeVar("T")

Labels = tuple[tuple[str, str], ...]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
MOST_SERIES = 1000  # of one plugin: labels that are never the same twice would fill the memory
MAKE_S = 30.0  # for a resource that is kept, as `open` has it
CLOSE_S = 10.0
MOST_REQUESTS = 200  # of all plugins, at the same time


class Counter(msgspec.Struct):
    """A sum. labels: of this series."""

    name: str
    labels: dict[str, str]
    value: float = 0.0


class Distribution(msgspec.Struct):
    """buckets: how many values were at most BUCKETS[i], and in the last place how many were above them all."""

    name: str
    labels: dict[str, str]
    count: int = 0
    sum: float = 0.0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS) + 1))


class Numbers:
    """The metrics of one plugin (plugin_sdk.Metrics), over all of its generations. dropped: values of too many series.

    May be called from any thread.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], Counter] = {}
        self._distributions: dict[tuple[str, Labels], Distribution] = {}

    def count(self, name: str, amount: float = 1, labels: Mapping[str, str] | None = None) -> None:
        """Add to a counter. Raises ValueError if `amount` is less than 0."""
        if amount < 0:
            raise ValueError(f"a counter only rises: {name} by {amount}")
        with self._lock:
            if (counter := self._series(self._counters, Counter, name, labels)) is not None:
                counter.value += amount

    def observe(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Add a value to a distribution."""
        with self._lock:
            if (found := self._series(self._distributions, Distribution, name, labels)) is not None:
                found.count += 1
                found.sum += value
                found.buckets[bisect.bisect_left(BUCKETS, value)] += 1

    def counters(self) -> tuple[Counter, ...]:
        """All sums as they are now."""
        with self._lock:
            return tuple(msgspec.structs.replace(counter) for counter in self._counters.values())

    def distributions(self) -> tuple[Distribution, ...]:
        """All distributions as they are now."""
        with self._lock:
            found = self._distributions.values()
            return tuple(msgspec.structs.replace(one, buckets=list(one.buckets)) for one in found)

    def _series(
        self, held: dict[tuple[str, Labels], T], kind: Callable[[str, dict[str, str]], T], name: str, labels: Any
    ) -> T | None:
        key = (name, tuple(sorted(labels.items())) if labels else ())
        series = held.get(key)
        if series is None:
            if len(self._counters) + len(self._distributions) >= MOST_SERIES:
                self.dropped += 1
                return None
            series = held[key] = kind(name, dict(labels or {}))
        return series


class Host:
    """The services of all plugins of a sidecar. close_failures: kept resources whose closing went wrong.

    state: the sidecar's folder for what outlives it; None = it keeps nothing on disk.
    """

    def __init__(self, tracer: Tracer | None = None, state: Path | None = None) -> None:
        self.tracer = tracer if tracer is not None else NoOpTracer()
        self.state = state
        self.close_failures = 0
        self._numbers: dict[str, Numbers] = {}
        self._kept: dict[str, _Kept] = {}
        self._http: _SharedClient | None = None
        self._lock = threading.Lock()

    @property
    def http(self) -> httpx.AsyncClient:
        """Made when somebody first asks, which most sidecars' plugins never do."""
        with self._lock:
            if self._http is None:
                limits = httpx.Limits(max_connections=MOST_REQUESTS, max_keepalive_connections=50)
                timeout = httpx.Timeout(30.0, connect=5.0)
                # Proxies that the environment names come first.
                direct = (
                    {} if {"http", "all"} & set(getproxies()) else {"http://": PoolTransport(Pool(), MOST_REQUESTS)}
                )
                self._http = _SharedClient(limits=limits, timeout=timeout, cookies=_NoCookies(), mounts=direct)
            return self._http

    def of(self, name: str) -> PluginServices:
        """The services of one instance of the plugin `name`."""
        return PluginServices(self, self.numbers(name), Marker(name))

    def numbers(self, name: str) -> Numbers:
        """The metrics of the plugin `name`."""
        return self._numbers.setdefault(name, Numbers())

    def kept(self) -> tuple[str, ...]:
        """The resources that are kept now, as `PLUGIN:KEY`."""
        return tuple(sorted(self._kept))

    async def close(self) -> None:
        """Close what is shared. No plugin is open any more."""
        if self._http is not None:
            await self._http.really_close()

    async def keep(
        self,
        user: PluginServices,
        key: str,
        make: Callable[[], Awaitable[T]],
        close: Callable[[T], Awaitable[None]],
    ) -> T:
        """The resource, made by whoever asks first. Raises what `make` raises, to everybody who waits for it."""
        kept = self._kept.get(key)
        if kept is None:
            making = asyncio.create_task(_within(MAKE_S, make, user.marker), name=f"keep {key}")
            kept = self._kept[key] = _Kept(key, making, cast(Callable[[Any], Awaitable[None]], close))
        kept.users.add(user)
        try:
            return cast(T, await asyncio.shield(kept.making))
        except BaseException:
            if kept.making.done():  # else it is only we who wait no longer
                self._drop(kept)
            raise

    async def release(self, user: PluginServices) -> None:
        """An instance is closed: what only it has kept is closed too."""
        for kept in [kept for kept in self._kept.values() if user in kept.users]:
            kept.users.discard(user)
            if not kept.users:
                self._drop(kept)
                await self._close(kept, user.marker)

    def _drop(self, kept: _Kept) -> None:
        if self._kept.get(kept.key) is kept:
            del self._kept[kept.key]

    async def _close(self, kept: _Kept, marker: Marker) -> None:
        kept.making.cancel()  # no effect on one that is made
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.wait((kept.making,))
            if not kept.making.cancelled() and kept.making.exception() is None:
                await _within(CLOSE_S, functools.partial(kept.close, kept.making.result()), marker)
        except Exception:
            self.close_failures += 1
            log.exception("what the plugin kept as %s did not close", kept.key)


class PluginServices:
    """The services of one plugin instance (plugin_sdk.services.Services). marker: for the code that it gives `keep`."""

    def __init__(self, host: Host, numbers: Numbers, marker: Marker) -> None:
        self.metrics = numbers
        self.marker = marker
        self._host = host

    @property
    def http(self) -> httpx.AsyncClient:
        return self._host.http

    @property
    def tracer(self) -> Tracer:
        return self._host.tracer

    @property
    def state_dir(self) -> Path:
        if self._host.state is None:
            raise RuntimeError("this sidecar keeps nothing on disk")
        return self._host.state

    async def keep(self, key: str, make: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        return await self._host.keep(self, key, make, close)

    async def close(self) -> None:
        """The instance is closed: let go of what it has kept."""
        await self._host.release(self)


class _Kept:
    """A resource, or the making of it, and who uses it."""

    def __init__(self, key: str, making: asyncio.Task[Any], close: Callable[[Any], Awaitable[None]]) -> None:
        self.key = key
        self.making = making
        self.close = close
        self.users: set[PluginServices] = set()


class _NoCookies(CookieJar):
    """Keeps none: what one user's request brought must not go out with another's."""

    def set_cookie(self, cookie: Cookie) -> None:
        """Forget it."""


class _SharedClient(httpx.AsyncClient):
    """A client that no single plugin can close under the others."""

    async def aclose(self) -> None:
        """Refused: `async with` and `aclose` are for clients of one's own."""
        raise RuntimeError("self.http is shared by all plugins, and the sidecar closes it")

    async def __aenter__(self) -> _SharedClient:
        return await self._refuse()

    async def _refuse(self) -> _SharedClient:
        raise RuntimeError("self.http is shared by all plugins: use it without `async with`")

    async def really_close(self) -> None:
        """The end of the sidecar."""
        await super().aclose()


async def _within(deadline_s: float, call: Callable[[], Awaitable[T]], marker: Marker) -> T:
    """What the plugin's function gives, which may be any awaitable. Its SystemExit becomes an ordinary error."""

    async def run() -> T:
        return await call()

    return await Bounded(run(), deadline_s, marker)
