"""The kinds of plugin, each a class with one method to write.

`async def` methods run on the event loop, plain `def` methods run in threads of that plugin's own, and `@inline` marks
a plain method that promises not to block, so that it may run straight on the loop. Nothing here does I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

import msgspec

from plugin_sdk.config import Config
from plugin_sdk.errors import NotReady
from plugin_sdk.messages import DeviceStatus, Endpoint, Outcome, Principal, Request, Upstream, Usage

if TYPE_CHECKING:  # a default for the type parameter (PEP 696), so that `class A(Auth)` is complete; erased at run time
    from typing_extensions import TypeVar as DefaultTypeVar

    C = DefaultTypeVar("C", bound=Config, default=Config)
else:
    C = TypeVar("C", bound=Config)

F = TypeVar("F", bound=Callable[..., Any])


class Plugin(Generic[C]):
    """Base of all kinds. `config` is what the manifest says, checked; `name` is what the manifest calls the plugin."""

    kind: ClassVar[str] = ""

    def __init__(self, config: C | None = None, *, name: str = "") -> None:
        self.config: C = config if config is not None else cast(C, settings_of(type(self))())
        self.name = name or type(self).__name__
        self.log = logging.getLogger(f"sidecar.plugins.{self.name}")

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
    """A mode of talking to a server: which paths, what ready means, where usage stands."""

    kind = "interface"
    provides: ClassVar[str] = ""
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()

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

    def validate(self, request: Request) -> None:
        """Refuse a request that this mode cannot serve, by raising Reject. By default none is. Must not block."""

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """Read token counts from the end of a response body; None when there are none. Must not block."""
        return openai_usage(tail, streamed)


class Auth(Plugin[C]):
    """Who is calling."""

    kind = "auth"

    def authenticate(self, request: Request) -> Principal | Awaitable[Principal]:
        """Admit the caller as a Principal, or raise Reject(401, reason)."""
        raise NotImplementedError


class Stats(Plugin[C]):
    """A sink for outcomes: called off the hot path, from a bounded queue; what does not fit is dropped and counted."""

    kind = "stats"

    def record(self, outcome: Outcome) -> Awaitable[None] | None:
        """Take note of one finished request."""
        raise NotImplementedError


def inline(method: F) -> F:
    """Promise that a plain method never blocks: it is then called on the event loop, without a thread."""
    setattr(method, "__sidecar_inline__", True)  # noqa: B010 - a checked attribute would need a cast on every callable
    return method


def is_inline(method: Callable[..., Any]) -> bool:
    """Whether `inline` marked the method."""
    return bool(getattr(method, "__sidecar_inline__", False))


def settings_of(plugin: type[Plugin[Any]]) -> type[Config]:
    """The Config type that a plugin class was given: `Settings` for `class A(Auth[Settings])`, else Config itself."""
    for base in plugin.__mro__:
        for generic in getattr(base, "__orig_bases__", ()):
            origin, arguments = get_origin(generic), get_args(generic)
            if isinstance(origin, type) and issubclass(origin, Plugin) and isinstance(arguments[0], type):
                return cast(type[Config], arguments[0])
    return Config


def device(provides: str, *, visibility_env: str = "") -> Callable[[Callable[[], Any]], type[Device]]:
    """Make a device class of a function that returns a DeviceStatus or a list of them."""

    def make(function: Callable[[], Any]) -> type[Device]:
        body = {
            "provides": provides,
            "visibility_env": visibility_env,
            "probe": staticmethod(function),
            "__doc__": function.__doc__,
            "__module__": function.__module__,
        }
        return type(function.__name__, (Device,), body)

    return make


class _OpenAIUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None


class _WithUsage(msgspec.Struct):
    usage: _OpenAIUsage | None = None
    model: str = ""


_decode_usage = msgspec.json.Decoder(_WithUsage).decode


def openai_usage(tail: bytes, streamed: bool) -> Usage | None:
    """The `usage` object of an OpenAI-shaped body, or of the last event that has one (`stream_options.include_usage`).

    `tail` is the whole JSON body, or the last kilobytes of the event stream. None when there is no usage or it is cut.
    """
    candidates = [tail]
    if streamed:
        lines = tail.splitlines()
        candidates = [line[5:].strip() for line in reversed(lines) if line.startswith(b"data:") and b'"usage"' in line]
    for text in candidates:
        try:
            found = _decode_usage(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # not JSON, cut off, or of another shape: then there is no usage to read
        if found.usage is not None:
            return _to_usage(found.usage, found.model)
    return None


def _to_usage(usage: _OpenAIUsage, model: str) -> Usage:
    cached = (usage.prompt_tokens_details or {}).get("cached_tokens")
    return Usage(
        input_tokens=usage.prompt_tokens or max(0, usage.total_tokens - usage.completion_tokens),
        output_tokens=usage.completion_tokens,
        cached_tokens=cached if isinstance(cached, int) else 0,
        response_model=model,
    )
