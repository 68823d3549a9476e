"""What passes between the sidecar and its plugins: frozen values, no behaviour that does I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol

import msgspec

from plugin_sdk.config import Secret

RawHeaders = tuple[tuple[bytes, bytes], ...]


class Headers:
    """HTTP headers as they came: order, case and duplicates kept; looked up without regard to case (RFC 9110, 5.1).

    Several plugins see the same ones, so they cannot be changed: make new ones.
    """

    __slots__ = ("_token", "raw")
    raw: RawHeaders
    _token: str | None  # that of a caller, once it was looked for: clients send the same headers again and again

    def __init__(self, raw: RawHeaders = ()) -> None:
        _set_raw(self, raw)
        _set_token(self, None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("headers cannot be changed: make new ones")

    def get(self, name: str, default: str = "") -> str:
        """The first value of `name`, or `default`."""
        value = _first(self.raw, name.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def get_all(self, name: str) -> list[str]:
        """Every value of `name`, in order."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for key, value in self.raw if key.lower() == wanted]

    def __contains__(self, name: str) -> bool:
        return _first(self.raw, name.lower().encode("latin-1")) is not None

    def __repr__(self) -> str:
        return f"Headers({[name.decode('latin-1') for name, _ in self.raw]})"  # values may be secrets


# One is made for every request, and this is the quickest way.
_set_raw = Headers.__dict__["raw"].__set__
_set_token = Headers.__dict__["_token"].__set__


def _first(raw: RawHeaders, wanted: bytes) -> bytes | None:
    """The first value of a name in lower case."""
    length = len(wanted)
    for name, value in raw:
        if len(name) == length and name.lower() == wanted:
            return value
    return None


def _token(headers: Headers) -> str:
    """A caller's token, which is kept with the headers."""
    scheme, _, token = (_first(headers.raw, b"authorization") or b"").partition(b" ")
    found = token.strip() if scheme.lower() == b"bearer" else _first(headers.raw, b"x-api-key")
    told = found.decode("latin-1") if found else ""
    _set_token(headers, told)
    return told


class Principal(msgspec.Struct, frozen=True):
    """Who is calling. id: stable name for usage and limits. attributes: whatever the auth backend knows.

    An attribute `models`, a tuple or list of shell-style patterns, says which models the caller is told of. That he
    cannot use others is for the auth plugin to see to. An attribute `key`, a text, names the key that he has used, for
    the outcome: never the key itself.
    """

    id: str
    attributes: Mapping[str, Any] = {}

    @property
    def key(self) -> str:
        """What the key is called that was used; "" where nobody says."""
        name = self.attributes.get("key", "")
        return name if isinstance(name, str) else ""

    def may_use(self, *names: str) -> bool:
        """Whether the patterns have a model of these names; True where nothing is said of models."""
        patterns = self.attributes.get("models")
        if not isinstance(patterns, tuple | list):
            return True
        texts = [pattern for pattern in patterns if isinstance(pattern, str)]
        return any(fnmatchcase(name, pattern) for name in names for pattern in texts)


ANONYMOUS = Principal("anonymous")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One inference request, before anything was sent upstream.

    path: without the query. model: the name in the manifest, aliases resolved ("" when no model was asked for).
    requested_model: the name that the client used. listed: neither a manifest nor a plugin's list has the model if
    False; a Route plugin may know it, or there is no such model. body: the raw bytes.
    """

    method: str
    path: str
    query: str = ""
    headers: Headers = Headers()
    body: bytes = b""
    model: str = ""
    requested_model: str = ""
    listed: bool = True
    mode: str = ""
    client: str = ""
    principal: Principal = ANONYMOUS

    @property
    def bearer_token(self) -> str:
        """The token of `Authorization: Bearer` (RFC 6750), or of Anthropic's `x-api-key`; "" without either."""
        known = self.headers._token
        return known if known is not None else _token(self.headers)


def amended(request: Request, changed: Request) -> Request:
    """The request as a filter changed it: who asks, and for which model, stays what it was."""
    return msgspec.structs.replace(
        request,
        method=changed.method,
        path=changed.path,
        query=changed.query,
        headers=changed.headers,
        body=changed.body,
    )


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one request, as the server counted them. response_model: the model name that the server gave.

    cached_tokens are among the input's, reasoning_tokens among the output's. Speeds are None if it did not tell them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    input_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    response_model: str = ""


class End(enum.Enum):
    """How an exchange ended."""

    OK = "ok"  # the server's answer was relayed whole, whatever its status
    REFUSED = "refused"  # the sidecar, or a plugin, refused it, or broke it off
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One finished request, for Stats plugins. Times are seconds; started_s is unix time; None = did not happen.

    path: as it was sent, without the query. client: its address. key: which of the caller's keys, if the auth plugin
    tells them apart by the attribute `key` of its Principal. request_id: the client's `X-Request-Id`, if it is one.
    """

    model: str
    variant: str = ""
    mode: str = ""
    method: str = ""
    path: str = ""
    client: str = ""
    principal: str = ""
    key: str = ""
    end: End = End.OK
    status: int = 0
    code: str = ""
    streamed: bool = False
    cold: bool = False
    started_s: float = 0.0
    duration_s: float = 0.0
    queue_s: float = 0.0
    first_byte_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    usage: Usage | None = None
    trace_id: str = ""
    request_id: str = ""


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The head of an answer; or, if a Filter gives it from `on_request`, the whole answer, with its body.

    streamed: server-sent events follow. In `on_response` body is always empty: it has not come yet.
    """

    status: int = 200
    headers: Headers = Headers()
    streamed: bool = False
    body: bytes = b""


def with_headers(response: Response, headers: RawHeaders) -> Response:
    """The head with these in place of those of the same names."""
    names = {name.lower() for name, _ in headers}
    kept = [pair for pair in response.headers.raw if pair[0].lower() not in names]
    return msgspec.structs.replace(response, headers=Headers((*kept, *headers)))


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event (WHATWG HTML, 9.2.6), or the whole body of an answer that is no event stream.

    data: the joined `data` lines, undecoded. whole: it is such a body.
    """

    data: bytes
    name: str = ""
    id: str = ""
    whole: bool = False

    @property
    def is_json(self) -> bool:
        """Whether the data look like a JSON object; OpenAI's closing `[DONE]` does not."""
        return self.data[:1] == b"{"


class Exchange(msgspec.Struct, eq=False):
    """One request on its way through one filter: what has passed so far, and room for the filter's own notes.

    response: None until its head has come. last: nothing comes after what is being handed over now, which may be empty.
    state: the filter's own; nobody else sees it.
    """

    request: Request
    response: Response | None = None
    last: bool = False
    state: dict[str, Any] = {}  # a new one for each

    __repr__ = object.__repr__  # what passes may be large, and nobody else's business


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A place that a request can go to.

    name: the variant's, or whatever a Route plugin calls its own. base_url: "http://HOST:PORT", "https://HOST/PREFIX"
    or "unix:/PATH". model: what the server calls it. ready: it can serve at once (a server that has to be started
    cannot). in_flight: requests of ours that it has now.
    """

    name: str
    base_url: str
    model: str = ""
    api_key: Secret | None = None
    timeout_s: float | None = None
    weight: int = 1
    ready: bool = True
    in_flight: int = 0


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a Route plugin has besides those that manifests declare, as `/v1/models` shows it.

    name: what clients ask for. aliases: other names for it. modes: the interface modes that it speaks, () = any.
    created: unix seconds, 0 = not known.
    """

    name: str
    aliases: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    owned_by: str = "sidecar"
    created: int = 0


class DeviceProcess(msgspec.Struct, frozen=True):
    """A process that holds memory of a device. used_mb: None where the driver does not tell."""

    pid: int
    used_mb: int | None = None
    name: str = ""


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device as it is now. Memory in MB (2^20 bytes).

    id: stable over restarts, a UUID where the hardware has one; the plugin's own name when left empty.
    used_mb: total - free when left out. problem: why it cannot be read; such a device is *unknown*, not gone.
    shares: the id of the device whose memory it uses (unified memory: an integrated GPU and the machine's RAM, `cpu`).
    """

    total_mb: int = 0
    free_mb: int = 0
    used_mb: int | None = None
    id: str = ""
    name: str = ""
    index: int = 0
    utilisation_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    processes: tuple[DeviceProcess, ...] = ()
    problem: str = ""
    shares: str = ""


class Endpoint(msgspec.Struct, frozen=True):
    """A path of an interface mode. operation: the GenAI semantic conventions' `gen_ai.operation.name`."""

    path: str
    operation: str
    method: str = "POST"


class Reply(msgspec.Struct, frozen=True):
    """What a server answered to a probe."""

    status: int
    body: bytes = b""


class Upstream(Protocol):
    """A server, as an interface's `ready` sees it. Connection errors raise OSError; what hangs ends at the deadline."""

    async def get(self, path: str) -> Reply: ...

    async def post(self, path: str, body: bytes) -> Reply: ...
