"""What a plugin gets from the program that it runs in, beyond its settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:  # whoever uses them has them; nothing of them is imported at run time
    from httpx import AsyncClient
    from opentelemetry.trace import Tracer

T = TypeVar("T")


class Metrics(Protocol):
    """Numbers of a plugin's own, over all of its reloads; `GET /-/plugins` shows them."""

    def count(self, name: str, amount: float = 1, labels: Mapping[str, str] | None = None) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Add a value to a distribution, such as seconds."""


class Services(Protocol):
    """The host of a plugin."""

    @property
    def http(self) -> AsyncClient: ...

    @property
    def tracer(self) -> Tracer: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def state_dir(self) -> Path: ...

    async def keep(self, key: str, make: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T: ...


class _NoMetrics:
    def count(self, name: str, amount: float = 1, labels: Mapping[str, str] | None = None) -> None:
        """Nobody counts."""
        del name, amount, labels

    def observe(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Nobody measures."""
        del name, value, labels


class Standalone:
    """Services of a plugin that runs in no program, as in a unit test: what needs one says so."""

    metrics: Metrics = _NoMetrics()

    @property
    def http(self) -> AsyncClient:
        raise RuntimeError("self.http is there once the plugin runs in a sidecar, or in plugin_sdk.testing.Harness")

    @property
    def tracer(self) -> Tracer:
        raise RuntimeError("self.tracer is there once the plugin runs in a sidecar, or in plugin_sdk.testing.Harness")

    @property
    def state_dir(self) -> Path:
        raise RuntimeError("self.state_dir is there once the plugin runs in a sidecar: give it a path in its config")

    async def keep(self, key: str, make: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        """Made, and nobody else's: closing it is left to the test that has it made."""
        del key, close
        return await make()
