"""What must be known of a request body: which model, and whether it streams. The rest stays bytes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Annotated, TypeVar, cast

import msgspec

from sidecar.surfaces.dataplane import forms
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.scan import ObjectScan, Place

INCLUDE_USAGE = b'"include_usage":true'

T = TypeVar("T", bound=msgspec.Struct)


class Options(msgspec.Struct, frozen=True, gc=False):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


class Head(msgspec.Struct, frozen=True, gc=False):
    """The keys that matter; everything else is skipped over, not decoded."""

    model: str | None = None
    stream: bool | None = None
    stream_options: Options | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer is to come as a stream of events."""
        return self.stream is True

    @property
    def asks_usage(self) -> bool:
        """Whether the client wants an event with the token counts at the end of the stream."""
        return self.stream_options is not None and self.stream_options.include_usage is True


class _Loose(msgspec.Struct, gc=False):
    """A head whose flags are of other types. What is no boolean is for the server to judge."""

    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw()
    stream_options: msgspec.Raw = msgspec.Raw()


_NOTHING = msgspec.Raw()


class _Keys(msgspec.Struct, frozen=True, gc=False):
    """Whether there is a model, whatever it is."""

    model: msgspec.Raw = _NOTHING


_NoValue = Annotated[int, msgspec.Meta(ge=1, le=0)]
_OTHER_CASES = ["".join(letters) for letters in itertools.product(*zip("model", "MODEL", strict=True))][1:]


def _strict(known: type[T]) -> Callable[[bytes], T]:
    """A decoder that takes no "Model" beside those keys: servers written in Go would take it for the model.

    As keys that can have no value they cost less than half a microsecond, and no second look at the body.
    """
    refused = [(name, _NoValue, 0) for name in _OTHER_CASES]
    strict = msgspec.defstruct("Strict", refused, bases=(known,), frozen=True, gc=False)
    return msgspec.json.Decoder(cast(type[T], strict)).decode


_decode = _strict(Head)
_decode_keys_strictly = _strict(_Keys)
_decode_loose = msgspec.json.Decoder(_Loose).decode
_decode_keys = msgspec.json.Decoder(_Keys).decode
_options = msgspec.json.Decoder(Options).decode
_SPACE = rb"[ \t\n\r]*+"
_MODEL = re.compile(rb'"model"' + _SPACE + rb":" + _SPACE + rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
_OPEN = re.compile(_SPACE + rb"\{" + _SPACE)
_WANTED_MODEL = frozenset({b"model"})
_WANTED_OPTIONS = frozenset({b"stream_options"})
_WANTED_USAGE = frozenset({b"include_usage"})


def read_head(body: bytes, content_type: str = "") -> Head:
    """What matters of a JSON object, or of a form if the content type says that it is one.

    Raises ApiError; also if the model stands there more than once, or in other case, for servers differ in which one
    they take.
    """
    if forms.may_be_form(content_type) and (boundary := forms.boundary_of(content_type)):
        model, stream = forms.values(body, boundary, "model", "stream")
        return Head(model, stream == "true")
    try:
        head = _decode(body)
    except msgspec.ValidationError:
        head = _loose_head(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error
    count = body.count(b'"model"')
    if head.model is not None and (count != 1 or b"\\u" in body):
        _place_of_model(body)  # there may be another, perhaps in a spelling of its own
    elif head.model is None and (count or b"\\u" in body):
        _only(body, _WANTED_MODEL)  # null, for some, and for others perhaps not
    return head


def with_model(body: bytes, name: str, content_type: str = "") -> bytes:
    """The body with the model's name replaced in place, every other byte as it was.

    `read_head` has read it. Raises ApiError if there is not exactly one model in it.
    """
    if forms.may_be_form(content_type) and (boundary := forms.boundary_of(content_type)):
        return forms.with_value(body, boundary, "model", name)
    try:
        model = _decode_keys_strictly(body).model
    except msgspec.ValidationError:
        _only(body, _WANTED_MODEL)
        raise
    if model is _NOTHING:
        raise ApiError(400, "model_missing", 'the body must name a "model"', param="model")
    start, end = _place_of_model(body)
    return body[:start] + msgspec.json.encode(name) + body[end:]


def with_usage(body: bytes) -> bytes:
    """The body of a stream's request, so that its last event tells the token counts; other options are kept.

    Options that are no object stay as they are, for the server to judge. Raises ApiError if they stand there twice.
    """
    if b'"stream_options"' not in body:
        return _with_member(body, b'"stream_options":{' + INCLUDE_USAGE + b"}")
    place = _only(body, _WANTED_OPTIONS)
    if place is None:
        return _with_member(body, b'"stream_options":{' + INCLUDE_USAGE + b"}")
    start, end = place
    options = body[start:end]
    if options == b"null":
        options = b"{" + INCLUDE_USAGE + b"}"
    elif options.startswith(b"{"):
        flag = _only(options, _WANTED_USAGE)
        options = options[: flag[0]] + b"true" + options[flag[1] :] if flag else _with_member(options, INCLUDE_USAGE)
    return body[:start] + options + body[end:]


def _loose_head(body: bytes) -> Head:
    try:
        loose = _decode_loose(body)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_type", f"the body is not as expected: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error
    _only(body, _WANTED_MODEL)  # and in no other case
    try:
        options = _options(loose.stream_options)
    except (msgspec.DecodeError, UnicodeDecodeError):
        options = None  # not an object, or not there
    return Head(loose.model, bytes(loose.stream) == b"true", options)


def _place_of_model(body: bytes) -> Place:
    """Where the value of the top-level "model" is, which it has. Raises ApiError if there is another."""
    if found := _MODEL.search(body):
        without = bytearray(body)
        without[found.start() + 1] = 0x58  # "Xodel": if the object has no model any more, it was this one alone
        if _decode_keys(without).model is _NOTHING:
            return found.span(1)
    place = _only(body, _WANTED_MODEL)
    assert place is not None, "it has one"  # noqa: S101 - a law of this module
    return place


def _only(body: bytes, wanted: frozenset[bytes]) -> Place | None:
    scan = ObjectScan(wanted)
    scan.feed(body)
    scan.finish()
    [key] = wanted
    places = scan.places.get(key, [])
    if len(places) > 1:
        raise ApiError(400, "invalid_json", "the body has a key twice", param=key.decode())
    return places[0] if places else None


def _with_member(text: bytes, member: bytes) -> bytes:
    """A JSON object with another member, as its first."""
    opening = _OPEN.match(text)
    if opening is None:
        raise ApiError(400, "invalid_json", "the body is no JSON object")
    at = opening.end()
    return text[:at] + member + (b"" if text.startswith(b"}", at) else b",") + text[at:]
