"""`/upstream/{model}/...`: whatever else a model's server has, by any method, passed on as it is.

The model is known by the path, and callers may use it or not, as ever. Where the query or the body names a model, too,
it must be that one: a server may have others. What its other paths do is the server's business.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from urllib.parse import unquote

from plugin_sdk import Endpoint
from sidecar.surfaces.dataplane.body import read_head
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.forms import may_be_form
from sidecar.surfaces.dataplane.query import may_be_object, model_in

PREFIX = "/upstream/"
ENDPOINT = Endpoint(PREFIX, "upstream", "*")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # not TRACE: it tells the server's key


def takes(method: str) -> bool:
    """Whether requests of the method are passed on."""
    return method not in ("CONNECT", "TRACE")


def model_of(path: str) -> str:
    """The model's name or alias: the first segment, decoded once, so that "/" in a name is written "%2F"."""
    return unquote(path.removeprefix(PREFIX).partition("/")[0])


def server_path(path: str) -> str:
    """The path as the server gets it, with whatever else is in it; one that a filter has put in its place is kept."""
    if not path.startswith(PREFIX):
        return path
    return "/" + path.removeprefix(PREFIX).partition("/")[2]


def check_names(query: str, body: bytes, content_type: str, names: Collection[str]) -> None:
    """Raise ApiError if the request names a model that is not called so, or if that cannot be told."""
    for name in (model_in(query), _model_in_body(body, content_type)):
        if name is not None and name not in names:
            raise ApiError(400, "model_conflict", "the path and the rest of the request name different models")


def _model_in_body(body: bytes, content_type: str) -> str | None:
    if may_be_form(content_type):
        return read_head(body, content_type).model
    if not may_be_object(body):
        return None
    try:
        return read_head(body.removeprefix(codecs.BOM_UTF8)).model
    except ApiError:
        if not content_type or "json" in content_type.lower() or b'"model"' in body.lower():
            raise
        return None  # it only looks like JSON
