"""The kinds of plugin, each a class with one method to write.

`async def` methods run on the event loop, plain `def` methods run in threads of that plugin's own, and `@inline` marks
a plain method that promises not to block, so that it may run straight on the loop. Nothing here does I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

from plugin_sdk.config import Config
from plugin_sdk.errors import NotReady
from plugin_sdk.messages import (
    DeviceStatus,
    Endpoint,
    Event,
    Exchange,
    Headers,
    ModelInfo,
    Outcome,
    Principal,
    Request,
    Response,
    Target,
    Upstream,
    Usage,
)
from plugin_sdk.reports import LoadedServer, UsageQuery, UsageReport
from plugin_sdk.services import Metrics, Services, Standalone
from plugin_sdk.shapes import openai_error
from plugin_sdk.usage import openai_usage

T = TypeVar("T")

if TYPE_CHECKING:
    from httpx import AsyncClient
    from opentelemetry.trace import Tracer

if TYPE_CHECKING:  # a default for the type parameter (PEP 696), so that `class A(Auth)` is complete; erased at run time
    from typing_extensions import TypeVar as DefaultTypeVar

    C = DefaultTypeVar("C", bound=Config, default=Config)
else:
    C = TypeVar("C", bound=Config)

F = TypeVar("F", bound=Callable[..., Any])


class Plugin(Generic[C]):
    """Base of all kinds. `config` is what the manifest says, checked; `name` is what the manifest calls the plugin."""

    kind: ClassVar[str] = ""
    reads_body: ClassVar[bool] = True  # of requests; False lets large ones pass while they come, with `body` empty

    def __init__(self, config: C | None = None, *, name: str = "", services: Services | None = None) -> None:
        self.config: C = config if config is not None else cast(C, settings_of(type(self))())
        self.name = name or type(self).__name__
        self.log = logging.getLogger(f"sidecar.plugins.{self.name}")
        self._services: Services = services or Standalone()

    @property
    def http(self) -> AsyncClient:
        """An HTTP client that all plugins share (`httpx.AsyncClient`). Do not close it."""
        return self._services.http

    @property
    def tracer(self) -> Tracer:
        """For spans of your own (`opentelemetry.trace.Tracer`); they are children of the request's."""
        return self._services.tracer

    @property
    def metrics(self) -> Metrics:
        """For numbers of your own."""
        return self._services.metrics

    @property
    def state_dir(self) -> Path:
        """Where files of your own may stay: the sidecar's state directory. Name them after the plugin."""
        return self._services.state_dir

    async def keep(self, key: str, make: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        """A resource that survives reloads, such as a pool: made once for all plugins of this name that ask for `key`.

        It is closed when the last of them is. Ask for it in `open`.
        """
        return await self._services.keep(f"{self.name}:{key}", make, close)

    async def open(self) -> None:
        """Acquire what the plugin needs. Called once, before its first request; raising keeps the plugin out."""

    async def close(self) -> None:
        """Give back what `open` took. Always called once at the end, also when `open` raised."""


class Device(Plugin[C]):
    """A class of devices: `required_devices = ["<provides>"]` in a manifest means any one of them."""

    kind = "device"
    provides: ClassVar[str] = ""
    visibility_env: ClassVar[str] = ""  # variable that restricts a server to given devices, e.g. CUDA_VISIBLE_DEVICES
    host_memory: ClassVar[bool] = False  # its memory is the machine's RAM, so a process's use of it is its resident set

    def probe(self) -> DeviceStatus | list[DeviceStatus] | Awaitable[DeviceStatus | list[DeviceStatus]]:
        """The devices as they are now: [] without hardware or driver. Raising makes the known ones *unknown*."""
        raise NotImplementedError


class Interface(Plugin[C]):
    """A mode of talking to a server: which paths, what ready means, where usage stands, how errors look."""

    kind = "interface"
    provides: ClassVar[str] = ""
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()
    events: ClassVar[bool] = True  # answers are text: JSON or server-sent events, which `on_event` filters can read
    usage_on_request: ClassVar[bool] = False  # streams tell usage only if `stream_options.include_usage` asks for it

    async def ready(self, upstream: Upstream) -> bool:
        """Whether the server can serve. By default `/health`, or `/v1/models` where there is no such path.

        Raises NotReady with the reason, or OSError when nothing answers.
        """
        reply = await upstream.get("/health")
        if reply.status == 404:
            reply = await upstream.get("/v1/models")
        if reply.status >= 300:
            raise NotReady(f"health check answered {reply.status}: {reply.body[:200].decode('utf-8', 'replace')}")
        return True

    async def alive(self, upstream: Upstream) -> bool:
        """Whether a server that was ready still is, every few seconds for those that the sidecar did not start.

        By default what `ready` says: override it where `ready` asks for work, as with `await super().ready(upstream)`.
        """
        return await self.ready(upstream)

    def validate(self, request: Request) -> None:
        """Refuse a request that this mode cannot serve, by raising Reject. By default none is. Must not block."""

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """Read token counts from the end of a response body; None when there are none. Must not block."""
        return openai_usage(tail, streamed)

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        """The body of an error that the sidecar answers itself, on one line; by default in OpenAI's shape.

        param: the field of the request that is to blame. Must not block.
        """
        return openai_error(status, code, message, param)

    def error_event(self, error: bytes) -> bytes:
        """The event that ends a stream which breaks off. error: such a body. Must not block."""
        return b"data: " + error + b"\n\n"


class Auth(Plugin[C]):
    """Who is calling."""

    kind = "auth"

    def authenticate(self, request: Request) -> Principal | Awaitable[Principal]:
        """Admit the caller as a Principal, or raise Reject(401, reason)."""
        raise NotImplementedError


class Route(Plugin[C]):
    """Where a request goes: one of the targets that the manifest has, or one of the plugin's own."""

    kind = "route"

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | Awaitable[Target | None] | None:
        """Pick one of `targets`, or give one of your own; None leaves it to the next plugin, or to the manifest.

        `targets` is empty where none of them answers; and for a model that no manifest declares, which only plugins
        that have `models` are asked about. Then None means that there is no such model.
        """
        raise NotImplementedError

    def models(self) -> list[ModelInfo] | Awaitable[list[ModelInfo]]:
        """The models that the plugin has besides those that manifests declare, for `/v1/models`.

        Asked for when somebody wants to know, at most once a second. If it fails, the list before stays. A model
        that is not in the list yet is served as well, if `resolve` knows it.
        """
        return []

    def finished(self, target: Target, outcome: Outcome) -> None:
        """What became of a request that went to `target`; for health and load. Must not block."""


class Filter(Plugin[C]):
    """Change or refuse what passes. Override any of the hooks; those that are not overridden cost nothing.

    `on_request` is called in the manifest's order, all others in the reverse order. Hooks may raise Reject; once the
    head of the answer has been sent, it breaks the answer off. Either `on_chunk` (bytes as they come) or `on_event`
    (parsed, whatever the pieces in which they came) may be overridden, not both. A filter that fails refuses the
    request, unless the manifest says `on_error = "skip"`.
    """

    kind = "filter"
    modes: ClassVar[tuple[str, ...]] = ()  # the interface modes that it can run on; () = all

    def on_request(self, exchange: Exchange) -> Request | Response | Awaitable[Request | Response | None] | None:
        """Before anything is sent: another request, an answer of your own, or None to let it pass as it is.

        An answer passes the filters before this one, as the server's would; those after it never see the request.
        Of another request, method, path, query, headers and body are used; which model it goes to does not change.
        """

    def on_response(self, exchange: Exchange) -> Response | Headers | Awaitable[Response | Headers | None] | None:
        """When the head of the answer has come: another head, or None. `exchange.response` is the one so far.

        Headers alone take the place of those of the same names, and leave all else as it is, `exchange.response` too;
        that costs the least.
        """

    def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes | Awaitable[bytes | None] | None:
        """For each piece of the body: other bytes, or None to leave it; at `exchange.last` the piece is empty."""

    def on_event(
        self, exchange: Exchange, event: Event
    ) -> Event | list[Event] | Awaitable[Event | list[Event] | None] | None:
        """For each event, or for a body that is no stream: others in its place ([] = none), or None to leave it.

        When a stream is over (`exchange.last`) it is called once more, with an event without data, which is not sent:
        the moment to give out what was held back. Not for a body that is no stream: that one is the last already.
        """

    def on_end(self, exchange: Exchange, outcome: Outcome) -> Awaitable[None] | None:
        """Once at the end of every request that `on_request` has seen, however it ended."""


class Stats(Plugin[C]):
    """A sink for outcomes: called off the hot path, from a bounded queue; what does not fit is dropped and counted."""

    kind = "stats"

    def record(self, outcome: Outcome) -> Awaitable[None] | None:
        """Take note of one finished request."""
        raise NotImplementedError

    def record_many(self, outcomes: Sequence[Outcome]) -> Awaitable[None] | None:
        """Take note of several at once, in their order. If it is overridden, the sidecar calls it in place of `record`.

        For what costs less for many than for each, such as writing to a database.
        """
        raise NotImplementedError

    def loaded(self, servers: Sequence[LoadedServer]) -> Awaitable[None] | None:
        """Which servers hold memory: all of them, every few seconds, and once those that have ended since.

        The same server comes again and again, with a later `until_s`; that is what must not be counted twice.
        """

    def report(self, query: UsageQuery) -> UsageReport | Awaitable[UsageReport]:
        """What the usage was, for `sidecar usage`. Raises Reject(400, reason) for a query that makes no sense to it.

        If no sidecar runs, the command asks a plugin that nobody has opened: then read what is there, and make nothing.
        Raises PluginError if there is nothing to read.
        """
        raise NotImplementedError


def inline(method: F) -> F:
    """Promise that a plain method never blocks: it is then called on the event loop, without a thread.

    Raises TypeError for a class, such as `@auth` makes: it belongs below.
    """
    if isinstance(method, type):
        raise TypeError(f"{method.__name__} is a plugin already: put @inline below the decorator that made it")
    setattr(method, "__sidecar_inline__", True)  # noqa: B010 - a checked attribute would need a cast on every callable
    return method


def is_inline(method: Callable[..., Any]) -> bool:
    """Whether `inline` marked the method."""
    return bool(getattr(method, "__sidecar_inline__", False))


def settings_of(plugin: type[Plugin[Any]]) -> type[Config]:
    """The Config type that a plugin class was given: `Settings` for `class A(Auth[Settings])`, else Config itself."""
    given = given_to(plugin)
    return cast(type[Config], given) if isinstance(given, type) else Config


def given_to(plugin: type[Plugin[Any]]) -> object:
    """What stands in the brackets for the settings, whatever it is; None if nothing does."""
    return _given(plugin, {})


def _given(plugin: type[Plugin[Any]], known: Mapping[object, object]) -> object:
    """known: what the class's own type parameters stand for; there may be others than the one for the settings."""
    for base in vars(plugin).get("__orig_bases__", plugin.__bases__):
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, Plugin)):
            continue
        arguments = [known.get(argument, argument) for argument in get_args(base)]
        if origin is Plugin:
            return None if not arguments or isinstance(arguments[0], TypeVar) else arguments[0]
        parameters: tuple[object, ...] = getattr(origin, "__parameters__", ())
        found = _given(origin, dict(zip(parameters, arguments, strict=False)))
        if found is not None:
            return found
    return None
