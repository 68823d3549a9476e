"""The model in a request's query, `?model=NAME`: for requests that have no body in which it could stand.

What it names must be beyond doubt, since keys may be for some models only. So a body that names a model, too, must name
the same one, and a body that is not read must not be one in which a server would look for a model.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_plus

from sidecar.surfaces.dataplane.body import Head, read_head
from sidecar.surfaces.dataplane.errors import ApiError

_KEY = "model"
_RAW = ("audio/", "video/", "image/", "application/octet-stream")  # what no server takes for JSON or a form
_object = re.compile(rb"(?:\xef\xbb\xbf)?+[ \t\r\n]*+\{").match  # a byte order mark is no JSON, and often passed over


def model_in(query: str) -> str | None:
    """The model that a query names; None if it names none. Raises ApiError if it names one more than once."""
    if not query:
        return None
    found = [value for name, value in map(_split, query.split("&")) if unquote_plus(name) == _KEY]
    if len(found) > 1:
        raise ApiError(400, "invalid_query", "the query names a model twice", param=_KEY)
    return unquote_plus(found[0]) if found else None


def with_model(query: str, name: str) -> str:
    """The query with the model's name replaced, every other byte as it was."""
    return "&".join(_renamed(pair, name) for pair in query.split("&"))


def head_of(body: bytes, content_type: str, named: str | None) -> Head:
    """What matters of a body. named: the model that the query names, if it does; then the body need not name one.

    Raises ApiError, also where the two differ.
    """
    if named is None:
        return read_head(body, content_type)
    if not body or (_is_raw(content_type) and not may_be_object(body)):
        return Head()
    head = read_head(body, content_type)
    check(head.model, named)
    return head


def check(model: str | None, named: str | None) -> None:
    """Raise ApiError if the body names another model than the query."""
    if model is not None and named is not None and model != named:
        raise ApiError(400, "model_conflict", "the query and the body name different models", param=_KEY)


def may_be_object(body: bytes) -> bool:
    """Whether a parser could take it for a JSON object."""
    return _object(body) is not None


def _renamed(pair: str, name: str) -> str:
    key, value = _split(pair)
    if unquote_plus(key) != _KEY or unquote_plus(value) == name:
        return pair
    return f"{key}={quote(name, safe='')}"


def _split(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    return name, value


def _is_raw(content_type: str) -> bool:
    return content_type.strip().lower().startswith(_RAW)
