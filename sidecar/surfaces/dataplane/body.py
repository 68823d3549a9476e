"""What must be known of a request body: which model, and whether it streams. The rest stays bytes."""

from __future__ import annotations

import re

import msgspec

from sidecar.surfaces.dataplane.errors import ApiError


class Head(msgspec.Struct):
    """The two keys that matter; everything else is skipped over, not decoded."""

    model: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(Head).decode
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


def read_head(body: bytes) -> Head:
    """Model and stream of a JSON object. Raises ApiError."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_type", f"the body is not as expected: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error


def with_model(body: bytes, name: str) -> bytes:
    """The body with the model's name replaced in place, every other byte as it was.

    A nested "model" may come first, so each candidate is tried until the body says the new name. Raises ApiError when
    the key is written in a way that cannot be found (with escapes in it).
    """
    replacement = msgspec.json.encode(name)
    for match in _MODEL.finditer(body):
        spliced = body[: match.start(1)] + replacement + body[match.end(1) :]
        if _decode(spliced).model == name:
            return spliced
    raise ApiError(400, "invalid_json", 'the key "model" must be written plainly, without escapes', param="model")
