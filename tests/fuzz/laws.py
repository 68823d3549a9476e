"""What must hold for any bytes whatever. Each law takes them, and fails by an assertion or by any other exception."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from plugin_sdk.sse import Parser, Piece
from plugin_sdk.usage import anthropic_usage, openai_usage, responses_usage
from sidecar.surfaces.dataplane.body import Head, read_head, with_model, with_usage
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.forms import boundary_of
from sidecar.surfaces.dataplane.tail import Tail
from sidecar.surfaces.dataplane.withheld import UsageWithheld
from tests.surfaces.bodies import uploaded

FORM = "multipart/form-data; boundary=b"
NAME = 'an"other'


def head(data: bytes) -> None:
    """Of what is read, a JSON parser reads the same, and in whatever case; what is refused has none or two models."""
    members = _members(data)
    found = _head(data)
    if found is None:
        assert members is None or _is_beyond(data) or not _has_one_model(members)
        return
    if members is None:
        assert not _is_utf8(data)  # nobody reads what is skipped over
        return
    assert _has_one_model(members)
    assert found.model == dict(members).get("model")
    options = dict(members).get("stream_options")
    assert found.streams is (dict(members).get("stream") is True)
    assert found.asks_usage is (isinstance(options, dict) and options.get("include_usage") is True)


def splice(data: bytes) -> None:
    """Another name, and asking for usage, change nothing else."""
    found = _head(data)
    members = _members(data)
    if found is None or members is None:
        return
    value = dict(members)
    if found.model is not None:
        changed = with_model(data, NAME)
        assert json.loads(changed) == value | {"model": NAME}
        assert with_model(changed, found.model) == with_model(data, found.model)
    try:
        asking = with_usage(data)
    except ApiError:
        return  # the options stand there twice
    options = value.get("stream_options")
    if options is None or isinstance(options, dict):
        options = (options or {}) | {"include_usage": True}
    if "stream_options" not in value or b'"stream_options"' in data:
        assert json.loads(asking) == value | {"stream_options": options}


def upload(data: bytes) -> None:
    """However an object is cut, the same comes out as of the whole."""
    _uploads_alike(data, "")


def form(data: bytes) -> None:
    """However a form is cut, the same comes out as of the whole."""
    _uploads_alike(data, FORM)


def stream(data: bytes) -> None:
    """Wherever events are cut, the extra one is withheld and no other; and no stream keeps usage from being read."""
    cuts, body = _cut(data)
    passed, withheld = _passed(body, cuts)
    assert (passed, withheld) == _passed(body, [])
    assert passed == b"".join(piece.raw for piece in _pieces(body) if not _is_extra(piece)) or _is_beyond(body)
    tail = Tail(streamed=True)
    for piece in (body, body[:100], b"%x\r\n%s\r\n" % (len(body), body)):
        tail.feed(piece)
        for chunked in (False, True):
            kept = tail.read(chunked=chunked)
            for reader in (openai_usage, responses_usage, anthropic_usage):
                reader(kept, True)
                reader(kept, False)


def chunks(data: bytes) -> None:
    """The framing of chunks is taken out of a tail, whatever their sizes."""
    cuts, body = _cut(data)
    sizes = [cut % 50 + 1 for cut in cuts] or [len(body) + 1]
    framed, place = b"", 0
    while place < len(body):
        piece = body[place : place + sizes[place % len(sizes)]]
        framed += b"%X\r\n%s\r\n" % (len(piece), piece)
        place += len(piece)
    tail = Tail(streamed=True)
    tail.feed(framed + b"0\r\n\r\n")
    assert tail.read(chunked=True) == body or tail.total > 16_384


def content_type(data: bytes) -> None:
    """Any header at all has a boundary, or none."""
    text = data.decode("latin-1")
    boundary_of(text.replace("\r", "").replace("\n", ""))  # a header cannot have them
    boundary_of("multipart/form-data; " + text.replace("\r", "").replace("\n", ""))


LAWS: dict[str, Callable[[bytes], None]] = {
    law.__name__: law for law in (head, splice, upload, form, stream, chunks, content_type)
}


def _head(data: bytes) -> Head | None:
    try:
        return read_head(data)
    except ApiError:
        return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _members(data: bytes) -> list[tuple[str, Any]] | None:
    """Of a JSON object, as Python's parser reads it; None if it is none."""
    try:
        members = json.JSONDecoder(object_pairs_hook=_Pairs).decode(data.decode())
    except (ValueError, RecursionError):
        return None
    return [(key, _plain(value)) for key, value in members] if isinstance(members, _Pairs) else None


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, each as often as it stands there."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(one) for key, one in value}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _has_one_model(members: list[tuple[str, Any]]) -> bool:
    models = [(key, value) for key, value in members if key.lower() == "model"]
    return len(models) < 2 and all(key == "model" and isinstance(value, str | None) for key, value in models)


def _is_beyond(data: bytes) -> bool:
    """Whether Python's parser takes more than we do: halves of surrogates, NaN and Infinity, what is very deep."""
    return b"\\ud" in data.lower() or b"NaN" in data or b"Infinity" in data or data.count(b"[") + data.count(b"{") > 200


def _cut(data: bytes) -> tuple[list[int], bytes]:
    """The first bytes tell where the rest is cut."""
    count = data[0] % 8 if data else 0
    cuts, rest = data[1 : 1 + 2 * count], data[1 + 2 * count :]
    return [int.from_bytes(cuts[place : place + 2], "big") for place in range(0, len(cuts), 2)], rest


def _uploads_alike(data: bytes, content_type: str) -> None:
    cuts, body = _cut(data)
    whole = _renamed(body, [], content_type)
    assert _renamed(body, cuts, content_type) == whole
    if len(body) < 100:
        assert _renamed(body, list(range(len(body))), content_type) == whole
    try:
        model = read_head(body, content_type).model
    except ApiError:
        return  # of what a parser refuses, some is passed on, for the server to refuse
    expected = body if model is None else with_model(body, NAME, content_type)
    assert whole == expected or _is_beyond(body)


def _renamed(body: bytes, cuts: list[int], content_type: str) -> bytes | None:
    try:
        return uploaded(body, cuts, NAME, content_type)
    except ApiError:
        return None


def _passed(body: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    stage = UsageWithheld()
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    pieces = [stage.feed(body[start:end]) for start, end in itertools.pairwise(edges)]
    return b"".join(pieces) + stage.finish(), stage.withheld


def _pieces(body: bytes) -> list[Piece]:
    parser = Parser(most_bytes=10**9)
    return [*parser.feed(body), *parser.finish()]


def _is_extra(piece: Piece) -> bool:
    try:
        value = json.loads((piece.event.data if piece.event else b"").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("choices") == [] and isinstance(value.get("usage"), dict)
