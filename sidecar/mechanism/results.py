"""What a plugin's methods may return. Each check gives back a good result, and raises TypeError or ValueError else.

A bad one must not travel on: it would break the connection, or say on it what nobody meant.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from plugin_sdk import Event, Headers, ModelInfo, Principal, Reject, Request, Response, Secret, Target, Usage
from plugin_sdk.messages import RawHeaders
from plugin_sdk.sse import written
from sidecar.mechanism import origins
from sidecar.mechanism.hop_by_hop import HOP_BY_HOP

MOST_BYTES = 64 * 2**20  # that one call may return
MOST_EVENTS = 10_000
MOST_MODELS = 10_000
MOST_NAME = 200  # characters of a model's name
MOST_NAMES = 1024  # of headers, remembered

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: names of headers, methods
_PATH = re.compile(r"/[\x21-\x22\x24-\x3e\x40-\x7e]*")  # neither controls nor spaces, "?" nor "#"
_QUERY = re.compile(r"[\x21-\x22\x24-\x7e]*")
_BODILESS = (204, 304)  # statuses of answers without a body (RFC 9110, 6.4.1)
_NUL, _LF, _CR = b"\0\n\r"  # as numbers, which are found much faster than pieces of bytes
_NO_RESPONSE = Response()
_FRAMING = HOP_BY_HOP | {b"content-length"}  # what says where a body ends is for whoever sends it to say


def expected(kind: str, got: Any) -> TypeError:
    """The error of a result of another kind."""
    if asyncio.iscoroutine(got):
        got.close()  # nobody will await it
    return TypeError(f"expected {kind}, got {type(got).__name__}")


def principal(result: Any) -> Principal:
    """Who is calling."""
    if not isinstance(result, Principal):
        raise expected("a Principal", result)
    if not isinstance(result.id, str):
        raise expected("a Principal whose id is text", result.id)
    if not result.id:
        raise ValueError("expected a Principal with an id, got an empty one")
    _check_text("the id of a Principal", result.id)
    if type(result.attributes) is not dict and not isinstance(result.attributes, Mapping):
        raise expected("a Principal whose attributes are a mapping", result.attributes)
    return result


def reject(error: Reject) -> Reject:
    """A refusal that a client can be told. One of a subclass may lack anything."""
    for name in ("status", "message", "code", "retry_after_s", "headers"):
        if not hasattr(error, name):
            raise TypeError(f"{type(error).__name__} has no {name}: its __init__ must call that of Reject")
    if isinstance(error.status, bool) or not isinstance(error.status, int) or not 400 <= error.status <= 599:
        raise ValueError(f"expected a Reject with a status from 400 to 599, got {error.status!r:.80}")
    _check_text("the message of a Reject", error.message)
    _check_text("the code of a Reject", error.code)
    if error.retry_after_s is not None:
        _check_number("the retry_after_s of a Reject", error.retry_after_s)
    if not isinstance(error.headers, Mapping):
        raise expected("a Reject whose headers are a mapping", error.headers)
    for name, value in error.headers.items():
        _check_text("the name of a header", name)
        _check_text(f"the header {name!r:.80}", value)
        if name.lower().encode() in _FRAMING:
            raise ValueError(f"expected no header of the connection, got {name!r}")
    _check_headers(Headers(tuple((name.encode(), value.encode()) for name, value in error.headers.items())))
    return error


def target(result: Any) -> Target:
    """Where a request goes."""
    if not isinstance(result, Target):
        raise expected("a Target or None", result)
    for name in ("name", "base_url", "model"):
        _check_text(f"the {name} of a Target", getattr(result, name))
    for name in ("weight", "in_flight"):
        if not isinstance(getattr(result, name), int):
            raise expected(f"the {name} of a Target as a whole number", getattr(result, name))
    truth(result.ready)
    if result.timeout_s is not None:
        _check_number("the timeout_s of a Target", result.timeout_s)
        if result.timeout_s <= 0:
            raise ValueError(f"expected a timeout_s above 0, got {result.timeout_s}")
    _check_key(result.api_key)
    if result.base_url:
        try:
            origins.check(result.base_url)
        except ValueError as error:
            raise ValueError(f"the base_url of a Target leads nowhere: {error}") from None
    return result


def own_target(result: Any) -> Target:
    """Where a request goes whose model the plugin alone knows."""
    found = target(result)
    if not found.base_url:
        raise ValueError('expected a base_url "http://HOST:PORT", since no manifest has a server for the model')
    return found


def models(result: Any) -> tuple[ModelInfo, ...]:
    """The models that a plugin lists, each name once."""
    if not isinstance(result, list | tuple):
        raise expected("a list of ModelInfo", result)
    if len(result) > MOST_MODELS:
        raise ValueError(f"expected at most {MOST_MODELS} models, got {len(result)}")
    taken: set[str] = set()
    for one in result:
        if not isinstance(one, ModelInfo):
            raise expected("a list of ModelInfo", one)
        _check_texts("modes", one.modes)
        _check_texts("aliases", one.aliases)
        if not isinstance(one.owned_by, str) or not isinstance(one.created, int):
            raise TypeError(f"expected owned_by as text and created as a whole number of the model {one.name!r}")
        for name in (one.name, *one.aliases):
            if not isinstance(name, str) or not is_name(name):
                raise ValueError(f"expected a name of 1 to {MOST_NAME} characters that can be seen, got {name!r:.80}")
            if name in taken:
                raise ValueError(f"expected each name once, got {name!r} more often")
            taken.add(name)
    return tuple(result)


def is_name(text: str) -> bool:
    """Whether a plugin's model may be called so."""
    return 0 < len(text) <= MOST_NAME and text.isprintable() and not text.isspace()


def request_or_response(result: Any, before: Request) -> Request | Response:
    """What on_request gives. before: the request as the plugin got it; what is still the very same of it is good."""
    if isinstance(result, Response):
        return response(result)
    if not isinstance(result, Request):
        raise expected("a Request, a Response or None", result)
    _check_headers(result.headers, before.headers)
    if result.body is not before.body:
        _check_bytes(result.body)
    if result.method is not before.method:
        _check_method(result.method)
    if result.path is not before.path or result.query is not before.query:
        _check_place(result.path, result.query)
    return result


def response(result: Any, before: Response = _NO_RESPONSE) -> Response:
    """A whole head. before: as the plugin got it."""
    if not isinstance(result, Response):
        raise expected("a Response or None", result)
    status = result.status
    if status is not before.status and not (isinstance(status, int) and 200 <= status <= 599):
        raise ValueError(f"expected a status from 200 to 599, got {status!r}")
    _check_headers(result.headers, before.headers)
    if result.body is not before.body:
        _check_bytes(result.body)
    return result


def head_or_headers(result: Any, before: Response) -> Response | Headers:
    """What on_response gives. before: the head as the plugin got it."""
    if not isinstance(result, Headers | Response):
        raise expected("a Response, Headers or None", result)
    if isinstance(result, Headers):
        _check_pairs(_raw(result))
        return result
    if result.status is not before.status and (result.status in _BODILESS) is not (before.status in _BODILESS):
        raise ValueError(f"expected a status that has a body if the answer has one, got {result.status!r}")
    return response(result, before)


def chunk(result: Any) -> bytes:
    """What on_chunk gives."""
    return _check_bytes(result)


def events(result: Any) -> list[Event]:
    """What on_event gives, as a list."""
    found = result if isinstance(result, list) else [result]
    if len(found) > MOST_EVENTS:
        raise ValueError(f"expected at most {MOST_EVENTS} events for one, got {len(found)}")
    for event in found:
        if not isinstance(event, Event):
            raise expected("an Event, a list of them, or None", event)
        _check_bytes(event.data)
        written(Event(data=b"", name=event.name, id=event.id))  # raises ValueError
    return found


def nothing(result: Any) -> None:
    """What on_end and validate give."""
    raise expected("None", result)


def truth(result: Any) -> bool:
    """What ready gives."""
    if not isinstance(result, bool):
        raise expected("True or False", result)
    return result


def usage(result: Any) -> Usage:
    """What usage gives."""
    if not isinstance(result, Usage):
        raise expected("a Usage or None", result)
    _check_count("input_tokens", result.input_tokens)
    _check_count("output_tokens", result.output_tokens)
    _check_count("cached_tokens", result.cached_tokens)
    if not isinstance(result.response_model, str):
        raise expected("response_model as text", result.response_model)
    return result


def line(result: Any) -> bytes:
    """What error gives: it may have to go into an event, where a line break would end it."""
    found = _check_bytes(result)
    if b"\n" in found or b"\r" in found:
        raise ValueError("expected an error on one line")
    return found


def body(result: Any) -> bytes:
    """What error_event gives."""
    return _check_bytes(result)


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise expected(f"{what} as text", value)
    if not value.isascii():
        value.encode()  # raises ValueError for half a surrogate pair, which nothing can be sent with


def _check_number(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise expected(f"{what} as a number of seconds", value)
    if not math.isfinite(value):
        raise ValueError(f"expected {what} as a number of seconds, got {value}")


def _check_count(what: str, value: Any) -> None:
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, int)):
        raise expected(f"{what} as a whole number", value)
    if value < 0:
        raise ValueError(f"expected {what} of 0 or more, got {value}")


def _check_key(key: Any) -> None:
    """It goes into a header. What is wrong with it is told without it."""
    if key is None:
        return
    if not isinstance(key, Secret):
        raise expected("the api_key of a Target as a Secret", key)
    if not isinstance(key.reveal(), str) or not key.reveal().isprintable():
        raise ValueError("expected the api_key of a Target as text without line breaks")


def _check_texts(what: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"expected {what} as a tuple of texts, got {value!r:.80}")


def _check_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise expected("bytes", value)
    if len(value) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got {len(value)}")
    return value


def _check_method(method: Any) -> None:
    if not (isinstance(method, str) and _TOKEN.fullmatch(method.encode("utf-8", "replace"))):
        raise ValueError(f"expected a method such as POST, got {method!r:.80}")


def _check_place(path: Any, query: Any) -> None:
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise ValueError("expected a path that starts with / and is percent-encoded, as is the query")


def _check_headers(headers: Any, before: Headers = _NO_RESPONSE.headers) -> None:
    """before: those of which the same pairs are good, since they came over a connection."""
    if headers is before:
        return
    raw = _raw(headers)
    came, count = before.raw, len(before.raw)
    if raw[:count] == came:  # as a rule, some are added
        new: Iterable[Any] = raw[count:]
    else:
        good = set(map(id, came))
        new = [pair for pair in raw if id(pair) not in good]
    _check_pairs(new)


def _raw(headers: Any) -> RawHeaders:
    raw: RawHeaders = headers.raw if isinstance(headers, Headers) else headers
    if not isinstance(headers, Headers) or not isinstance(raw, tuple):
        raise expected("Headers of pairs of bytes", raw)
    return raw


def _check_pairs(pairs: Iterable[Any]) -> None:
    for name, value in pairs:
        if type(name) is not bytes or type(value) is not bytes:
            _check_pair(name, value)
        if not _is_token[name] or not (value.isalnum() or _is_one_line(value)):
            raise ValueError(f"expected a header without line breaks, got {name!r}")


def _check_pair(name: Any, value: Any) -> None:
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise expected("header names and values as bytes", name if not isinstance(name, bytes) else value)


def _is_one_line(value: bytes) -> bool:
    return _LF not in value and _CR not in value and _NUL not in value


class _Tokens(dict[bytes, bool]):
    """Whether names are good, remembered: most plugins add headers of the same few. A dict is the quickest memory."""

    def __missing__(self, name: bytes) -> bool:
        if len(self) >= MOST_NAMES:
            self.clear()
        good = self[name] = _TOKEN.fullmatch(name) is not None
        return good


_is_token = _Tokens()
