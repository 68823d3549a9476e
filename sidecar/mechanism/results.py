"""What a plugin's methods may return. Each check gives back a good result, and raises TypeError or ValueError else.

A bad one must not travel on: it would break the connection, or say on it what nobody meant.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from plugin_sdk import Event, Headers, ModelInfo, Principal, Request, Response, Target, Usage
from plugin_sdk.messages import RawHeaders
from plugin_sdk.sse import written
from sidecar.mechanism.hooks import expected

MOST_BYTES = 64 * 2**20  # that one call may return
MOST_EVENTS = 10_000
MOST_MODELS = 10_000
MOST_NAME = 200  # characters of a model's name

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: names of headers, methods
_NOT_IN_VALUE = re.compile(rb"[\0\r\n]")
_PATH = re.compile(r"/[\x21-\x22\x24-\x3e\x40-\x7e]*")  # neither controls nor spaces, "?" nor "#"
_QUERY = re.compile(r"[\x21-\x22\x24-\x7e]*")


def principal(result: Any) -> Principal:
    """Who is calling."""
    if not isinstance(result, Principal):
        raise expected("a Principal", result)
    return result


def target(result: Any) -> Target:
    """Where a request goes."""
    if not isinstance(result, Target):
        raise expected("a Target or None", result)
    parts = urlsplit(result.base_url)
    _ = parts.port  # raises ValueError
    if result.base_url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(f'expected a base_url "http://HOST:PORT" or "https://HOST", got "{result.base_url}"')
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


def request_or_response(result: Any) -> Request | Response:
    """What on_request gives."""
    if isinstance(result, Response):
        return response(result)
    if not isinstance(result, Request):
        raise expected("a Request, a Response or None", result)
    _check_headers(result.headers)
    _check_bytes(result.body)
    if not (isinstance(result.method, str) and _TOKEN.fullmatch(result.method.encode("utf-8", "replace"))):
        raise ValueError(f"expected a method such as POST, got {result.method!r:.80}")
    if not _PATH.fullmatch(result.path) or not _QUERY.fullmatch(result.query):
        raise ValueError("expected a path that starts with / and is percent-encoded, as is the query")
    return result


def response(result: Any) -> Response:
    """What on_response gives."""
    if not isinstance(result, Response):
        raise expected("a Response or None", result)
    if not (isinstance(result.status, int) and 200 <= result.status <= 599):
        raise ValueError(f"expected a status from 200 to 599, got {result.status!r}")
    _check_headers(result.headers)
    _check_bytes(result.body)
    return result


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
    return result


def body(result: Any) -> bytes:
    """What error and error_event give."""
    return _check_bytes(result)


def _check_texts(what: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"expected {what} as a tuple of texts, got {value!r:.80}")


def _check_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise expected("bytes", value)
    if len(value) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got {len(value)}")
    return value


def _check_headers(headers: Any) -> None:
    raw: RawHeaders = headers.raw if isinstance(headers, Headers) else headers
    if not isinstance(headers, Headers) or not isinstance(raw, tuple):
        raise expected("Headers of pairs of bytes", raw)
    for name, value in raw:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise expected("header names and values as bytes", name if not isinstance(name, bytes) else value)
        if not _TOKEN.fullmatch(name) or _NOT_IN_VALUE.search(value):
            raise ValueError(f"expected a header without line breaks, got {name!r}")
