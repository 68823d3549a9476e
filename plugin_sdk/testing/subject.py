"""The plugin that a contract is about, and how to bring it to life for one check."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from plugin_sdk.config import Config, convert
from plugin_sdk.kinds import Plugin, settings_of
from plugin_sdk.messages import Outcome, Request
from plugin_sdk.services import Services
from plugin_sdk.testing import samples
from plugin_sdk.testing.host import Host

DEADLINE_S = 10.0
SHOWN = 20  # of what is too long to be told whole
NO_SHARING = "keep what is a request's in local variables or exchange.state, not in self or in the module"

Settings = Config | Mapping[str, Any] | Callable[[Path], Config | Mapping[str, Any]]


class Fault(Exception):
    """What is wrong, and the remedy."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The class, and what its author gives to try it with (see `contract`)."""

    plugin: type[Plugin[Any]]
    config: Settings | None = None
    request: Request = samples.REQUEST
    stream: bytes = samples.STREAM
    http: Any = None

    @property
    def name(self) -> str:
        return self.plugin.__name__

    def settings(self, root: Path) -> Config:
        """The settings to make it with. Raises Fault if they are wrong."""
        given = self.config(root) if callable(self.config) else self.config
        if isinstance(given, Config):
            return given
        try:
            return convert(dict(given or {}), settings_of(self.plugin))
        except msgspec.ValidationError as error:
            raise Fault(f"its settings are not right: {error}; give contract(..., config={{...}})") from None

    def make(self, root: Path, services: Services) -> Plugin[Any]:
        """One plugin, not open yet."""
        settings = self.settings(root)
        try:
            return self.plugin(settings, name="contract", services=services)
        except Exception as error:
            raise Fault(
                f"it cannot be made: {_said(error)}. Acquire things in open(); an __init__ of your own must take "
                "*args and **kwargs, and hand them on to super().__init__"
            ) from error

    @asynccontextmanager
    async def alive(self, http: Any = None) -> AsyncIterator[Live]:
        """One plugin, open."""
        with tempfile.TemporaryDirectory(prefix="contract-", ignore_cleanup_errors=True) as root:
            host = Host(http or self.http or unreachable())
            plugin = self.make(Path(root), host)
            try:
                await within(host.call(plugin.open), f"{self.name}.open")
                yield Live(plugin, host)
            finally:
                await within(host.call(plugin.close), f"{self.name}.close")
                await host.close()
                if self.http is None and host._http is not None:
                    await host._http.aclose()


class Live:
    """An open plugin with its host."""

    def __init__(self, plugin: Any, host: Host) -> None:
        self.plugin = plugin
        self.host = host

    async def call(self, method: str, *args: Any, on_loop: bool = False) -> Any:
        """What a method of its own gives. Raises Fault if it takes too long."""
        call = self.host.call(getattr(self.plugin, method), *args, on_loop=on_loop)
        return await within(call, f"{type(self.plugin).__name__}.{method}")


async def within(call: Awaitable[Any], what: str) -> Any:
    """Its result. Raises Fault if it does not come."""
    limit = asyncio.timeout(DEADLINE_S)
    try:
        async with limit:
            return await call
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Fault(f"{what} did not end within {DEADLINE_S:g} s: give what it waits for a timeout") from error


def unreachable() -> Any:
    """An httpx client of a world where nothing answers; None where there is no httpx."""
    if importlib.util.find_spec("httpx") is None:
        return None
    httpx: Any = importlib.import_module("httpx")

    def refuse(request: Any) -> Any:
        raise httpx.ConnectError("nothing answers in a contract: give contract(..., http=...)", request=request)

    return httpx.AsyncClient(transport=httpx.MockTransport(refuse))


def raised(what: str, error: BaseException, remedy: str) -> Fault:
    """The fault of an error that should not have come, with the line of the author's that raised it."""
    return Fault(f"{what} raised {_said(error)}: {remedy}")


def _said(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def shown(outcome: Outcome) -> str:
    """An outcome, in short."""
    return ascii(outcome)[:160]
