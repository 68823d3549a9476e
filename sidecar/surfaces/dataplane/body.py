"""What must be known of a request body: which model, and whether it streams. The rest stays bytes."""

from __future__ import annotations

import re

import msgspec

from sidecar.surfaces.dataplane import forms
from sidecar.surfaces.dataplane.errors import ApiError


class Head(msgspec.Struct):
    """The keys that matter; everything else is skipped over, not decoded. stream: whatever stands there."""

    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw()

    @property
    def streams(self) -> bool:
        """Whether the answer is to come as a stream of events. What is no boolean is for the server to judge."""
        return bytes(self.stream) == b"true"


_decode = msgspec.json.Decoder(Head).decode
_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_OPEN = re.compile(rb"\s*\{\s*")
_KEY = re.compile(rb'("(?:[^"\\]|\\.)*")\s*:\s*')
_NEXT = re.compile(rb"\s*,\s*")


def read_head(body: bytes, content_type: str = "") -> Head:
    """What matters of a JSON object, or of a form if the content type says that it is one. Raises ApiError."""
    if boundary := forms.boundary_of(content_type):
        streams = forms.value(body, boundary, "stream") == "true"
        return Head(forms.value(body, boundary, "model"), msgspec.Raw(b"true" if streams else b"false"))
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_type", f"the body is not as expected: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error


def with_model(body: bytes, name: str, content_type: str = "") -> bytes:
    """The body with the model's name replaced in place, every other byte as it was.

    Raises ApiError if the key stands there more than once: then servers differ in which one they take.
    """
    if boundary := forms.boundary_of(content_type):
        return forms.with_value(body, boundary, "model", name)
    start, end = _place_of_model(body)
    spliced = body[:start] + msgspec.json.encode(name) + body[end:]
    if start == end or _decode(spliced).model != name:
        raise ApiError(400, "invalid_json", "the body has a key twice", param="model")
    return spliced


def _place_of_model(body: bytes) -> tuple[int, int]:
    """Where the value of the top-level "model" starts and ends; (0, 0) if the keys are not what they seem."""
    found = _OPEN.match(body)
    for key, raw in _decode_keys(body).items():
        named = _KEY.match(body, found.end()) if found else None
        if named is None or msgspec.json.decode(named.group(1)) != key:
            break
        end = named.end() + len(memoryview(raw))
        if key == "model":
            return named.end(), end
        found = _NEXT.match(body, end)
    return 0, 0
